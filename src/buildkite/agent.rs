//! The command lines of `buildkite-agent`, as a job runs it. Its token and endpoint are in the job's environment.
//!
//! Each of its flags can also be set by a variable, and users set the environment of a job. So every flag that would change
//! what is done here is given, even with its default (measured: the flag wins over the variable).

use std::ffi::OsString;
use std::path::Path;

use crate::command_line::{CommandLine, OutputLimit, Stdin};

/// How much the agent may print, in bytes: 100,000 keys of meta-data. Artifacts are written into files.
const PRINTED_AT_MOST: usize = 16 << 20;

fn agent(words: &[&str]) -> CommandLine {
    let mut line = CommandLine::new("buildkite-agent", words);
    line.output_limit = OutputLimit::Whole(PRINTED_AT_MOST);
    line
}

/// Uploads the pipeline in `file` as it is. Nothing is interpolated, and a value of the job's environment that happens to be in
/// it is no secret that leaks (agents from v4 on would refuse the upload; an empty list of variables means the same to all).
/// With `BUILDKITE_PIPELINE_UPLOAD_DRY_RUN` nothing would be uploaded, without an error; with `BUILDKITE_PIPELINE_REPLACE` each
/// upload would replace the steps of the one before.
#[must_use]
pub fn upload_pipeline(file: &Path) -> CommandLine {
    let mut line = agent(&[
        "pipeline",
        "upload",
        "--no-interpolation",
        "--redacted-vars=",
        "--replace=false",
        "--dry-run=false",
    ]);
    line.arguments.push(file.into());
    line
}

/// Prints the key of the step that has this key, in this build. Where Buildkite answers that there is none (404), the agent
/// ends at once (measured on v3.83.1: 57 ms); where it answers with another error, it asks ten times, five seconds apart.
#[must_use]
pub fn step_with_key(key: &str) -> CommandLine {
    agent(&["step", "get", "key", "--step", key])
}

/// The most bytes of a key that is asked for; Buildkite allows fewer.
const KEY_AT_MOST: usize = 1_000;

/// Whether a step may have this key, or a program this argument: what a build's meta-data and artifacts have may come from any of its
/// jobs.
#[must_use]
pub fn may_be_step_key(key: &str) -> bool {
    key.len() <= KEY_AT_MOST && !key.chars().any(char::is_control)
}

/// Prints the outcome of the step that has this key, in this build; an empty line where it has not ended.
///
/// It is the outcome of the last job that *ended*. For a step that is being retried that is the try before, so its
/// [state](step_state) is needed as well. `BUILDKITE_STEP_GET_FORMAT` would put quotes around the word.
#[must_use]
pub fn step_outcome(key: &str) -> CommandLine {
    agent(&["step", "get", "outcome", "--format=", "--step", key])
}

/// Prints the state of the step that has this key, in this build.
#[must_use]
pub fn step_state(key: &str) -> CommandLine {
    agent(&["step", "get", "state", "--format=", "--step", key])
}

/// Sets a value of the build's meta-data.
#[must_use]
pub fn set_meta_data(key: &str, value: &str) -> CommandLine {
    agent(&["meta-data", "set", key, value])
}

/// Prints a value of this build's meta-data; nothing where there is none. (`BUILDKITE_METADATA_BUILD_ID` names another build,
/// of which it is read then, but not set.)
#[must_use]
pub fn get_meta_data(key: &str) -> CommandLine {
    agent(&["meta-data", "get", key, "--default", "", "--build="])
}

/// Prints all keys of this build's meta-data, one on each line.
#[must_use]
pub fn meta_data_keys() -> CommandLine {
    agent(&["meta-data", "keys", "--build="])
}

/// Uploads the file `name` in `folder` as an artifact of that name.
#[must_use]
pub fn upload_artifact(folder: &Path, name: &str) -> CommandLine {
    let mut line = agent(&["artifact", "upload", name]);
    line.folder = Some(folder.to_owned());
    line
}

/// Downloads the artifact `name` of a job, also of one that was retried, into `folder`.
#[must_use]
pub fn download_artifact(name: &str, job: &str, folder: &Path) -> CommandLine {
    let mut line = agent(&["artifact", "download", name]);
    line.arguments.push(folder.join("").into());
    line.arguments
        .extend(["--step", job, "--include-retried-jobs"].map(Into::into));
    line
}

/// Prints the SHA-256 of each artifact `name` of this build, also of the jobs that were retried, and a semicolon behind each. (No
/// version takes a line break in a format as all others do: v3.83.1 prints `\n` as it is, v3.137.0 refuses the character itself.)
#[must_use]
pub fn sums_of_artifacts(name: &str) -> CommandLine {
    agent(&[
        "artifact",
        "search",
        name,
        "--format",
        "%T;",
        "--include-retried-jobs",
        "--allow-empty-results",
    ])
}

/// Prints `JOB SIZE SHA-256;` of each artifact that begins with `name`, of the job with this id, also where that was retried. The path
/// is not printed, because the job that uploads it chooses it.
#[must_use]
pub fn artifacts_of_job(name: &str, job: &str) -> CommandLine {
    agent(&[
        "artifact",
        "search",
        &every_upload_of(name),
        "--format",
        "%j %s %T;",
        "--include-retried-jobs",
        "--allow-empty-results",
        "--step",
        job,
    ])
}

/// The query that finds the artifact `name` of whatever jobs have uploaded it. A name that several have uploaded is refused (400,
/// "Multiple artifacts were found"), while of a pattern each is sent.
#[must_use]
pub fn every_upload_of(name: &str) -> String {
    format!("{name}*")
}

/// Downloads the artifacts of this build that `query` finds into `folder`, also those of jobs that were retried.
#[must_use]
pub fn download_from_build(query: &str, folder: &Path) -> CommandLine {
    let mut line = agent(&["artifact", "download", query]);
    line.arguments.push(folder.join("").into());
    line.arguments.push("--include-retried-jobs".into());
    line
}

/// Whether the agent has found no artifact to download, by what it prints (v3.83.1 begins with a capital); its status is the same for
/// every failure.
#[must_use]
pub fn found_no_artifact(message: &str) -> bool {
    message.to_ascii_lowercase().contains("no artifacts found")
}

/// Prints the SHA-256 of the artifact `name` of this build.
#[must_use]
pub fn artifact_sha256(name: &str) -> CommandLine {
    agent(&[
        "artifact",
        "shasum",
        "--sha256",
        name,
        "--include-retried-jobs",
    ])
}

/// Sets variables in the environment of the job, for the hooks and the command that come after.
#[must_use]
pub fn set_environment(variables: &[(&str, OsString)]) -> CommandLine {
    let mut line = agent(&["env", "set"]);
    for (name, value) in variables {
        let mut assignment = OsString::from(format!("{name}="));
        assignment.push(value);
        line.arguments.push(assignment);
    }
    line
}

/// Annotates the build with the Markdown in `body`: behind the annotation of the same `context`, or in its place.
#[must_use]
pub fn annotate(context: &str, style: &str, append: bool, body: &Path) -> CommandLine {
    let append = format!("--append={append}");
    let mut line = agent(&["annotate", "--context", context, "--style", style, &append]);
    // On standard input, because one argument can have at most 128 KiB.
    line.stdin = Stdin::File(body.to_owned());
    line
}

/// Prints the agent's version.
#[must_use]
pub fn version() -> CommandLine {
    agent(&["--version"])
}

/// The first version of the agent that knows steps without a checkout (`checkout: { skip: true }`, `BUILDKITE_SKIP_CHECKOUT`).
pub const SKIPS_CHECKOUTS: (u32, u32) = (3, 116);

/// The version in what the agent prints: `buildkite-agent version 3.137.0+x, build 1`.
#[must_use]
pub fn version_in(printed: &str) -> Option<&str> {
    let version = printed.split_whitespace().nth(2)?;
    version.split(['+', ',']).next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn flags_that_a_variable_of_the_job_could_set_are_given() {
        for (line, flags) in [
            (
                upload_pipeline(Path::new("p.json")),
                &[
                    "--no-interpolation",
                    "--redacted-vars=",
                    "--replace=false",
                    "--dry-run=false",
                ][..],
            ),
            (step_outcome("a"), &["--format="]),
            (step_state("a"), &["--format="]),
            (get_meta_data("a"), &["--build="]),
            (meta_data_keys(), &["--build="]),
            (
                annotate("c", "info", false, Path::new("b.md")),
                &["--append=false"],
            ),
            (
                annotate("c", "info", true, Path::new("b.md")),
                &["--append=true"],
            ),
            (
                download_artifact("a", "job", Path::new("/f")),
                &["--include-retried-jobs"],
            ),
            (sums_of_artifacts("a"), &["--include-retried-jobs"]),
            (artifacts_of_job("a", "k"), &["--include-retried-jobs"]),
        ] {
            let words = line.words();
            for flag in flags {
                assert!(words.iter().any(|word| word == flag), "{flag} of {line}");
            }
        }
    }

    #[test]
    fn the_version_is_the_third_word() {
        for (printed, version) in [
            (
                "buildkite-agent version 3.83.1, build 8723\n",
                Some("3.83.1"),
            ),
            (
                "buildkite-agent version 4.0.0-beta.15+x.7ad8.dirty\n",
                Some("4.0.0-beta.15"),
            ),
            ("", None),
        ] {
            assert_eq!(version_in(printed), version);
        }
    }

    #[test]
    fn missing_meta_data_has_an_empty_value() {
        assert_eq!(
            get_meta_data("eval-once:a").to_string(),
            "buildkite-agent meta-data get eval-once:a --default '' --build="
        );
    }

    #[test]
    fn a_key_that_no_program_takes_is_no_steps() {
        for key in ["", "nix-a", "--help", "0190-ab", "a:b_c"] {
            assert!(may_be_step_key(key), "{key}");
        }
        for key in ["a\0b", "a\nb", &"k".repeat(200_000)] {
            assert!(!may_be_step_key(key), "{key:?}");
        }
    }

    #[test]
    fn an_artifact_is_uploaded_from_its_folder_and_downloaded_into_one() {
        let folder = Path::new("/folder");
        let upload = upload_artifact(folder, "log/a.txt");
        assert_eq!(
            upload.to_string(),
            "buildkite-agent artifact upload log/a.txt"
        );
        assert_eq!(upload.folder.as_deref(), Some(folder));
        // The slash says that it is a folder.
        assert_eq!(
            download_artifact("plan.json", "job", folder).to_string(),
            "buildkite-agent artifact download plan.json /folder/ --step job --include-retried-jobs"
        );
    }

    #[test]
    fn the_text_of_an_annotation_is_no_argument() {
        let line = annotate("context", "error", false, Path::new("/body.md"));
        assert_eq!(
            line.to_string(),
            "buildkite-agent annotate --context context --style error --append=false </body.md"
        );
    }

    #[test]
    fn a_variable_may_hold_any_bytes() {
        let value = OsString::from_vec(b"a=\xff b".to_vec());
        let line = set_environment(&[("A", value), ("B", OsString::new())]);
        let assignments = [b"A=a=\xff b".to_vec(), b"B=".to_vec()].map(OsString::from_vec);
        assert_eq!(line.arguments[2..], assignments);
    }
}
