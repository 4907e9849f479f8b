//! Evaluating with `nix-eval-jobs`: the same records, from the lines of JSON that it prints.
//!
//! It walks marked sets (all sets with `--force-recurse`), and no lists.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::exclusions::excluding;
use super::gaps::without_effect;
use super::memory::{self, MIB};
use super::protocol::DescribedMeta;
use crate::command_line::Ending;
use crate::exit::{Class, Failure};
use crate::keys::refuse;
use crate::log::Log;
use crate::nix::{
    AttrPath, DrvPath, LockedFlake, NixOutput, NoiseFilter, Phase, Source, class, command,
};
use crate::recording::{AttrError, EvaluationResult, FoundTarget, RecordingRequest, Recurse};
use crate::secrets::redacted;
use crate::store::Store;
use crate::supervise::{OnStop, Printed, Supervisor};
use crate::text::without_escapes;

/// A line of its output, as its README shows it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    attr_path: Vec<String>,
    drv_path: Option<String>,
    error: Option<String>,
    /// `meta`, as far as it is JSON.
    meta: Option<DescribedMeta>,
}

/// Evaluates all targets, in `workers` processes, and roots their `.drv`s in the folder `roots`.
///
/// # Errors
/// The program is missing (69) or fails (65); the store fails (75); a flake has no `attr` (64).
pub(in crate::recording) fn evaluate(
    request: &RecordingRequest,
    locked: Option<&LockedFlake>,
    workers: usize,
    roots: Option<&Path>,
    store: &mut Store,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<EvaluationResult, Failure> {
    if matches!(request.root.source, Source::Flake(_)) && request.root.attr.names().is_empty() {
        return Err(
            refuse("`evaluator: nix-eval-jobs` with a flake needs `attr`")
                .hint("set `attr` to the set of targets, for example `checks.x86_64-linux`"),
        );
    }
    let memory = memory::for_evaluation(request, supervisor)
        .map(|bytes| (bytes / MIB / workers as u64).max(1));
    let line = command::eval_jobs(
        &request.root,
        locked,
        workers,
        memory,
        request.recurse == Recurse::All,
        roots,
        &request.options,
    );
    let mut was_repeated = false;
    loop {
        let mut stderr = Printed::default();
        let finished = supervisor
            .run(&line, OnStop::TermThenKill, &mut stderr)
            .map_err(|failure| match failure.class {
                Class::MissingProgram => failure.hint(
                    "install nix-eval-jobs, or remove `evaluator` to evaluate with Nix itself",
                ),
                _ => class::not_started(failure),
            })?;
        let stderr = stderr.into_bytes();
        log.pass_on(&NoiseFilter::new(log.debug).filtered(&stderr));
        let failure = if finished.ending.success() {
            match read(&finished.stdout, request, was_repeated) {
                Err(failure) => failure,
                read => return read,
            }
        } else {
            store.check_answers(supervisor)?;
            let class = class::of(Phase::Evaluating, finished.ending, &NixOutput::of(&stderr));
            Failure::new(
                class,
                format_args!("`{}` {}", line.program, finished.ending),
            )
            .hint("see its output above")
        };
        let is_doubtful = class::is_worth_another_try(failure.class);
        if !is_doubtful || std::mem::replace(&mut was_repeated, true) {
            return Err(failure);
        }
    }
}

/// Reads what it has found. An error about a path that is missing may come from a collection meanwhile, unless it `was_repeated`.
fn read(
    printed: &[u8],
    request: &RecordingRequest,
    was_repeated: bool,
) -> Result<EvaluationResult, Failure> {
    let mut evaluated = EvaluationResult::default();
    let mut known = Vec::new();
    let mut effective = BTreeSet::new();
    let lines = printed
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    for line in lines {
        let line: Line = serde_json::from_slice(line).map_err(|error| {
            Failure::new(
                Class::Evaluation,
                format_args!(
                    "cannot read the output of nix-eval-jobs ({error}): {}",
                    String::from_utf8_lossy(&line[..line.len().min(200)])
                ),
            )
        })?;
        let names = request.root.attr.names().iter().cloned();
        let attr = AttrPath::new(names.chain(line.attr_path).collect());
        known.push(attr.clone());
        let excluded_by = excluding(&attr, &request.exclude);
        if !excluded_by.is_empty() {
            effective.extend(excluded_by);
            continue;
        }
        let Some(drv) = line.drv_path else {
            let printed = line.error.unwrap_or_default();
            let nix_output = NixOutput::of(printed.as_bytes());
            let message = nix_output
                .whole_message()
                .unwrap_or_else(|| without_escapes(&printed).trim().to_owned());
            // It catches what an attribute throws, as one that ends.
            let is_disturbed = nix_output.disturbance(Ending::Exited(1)).is_some()
                || nix_output.lacks_folder()
                || nix_output
                    .lacked_file()
                    .is_some_and(|lacked| lacked.path.as_path().symlink_metadata().is_err());
            if nix_output.trouble(false).is_some() || is_disturbed && !was_repeated {
                let what = format!("{attr} was not evaluated");
                return Err(class::infrastructure_failure(what, &nix_output, &message));
            }
            evaluated.errors.push(AttrError {
                attr,
                message: (!message.is_empty()).then(|| redacted(&message).into_owned()),
            });
            continue;
        };
        let read = || -> Result<_, String> {
            let drv =
                DrvPath::parse(&drv).map_err(|wrong| format!("its drvPath {wrong}: {drv:?}"))?;
            let mut meta = line.meta.unwrap_or_default();
            meta.buildkite = meta.buildkite.filter(|_| request.meta);
            meta.eval_once = meta.eval_once.filter(|_| request.meta);
            Ok((drv, meta.read()?))
        };
        match read() {
            Ok((drv, meta)) => evaluated.targets.push(FoundTarget { attr, drv, meta }),
            Err(message) => evaluated.refused.push(AttrError {
                attr,
                message: Some(redacted(&message).into_owned()),
            }),
        }
    }
    evaluated.gaps.exclusions = without_effect(
        &request.exclude,
        &effective,
        &request.root.attr,
        &known,
        |attr| evaluated.errors.iter().any(|error| error.attr == *attr),
    );
    evaluated
        .targets
        .sort_by(|a, b| a.attr.names().cmp(b.attr.names()));
    for list in [&mut evaluated.errors, &mut evaluated.refused] {
        list.sort_by(|a, b| a.attr.names().cmp(b.attr.names()));
    }
    Ok(evaluated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::request;
    use crate::text::hostile::{bytes, cases, spoilt};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a.drv";

    fn line() -> Value {
        json!({
            "attr": "a", "attrPath": ["a"], "drvPath": DRV, "system": "x", "outputs": { "out": "/x" },
            "meta": { "description": "d", "timeout": 5, "buildkite": { "label": "l" }, "eval-once": { "push": "s3://b" } },
        })
    }

    /// The control of what follows.
    #[test]
    fn a_line_that_is_not_spoilt_is_a_target() {
        let evaluated = read(line().to_string().as_bytes(), &request(), true).unwrap();
        assert_eq!(evaluated.targets.len(), 1);
        assert_eq!(evaluated.targets[0].attr.to_string(), "p.a");
    }

    #[test]
    fn a_file_that_is_missing_in_a_store_path_may_be_the_collectors_doing_where_that_is_missing_too()
     {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0123456789abcdfghijklmnpqrsvwxyz-x");
        let error = format!("error: path '{}/a.nix' does not exist\n", path.display());
        let line = json!({ "attrPath": ["b"], "error": error }).to_string();
        let errors = |was_repeated| {
            read(line.as_bytes(), &request(), was_repeated).map(|it| it.errors.len())
        };
        assert_eq!(errors(false).unwrap_err().class, Class::Infrastructure);
        assert_eq!(errors(true).unwrap(), 1);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(errors(false).unwrap(), 1);
    }

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn lines_of_any_values_are_targets_or_errors(
            lines in proptest::collection::vec(prop_oneof![
                6 => spoilt(line()).prop_map(String::into_bytes),
                2 => spoilt(json!({ "attrPath": ["b"], "error": "error: no\n" })).prop_map(String::into_bytes),
                1 => bytes(),
            ], 1..4),
        ) {
            let printed = lines.join(&b'\n');
            match read(&printed, &request(), false) {
                Ok(evaluated) => {
                    let found = evaluated.targets.len() + evaluated.errors.len() + evaluated.refused.len();
                    let printed = printed.split(|byte| *byte == b'\n');
                    prop_assert_eq!(found, printed.filter(|line| !line.is_empty()).count());
                    for target in &evaluated.targets {
                        prop_assert_eq!(DrvPath::parse(&target.drv.to_string()), Ok(target.drv.clone()));
                    }
                }
                Err(failure) => {
                    prop_assert!(matches!(failure.class, Class::Evaluation | Class::Infrastructure), "{failure}");
                }
            }
        }
    }
}
