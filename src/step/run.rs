//! A step on its way: what is known, what has happened, and the questions and commands that the ways share.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::diagnosis;
use super::job_log::{FinishedLog, Form, JobLog, ShownLines};
use super::links;
use super::report::{FailureReport, Reason, Report, Seconds, WayName};
use super::request::{OutLink, StepRequest};
use crate::command_line::{CommandLine, Ending};
use crate::evaluation_keys::Checkout;
use crate::exit::{Class, Failure};
use crate::flake_settings;
use crate::host::{self, Host};
use crate::log::Log;
use crate::nix::{
    Cause, Disturbance, DrvPath, Fault, FlakeMetadata, NixOutput, Phase, Source, StorePath,
    Trouble, caches, class, command, derivation_text, is_fixed_output, outputs_of_derivation,
    version,
};
use crate::state::{EvaluationSlot, StateFolder};
use crate::supervise::{Finished, OnStop, Supervisor};

/// What is said so soon after something else is said in a row; and after how much of that reading waits for more.
const QUICK: Duration = Duration::from_millis(3);
const IN_A_ROW: u32 = 8;

/// How much is read at once where more is said than a pipe holds for long, in bytes.
const MUCH: usize = 32 << 10;

/// The outputs of a derivation, by name.
pub(super) type Outputs = BTreeMap<String, StorePath>;

/// Outputs that were looked at once more after their root stood, and are there: only [`StepRun::standing`] makes one, and no way
/// ends well without.
pub(super) struct VerifiedOutputs(Outputs);

impl VerifiedOutputs {
    /// The outputs of a skipped step, which roots and realises nothing: a cache may have them, and this host not.
    pub(super) fn skipped(outputs: Outputs) -> Self {
        Self(outputs)
    }

    pub(super) fn outputs(self) -> Outputs {
        self.0
    }
}

/// What came of realising a `.drv`.
pub(super) enum Realised {
    /// Its outputs are there, and linked.
    Done(VerifiedOutputs),
    /// It is not valid (any more): it was never here, or the collector took it.
    Gone,
    /// Nix has realised it, and an output is not there all the same: the collector was at work already when it was rooted.
    Lost,
}

/// What the file of a `.drv` says of its outputs.
#[derive(Default)]
struct Known {
    outputs: BTreeMap<String, Option<StorePath>>,
    /// Its output is fixed.
    fixed: bool,
}

/// A step on its way.
pub(super) struct StepRun<'a> {
    pub(super) request: &'a StepRequest,
    pub(super) place: &'a Checkout,
    pub(super) host: &'a Host,
    pub(super) log: Log,
    pub(super) supervisor: &'a mut Supervisor,
    /// Whether the file of the recorded `.drv` was there when the step began.
    pub(super) drv_file: bool,
    /// Where the outputs are linked; known from [`StepRun::prepare`] on, and none where nothing can be linked.
    pub(super) link: Option<PathBuf>,
    /// The state folder once it was asked for; inside, none where it cannot be used.
    state: OnceCell<Option<StateFolder>>,
    /// The caches that are left, once one was seen to be unreachable.
    caches: Option<Vec<String>>,
    /// The settings of the flake that is evaluated, once it was asked for them.
    flake_settings: Option<Vec<(String, String)>>,
    /// What was seen to be unreachable, and has not been left out yet.
    unreachable: BTreeSet<String>,
    /// What keeps the outputs of a step that asked for no link.
    kept: Option<TempDir>,

    // What the report tells.
    /// The way that was taken, or is being taken.
    pub(super) taken: Option<WayName>,
    /// Why that way, as soon as it is certain.
    pub(super) reason: Option<Reason>,
    /// The ways that were begun, in this order.
    tried: Vec<WayName>,
    /// An output that was gone right after Nix had realised it.
    pub(super) lost: Option<StorePath>,
    /// What an evaluation was done again for, because it was valid by the time we looked.
    doubted: BTreeSet<StorePath>,
    /// Something has registered a `.drv` that Nix had named as missing.
    appeared: bool,
    pub(super) drv: Option<DrvPath>,
    pub(super) drift: bool,
    /// How many derivations were built.
    pub(super) built: usize,
    /// Derivations whose build was begun; and what failed by itself.
    pub(super) begun: BTreeSet<DrvPath>,
    pub(super) faults: Vec<Fault>,
    substituted: BTreeSet<StorePath>,
    /// The last lines of the log of what failed first, where they were heard.
    pub(super) last_lines: Option<Vec<String>>,
    /// The lines of a builder at the end of the job's log.
    last_shown: Option<ShownLines>,
    pub(super) seconds: Seconds,
    /// How many processes the kernel had killed for want of memory when the step began.
    killed_before: u64,
}

impl<'a> StepRun<'a> {
    pub(super) fn new(
        request: &'a StepRequest,
        place: &'a Checkout,
        host: &'a Host,
        supervisor: &'a mut Supervisor,
        log: &Log,
    ) -> Self {
        Self {
            request,
            place,
            host,
            log: log.clone(),
            supervisor,
            drv_file: request
                .drv
                .as_ref()
                .is_some_and(|drv| drv.as_store_path().as_path().symlink_metadata().is_ok()),
            link: None,
            state: OnceCell::new(),
            caches: None,
            flake_settings: None,
            unreachable: BTreeSet::new(),
            kept: None,
            taken: None,
            reason: None,
            tried: Vec::new(),
            lost: None,
            doubted: BTreeSet::new(),
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
            killed_before: host::killed_for_memory().unwrap_or_default(),
        }
    }

    /// Begins a way. `reason`: why, where that is certain before it has led anywhere.
    pub(super) fn take(&mut self, way: WayName, reason: Option<Reason>) {
        self.taken = Some(way);
        self.reason = reason;
        self.tried.push(way);
    }

    /// Makes a place in the state folder that keeps the outputs of a step that asked for no link.
    pub(super) fn keep_in_state(&mut self) {
        match self.state().map(StateFolder::outputs) {
            Some(Ok(folder)) => {
                self.link = Some(folder.path().join("result"));
                self.kept = Some(folder);
            }
            Some(Err(error)) => self
                .log
                .warn(format_args!("the outputs will not be kept: {error}")),
            None => {}
        }
    }

    /// Nothing was realised, so there is nothing to keep.
    pub(super) fn keep_nothing(&mut self) {
        self.kept = None;
    }

    /// The outputs are there: what keeps them stays.
    pub(super) fn keep(&mut self) {
        if let Some(folder) = self.kept.take() {
            let _ = folder.keep();
        }
    }

    /// What `step` and `explain` look at before any way: that there is something to go by, and that the links can be made.
    pub(super) fn prepare(&mut self) -> Result<(), Failure> {
        let default_is_missing = self.request.by_default
            && !self.host.recorded_only
            && self
                .request
                .evaluation
                .as_ref()
                .and_then(crate::nix::Evaluation::needs_file)
                .is_some_and(|file| !file.exists());
        if default_is_missing {
            return Err(Failure::new(
                Class::Config,
                "nothing is recorded, and there is no default.nix to evaluate",
            )
            .hint("give the step a `drv`, or a `file`, `expr` or `flake` to evaluate"));
        }
        if let OutLink::At(link) = &self.request.out_link {
            self.link = Some(link.clone());
            self.check_links(self.request.drv.as_ref())?;
        }
        Ok(())
    }

    /// Looks whether the links of the outputs can be made, as far as the outputs are known.
    pub(super) fn check_links(&self, drv: Option<&DrvPath>) -> Result<(), Failure> {
        let (OutLink::At(_), Some(link)) = (&self.request.out_link, &self.link) else {
            return Ok(());
        };
        let known = drv.map(outputs_on_disk).unwrap_or_default();
        let names: BTreeSet<&str> = known
            .keys()
            .chain(self.request.outputs.keys())
            .map(String::as_str)
            .collect();
        let any = drv
            .map(DrvPath::as_store_path)
            .or_else(|| self.request.outputs.values().next());
        links::check(link, names.into_iter(), any.map(StorePath::store))
    }

    /// Looks why the links were not made, where Nix was to make some: after the fact, this ends the step.
    pub(super) fn probe_links(&self, drv: Option<&DrvPath>) -> Result<(), Failure> {
        self.check_links(drv)?;
        self.link.as_deref().map_or(Ok(()), links::probe)
    }

    /// Begins a part of the step that a log's reader may want to fold up.
    pub(super) fn begin(&self, doing: impl Display) {
        match self.request.form {
            Form::Pretty => self.log.group(doing),
            Form::Raw => self.log.say(doing),
        }
    }

    /// A command as it is run: so that Nix says what it does in a form that can be read, unless its own text is wanted.
    pub(super) fn as_run(&self, line: &CommandLine) -> CommandLine {
        match self.request.form {
            Form::Pretty => command::structured(line),
            Form::Raw => line.clone(),
        }
    }

    /// Runs a Nix program of an evaluation. Its messages go to the log.
    pub(super) fn evaluate(
        &mut self,
        line: &CommandLine,
    ) -> Result<(Finished, NixOutput), Failure> {
        let log = JobLog::new(&self.log, self.request.form, None, false);
        let (finished, nix_output, _) = self.listen(line, OnStop::TermThenKill, log)?;
        Ok((finished, nix_output))
    }

    /// Runs a Nix program that builds or substitutes; `doing` heads what it says. Its messages go to the log; those that only
    /// say what is missing are returned, for where that is the end.
    pub(super) fn build(
        &mut self,
        line: &CommandLine,
        doing: impl Display,
    ) -> Result<(Finished, NixOutput, String), Failure> {
        let started = Instant::now();
        let log = JobLog::new(&self.log, self.request.form, Some(doing.to_string()), true);
        let listened = self.listen(line, OnStop::Term, log);
        self.seconds.realise += started.elapsed();
        listened
    }

    /// Runs a Nix program that is only asked something; its messages are returned.
    pub(super) fn ask(&mut self, line: &CommandLine) -> Result<(Finished, String), Failure> {
        let mut said = Vec::new();
        let finished = self
            .supervisor
            .run(line, OnStop::TermThenKill, &mut said)
            .map_err(class::not_started)?;
        self.unreachable.extend(NixOutput::of(&said).unreachable);
        Ok((
            finished,
            String::from_utf8_lossy(&said).trim_end().to_owned(),
        ))
    }

    fn listen(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
        mut log: JobLog,
    ) -> Result<(Finished, NixOutput, String), Failure> {
        let line = self.as_run(line);
        let started_at = Instant::now();
        let started = self.supervisor.start(&line, on_stop);
        let mut running = [started.map_err(class::not_started)?];
        let (mut nix_output, mut in_a_row) = (started_at, 0_u32);
        while running[0].ended.is_none() {
            let due = log.due();
            let mut said = 0;
            self.supervisor.watch(&mut running, due, |_, bytes| {
                said += bytes.len();
                log.read(bytes);
            })?;
            log.progress();
            if said > 0 {
                in_a_row = if nix_output.elapsed() < QUICK {
                    in_a_row + 1
                } else {
                    0
                };
                // Who says little is not waited for, and who says more than a pipe holds meanwhile does not wait for us.
                if in_a_row > IN_A_ROW && said < MUCH {
                    self.supervisor.breathe();
                }
                nix_output = Instant::now();
            }
        }
        let FinishedLog {
            nix_output,
            held_back,
            last_shown,
        } = log.finish();
        self.last_shown = last_shown;
        self.supervisor.check()?;
        let [running] = running;
        let finished = running.finished();
        self.count(&nix_output, finished.ending.success());
        Ok((finished, nix_output, held_back))
    }

    /// Counts what was done. In Nix's own text nothing says which builds ended well: all that were begun, where Nix did.
    fn count(&mut self, nix_output: &NixOutput, success: bool) {
        self.built += match self.request.form {
            Form::Pretty => nix_output.built(),
            Form::Raw if success => nix_output.begun.len(),
            Form::Raw => 0,
        };
        self.begun.extend(nix_output.begun.iter().cloned());
        self.substituted
            .extend(nix_output.substituted.iter().cloned());
        self.unreachable
            .extend(nix_output.unreachable.iter().cloned());
    }

    /// Whether a cache was seen to be unreachable.
    pub(super) fn misses_a_cache(&self) -> bool {
        self.caches.is_some() || !self.unreachable.is_empty()
    }

    /// The options for the next command. A cache that was seen unreachable is left out from then on: it would cost
    /// seconds again each time.
    pub(super) fn options(&mut self) -> Result<Vec<(String, String)>, Failure> {
        let unreachable = std::mem::take(&mut self.unreachable);
        if !unreachable.is_empty() {
            let left_out_before = self.caches.is_some();
            let known = match self.caches.take() {
                Some(caches) => caches,
                None => self.substituters()?,
            };
            let (left, out) = caches::part(known, &unreachable);
            for cache in &out {
                self.log.say(format_args!(
                    "{cache} cannot be reached: this step asks it no more"
                ));
            }
            self.caches = Some(left).filter(|_| left_out_before || !out.is_empty());
        }
        let mut options = self.request.options.clone();
        options.extend(self.flake_settings.iter().flatten().cloned());
        if let Some(caches) = &self.caches {
            options.push(("substituters".into(), caches.join(" ")));
        }
        Ok(options)
    }

    /// Asks a flake for settings, which count from then on.
    pub(super) fn take_settings(&mut self, metadata: &FlakeMetadata) -> Result<(), Failure> {
        if self.flake_settings.is_none() {
            let options = &self.request.options;
            let settings = flake_settings::accepted(metadata, options, self.supervisor, &self.log)?;
            self.flake_settings = Some(settings);
        }
        Ok(())
    }

    /// The caches that Nix would ask. Where it does not say (it has no `nix` program, or an odd one), none are known.
    pub(super) fn substituters(&mut self) -> Result<Vec<String>, Failure> {
        let mut options = self.request.options.clone();
        options.extend(self.flake_settings.iter().flatten().cloned());
        let line = command::show_config(&options);
        match self.ask(&line) {
            Ok((config, _)) => Ok(caches::substituters(&config.text()).unwrap_or_default()),
            Err(failure) if matches!(failure.class, Class::Signal(_)) => Err(failure),
            Err(_) => Ok(Vec::new()),
        }
    }

    /// Whether a store path is valid, in the store that Nix uses here.
    pub(super) fn is_valid(&mut self, path: &StorePath) -> Result<bool, Failure> {
        let options = self.options()?;
        let asked = self.ask_store(&command::check_validity(path, &options))?;
        Ok(asked.paths().next().is_none())
    }

    /// Whether all of these are valid.
    pub(super) fn are_valid(&mut self, paths: &[(&str, &StorePath)]) -> Result<bool, Failure> {
        let options = self.options()?;
        let paths: Vec<&StorePath> = paths.iter().map(|(_, path)| *path).collect();
        let asked = self.ask_store(&command::invalid_of(&paths, &options))?;
        Ok(asked.paths().next().is_none())
    }

    /// Whether the store can be asked anything at all.
    pub(super) fn store_answers(&mut self) -> Result<(), Failure> {
        let options = self.options()?;
        self.ask_store(&command::ask_store(&options)).map(drop)
    }

    fn ask_store(&mut self, line: &CommandLine) -> Result<Finished, Failure> {
        let (finished, said) = self.ask(line)?;
        if finished.ending.success() {
            return Ok(finished);
        }
        Err(class::store_cannot_be_asked(line, finished.ending, &said))
    }

    /// Realises a `.drv` and links its outputs; where that fails, asks whether the `.drv` is still there. No check before
    /// it: that would cost as much, and say nothing about a moment later. The check *after* it tells a `.drv` that is gone
    /// from a build that failed, which no message of Nix does (519 of 519 measured failures were told apart).
    ///
    /// But the check sees a later world. Where Nix has named a path as missing that is valid now, something has registered it
    /// in between (two or three steps of one missing `.drv` that started within 120 ms: 55 of 294), and the `.drv` is realised
    /// once more before the failure is believed.
    pub(super) fn realise(&mut self, drv: &DrvPath) -> Result<Realised, Failure> {
        let mut believed = false;
        // The fixed output at which the daemon has gone away once.
        let mut died_before: Option<DrvPath> = None;
        loop {
            let options = self.options()?;
            // Read before the collector can take it.
            let known = Known::of(drv);
            let line = command::realise(drv, self.link.as_deref(), &options);
            let doing = format_args!("building {}", drv.name());
            let (finished, mut nix_output, held) = self.build(&line, doing)?;
            if finished.ending.success() {
                return self.realised(drv, known, &finished, &nix_output);
            }
            match self.is_valid(drv.as_store_path()) {
                Ok(false) => return Ok(Realised::Gone),
                Ok(true) => {
                    let ended = matches!(finished.ending, Ending::Exited(_));
                    if !believed && ended && self.has_appeared(&nix_output, drv)? {
                        believed = true;
                        self.appeared = true;
                        continue;
                    }
                    if self.taken == Some(WayName::Realised) {
                        self.reason = Some(self.realised_reason());
                    }
                }
                // Whatever kills Nix may kill the question too; the first death is the news.
                Err(failure)
                    if failure.class == Class::Infrastructure
                        && matches!(finished.ending, Ending::Killed(_)) => {}
                Err(failure) => return Err(failure),
            }
            self.log.pass_on(held.as_bytes());
            if let Ending::Exited(_) = finished.ending {
                self.look_into(&mut nix_output, Some(drv))?;
            }
            let died_at = fixed_output_at_death(&nix_output);
            let dies_again = died_at.is_some() && died_at == died_before;
            if dies_again {
                let cause = Cause::Output(DIES_OF_IT.into());
                let drv = died_at.clone();
                nix_output.faults.push(Fault { drv, cause });
                self.faults.clone_from(&nix_output.faults);
            }
            // Nix ends with 1 for a link that it cannot make, and says nothing of a builder.
            if finished.ending == Ending::Exited(1) && nix_output.faults.is_empty() {
                self.probe_links(Some(drv))?;
            }
            let class = class::of(Phase::Building, finished.ending, &nix_output);
            if class == Class::Infrastructure
                && !dies_again
                && let Some(fixed) = died_at
            {
                self.log.say(format_args!(
                    "the daemon went away while it built {fixed}: building it once more"
                ));
                died_before = Some(fixed);
                continue;
            }
            if class == Class::Infrastructure
                && let Some(error) = &nix_output.error
                && let Some(failure) = host::no_temporary_folder(&self.host.temporary, error)
            {
                return Err(failure);
            }
            let how = format!("`{line}` {}", finished.ending);
            return Err(diagnosis::of_realise(
                class,
                drv,
                &nix_output,
                self.killed_for_memory(),
                &how,
            ));
        }
    }

    /// Why the recorded `.drv` is realised: only to be asked once that is known.
    pub(super) fn realised_reason(&self) -> Reason {
        if self.drv_file || self.appeared {
            Reason::DrvValid
        } else {
            Reason::DrvSubstituted
        }
    }

    /// Whether realising `drv`, which is valid, has failed because a store path was missing that is valid now.
    fn has_appeared(&mut self, nix_output: &NixOutput, drv: &DrvPath) -> Result<bool, Failure> {
        let Some(Disturbance::Gone(path)) = nix_output.disturbance() else {
            return Ok(false);
        };
        // A builder may print the same words, and then fails in its own way.
        if nix_output.root_cause().is_some() || nix_output.dependency_failed {
            return Ok(false);
        }
        // A file that cannot be opened, and still is not there, is not in this place, or lost: that is no matter of a moment.
        let error = nix_output.error.as_deref().unwrap_or_default();
        if error.starts_with("opening file ") && path.as_path().symlink_metadata().is_err() {
            return Ok(false);
        }
        let appeared = *drv.as_store_path() == path || self.is_valid(&path)?;
        if appeared {
            self.log.say(format_args!(
                "{path} was missing, and is valid now: realising {} again",
                drv.name()
            ));
        }
        Ok(appeared)
    }

    /// Whether an evaluation that failed because `path` was missing is to be done again: the collector has taken it, or it was
    /// registered before we looked. For the latter once: an expression may say the same of a path that was there all the time.
    /// One that is not there and that the expression `names` (`storePath`) is made by no evaluation.
    pub(super) fn is_disturbed(&mut self, path: &StorePath, names: bool) -> Result<bool, Failure> {
        if !self.is_valid(path)? {
            if names {
                return Ok(false);
            }
            self.log.say(format_args!(
                "{path} is not valid: the evaluation was disturbed by the garbage collector"
            ));
            return Ok(true);
        }
        let first = self.doubted.insert(path.clone());
        if first {
            self.log.say(format_args!(
                "{path} was missing during the evaluation, and is valid now"
            ));
        }
        Ok(first)
    }

    /// What came of a `.drv` that Nix says it has realised.
    fn realised(
        &mut self,
        drv: &DrvPath,
        known: Known,
        finished: &Finished,
        nix_output: &NixOutput,
    ) -> Result<Realised, Failure> {
        // One that came from a cache was not there before.
        let known = if known.outputs.is_empty() {
            Known::of(drv)
        } else {
            known
        };
        if known.outputs.is_empty() && finished.stdout.is_empty() {
            self.log.say(format_args!(
                "{drv}: nix-store ended with success, and names no output"
            ));
            return Ok(Realised::Lost);
        }
        let fixed = known.fixed;
        let outputs = self.realised_outputs(drv, known.outputs, finished)?;
        let outputs = if fixed {
            self.fixed_output(drv, outputs, finished, nix_output)?
        } else {
            outputs
        };
        Ok(match self.standing(outputs)? {
            Some(standing) => Realised::Done(standing),
            None => Realised::Lost,
        })
    }

    /// Where a fixed output really is. Nix 2.8 takes one that refers to other store paths, and registers it under another path
    /// than its `.drv` says: with `ca-derivations` it links that one; without, the path of the `.drv`, which is not valid,
    /// though a file may be left there. (From 2.26 on Nix refuses it.) So a fixed output is asked for where it was built just now,
    /// or the link leads elsewhere; no other step has this question.
    fn fixed_output(
        &mut self,
        drv: &DrvPath,
        told: Outputs,
        finished: &Finished,
        nix_output: &NixOutput,
    ) -> Result<Outputs, Failure> {
        let linked = match self.link {
            Some(_) => self.linked_outputs(&["out".to_owned()], finished),
            None => printed_output(finished),
        };
        let linked = linked.filter(|linked| *linked != told);
        if linked.is_none() && nix_output.begun.is_empty() {
            return Ok(told);
        }
        let Some(path) = told.get("out").cloned() else {
            return Ok(told);
        };
        let is_there = path.as_path().symlink_metadata().is_ok();
        // Another step that has made the link its own would name something of another name, as a rule.
        let linked = linked.filter(|linked| {
            linked
                .get("out")
                .is_some_and(|other| other.name() == path.name())
        });
        if linked.is_some() && !is_there && self.store_is_here(false) {
            return linked.map_or(Ok(told), Ok);
        }
        if self.is_valid(&path)? {
            return Ok(told);
        }
        if let Some(linked) = linked {
            return Ok(linked);
        }
        self.unlink(&path);
        let how = format!("its output keeps references to other store paths: {path} is not valid");
        let fault = Fault {
            drv: Some(drv.clone()),
            cause: Cause::Output(how),
        };
        let failure = Failure::new(Class::Build, format_args!("{drv} failed: {}", fault.cause));
        self.faults.push(fault);
        Err(failure
            .meaning("A fixed output that refers to other store paths cannot be used; trying again cannot help.")
            .hint("keep references out of what is fetched (leave out `patchShebangs`, wrappers and store paths in it): this Nix registers such an output under another path than its .drv says, later versions refuse it"))
    }

    /// The outputs, if each of them is there now that its root stands. No process: a file that is missing in a store whose folder
    /// is here is missing. Only where that store may lie elsewhere Nix is asked, for what a program that does nothing cannot
    /// answer.
    pub(super) fn standing(
        &mut self,
        outputs: Outputs,
    ) -> Result<Option<VerifiedOutputs>, Failure> {
        let is_missing = |path: &&StorePath| path.as_path().symlink_metadata().is_err();
        let Some(missing) = outputs.values().find(is_missing).cloned() else {
            return Ok(Some(VerifiedOutputs(outputs)));
        };
        // One that is there says that the folder is the store's, as the `.drv` does where it was used.
        let any_is_here = outputs.values().any(|path| !is_missing(&path));
        if !self.store_is_here(any_is_here) {
            let options = self.options()?;
            let paths: Vec<&StorePath> = outputs.values().collect();
            let (finished, _) = self.ask(&command::hashes_of(&paths, &options))?;
            if finished.ending.success() && finished.text().lines().count() >= paths.len() {
                return Ok(Some(VerifiedOutputs(outputs)));
            }
        }
        self.unlink(&missing);
        self.log.say(format_args!(
            "{missing} is not there, although Nix has just realised it"
        ));
        self.lost = Some(missing);
        Ok(None)
    }

    /// Whether the store that Nix uses is the folder that its paths name: an output, or the `.drv` that Nix has just used, is
    /// there, and no setting names a store elsewhere.
    fn store_is_here(&self, output: bool) -> bool {
        let drv = self.drv.as_ref().map(DrvPath::as_store_path);
        (output || drv.is_some_and(|drv| drv.as_path().symlink_metadata().is_ok()))
            && self.host.nix.store_is_local(&self.request.options)
    }

    /// Takes the links to `path` away that were made for it: a link that leads nowhere is worse than none.
    fn unlink(&self, path: &StorePath) {
        let Some(base) = &self.link else { return };
        let names = self.request.outputs.keys().map(String::as_str);
        let drv = self.drv.as_ref().map(outputs_on_disk).unwrap_or_default();
        for name in names.chain(drv.keys().map(String::as_str)).chain(["out"]) {
            let link = links::link_of(base, name);
            if link
                .read_link()
                .is_ok_and(|target| target == path.as_path())
            {
                let _ = std::fs::remove_file(link);
            }
        }
    }

    /// How many processes the kernel has killed on this host for want of memory since the step began.
    pub(super) fn killed_for_memory(&self) -> u64 {
        let killed = host::killed_for_memory().unwrap_or_default();
        killed.saturating_sub(self.killed_before)
    }

    /// The outputs of a `.drv` that was realised: as the `.drv` says; or else where the links lead that Nix has made; or else
    /// what it has printed, by the names of the record. (Not the links first: another step may have made them its own by now.)
    fn realised_outputs(
        &self,
        drv: &DrvPath,
        known: BTreeMap<String, Option<StorePath>>,
        finished: &Finished,
    ) -> Result<Outputs, Failure> {
        let names: Vec<String> = known.keys().cloned().collect();
        let told: Option<Outputs> = known
            .into_iter()
            .map(|(name, path)| Some((name, path?)))
            .collect();
        if let Some(told) = told.filter(|told| !told.is_empty()) {
            return Ok(told);
        }
        let recorded = || -> Outputs {
            let printed: Vec<&Path> = finished.paths().collect();
            let outputs = self
                .request
                .outputs
                .iter()
                .filter(|(_, path)| printed.contains(&path.as_path()));
            outputs
                .map(|(name, path)| (name.clone(), path.clone()))
                .collect()
        };
        let linked = self.linked_outputs(&names, finished);
        let outputs = linked
            .filter(|linked| !linked.is_empty())
            .unwrap_or_else(recorded);
        if outputs.is_empty() {
            return Err(Failure::new(
                Class::Infrastructure,
                format_args!(
                    "{drv} was realised, but what its outputs are cannot be told: this store makes no links here"
                ),
            ));
        }
        Ok(outputs)
    }

    /// Where the links lead that Nix has made for the outputs of these `names`, or for all whose links it has printed.
    fn linked_outputs(&self, names: &[String], finished: &Finished) -> Option<Outputs> {
        let base = self.link.as_deref()?;
        let links: Vec<PathBuf> = if names.is_empty() {
            finished.paths().map(PathBuf::from).collect()
        } else {
            names
                .iter()
                .map(|name| links::link_of(base, name))
                .collect()
        };
        links
            .iter()
            .map(|link| links::read_link(base, link))
            .collect()
    }

    /// The state folder, made where it is missing. One that cannot be used is said once, and done without.
    pub(super) fn state(&self) -> Option<&StateFolder> {
        let open = || {
            let opened = match &self.host.state {
                Some(folder) => StateFolder::open(folder)
                    .map_err(|error| format!("{}: {error}", folder.display())),
                None => {
                    Err("there is neither EVAL_ONCE_STATE_DIR nor XDG_STATE_HOME nor HOME".into())
                }
            };
            if let Err(error) = &opened {
                self.log.warn(format_args!(
                    "going on without the state folder, which cannot be used: {error}"
                ));
            }
            opened.ok()
        };
        self.state.get_or_init(open).as_ref()
    }

    /// Waits for a turn to evaluate. Without a state folder there are no turns, and nobody waits.
    pub(super) fn turn(&mut self) -> Result<Option<EvaluationSlot>, Failure> {
        let turns = self.host.evaluations.get();
        let started = Instant::now();
        let mut said = false;
        let turn = loop {
            match self.state().map(|state| state.try_evaluation_slot(turns)) {
                None => break None,
                Some(Ok(Some(turn))) => break Some(turn),
                Some(Ok(None)) => {}
                Some(Err(error)) => {
                    self.log.warn(format_args!(
                        "evaluating without waiting for a turn: {error}"
                    ));
                    break None;
                }
            }
            if !said {
                self.log.say(format_args!(
                    "waiting for a turn: {turns} evaluation{} on this host already",
                    if turns == 1 { " runs" } else { "s run" }
                ));
                said = true;
            }
            // The kernel tells nobody that one of several locks has become free.
            self.supervisor.pause(Duration::from_millis(50))?;
        };
        self.seconds.wait += started.elapsed();
        Ok(turn)
    }

    /// The version of Nix, where a command to paste depends on it: it costs a process.
    pub(super) fn nix_version(&mut self) -> Result<Option<(u32, u32)>, Failure> {
        let evaluation = self.request.evaluation.as_ref();
        if !evaluation.is_some_and(|it| matches!(it.source, Source::Flake(_))) {
            return Ok(None);
        }
        match self.ask(&command::version_of_nix()) {
            Ok((printed, _)) => {
                Ok(version::of_program(&printed.text())
                    .and_then(|version| version::numbers(&version)))
            }
            Err(failure) if matches!(failure.class, Class::Signal(_)) => Err(failure),
            Err(_) => Ok(None),
        }
    }

    /// The folder of store paths, as far as one is named.
    pub(super) fn store(&self) -> Option<PathBuf> {
        let named = self.drv.as_ref().map(DrvPath::as_store_path);
        let path = named.or_else(|| self.request.outputs.values().next())?;
        Some(path.store().to_owned())
    }

    /// Whether the job's log ends with the lines that the report has of the builder that failed.
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
            way: self.taken,
            reason: self.reason,
            tried: self.tried.clone(),
            drv: self.drv.clone(),
            outputs: result
                .as_ref()
                .map_or_else(|_| Outputs::new(), Clone::clone),
            drift: self.drift,
            built: self.built,
            substituted: self.substituted.len(),
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

impl Known {
    /// What the file of `drv` says, where it can be read.
    fn of(drv: &DrvPath) -> Self {
        let text = derivation_text(drv).unwrap_or_default();
        Self {
            outputs: outputs_of_derivation(&text).unwrap_or_default(),
            fixed: is_fixed_output(&text),
        }
    }
}

/// The one path that Nix has printed, as it does where it makes no link.
fn printed_output(finished: &Finished) -> Option<Outputs> {
    let mut printed = finished.paths();
    let path = StorePath::parse(printed.next()?.to_str()?).ok()?;
    let only = printed.next().is_none();
    only.then(|| Outputs::from([("out".to_owned(), path)]))
}

/// What is wrong with a fixed output at which the daemon goes away each time.
const DIES_OF_IT: &str = "the daemon goes away when it takes what it made: it may refer to other store paths, and a fixed output must not";

/// The fixed output that alone was being built when the daemon went away. The worker of 2.8 aborts where one refers to another
/// path, each time; who asked for it only sees that it is gone, as when something has killed it.
fn fixed_output_at_death(nix_output: &NixOutput) -> Option<DrvPath> {
    if !nix_output.faults.is_empty() || nix_output.trouble(true) != Some(Trouble::DaemonGone) {
        return None;
    }
    let mut suspects = nix_output.suspects();
    let only = suspects.next().filter(|_| suspects.next().is_none())?;
    Known::of(&only).fixed.then_some(only)
}

/// The outputs in a `.drv` file, where it can be read. (In a store that lies elsewhere than its paths say, it cannot.)
pub(super) fn outputs_on_disk(drv: &DrvPath) -> BTreeMap<String, Option<StorePath>> {
    derivation_text(drv)
        .ok()
        .and_then(|text| outputs_of_derivation(&text))
        .unwrap_or_default()
}
