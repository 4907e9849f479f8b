//! A step on its way: what is known, what has happened, and the questions and commands that the ways share.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::diagnosis;
use super::job_log::{Form, JobLog};
use super::report::{FailureReport, Reason, Report, Seconds, WayName};
use super::request::{OutLink, Request};
use super::{Host, links};
use crate::command_line::{CommandLine, Ending};
use crate::evaluation_keys::Place;
use crate::exit::{Class, Failure};
use crate::flake_settings;
use crate::host;
use crate::log::Log;
use crate::nix::{
    DrvPath, Fault, FlakeMetadata, Heard, Source, StorePath, caches, class, command,
    derivation_text, outputs_of_derivation, version,
};
use crate::state::{State, Turn};
use crate::supervise::{Finished, OnStop, Supervisor};

/// What is said so soon after something else is said in a row; and after how much of that reading waits for more.
const QUICK: Duration = Duration::from_millis(3);
const IN_A_ROW: u32 = 8;

/// How much is read at once where more is said than a pipe holds for long, in bytes.
const MUCH: usize = 32 << 10;

/// The outputs of a derivation, by name.
pub(super) type Outputs = BTreeMap<String, StorePath>;

/// What came of realising a `.drv`.
pub(super) enum Realised {
    /// Its outputs are there, and linked.
    Done(Outputs),
    /// It is not valid (any more): it was never here, or the collector took it.
    Gone,
}

/// A step on its way.
pub(super) struct Step<'a> {
    pub(super) request: &'a Request,
    pub(super) place: &'a Place,
    pub(super) host: &'a Host,
    pub(super) log: Log,
    pub(super) supervisor: &'a mut Supervisor,
    /// Whether the file of the recorded `.drv` was there when the step began.
    pub(super) drv_file: bool,
    /// Where the outputs are linked; known from [`Step::prepare`] on, and none where nothing can be linked.
    pub(super) link: Option<PathBuf>,
    /// The state folder once it was asked for; inside, none where it cannot be used.
    state: OnceCell<Option<State>>,
    /// The caches that are left, once one was seen to be unreachable.
    caches: Option<Vec<String>>,
    /// The settings of the flake that is evaluated, once it was asked for them.
    flake_settings: Option<Vec<(String, String)>>,
    /// What was seen to be unreachable, and has not been left out yet.
    unreachable: BTreeSet<String>,
    /// What keeps the outputs of a step that asked for no link.
    kept: Option<TempDir>,

    // What the report tells.
    pub(super) taken: Option<(WayName, Reason)>,
    pub(super) drv: Option<DrvPath>,
    pub(super) drift: bool,
    /// How many derivations were built.
    pub(super) built: usize,
    /// Derivations whose build was begun; and what failed by itself.
    pub(super) begun: BTreeSet<String>,
    pub(super) faults: Vec<Fault>,
    substituted: BTreeSet<String>,
    /// The last lines of the log of what failed first, where they were heard.
    pub(super) last_lines: Option<Vec<String>>,
    pub(super) seconds: Seconds,
    /// How many processes the kernel had killed for want of memory when the step began.
    killed_before: u64,
}

impl<'a> Step<'a> {
    pub(super) fn new(
        request: &'a Request,
        place: &'a Place,
        host: &'a Host,
        supervisor: &'a mut Supervisor,
        log: Log,
    ) -> Self {
        Self {
            request,
            place,
            host,
            log,
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
            drv: request.drv.clone(),
            drift: false,
            built: 0,
            begun: BTreeSet::new(),
            faults: Vec::new(),
            substituted: BTreeSet::new(),
            last_lines: None,
            seconds: Seconds::default(),
            killed_before: host::killed_for_memory().unwrap_or_default(),
        }
    }

    /// Makes a place in the state folder that keeps the outputs of a step that asked for no link.
    pub(super) fn keep_in_state(&mut self) {
        match self.state().map(State::outputs) {
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
    pub(super) fn evaluate(&mut self, line: &CommandLine) -> Result<(Finished, Heard), Failure> {
        let log = JobLog::new(self.log, self.request.form, None, false);
        let (finished, heard, _) = self.listen(line, OnStop::TermThenKill, log)?;
        Ok((finished, heard))
    }

    /// Runs a Nix program that builds or substitutes; `doing` heads what it says. Its messages go to the log; those that only
    /// say what is missing are returned, for where that is the end.
    pub(super) fn build(
        &mut self,
        line: &CommandLine,
        doing: impl Display,
    ) -> Result<(Finished, Heard, String), Failure> {
        let started = Instant::now();
        let log = JobLog::new(self.log, self.request.form, Some(doing.to_string()), true);
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
        self.unreachable.extend(Heard::of(&said).unreachable);
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
    ) -> Result<(Finished, Heard, String), Failure> {
        let line = self.as_run(line);
        let started_at = Instant::now();
        let started = self.supervisor.start(&line, on_stop);
        let mut running = [started.map_err(class::not_started)?];
        let (mut heard, mut in_a_row) = (started_at, 0_u32);
        while running[0].ended.is_none() {
            let due = log.due();
            let mut said = 0;
            self.supervisor.watch(&mut running, due, |_, bytes| {
                said += bytes.len();
                log.take(bytes);
            })?;
            log.progress();
            if said > 0 {
                in_a_row = if heard.elapsed() < QUICK {
                    in_a_row + 1
                } else {
                    0
                };
                // Who says little is not waited for, and who says more than a pipe holds meanwhile does not wait for us.
                if in_a_row > IN_A_ROW && said < MUCH {
                    self.supervisor.breathe();
                }
                heard = Instant::now();
            }
        }
        let (heard, held) = log.finish();
        self.supervisor.check()?;
        let [running] = running;
        let finished = running.finished();
        self.count(&heard, finished.ending.success());
        Ok((finished, heard, held))
    }

    /// Counts what was done. In Nix's own text nothing says which builds ended well: all that were begun, where Nix did.
    fn count(&mut self, heard: &Heard, success: bool) {
        self.built += match self.request.form {
            Form::Pretty => heard.built(),
            Form::Raw if success => heard.begun.len(),
            Form::Raw => 0,
        };
        self.begun.extend(heard.begun.iter().cloned());
        self.substituted.extend(heard.substituted.iter().cloned());
        self.unreachable.extend(heard.unreachable.iter().cloned());
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
            let settings = flake_settings::accepted(metadata, options, self.supervisor, self.log)?;
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
    pub(super) fn realise(&mut self, drv: &DrvPath) -> Result<Realised, Failure> {
        let options = self.options()?;
        // Read before the collector can take it.
        let known = outputs_on_disk(drv);
        let line = command::realise(drv, self.link.as_deref(), &options);
        let doing = format_args!("building {}", drv.name());
        let (finished, mut heard, held) = self.build(&line, doing)?;
        if finished.ending.success() {
            return self
                .realised_outputs(drv, known, &finished)
                .map(Realised::Done);
        }
        match self.is_valid(drv.as_store_path()) {
            Ok(false) => return Ok(Realised::Gone),
            Ok(true) => {}
            // Whatever kills Nix may kill the question too; the first death is the news.
            Err(failure)
                if failure.class == Class::Surroundings
                    && matches!(finished.ending, Ending::Killed(_)) => {}
            Err(failure) => return Err(failure),
        }
        let _ = io::stderr().write_all(held.as_bytes());
        if let Ending::Exited(_) = finished.ending {
            self.look_into(&mut heard, Some(drv))?;
        }
        // Nix ends with 1 for a link that it cannot make, and says nothing of a builder.
        if finished.ending == Ending::Exited(1) && heard.faults.is_empty() {
            self.probe_links(Some(drv))?;
        }
        let class = class::of_realise(finished.ending, &heard);
        if class == Class::Surroundings
            && let Some(error) = &heard.error
            && let Some(failure) = host::no_temporary_folder(&self.host.temporary, error)
        {
            return Err(failure);
        }
        let how = format!("`{line}` {}", finished.ending);
        Err(diagnosis::of_realise(
            class,
            drv,
            &heard,
            self.killed_for_memory(),
            &how,
        ))
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
        // One that came from a cache was not there before.
        let known = if known.is_empty() {
            outputs_on_disk(drv)
        } else {
            known
        };
        let names: Vec<String> = known.keys().cloned().collect();
        let told: Option<Outputs> = known
            .into_iter()
            .map(|(name, path)| Some((name, path?)))
            .collect();
        if let Some(told) = told.filter(|told| !told.is_empty()) {
            return Ok(told);
        }
        let printed: Vec<&Path> = finished.paths().collect();
        let linked = self.link.as_deref().and_then(|base| {
            let links: Vec<PathBuf> = if names.is_empty() {
                printed.iter().map(PathBuf::from).collect()
            } else {
                names
                    .iter()
                    .map(|name| links::link_of(base, name))
                    .collect()
            };
            links
                .iter()
                .map(|link| links::read_link(base, link))
                .collect::<Option<Outputs>>()
        });
        let recorded = || -> Outputs {
            let outputs = self
                .request
                .outputs
                .iter()
                .filter(|(_, path)| printed.contains(&path.as_path()));
            outputs
                .map(|(name, path)| (name.clone(), path.clone()))
                .collect()
        };
        let outputs = linked
            .filter(|linked| !linked.is_empty())
            .unwrap_or_else(recorded);
        if outputs.is_empty() {
            return Err(Failure::new(
                Class::Surroundings,
                format_args!(
                    "{drv} was built, but what its outputs are cannot be told: this store makes no links here"
                ),
            ));
        }
        Ok(outputs)
    }

    /// The state folder, made where it is missing. One that cannot be used is said once, and done without.
    pub(super) fn state(&self) -> Option<&State> {
        let open = || {
            let opened = match &self.host.state {
                Some(folder) => {
                    State::open(folder).map_err(|error| format!("{}: {error}", folder.display()))
                }
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
    pub(super) fn turn(&mut self) -> Result<Option<Turn>, Failure> {
        let turns = self.host.evaluations.get();
        let started = Instant::now();
        let mut said = false;
        let turn = loop {
            match self.state().map(|state| state.try_turn(turns)) {
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

    /// What has happened, for the report.
    pub(super) fn report(
        &self,
        started: Instant,
        result: &Result<Outputs, Failure>,
        hints: Vec<String>,
    ) -> Report {
        let failure = result.as_ref().err();
        Report {
            way: self.taken.map(|(way, _)| way),
            reason: self.taken.map(|(_, reason)| reason),
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

/// The outputs in a `.drv` file, where it can be read. (In a store that lies elsewhere than its paths say, it cannot.)
pub(super) fn outputs_on_disk(drv: &DrvPath) -> BTreeMap<String, Option<StorePath>> {
    derivation_text(drv)
        .ok()
        .and_then(|text| outputs_of_derivation(&text))
        .unwrap_or_default()
}
