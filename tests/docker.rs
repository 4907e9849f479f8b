//! A recorded target whose command another plugin runs, in a container, as docker's does: `command: none`.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{Job, plugin_repository, plugin_with_hook, program},
    buildkite::{Build, JobState, Outcome},
    stand_in::write_program,
    store::Store,
    tool,
};

/// A command hook of the shape that docker's has: it builds an argument list from its configuration, and ends in `docker run`.
const DOCKER_PLUGIN: &str = r#"
set -euo pipefail
list() { # the values of a list in the plugin's configuration
  local i=0 name="$1_0"
  while [[ -n "${!name:-}" ]]; do printf '%s\n' "${!name}"; i=$((i + 1)); name="$1_$i"; done
}
args=(--rm --volume "$PWD:/workdir" --workdir /workdir)
while read -r volume; do args+=(--volume "$volume"); done < <(list BUILDKITE_PLUGIN_DOCKER_VOLUMES)
while read -r variable; do args+=(--env "$variable"); done < <(list BUILDKITE_PLUGIN_DOCKER_ENVIRONMENT)
args+=("${BUILDKITE_PLUGIN_DOCKER_IMAGE}")
if [[ -n "${BUILDKITE_COMMAND}" ]]; then
  args+=(/bin/sh -e -c "${BUILDKITE_COMMAND}")
else
  while read -r word; do args+=("$word"); done < <(list BUILDKITE_PLUGIN_DOCKER_COMMAND)
fi
echo "--- :docker: Running in ${BUILDKITE_PLUGIN_DOCKER_IMAGE}"
docker run "${args[@]}"
"#;

/// Stands in for `docker`: a container has the folders that are mounted and the variables that are passed, and nothing else. Its root is
/// this machine's, so the mounts are only looked at.
const DOCKER: &str = r#"#!/bin/bash
set -eu
[ "$1" = run ] && shift
passed=(PATH="$PATH") mounted=" "
while :; do
  case "$1" in
    --rm) shift ;;
    --volume) mounted+="$2 "; folder=${folder:-${2%%:*}}; shift 2 ;;
    --env) passed+=("$2=${!2-}"); shift 2 ;;
    --workdir) shift 2 ;;
    *) break ;;
  esac
done
case "$mounted" in
  *" $NIX_STORE_DIR:$NIX_STORE_DIR:ro "*) ;;
  *) echo "the store is not mounted:$mounted" >&2; exit 42 ;;
esac
shift # the image
cd "$folder"
exec env -i IN_A_CONTAINER=1 "${passed[@]}" "$@"
"#;

/// The configuration of the plugin that the guide has for docker, for this store.
fn configuration(store: &Store) -> Value {
    let folder = store.folder();
    json!({
        "image": "debian:12",
        "environment": ["EVAL_ONCE_OUT", "EVAL_ONCE_OUT_DOC"],
        "volumes": [format!("{0}:{0}:ro", folder.display())],
    })
}

const COMMAND: &str = r#"read x < result; read y < $EVAL_ONCE_OUT; read z < $EVAL_ONCE_OUT_DOC; echo "in=$IN_A_CONTAINER $x $y $z""#;

#[test]
fn a_recorded_targets_command_runs_in_a_container_and_finds_its_outputs() {
    let Some(store) = Store::new() else { return };
    if program().is_none() || tool("git").is_none() {
        return;
    }
    let repositories = TempDir::new().unwrap();
    let ours = plugin_repository(repositories.path());
    let docker = plugin_with_hook(repositories.path(), "docker", "command", DOCKER_PLUGIN);
    // Before a real one, which has no daemon.
    let tools = TempDir::new().unwrap();
    write_program(&tools.path().join("docker"), DOCKER);
    let path = std::env::split_paths(&store.path()).collect::<Vec<_>>();
    let path = std::env::join_paths([&[tools.path().to_owned()], &path[..]].concat()).unwrap();
    let plugins = serde_json::to_string(&json!([{ docker: configuration(&store) }])).unwrap();
    store.write("plugins.json", &plugins);
    store.write("command", COMMAND);
    store.targets(
        r#"let
          tested = drv: drv // { meta = {
            buildkite = {
              command = builtins.readFile ./command;
              plugins = builtins.fromJSON (builtins.readFile ./plugins.json);
            };
            eval-once.command = "none";
          }; };
        in {
          web = tested (buildAll [ "out" "doc" ] "web" "echo program > $out; echo manual > $doc");
          bad = tested (build "bad" "exit 1");
        }"#,
    );
    let Some(build) = Build::new(&json!({
        "key": "record",
        "plugins": [{ ours: { "pipeline": {} } }],
    })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE.into()), ("PATH", path)]);
    let outcome = build.run();
    let jobs = build.jobs();
    let job = |label: &str| {
        let mut named = jobs.iter();
        let found = named.find(|job| job.label.as_deref() == Some(label));
        found.unwrap_or_else(|| panic!("{}", build.job("record").plain()))
    };
    assert_eq!(outcome, Outcome::Failed);
    let web = job(":nix: web");
    assert_eq!(web.state, JobState::Passed, "{}", web.plain());
    assert!(
        web.plain().contains("\nin=1 program program manual\n"),
        "{}",
        web.plain()
    );
    let bad = job(":nix: bad");
    assert_eq!(bad.exit_status, Some(100), "{}", bad.plain());
    assert!(!bad.plain().contains(":docker:"), "{}", bad.plain());
}

/// Where the agent has no Job API, a hook that is no shell script cannot set variables for the hooks after it.
#[test]
fn without_the_job_api_the_outputs_are_found_by_the_links_alone() {
    let Some(store) = Store::new() else { return };
    let Some(mut job) = Job::new() else { return };
    let ours = plugin_repository(job.folder());
    let other = plugin_with_hook(
        job.folder(),
        "other",
        "command",
        "read x < result; echo \"> $x ${EVAL_ONCE_OUT-unset}\"\n",
    );
    job.set_all(store.env())
        .set("EVAL_ONCE_BIN", EVAL_ONCE)
        .set("BUILDKITE_AGENT_NO_JOB_API", "true")
        .plugins(&[
            (&ours, json!({ "attr": "a", "command": "none" })),
            (&other, json!({})),
        ]);
    store.targets("{ a = file \"a\"; }");
    fs::copy(
        store.work().join("default.nix"),
        job.checkout().join("default.nix"),
    )
    .unwrap();
    let ran = job.run();
    assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
    assert!(ran.plain().contains("\n> a unset\n"), "{}", ran.log);
    let warning = "warning: the hooks after this one do not have EVAL_ONCE_OUT: ";
    assert!(ran.plain().contains(warning), "{}", ran.log);
}
