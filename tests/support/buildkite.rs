//! Buildkite, as far as its agents see it: a server for one build, which keeps the real one's rules, and real agents
//! (`buildkite-agent start`) that run the build's jobs until it is over.
//!
//! A build starts with one step; what its jobs upload is validated, then refused or run as Buildkite's documentation and the
//! agent's source say. What is not played (block and trigger steps, matrices, `if`) is refused with words that say so,
//! never played wrong. Uploads are answered as they are today: taken at once, and their results are asked for
//! ([`Build::answering_at_once`] is the older way).
//!
//! An agent waits in its call for work until there is some, so no job waits for the next second's call. Each job starts in
//! a fresh copy of the test's checkout; git is not used.

mod agents;
mod pipeline;
mod progress;
mod server;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::MutexGuard,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::{progress::Progress, server::Server};
use super::{
    DEADLINE, EVAL_ONCE,
    agent::{plain, program},
    processes::{kill_marked, marked},
    stand_in::write_program,
    store::Store,
    until,
    web::Web,
};

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobState {
    /// It waits for other steps.
    Waiting,
    /// It waits for an agent.
    Ready,
    /// An agent has it.
    Running,
    /// It ended with 0.
    Passed,
    /// It failed.
    Failed,
    /// It failed, which its step allows.
    SoftFailed,
    /// Its step says `skip`.
    Skipped,
    /// Somebody ended it.
    Canceled,
    /// Its time ran out.
    TimedOut,
    /// What it depends on failed.
    DependencyFailed,
}

impl JobState {
    /// The state of its step, as `step get state` prints it. The words are those of the documentation ("Using conditionals",
    /// `step.state`); which of them a step has whose dependency failed is documented nowhere, and it will not change any more.
    fn state(self) -> &'static str {
        match self {
            Self::Waiting => "waiting_for_dependencies",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Skipped => "ignored",
            Self::Passed
            | Self::Failed
            | Self::SoftFailed
            | Self::Canceled
            | Self::TimedOut
            | Self::DependencyFailed => "finished",
        }
    }

    /// The outcome of its step, as `step get outcome` prints it: there is one once a job of it has ended. `errored` is for
    /// "timeouts, cancellations or expired jobs" ("Getting the outcome of a step").
    fn outcome(self) -> Option<&'static str> {
        match self {
            Self::Waiting | Self::Ready | Self::Running => None,
            Self::Passed => Some("passed"),
            Self::Failed => Some("hard_failed"),
            Self::SoftFailed => Some("soft_failed"),
            Self::Canceled | Self::TimedOut | Self::DependencyFailed => Some("errored"),
            Self::Skipped => Some("neutral"),
        }
    }
}

/// How a job stands or stood.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// The job's id, another one for each retry.
    pub(crate) id: String,
    /// The id of its step, the same in retries.
    pub(crate) step_id: String,
    /// The step's key.
    pub(crate) key: Option<String>,
    /// The step's label.
    pub(crate) label: Option<String>,
    /// The label of the group that it is in.
    pub(crate) group: Option<String>,
    /// How it stands.
    pub(crate) state: JobState,
    /// What the agent says it ended with; -1 where a signal ended it.
    pub(crate) exit_status: Option<i32>,
    /// The signal that ended the agent's `bootstrap`: empty, or `SIGKILL`.
    pub(crate) signal: String,
    /// Why the agent ended it: empty, `cancel`, `agent_stop`, …
    pub(crate) signal_reason: String,
    /// How many jobs of this step came before.
    pub(crate) retry_count: usize,
    /// Whether another job of this step came after.
    pub(crate) is_retried: bool,
    /// The name of the agent that ran it.
    pub(crate) agent: Option<String>,
    /// The whole log, byte for byte but for what is no UTF-8.
    pub(crate) log: String,
}

impl Job {
    /// The log without colours, time stamps and carriage returns.
    pub(crate) fn plain(&self) -> String {
        plain(&self.log)
    }

    /// `WAY (REASON)`, from the line that a step of ours ends in.
    pub(crate) fn way(&self) -> String {
        let log = self.plain();
        let line = log.lines().rev().find_map(|line| {
            let (way, rest) = line.strip_prefix("eval-once: ")?.split_once(" /")?;
            let (_, rest) = rest.split_once(" s (")?;
            let (reason, _) = rest.split_once("): built ")?;
            Some(format!("{way} ({reason})"))
        });
        line.unwrap_or_else(|| format!("no way in {:?} {:?}: {log}", self.state, self.exit_status))
    }
}

/// An annotation of the build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Annotation {
    pub(crate) body: String,
    /// `success`, `info`, `warning`, `error`, or empty.
    pub(crate) style: String,
}

/// What is wrong with a Buildkite that is told something: meta-data, annotations, artifacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deaf {
    /// It answers with this status.
    Answers(u16),
    /// It does not answer.
    Hangs,
}

/// The outcome of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every step passed, was skipped, or failed softly.
    Passed,
    /// A step failed.
    Failed,
    /// It could not go on, and why: `step dependencies not found: …`.
    Stuck(String),
}

/// What goes wrong with an upload. Killed is the job's whole process tree, the agent's `bootstrap` with it, before the client
/// hears anything.
pub(crate) enum Fault {
    /// The job is killed, and nothing is applied.
    KillBefore,
    /// It is applied, then the job is killed.
    KillAfter,
    /// The job is killed; the upload is applied when the next one arrives, just before it, or when nothing else is left to
    /// do.
    KillAndApplyLate,
    /// Nothing is applied, and the answer is this status with a message. The agent comes again after five seconds where it is
    /// 500 or the like.
    Answer(u16),
    /// Refused with this message.
    Reject(String),
    /// It is applied, and this is run before the answer.
    Between(Box<dyn FnOnce(&Upload) + Send>),
}

/// An upload that is being worked on.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    /// The job that uploads.
    pub(crate) job: String,
    /// What it uploads.
    pub(crate) pipeline: Value,
}

impl Upload {
    /// Kills every process of the uploading job, the agent's `bootstrap` too, and waits until they are gone.
    pub(crate) fn kill_job(&self) {
        until(&format!("job {} is gone", self.job), || {
            kill_marked(&self.job);
            marked(&self.job).is_empty()
        });
    }
}

/// A build, its server and its agents.
pub(crate) struct Build {
    folder: TempDir,
    agent: PathBuf,
    server: Server,
    agents: Vec<agents::Plan>,
    environment: Vec<(OsString, OsString)>,
    terminal: bool,
    /// For how long nothing may move.
    pub(crate) patience: Duration,
}

impl Build {
    /// A build whose first step is this one, and which two agents will run; nothing, said loudly, where there is no agent here.
    ///
    /// # Panics
    ///
    /// When the step is none that Buildkite takes.
    pub(crate) fn new(first_step: &Value) -> Option<Self> {
        let agent = program()?;
        // Directly below /tmp, whatever TMPDIR says: a socket's path has at most 107 bytes.
        let folder = tempfile::Builder::new()
            .prefix("bk")
            .tempdir_in("/tmp")
            .unwrap();
        for name in ["hooks", "home", "tmp", "files"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("agent.cfg"), "").unwrap();
        let progress = Progress::new(&json!({ "steps": [first_step] }));
        let server = Server::start(progress, folder.path());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let environment = vec![
            ("PATH".into(), path),
            ("HOME".into(), folder.path().join("home").into_os_string()),
            ("TMPDIR".into(), folder.path().join("tmp").into_os_string()),
        ];
        Some(Self {
            folder,
            agent,
            server,
            agents: vec![agents::Plan::default(); 2],
            environment,
            terminal: false,
            patience: DEADLINE,
        })
    }

    /// The folder that each job finds a copy of as its checkout; without one it is empty.
    pub(crate) fn checkout(self, folder: impl Into<PathBuf>) -> Self {
        self.progress().checkout = Some(folder.into());
        self
    }

    /// The commit that the build is of, by its hash; without one it is `HEAD`.
    pub(crate) fn commit(self, hash: &str) -> Self {
        hash.clone_into(&mut self.progress().commit);
        self
    }

    /// Variables that the agents are started with, and so every job has: nothing of this process's gets there but `PATH`. `HOME` and
    /// `TMPDIR` are folders of the build's unless they are given here.
    pub(crate) fn envs<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let variables = variables.into_iter();
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        self.environment.extend(variables);
        self
    }

    /// What the agents' configuration file says.
    pub(crate) fn configuration(self, text: &str) -> Self {
        fs::write(self.folder.path().join("agent.cfg"), text).unwrap();
        self
    }

    /// How many agents run the build, in the queue `default`.
    pub(crate) fn agents(mut self, number: usize) -> Self {
        self.agents = vec![agents::Plan::default(); number];
        self
    }

    /// More agents: so many, on this host, with the tag `host=NAME`, and with these variables beside the host's own and the
    /// build's. They are run by this user, where one is named.
    pub(crate) fn agents_of<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        (host, name): (&Store, &str),
        number: usize,
        user: Option<u32>,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let variables = variables.into_iter();
        let mut environment = host.env();
        environment.extend(variables.map(|(name, value)| (name.into(), value.into())));
        let plan = agents::Plan {
            tags: vec![format!("host={name}")],
            before: user.map_or(host.before().to_vec(), |user| host.before_by(user)),
            environment,
            user,
        };
        self.agents.extend(vec![plan; number]);
        if user.is_some() {
            // The program may be where only root finds it.
            let agent = self.path().join("buildkite-agent");
            fs::copy(&self.agent, &agent).unwrap();
            self.agent = agent;
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(self.path(), mode).unwrap();
        }
        self
    }

    /// One more agent, with these tags (`name=value`), in the queue `default` unless they name another.
    pub(crate) fn agent_with_tags(mut self, tags: &[&str]) -> Self {
        self.agents.push(agents::Plan {
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            ..agents::Plan::default()
        });
        self
    }

    /// Whether jobs have a terminal, as the agent gives them one unless it is told otherwise; here they have none unless it
    /// is asked for.
    pub(crate) fn terminal(mut self, terminal: bool) -> Self {
        self.terminal = terminal;
        self
    }

    /// Uploads are answered as they were until 2023: with 200 once they are applied, with 422 where they are refused.
    pub(crate) fn answering_at_once(self) -> Self {
        self.progress().answers_at_once = true;
        self
    }

    /// Meta-data that the build has before any of its jobs runs.
    pub(crate) fn with_meta_data(self, values: impl IntoIterator<Item = (String, String)>) -> Self {
        self.progress().meta_data.extend(values);
        self
    }

    /// Values of the meta-data are given out when so many are asked for at once: a request for fewer gets none.
    pub(crate) fn answering_meta_data_at_once(self, awaited: usize) -> Self {
        self.server.answer_at_once(awaited);
        self
    }

    /// How many values of the meta-data were asked for at once, at most.
    pub(crate) fn most_asked_at_once(&self) -> usize {
        self.server.most_asking()
    }

    /// Makes our binary a hook of all the agents, by a link of that name.
    pub(crate) fn our_hook(self, name: &str) -> Self {
        symlink(EVAL_ONCE, self.folder.path().join("hooks").join(name)).unwrap();
        self
    }

    /// Writes a hook of all the agents, as a shell script.
    pub(crate) fn shell_hook(self, name: &str, text: &str) -> Self {
        let hook = self.folder.path().join("hooks").join(name);
        write_program(&hook, &format!("#!/bin/bash\n{text}"));
        self
    }

    /// What goes wrong with the `nth` call that wants to upload, from 1. A call that an agent repeats counts again.
    pub(crate) fn on_upload(&self, nth: usize, fault: Fault) {
        self.progress().faults.insert(nth, fault);
    }

    /// From now on nothing can be told.
    pub(crate) fn is_deaf(&self, how: Deaf) {
        self.progress().deaf = Some(how);
    }

    /// Sets a value of the build's meta-data.
    pub(crate) fn set_meta_data(&self, key: &str, value: &str) {
        self.progress()
            .meta_data
            .insert(key.to_owned(), value.to_owned());
    }

    /// Leaves an artifact at a job, as any other job of the build can, with the hash that is claimed for it.
    pub(crate) fn push_artifact(&self, job: &str, path: &str, content: &[u8], sha256: &str) {
        let mut progress = self.progress();
        let artifact = progress::Artifact {
            id: progress.identifier(),
            job: job.to_owned(),
            path: path.to_owned(),
            described: json!({ "path": path, "file_size": content.len(), "sha256sum": sha256 }),
            content: Some(content.to_vec()),
            is_finished: true,
        };
        let (id, name) = artifact.file();
        let folder = self.path().join("files").join(id);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(name), content).unwrap();
        progress.artifacts.push(artifact);
    }

    /// Runs the build until it is over, and gives its outcome.
    ///
    /// # Panics
    ///
    /// When an agent ends by itself, when one makes a call that is not played, or when nothing has moved for too long.
    pub(crate) fn run(&self) -> Outcome {
        let mut agents = agents::start(self);
        let mut progress = self.progress();
        progress.expected_agents = self.agents.len();
        progress.settle();
        let start = Instant::now();
        while !progress.is_over {
            progress = self.server.wait(progress, Duration::from_secs(1));
            // Not what is waited for, but what would be waited for in vain.
            let trouble = self
                .server
                .trouble()
                .or_else(|| agents::trouble(&mut agents));
            let stands = start.max(self.server.last_call()).elapsed() > self.patience;
            if trouble.is_some() || stands {
                let states: Vec<_> = progress.jobs.iter().map(|job| job.state).collect();
                drop(progress);
                let logs = agents::logs(&agents);
                panic!(
                    "{}: {states:?}\n{logs}",
                    trouble.unwrap_or_else(|| "nothing moves any more".to_owned())
                );
            }
        }
        drop(progress);
        drop(agents);
        // So that another run begins as this one did.
        self.progress().agents.clear();
        if let Some(trouble) = self.server.trouble() {
            panic!("{trouble}");
        }
        self.outcome()
    }

    fn outcome(&self) -> Outcome {
        let progress = self.progress();
        // For looking at them (script/picture).
        if let Some(folder) = std::env::var_os("KEEP_ANNOTATIONS") {
            for (context, annotation) in &progress.annotations {
                let file = Path::new(&folder).join(format!("{context}.md"));
                fs::write(file, &annotation.body).unwrap();
            }
        }
        if let Some(why) = &progress.failure {
            return Outcome::Stuck(why.clone());
        }
        let good = |job: &progress::Job| {
            matches!(
                job.state,
                JobState::Passed | JobState::SoftFailed | JobState::Skipped
            ) || progress.is_retried(job)
        };
        if progress.jobs.iter().all(good) {
            Outcome::Passed
        } else {
            Outcome::Failed
        }
    }

    /// Waits until a job of the step with this key is in this state, while somebody else [runs](Self::run) the build, and gives the
    /// job's id.
    pub(crate) fn until_job_is(&self, key: &str, state: JobState) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut progress = self.progress();
        loop {
            let is_it = |job: &&progress::Job| {
                job.state == state && progress.step_of(job).0.key.as_deref() == Some(key)
            };
            if let Some(job) = progress.jobs.iter().find(is_it) {
                return job.id.clone();
            }
            assert!(Instant::now() < deadline, "`{key}` was never {state:?}");
            progress = self.server.wait(progress, DEADLINE);
        }
    }

    /// Ends a job, as by a click.
    pub(crate) fn cancel(&self, job: &str) {
        self.progress().cancel(job);
        self.server.changed();
    }

    /// Ends a job, as its time having run out does.
    pub(crate) fn time_out(&self, job: &str) {
        self.progress().time_out(job);
        self.server.changed();
    }

    /// How often it was asked how a step stands, by the attribute that was asked for.
    pub(crate) fn exports(&self, attribute: &str) -> usize {
        let exports = &self.progress().exports;
        exports.iter().filter(|(_, it)| it == attribute).count()
    }

    /// Questions for how a step stands are not answered from now on.
    pub(crate) fn answers_no_exports(&self) {
        self.progress().is_silent_on_steps = true;
    }

    /// Another job for the step of a job that ran, as by a click; gives the new job's id. Run the build again afterwards.
    pub(crate) fn retry(&self, job: &str) -> String {
        let id = self.progress().retry(job);
        self.server.changed();
        id
    }

    /// All jobs, in the order in which they came to be.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let progress = self.progress();
        let job = |job: &progress::Job| {
            let (step, step_id, group) = progress.step_of(job);
            let log: Vec<u8> = job.log.values().flatten().copied().collect();
            Job {
                id: job.id.clone(),
                step_id: step_id.to_owned(),
                key: step.key.clone(),
                label: step.label.clone(),
                group: group.map(str::to_owned),
                state: job.state,
                exit_status: job.exit_status,
                signal: job.signal.clone(),
                signal_reason: job.signal_reason.clone(),
                retry_count: job.retry_count,
                is_retried: progress.is_retried(job),
                agent: job.agent.clone(),
                log: String::from_utf8_lossy(&log).into_owned(),
            }
        };
        progress.jobs.iter().map(job).collect()
    }

    /// The last job of the step with this key.
    #[track_caller]
    pub(crate) fn job(&self, key: &str) -> Job {
        let mut jobs = self.jobs().into_iter().rev();
        jobs.find(|job| job.key.as_deref() == Some(key))
            .unwrap_or_else(|| panic!("no step has the key `{key}`"))
    }

    /// The keys of the steps whose jobs ended, in the order in which they did.
    pub(crate) fn finished(&self) -> Vec<String> {
        self.progress().finished.clone()
    }

    /// The pipelines that were applied, in order.
    pub(crate) fn uploads(&self) -> Vec<Value> {
        self.progress().applied.clone()
    }

    /// What was said about the uploads that were refused, in order.
    pub(crate) fn rejections(&self) -> Vec<String> {
        self.progress().rejections.clone()
    }

    /// The annotations by their contexts.
    pub(crate) fn annotations(&self) -> BTreeMap<String, Annotation> {
        self.progress().annotations.clone()
    }

    /// The build's meta-data.
    pub(crate) fn meta_data(&self) -> BTreeMap<String, String> {
        self.progress().meta_data.clone()
    }

    /// The artifacts' contents by their paths; of each path the newest, those of retried jobs included.
    pub(crate) fn artifacts(&self) -> BTreeMap<String, Vec<u8>> {
        let progress = self.progress();
        let found = progress.find_artifacts("*", "", true).unwrap();
        let content = |it: &progress::Artifact| (it.path.clone(), it.content.clone().unwrap());
        found.into_iter().map(content).collect()
    }

    /// The server of the artifacts' files, where their downloads are counted and can go wrong. The address of each ends with the
    /// name of the artifact.
    pub(crate) fn files(&self) -> &Web {
        self.server.files()
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.server.progress()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}
