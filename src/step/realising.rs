//! Realising a `.drv`: building or substituting its outputs, and telling a `.drv` that is gone from a build that failed.

use std::collections::HashSet;

use super::diagnosis;
use super::drv_outputs::{DrvOutputs, cut_off};
use super::outputs::VerifiedOutputs;
use super::report::{Reason, WayName};
use super::run::{NixRun, StepRun};
use crate::command_line::Ending;
use crate::exit::{Class, Failure};
use crate::host;
use crate::nix::{
    Cause, Disturbance, DrvPath, Fault, NixOutput, Phase, StorePath, Trouble, class, command,
    derivation_text, is_cut_off, version,
};
use crate::paths::FileId;
use crate::store::{ATTEMPTS, Misses};

/// The result of realising a `.drv`.
pub(super) enum Realised {
    /// Its outputs are there, and linked.
    Outputs(VerifiedOutputs),
    /// It is not valid: it was never here, or the collector took it.
    Gone,
    /// Nix has realised it, and an output is missing all the same: the collector was at work already when it was rooted.
    OutputLost,
}

/// What is wrong with a fixed output at which the daemon dies each time.
const DAEMON_DIES: &str = "the daemon dies when it registers the output, which may refer to other store paths: a fixed output must not";

impl StepRun<'_> {
    /// Realises a `.drv` and links its outputs; where that fails, asks whether the `.drv` is still valid. No check before: it
    /// would cost as much as the realise, and say nothing about a moment later. The check *afterwards* distinguishes a `.drv` that is gone
    /// from a build that failed, which no message of Nix does (519 of 519 measured failures were classified correctly).
    ///
    /// But the check sees a later world. Where Nix has reported a path as missing that is valid now, something has registered it
    /// in between (two or three steps of one missing `.drv` that started within 120 ms: 55 of 294), and the `.drv` is realised
    /// once more before the failure is believed. Where its file was written anew meanwhile, the collector was at work again (two of 283
    /// steps, eight at a time): then it is no failure of Nix, and the `.drv` counts as gone once that was so too often.
    pub(super) fn realise(&mut self, drv: &DrvPath) -> Result<Realised, Failure> {
        let mut misses = Misses::default();
        // The fixed outputs at which the daemon has died once.
        let mut died_before = HashSet::new();
        loop {
            let options = self.options()?;
            // Read before the collector can take it.
            let in_drv = DrvOutputs::read(drv);
            // Of a store elsewhere these files are none.
            let is_here = self.host.nix.store_is_local(&self.request.options);
            if is_here
                && let Some(damaged) = cut_off(drv, || self.supervisor.check())?
                && self.is_damaged(&damaged)?
            {
                return Err(diagnosis::of_damaged(drv, &damaged));
            }
            // A daemon's files may lie elsewhere.
            let was_file = is_here && FileId::at(drv.as_store_path().as_path()).is_some();
            let line = command::realise(drv, self.link.as_deref(), &options);
            let heading = format_args!("building {}", drv.name());
            let NixRun {
                finished,
                mut output,
                hidden,
            } = self.run_building(&line, heading)?;
            if finished.ending.success() {
                let outputs = self.realised_outputs(drv, in_drv, &finished, &output)?;
                return Ok(outputs.map_or(Realised::OutputLost, Realised::Outputs));
            }
            match self.is_valid(drv.as_store_path()) {
                Ok(false) => return Ok(Realised::Gone),
                Ok(true) => {
                    let appeared = self.appeared(&output, finished.ending, drv)?;
                    // Where anything that it needs is taken, the `.drv` is, too.
                    let file = FileId::at(drv.as_store_path().as_path()).filter(|_| is_here);
                    if was_file && file.is_none() && output.root_cause().is_none() {
                        return Ok(Realised::Gone);
                    }
                    if let Some(appeared) = appeared
                        && misses.count(file)
                    {
                        if misses.counted() == ATTEMPTS {
                            self.log.say(appeared);
                            return Ok(Realised::Gone);
                        }
                        let name = drv.name();
                        self.log
                            .say(format_args!("{appeared}: realising {name} again"));
                        self.appeared = true;
                        continue;
                    }
                    if self.way == Some(WayName::Realised) {
                        self.reason = Some(self.realised_reason());
                    }
                }
                // What kills Nix may kill the question too; the first death is what is reported.
                Err(failure)
                    if failure.class == Class::Infrastructure
                        && matches!(finished.ending, Ending::Killed(_)) => {}
                Err(failure) => return Err(failure),
            }
            self.log.pass_on(hidden.as_bytes());
            if class::has_come_to_its_end(finished.ending, &output) {
                self.find_root_cause(&mut output, Some(drv))?;
            }
            let died_at = fixed_output_at_death(&output, |drv| DrvOutputs::read(drv).fixed);
            let dies_again = died_at.as_ref().is_some_and(|it| died_before.contains(it));
            if dies_again && self.may_die_of_references()? {
                output.faults.push(Fault {
                    drv: died_at.clone(),
                    cause: Cause::Output(DAEMON_DIES.into()),
                });
                self.faults.clone_from(&output.faults);
            }
            // Nix ends with 1 for a link that it cannot make, and says nothing of a builder.
            if finished.ending == Ending::Exited(1) && output.faults.is_empty() {
                self.probe_links(Some(drv))?;
            }
            let class = class::of(Phase::Building, finished.ending, &output);
            if class == Class::Infrastructure
                && !dies_again
                && let Some(fixed) = died_at
            {
                self.log.say(format_args!(
                    "the daemon died while it built {fixed}: building it once more"
                ));
                died_before.insert(fixed);
                continue;
            }
            if class == Class::Infrastructure
                && let Some(error) = &output.error
                && let Some(failure) = host::no_temporary_folder(&self.host.temporary, error)
            {
                return Err(failure);
            }
            if let Some(failure) = class::settings_refused(&output) {
                return Err(failure);
            }
            let how = format!("`{line}` {}", finished.ending);
            return Err(diagnosis::of_realise(
                class,
                drv,
                &output,
                self.killed_for_memory(),
                &how,
            ));
        }
    }

    /// Whether a `.drv` whose file is no whole derivation stays so: a process that is writing it registers it afterwards. Nix must not
    /// read it: 2.8 and 2.26 do until memory runs out.
    fn is_damaged(&mut self, drv: &DrvPath) -> Result<bool, Failure> {
        let damaged = self.is_valid(drv.as_store_path())?
            && derivation_text(drv).is_ok_and(|text| is_cut_off(&text));
        if damaged && self.way == Some(WayName::Realised) {
            self.reason = Some(self.realised_reason());
        }
        Ok(damaged)
    }

    /// Whether the daemon may have died of a fixed output that refers to other paths, as far as its version says, and the memory that
    /// was left.
    fn may_die_of_references(&mut self) -> Result<bool, Failure> {
        if self.killed_for_memory() > 0 {
            return Ok(false);
        }
        let Some(version) = self.store.version(self.supervisor)? else {
            return Ok(false);
        };
        let identity = self.store.identity(self.supervisor, &version)?;
        Ok(identity.is_ok_and(|it| version::aborts_at_references(it.version.as_deref())))
    }

    /// Why the recorded `.drv` is realised: to be asked once it was.
    pub(super) fn realised_reason(&self) -> Reason {
        if self.drv_file || self.appeared {
            Reason::DrvValid
        } else {
            Reason::DrvSubstituted
        }
    }

    /// What was missing when realising `drv`, which is valid, failed because of that, and is valid now: in a clause for the log.
    fn appeared(
        &mut self,
        output: &NixOutput,
        ending: Ending,
        drv: &DrvPath,
    ) -> Result<Option<String>, Failure> {
        let Some(missing) = missing(output, ending) else {
            return Ok(None);
        };
        Ok(Some(match missing {
            Missing::Path(path) => {
                if *drv.as_store_path() != path && !self.is_valid(&path)? {
                    return Ok(None);
                }
                format!("{path} was missing, and is valid now")
            }
            // Where `drv` is valid, so is each that it needs.
            Missing::Drv => "Nix aborted because a .drv was missing that is valid now".into(),
            Missing::Daemon => "the daemon died before it built anything".into(),
            Missing::Unnamed => "Nix lacked something that is needed, and does not say what".into(),
        }))
    }
}

/// What Nix lacked in a moment of the past.
#[derive(Debug, PartialEq, Eq)]
enum Missing {
    Path(StorePath),
    /// The `.drv`, or one that it needs: Nix does not say which when it aborts.
    Drv,
    /// The daemon, whose worker may have died of the same. It has other reasons to, too, once there is something to build.
    Daemon,
    /// What `drv` needs, and is no output: Nix does not say what.
    Unnamed,
}

/// What was missing when Nix failed because of that; none where the failure has another cause.
fn missing(output: &NixOutput, ending: Ending) -> Option<Missing> {
    // A builder may print the same words, and then fails in its own way.
    if output.root_cause().is_some() {
        return None;
    }
    match output.disturbance(ending)? {
        Disturbance::Gone(_) if !matches!(ending, Ending::Exited(_)) => None,
        Disturbance::Gone(path) => {
            // A file that cannot be opened, and still does not exist, is lost, or in another store: repeating does not bring it back.
            let error = output.error.as_deref().unwrap_or_default();
            let is_lost =
                error.starts_with("opening file ") && path.as_path().symlink_metadata().is_err();
            (!is_lost).then_some(Missing::Path(path))
        }
        Disturbance::Aborted => Some(Missing::Drv),
        Disturbance::Daemon => output.begun.is_empty().then_some(Missing::Daemon),
        Disturbance::Unnamed => Some(Missing::Unnamed),
    }
}

/// The fixed output that alone was being built when the daemon died. The worker of 2.8 aborts where one refers to another path,
/// each time; its client only sees that it is gone, as when something has killed it.
fn fixed_output_at_death(
    output: &NixOutput,
    is_fixed: impl Fn(&DrvPath) -> bool,
) -> Option<DrvPath> {
    if !output.faults.is_empty() || output.trouble(true) != Some(Trouble::DaemonGone) {
        return None;
    }
    let mut suspects = output.suspects();
    let only = suspects.next().filter(|_| suspects.next().is_none())?;
    is_fixed(&only).then_some(only)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    fn output(lines: &[&str]) -> NixOutput {
        NixOutput::of(lines.join("\n").as_bytes())
    }

    #[test]
    fn what_was_missing_is_known_unless_a_build_failed_or_its_file_is_lost() {
        let missing = |lines: &[&str]| missing(&output(lines), Ending::Exited(1));
        let path = format!("/s/{HASH}-x");
        let invalid = format!("error: path '{path}' is not valid");
        let here = StorePath::parse(&path).ok().map(Missing::Path);
        assert_eq!(missing(&[&invalid]), here);
        let failed =
            format!("error: builder for '/s/{HASH}-y.drv' failed with exit code 1\n{invalid}");
        assert_eq!(missing(&[&failed]), None);
        let lost = format!("error: opening file '/s/{HASH}-x.drv': No such file or directory");
        assert_eq!(missing(&[&lost]), None);
        assert_eq!(missing(&["error: disk full"]), None);
        let died = "error: unexpected end-of-file";
        assert_eq!(missing(&[died]), Some(Missing::Daemon));
        let building = format!("building '/s/{HASH}-y.drv'...");
        assert_eq!(missing(&[&building, died]), None);
        let needed =
            format!("error: 1 dependencies of derivation '/s/{HASH}-z.drv' failed to build");
        assert_eq!(missing(&[&building, &needed]), Some(Missing::Unnamed));
        let further = needed.replace("-z.drv", "-top.drv");
        assert_eq!(missing(&[&needed, &further]), Some(Missing::Unnamed));
        // Nix has refused what is needed, in words that name no derivation.
        let refused = "error: exportReferencesGraph: no";
        assert_eq!(missing(&[refused, &needed]), None);
        let failed =
            format!("error: builder for '/s/{HASH}-y.drv' failed with exit code 1\n{needed}");
        assert_eq!(missing(&[&building, &failed]), None);
    }

    #[test]
    fn a_dead_daemon_is_blamed_on_the_only_fixed_output_that_was_built() {
        let building = |name: &str| format!("building '/s/{HASH}-{name}.drv'...");
        let died = "error: unexpected end-of-file";
        let at = |lines: &[&str], fixed| fixed_output_at_death(&output(lines), |_| fixed);
        let (a, b) = (building("a"), building("b"));
        let only = DrvPath::parse(&format!("/s/{HASH}-a.drv")).ok();
        assert_eq!(at(&[&a, died], true), only);
        assert_eq!(at(&[&a, died], false), None);
        assert_eq!(at(&[&a, &b, died], true), None);
        assert_eq!(at(&[&a, "error: something else"], true), None);
    }
}
