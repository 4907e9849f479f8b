//! The pin: one small store file that refers to every recorded `.drv`, and the GC root that keeps it.
//!
//! The file is JSON, and each `.drv` path in it has plain string context: so its references are exactly the `.drv`s, and nothing is
//! built.

use std::path::Path;
use std::time::SystemTime;

use super::content::{PinOwner, pin_input};
use super::folder::{hold, seconds, write_expiry};
use crate::command_line::CommandLine;
use crate::exit::{Class, Classify as _, Failure};
use crate::log::Log;
use crate::nix::{AttrPath, Disturbance, DrvPath, NixOutput, Phase, StorePath, class, command};
use crate::recording::RecordingRequest;
use crate::state::StateFolder;
use crate::store::{ATTEMPTS, Answer, COLLECTOR_HINT, PathQuestion, Store, names_root};
use crate::supervise::{Finished, OnStop, Supervisor};

/// The result of pinning.
#[derive(Debug)]
pub(in crate::recording) enum PinResult {
    /// This file keeps all `.drv`s; and the answers to the questions that were asked meanwhile, in their order.
    Pinned(StorePath, Vec<Answer>),
    /// These are not valid any more.
    Gone(Vec<DrvPath>),
}

/// Keeps the `.drv`s of `targets`. `beside` runs while Nix writes the pin, and returns the questions that Nix is asked while the pin
/// is rooted: one program after the other would take most of the time that a recording of light targets takes.
///
/// # Errors
/// The state folder or the store fails (75).
#[expect(
    clippy::too_many_arguments,
    reason = "what is pinned, whose it is, and what asks Nix are three things each"
)]
pub(in crate::recording) fn pin(
    targets: &[(&AttrPath, &DrvPath)],
    owner: &PinOwner,
    request: &RecordingRequest,
    state: &StateFolder,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
    beside: impl FnOnce(&command::Options) -> Vec<CommandLine>,
) -> Result<PinResult, Failure> {
    let folder = state.pins().join(&owner.folder);
    let in_state = || format!("cannot keep a pin in {}", folder.display());
    let _held = hold(&folder, supervisor, log)?;
    let now = seconds(SystemTime::now());
    let until = now + u64::from(request.keep_days) * 24 * 60 * 60;
    write_expiry(state, &folder, until).classify(Class::Infrastructure, in_state)?;

    let json = state
        .temporary_file(&pin_input(targets, owner, now)?)
        .classify(Class::Infrastructure, in_state)?;
    // A `.drv` that is gone is evaluated again. A substituter that has it would send its whole closure, and one that is unreachable
    // costs seconds before that is known.
    let store_options = store.options(supervisor)?;
    let mut options = store_options.clone();
    options.push(("substitute".into(), "false".into()));
    let write = command::write_pin(json.path(), &options);
    let link = folder.join("pin");
    let mut beside = Some(beside);
    let (mut questions, mut answers) = (Vec::new(), Vec::new());
    // What fails because of a missing path is repeated once where that path is valid by the time we ask.
    let mut repeated = false;
    for _ in 0..ATTEMPTS {
        let mut stderr = Vec::new();
        let written = supervisor.run_beside(&write, OnStop::TermThenKill, &mut stderr, || {
            if let Some(beside) = beside.take() {
                questions = beside(&store_options);
            }
        })?;
        if !written.ending.success() {
            let drvs: Vec<&StorePath> =
                targets.iter().map(|(_, drv)| drv.as_store_path()).collect();
            let gone = store.invalid(supervisor, &drvs)?;
            if !gone.is_empty() {
                let gone = gone.iter().map(StorePath::as_str);
                return Ok(PinResult::Gone(
                    gone.filter_map(|path| DrvPath::parse(path).ok()).collect(),
                ));
            }
            store.check_answers(supervisor)?;
            let output = NixOutput::of(&stderr);
            if !repeated
                && let Some(Disturbance::Gone(path)) = output.disturbance()
                && store.is_valid(supervisor, &path)?
            {
                repeated = true;
                log.say(format_args!(
                    "{path} was missing, and is valid now: writing the pin again"
                ));
                continue;
            }
            return Err(copying_failure("cannot write the pin", &written, &output));
        }
        let printed = written.text();
        let pin = StorePath::parse(printed.trim_matches('"'))
            .map_err(|wrong| anyhow::anyhow!("{wrong}: {printed}"))
            .classify(Class::Bug, || format!("cannot read what `{write}` printed"))?;
        let mut lines = vec![command::obtain(&[&pin], Some(&link), &options)];
        lines.append(&mut questions);
        let mut asked = store.ask_all(supervisor, &lines)?.into_iter();
        let rooted = asked.next();
        answers.extend(asked);
        // A collection that was running already may have taken it all the same.
        let mut lines = Store::asked_by(PathQuestion::Invalid, &[&pin], &store_options);
        lines.push(Store::roots_line(&pin, &store_options));
        let mut asked = store.ask_all(supervisor, &lines)?.into_iter();
        let is_there = asked.next().into_iter().collect();
        if !store
            .read_invalid(supervisor, &[&pin], is_there)?
            .is_empty()
        {
            continue;
        }
        match rooted {
            Some(rooted) if !rooted.finished.ending.success() => {
                if repeated {
                    let what = format!("cannot root the pin at {}", link.display());
                    let output = NixOutput::of(&rooted.stderr);
                    return Err(copying_failure(&what, &rooted.finished, &output));
                }
            }
            _ => {
                if let Some(roots) = asked.next() {
                    check_root(&roots.finished, &link, log);
                }
                return Ok(PinResult::Pinned(pin, answers));
            }
        }
        repeated = true;
        log.say(format_args!(
            "{pin} could not be rooted, and is valid: rooting it again"
        ));
    }
    Err(Failure::new(
        Class::Infrastructure,
        format_args!("the garbage collector took the pin {ATTEMPTS} times"),
    )
    .hint(COLLECTOR_HINT))
}

/// The failure of writing or rooting the pin.
fn copying_failure(what: &str, finished: &Finished, output: &NixOutput) -> Failure {
    let message = output.final_message(finished.ending);
    Failure::new(
        class::of(Phase::Copying, finished.ending, output),
        format_args!("{what}: {message}"),
    )
}

/// Warns where the daemon does not see the root, as in a container whose folders it does not share: the next collection would take
/// everything. `roots` is what Nix says that keeps the pin; through a daemon, as the daemon sees it.
fn check_root(roots: &Finished, link: &Path, log: &Log) {
    if !roots.ending.success() {
        return;
    }
    if !names_root(roots, link) {
        log.warn(format_args!(
            "the Nix daemon does not see {}, so its next collection takes what was recorded: \
             mount the state folder at the same path where the daemon runs, or set EVAL_ONCE_STATE_DIR to a folder that is",
            link.display()
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_line::Ending;

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
