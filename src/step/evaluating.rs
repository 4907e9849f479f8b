//! Evaluating a step's target again: what `nix-build` does first, as often as the garbage collector makes it necessary.
//!
//! It gives a `.drv`, or says why not. What is done with the `.drv` is the way's to decide.

use std::ffi::OsStr;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Instant;

use super::diagnosis;
use super::run::{NixRun, StepRun};
use crate::command_line::{CommandLine, Ending};
use crate::exit::{Class, Failure};
use crate::host;
use crate::nix::{
    Disturbance, DrvPath, Evaluation, LockedFlake, NixOutput, Phase, StorePath, class,
};
use crate::secrets::shortened;
use crate::state::{Roots, StateFolder};
use crate::store::{ATTEMPTS, COLLECTOR_HINT, missed_each_time};
use crate::supervise::Finished;

/// How much of a value that is no derivation is shown, in characters.
const VALUE_AT_MOST: usize = 200;

/// Repeated evaluations of one target, with the GC root that they share.
pub(super) struct Evaluating<'e> {
    evaluation: &'e Evaluation,
    /// The GC roots of the `.drv`: from before the evaluation slot is taken until the outputs are there.
    roots: Option<Roots>,
    /// How many evaluations were disturbed so far, or gave a `.drv` that was gone again.
    disturbed: u32,
    /// What the last one has missed, and was valid right after it.
    registered: Option<StorePath>,
    /// What the last ones lacked, and how many in a row.
    lacked: Option<(StorePath, u32)>,
    /// An evaluation has failed in a way that may not happen again.
    doubted: bool,
}

/// Why an evaluation gave no `.drv`.
enum NoDrv {
    /// The collector disturbed it, or the daemon died meanwhile.
    Disturbed,
    /// It has missed this path, which was valid right after it.
    Registered(StorePath),
    /// It lacked this path, which no evaluation writes: where that is so each time, the expression names a path that does not exist, and this
    /// is its failure. (Nix 2.8 does not show that in its message.)
    Lacked(StorePath, Failure),
    /// It failed in a way that may not happen again: it is repeated once before the failure is believed.
    Doubtful(Failure),
    /// It failed.
    Failed(Failure),
}

impl From<Failure> for NoDrv {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl<'e> Evaluating<'e> {
    pub(super) fn new(step: &StepRun<'_>, evaluation: &'e Evaluation) -> Self {
        let roots = step.state().map(StateFolder::roots).and_then(|roots| {
            roots
                .inspect_err(|error| {
                    step.log
                        .warn(format_args!("evaluating without a GC root: {error}"));
                })
                .ok()
        });
        Self {
            evaluation,
            roots,
            disturbed: 0,
            registered: None,
            lacked: None,
            doubted: false,
        }
    }

    /// Evaluates until there is a `.drv`, under an evaluation slot each time; none once it was disturbed too often.
    pub(super) fn next_drv(&mut self, step: &mut StepRun<'_>) -> Result<Option<DrvPath>, Failure> {
        while self.disturbed < ATTEMPTS {
            let slot = step.evaluation_slot()?;
            // In the heading, so that a step that evaluates has no line more for it.
            let why = match step.take_dead_ends() {
                Some(dead_ends) => format!(", because {dead_ends}"),
                None => String::new(),
            };
            step.begin_group(format_args!("evaluating {}{why}", self.evaluation));
            let started = Instant::now();
            let root = self.roots.as_ref().map(Roots::link);
            let missed = self.roots.as_ref();
            let missed = missed.map(|roots| roots.numbered(self.disturbed));
            let links = Links {
                drv: root.as_deref(),
                missed: missed.as_deref(),
            };
            let repeated = self.doubted || self.disturbed > 0;
            let evaluated = evaluate(step, self.evaluation, links, repeated);
            step.seconds.evaluate += started.elapsed();
            drop(slot);
            if let (Err(NoDrv::Doubtful(failure) | NoDrv::Failed(failure)), Some(Err(error))) =
                (&evaluated, self.roots.as_ref().map(Roots::probe))
                && matches!(failure.class, Class::Evaluation | Class::Infrastructure)
            {
                step.log
                    .warn(format_args!("evaluating again without a GC root: {error}"));
                self.roots = None;
                continue;
            }
            self.registered = None;
            match evaluated {
                Ok(drv) => return Ok(Some(drv)),
                Err(NoDrv::Disturbed) => self.disturbed += 1,
                Err(NoDrv::Registered(path)) => {
                    self.disturbed += 1;
                    self.registered = Some(path);
                }
                Err(NoDrv::Lacked(path, failure)) => {
                    self.disturbed += 1;
                    let before = self.lacked.take().filter(|(last, _)| *last == path);
                    let times = before.map_or(1, |(_, times)| times + 1);
                    if times == ATTEMPTS {
                        return Err(failure);
                    }
                    self.lacked = Some((path, times));
                }
                Err(NoDrv::Doubtful(failure)) if !self.doubted => {
                    self.doubted = true;
                    step.log
                        .say(format_args!("{failure}; evaluating once more"));
                }
                Err(NoDrv::Doubtful(failure) | NoDrv::Failed(failure)) => return Err(failure),
            }
        }
        Ok(None)
    }

    /// Counts that the `.drv` of the last evaluation, or an output of it, was gone before it could be used.
    pub(super) fn count_disturbance(&mut self) {
        self.disturbed += 1;
    }

    /// The failure of a target that was disturbed too often.
    pub(super) fn failure(&self) -> Failure {
        if let Some(path) = &self.registered {
            return missed_each_time(self.evaluation, path);
        }
        Failure::new(
            Class::Infrastructure,
            format_args!(
                "the garbage collector, or a daemon that died, disturbed the evaluation of {} {ATTEMPTS} times",
                self.evaluation
            ),
        )
        .hint(format!(
            "{COLLECTOR_HINT}; a daemon may be killed for lack of memory"
        ))
    }
}

/// Where an evaluation has GC roots.
#[derive(Clone, Copy)]
struct Links<'l> {
    drv: Option<&'l Path>,
    /// Of a path that it missed.
    missed: Option<&'l Path>,
}

/// Evaluates one attribute. `repeated`: an evaluation was disturbed, or failed in a way that may not happen again.
fn evaluate(
    step: &mut StepRun<'_>,
    evaluation: &Evaluation,
    links: Links<'_>,
    repeated: bool,
) -> Result<DrvPath, NoDrv> {
    let locked = match step.store.lock_line(step.supervisor, evaluation)? {
        Some(line) => {
            let printed = run(step, evaluation, &line, Phase::Fetching, Suspicion::NONE)?;
            let lock = step.store.read_lock(step.supervisor, &line, &printed)?;
            let source = links.drv.map(|root| root.with_extension("source"));
            if let Some(source) = source
                && !step.store.keep_source(&lock, &source, step.supervisor)?
            {
                step.log
                    .say("the garbage collector removed the flake's source before its evaluation");
                return Err(NoDrv::Disturbed);
            }
            Some(lock.flake)
        }
        None => None,
    };
    let line =
        step.store
            .instantiate_line(step.supervisor, evaluation, locked.as_ref(), links.drv)?;
    // Whether it throws is asked only where it has failed before.
    let suspicion = Suspicion {
        ask_throws: repeated,
        locked: locked.as_ref(),
        missed: links.missed,
    };
    let printed = run(step, evaluation, &line, Phase::Evaluating, suspicion)?;
    let drvs: Vec<DrvPath> = printed
        .paths()
        .map(read_instantiated)
        .collect::<Result<_, _>>()?;
    if let [drv] = drvs.as_slice() {
        return Ok(drv.clone());
    }
    let found = if drvs.is_empty() {
        let value = step
            .store
            .value(step.supervisor, evaluation, locked.as_ref())?;
        if value.is_empty() {
            let what =
                format_args!("{evaluation} was not evaluated: nix-instantiate printed nothing");
            return Err(no_answer(what).into());
        }
        format!("no derivation, but {}", shortened(&value, VALUE_AT_MOST))
    } else {
        several(&drvs)
    };
    let failure = Failure::new(Class::Evaluation, format_args!("{evaluation} is {found}"))
        .called("is not one derivation")
        .meaning("The Nix expression evaluates, but not to one derivation; retrying cannot help.")
        .hint("name one derivation with `attr`: a step builds one");
    Err(failure.into())
}

/// The failure of a `nix-instantiate` that ended well, and did not do what Nix's does.
fn no_answer(what: impl Display) -> Failure {
    Failure::new(Class::Infrastructure, what)
        .hint("check that `nix-instantiate` on the job's PATH is Nix's own program")
}

/// Derivations where one was expected.
fn several(drvs: &[DrvPath]) -> String {
    let first: Vec<_> = drvs.iter().take(3).map(DrvPath::to_string).collect();
    let more = if drvs.len() > first.len() {
        ", …"
    } else {
        ""
    };
    format!(
        "not one derivation, but {}: {}{more}",
        drvs.len(),
        first.join(", ")
    )
}

/// What to do where an evaluation ends with what the system seems to say.
#[derive(Clone, Copy)]
struct Suspicion<'l> {
    /// Ask whether the expression throws: then those are its own words.
    ask_throws: bool,
    /// The flake that the expression is of, locked.
    locked: Option<&'l LockedFlake>,
    /// Where a path is rooted that it has missed, and that is valid.
    missed: Option<&'l Path>,
}

impl Suspicion<'_> {
    /// No expression is evaluated yet.
    const NONE: Self = Self {
        ask_throws: false,
        locked: None,
        missed: None,
    };
}

/// Runs one program of an evaluation.
fn run(
    step: &mut StepRun<'_>,
    evaluation: &Evaluation,
    line: &CommandLine,
    phase: Phase,
    suspicion: Suspicion<'_>,
) -> Result<Finished, NoDrv> {
    let NixRun {
        finished,
        mut output,
        ..
    } = step.run_evaluating(line)?;
    if finished.ending.success() || output.no_derivation() {
        return Ok(finished);
    }
    if let Some(failure) = class::settings_refused(&output) {
        return Err(NoDrv::Failed(failure));
    }
    step.store.tell_folder(&mut output, step.supervisor)?;
    if let Ending::Exited(_) = finished.ending {
        step.find_root_cause(&mut output, None)?;
    }
    let mut class = class::of(phase, finished.ending, &output);
    let mut doubtful = class::is_worth_another_try(class);
    let mut throws = false;
    let is_suspect = class == Class::Infrastructure && output.trouble(false).is_some()
        || class == Class::Evaluation
            && (output.disturbance(finished.ending).is_some() || output.lacked_file().is_some());
    if is_suspect
        && suspicion.ask_throws
        && step
            .store
            .throws(step.supervisor, evaluation, suspicion.locked)?
    {
        (class, doubtful, throws) = (Class::Evaluation, false, true);
    }
    if matches!(class, Class::Evaluation | Class::Infrastructure) && output.root_cause().is_none() {
        let mut missing = None;
        match output.disturbance(finished.ending) {
            Some(Disturbance::Gone(path)) if !throws => {
                let why = why_missing(step, &path, output.is_of_named_path(), suspicion.missed)?;
                missing = Some((path, why));
            }
            Some(Disturbance::Daemon) if class == Class::Infrastructure => {
                step.store.check_answers(step.supervisor)?;
                step.log.say("the daemon died during the evaluation");
                return Err(NoDrv::Disturbed);
            }
            Some(Disturbance::Aborted) => {
                step.log
                    .say("a .drv that is needed was lost: the garbage collector disturbed the evaluation");
                return Err(NoDrv::Disturbed);
            }
            None if !throws => missing = why_file_missing(step, &output, suspicion)?,
            _ => {}
        }
        match missing {
            Some((path, WhyMissing::Taken)) if !path.may_come_anew() => {
                let failure = failure_of(step, evaluation, line, class, &finished, &output);
                return Err(NoDrv::Lacked(path, failure));
            }
            Some((path, WhyMissing::Registered)) => return Err(NoDrv::Registered(path)),
            Some((_, WhyMissing::Taken)) => return Err(NoDrv::Disturbed),
            // An expression is not to blame where the store is dead.
            _ => step.store.check_answers(step.supervisor)?,
        }
    }
    let failure = failure_of(step, evaluation, line, class, &finished, &output);
    Err(if doubtful {
        NoDrv::Doubtful(failure)
    } else {
        NoDrv::Failed(failure)
    })
}

/// Why an evaluation has missed a path.
enum WhyMissing {
    /// It was registered before we asked. (Whatever an expression says of a path that is there, it does not fail because of it.)
    Registered,
    /// The collector has taken it, as far as one evaluation shows.
    Taken,
    /// The expression itself names it (`storePath`), and it does not exist: no evaluation makes it.
    Named,
}

/// Whether a path is there that an evaluation missed. It is rooted at `link` from then on: the next evaluation, which finds it there, would not
/// keep it either, and what is asked of its files is so of one state. (A `.drv` is written by each.)
fn is_kept(step: &mut StepRun<'_>, path: &StorePath, link: Option<&Path>) -> Result<bool, Failure> {
    let is_valid = step.is_valid(path)?;
    match link.filter(|_| is_valid && !path.is_drv()) {
        Some(link) => step.store.keep_path(path, link, step.supervisor),
        None => Ok(is_valid),
    }
}

/// Why an evaluation has missed `path`; `names`: as far as Nix says, the expression itself does.
fn why_missing(
    step: &mut StepRun<'_>,
    path: &StorePath,
    names: bool,
    link: Option<&Path>,
) -> Result<WhyMissing, Failure> {
    if is_kept(step, path, link)? {
        step.log.say(format_args!(
            "{path} was missing during the evaluation, and is valid now"
        ));
        return Ok(WhyMissing::Registered);
    }
    if names {
        return Ok(WhyMissing::Named);
    }
    step.log.say(format_args!(
        "{path} is not valid: the garbage collector disturbed the evaluation"
    ));
    Ok(WhyMissing::Taken)
}

/// The store path that an evaluation has missed, or missed a file of, and why; none where the file is not in it, which is the expression's own
/// fault.
fn why_file_missing(
    step: &mut StepRun<'_>,
    output: &NixOutput,
    suspicion: Suspicion<'_>,
) -> Result<Option<(StorePath, WhyMissing)>, Failure> {
    let Some(lacked) = output.lacked_file() else {
        return Ok(None);
    };
    if !is_kept(step, &lacked.path, suspicion.missed)? {
        if lacked.is_of_checkout() {
            return Ok(None);
        }
        step.log.say(format_args!(
            "{} is not valid: the garbage collector disturbed the evaluation",
            lacked.path
        ));
        return Ok(Some((lacked.path, WhyMissing::Taken)));
    }
    // Where its files are not here, the next evaluation shows it: the path is kept now.
    let is_first = !suspicion.ask_throws;
    if !lacked.is_there().unwrap_or(is_first) {
        return Ok(None);
    }
    step.log.say(format_args!(
        "{} was missing during the evaluation, and is there now",
        lacked.file.display()
    ));
    Ok(Some((lacked.path, WhyMissing::Registered)))
}

/// The failure of an evaluation that is of `class`.
fn failure_of(
    step: &StepRun<'_>,
    evaluation: &Evaluation,
    line: &CommandLine,
    class: Class,
    finished: &Finished,
    output: &NixOutput,
) -> Failure {
    let error = output
        .error
        .as_ref()
        .map_or_else(|| format!("`{line}` {}", finished.ending), Clone::clone);
    if matches!(class, Class::Evaluation | Class::Infrastructure)
        && !output.is_expressions_own()
        && let Some(failure) = host::no_temporary_folder(&step.host.temporary, &error)
    {
        return failure;
    }
    let what = evaluation.to_string();
    if output.root_cause().is_some() || class == Class::Infrastructure {
        return diagnosis::of_evaluation(class, &what, output, step.killed_for_memory(), &error);
    }
    let position = match &output.place {
        Some(place) if !error.contains(place.as_str()) => format!(", at {place}"),
        _ => String::new(),
    };
    let failure = Failure::new(
        class,
        format_args!("{what} does not evaluate: {error}{position}"),
    );
    match evaluation.hint_at(&error) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// The `.drv` that `nix-instantiate` has printed: its root where there is one, and behind a `!` the output that the attribute
/// selects. All outputs are built, so that one does not matter.
fn read_instantiated(printed: &Path) -> Result<DrvPath, Failure> {
    let name = printed.file_name().unwrap_or_default().as_bytes();
    let end = name
        .iter()
        .position(|byte| *byte == b'!')
        .unwrap_or(name.len());
    let path = printed.with_file_name(OsStr::from_bytes(&name[..end]));
    // Without a root, or in a store that can make none, it is the path itself.
    let parse = |path: &Path| DrvPath::parse(&path.to_string_lossy()).ok();
    parse(&path)
        .or_else(|| parse(&path.read_link().ok()?))
        .ok_or_else(|| {
            no_answer(format_args!(
                "nix-instantiate printed no .drv, but {}",
                shortened(&printed.to_string_lossy(), VALUE_AT_MOST)
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drv(name: &str) -> String {
        format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}.drv")
    }

    #[test]
    fn what_nix_instantiate_prints_is_a_drv_or_a_root_of_one_and_may_select_an_output() {
        let read = |printed: &str| read_instantiated(Path::new(printed)).map(|drv| drv.to_string());
        let path = drv("a");
        assert_eq!(read(&path).unwrap(), path);
        assert_eq!(read(&format!("{path}!dev")).unwrap(), path);
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::os::unix::fs::symlink(&path, &root).unwrap();
        let root = root.to_str().unwrap();
        assert_eq!(read(root).unwrap(), path);
        assert_eq!(read(&format!("{root}!out")).unwrap(), path);
        let other = read("/s/nothing").unwrap_err();
        assert_eq!(other.class, Class::Infrastructure);
        assert!(other.hint.is_some());
    }

    #[test]
    fn of_several_derivations_the_first_three_are_named() {
        let drvs = |names: &[&str]| -> Vec<DrvPath> {
            let drvs = names.iter().map(|name| DrvPath::parse(&drv(name)).unwrap());
            drvs.collect()
        };
        let two = several(&drvs(&["a", "b"]));
        assert_eq!(
            two,
            format!("not one derivation, but 2: {}, {}", drv("a"), drv("b"))
        );
        let four = several(&drvs(&["a", "b", "c", "d"]));
        assert!(four.ends_with(&format!("{}, …", drv("c"))), "{four}");
    }
}
