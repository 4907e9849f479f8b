//! The Agent API of one build over HTTP: who may call what, and what is answered.

use std::{
    fs,
    io::{Cursor, Read},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use flate2::read::GzDecoder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value, json};
use tiny_http::{Header, Method, Request, Response};

use super::progress::{Agent, Artifact, Job, Progress, Uploaded, tag, text};
use super::{Annotation, Deaf, Fault, JobState, Upload, agents};
use crate::support::{agent::is_old, web::Web};

/// How long an agent's call is held that waits for something; its client gives up after 60 s.
const HELD: Duration = Duration::from_secs(20);

/// How long one call more than was awaited is looked out for.
const A_WHILE: Duration = Duration::from_millis(30);

/// What stands in an address as something else.
const NOT_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_');

/// What agents register with.
pub(super) const REGISTRATION_TOKEN: &str = "registration-0190c1a2";

/// A meta-data value's longest, in bytes.
const META_DATA: usize = 100 * 1024;

/// An annotation's longest, in bytes.
const ANNOTATION: usize = 1024 * 1024;

/// The server of a build; it ends when this is dropped.
pub(super) struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Calls for values of the meta-data.
#[derive(Default)]
struct Asking {
    /// How many wait for their answer.
    now: usize,
    /// How many did at most.
    most: usize,
    /// How many there have to be before they are answered; 0: none waits.
    awaited: usize,
    /// How often so many were answered.
    batch: usize,
}

/// What its threads share.
struct Shared {
    http: tiny_http::Server,
    url: String,
    folder: PathBuf,
    /// The artifacts' files, which Buildkite too keeps on a server of their own.
    files: Web,
    progress: Mutex<Progress>,
    changed: Condvar,
    /// When something was called for that says that a job lives.
    last_call: Mutex<Instant>,
    asking: Mutex<Asking>,
    asked: Condvar,
    /// A call that is not played, and what it was.
    trouble: Mutex<Option<String>>,
    is_closed: Mutex<bool>,
}

impl Server {
    /// Starts to serve a build, whose agents have their folders in `folder`.
    pub(super) fn start(progress: Progress, folder: &Path) -> Self {
        let http = tiny_http::Server::http("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v3", http.server_addr());
        let shared = Arc::new(Shared {
            http,
            url,
            folder: folder.to_owned(),
            files: Web::serve(folder.join("files")),
            progress: Mutex::new(progress),
            changed: Condvar::new(),
            last_call: Mutex::new(Instant::now()),
            asking: Mutex::default(),
            asked: Condvar::new(),
            trouble: Mutex::new(None),
            is_closed: Mutex::new(false),
        });
        let here = Arc::clone(&shared);
        // One thread for each call, for some are held for long.
        let thread = thread::spawn(move || {
            thread::scope(|scope| {
                for request in here.http.incoming_requests() {
                    let here = &here;
                    scope.spawn(move || here.serve(request));
                }
            });
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// The endpoint, as agents are told.
    pub(super) fn url(&self) -> &str {
        &self.shared.url
    }

    /// The artifacts' files.
    pub(super) fn files(&self) -> &Web {
        &self.shared.files
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.shared.progress()
    }

    /// Waits until something has changed, or for so long.
    pub(super) fn wait<'a>(
        &self,
        progress: MutexGuard<'a, Progress>,
        long: Duration,
    ) -> MutexGuard<'a, Progress> {
        self.shared.changed.wait_timeout(progress, long).unwrap().0
    }

    /// Wakes all threads that wait for a change.
    pub(super) fn changed(&self) {
        self.shared.changed.notify_all();
    }

    /// When a job was last heard of.
    pub(super) fn last_call(&self) -> Instant {
        *self.shared.last_call.lock().unwrap()
    }

    /// How many calls for a value of the meta-data were answered at once, at most.
    pub(super) fn most_asking(&self) -> usize {
        self.shared.asking.lock().unwrap().most
    }

    /// Calls for values of the meta-data are answered when so many of them are waiting.
    pub(super) fn answer_at_once(&self, awaited: usize) {
        self.shared.asking.lock().unwrap().awaited = awaited;
    }

    /// What was called for that is not played.
    pub(super) fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.shared.is_closed.lock().unwrap() = true;
        self.shared.changed.notify_all();
        self.shared.http.unblock();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// An answer: its status, its body, and where else to look.
struct Answer {
    status: u16,
    body: Vec<u8>,
    location: Option<String>,
}

impl Answer {
    fn json(body: &Value) -> Self {
        Self {
            status: 200,
            body: body.to_string().into_bytes(),
            location: None,
        }
    }

    fn nothing() -> Self {
        Self::json(&json!({}))
    }

    fn error(status: u16, message: &str) -> Self {
        Self {
            status,
            ..Self::json(&json!({ "message": message }))
        }
    }
}

/// A call, read as a whole.
struct Call {
    method: Method,
    path: String,
    query: Vec<(String, String)>,
    token: String,
    content_type: String,
    body: Vec<u8>,
}

impl Call {
    fn read(request: &mut Request) -> Self {
        let (path, query) = match request.url().split_once('?') {
            Some((path, query)) => (path.to_owned(), query.to_owned()),
            None => (request.url().to_owned(), String::new()),
        };
        let query = query.split('&').filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((decode(name), decode(&value.replace('+', " "))))
        });
        let header = |name: &'static str| {
            let header = request.headers().iter().find(|it| it.field.equiv(name));
            header.map(|it| it.value.to_string()).unwrap_or_default()
        };
        let token = header("Authorization");
        let mut call = Self {
            method: request.method().clone(),
            path,
            query: query.collect(),
            token: token.strip_prefix("Token ").unwrap_or(&token).to_owned(),
            content_type: header("Content-Type"),
            body: Vec::new(),
        };
        // A client that was killed sends no more.
        let _ = request.as_reader().read_to_end(&mut call.body);
        call
    }

    fn query(&self, name: &str) -> &str {
        let mut pairs = self.query.iter();
        pairs
            .find(|pair| pair.0 == name)
            .map_or("", |pair| pair.1.as_str())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap()
    }

    fn serve(&self, mut request: Request) {
        let call = Call::read(&mut request);
        // Whatever a test does between applying and answering may fail: then the build has failed, not the agent's call alone.
        let answer = catch_unwind(AssertUnwindSafe(|| self.answer(&call))).unwrap_or_else(|_| {
            self.is_in_trouble(format!("{} {} panicked", call.method, call.path))
        });
        let mut response = Response::new(
            answer.status.into(),
            Vec::new(),
            Cursor::new(&answer.body),
            Some(answer.body.len()),
            None,
        );
        if let Some(location) = &answer.location {
            let headers = [("Location", location.as_str()), ("Retry-After", "0")];
            for (name, value) in headers {
                let header = Header::from_bytes(name.as_bytes(), value.as_bytes()).unwrap();
                response.add_header(header);
            }
        }
        // The caller may be gone.
        let _ = request.respond(response);
    }

    fn answer(&self, call: &Call) -> Answer {
        let path = call.path.trim_start_matches("/v3/");
        let parts: Vec<String> = path.split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let is_post = call.method == Method::Post;
        match (call.method.as_str(), &*parts) {
            ("POST", ["register"]) if call.token == REGISTRATION_TOKEN => {
                return self.register(&call.json());
            }
            // An address that carries its own permission, as that of a store for files does.
            ("POST", ["files"]) => return self.receive_file(call),
            _ => {}
        }
        if !self.progress().agents.contains_key(&call.token) {
            return Answer::error(401, "Authorization failed");
        }
        if let ("GET", ["ping"]) = (call.method.as_str(), &*parts) {
            return self.ping(&call.token);
        }
        let is_sign_of_life = call.method != Method::Get && parts != ["heartbeat"];
        if is_sign_of_life {
            *self.last_call.lock().unwrap() = Instant::now();
        }
        if let [_, _, "data" | "annotations" | "artifacts", ..] = *parts
            && let Some(answer) = self.deaf()
        {
            return answer;
        }
        let answer = match (call.method.as_str(), &*parts) {
            ("POST", ["connect" | "disconnect"]) => Answer::nothing(),
            ("POST", ["heartbeat"]) => {
                let sent = &call.json()["sent_at"];
                Answer::json(&json!({ "sent_at": sent, "received_at": sent }))
            }
            ("POST", ["steps", step, "export"]) => {
                let attribute = call.json();
                let attribute = attribute["attribute"].as_str().unwrap_or_default();
                let mut progress = self.progress();
                progress
                    .exports
                    .push((step.to_string(), attribute.to_owned()));
                let exported = progress.export(step, attribute);
                if progress.is_silent_on_steps {
                    while !*self.is_closed.lock().unwrap() {
                        progress = self.changed.wait_timeout(progress, HELD).unwrap().0;
                    }
                }
                drop(progress);
                match exported {
                    Some(output) => Answer::json(&json!({ "output": output })),
                    None => Answer::error(404, "No step found"),
                }
            }
            ("GET", ["builds", _, "artifacts", "search"]) => self.search(call),
            ("POST", ["jobs" | "builds", _, "data", "get"]) => self.get_meta_data(&call.json()),
            ("POST", ["jobs" | "builds", _, "data", what]) => self.meta_data(what, &call.json()),
            (_, ["jobs", job, rest @ ..]) => self.job(call, job, rest),
            _ => self.is_not_played(call),
        };
        if is_post || call.method == Method::Put {
            self.changed.notify_all();
        }
        answer
    }

    /// The answer of a Buildkite that cannot be told anything; one that does not answer says nothing until the build is over.
    fn deaf(&self) -> Option<Answer> {
        let mut progress = self.progress();
        if let Deaf::Answers(status) = progress.deaf? {
            return Some(Answer::error(status, "No server is here"));
        }
        while !*self.is_closed.lock().unwrap() {
            progress = self.changed.wait_timeout(progress, HELD).unwrap().0;
        }
        Some(Answer::error(503, "No server answers"))
    }

    fn is_not_played(&self, call: &Call) -> Answer {
        let what = format!(
            "{} {} is not played by this test server",
            call.method, call.path
        );
        self.is_in_trouble(what)
    }

    fn is_in_trouble(&self, what: String) -> Answer {
        let answer = Answer::error(404, &what);
        *self.trouble.lock().unwrap() = Some(what);
        self.changed.notify_all();
        answer
    }

    fn register(&self, agent: &Value) -> Answer {
        let mut progress = self.progress();
        let name = text(&agent["name"]);
        let tags = agent["meta_data"].as_array().cloned().unwrap_or_default();
        let mut tags: Vec<(String, String)> = tags.iter().map(|it| tag(&text(it))).collect();
        if !tags.iter().any(|(name, _)| name == "queue") {
            tags.push(("queue".to_owned(), "default".to_owned()));
        }
        let id = progress.identifier();
        let token = format!("access-{id}");
        let agent = Agent {
            name: name.clone(),
            tags: tags.into_iter().collect(),
        };
        progress.agents.insert(token.clone(), agent);
        progress.settle();
        self.changed.notify_all();
        Answer::json(&json!({
            "id": id,
            "name": name,
            "access_token": token,
            "endpoint": "",
            "ping_interval": 1,
            "job_status_interval": 1,
            "heartbeat_interval": 60,
            "meta_data": [],
        }))
    }

    /// Work for an agent. Held until there is some, for after an answer without any an agent sleeps for a second.
    fn ping(&self, token: &str) -> Answer {
        let until = Instant::now() + HELD;
        let mut progress = self.progress();
        loop {
            if *self.is_closed.lock().unwrap() {
                return Answer::json(&json!({ "action": "disconnect" }));
            }
            if !progress.agents.contains_key(token) {
                return Answer::error(401, "Authorization failed");
            }
            if let Some(job) = progress.assign(token) {
                return Answer::json(&json!({ "job": { "id": job } }));
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Answer::nothing();
            }
            progress = self.changed.wait_timeout(progress, rest).unwrap().0;
        }
    }

    /// Calls about one job.
    fn job(&self, call: &Call, id: &str, rest: &[&str]) -> Answer {
        let Some(state) = self.progress().job(id).map(|job| job.state) else {
            return Answer::error(404, "No job found");
        };
        // A job's token acts for that job alone, except that "job tokens can create (push) metadata, annotations, and artifacts to other
        // jobs" (documentation, "Agent tokens"): neither is a proof of who made it.
        let is_pushed = matches!(rest, ["data" | "annotations" | "artifacts", ..]);
        let is_its_own = {
            let mut progress = self.progress();
            let caller = progress.agents.get(&call.token).map(|it| it.name.clone());
            progress.job(id).is_some_and(|job| job.agent == caller)
        };
        if !is_pushed && !is_its_own {
            return Answer::error(403, "The job is not this agent's");
        }
        let body = call.json();
        match (call.method.as_str(), rest) {
            ("PUT", ["accept"]) => self.accept(call, id),
            ("PUT", ["start"]) | ("POST", ["header_times"]) => Answer::nothing(),
            ("GET", []) => {
                let ending = self.progress().job(id).and_then(|job| job.ending);
                // An agent of v3.83.1 does not know `timing_out`, and goes on.
                let state = match ending {
                    Some(JobState::TimedOut) if !is_old() => "timing_out",
                    Some(_) => "canceling",
                    None => "running",
                };
                Answer::json(&json!({ "state": state }))
            }
            ("PUT", ["finish"]) => {
                if state != JobState::Running {
                    return Answer::error(422, "The job is not running");
                }
                let exit_status = text(&body["exit_status"]).parse().unwrap_or(-1);
                let (signal, reason) = (text(&body["signal"]), text(&body["signal_reason"]));
                self.progress().finish(id, exit_status, &signal, &reason);
                Answer::nothing()
            }
            ("POST", ["chunks"]) => {
                let mut chunk = Vec::new();
                let read = GzDecoder::new(&*call.body).read_to_end(&mut chunk);
                let Ok(offset) = call.query("offset").parse() else {
                    return Answer::error(400, "no offset");
                };
                if read.is_err() || chunk.len().to_string() != call.query("size") {
                    return Answer::error(400, "the chunk is damaged");
                }
                let mut progress = self.progress();
                progress.job(id).unwrap().log.insert(offset, chunk);
                Answer::nothing()
            }
            ("POST", ["pipelines"]) => self.upload(id, &body),
            ("GET", ["pipelines", uuid]) => {
                let (state, message) = match self.progress().result(uuid) {
                    Some(Ok(())) => ("applied", String::new()),
                    Some(Err(message)) => ("rejected", message),
                    None => return Answer::error(404, "No pipeline upload found"),
                };
                Answer::json(&json!({ "state": state, "message": message }))
            }
            ("POST", ["annotations"]) => self.annotate(&body),
            ("DELETE", ["annotations", context]) => {
                match self.progress().annotations.remove(*context) {
                    Some(_) => Answer::nothing(),
                    None => Answer::error(404, "No annotation found"),
                }
            }
            ("POST", ["artifacts"]) => self.add_artifacts(id, &body),
            ("PUT", ["artifacts"]) => {
                let mut progress = self.progress();
                for update in body["artifacts"].as_array().into_iter().flatten() {
                    let is_it = |it: &&mut Artifact| update["id"] == *it.id;
                    let Some(artifact) = progress.artifacts.iter_mut().find(is_it) else {
                        return Answer::error(404, "No artifact found");
                    };
                    artifact.is_finished =
                        update["state"] == "finished" && artifact.content.is_some();
                }
                Answer::nothing()
            }
            _ => self.is_not_played(call),
        }
    }

    /// The job as the agent needs it, in a fresh checkout.
    fn accept(&self, call: &Call, id: &str) -> Answer {
        let progress = self.progress();
        let agent = &progress.agents[&call.token];
        let job = progress.jobs.iter().find(|job| job.id == id).unwrap();
        if job.agent.as_ref() != Some(&agent.name) {
            return Answer::error(422, "The job was assigned to another agent");
        }
        let env = environment(&progress, job, agent, &self.url);
        let skips = env.contains_key("BUILDKITE_SKIP_CHECKOUT");
        let checkout = progress.checkout.clone().filter(|_| !skips);
        let name = agent.name.clone();
        drop(progress);
        agents::check_out(&self.folder.join(name), checkout.as_deref());
        Answer::json(&json!({
            "id": id,
            "state": "accepted",
            "env": env,
            "step": { "command": env["BUILDKITE_COMMAND"] },
            "chunks_max_size_bytes": 102_400,
            "chunks_interval_seconds": 1,
            "log_max_size_bytes": 0,
        }))
    }

    fn upload(&self, job: &str, body: &Value) -> Answer {
        let uploaded = Uploaded {
            job: job.to_owned(),
            uuid: text(&body["uuid"]),
            pipeline: body["pipeline"].clone(),
            replace: body["replace"] == true,
        };
        let mut progress = self.progress();
        progress.calls += 1;
        let nth = progress.calls;
        progress.apply_late();
        let fault = progress.faults.remove(&nth);
        let upload = Upload {
            job: job.to_owned(),
            pipeline: uploaded.pipeline.clone(),
        };
        match fault {
            None => {
                let _ = progress.upload(&uploaded);
            }
            Some(Fault::Reject(message)) => progress.refuse(&uploaded, message),
            Some(Fault::Answer(status)) => {
                let message = "There was an unknown error uploading these steps.";
                return Answer::error(status, message);
            }
            Some(Fault::KillBefore) => {
                drop(progress);
                upload.kill_job();
                return Answer::error(503, "No server answers");
            }
            Some(Fault::KillAndApplyLate) => {
                progress.late.push(uploaded);
                drop(progress);
                upload.kill_job();
                return Answer::error(503, "No server answers");
            }
            Some(Fault::KillAfter) => {
                let _ = progress.upload(&uploaded);
                drop(progress);
                upload.kill_job();
                return Answer::error(503, "No server answers");
            }
            Some(Fault::Between(run)) => {
                let _ = progress.upload(&uploaded);
                drop(progress);
                self.changed.notify_all();
                run(&upload);
                progress = self.progress();
            }
        }
        match progress.result(&uploaded.uuid) {
            Some(Err(message)) if progress.answers_at_once => Answer::error(422, &message),
            _ if progress.answers_at_once => Answer::nothing(),
            _ => Answer {
                status: 202,
                location: Some(format!(
                    "{}/jobs/{job}/pipelines/{}",
                    self.url, uploaded.uuid
                )),
                ..Answer::nothing()
            },
        }
    }

    fn annotate(&self, body: &Value) -> Answer {
        let context = match text(&body["context"]) {
            none if none.is_empty() => "default".to_owned(),
            context => context,
        };
        let (written, style) = (text(&body["body"]), text(&body["style"]));
        if context.chars().count() > 100 {
            return Answer::error(422, "Context is too long (maximum is 100 characters)");
        }
        if !["", "success", "info", "warning", "error"].contains(&style.as_str()) {
            return Answer::error(422, "Style is not included in the list");
        }
        let mut progress = self.progress();
        let old = progress.annotations.get(&context);
        let mut annotation = Annotation {
            body: String::new(),
            style,
        };
        if let Some(old) = old {
            if annotation.style.is_empty() {
                annotation.style.clone_from(&old.style);
            }
            if body["append"] == true {
                annotation.body.clone_from(&old.body);
            }
        }
        annotation.body.push_str(&written);
        if annotation.body.len() > ANNOTATION {
            return Answer::error(422, "Body is too large (maximum is 1 MiB)");
        }
        progress.annotations.insert(context, annotation);
        Answer::nothing()
    }

    fn get_meta_data(&self, body: &Value) -> Answer {
        let until = Instant::now() + HELD;
        let mut asking = self.asking.lock().unwrap();
        asking.now += 1;
        asking.most = asking.most.max(asking.now);
        let batch = asking.batch;
        if asking.now == asking.awaited {
            // One more that comes, although it should not, is seen.
            drop(asking);
            thread::sleep(A_WHILE);
            asking = self.asking.lock().unwrap();
            asking.batch += 1;
            asking.now = 0;
            self.asked.notify_all();
        }
        while asking.awaited > 0 && asking.batch == batch && Instant::now() < until {
            asking = self.asked.wait_timeout(asking, HELD).unwrap().0;
        }
        if asking.batch == batch {
            asking.now -= 1;
        }
        drop(asking);
        self.meta_data("get", body)
    }

    fn meta_data(&self, what: &str, body: &Value) -> Answer {
        let key = text(&body["key"]);
        let mut progress = self.progress();
        match what {
            "set" => {
                let value = text(&body["value"]);
                if key.trim().is_empty() || value.trim().is_empty() {
                    return Answer::error(422, "Value can't be blank");
                }
                if value.len() > META_DATA {
                    return Answer::error(422, "Value is too long (maximum is 102400 bytes)");
                }
                progress.meta_data.insert(key, value);
                Answer::nothing()
            }
            "get" => match progress.meta_data.get(&key) {
                Some(value) => Answer::json(&json!({ "key": key, "value": value })),
                None => Answer::error(404, "No key found"),
            },
            "exists" => {
                let exists = progress.meta_data.contains_key(&key);
                Answer::json(&json!({ "exists": exists }))
            }
            "keys" => Answer::json(&json!(progress.meta_data.keys().collect::<Vec<_>>())),
            _ => Answer::error(404, "Not found"),
        }
    }

    fn add_artifacts(&self, job: &str, body: &Value) -> Answer {
        let mut progress = self.progress();
        let mut ids = Vec::new();
        for described in body["artifacts"].as_array().into_iter().flatten() {
            let id = progress.identifier();
            progress.artifacts.push(Artifact {
                id: id.clone(),
                job: job.to_owned(),
                path: text(&described["path"]),
                described: described.clone(),
                content: None,
                is_finished: false,
            });
            ids.push(id);
        }
        let url = self.url.strip_suffix("/v3").unwrap();
        Answer::json(&json!({
            "id": body["id"],
            "artifact_ids": ids,
            "upload_instructions": {
                "data": { "job": job, "path": "${artifact:path}" },
                "action": { "url": url, "method": "POST", "path": "/v3/files", "file_input": "file" },
            },
        }))
    }

    /// A file of an artifact, as a form whose last field it is.
    fn receive_file(&self, call: &Call) -> Answer {
        let fields = form(&call.content_type, &call.body);
        let field = |name: &str| fields.iter().find(|field| field.0 == name);
        let (Some((_, job)), Some((_, path)), Some((_, file))) =
            (field("job"), field("path"), field("file"))
        else {
            return Answer::error(400, "a field is missing");
        };
        let mut progress = self.progress();
        let is_it = |it: &&mut Artifact| {
            it.job.as_bytes() == *job && it.path.as_bytes() == *path && it.content.is_none()
        };
        let Some(artifact) = progress.artifacts.iter_mut().find(is_it) else {
            return Answer::error(404, "no artifact waits for this file");
        };
        if artifact.described["file_size"] != file.len() {
            return Answer::error(400, "the file has another size");
        }
        artifact.content = Some(file.to_vec());
        let (id, name) = artifact.file();
        let folder = self.folder.join("files").join(id);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), file).unwrap();
        Answer::nothing()
    }

    fn search(&self, call: &Call) -> Answer {
        let progress = self.progress();
        let with_retried = call.query("include_retried_jobs") == "true";
        let found = progress.find_artifacts(call.query("query"), call.query("scope"), with_retried);
        let found = match found {
            Ok(found) => found,
            Err(message) => return Answer::error(400, &message),
        };
        let found = found.into_iter().map(|artifact| {
            let (id, name) = artifact.file();
            let name = utf8_percent_encode(name, NOT_PLAIN);
            let mut described = artifact.described.as_object().cloned().unwrap_or_default();
            for (name, value) in [
                ("id", artifact.id.clone()),
                ("job_id", artifact.job.clone()),
                ("url", format!("{}/{id}/{name}", self.files.url())),
                ("created_at", "2026-01-01T00:00:00Z".to_owned()),
            ] {
                described.insert(name.to_owned(), value.into());
            }
            Value::from(described)
        });
        Answer::json(&found.collect())
    }
}

/// The variables that Buildkite gives a job; what it sets itself a step's `env` cannot change.
fn environment(progress: &Progress, job: &Job, agent: &Agent, url: &str) -> Map<String, Value> {
    let (step, step_id, group) = progress.step_of(job);
    let properties = &step.properties;
    let mut env = Map::new();
    for (name, value) in properties
        .get("env")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        env.insert(name.clone(), text(value).into());
    }
    let lines = |name: &str, between: &str| match properties.get(name) {
        Some(Value::Array(lines)) => lines.iter().map(text).collect::<Vec<_>>().join(between),
        other => other.map(text).unwrap_or_default(),
    };
    let command = match lines("command", "\n") {
        none if none.is_empty() => lines("commands", "\n"),
        command => command,
    };
    let timeout = match properties.get("timeout_in_minutes") {
        Some(minutes) => text(minutes),
        None => "false".to_owned(),
    };
    let build_url = format!("{}/build", url.trim_end_matches("/v3"));
    for (name, value) in [
        ("CI", "true"),
        ("BUILDKITE", "true"),
        ("BUILDKITE_AGENT_NAME", &agent.name),
        ("BUILDKITE_BRANCH", super::pipeline::BRANCH),
        ("BUILDKITE_BUILD_ID", &progress.id),
        ("BUILDKITE_BUILD_NUMBER", "1"),
        ("BUILDKITE_BUILD_URL", &build_url),
        ("BUILDKITE_COMMAND", &command),
        ("BUILDKITE_COMMIT", &progress.commit),
        ("BUILDKITE_JOB_ID", &job.id),
        ("BUILDKITE_LABEL", step.label.as_deref().unwrap_or_default()),
        ("BUILDKITE_MESSAGE", "A commit"),
        ("BUILDKITE_ORGANIZATION_SLUG", "organization"),
        ("BUILDKITE_PIPELINE_DEFAULT_BRANCH", "main"),
        ("BUILDKITE_PIPELINE_PROVIDER", "git"),
        ("BUILDKITE_PIPELINE_SLUG", "pipeline"),
        ("BUILDKITE_PROJECT_SLUG", "organization/pipeline"),
        ("BUILDKITE_PULL_REQUEST", "false"),
        ("BUILDKITE_REBUILT_FROM_BUILD_ID", ""),
        ("BUILDKITE_REPO", "https://example.com/repository.git"),
        ("BUILDKITE_RETRY_COUNT", &job.retry_count.to_string()),
        ("BUILDKITE_SOURCE", "webhook"),
        ("BUILDKITE_STEP_ID", step_id),
        (
            "BUILDKITE_STEP_KEY",
            step.key.as_deref().unwrap_or_default(),
        ),
        ("BUILDKITE_TAG", ""),
        ("BUILDKITE_TIMEOUT", &timeout),
        ("BUILDKITE_TRIGGERED_FROM_BUILD_ID", ""),
    ] {
        env.insert(name.to_owned(), value.into());
    }
    if properties
        .get("checkout")
        .is_some_and(|it| it["skip"] == true)
    {
        env.insert("BUILDKITE_SKIP_CHECKOUT".to_owned(), "true".into());
    }
    if let Some(group) = group {
        env.insert("BUILDKITE_GROUP_LABEL".to_owned(), group.into());
    }
    match lines("artifact_paths", ";") {
        none if none.is_empty() => {}
        paths => {
            env.insert("BUILDKITE_ARTIFACT_PATHS".to_owned(), paths.into());
        }
    }
    let plugins = match properties.get("plugins") {
        Some(Value::Object(plugins)) => plugins
            .iter()
            .map(|(name, configuration)| json!({ name: configuration }))
            .collect(),
        Some(Value::Array(plugins)) => plugins.clone(),
        _ => Vec::new(),
    };
    if !plugins.is_empty() {
        let plugins = Value::from(plugins).to_string();
        env.insert("BUILDKITE_PLUGINS".to_owned(), plugins.into());
    }
    for (name, value) in &agent.tags {
        let name = name.to_uppercase().replace('-', "_");
        env.insert(
            format!("BUILDKITE_AGENT_META_DATA_{name}"),
            value.as_str().into(),
        );
    }
    env
}

/// The fields of a form (`multipart/form-data`) by their names.
fn form<'a>(content_type: &str, body: &'a [u8]) -> Vec<(String, &'a [u8])> {
    let Some((_, boundary)) = content_type.split_once("boundary=") else {
        return Vec::new();
    };
    let boundary = format!("--{}", boundary.trim_matches('"'));
    let mut fields = Vec::new();
    let mut rest = body;
    while let Some(at) = find(rest, boundary.as_bytes()) {
        rest = &rest[at + boundary.len()..];
        let Some(head_end) = find(rest, b"\r\n\r\n") else {
            break;
        };
        let head = String::from_utf8_lossy(&rest[..head_end]).into_owned();
        let content = &rest[head_end + 4..];
        let Some(end) = find(content, format!("\r\n{boundary}").as_bytes()) else {
            break;
        };
        let name = head.split("; name=\"").nth(1);
        let name = name.and_then(|rest| rest.split('"').next());
        fields.push((name.unwrap_or_default().to_owned(), &content[..end]));
        rest = &content[end..];
    }
    fields
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    // Whole lines of zeros are as likely as any: nothing clever.
    text.windows(wanted.len()).position(|part| part == wanted)
}
