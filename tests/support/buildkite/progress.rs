//! How far a build is: its steps, the jobs that came of them, which may run now. No time and no network in here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Map, Value, json};

use super::pipeline::{self, Dependency, Kind, Step, is_true};
use super::{Annotation, Deaf, Fault, JobState};

/// Uploads in one build.
const UPLOADS: usize = 500;

/// Jobs in one build, retries included.
const JOBS: usize = 4_000;

/// One job: a command step that runs, ran, or may run.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) step: usize,
    pub(super) retry_count: usize,
    /// The rule of the step's that made it, by its place among them.
    rule: Option<usize>,
    pub(super) state: JobState,
    pub(super) exit_status: Option<i32>,
    pub(super) signal: String,
    pub(super) signal_reason: String,
    /// Pieces of the log by their place in it, in bytes.
    pub(super) log: BTreeMap<u64, Vec<u8>>,
    pub(super) agent: Option<String>,
    /// What it is to end as, where it is to.
    pub(super) ending: Option<JobState>,
}

/// A step of the build: what was uploaded, and by which step.
struct Placed {
    id: String,
    step: Step,
    uploaded_by: Option<usize>,
}

pub(super) struct Artifact {
    pub(super) id: String,
    pub(super) job: String,
    pub(super) path: String,
    pub(super) described: Value,
    pub(super) content: Option<Vec<u8>>,
    pub(super) is_finished: bool,
}

impl Artifact {
    /// The folder and the name of its file: the name is the last part of its path.
    pub(super) fn file(&self) -> (&str, &str) {
        (&self.id, self.path.rsplit('/').next().unwrap_or_default())
    }
}

/// An agent that has registered.
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) tags: BTreeSet<(String, String)>,
}

/// An upload as it came.
#[derive(Clone)]
pub(super) struct Uploaded {
    pub(super) job: String,
    pub(super) uuid: String,
    pub(super) pipeline: Value,
    pub(super) replace: bool,
}

/// All of a build.
pub(super) struct Progress {
    pub(super) id: String,
    steps: Vec<Placed>,
    /// The steps as they are listed: what is uploaded stands right behind the step that uploaded it.
    order: Vec<usize>,
    pub(super) jobs: Vec<Job>,
    pub(super) agents: BTreeMap<String, Agent>,
    pub(super) faults: BTreeMap<usize, Fault>,
    /// Calls that wanted to upload, those included that came to nothing.
    pub(super) calls: usize,
    /// Applied although no client learns of it, once somebody else uploads or nothing else is left to do.
    pub(super) late: Vec<Uploaded>,
    /// The result of each upload by its UUID, so that none is applied twice.
    results: HashMap<String, Result<(), String>>,
    pub(super) applied: Vec<Value>,
    pub(super) rejections: Vec<String>,
    pub(super) annotations: BTreeMap<String, Annotation>,
    pub(super) meta_data: BTreeMap<String, String>,
    pub(super) artifacts: Vec<Artifact>,
    /// Why a build failed that could not go on.
    pub(super) failure: Option<String>,
    pub(super) is_over: bool,
    /// How many agents are to register before anybody says that a job fits none.
    pub(super) expected_agents: usize,
    /// The keys of the steps whose jobs ended, in that order.
    pub(super) finished: Vec<String>,
    /// Whether uploads are answered at once with their results.
    pub(super) answers_at_once: bool,
    /// What is wrong with telling something.
    pub(super) deaf: Option<Deaf>,
    /// The questions for how a step stands: the step, and the attribute.
    pub(super) exports: Vec<(String, String)>,
    /// Whether none of them is answered.
    pub(super) is_silent_on_steps: bool,
    /// What each job finds a copy of as its checkout.
    pub(super) checkout: Option<PathBuf>,
    /// The commit that is built.
    pub(super) commit: String,
    identifiers: u64,
}

impl Progress {
    /// A build with these steps.
    pub(super) fn new(pipeline: &Value) -> Self {
        let mut progress = Self {
            id: String::new(),
            steps: Vec::new(),
            order: Vec::new(),
            jobs: Vec::new(),
            agents: BTreeMap::new(),
            faults: BTreeMap::new(),
            calls: 0,
            late: Vec::new(),
            results: HashMap::new(),
            applied: Vec::new(),
            rejections: Vec::new(),
            annotations: BTreeMap::new(),
            meta_data: BTreeMap::new(),
            artifacts: Vec::new(),
            failure: None,
            is_over: false,
            expected_agents: 0,
            finished: Vec::new(),
            answers_at_once: false,
            deaf: None,
            exports: Vec::new(),
            is_silent_on_steps: false,
            checkout: None,
            commit: "HEAD".to_owned(),
            identifiers: 0,
        };
        progress.id = progress.identifier();
        progress.insert(None, pipeline).unwrap();
        progress
    }

    /// A UUID of its own for whatever needs one.
    pub(super) fn identifier(&mut self) -> String {
        // Told apart from those of builds in tests that run beside this one: a job's processes are looked for by its id.
        static BUILDS: AtomicU32 = AtomicU32::new(0);
        self.identifiers += 1;
        if self.id.is_empty() {
            let build = BUILDS.fetch_add(1, Ordering::Relaxed);
            let process = std::process::id();
            return format!(
                "{process:08x}-{:04x}-4000-8000-000000000000",
                build & 0xffff
            );
        }
        format!("{}{:012x}", &self.id[..24], self.identifiers)
    }

    /// The job of this id.
    pub(super) fn job(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    /// The uploaded step of a job, its id, and the label of its group.
    pub(super) fn step_of(&self, job: &Job) -> (&Step, &str, Option<&str>) {
        let placed = &self.steps[job.step];
        let group = placed
            .step
            .group
            .and_then(|group| self.steps[group].step.label.as_deref());
        (&placed.step, &placed.id, group)
    }

    /// Was this job retried since?
    pub(super) fn is_retried(&self, job: &Job) -> bool {
        self.latest(job.step).is_some_and(|last| last.id != job.id)
    }

    fn latest(&self, step: usize) -> Option<&Job> {
        self.jobs.iter().rev().find(|job| job.step == step)
    }

    fn by_key(&self, key: &str) -> Option<usize> {
        let has = |placed: &Placed| placed.step.key.as_deref() == Some(key);
        self.steps.iter().position(has)
    }

    /// The result of an upload with this UUID, if there was one.
    pub(super) fn result(&self, uuid: &str) -> Option<Result<(), String>> {
        self.results.get(uuid).cloned()
    }

    /// Applies an upload as a whole, or refuses it as a whole.
    pub(super) fn upload(&mut self, uploaded: &Uploaded) -> Result<(), String> {
        if let Some(result) = self.result(&uploaded.uuid) {
            return result;
        }
        let result = self.try_upload(uploaded);
        match &result {
            Ok(()) => self.applied.push(uploaded.pipeline.clone()),
            Err(message) => self.rejections.push(message.clone()),
        }
        self.results.insert(uploaded.uuid.clone(), result.clone());
        self.settle();
        result
    }

    /// Refuses an upload that a test wants refused.
    pub(super) fn refuse(&mut self, uploaded: &Uploaded, message: String) {
        self.rejections.push(message.clone());
        self.results.insert(uploaded.uuid.clone(), Err(message));
    }

    fn try_upload(&mut self, uploaded: &Uploaded) -> Result<(), String> {
        if uploaded.replace {
            return Err(pipeline::not_played("`--replace`"));
        }
        if self.applied.len() >= UPLOADS {
            return Err(format!(
                "The number of pipeline uploads in this build exceeds your organization limit of {UPLOADS}"
            ));
        }
        let Some(step) = self.job(&uploaded.job).map(|job| job.step) else {
            return Err("No job found".to_owned());
        };
        self.insert(Some(step), &uploaded.pipeline)
    }

    fn insert(&mut self, uploader: Option<usize>, pipeline: &Value) -> Result<(), String> {
        let steps = pipeline::read(pipeline)?;
        let mut keys = BTreeSet::new();
        for key in steps.iter().filter_map(|step| step.key.as_deref()) {
            if !keys.insert(key) || self.by_key(key).is_some() {
                return Err(format!(
                    "The key \"{key}\" has already been used by another step in this build"
                ));
            }
        }
        let jobs = steps.iter().filter(|step| step.kind == Kind::Command);
        if self.jobs.len() + jobs.count() > JOBS {
            return Err(format!(
                "The number of jobs in this build exceeds your organization limit of {JOBS}"
            ));
        }
        let first = self.steps.len();
        let place = uploader.map_or(self.order.len(), |uploader| {
            1 + self.order.iter().position(|it| *it == uploader).unwrap()
        });
        let added = first..first + steps.len();
        self.order.splice(place..place, added);
        for mut step in steps {
            step.group = step.group.map(|group| first + group);
            let id = self.identifier();
            let is_command = step.kind == Kind::Command;
            self.steps.push(Placed {
                id,
                step,
                uploaded_by: uploader,
            });
            if is_command {
                self.add_job(self.steps.len() - 1, 0, None);
            }
        }
        Ok(())
    }

    fn add_job(&mut self, step: usize, retry_count: usize, rule: Option<usize>) {
        let id = self.identifier();
        self.jobs.push(Job {
            id,
            step,
            retry_count,
            rule,
            state: JobState::Waiting,
            exit_status: None,
            signal: String::new(),
            signal_reason: String::new(),
            log: BTreeMap::new(),
            agent: None,
            ending: None,
        });
    }

    /// Finds out anew which jobs may run and which never will, and whether the build is over.
    pub(super) fn settle(&mut self) {
        self.is_over = false;
        self.failure = None;
        let mut ends: Vec<Option<bool>> = vec![None; self.steps.len()];
        let mut states: BTreeMap<usize, JobState> = BTreeMap::new();
        let mut latest = vec![None; self.steps.len()];
        for (at, job) in self.jobs.iter().enumerate() {
            latest[job.step] = Some(at);
        }
        loop {
            let mut moved = false;
            for (place, &at) in self.order.iter().enumerate() {
                if ends[at].is_some() {
                    continue;
                }
                let step = &self.steps[at].step;
                let job = latest[at].map(|at| &self.jobs[at]);
                ends[at] = match (step.kind, job.map(|job| job.state)) {
                    (_, Some(JobState::Passed | JobState::SoftFailed)) => Some(true),
                    (_, Some(JobState::Failed | JobState::Canceled | JobState::TimedOut)) => {
                        Some(false)
                    }
                    (_, Some(JobState::Running)) => None,
                    _ if step.skip.is_some() => {
                        states.insert(at, JobState::Skipped);
                        Some(true)
                    }
                    (Kind::Group, _) => self.group_end(at, &ends),
                    (kind, _) => match (self.may_start(at, place, &ends), kind) {
                        (None, _) => {
                            states.insert(at, JobState::Waiting);
                            None
                        }
                        (Some(true), Kind::Command) => {
                            states.insert(at, JobState::Ready);
                            None
                        }
                        (Some(true), _) => Some(true),
                        (Some(false), _) => {
                            states.insert(at, JobState::DependencyFailed);
                            Some(false)
                        }
                    },
                };
                moved |= ends[at].is_some();
            }
            if !moved {
                break;
            }
        }
        for (at, state) in states {
            if let Some(job) = latest[at] {
                self.jobs[job].state = state;
            }
        }
        self.look_whether_it_is_over();
    }

    /// Whether all members of a group succeeded, once all have ended.
    fn group_end(&self, group: usize, ends: &[Option<bool>]) -> Option<bool> {
        let mut members =
            (0..self.steps.len()).filter(|at| self.steps[*at].step.group == Some(group));
        members.try_fold(true, |good, member| Some(good & ends[member]?))
    }

    /// Whether a step's dependencies let it start (`true`) or never will (`false`); nothing while that is open.
    fn may_start(&self, at: usize, place: usize, ends: &[Option<bool>]) -> Option<bool> {
        let step = &self.steps[at].step;
        let Some(written) = &step.depends_on else {
            let before = &self.order[..place];
            return if let Kind::Wait {
                continue_on_failure,
            } = step.kind
            {
                let end = before
                    .iter()
                    .try_fold(true, |good, it| Some(good & ends[*it]?));
                end.map(|good| good || continue_on_failure)
            } else {
                let is_wait = |it: &&usize| matches!(self.steps[**it].step.kind, Kind::Wait { .. });
                let wait = before.iter().rev().find(is_wait);
                wait.map_or(Some(true), |wait| ends[*wait])
            };
        };
        let mut answer = Some(true);
        for Dependency { key, allow_failure } in written {
            let end = self
                .by_key(key)
                .and_then(|on| self.end_with_uploads(at, on, ends));
            match end {
                None => answer = answer.filter(|good| !good),
                Some(false) if !(*allow_failure || step.allow_dependency_failure) => {
                    answer = Some(false);
                }
                Some(_) => {}
            }
        }
        answer
    }

    /// How a step ended for one that depends on it: a step that depends on one that uploads waits for what it uploaded too, unless
    /// it was uploaded there itself.
    fn end_with_uploads(&self, who: usize, on: usize, ends: &[Option<bool>]) -> Option<bool> {
        let mut end = ends[on]?;
        let came_of = |mut at: usize| {
            while let Some(uploader) = self.steps[at].uploaded_by {
                if uploader == on {
                    return true;
                }
                at = uploader;
            }
            false
        };
        if !came_of(who) {
            for (at, other) in ends.iter().enumerate() {
                if came_of(at) {
                    end &= (*other)?;
                }
            }
        }
        Some(end)
    }

    fn look_whether_it_is_over(&mut self) {
        let any = |state| self.jobs.iter().any(|job| job.state == state);
        if any(JobState::Running) {
            return;
        }
        if any(JobState::Ready) {
            let fits = |job: &Job| self.agents.values().any(|agent| self.fits(job, agent));
            let all_here = self.agents.len() >= self.expected_agents;
            let ready = self.jobs.iter().filter(|job| job.state == JobState::Ready);
            let mut unfit = ready.filter(|job| !fits(job)).peekable();
            let ready = self.jobs.iter().filter(|job| job.state == JobState::Ready);
            let nobody = all_here && !self.agents.is_empty() && unfit.peek().is_some();
            if nobody && !ready.clone().any(fits) {
                self.failure = unfit.next().map(|job| {
                    let (step, ..) = self.step_of(job);
                    let step = step.key.as_deref().or(step.label.as_deref());
                    format!(
                        "no agent has the tags that step `{}` asks for",
                        step.unwrap_or_default()
                    )
                });
                self.is_over = true;
            }
            return;
        }
        if !self.late.is_empty() {
            self.apply_late();
            return;
        }
        self.is_over = true;
        let waiting = self
            .jobs
            .iter()
            .filter(|job| job.state == JobState::Waiting);
        let missing: BTreeSet<&str> = waiting
            .clone()
            .flat_map(|job| self.steps[job.step].step.depends_on.iter().flatten())
            .map(|dependency| dependency.key.as_str())
            .filter(|key| self.by_key(key).is_none())
            .collect();
        if waiting.count() > 0 {
            self.failure = Some(if missing.is_empty() {
                "steps depend on one another in a circle".to_owned()
            } else {
                let missing: Vec<&str> = missing.into_iter().collect();
                format!("step dependencies not found: {}", missing.join(", "))
            });
        }
    }

    /// Applies what was uploaded by somebody who did not live to hear of it.
    pub(super) fn apply_late(&mut self) {
        for uploaded in std::mem::take(&mut self.late) {
            let _ = self.upload(&uploaded);
        }
    }

    fn fits(&self, job: &Job, agent: &Agent) -> bool {
        let mut rules: Vec<(String, String)> = match self.step_of(job).0.properties.get("agents") {
            Some(Value::Object(rules)) => rules
                .iter()
                .map(|(name, value)| (name.clone(), text(value)))
                .collect(),
            Some(Value::Array(rules)) => rules.iter().map(|rule| tag(&text(rule))).collect(),
            _ => Vec::new(),
        };
        if !rules.iter().any(|(name, _)| name == "queue") {
            rules.push(("queue".to_owned(), "default".to_owned()));
        }
        rules.iter().all(|(name, wanted)| {
            let named = |tag: &&(String, String)| tag.0 == *name;
            let mut values = agent.tags.iter().filter(named);
            values.any(|(_, value)| wanted == "*" || value == wanted)
        })
    }

    /// Gives an agent its next job, if there is one.
    pub(super) fn assign(&mut self, token: &str) -> Option<String> {
        let agent = &self.agents[token];
        let place = |step: usize| self.order.iter().position(|at| *at == step);
        let ready = |job: &&Job| job.state == JobState::Ready && self.fits(job, agent);
        let order = |job: &&Job| (-self.step_of(job).0.priority, place(job.step));
        let id = self.jobs.iter().filter(ready).min_by_key(order)?.id.clone();
        let name = agent.name.clone();
        let job = self.job(&id)?;
        job.state = JobState::Running;
        job.agent = Some(name);
        Some(id)
    }

    /// A job has ended; the step's rules may give it another.
    pub(super) fn finish(&mut self, id: &str, exit_status: i32, signal: &str, reason: &str) {
        let Some(at) = self.jobs.iter().position(|job| job.id == id) else {
            return;
        };
        let step = self.jobs[at].step;
        let properties = &self.steps[step].step.properties;
        let is_soft = || soft_fails(properties.get("soft_fail"), exit_status);
        let ending = self.jobs[at].ending;
        let state = match exit_status {
            _ if ending.is_some() => ending.unwrap(),
            0 => JobState::Passed,
            _ if is_soft() => JobState::SoftFailed,
            _ => JobState::Failed,
        };
        let rules = retry_rules(properties);
        let key = self.steps[step].step.key.clone();
        self.finished.extend(key);
        let job = &mut self.jobs[at];
        job.state = state;
        job.exit_status = Some(exit_status);
        signal.clone_into(&mut job.signal);
        reason.clone_into(&mut job.signal_reason);
        if matches!(state, JobState::Failed | JobState::SoftFailed) {
            let job = &self.jobs[at];
            let matching = rules.iter().position(|rule| rule_matches(rule, job));
            if let Some(rule) = matching {
                let limit = rules[rule]
                    .get("limit")
                    .and_then(Value::as_u64)
                    .unwrap_or(2);
                let by_it = |job: &&Job| job.step == step && job.rule == Some(rule);
                let so_far = self.jobs.iter().filter(by_it).count() as u64;
                if so_far < limit && self.jobs.len() < JOBS {
                    self.add_job(step, self.jobs[at].retry_count + 1, Some(rule));
                }
            }
        }
        self.settle();
    }

    /// Another job for the step of a job that has ended, as by a click.
    pub(super) fn retry(&mut self, id: &str) -> String {
        let job = self.job(id).unwrap();
        assert!(job.exit_status.is_some(), "only a job that ran is retried");
        let (step, retry_count) = (job.step, job.retry_count);
        self.add_job(step, retry_count + 1, None);
        self.settle();
        self.jobs.last().unwrap().id.clone()
    }

    /// Somebody wants a job to end: one that does not run yet never will.
    pub(super) fn cancel(&mut self, id: &str) {
        let job = self.job(id).unwrap();
        job.ending = Some(JobState::Canceled);
        if matches!(job.state, JobState::Waiting | JobState::Ready) {
            job.state = JobState::Canceled;
        }
        self.settle();
    }

    /// The time of a job that runs has run out.
    pub(super) fn time_out(&mut self, id: &str) {
        let job = self.job(id).unwrap();
        assert_eq!(
            job.state,
            JobState::Running,
            "only a job that runs has a time"
        );
        job.ending = Some(JobState::TimedOut);
    }

    /// What `buildkite-agent step get` is told about a step by its key or id; nothing where there is none.
    pub(super) fn export(&self, key_or_id: &str, attribute: &str) -> Option<String> {
        let at = self.by_key(key_or_id).or_else(|| {
            let is_it = |placed: &Placed| placed.id == key_or_id;
            self.steps.iter().position(is_it)
        })?;
        let Placed { id, step, .. } = &self.steps[at];
        let state = self.latest(at).map(|job| job.state);
        // That of the last job that has ended: while a step is tried again, that of the try before (seen in oven-sh/bun's builds).
        let mut jobs = self.jobs.iter().rev().filter(|job| job.step == at);
        let outcome = jobs.find_map(|job| job.state.outcome());
        let mut exported = step.properties.clone();
        let type_ = match step.kind {
            Kind::Command => "command",
            Kind::Wait { .. } => "wait",
            Kind::Block => "block",
            Kind::Group => "group",
        };
        for (name, value) in [
            ("id", json!(id)),
            ("key", json!(step.key)),
            ("label", json!(step.label)),
            ("type", json!(type_)),
            ("outcome", json!(outcome)),
            ("state", json!(state.map(JobState::state))),
        ] {
            exported.insert(name.to_owned(), value);
        }
        Some(if attribute.is_empty() {
            Value::from(exported).to_string()
        } else {
            text(exported.get(attribute).unwrap_or(&Value::Null))
        })
    }

    /// The finished artifacts that a query finds, in the order in which they came: none of a job that was retried, unless that is
    /// asked for. A name that means several of them is refused with this message; a pattern finds each.
    pub(super) fn find_artifacts(
        &self,
        query: &str,
        scope: &str,
        with_retried: bool,
    ) -> Result<Vec<&Artifact>, String> {
        let is_found = |artifact: &&Artifact| {
            let Some(job) = self.jobs.iter().find(|job| job.id == artifact.job) else {
                return false;
            };
            let (step, step_id, _) = self.step_of(job);
            let names = [
                Some(job.id.as_str()),
                Some(step_id),
                step.key.as_deref(),
                step.label.as_deref(),
            ];
            let in_scope = scope.is_empty() || names.contains(&Some(scope));
            artifact.is_finished
                && in_scope
                && (with_retried || !self.is_retried(job))
                && glob(query, &artifact.path)
        };
        let found: Vec<&Artifact> = self.artifacts.iter().filter(is_found).collect();
        if found.len() > 1 && !query.contains('*') {
            // Seen in buildkite/agent#803.
            return Err(format!(
                "Multiple artifacts were found for query: `{query}`. Try scoping by the job ID or name."
            ));
        }
        Ok(found)
    }
}

/// A value as the text that an environment variable holds.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `name=value`; a name alone has the value `true`.
pub(super) fn tag(written: &str) -> (String, String) {
    let (name, value) = written.split_once('=').unwrap_or((written, "true"));
    (name.to_owned(), value.to_owned())
}

fn soft_fails(rule: Option<&Value>, exit_status: i32) -> bool {
    match rule {
        Some(Value::Array(rules)) => rules.iter().any(|rule| {
            let status = &rule["exit_status"];
            *status == "*" || *status == exit_status
        }),
        other => is_true(other),
    }
}

/// The rules of `retry.automatic`, in order; `true` is one that always matches.
fn retry_rules(properties: &Map<String, Value>) -> Vec<Value> {
    match properties.get("retry").map(|retry| &retry["automatic"]) {
        Some(Value::Array(rules)) => rules.clone(),
        Some(rule @ Value::Object(_)) => vec![rule.clone()],
        other if is_true(other) => vec![json!({ "exit_status": "*" })],
        _ => Vec::new(),
    }
}

fn rule_matches(rule: &Value, job: &Job) -> bool {
    let exit_status = job.exit_status.unwrap_or_default();
    let status = match &rule["exit_status"] {
        Value::Null => true,
        Value::Array(list) => list.iter().any(|it| *it == exit_status),
        one => *one == "*" && exit_status != 0 || *one == exit_status,
    };
    let word = |field: &str, actual: &str, plain: fn(&str) -> String| match rule[field].as_str() {
        None | Some("*") => true,
        Some("none") => actual.is_empty(),
        Some(wanted) => plain(wanted) == plain(actual),
    };
    let signal = |name: &str| name.to_uppercase().trim_start_matches("SIG").to_owned();
    status
        && word("signal", &job.signal, signal)
        && word("signal_reason", &job.signal_reason, str::to_owned)
}

/// Whether a path matches; `*` stands for anything, slashes too.
fn glob(pattern: &str, path: &str) -> bool {
    let pattern = pattern
        .strip_prefix("./")
        .unwrap_or(pattern)
        .replace("**", "*");
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = path.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        // `a/*` `*/b`: a slash between two stars may be the only one.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Progress, UPLOADS, Uploaded, glob, retry_rules};
    use crate::support::buildkite::JobState;

    /// A build of one step, with these properties and the key `first`, whose job runs.
    fn build(properties: &Value) -> Progress {
        let mut step = json!({ "key": "first", "command": "true" });
        let more = properties.as_object().unwrap().clone();
        step.as_object_mut().unwrap().extend(more);
        let mut build = Progress::new(&json!({ "steps": [step] }));
        build.settle();
        build.jobs[0].state = JobState::Running;
        build
    }

    fn upload(build: &mut Progress, uuid: usize, steps: &Value) -> Result<(), String> {
        let job = build.jobs[0].id.clone();
        build.upload(&Uploaded {
            job,
            uuid: uuid.to_string(),
            pipeline: json!({ "steps": steps }),
            replace: false,
        })
    }

    #[test]
    fn an_upload_of_the_same_uuid_is_applied_once() {
        let mut build = build(&json!({}));
        let steps = json!([{ "key": "second", "command": "true" }]);
        assert_eq!(upload(&mut build, 1, &steps), Ok(()));
        assert_eq!(upload(&mut build, 1, &steps), Ok(()));
        assert_eq!((build.jobs.len(), build.applied.len()), (2, 1));
        upload(&mut build, 2, &steps).unwrap_err();
        upload(&mut build, 2, &json!([{ "command": "true" }])).unwrap_err();
    }

    #[test]
    fn groups_count_among_the_jobs_of_an_upload() {
        let mut build = build(&json!({}));
        let step = json!({ "command": "true" });
        let group =
            |members: usize| json!([{ "group": "all", "steps": vec![step.clone(); members] }]);
        let message = upload(&mut build, 1, &group(500)).unwrap_err();
        assert!(message.contains("organization limit of 500"), "{message}");
        assert_eq!(upload(&mut build, 2, &group(499)), Ok(()));
    }

    #[test]
    fn a_build_has_4000_jobs_at_most() {
        let mut build = build(&json!({}));
        let steps = json!(vec![json!({ "command": "true" }); 499]);
        for uuid in 0..8 {
            assert_eq!(upload(&mut build, uuid, &steps), Ok(()));
        }
        let message = upload(&mut build, 8, &steps).unwrap_err();
        assert!(message.contains("organization limit of 4000"), "{message}");
        let seven = json!(vec![json!({ "command": "true" }); 7]);
        assert_eq!(upload(&mut build, 9, &seven), Ok(()));
        assert_eq!(build.jobs.len(), 4_000);
        let one = json!([{ "command": "true" }]);
        upload(&mut build, 10, &one).unwrap_err();
    }

    #[test]
    fn a_build_has_500_uploads_at_most() {
        let mut build = build(&json!({}));
        let one = json!([{ "command": "true" }]);
        for uuid in 0..UPLOADS {
            assert_eq!(upload(&mut build, uuid, &one), Ok(()));
        }
        let message = upload(&mut build, UPLOADS, &one).unwrap_err();
        assert!(message.contains("pipeline uploads"), "{message}");
    }

    /// How many jobs there are after the first one, and each retry of it, ended in this way.
    fn jobs(automatic: &Value, exit_status: i32, signal: &str, reason: &str) -> usize {
        let mut build = build(&json!({ "retry": { "automatic": automatic } }));
        while let Some(job) = build.jobs.iter().find(|job| job.exit_status.is_none()) {
            let id = job.id.clone();
            build.finish(&id, exit_status, signal, reason);
        }
        build.jobs.len()
    }

    #[test]
    fn the_first_rule_that_matches_decides_about_a_retry() {
        let rules = json!([
            { "exit_status": -1, "signal_reason": "none", "limit": 3 },
            { "exit_status": [1, 2], "signal": "none", "limit": 0 },
            { "exit_status": "*", "signal": "kill" },
        ]);
        assert_eq!(jobs(&rules, -1, "", ""), 4);
        assert_eq!(jobs(&rules, -1, "SIGKILL", "agent_stop"), 3);
        assert_eq!(jobs(&rules, 2, "", ""), 1);
        assert_eq!(jobs(&rules, 3, "", ""), 1);
        assert_eq!(jobs(&json!(true), 3, "", ""), 3);
        assert_eq!(jobs(&json!(true), 0, "", ""), 1);
        assert_eq!(jobs(&json!(false), 3, "", ""), 1);
        let none = retry_rules(json!({}).as_object().unwrap());
        assert_eq!(none, [Value::Null; 0]);
    }

    #[test]
    fn a_step_has_the_outcome_of_its_last_job_that_ended_and_the_state_of_its_last() {
        let mut build = build(&json!({ "soft_fail": [{ "exit_status": 3 }] }));
        let stands = |build: &Progress| {
            ["outcome", "state"].map(|attribute| build.export("first", attribute).unwrap())
        };
        let words = |outcome: &str, state: &str| [outcome.to_owned(), state.to_owned()];
        assert_eq!(stands(&build), words("", "running"));
        let mut job = build.jobs[0].id.clone();
        for (exit_status, outcome) in [(1, "hard_failed"), (3, "soft_failed"), (0, "passed")] {
            build.finish(&job, exit_status, "", "");
            assert_eq!(stands(&build), words(outcome, "finished"));
            job = build.retry(&job);
            assert_eq!(stands(&build), words(outcome, "ready"));
            build.job(&job).unwrap().state = JobState::Running;
        }
        build.time_out(&job);
        build.finish(&job, -1, "SIGTERM", "cancel");
        assert_eq!(stands(&build), words("errored", "finished"));
        assert_eq!(build.export("nobody", "outcome"), None);
        for (properties, outcome, state) in [
            (json!({ "skip": "not today" }), "neutral", "ignored"),
            (
                json!({ "depends_on": "summary" }),
                "",
                "waiting_for_dependencies",
            ),
        ] {
            let mut step = json!({ "key": "first", "command": "true" });
            let more = properties.as_object().unwrap().clone();
            step.as_object_mut().unwrap().extend(more);
            let mut build = Progress::new(&json!({ "steps": [step] }));
            build.settle();
            assert_eq!(stands(&build), words(outcome, state), "{properties}");
        }
    }

    #[test]
    fn what_depends_on_an_uploader_waits_for_what_it_uploaded() {
        let mut build = Progress::new(&json!({ "steps": [
            { "key": "first", "command": "true" },
            { "key": "last", "command": "true", "depends_on": "first" },
        ] }));
        build.settle();
        build.jobs[0].state = JobState::Running;
        let steps = json!([{ "key": "uploaded", "command": "true", "depends_on": "first" }]);
        upload(&mut build, 1, &steps).unwrap();
        let first = build.jobs[0].id.clone();
        build.finish(&first, 0, "", "");
        let states: Vec<JobState> = build.jobs.iter().map(|job| job.state).collect();
        assert_eq!(
            states,
            [JobState::Passed, JobState::Waiting, JobState::Ready]
        );
    }

    #[test]
    fn a_circle_of_dependencies_ends_a_build() {
        let mut build = Progress::new(&json!({ "steps": [
            { "key": "a", "command": "true", "depends_on": "b" },
            { "key": "b", "command": "true", "depends_on": "a" },
        ] }));
        build.settle();
        assert!(build.is_over);
        assert!(build.failure.is_some_and(|it| it.contains("circle")));
    }

    #[test]
    fn a_star_stands_for_slashes_too() {
        for (pattern, path, matches) in [
            ("*", "a/b", true),
            ("a/*", "a/b/c", true),
            ("**/*.json", "a/b.json", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*b", "acb", true),
            ("a*b", "acbd", false),
            ("a*c*d", "abd", false),
        ] {
            assert_eq!(glob(pattern, path), matches, "{pattern} {path}");
        }
    }
}
