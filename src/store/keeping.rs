//! Keeping many `.drv`s by one root: a small store file that refers to all of them.
//!
//! Each `.drv` path in it has plain string context: so its references are exactly the `.drv`s, and nothing is built.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::printed::no_answer_of_nix;
use super::rooting::{names_root, rooting_line};
use super::{ATTEMPTS, Answer, COLLECTOR_HINT, Collection, Misses, Store};
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::nix::{Disturbance, DrvPath, NixOutput, Phase, StorePath, class, command};
use crate::paths::FileId;
use crate::state::StateFolder;
use crate::supervise::{Finished, OnStop, Printed, Supervisor};

/// How often a file is written. The collector can take one only in the few hundredths of a second before its root is made: so of
/// collections that follow one another without a pause, most come too late.
pub const KEEPING_ATTEMPTS: u32 = 10;

/// How long a collection is waited for that may have begun before the root was made: one that lasts is told of the next file.
const WATCHED_AT_MOST: Duration = Duration::from_secs(1);

/// The name that pin.nix gives to the file.
const FILE: &str = "eval-once-pin.json";

/// A file that keeps `.drv`s.
#[derive(Debug)]
pub struct Keeper<'a> {
    /// What it is called in messages.
    pub name: &'static str,
    /// What it says.
    pub text: String,
    /// What it keeps.
    pub drvs: Vec<&'a DrvPath>,
    /// Its root.
    pub link: &'a Path,
    /// Whether Nix is asked what keeps it.
    pub asks_roots: bool,
}

/// The result of keeping `.drv`s.
#[derive(Debug)]
pub enum Kept {
    /// This file is rooted, and keeps all of them.
    By {
        /// The file.
        file: StorePath,
        /// Whether Nix says that this root keeps it, as far as it was asked and has answered.
        is_seen: bool,
        /// The answers to the questions that were asked meanwhile, in their order.
        answers: Vec<Answer>,
    },
    /// These are not valid any more.
    Gone(Vec<DrvPath>),
}

impl Keeper<'_> {
    /// What pin.nix reads. The text of each attempt differs, and with it the path: a collection may be about to take the last one,
    /// which Nix calls valid until then.
    ///
    /// # Errors
    /// It cannot be written as JSON (70).
    pub fn input(&self, attempt: u32) -> Result<Vec<u8>, Failure> {
        #[derive(Serialize)]
        struct PinInput<'a> {
            text: String,
            drvs: &'a [&'a DrvPath],
        }
        let input = PinInput {
            text: format!("{}{}", self.text, "\n".repeat(attempt as usize)),
            drvs: &self.drvs,
        };
        serde_json::to_vec(&input)
            .classify(Class::Bug, || format!("cannot write {} as JSON", self.name))
    }
}

impl Store {
    /// Writes the file and roots it. `beside` runs while Nix writes it, and returns the questions that Nix is asked while it is
    /// rooted: one program after the other would take most of the time that a recording of light targets takes.
    ///
    /// # Errors
    /// The state folder or the store fails, or the collector takes the file each time (75).
    pub fn keep(
        &mut self,
        keeper: &Keeper<'_>,
        state: &StateFolder,
        supervisor: &mut Supervisor,
        beside: impl FnOnce(&command::Options) -> Vec<CommandLine>,
    ) -> Result<Kept, Failure> {
        let Keeper { name, link, .. } = keeper;
        let cannot_root = || format!("cannot root {name} at {}", link.display());
        // A `.drv` that is gone is evaluated again. A substituter that has it would send its whole closure, and one that is
        // unreachable costs seconds before that is known.
        let store_options = self.options(supervisor)?;
        let mut options = store_options.clone();
        options.push(("substitute".into(), "false".into()));
        let mut beside = Some(beside);
        let (mut questions, mut answers) = (Vec::new(), Vec::new());
        let mut misses = Misses::default();
        // Rooting is repeated once where the file is valid by the time we ask.
        let mut repeated = false;
        // A collection that was running already may have removed the new root with an older one that led nowhere.
        let mut unseen = false;
        for attempt in 1..=KEEPING_ATTEMPTS {
            let json = state
                .temporary_file(&keeper.input(attempt)?)
                .classify(Class::Infrastructure, cannot_root)?;
            let write = command::write_pin(json.path(), &options);
            let known = self.collection();
            let mut stderr = Printed::default();
            let written =
                supervisor.run_beside(&write, OnStop::TermThenKill, &mut stderr, || {
                    if let Some(beside) = beside.take() {
                        questions = beside(&store_options);
                    }
                })?;
            if !written.ending.success() {
                let drvs: Vec<&StorePath> =
                    keeper.drvs.iter().map(|drv| drv.as_store_path()).collect();
                let gone = self.invalid(supervisor, &drvs)?;
                if !gone.is_empty() {
                    let gone = gone.iter().map(StorePath::as_str);
                    return Ok(Kept::Gone(
                        gone.filter_map(|path| DrvPath::parse(path).ok()).collect(),
                    ));
                }
                self.check_answers(supervisor)?;
                let output = NixOutput::of(&stderr.into_bytes());
                if let Some(Disturbance::Gone(path)) = output.disturbance(written.ending)
                    && self.is_valid(supervisor, &path)?
                    && misses.count(FileId::at(path.as_path()))
                {
                    self.log.say(format_args!(
                        "{path} was missing, and is valid now: writing {name} again"
                    ));
                    continue;
                }
                let what = format!("cannot write {name}");
                return Err(copying_failure(&what, &written, &output));
            }
            let file = written_file(name, &write, &written)?;
            let before = FileId::at(link);
            let mut lines = vec![rooting_line(&file, link, &options)];
            lines.append(&mut questions);
            let mut asked = self.ask_all(supervisor, &lines)?.into_iter();
            let rooted = asked.next();
            answers.extend(asked);
            let is_certain = self.outlives_collection(known, supervisor)?;
            let (is_valid, is_seen) = self.sight(keeper, &file, &store_options, supervisor)?;
            if !is_valid || !is_certain {
                continue;
            }
            match rooted {
                Some(rooted) if !rooted.finished.ending.success() => {
                    if repeated {
                        let output = NixOutput::of(&rooted.stderr);
                        return Err(copying_failure(&cannot_root(), &rooted.finished, &output));
                    }
                }
                _ => {
                    let is_ours = check_link(name, &file, link, before)?;
                    let is_seen = is_seen || !is_ours;
                    if is_seen || unseen || attempt == KEEPING_ATTEMPTS {
                        return Ok(Kept::By {
                            file,
                            is_seen,
                            answers,
                        });
                    }
                    unseen = true;
                    continue;
                }
            }
            repeated = true;
            self.log.say(format_args!(
                "{file} could not be rooted, and is valid: rooting it again"
            ));
        }
        Err(Failure::new(
            Class::Infrastructure,
            format_args!("the garbage collector took {name} {KEEPING_ATTEMPTS} times"),
        )
        .hint(COLLECTOR_HINT))
    }

    /// Whether a file that was rooted is valid; and whether its root is seen, as far as Nix was asked for that and has answered.
    fn sight(
        &mut self,
        keeper: &Keeper<'_>,
        file: &StorePath,
        options: &command::Options,
        supervisor: &mut Supervisor,
    ) -> Result<(bool, bool), Failure> {
        let mut is_seen = true;
        if keeper.asks_roots {
            let Answer { finished, .. } = self.run(supervisor, &Self::roots_line(file, options))?;
            if finished.ending.success() {
                // Nix names no root of a path that is not valid (2.8.0, 2.26.3, 2.34.8).
                if names_root(&finished, keeper.link) {
                    return Ok((true, true));
                }
                is_seen = false;
            }
        }
        Ok((self.is_valid(supervisor, file)?, is_seen))
    }

    /// Roots a path of contents, as a source, at `link`, where it is valid: no evaluation keeps one that was valid before it began. Says
    /// whether it is there.
    ///
    /// # Errors
    /// The store cannot be asked (75); a signal asked us to end (128 + n).
    pub fn keep_path(
        &mut self,
        path: &StorePath,
        link: &Path,
        supervisor: &mut Supervisor,
    ) -> Result<bool, Failure> {
        let mut options = self.options(supervisor)?;
        options.push(("substitute".into(), "false".into()));
        let rooting = rooting_line(path, link, &options);
        for attempt in 1..=ATTEMPTS {
            let Answer { finished, stderr } = self.run(supervisor, &rooting)?;
            let is_rooted = finished.ending.success();
            // A collection that has read the roots before may be about to take it.
            if is_rooted && self.collection().is_none() {
                return Ok(true);
            }
            let is_certain = self.outlives_collection(None, supervisor)?;
            if !self.is_valid(supervisor, path)? {
                return Ok(false);
            }
            if !is_rooted && attempt == ATTEMPTS {
                let message = NixOutput::of(&stderr).final_message(finished.ending);
                self.log.warn(format_args!(
                    "{path} has no GC root during the evaluation: {message}"
                ));
                return Ok(true);
            }
            if is_rooted && is_certain {
                return Ok(true);
            }
        }
        Ok(true)
    }

    /// Whether a file that is rooted now stays, if it is valid. A collection reads the roots when it begins, and takes what had none
    /// then, maybe long after Nix has called it valid. One that was under way before the file was written, and still is, does not: Nix
    /// has told it of the new path. For any other one it is waited.
    pub(super) fn outlives_collection(
        &self,
        known: Option<Collection>,
        supervisor: &mut Supervisor,
    ) -> Result<bool, Failure> {
        if known.is_some_and(|known| !known.is_over()) {
            return Ok(true);
        }
        match self.collection() {
            Some(collection) => collection.watch(WATCHED_AT_MOST, supervisor, |_| false),
            None => Ok(true),
        }
    }
}

/// The file that Nix says it has written.
fn written_file(name: &str, line: &CommandLine, written: &Finished) -> Result<StorePath, Failure> {
    let printed = written.text();
    match StorePath::parse(printed.trim().trim_matches('"')) {
        Ok(file) if file.name() == FILE => Ok(file),
        _ => {
            let not = format_args!("the path of {name}");
            Err(no_answer_of_nix(line, &printed, not))
        }
    }
}

/// Looks for the root of `file` at `link`, which was `before` (Nix makes a new one each time), and which Nix says it has made: a program that does nothing ends well,
/// too, and a store on another host has no roots of this one. False where another recording of the same has rooted its own there since.
fn check_link(
    name: &str,
    file: &StorePath,
    link: &Path,
    before: Option<FileId>,
) -> Result<bool, Failure> {
    // Before it is read: one that is replaced in between is new all the same.
    let is_new = FileId::at(link) != before;
    let is_of_another = |target: &Path| {
        let path = target.to_str().map(StorePath::parse);
        is_new && path.is_some_and(|path| path.is_ok_and(|it| it.name() == FILE))
    };
    let found = match link.read_link() {
        Ok(target) if target == file.as_path() => return Ok(true),
        Ok(target) if is_of_another(&target) => return Ok(false),
        Ok(target) => format!("leads to {}", target.display()),
        Err(error) => format!("cannot be read: {error}"),
    };
    Err(Failure::new(
        Class::Infrastructure,
        format_args!(
            "nothing keeps {name} {file}: `nix-store` ended with 0, but its link {} {found}",
            link.display()
        ),
    )
    .hint(
        "check that the first `nix-store` on PATH is Nix's, and that the store is one of this host: others make no links here",
    ))
}

/// The failure of writing or rooting the file.
fn copying_failure(what: &str, finished: &Finished, output: &NixOutput) -> Failure {
    let message = output.final_message(finished.ending);
    let failure = Failure::new(
        class::of(Phase::Copying, finished.ending, output),
        format_args!("{what}: {message}"),
    );
    match output.trouble(true) {
        Some(trouble) => trouble.tell(failure),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::command_line::Ending;

    #[test]
    fn a_link_that_another_recording_has_made_since_is_no_nix_that_did_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("root");
        let pin = |hash: &str| StorePath::parse(&format!("/s/{}-{FILE}", hash.repeat(32))).unwrap();
        let (ours, others) = (pin("1"), pin("2"));
        let check = |before| check_link("the pin", &ours, &link, before).ok();
        assert_eq!(check(None), None, "there is none");
        symlink(others.as_path(), &link).unwrap();
        let before = FileId::at(&link);
        assert_eq!(check(before), None, "it is as it was");
        // It leads where it led before, and has led to ours in between. (The first one stays, so that no other gets its number.)
        fs::rename(&link, folder.path().join("first")).unwrap();
        symlink(others.as_path(), &link).unwrap();
        assert_eq!(check(before), Some(false));
        fs::remove_file(&link).unwrap();
        symlink(ours.as_path(), &link).unwrap();
        assert_eq!(check(before), Some(true));
        fs::remove_file(&link).unwrap();
        symlink("/s/elsewhere", &link).unwrap();
        assert_eq!(check(before), None, "it is of something else");
        fs::remove_file(&link).unwrap();
        symlink(format!("/s/{}-another", "3".repeat(32)), &link).unwrap();
        assert_eq!(check(before), None, "it is no pin");
    }

    fn failure(ending: Ending, printed: &str) -> (Class, String) {
        let stdout = Vec::new();
        let output = NixOutput::of(printed.as_bytes());
        let failure = copying_failure(
            "cannot write the pin",
            &Finished { ending, stdout },
            &output,
        );
        (failure.class, failure.to_string())
    }

    #[test]
    fn a_pin_that_cannot_be_written_is_an_infrastructure_failure_with_nixs_last_message() {
        for (printed, message) in [
            (
                "error: cannot open '/x': Read-only file system\n",
                "cannot open '/x': Read-only file system",
            ),
            // Nothing that is pinned is the user's: an error of the expression would be ours.
            ("error: undefined variable 'x'\n", "undefined variable 'x'"),
            ("", "Nix ended with status 1"),
        ] {
            assert_eq!(
                failure(Ending::Exited(1), printed),
                (
                    Class::Infrastructure,
                    format!("cannot write the pin: {message}")
                )
            );
        }
    }

    #[test]
    fn a_signal_that_ends_nix_while_it_writes_the_pin_remains_one() {
        let killed = failure(Ending::Killed(9), "");
        let message = "cannot write the pin: Nix was killed by SIGKILL".to_owned();
        assert_eq!(killed, (Class::Signal(9), message));
    }
}
