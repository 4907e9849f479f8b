//! A step on its way: what is known, what has happened, and the questions and commands that the ways share.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::report::{FailureReport, Reason, Report, Seconds, WayName};
use super::request::{OutLink, Place, Request};
use super::{Host, links};
use crate::exit::{Class, Failure};
use crate::log::Log;
use crate::nix::{DrvPath, Listener, StorePath, class, command, outputs_of_derivation};
use crate::state::{State, Turn};
use crate::supervise::{CommandLine, Ending, Finished, OnStop, Supervisor};

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
    supervisor: &'a mut Supervisor,
    /// Whether the file of the recorded `.drv` was there when the step began.
    pub(super) drv_file: bool,
    /// Where the outputs are linked; known from [`Step::prepare`] on, and none where nothing can be linked.
    pub(super) link: Option<PathBuf>,
    /// The state folder once it was asked for; inside, none where it cannot be used.
    state: OnceCell<Option<State>>,
    /// The caches that are left, once one was seen to be unreachable.
    reachable_caches: Option<String>,
    unreachable: BTreeSet<String>,

    // What the report tells.
    pub(super) taken: Option<(WayName, Reason)>,
    pub(super) drv: Option<DrvPath>,
    pub(super) outputs: Outputs,
    pub(super) drift: bool,
    /// Those that were begun; and those of them that failed.
    begun: BTreeSet<String>,
    broken: BTreeSet<String>,
    substituted: BTreeSet<String>,
    /// The derivation that itself failed, where Nix has named one.
    failed: Option<DrvPath>,
    pub(super) seconds: Seconds,
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
            reachable_caches: None,
            unreachable: BTreeSet::new(),
            taken: None,
            drv: request.drv.clone(),
            outputs: Outputs::new(),
            drift: false,
            begun: BTreeSet::new(),
            broken: BTreeSet::new(),
            substituted: BTreeSet::new(),
            failed: None,
            seconds: Seconds::default(),
        }
    }

    /// Chooses the link that keeps the outputs of a step that asked for none, for a day.
    pub(super) fn keep_in_state(&mut self) {
        if let Some(link) = self.state().map(State::outputs_link) {
            let link = link.inspect_err(|error| {
                self.log
                    .warn(format_args!("the outputs will not be kept: {error}"));
            });
            self.link = link.ok();
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

    /// Runs a Nix program whose messages belong into the log.
    pub(super) fn nix(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
    ) -> Result<(Finished, Heard), Failure> {
        self.listen(line, on_stop, io::stderr())
    }

    /// Runs a Nix program that builds or substitutes.
    pub(super) fn build(&mut self, line: &CommandLine) -> Result<Finished, Failure> {
        let started = Instant::now();
        let finished = self.nix(line, OnStop::Term);
        self.seconds.realise += started.elapsed();
        Ok(finished?.0)
    }

    /// Runs a Nix program that is only asked something; its messages are returned.
    pub(super) fn ask(&mut self, line: &CommandLine) -> Result<(Finished, String), Failure> {
        let mut said = Vec::new();
        let (finished, _) = self.listen(line, OnStop::TermThenKill, &mut said)?;
        Ok((
            finished,
            String::from_utf8_lossy(&said).trim_end().to_owned(),
        ))
    }

    fn listen(
        &mut self,
        line: &CommandLine,
        on_stop: OnStop,
        to: impl Write,
    ) -> Result<(Finished, Heard), Failure> {
        let mut listener = Listener::new(to);
        let finished = self.supervisor.run(line, on_stop, &mut listener);
        self.begun.append(&mut listener.begun);
        self.broken.append(&mut listener.broken);
        self.substituted.append(&mut listener.substituted);
        self.unreachable.append(&mut listener.unreachable);
        self.failed = listener.failed.take().or(self.failed.take());
        Ok((
            finished?,
            Heard {
                collector: listener.collector,
                error: listener.error,
            },
        ))
    }

    /// The options for the next command. A cache that was seen unreachable is left out from then on: it would cost
    /// seconds again each time.
    pub(super) fn options(&mut self) -> Result<Vec<(String, String)>, Failure> {
        let mut options = self.request.options.clone();
        if !self.unreachable.is_empty() {
            let (config, _) = self.ask(&command::show_config(&options))?;
            let caches = substituters(&config.text());
            let unreachable = std::mem::take(&mut self.unreachable);
            let left = self.reachable_caches.take().or(caches).map(|caches| {
                let is_left = |cache: &&str| {
                    let (url, _) = cache.split_once('?').unwrap_or((cache, ""));
                    !unreachable
                        .iter()
                        .any(|file| file.starts_with(url.trim_end_matches('/')))
                };
                caches
                    .split_whitespace()
                    .filter(is_left)
                    .collect::<Vec<_>>()
                    .join(" ")
            });
            self.reachable_caches = left;
            for url in unreachable {
                self.log.say(format_args!(
                    "{url} cannot be reached; this step asks that cache no more"
                ));
            }
        }
        if let Some(caches) = &self.reachable_caches {
            options.push(("substituters".into(), caches.clone()));
        }
        Ok(options)
    }

    /// Whether a store path is valid, in the store that Nix uses here.
    pub(super) fn is_valid(&mut self, path: &StorePath) -> Result<bool, Failure> {
        let options = self.options()?;
        let (finished, said) = self.ask(&command::check_validity(path, &options))?;
        if !finished.ending.success() {
            return Err(Failure::new(
                Class::Surroundings,
                format_args!(
                    "the store cannot be asked whether {path} is valid: {}",
                    said_or(&said, &finished)
                ),
            ));
        }
        Ok(finished.paths().next().is_none())
    }

    /// Whether the store can be asked anything at all.
    pub(super) fn store_answers(&mut self) -> Result<(), Failure> {
        let options = self.options()?;
        let (finished, said) = self.ask(&command::ask_store(&options))?;
        if finished.ending.success() {
            return Ok(());
        }
        let said = said_or(&said, &finished);
        Err(Failure::new(
            Class::Surroundings,
            format_args!("the store cannot be asked anything: {said}"),
        ))
    }

    /// Realises a `.drv` and links its outputs; where that fails, asks whether the `.drv` is still there. No check before
    /// it: that would cost as much, and say nothing about a moment later. The check *after* it tells a `.drv` that is gone
    /// from a build that failed, which no message of Nix does (519 of 519 measured failures were told apart).
    pub(super) fn realise(&mut self, drv: &DrvPath) -> Result<Realised, Failure> {
        let options = self.options()?;
        let line = command::realise(drv, self.link.as_deref(), &options);
        let finished = self.build(&line)?;
        if finished.ending.success() {
            return Ok(Realised::Done(self.realised_outputs(drv, &finished)));
        }
        match self.is_valid(drv.as_store_path()) {
            Ok(false) => return Ok(Realised::Gone),
            Ok(true) => self.check_links(Some(drv))?,
            // Whatever kills Nix may kill the question too; the first death is the news.
            Err(failure)
                if failure.class == Class::Surroundings
                    && matches!(finished.ending, Ending::Killed(_)) => {}
            Err(failure) => return Err(failure),
        }
        let message = format!("{drv} was not built: `{line}` {}", finished.ending);
        Err(Failure::new(class::of_realise(finished.ending), message))
    }

    /// The outputs that Nix has printed: as links where it made some, which tell the names too.
    fn realised_outputs(&self, drv: &DrvPath, finished: &Finished) -> Outputs {
        let printed: Vec<&Path> = finished.paths().collect();
        if let Some(base) = &self.link {
            let linked: Outputs = printed
                .iter()
                .filter_map(|line| links::read_link(base, line))
                .collect();
            if linked.len() == printed.len() {
                return linked;
            }
        }
        let known = outputs_on_disk(drv)
            .into_iter()
            .filter_map(|(name, path)| Some((name, path?)));
        known
            .chain(self.request.outputs.clone())
            .filter(|(_, path)| printed.contains(&path.as_path()))
            .collect()
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

    /// What has happened, for the report.
    pub(super) fn report(&self, started: Instant, failure: Option<&Failure>) -> Report {
        Report {
            version: 1,
            way: self.taken.map(|(way, _)| way),
            reason: self.taken.map(|(_, reason)| reason),
            drv: self.drv.clone(),
            outputs: self.outputs.clone(),
            drift: self.drift,
            built: self.begun.difference(&self.broken).count(),
            substituted: self.substituted.len(),
            seconds: Seconds {
                total: started.elapsed(),
                ..self.seconds
            },
            exit: failure.map_or(0, |failure| failure.class.status()),
            failure: failure.map(|failure| FailureReport {
                drv: self.failed.clone(),
                ..FailureReport::from(failure)
            }),
        }
    }
}

/// What of Nix's messages decides what is tried next.
pub(super) struct Heard {
    /// The collector took something that was needed.
    pub(super) collector: bool,
    /// The last error.
    pub(super) error: Option<String>,
}

/// The outputs in a `.drv` file, where it can be read. (In a store that lies elsewhere than its paths say, it cannot.)
fn outputs_on_disk(drv: &DrvPath) -> BTreeMap<String, Option<StorePath>> {
    std::fs::read_to_string(drv.as_store_path().as_path())
        .ok()
        .and_then(|text| outputs_of_derivation(&text))
        .unwrap_or_default()
}

/// The caches that Nix would ask, from what `show-config` prints.
pub(super) fn substituters(config: &str) -> Option<String> {
    let line = config
        .lines()
        .find_map(|line| line.strip_prefix("substituters ="))?;
    Some(line.trim().to_owned())
}

fn said_or(said: &str, finished: &Finished) -> String {
    if said.is_empty() {
        format!("Nix {}", finished.ending)
    } else {
        said.replace('\n', "; ")
    }
}
