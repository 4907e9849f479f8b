//! A step while it runs: what is known, what has happened so far, and running Nix with its output in the job's log.
//!
//! It does not know the ways, nor what a failure means.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Instant;

use tempfile::TempDir;

use super::drv_outputs::{DrvOutputs, Outputs};
use super::job_log::{FinishedLog, Form, JobLog, ShownLines};
use super::links;
use super::report::{FailureReport, Reason, Report, Seconds, TriedShare, WayName};
use super::request::{OutLink, StepRequest};
use crate::buildkite::git::Repository;
use crate::command_line::CommandLine;
use crate::evaluation_keys::Checkout;
use crate::exit::{Class, Failure};
use crate::host::{self, Host};
use crate::log::Log;
use crate::nix::command::OwnedOptions;
use crate::nix::{DrvPath, Evaluation, Fault, NixOutput, StorePath, class, command};
use crate::state::StateFolder;
use crate::store::Store;
use crate::supervise::{Finished, OnStop, Supervisor};

/// From so many bytes at once on reading does not pause: a pipe would be full, and Nix would wait for us.
const FLOOD: usize = 32 << 10;

/// How a Nix program ended, the parsed output, and messages about missing paths that were not shown.
pub(super) struct NixRun {
    pub(super) finished: Finished,
    pub(super) output: NixOutput,
    pub(super) hidden: String,
}

/// A step while it runs.
#[expect(
    clippy::struct_excessive_bools,
    reason = "what has happened so far is yes or no"
)]
pub(super) struct StepRun<'a> {
    pub(super) request: &'a StepRequest,
    pub(super) checkout: &'a Checkout,
    /// What the agent would check out for the job; none by hand.
    pub(super) repository: Option<&'a Repository>,
    pub(super) host: &'a Host,
    pub(super) log: Log,
    pub(super) supervisor: &'a mut Supervisor,
    pub(super) store: Store,
    /// Whether this is a job, which can download artifacts of its build.
    pub(super) in_build: bool,
    /// Whether the file of the recorded `.drv` existed when the step began.
    pub(super) drv_file: bool,
    /// Where the outputs are linked: known from [`StepRun::prepare`] on, and none where nothing can be linked.
    pub(super) link: Option<PathBuf>,
    /// The state folder once it was opened; inside, none where it cannot be used.
    pub(super) state: OnceCell<Option<StateFolder>>,
    /// The folder that keeps the outputs of a step with `out-link: false`.
    outputs_folder: Option<TempDir>,

    // For the report.
    /// The way that is tried, or was taken.
    pub(super) way: Option<WayName>,
    /// Why that way, as soon as it is certain.
    pub(super) reason: Option<Reason>,
    /// The ways that were tried, in this order.
    tried: Vec<WayName>,
    /// Why ways led nowhere, where the log does not have it yet.
    dead_ends: Vec<String>,
    /// The share that was tried.
    pub(super) tried_share: Option<TriedShare>,
    /// What is wrong with the share, where the step can do nothing else: a clause that goes on after the `.drv`.
    pub(super) share_failure: Option<String>,
    /// An output that was missing right after Nix had realised it.
    pub(super) lost: Option<StorePath>,
    /// Something registered a `.drv` after Nix had reported it missing.
    pub(super) appeared: bool,
    pub(super) drv: Option<DrvPath>,
    pub(super) drift: bool,
    /// How many derivations were built.
    pub(super) built: usize,
    /// Derivations whose build began.
    pub(super) begun: BTreeSet<DrvPath>,
    /// What failed by itself.
    pub(super) faults: Vec<Fault>,
    substituted: BTreeSet<StorePath>,
    /// The last lines of the root cause's log, where Nix printed them.
    pub(super) last_lines: Option<Vec<String>>,
    /// The lines of a builder at the end of the job's log.
    last_shown: Option<ShownLines>,
    pub(super) seconds: Seconds,
    /// How many processes the kernel had killed for lack of memory when the step's first Nix program began.
    killed_before: OnceCell<u64>,
}

impl<'a> StepRun<'a> {
    pub(super) fn new(
        request: &'a StepRequest,
        checkout: &'a Checkout,
        host: &'a Host,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Self {
        supervisor.hide_secrets(&host.nix.text);
        Self {
            request,
            checkout,
            repository: None,
            host,
            log: log.clone(),
            supervisor,
            store: Store::new(&request.options, Some(&host.nix.state), log),
            in_build: false,
            drv_file: request
                .drv
                .as_ref()
                .is_some_and(|drv| drv.as_store_path().as_path().symlink_metadata().is_ok()),
            link: None,
            state: OnceCell::new(),
            outputs_folder: None,
            way: None,
            reason: None,
            tried: Vec::new(),
            dead_ends: Vec::new(),
            tried_share: None,
            share_failure: None,
            lost: None,
            appeared: false,
            drv: request.drv.clone(),
            drift: false,
            built: 0,
            begun: BTreeSet::new(),
            faults: Vec::new(),
            substituted: BTreeSet::new(),
            last_lines: None,
            last_shown: None,
            seconds: Seconds::default(),
            killed_before: OnceCell::new(),
        }
    }

    /// Begins a way. `reason`: why, where that is certain before the way has led anywhere.
    pub(super) fn begin_way(&mut self, way: WayName, reason: Option<Reason>) {
        self.way = Some(way);
        self.reason = reason;
        self.tried.push(way);
    }

    /// Ends a way that led nowhere: the step may fail before another one begins.
    pub(super) fn end_way(&mut self) {
        self.way = None;
        self.reason = None;
    }

    /// Notes why a way leads nowhere. It is printed only where the step evaluates or fails because of it.
    pub(super) fn note_dead_end(&mut self, why: impl Display) {
        self.dead_ends.push(why.to_string());
    }

    /// Notes why a way from the record leads nowhere.
    pub(super) fn note_dead_end_of_record(&mut self, why: impl Display) {
        if !self.note_other_store() {
            self.note_dead_end(why);
        }
    }

    /// Notes that the record is of a store in another folder than this host's, where it is: the whole reason why all ways from it
    /// lead nowhere.
    pub(super) fn note_other_store(&mut self) -> bool {
        let other_store = self.other_store();
        let is_of_other_store = other_store.is_some();
        if is_of_other_store {
            self.dead_ends.clear();
            self.dead_ends.extend(other_store);
        }
        is_of_other_store
    }

    /// That the record is of a store in another folder than this host's, in a clause; none where it is not, or where no question
    /// had to be asked for which that matters.
    pub(super) fn other_store(&self) -> Option<String> {
        let recorded = self.request.drv.as_ref().map(DrvPath::as_store_path);
        let recorded = recorded.or_else(|| self.request.outputs.values().next())?;
        let (recorded, own) = (recorded.store(), self.store.folder()?);
        (recorded != own).then(|| {
            format!(
                "the record is of a store at {}, and this host's store is at {}",
                recorded.display(),
                own.display()
            )
        })
    }

    /// Prints why the ways so far led nowhere, in one line: a step that fails because of it has no group for it.
    pub(super) fn report_dead_ends(&mut self) {
        if let Some(dead_ends) = self.take_dead_ends() {
            self.log.say(dead_ends);
        }
    }

    /// Why the ways so far led nowhere, where the log does not have it yet. The caller prints it.
    pub(super) fn take_dead_ends(&mut self) -> Option<String> {
        let dead_ends = std::mem::take(&mut self.dead_ends);
        (!dead_ends.is_empty()).then(|| dead_ends.join("; "))
    }

    /// Links the outputs in a new folder of the state folder, for a step with `out-link: false`.
    pub(super) fn link_in_state_folder(&mut self) {
        match self.state().map(StateFolder::outputs) {
            Some(Ok(folder)) => {
                self.link = Some(folder.path().join("result"));
                self.outputs_folder = Some(folder);
            }
            Some(Err(error)) => self
                .log
                .warn(format_args!("the outputs get no GC root: {error}")),
            None => {}
        }
    }

    /// Removes the folder of [`Self::link_in_state_folder`]: nothing was realised.
    pub(super) fn discard_outputs_folder(&mut self) {
        self.outputs_folder = None;
    }

    /// Leaves the folder of [`Self::link_in_state_folder`] in place: it roots the outputs.
    pub(super) fn keep_outputs_folder(&mut self) {
        if let Some(folder) = self.outputs_folder.take() {
            let _ = folder.keep();
        }
    }

    /// Checks before any way what `step` and `explain` need: something to build, and a place for the links.
    pub(super) fn prepare(&mut self) -> Result<(), Failure> {
        let default_is_missing = self.request.by_default
            && !self.host.recorded_only
            && self.skipped_checkout().is_none()
            && self
                .request
                .evaluation
                .as_ref()
                .and_then(Evaluation::needs_file)
                .is_some_and(|file| !file.exists());
        if default_is_missing {
            return Err(Failure::new(
                Class::Config,
                "nothing is recorded, and default.nix does not exist",
            )
            .hint("give the step a `drv`, or a `file`, `expr` or `flake` to evaluate"));
        }
        self.look_for_store_of_record()?;
        if let OutLink::At(link) = &self.request.out_link {
            self.link = Some(link.clone());
            self.check_links_of_record()?;
        }
        Ok(())
    }

    /// Asks for the folder of this host's store where the record's is not here: a store of another prefix is known then before Nix
    /// prints its own errors of it in a step that evaluates and is green. (One that has the record's prefix may have its files
    /// elsewhere: a chroot store.)
    fn look_for_store_of_record(&mut self) -> Result<(), Failure> {
        match self.store_folder() {
            Some(folder) if folder.symlink_metadata().is_err() => {
                self.store.ask_for_folder(self.supervisor)
            }
            _ => Ok(()),
        }
    }

    /// Checks whether the links of what is recorded can be made. One that does not lead into the record's store may lead into
    /// this host's: only then is this host's asked for its folder.
    fn check_links_of_record(&mut self) -> Result<(), Failure> {
        let recorded = self.request.drv.as_ref();
        let Err(failure) = self.check_links(recorded) else {
            return Ok(());
        };
        let (Some(link), Some(store)) = (&self.link, self.store_folder()) else {
            return Err(failure);
        };
        let names = self.link_names(recorded);
        if !links::lead_to_another_store(link, names.iter().map(String::as_str), &store) {
            return Err(failure);
        }
        self.store.ask_for_folder(self.supervisor)?;
        self.check_links(recorded)
    }

    /// Checks whether the links of the outputs can be made, as far as the outputs are known.
    pub(super) fn check_links(&self, drv: Option<&DrvPath>) -> Result<(), Failure> {
        let (OutLink::At(_), Some(link)) = (&self.request.out_link, &self.link) else {
            return Ok(());
        };
        let names = self.link_names(drv);
        let any = drv
            .map(DrvPath::as_store_path)
            .or_else(|| self.request.outputs.values().next());
        let store = self.store.folder().or_else(|| any.map(StorePath::store));
        links::check(link, names.iter().map(String::as_str), store)
    }

    /// The outputs that get links, as far as they are known.
    fn link_names(&self, drv: Option<&DrvPath>) -> BTreeSet<String> {
        let in_drv = drv.map(DrvOutputs::read).unwrap_or_default();
        let recorded = self.request.outputs.keys().cloned();
        in_drv.paths.into_keys().chain(recorded).collect()
    }

    /// Finds out why links were not made, where Nix was to make some; a reason ends the step.
    pub(super) fn probe_links(&self, drv: Option<&DrvPath>) -> Result<(), Failure> {
        self.check_links(drv)?;
        self.link.as_deref().map_or(Ok(()), links::probe)
    }

    // ---- running Nix

    /// Begins a part of the step that a reader of the log may want to fold.
    pub(super) fn begin_group(&self, heading: impl Display) {
        match self.request.form {
            Form::Pretty => self.log.group(heading),
            Form::Raw => self.log.say(heading),
        }
    }

    /// Runs a Nix program that evaluates; its output goes to the log.
    pub(super) fn run_evaluating(&mut self, line: &CommandLine) -> Result<NixRun, Failure> {
        let log = JobLog::new(&self.log, self.request.form, None, false);
        self.run(line, OnStop::TermThenKill, log)
    }

    /// Runs a Nix program that builds or substitutes; its output goes to the log under `heading`.
    pub(super) fn run_building(
        &mut self,
        line: &CommandLine,
        heading: impl Display,
    ) -> Result<NixRun, Failure> {
        let started = Instant::now();
        let heading = Some(heading.to_string());
        let log = JobLog::new(&self.log, self.request.form, heading.clone(), true);
        let mut run = self.run(line, OnStop::Term, log)?;
        // In this order: the settings are files.
        if class::may_have_died_of_its_collection(run.finished.ending, &run.output)
            && self.host.nix.collects_when_full()
        {
            self.log.say("Nix was killed by SIGSEGV with no build under way, and `min-free` makes it collect: repeated without a collection");
            let log = JobLog::new(&self.log, self.request.form, heading, true);
            run = self.run(
                &command::collecting_nothing(line.clone()),
                OnStop::Term,
                log,
            )?;
        }
        self.seconds.realise += started.elapsed();
        Ok(run)
    }

    fn run(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
        mut log: JobLog,
    ) -> Result<NixRun, Failure> {
        let line = as_run(line);
        let started = self.supervisor.start(&line, on_stop);
        let mut running = [started.map_err(class::not_started)?];
        // Asked while Nix starts, which takes longer. It does not need much memory so soon.
        self.killed_before
            .get_or_init(|| host::killed_for_memory().unwrap_or_default());
        while running[0].ended.is_none() {
            let due = log.due();
            let mut bytes_read = 0;
            self.supervisor.watch(&mut running, due, |_, bytes| {
                bytes_read += bytes.len();
                log.read(bytes);
            })?;
            log.progress();
            // A Nix with nothing to do prints a dozen messages within two milliseconds. Waking up for each of them delayed it on
            // a machine with less than two free cores, and its end is noticed in a pause as well.
            if (1..FLOOD).contains(&bytes_read) {
                self.supervisor.breathe(&running);
            }
        }
        let FinishedLog {
            nix_output: output,
            held_back: hidden,
            last_shown,
        } = log.finish();
        self.last_shown = last_shown;
        self.supervisor.check()?;
        let [running] = running;
        let finished = running.finished()?;
        self.count(&output);
        Ok(NixRun {
            finished,
            output,
            hidden,
        })
    }

    /// Counts what was done.
    fn count(&mut self, output: &NixOutput) {
        self.built += output.built();
        self.begun.extend(output.begun.iter().cloned());
        self.substituted.extend(output.substituted.iter().cloned());
        self.store.note_unreachable(output);
    }

    // ---- questions with this step's supervisor

    /// The settings for the next command.
    pub(super) fn options(&mut self) -> Result<OwnedOptions, Failure> {
        self.store.options(self.supervisor)
    }

    /// Whether a store path is valid.
    pub(super) fn is_valid(&mut self, path: &StorePath) -> Result<bool, Failure> {
        self.store.is_valid(self.supervisor, path)
    }

    /// The version of the program `nix`, where a command to paste depends on it: asking costs a process.
    pub(super) fn nix_version(&mut self) -> Result<Option<(u32, u32)>, Failure> {
        match &self.request.evaluation {
            Some(evaluation) if evaluation.is_flake() => self.store.version_of_nix(self.supervisor),
            _ => Ok(None),
        }
    }

    /// How many processes the kernel has killed on this host for lack of memory since the step's first Nix program began.
    pub(super) fn killed_for_memory(&self) -> u64 {
        let killed = host::killed_for_memory().unwrap_or_default();
        let before = self.killed_before.get();
        before.map_or(0, |before| killed.saturating_sub(*before))
    }

    /// The folder of store paths, as far as a path is known.
    pub(super) fn store_folder(&self) -> Option<PathBuf> {
        let drv = self.drv.as_ref().map(DrvPath::as_store_path);
        let path = drv.or_else(|| self.request.outputs.values().next())?;
        Some(path.store().to_owned())
    }

    /// Whether the job's log ends with the end of the root cause's log, as the report has it.
    pub(super) fn shows_end_of_log(&self, report: &Report) -> bool {
        let Some(FailureReport {
            drv: Some(drv),
            log: Some(log),
            ..
        }) = &report.failure
        else {
            return false;
        };
        let shown = self.last_shown.as_ref();
        shown.is_some_and(|shown| shown.are(drv, log))
    }

    /// What has happened, for the report.
    pub(super) fn report(
        &self,
        started: Instant,
        result: &Result<Outputs, Failure>,
        hints: Vec<String>,
    ) -> Report {
        let failure = result.as_ref().err();
        Report {
            way: self.way,
            reason: self.reason,
            tried: self.tried.clone(),
            drv: self.drv.clone(),
            outputs: result
                .as_ref()
                .map_or_else(|_| Outputs::new(), Clone::clone),
            drift: self.drift,
            built: self.built,
            substituted: self.substituted.len(),
            share: self.tried_share.clone(),
            seconds: Seconds {
                total: started.elapsed(),
                ..self.seconds
            },
            exit: failure.map_or(0, |failure| failure.class.status()),
            failure: failure.map(|failure| {
                FailureReport::new(failure, &self.faults, self.last_lines.as_deref())
            }),
            hints,
            ..Report::default()
        }
    }
}

/// A command as it is run: with structured output.
pub(super) fn as_run(line: &CommandLine) -> CommandLine {
    command::structured(line)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixtures::{DRV, with_step};
    use super::*;

    #[test]
    fn dead_ends_are_one_line_and_printed_once() {
        let ((), printed) = with_step(&json!({ "drv": DRV }), |step| {
            step.report_dead_ends();
            step.note_dead_end("the outputs are gone");
            step.note_dead_end("the .drv is gone");
            step.report_dead_ends();
            step.report_dead_ends();
        });
        assert_eq!(
            printed,
            "eval-once: the outputs are gone; the .drv is gone\n"
        );
    }

    #[test]
    fn a_step_without_a_record_and_without_a_default_nix_is_refused() {
        let prepare = |keys: &Value| {
            with_step(keys, |step| step.prepare().map_err(|failure| failure.class)).0
        };
        assert_eq!(prepare(&json!({})), Err(Class::Config));
        assert_eq!(prepare(&json!({ "drv": DRV })), Ok(()));
        assert_eq!(prepare(&json!({ "expr": "1" })), Ok(()));
    }

    #[test]
    fn an_out_link_where_something_else_is_ends_the_step_before_any_way() {
        let (class, _) = with_step(&json!({ "drv": DRV, "out-link": "taken" }), |step| {
            std::fs::write(step.checkout.folder.join("taken"), "mine").unwrap();
            step.prepare().unwrap_err().class
        });
        assert_eq!(class, Class::Config);
    }

    #[test]
    fn the_report_has_the_ways_tried_and_the_one_that_led_to_the_outputs() {
        let (report, _) = with_step(&json!({ "drv": DRV }), |step| {
            step.begin_way(WayName::Realised, None);
            step.end_way();
            step.begin_way(WayName::Evaluated, Some(Reason::DrvCollected));
            step.report(Instant::now(), &Ok(Outputs::new()), Vec::new())
        });
        assert_eq!(report.tried, [WayName::Realised, WayName::Evaluated]);
        assert_eq!(report.way, Some(WayName::Evaluated));
        assert_eq!(report.reason, Some(Reason::DrvCollected));
        assert_eq!(report.exit, 0);
    }
}
