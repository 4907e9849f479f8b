//! A recording in a build: it runs as a job of a real agent, uploads its chunks to the server that plays Buildkite, and
//! agents run every step of them to the end. Where the job dies, it is retried as the guide has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::Path,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{commit, other_plugin, plugin_repository, program},
    buildkite::{Build, Fault, Job, JobState, Outcome},
    recording::Pipeline,
    stand_in::write_program,
    store::Store,
    target::expression,
    tool,
};

/// A build whose first step, `record`, records what is in the store's working folder.
struct Scene {
    store: Store,
    build: Build,
    /// What the plugin is cloned from.
    _repositories: TempDir,
}

/// The retry rules of the recording's step, as in the guide.
fn retry() -> Value {
    json!({ "automatic": [
        { "exit_status": 75, "limit": 2 },
        { "exit_status": -1, "signal_reason": "none", "limit": 2 },
    ] })
}

/// The step of a recording through the plugin.
fn recording(key: &str, plugin: &str, keys: &Value) -> Value {
    json!({
        "key": key,
        "label": format!("Record: {key}"),
        "plugins": [{ plugin: { "pipeline": keys } }],
        "retry": retry(),
    })
}

/// A store for agents that can have plugins.
fn store() -> Option<Store> {
    tool("git")?;
    program()?;
    Store::new()
}

/// The recording as our plugin, with these keys.
fn plugin_scene(store: Store, keys: &Value) -> Option<Scene> {
    plugin_scene_with(store, keys, |_| ())
}

/// As [`plugin_scene`], with a change to its step.
fn plugin_scene_with(store: Store, keys: &Value, change: impl Fn(&mut Value)) -> Option<Scene> {
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let mut step = recording("record", &plugin, keys);
    change(&mut step);
    let build = Build::new(&step)?
        .checkout(store.work())
        .envs(store.env())
        .envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
    Some(Scene {
        store,
        build,
        _repositories: repositories,
    })
}

/// The recording as a command of the job, run by `program` with these flags.
fn command_scene(store: Store, program: &str, flags: &str) -> Option<Scene> {
    let build = Build::new(&json!({
        "key": "record",
        "label": "Record",
        "command": format!("{program} pipeline {flags}"),
        "retry": retry(),
    }))?
    .checkout(store.work())
    .envs(store.env());
    Some(Scene {
        store,
        build,
        _repositories: TempDir::new().unwrap(),
    })
}

impl Scene {
    /// `eval-once.json` of the recording that uploaded it last.
    #[track_caller]
    fn document(&self) -> Value {
        self.artifact("eval-once.json")
    }

    #[track_caller]
    fn artifact(&self, path: &str) -> Value {
        let artifacts = self.build.artifacts();
        let content = artifacts.get(path).unwrap_or_else(|| {
            panic!(
                "no `{path}`, but {:?}: {}",
                artifacts.keys(),
                self.build.job("record").plain()
            )
        });
        serde_json::from_slice(content).unwrap()
    }

    /// The keys of the targets' steps by attribute, its names joined by dots.
    #[track_caller]
    fn keys(&self) -> BTreeMap<String, String> {
        let document = self.document();
        let targets = document["targets"].as_array().unwrap().iter();
        targets
            .map(|target| (dotted(&target["attr"]), text(&target["key"])))
            .collect()
    }

    /// The last job of an attribute's step.
    #[track_caller]
    fn job_of(&self, attr: &str) -> Job {
        self.build.job(&self.keys()[attr])
    }

    /// The jobs of the steps of evaluation errors.
    fn error_jobs(&self) -> Vec<Job> {
        let mut jobs = self.build.jobs();
        jobs.retain(|job| job.key.as_deref().is_some_and(|it| it.starts_with("attr-")));
        jobs
    }

    /// All steps that were applied, those in groups too.
    fn uploaded(&self) -> Vec<Value> {
        self.uploads().iter().flat_map(steps_of).collect()
    }

    /// The pipelines that were applied, without what old agents add: an empty command to a step that has plugins only.
    fn uploads(&self) -> Vec<Value> {
        fn clean(pipeline: &mut Value) {
            for step in pipeline["steps"].as_array_mut().unwrap() {
                if step.get("steps").is_some() {
                    clean(step);
                } else if step["command"] == "" {
                    step.as_object_mut().unwrap().remove("command");
                }
            }
        }
        let mut uploads = self.build.uploads();
        uploads.iter_mut().for_each(clean);
        uploads
    }

    /// The step that was uploaded for an attribute.
    #[track_caller]
    fn step_of(&self, attr: &str) -> Value {
        let key = self.keys()[attr].clone();
        let mut steps = self.uploaded();
        steps.retain(|step| step["key"] == *key);
        assert_eq!(steps.len(), 1, "{attr}: {steps:?}");
        steps.remove(0)
    }

    /// The recording's marks: the chunks' numbers.
    fn marks(&self) -> BTreeSet<usize> {
        let prefix = format!("eval-once:{}:", self.build.job("record").step_id);
        let names = self.build.meta_data().into_keys();
        let numbers = names.filter_map(|name| name.strip_prefix(&prefix)?.parse().ok());
        numbers.collect()
    }

    /// Nothing was uploaded twice, and all of the plan in its order. Returns the number of chunks.
    #[track_caller]
    fn follows_its_plan(&self) -> usize {
        let plan = self.artifact("eval-once-plan.json");
        let chunks = plan["chunks"].as_array().unwrap().iter();
        let planned: Vec<Value> = chunks
            .map(|chunk| serde_json::from_str(chunk["pipeline"].as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(self.uploads(), planned);
        self.uploads_each_key_once();
        assert_eq!(
            self.marks().len(),
            planned.len(),
            "{:?}",
            self.build.meta_data()
        );
        planned.len()
    }

    #[track_caller]
    fn uploads_each_key_once(&self) {
        let mut seen = BTreeSet::new();
        for step in self.uploaded() {
            let key = text(&step["key"]);
            assert!(seen.insert(key.clone()), "{key} was uploaded twice");
        }
    }

    /// That the recording's last job went well.
    #[track_caller]
    fn recorded(&self) {
        let job = self.build.job("record");
        assert_eq!(job.state, JobState::Passed, "{}", job.plain());
    }

    /// The ways of all targets' steps that ran, with their reasons.
    #[track_caller]
    fn ways(&self) -> BTreeMap<String, String> {
        let keys = self.keys().into_iter();
        keys.map(|(attr, key)| (attr, self.build.job(&key).way()))
            .collect()
    }

    #[track_caller]
    fn all_went(&self, expected: &str) {
        for (attr, way) in self.ways() {
            assert_eq!(way, expected, "{attr}: {}", self.job_of(&attr).plain());
        }
    }

    /// That each target's step ended behind those that it waits for.
    #[track_caller]
    fn ran_in_order(&self) {
        let finished = self.build.finished();
        let place = |key: &str| finished.iter().position(|it| it == key);
        for step in self.uploaded() {
            let key = text(&step["key"]);
            for dependency in depends_on(&step) {
                assert!(
                    place(&dependency) < place(&key),
                    "{dependency}, {key}: {finished:?}"
                );
            }
        }
    }
}

fn steps_of(pipeline: &Value) -> Vec<Value> {
    let steps = pipeline["steps"].as_array().unwrap().iter();
    steps
        .flat_map(|step| match step.get("steps") {
            Some(_) => steps_of(step),
            None => vec![step.clone()],
        })
        .collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn dotted(attr: &Value) -> String {
    let names: Vec<String> = attr.as_array().unwrap().iter().map(text).collect();
    names.join(".")
}

fn depends_on(step: &Value) -> Vec<String> {
    let keys = step.get("depends_on").and_then(Value::as_array);
    keys.into_iter().flatten().map(text).collect()
}

/// What a reader sees of HTML whose characters are written as their numbers.
fn shown(html: &str) -> String {
    let mut parts = html.split("&#");
    let mut shown = parts.next().unwrap().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(';').unwrap();
        shown.push(char::from_u32(number.parse().unwrap()).unwrap());
        shown.push_str(rest);
    }
    shown
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// A store whose working folder is the example that looks like a real repository.
fn store_with_example() -> Option<Store> {
    let store = store()?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/repository");
    copy(&example, &store.work());
    Some(store)
}

/// The message of the example's evaluation error.
const BROKEN: &str = "greet 1.0 needs Python 2, which is gone";

/// The example's recording in chunks of two, and all of its steps.
#[track_caller]
fn the_example_is_built(scene: &Scene) {
    assert_eq!(
        scene.build.run(),
        Outcome::Failed,
        "something in it is broken"
    );
    scene.recorded();
    let keys = scene.keys();
    assert_eq!(
        keys.keys().collect::<Vec<_>>(),
        [
            "checks.fuzz.0",
            "checks.fuzz.1",
            "checks.greets",
            "checks.manual-is-complete",
            "hosts.build",
            "hosts.web",
            "packages.default",
            "packages.greetd",
            "packages.libgreet",
            "packages.manual",
        ]
    );
    assert_eq!(scene.follows_its_plan(), 6);
    assert_eq!(scene.build.rejections(), [""; 0]);
    scene.all_went("realised (drv-valid)");
    scene.ran_in_order();
    for attr in keys.keys() {
        let job = scene.job_of(attr);
        assert_eq!(job.state, JobState::Passed, "{attr}: {}", job.plain());
    }

    let waits = |attr: &str| depends_on(&scene.step_of(attr));
    let key = |attr: &str| keys[attr].clone();
    assert_eq!(waits("packages.libgreet"), [""; 0]);
    assert_eq!(waits("packages.default"), [key("packages.libgreet")]);
    assert_eq!(waits("packages.manual"), [key("packages.default")]);
    // It needs `greet` too, and has it by way of the manual.
    assert_eq!(waits("checks.manual-is-complete"), [key("packages.manual")]);
    let hosts: BTreeSet<String> = waits("hosts.web").into_iter().collect();
    let services = [key("packages.default"), key("packages.greetd")];
    assert_eq!(hosts, services.into_iter().collect());
    let check = scene.step_of("checks.manual-is-complete");
    assert_eq!(check["soft_fail"], true);
    assert_eq!(check["timeout_in_minutes"], 10);

    let broken = scene.error_jobs();
    assert_eq!(broken.len(), 1);
    assert_eq!(
        (broken[0].state, broken[0].exit_status),
        (JobState::Failed, Some(65)),
        "{}",
        broken[0].plain()
    );
    assert!(broken[0].plain().contains(BROKEN), "{}", broken[0].plain());

    let annotations = scene.build.annotations();
    let bodies: Vec<String> = annotations.values().map(|it| shown(&it.body)).collect();
    let bodies = bodies.join("\n");
    for part in [
        "10 targets (10 to build), 1 evaluation error.",
        "packages.legacy",
        BROKEN,
    ] {
        assert!(bodies.contains(part), "{part} in {bodies}");
    }
}

#[test]
fn a_recording_through_the_plugin_is_uploaded_and_every_step_of_it_runs() {
    let Some(store) = store_with_example() else {
        return;
    };
    let Some(scene) = plugin_scene(store, &json!({ "file": "ci.nix", "chunk": 2 })) else {
        return;
    };
    the_example_is_built(&scene);
    for step in scene.uploaded() {
        assert!(step.get("command").is_none(), "{step}");
        assert!(step["plugins"][0].is_object(), "{step}");
    }

    let document = scene.document();
    for field in [
        "version", "nix", "source", "pin", "targets", "errors", "seconds",
    ] {
        assert!(document.get(field).is_some(), "{field} in {document:#}");
    }
    assert_eq!(document["version"], 1);
    assert_eq!(document["source"]["file"], "ci.nix");
    assert!(scene.store.has(document["pin"].as_str().unwrap()));
    let errors = document["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0]["attr"], json!(["packages", "legacy"]));
    assert!(errors[0]["message"].as_str().unwrap().contains(BROKEN));
    let targets = document["targets"].as_array().unwrap();
    let greet = targets.iter().find(|it| it["name"] == "greet-2.0").unwrap();
    assert_eq!(greet["also"], json!([["packages", "greet"]]));
    assert!(scene.store.has(greet["drv"].as_str().unwrap()));
    assert!(scene.store.has(greet["outputs"]["out"].as_str().unwrap()));
    for field in [
        "attr",
        "system",
        "features",
        "key",
        "depends_on",
        "skip",
        "meta",
    ] {
        assert!(greet.get(field).is_some(), "{field} in {greet:#}");
    }
}

/// That each step is a command that carries its record.
#[track_caller]
fn steps_are_commands(scene: &Scene) {
    for step in scene.uploaded() {
        assert_eq!(step["command"], "eval-once step", "{step}");
        assert!(step["env"]["EVAL_ONCE_STEP"].is_string(), "{step}");
        assert!(step.get("plugins").is_none(), "{step}");
    }
}

#[test]
fn steps_that_are_commands_run_where_agents_have_our_hook() {
    let Some(store) = store_with_example() else {
        return;
    };
    // The program is on no PATH.
    let flags = "--file ci.nix --chunk 2";
    let Some(mut scene) = command_scene(store, EVAL_ONCE, flags) else {
        return;
    };
    scene.build = scene.build.our_hook("command");
    the_example_is_built(&scene);
    steps_are_commands(&scene);
}

#[test]
fn steps_that_are_commands_run_where_agents_have_the_program_only() {
    let Some(store) = store_with_example() else {
        return;
    };
    let link = store.bin().join("eval-once");
    symlink(EVAL_ONCE, link).unwrap();
    let mut path = store.bin().into_os_string();
    path.push(":");
    path.push(store.path());
    let flags = "--file ci.nix --chunk 2";
    let Some(mut scene) = command_scene(store, "eval-once", flags) else {
        return;
    };
    // With a terminal, as agents give it to their jobs by default.
    scene.build = scene.build.envs([("PATH", path)]).terminal(true);
    the_example_is_built(&scene);
    steps_are_commands(&scene);
}

/// Four targets: `d` needs `c`, `c` needs `b`.
const CHAIN: &str = r#"rec {
  a = file "a";
  b = file "b";
  c = build "c" "read x < ${b}; echo $x c > $out";
  d = build "d" "read x < ${c}; echo $x d > $out";
}"#;

/// A recording of four targets, one in each chunk, in which something befalls the upload of the second.
fn killed(fault: Fault) -> Option<Scene> {
    let store = store()?;
    store.targets(CHAIN);
    let scene = plugin_scene(store, &json!({ "chunk": 1 }))?;
    scene.build.on_upload(2, fault);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    let record = scene.build.job("record");
    assert_eq!(record.retry_count, 1, "{}", record.plain());
    assert_eq!(scene.follows_its_plan(), 4);
    assert_eq!(scene.keys().len(), 4);
    scene.ran_in_order();
    Some(scene)
}

#[test]
fn a_recording_killed_before_a_chunk_was_applied_uploads_it_when_it_is_retried() {
    let Some(scene) = killed(Fault::KillBefore) else {
        return;
    };
    assert_eq!(scene.build.rejections(), [""; 0]);
}

#[test]
fn a_recording_killed_between_a_chunk_and_its_mark_goes_on_with_the_next_chunk() {
    let Some(scene) = killed(Fault::KillAfter) else {
        return;
    };
    let rejections = scene.build.rejections();
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    assert!(rejections[0].contains("has already been used"));
}

#[test]
fn a_chunk_that_is_applied_after_its_recording_was_killed_is_not_uploaded_again() {
    let Some(scene) = killed(Fault::KillAndApplyLate) else {
        return;
    };
    let rejections = scene.build.rejections();
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    assert!(rejections[0].contains("has already been used"));
}

#[test]
fn a_retried_recording_follows_the_plan_of_its_first_try() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let keys = json!({ "chunk": 1, "skip-style": "omit" });
    let Some(mut scene) = plugin_scene(store, &keys) else {
        return;
    };
    // Between the two tries everything is built, and so would need no step.
    scene.build = scene.build.shell_hook(
        "pre-command",
        "[ \"$BUILDKITE_STEP_KEY.$BUILDKITE_RETRY_COUNT\" != record.1 ] || nix-build --no-out-link\n",
    );
    scene.build.on_upload(2, Fault::KillAfter);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    assert_eq!(scene.build.job("record").retry_count, 1);
    assert_eq!(scene.follows_its_plan(), 4);
    for step in scene.uploaded() {
        assert!(step.get("skip").is_none(), "{step}");
    }
}

/// A build in which `one` and `two` record the set of that name, at once or one after the other; both sets have `common`.
fn two_recordings(in_order: bool, keys: &Value) -> Option<Scene> {
    let store = store()?;
    store.targets(
        r#"let
          common = file "common";
          set = name: { inherit common; only = build name "read x < ${common}; echo $x > $out"; };
        in { one = set "one"; two = set "two"; }"#,
    );
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let of = |key: &str| {
        let mut keys = keys.clone();
        keys["attr"] = json!([key]);
        recording(key, &plugin, &keys)
    };
    let mut steps = [of("one"), of("two")];
    if in_order {
        steps[1]["depends_on"] = "one".into();
    }
    store.write("pipeline.json", &json!({ "steps": steps }).to_string());
    let build = Build::new(&json!({
        "key": "upload",
        "command": "buildkite-agent pipeline upload --no-interpolation pipeline.json",
    }))?
    .checkout(store.work())
    .envs(store.env())
    .envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
    Some(Scene {
        store,
        build,
        _repositories: repositories,
    })
}

#[test]
fn two_recordings_in_one_build_share_the_steps_of_common_targets() {
    let Some(scene) = two_recordings(false, &json!({ "skip": "none" })) else {
        return;
    };
    let outcome = scene.build.run();
    for key in ["one", "two"] {
        let job = scene.build.job(key);
        assert_eq!(job.state, JobState::Passed, "{}", job.plain());
    }
    assert_eq!(outcome, Outcome::Passed);
    // The second one was refused, and uploaded what was not there yet.
    let rejections = scene.build.rejections();
    assert_eq!(rejections.len(), 1, "{rejections:?}");
    assert!(rejections[0].contains("has already been used"));
    scene.uploads_each_key_once();
    assert_eq!(scene.build.jobs().len(), 1 + 2 + 3);
    scene.ran_in_order();
}

#[test]
fn two_recordings_whose_keys_may_be_the_same_are_refused_unless_their_prefixes_differ() {
    let keys = json!({ "skip": "none", "keys": "attr" });
    let Some(apart) = two_recordings(true, &keys) else {
        return;
    };
    assert_eq!(apart.build.run(), Outcome::Passed, "two sets");
    let Some(store) = store() else {
        return;
    };
    store.targets(r#"{ n }: { a = file "a${n}"; b = file "b${n}"; }"#);
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    let of = |key: &str, prefix: Option<&str>| {
        let mut keys = json!({ "skip": "none", "keys": "attr", "argstr": { "n": key } });
        keys["key-prefix"] = prefix.unwrap_or("nix-").into();
        let mut step = recording(key, &plugin, &keys);
        step["depends_on"] = json!([]);
        step
    };
    let mut steps = [
        of("one", None),
        of("two", None),
        of("three", Some("three-")),
        // The same source: what differs is in the environment, which no key of a recording shows.
        of("one", None),
    ];
    steps[3]["key"] = "again".into();
    steps[1]["depends_on"] = json!(["one"]);
    steps[3]["depends_on"] = json!([{ "step": "two", "allow_failure": true }]);
    store.write("pipeline.json", &json!({ "steps": steps }).to_string());
    let build = Build::new(&json!({
        "key": "upload",
        "command": "buildkite-agent pipeline upload --no-interpolation pipeline.json",
    }));
    let build = build.unwrap().checkout(store.work()).envs(store.env());
    let build = build.envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
    assert_eq!(build.run(), Outcome::Failed);
    let first = build.job("one").id;
    let said = format!("nothing is uploaded: the recording of job {first} has `keys: attr` too");
    for key in ["two", "again"] {
        let log = build.job(key).plain();
        assert_eq!(build.job(key).exit_status, Some(64), "{log}");
        assert!(log.contains(&said), "{log}");
    }
    for key in ["nix-a", "nix-b", "three-a", "three-b"] {
        assert_eq!(build.job(key).state, JobState::Passed, "{key}");
    }
}

/// A recording after whose job this is run, before any of its steps is.
fn and_then(script: &str, keys: &Value) -> Option<Scene> {
    let store = store()?;
    store.targets(CHAIN);
    let mut scene = plugin_scene(store, keys)?;
    let hook = format!("if [ \"$BUILDKITE_STEP_KEY\" = record ]; then\n{script}\nfi\n");
    // With one agent no step can begin as long as the recording's job runs.
    scene.build = scene.build.agents(1).shell_hook("post-command", &hook);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    Some(scene)
}

#[test]
fn pinned_drvs_outlive_the_garbage_collector() {
    let Some(scene) = and_then("nix-store --gc", &json!({})) else {
        return;
    };
    scene.all_went("realised (drv-valid)");
}

#[test]
fn drvs_collected_without_their_pin_are_fetched_or_evaluated_again() {
    let script = "rm -r \"$EVAL_ONCE_STATE_DIR/pins\"\nnix-store --gc";
    for (keys, way) in [
        (json!({}), "fetched (fetched-from-share)"),
        (json!({ "share": false }), "evaluated (drv-missing)"),
    ] {
        let Some(scene) = and_then(script, &keys) else {
            return;
        };
        scene.all_went(way);
    }
}

#[test]
fn the_failure_of_a_rejected_chunk_names_the_step() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let drv = store.instantiate("default.nix", "d");
    let hash = &Path::new(&drv).file_name().unwrap().to_str().unwrap()[..32];
    let message = format!("The step with the key \"drv-{hash}\" is not to our liking");
    let Some(scene) = plugin_scene(store, &json!({})) else {
        return;
    };
    scene.build.on_upload(1, Fault::Reject(message.clone()));
    assert_eq!(scene.build.run(), Outcome::Failed);
    let job = scene.build.job("record");
    let log = job.plain();
    assert_eq!(job.state, JobState::Failed, "{log}");
    assert_eq!(job.retry_count, 0, "retrying would not help: {log}");
    assert!(log.contains(&message), "{log}");
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("eval-once: "))
        .collect();
    let about = errors.iter().any(|line| line.contains(":nix: d"));
    assert!(about, "{log}");
    assert_eq!(job.exit_status, Some(64), "{log}");
    let plan = scene.artifact("eval-once-plan.json");
    let mut planned: Vec<Value> = plan["chunks"][0]["keys"].as_array().unwrap().clone();
    assert_eq!(planned.len(), 4);
    // One attribute never takes another with it.
    planned.retain(|key| *key != format!("drv-{hash}"));
    let uploaded: Vec<Value> = scene
        .uploaded()
        .iter()
        .map(|step| step["key"].clone())
        .collect();
    assert_eq!(uploaded, planned);
    assert_eq!(scene.marks().len(), 1);
    // A retry tries that one again.
    scene.build.retry(&job.id);
    scene.build.run();
    let job = scene.build.job("record");
    assert_eq!(job.exit_status, Some(0), "{}", job.plain());
    assert_eq!(scene.uploaded().len(), 4);
}

#[test]
fn where_a_rejection_names_no_step_nothing_of_its_chunk_is_uploaded() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let Some(scene) = plugin_scene(store, &json!({})) else {
        return;
    };
    let message = "Something is not to our liking";
    scene.build.on_upload(1, Fault::Reject(message.to_owned()));
    assert_eq!(scene.build.run(), Outcome::Failed);
    let log = scene.build.job("record").plain();
    assert!(log.contains("because of one of the steps"), "{log}");
    assert_eq!(scene.build.uploads(), [Value::Null; 0]);
    assert_eq!(scene.marks().len(), 0);
}

#[test]
fn more_steps_than_a_build_can_have_are_refused_before_anything_is_uploaded() {
    let Some(store) = store() else { return };
    store.targets(TOO_MANY);
    let keys = json!({ "skip": "none", "share": "artifact", "summary": true });
    let Some(scene) = plugin_scene(store, &keys) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    let job = scene.build.job("record");
    assert_eq!(job.exit_status, Some(64), "{}", job.plain());
    let printed = job.plain();
    for part in [
        "jobs by attribute: broken 2500, old 2499, good 1\n",
        "nothing is uploaded: the pipeline has 5001 jobs, and a build can have 4000",
        "add `broken` to `exclude`, which leaves 2501 jobs; ",
        "`attr: broken` (2501 jobs)\n",
    ] {
        assert!(
            printed.replace('\r', "").contains(part),
            "{part}: {printed}"
        );
    }
    assert_eq!(scene.build.uploads(), [Value::Null; 0]);
    // Neither a plan nor an archive, but what it has found.
    let artifacts = scene.build.artifacts();
    assert_eq!(artifacts.keys().collect::<Vec<_>>(), ["eval-once.json"]);
    let document = scene.document();
    assert_eq!(document["counts"]["evaluation_errors"], 4_999);
    assert_eq!(document["targets"][0]["attr"], json!(["good", "a"]));
    let annotations = scene.build.annotations();
    assert_eq!(annotations.len(), 1);
    let annotation = annotations.values().next().unwrap();
    assert_eq!(annotation.style, "error");
    let body = shown(&annotation.body);
    for part in [
        "**Nothing is uploaded:** the pipeline has 5001 jobs",
        "Hint: add `broken` to `exclude`, which leaves 2501 jobs;",
        "| <code>old</code> | 2499 |",
        "4999 evaluation errors:",
    ] {
        assert!(body.contains(part), "{part}: {body}");
    }
}

#[test]
fn a_message_is_whole_in_everything_that_has_the_room() {
    let Some(store) = store() else { return };
    // More than a log's line, the old limits of an annotation (2,000 characters) and of a line of Nix's (4 KiB).
    store.targets(
        r#"let lines = builtins.concatStringsSep "\n" (builtins.genList (i: "error: line ${toString i}, at /x:1:1:") 300); in {
          good = file "good";
          long = throw "the first line\n${lines}\n… while the last line";
          aborted = abort "a\n\nerror: b";
        }"#,
    );
    let Some(scene) = plugin_scene(store, &json!({ "summary": true })) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    let lines = (0..300).map(|i| format!("error: line {i}, at /x:1:1:\n"));
    let lines: String = lines.collect();
    let message = format!("the first line\n{lines}… while the last line");
    let document = scene.document();
    let errors = document["errors"].as_array().unwrap();
    let abort = "evaluation aborted with the following error message: 'a\n\nerror: b'";
    assert_eq!(errors[0]["message"], abort);
    assert_eq!(errors[1]["message"], message);

    let printed = scene.build.job("record").plain().replace('\r', "");
    let begin = "eval-once: evaluation error: long: the first line error: line 0, at /x:1:1: error: line 1, ";
    let line = printed
        .lines()
        .find(|line| line.starts_with(begin))
        .unwrap();
    assert!(line.ends_with('…'), "{line}");

    let annotations = scene.build.annotations();
    let bodies = annotations
        .iter()
        .map(|(context, it)| (context.as_str(), shown(&it.body)));
    let bodies: BTreeMap<&str, String> = bodies.collect();
    for (context, body) in &bodies {
        match *context {
            "eval-once-failures" => assert!(body.contains("error: line 100, at /x:1:1:"), "{body}"),
            "eval-once-summary" => assert!(
                body.contains("**evaluation error**: the first line error: line 0,"),
                "{body}"
            ),
            _ => assert!(body.contains(&format!("<pre>{message}</pre>")), "{body}"),
        }
    }
    assert_eq!(bodies.len(), 3, "{:?}", bodies.keys());

    let junit = scene
        .build
        .artifacts()
        .remove("eval-once-junit.xml")
        .unwrap();
    let junit = String::from_utf8(junit).unwrap();
    assert!(junit.contains(&format!(">{message}</error>")), "{junit}");
    let job = scene
        .error_jobs()
        .into_iter()
        .find(|it| it.plain().contains("evaluating long of default.nix"));
    let log = job.unwrap().plain().replace('\r', "");
    let last = format!("eval-once: error: long of default.nix does not evaluate: {message}\n");
    assert!(log.contains(&last), "{log}");
}

/// More jobs than a build can have. Most of them are evaluation errors, which have steps too, and need no file.
const TOO_MANY: &str = r#"
  let set = count: { recurseForDerivations = true; } // builtins.listToAttrs
    (builtins.genList (i: { name = "t${toString i}"; value = throw "broken"; }) count);
  in {
    broken = set 2500;
    old = set 2499;
    good = { recurseForDerivations = true; a = file "a"; };
  }"#;

#[test]
fn by_hand_more_steps_than_a_build_can_have_are_printed_and_what_is_suggested_makes_them_fit() {
    let Some(store) = store() else { return };
    store.targets(TOO_MANY);
    let recorded = |flags: &[&str]| {
        let line = ["pipeline", "--dry-run", "--skip", "none"];
        let ended = store.eval_once(line).args(flags).run();
        let steps = Pipeline::of(&ended).list().len();
        (steps, ended)
    };
    let (steps, ended) = recorded(&[]);
    assert_eq!(steps, 5_000);
    for part in [
        "eval-once: jobs by attribute: broken 2500, old 2499, good 1\n",
        "eval-once: warning: an upload would be refused: the pipeline has 5000 jobs, and a build can have 4000, ",
        "eval-once: hint: add `broken` to `exclude`, which leaves 2500 jobs; ",
        "`attr: broken` (2500 jobs)\n",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {ended}");
    }
    for flags in [["--exclude", "broken"], ["--attr", "broken"]] {
        let (steps, ended) = recorded(&flags);
        assert_eq!(steps, 2_500);
        assert!(!ended.stderr.contains("refused"), "{ended}");
    }
}

#[test]
fn the_wishes_of_a_target_count_and_one_that_buildkite_rejects_refuses_that_target_alone() {
    let Some(store) = store() else { return };
    store.targets(
        r#"let with_ = buildkite: drv: drv // { meta = { inherit buildkite; }; }; in {
          soft = with_ { soft_fail = true; agents.size = "big"; } (build "soft" "exit 1");
          labelled = with_ { label = "By another name"; env.COLOUR = "blue"; } (file "labelled");
          wrong = with_ { colour = "blue"; } (file "wrong");
          path = with_ { label = ./default.nix; } (file "path");
          plain = file "plain";
        }"#,
    );
    let keys = json!({ "step": { "env": { "SHAPE": "round" }, "priority": 1 } });
    let Some(mut scene) = plugin_scene(store, &keys) else {
        return;
    };
    scene.build = scene.build.agents(1).agent_with_tags(&["size=big"]);
    assert_eq!(scene.build.run(), Outcome::Failed);
    scene.recorded();
    assert_eq!(scene.build.rejections(), [""; 0]);

    let soft = scene.job_of("soft");
    assert_eq!(soft.state, JobState::SoftFailed, "{}", soft.plain());
    assert_eq!(soft.exit_status, Some(100));
    assert_eq!(soft.agent.as_deref(), Some("agent-2"));
    let labelled = scene.job_of("labelled");
    assert_eq!(labelled.state, JobState::Passed, "{}", labelled.plain());
    assert_eq!(labelled.label.as_deref(), Some("By another name"));
    let step = scene.step_of("labelled");
    assert_eq!(step["env"], json!({ "COLOUR": "blue", "SHAPE": "round" }));
    assert_eq!(step["priority"], 1);
    assert_eq!(scene.job_of("plain").state, JobState::Passed);

    let mut errors = scene.error_jobs();
    errors.sort_by_key(|job| job.label.clone());
    assert_eq!(errors.len(), 2);
    for (job, attr, reason) in [
        (&errors[0], "path", "path"),
        (&errors[1], "wrong", "colour"),
    ] {
        assert_eq!(job.state, JobState::Failed);
        assert_eq!(job.exit_status, Some(64), "{}", job.plain());
        assert!(job.label.as_ref().unwrap().contains(attr));
        assert!(job.plain().contains(reason), "{}", job.plain());
    }
    let document = scene.document();
    let mut errors: Vec<String> = document["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| dotted(&error["attr"]))
        .collect();
    errors.sort();
    assert_eq!(errors, ["path", "wrong"]);
}

#[test]
fn attributes_with_one_drv_have_the_wishes_of_those_that_wish_something() {
    let (Some(_), Some(store)) = (program(), Store::new()) else {
        return;
    };
    store.targets(
        r#"let app = file "app"; e = file "e"; f = file "f"; in {
          app = app;
          tested = app // { meta.buildkite.command = "exit 9"; };
          skipped = e // { meta.buildkite.skip = "not on Sundays"; };
          wanted = e;
          one = f // { meta.buildkite.command = "exit 1"; };
          two = f // { meta.buildkite.command = "exit 2"; };
        }"#,
    );
    let command = format!("'{EVAL_ONCE}' pipeline --keys attr");
    let Some(build) = Build::new(&json!({ "key": "record", "command": command })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command");
    assert_eq!(build.run(), Outcome::Failed);
    let log = build.job("record").plain();
    for (key, status) in [("nix-app", 9), ("nix-skipped", 0), ("nix-one", 1)] {
        let job = build.job(key);
        assert_eq!(job.exit_status, Some(status), "{}", job.plain());
    }
    let warning = "warning: two and one have the same .drv, so one step, and other wishes";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    assert_eq!(log.matches("have the same .drv").count(), 1, "{log}");
    let annotations = build.annotations();
    let body = &annotations.values().next().unwrap().body;
    assert!(
        shown(body).contains("two and one have the same .drv"),
        "{body}"
    );
}

#[test]
fn a_built_target_has_a_skipped_step_that_no_step_waits_for() {
    let Some(store) = store() else { return };
    store.targets(
        r#"rec {
          here = file "here";
          cached = file "cached";
          user = build "user" "read x < ${here}; read y < ${cached}; echo $x $y > $out";
        }"#,
    );
    let mut cache = String::new();
    for attr in ["here", "cached"] {
        let drv = store.instantiate("default.nix", attr);
        let paths = store.build(&drv);
        if attr == "cached" {
            cache = store.cache("cache", &paths);
            store.delete(&paths);
        }
    }
    store.configure(&format!("substituters = {cache}"));
    let Some(scene) = plugin_scene(store, &json!({})) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    for attr in ["here", "cached"] {
        assert_eq!(scene.job_of(attr).state, JobState::Skipped);
    }
    let reason = |attr: &str| text(&scene.step_of(attr)["skip"]);
    assert!(reason("here").contains("built"), "{}", reason("here"));
    assert!(reason("cached").contains("cache"), "{}", reason("cached"));
    assert_eq!(depends_on(&scene.step_of("user")), [""; 0]);
    assert_eq!(scene.job_of("user").way(), "realised (drv-valid)");
    let document = scene.document();
    for target in document["targets"].as_array().unwrap() {
        assert_eq!(
            target["skip"].is_null(),
            target["name"] == "user",
            "{target}"
        );
    }
}

#[test]
fn a_built_target_can_have_a_step_that_ends_at_once_and_builds_if_the_output_is_gone() {
    for emit in ["plugin", "command"] {
        let Some(store) = store() else { return };
        store.targets(
            r#"rec {
              here = file "here";
              cached = file "cached";
              gone = file "gone";
              tested = file "tested" // { meta.buildkite.command = "read x < result && echo \"tests $x\""; };
              user = build "user" "read x < ${here}; read y < ${cached}; echo $x $y > $out";
            }"#,
        );
        let mut cache = String::new();
        let mut lost = String::new();
        for attr in ["here", "cached", "gone", "tested"] {
            let paths = store.build(&store.instantiate("default.nix", attr));
            match attr {
                "cached" => {
                    cache = store.cache("cache", &paths);
                    store.delete(&paths);
                }
                "gone" => lost.clone_from(&paths[0]),
                _ => {}
            }
        }
        store.configure(&format!("substituters = {cache}"));
        let keys = json!({ "emit": emit, "skip-style": "run", "summary": emit == "plugin" });
        let Some(mut scene) = plugin_scene(store, &keys) else {
            return;
        };
        // With one agent no step can begin as long as the recording's job runs.
        let hook = format!(
            "[ \"$BUILDKITE_STEP_KEY\" != record ] || env -u NIX_REMOTE nix-store --delete --ignore-liveness {lost}\n"
        );
        scene.build = scene
            .build
            .agents(1)
            .our_hook("command")
            .shell_hook("post-command", &hook);
        assert_eq!(scene.build.run(), Outcome::Passed, "{emit}");
        scene.recorded();
        let ways = scene.ways();
        let way_of = |attr: &str| ways[attr].as_str();
        for (attr, way) in [
            ("here", "available (skipped)"),
            // What needed it may have fetched it before.
            ("cached", "available (skipped)"),
            ("gone", "realised (drv-valid)"),
            ("tested", "realised (drv-valid)"),
            ("user", "realised (drv-valid)"),
        ] {
            let job = scene.job_of(attr);
            assert_eq!(way_of(attr), way, "{emit}: {attr}: {}", job.plain());
            assert_eq!(job.state, JobState::Passed, "{emit}: {attr}");
            assert!(scene.step_of(attr).get("skip").is_none());
        }
        assert!(scene.store.has(&lost), "{emit}");
        assert!(scene.job_of("tested").plain().contains("\ntests tested\n"));
        let document = scene.document();
        for target in document["targets"].as_array().unwrap() {
            let skipped = ["here", "cached", "gone"]
                .iter()
                .any(|it| target["name"] == *it);
            assert_eq!(target["skip"].is_string(), skipped, "{emit}: {target}");
        }
        if emit == "plugin" {
            let annotations = scene.build.annotations();
            let summary = shown(&annotations["eval-once-summary"].body);
            assert!(summary.contains("available (skipped)"), "{summary}");
        }
    }
}

#[test]
fn steps_without_targets_have_the_plugins_and_the_environment_of_all() {
    let Some(store) = store() else { return };
    store.targets(
        r#"{
          fine = file "fine";
          broken = throw "its words";
          refused = file "refused" // { meta.buildkite.colour = "blue"; };
        }"#,
    );
    let plugins = TempDir::new().unwrap();
    let other = other_plugin(plugins.path(), "echo \"> $COLOUR '$BUILDKITE_COMMAND'\"\n");
    let keys = json!({
        "summary": true,
        "step": { "plugins": [other], "env": { "COLOUR": "blue" }, "command": "echo a target", "timeout_in_minutes": 7 }
    });
    let Some(scene) = plugin_scene(store, &keys) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    scene.recorded();
    let jobs = scene.build.jobs();
    let of = |label: &str| {
        let is = |job: &&Job| job.label.as_deref() == Some(label);
        jobs.iter().find(is).unwrap()
    };
    for (label, status, line) in [
        (":nix: fine", 0, Some("> blue 'echo a target'")),
        // What ends in red ends before another plugin's command.
        (":boom: broken", 65, None),
        (":boom: refused", 64, None),
        (":bar_chart: eval-once summary", 0, Some("> blue ''")),
    ] {
        let job = of(label);
        let log = job.plain();
        assert_eq!(job.exit_status, Some(status), "{label}: {log}");
        let said = log.lines().find(|said| said.starts_with("> "));
        assert_eq!(said, line, "{label}: {log}");
        let mut steps = scene.uploaded();
        steps.retain(|step| step["label"] == label);
        assert_eq!(steps[0]["timeout_in_minutes"], 7, "{label}");
    }
    assert!(of(":nix: fine").plain().contains("\na target\n"));
}

#[test]
fn a_target_is_tried_again_by_its_own_rules_and_by_ours() {
    let Some(store) = store() else { return };
    let lost = store.root().join("lost");
    store.targets(&format!(
        r#"let by = automatic: command: drv: drv // {{ meta.buildkite = {{ retry = {{ inherit automatic; }}; inherit command; }}; }};
        in {{
          theirs = by {{ exit_status = 100; limit = 3; }} "true" (build "theirs" "exit 1");
          ours = by [ {{ exit_status = 100; }} ] "[ -e '{lost}' ] || {{ touch '{lost}'; exit 75; }}" (file "ours");
          never = by [ {{ exit_status = [ 75 ]; limit = 0; }} ] "exit 75" (file "never");
        }}"#,
        lost = lost.display()
    ));
    let Some(scene) = plugin_scene(store, &json!({})) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    scene.recorded();
    for (attr, tries, status) in [("theirs", 3, 100), ("ours", 1, 0), ("never", 0, 75)] {
        let job = scene.job_of(attr);
        assert_eq!(
            (job.retry_count, job.exit_status),
            (tries, Some(status)),
            "{attr}: {}",
            job.plain()
        );
    }
}

#[test]
fn nothing_is_uploaded_where_an_evaluation_error_fails_the_recording() {
    let Some(store) = store() else { return };
    store.targets("{ good = file \"good\"; bad = throw \"this one is bad\"; }");
    let Some(scene) = plugin_scene(store, &json!({ "on-error": "fail" })) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    let job = scene.build.job("record");
    assert_eq!(job.exit_status, Some(65), "{}", job.plain());
    assert!(job.plain().contains("this one is bad"), "{}", job.plain());
    assert_eq!(scene.build.uploads(), [Value::Null; 0]);
    assert_eq!(scene.build.jobs().len(), 1);
}

#[test]
fn steps_are_in_groups_by_the_first_names_of_their_attributes() {
    let Some(store) = store() else { return };
    store.targets(
        r#"let marked = set: set // { recurseForDerivations = true; }; in rec {
          packages = marked { a = file "a"; b = file "b"; };
          checks = marked { c = build "c" "read x < ${packages.a}; echo $x > $out"; };
          alone = file "alone";
        }"#,
    );
    let Some(scene) = plugin_scene(store, &json!({ "group-by": 1 })) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    let group = |attr: &str| scene.job_of(attr).group;
    assert_eq!(group("packages.a").as_deref(), Some(":nix: packages"));
    assert_eq!(group("packages.b").as_deref(), Some(":nix: packages"));
    assert_eq!(group("checks.c").as_deref(), Some(":nix: checks"));
    assert_eq!(group("alone"), None);
    assert_eq!(scene.follows_its_plan(), 1);
    scene.ran_in_order();
}

#[test]
fn a_second_recording_in_the_same_job_is_refused_and_not_taken_for_the_first() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    store.write("other.nix", "import ./default.nix");
    let flags = format!("--skip none && '{EVAL_ONCE}' pipeline --file other.nix");
    let Some(scene) = command_scene(store, EVAL_ONCE, &flags) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    let job = scene.build.job("record");
    let log = job.plain();
    assert!(log.contains("uploaded another recording already"), "{log}");
    assert_eq!(job.retry_count, 0, "{log}");
    assert_eq!(scene.build.uploads().len(), 1, "the first is uploaded");
}

#[test]
fn the_agents_variables_of_a_job_do_not_change_its_upload() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let Some(mut scene) = plugin_scene(store, &json!({ "chunk": 1 })) else {
        return;
    };
    scene.build = scene.build.envs([
        ("BUILDKITE_PIPELINE_UPLOAD_DRY_RUN", "true"),
        ("BUILDKITE_PIPELINE_REPLACE", "true"),
        ("BUILDKITE_METADATA_BUILD_ID", "another-build"),
    ]);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    scene.build.retry(&scene.build.job("record").id);
    assert_eq!(scene.build.run(), Outcome::Passed);
    assert_eq!(scene.follows_its_plan(), 4);
    assert_eq!(scene.build.rejections(), [""; 0]);
}

#[test]
fn a_recording_that_is_run_again_by_hand_uploads_nothing_more() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let Some(scene) = plugin_scene(store, &json!({ "chunk": 3 })) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    let jobs = scene.build.jobs().len();
    scene.build.retry(&scene.build.job("record").id);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    assert_eq!(scene.build.job("record").retry_count, 1);
    assert_eq!(scene.follows_its_plan(), 2);
    assert_eq!(scene.build.rejections(), [""; 0]);
    assert_eq!(scene.build.jobs().len(), jobs + 1);
}

#[test]
fn a_retry_after_a_rejected_chunk_goes_on_with_that_chunk() {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let Some(scene) = plugin_scene(store, &json!({ "chunk": 1 })) else {
        return;
    };
    // As it was until 2023: the refusal is the answer itself.
    let scene = Scene {
        build: scene.build.answering_at_once(),
        ..scene
    };
    scene
        .build
        .on_upload(3, Fault::Reject("Not today".to_owned()));
    assert_eq!(scene.build.run(), Outcome::Failed);
    let job = scene.build.job("record");
    assert_eq!(job.exit_status, Some(64), "{}", job.plain());
    assert!(job.plain().contains("Not today"), "{}", job.plain());
    assert_eq!(scene.marks().len(), 2);

    scene.build.retry(&job.id);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    assert_eq!(scene.follows_its_plan(), 4);
    scene.all_went("realised (drv-valid)");
}

#[test]
fn a_recording_killed_after_it_uploaded_the_missing_part_of_a_chunk_goes_on_with_the_next() {
    let Some(scene) = two_recordings(true, &json!({ "skip": "none" })) else {
        return;
    };
    // The two themselves; the whole of the first; the whole of the second, refused; and the missing part of that.
    scene.build.on_upload(4, Fault::KillAfter);
    assert_eq!(scene.build.run(), Outcome::Passed);
    assert_eq!(scene.build.job("two").retry_count, 1);
    assert_eq!(scene.build.rejections().len(), 2);
    scene.uploads_each_key_once();
    scene.ran_in_order();
}

#[test]
fn the_missing_part_of_a_chunk_keeps_its_groups() {
    let Some(scene) = two_recordings(true, &json!({ "skip": "none", "group-by": 1 })) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.uploads_each_key_once();
    // Behind that of the two themselves.
    let uploads = scene.uploads().split_off(1);
    assert_eq!(uploads.len(), 2);
    let groups = |upload: &Value| {
        let steps = upload["steps"].as_array().unwrap().iter();
        let group = |step: &Value| {
            (
                step["group"].clone(),
                steps_of(&json!({ "steps": [step] })).len(),
            )
        };
        steps.map(group).collect::<Vec<_>>()
    };
    assert_eq!(groups(&uploads[0]), [(json!(":nix: one"), 2)]);
    assert_eq!(groups(&uploads[1]), [(json!(":nix: two"), 1)]);
}

/// A recording whose steps run on another agent, in another checkout, once the recording's job is over and nothing that it
/// has written is left.
fn on_another_agent(store: Store, keys: &Value) -> Option<Scene> {
    let mut keys = keys.clone();
    // What depends on the recording begins when that job's hooks are through.
    keys["share"] = false.into();
    keys["step"] = json!({ "agents": { "role": "builder" }, "depends_on": ["record"] });
    let mut scene = plugin_scene(store, &keys)?;
    let hook = "if [ \"$BUILDKITE_STEP_KEY\" = record ]; then\n\
                rm -r \"$EVAL_ONCE_STATE_DIR/pins\"\nnix-store --gc\nfi\n";
    // The first of them, which takes what asks for nothing, is the one that records.
    scene.build = scene
        .build
        .agents(1)
        .agent_with_tags(&["queue=default", "role=builder"])
        .shell_hook("post-command", hook);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    Some(scene)
}

#[track_caller]
fn evaluated_without_drift(scene: &Scene) {
    scene.all_went("evaluated (drv-missing)");
    for attr in scene.keys().keys() {
        let job = scene.job_of(attr);
        assert_eq!(job.agent.as_deref(), Some("agent-2"));
        assert!(!job.plain().contains("drift"), "{}", job.plain());
    }
}

#[test]
fn another_checkout_gives_the_same_derivations_when_it_is_evaluated_again() {
    let Some(store) = store() else { return };
    store.targets(
        r#"{ tone }: {
          "we\"ird $HOME \${x} ä 😀" = with' { src = ./source; inherit tone; } "weird" "read x < $src/text; echo $x $tone > $out";
          list = [ (file "first") ];
        }"#,
    );
    store.write("source/text", "text\n");
    let keys = json!({ "argstr": { "tone": "$TONE \"'\\" }, "options": { "cores": 1 } });
    let Some(scene) = on_another_agent(store, &keys) else {
        return;
    };
    evaluated_without_drift(&scene);
    let labels: Vec<String> = scene
        .build
        .jobs()
        .into_iter()
        .filter_map(|job| job.label)
        .collect();
    let as_it_is =
        |label: &String| label.contains("$HOME") && label.contains("${x}") && label.contains('😀');
    assert!(labels.iter().any(as_it_is), "{labels:?}");
}

#[test]
fn another_checkout_of_a_flake_gives_the_same_derivations_when_it_is_evaluated_again() {
    let Some(store) = store() else { return };
    let system = store.nix(
        "nix-instantiate",
        ["--eval", "-E", "builtins.currentSystem"],
    );
    let body = expression(
        r#"{
          packages.${system}.default = with' { src = self; } "default" "read x < $src/text; echo $x > $out";
          checks.${system} = { one = file "one"; two = file "two"; };
        }"#,
    );
    let body = body.replace("builtins.currentSystem", &system);
    store.write("flake.nix", &format!("{{ outputs = {{ self }}: {body}; }}"));
    store.write("text", "text\n");
    commit(&store.work());
    let Some(scene) = on_another_agent(store, &json!({ "flake": "." })) else {
        return;
    };
    assert_eq!(scene.keys().len(), 3);
    evaluated_without_drift(&scene);
}

#[test]
fn the_command_that_a_target_wishes_runs_after_every_build() {
    let Some(store) = store() else { return };
    store.targets(
        r#"let with_ = command: drv: drv // { meta.buildkite = { inherit command; }; }; in {
          one = with_ "read x < $EVAL_ONCE_OUT; echo \"it says: $x\"" (file "one");
          two = with_ [ "exit 7" ] (file "two");
          bad = with_ "echo never" (build "bad" "exit 1");
        }"#,
    );
    let drv = store.instantiate("default.nix", "one");
    store.build(&drv);
    let Some(scene) = plugin_scene(store, &json!({})) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    scene.recorded();
    let one = scene.job_of("one");
    assert_eq!(one.state, JobState::Passed, "{}", one.plain());
    assert!(one.plain().contains("\nit says: one\n"), "{}", one.plain());
    assert_eq!(scene.job_of("two").exit_status, Some(7));
    let bad = scene.job_of("bad");
    assert_eq!(bad.exit_status, Some(100));
    assert!(!bad.plain().contains("\nnever\n"));
}

/// A command hook of docker's shape: it has its own way to run the job's command, and leaves its output to the agent.
const CONTAINER: &str = r#"
printf '> in a container: '
[ -z "$BUILDKITE_COMMAND" ] || IN_A_CONTAINER=1 bash -c "$BUILDKITE_COMMAND"
"#;

#[test]
fn a_recorded_targets_command_is_left_to_the_plugin_that_runs_commands_and_runs_once() {
    let Some(store) = store() else { return };
    let log = store.root().join("ran");
    store.targets(&format!(
        r#"let
          command = "echo $BUILDKITE_LABEL in=$IN_A_CONTAINER $(cat result) >> '{log}'";
          with_ = meta: drv: drv // {{ meta = {{ buildkite = {{ inherit command; }}; }} // meta; }};
        in {{
          left = with_ {{ }} (file "left");
          built = with_ {{ }} (file "built");
          both = with_ {{ eval-once.command = "after"; }} (file "both");
          bad = with_ {{ }} (build "bad" "exit 1");
        }}"#,
        log = log.display(),
    ));
    // A target whose command has to run is not skipped, be its outputs here or not.
    store.build(&store.instantiate("default.nix", "built"));
    let plugins = TempDir::new().unwrap();
    let container = other_plugin(plugins.path(), CONTAINER);
    let keys = json!({ "command": "none", "log": "raw", "step": { "plugins": [container] } });
    let Some(scene) = plugin_scene(store, &keys) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    scene.recorded();
    let ran = fs::read_to_string(&log).unwrap();
    let mut ran: Vec<&str> = ran.lines().collect();
    ran.sort_unstable();
    let expected = [
        ":nix: both in= both",
        ":nix: both in=1 both",
        ":nix: built in=1 built",
        ":nix: left in=1 left",
    ];
    assert_eq!(ran, expected, "{}", scene.job_of("left").plain());
    for (attr, status) in [("left", 0), ("built", 0), ("both", 0), ("bad", 100)] {
        let job = scene.job_of(attr);
        assert_eq!(job.exit_status, Some(status), "{attr}: {}", job.plain());
    }
    // A raw log has Nix's own text; the readable form has ours.
    let log = scene.job_of("bad").plain();
    assert!(log.contains("\nbuilding '/"), "{log}");
    let record = &scene.step_of("left")["plugins"][0];
    assert_eq!(
        record.as_object().unwrap().values().next().unwrap()["command"],
        "none"
    );
}

#[test]
fn the_build_keys_of_a_recording_count_in_steps_of_every_kind() {
    for emit in ["plugin", "command"] {
        let Some(store) = store() else { return };
        store.targets(
            r#"let with_ = eval-once: drv: drv // { meta = { inherit eval-once; }; }; in {
              plain = file "plain";
              elsewhere = with_ { out-link = "out/elsewhere"; log = "raw"; } (file "elsewhere");
              wrong = with_ { log = "loud"; } (file "wrong");
              later = with_ { push = "nowhere"; } (file "later");
            }"#,
        );
        store.write("out/.keep", "");
        let links = store.root().join("links");
        let hook = format!(
            "for link in result out/*; do [ ! -L $link ] || echo \"$BUILDKITE_LABEL $link $(cat $link)\" >> '{}'; done\n",
            links.display()
        );
        let keys = json!({ "emit": emit, "out-link": "linked", "step": {} });
        let Some(mut scene) = plugin_scene(store, &keys) else {
            return;
        };
        let hook = hook.replace("result", "linked result");
        scene.build = scene
            .build
            .our_hook("command")
            .shell_hook("pre-exit", &hook);
        assert_eq!(scene.build.run(), Outcome::Failed);
        scene.recorded();
        let linked = fs::read_to_string(&links).unwrap();
        let mut linked: Vec<&str> = linked.lines().collect();
        linked.sort_unstable();
        let expected = [
            ":nix: elsewhere out/elsewhere elsewhere",
            ":nix: plain linked plain",
        ];
        assert_eq!(linked, expected, "{emit}");
        let mut errors: Vec<String> = scene.error_jobs().iter().map(Job::plain).collect();
        errors.sort();
        let said = errors.join("\n");
        for part in [
            "in its `meta.eval-once`, `log` is",
            "in its `meta.eval-once`, `push` is no URL of a store",
        ] {
            assert!(said.contains(part), "{emit}: {said}");
        }
        assert_eq!(errors.len(), 2, "{emit}: {said}");
    }
}

/// A text that would do something wherever it were read as more than a text: in a shell, a log, Markdown, YAML, the agent.
const HOSTILE: &str = r#"`touch pwned` $(touch pwned) $HOME $$ ${x} '; touch pwned; ' \" \\ <b>&amp;</b> [x](y) | *** : # %s"#;

#[test]
fn the_step_of_a_refused_target_says_why_where_agents_evaluate_no_commands() {
    for emit in ["plugin", "command"] {
        let Some(store) = store() else { return };
        // Behind a line break, a carriage return, a bell and an escape character of its own.
        let odd = r#"\n~~~ a group\n^^^ +++\r${builtins.fromJSON ''"\u001b[31mred\u0007\u202e"''}"#;
        store.targets(&format!(
            r#"let hostile = "{}{odd}"; in {{
              fine = file "fine";
              named = file "named" // {{ meta.buildkite.env."EVAL_ONCE_${{hostile}}" = "x"; }};
              long = file "long" // {{ meta.buildkite.${{builtins.concatStringsSep "" (builtins.genList (_: "long ") 2000)}} = 1; }};
              ${{hostile}} = file "hostile" // {{ meta.buildkite.colour = "blue"; }};
            }}"#,
            HOSTILE.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${")
        ));
        let keys = json!({ "emit": emit, "summary": emit == "plugin" });
        let Some(mut scene) = plugin_scene(store, &keys) else {
            return;
        };
        // Plugins are switched off with it unless they are switched on.
        scene.build = scene
            .build
            .our_hook("command")
            .configuration("no-command-eval=true\nno-plugins=false\n");
        assert_eq!(scene.build.run(), Outcome::Failed);
        scene.recorded();
        assert_eq!(scene.job_of("fine").state, JobState::Passed, "{emit}");
        let errors = scene.error_jobs();
        assert_eq!(errors.len(), 3, "{emit}");
        for job in &errors {
            let log = job.plain();
            assert_eq!(job.exit_status, Some(64), "{emit}: {log}");
            assert_eq!(job.retry_count, 0, "{emit}: {log}");
            let error: Vec<&str> = log
                .lines()
                .filter(|line| line.starts_with("eval-once: error: "))
                .collect();
            assert_eq!(error.len(), 1, "{emit}: {log}");
            assert!(error[0].len() < 4_300, "{emit}: {log}");
            let own = ["~~~ a group", "^^^ +++\rred"];
            let opens = |line: &str| own.iter().any(|odd| line.starts_with(odd));
            assert!(!log.lines().any(opens), "{emit}: {log}");
            for odd in ["\u{1b}[31mred", "\u{7}\u{202e}"] {
                assert!(!job.log.contains(odd), "{emit}: {:?}", job.log);
            }
        }
        let said: Vec<String> = errors.iter().map(Job::plain).collect();
        let said = said.join("\n");
        for part in [
            HOSTILE,
            "`colour` is not a property that Buildkite knows here",
            "it is eval-once's own",
            "a property has a name of more than 1024 bytes",
        ] {
            assert!(said.contains(part), "{emit}: {part}: {said}");
        }
        for job in scene.build.jobs() {
            assert!(!job.plain().contains("pwned: "), "{}", job.plain());
        }
        // The build has an annotation as of any other failure, and the summary has the message.
        let bodies: Vec<String> = scene
            .build
            .annotations()
            .values()
            .map(|it| shown(&it.body))
            .collect();
        let bodies = bodies.join("\n");
        assert!(
            bodies.contains("`colour` is not a property that Buildkite knows"),
            "{bodies}"
        );
        assert!(bodies.contains("`touch pwned` $(touch pwned)"), "{bodies}");
        if emit == "plugin" {
            let junit = scene.build.artifacts()["eval-once-junit.xml"].clone();
            assert!(
                String::from_utf8(junit)
                    .unwrap()
                    .contains("`colour` is not a property")
            );
        }
    }
}

#[test]
fn sets_that_were_not_looked_into_are_on_the_builds_page_and_callable_derivations_are_built() {
    let Some(store) = store() else { return };
    store.targets(
        "{ tool = file \"tool\" // { __functor = self: { x ? 1 }: throw \"called\"; }; packages.a = file \"a\"; }",
    );
    let keys = json!({ "exclude": ["tol"] });
    let Some(scene) = plugin_scene(store, &keys) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    let step = scene.step_of("tool");
    let record = step["plugins"][0].as_object().unwrap().values().next();
    assert_eq!(record.unwrap()["call"], false);
    assert_eq!(scene.job_of("tool").state, JobState::Passed);
    let bodies = scene.build.annotations().into_values();
    let bodies: Vec<String> = bodies.map(|it| shown(&it.body)).collect();
    for part in [
        "1 set without `recurseForDerivations` holds derivations that are not recorded: packages",
        "`attr: packages`",
        "`exclude: tol` matches nothing (did you mean `tool`?)",
    ] {
        assert!(bodies[0].contains(part), "{part} in {bodies:?}");
    }
}

#[test]
fn a_recording_of_built_targets_or_of_evaluation_errors_alone_succeeds() {
    let Some(store) = store() else { return };
    store.targets("{ there = file \"there\"; }");
    store.build(&store.instantiate("default.nix", "there"));
    let keys = json!({ "skip-style": "omit" });
    let Some(scene) = plugin_scene(store, &keys) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    assert_eq!(scene.build.uploads(), [Value::Null; 0]);
    assert_eq!(scene.document()["targets"].as_array().unwrap().len(), 1);
    let bodies = scene.build.annotations().into_values();
    let bodies: Vec<String> = bodies.map(|it| shown(&it.body)).collect();
    assert_eq!(bodies.len(), 1);
    assert!(
        bodies[0].contains("0 to build, 1 already built here"),
        "{bodies:?}"
    );

    let Some(store) = self::store() else { return };
    store.targets("{ broken = throw \"all of it\"; }");
    let Some(scene) = plugin_scene(store, &json!({})) else {
        return;
    };
    assert_eq!(scene.build.run(), Outcome::Failed);
    scene.recorded();
    let broken = scene.error_jobs();
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0].exit_status, Some(65), "{}", broken[0].plain());
    assert!(scene.document()["pin"].is_null());
}

/// A recording that is killed at each first word of its kind that it has for Buildkite, before or after Buildkite hears it.
fn killed_at_every_word(before: bool) {
    let Some(store) = store() else { return };
    store.targets(CHAIN);
    let agent = program().unwrap();
    // Questions change nothing. Of a word only its beginning counts: jobs and temporary files are others in each try.
    let script = format!(
        r#"#!/bin/sh
real() {{ "{agent}" "$@"; }}
case "$1 $2" in
"pipeline upload") for file; do :; done; word=$(cksum <"$file") ;;
"meta-data set" | "artifact upload" | "annotate "*) word="$1 $2 $3" ;;
*) real "$@"; exit ;;
esac
grep -qxF "$word" '{said}' && {{ real "$@"; exit; }}
echo "$word" >>'{said}'
{before} || real "$@"
kill -9 "$PPID"
"#,
        agent = agent.display(),
        said = store.root().join("said").display(),
    );
    store.write("../said", "");
    write_program(&store.bin().join("buildkite-agent"), &script);

    let scene = plugin_scene_with(store, &json!({ "chunk": 2 }), |step| {
        step["retry"] = json!({ "automatic": [{ "exit_status": "*", "limit": 10 }] });
    });
    let Some(mut scene) = scene else { return };
    let hook = format!(
        "[ \"$BUILDKITE_STEP_KEY\" != record ] || export PATH='{}':\"$PATH\"\n",
        scene.store.bin().display()
    );
    scene.build = scene.build.agents(1).shell_hook("environment", &hook);
    assert_eq!(scene.build.run(), Outcome::Passed);
    scene.recorded();
    // The archive, the plan, its mark, two chunks, their marks, `eval-once.json`, the annotation.
    let record = scene.build.job("record");
    assert_eq!(record.retry_count, 9, "{}", record.plain());
    assert_eq!(scene.follows_its_plan(), 2);
    scene.all_went("realised (drv-valid)");
    assert_eq!(scene.build.annotations().len(), 1);
    // Of each chunk it was not known that it had been applied.
    assert_eq!(scene.build.rejections().len(), 2);
}

#[test]
fn a_recording_that_is_killed_before_each_agent_command_has_the_same_result_in_the_end() {
    killed_at_every_word(true);
}

#[test]
fn a_recording_that_is_killed_after_each_agent_command_has_the_same_result_in_the_end() {
    killed_at_every_word(false);
}

#[test]
fn a_command_that_is_the_recording_itself_is_not_run_after_it() {
    let Some(store) = store() else { return };
    store.targets("{ hello = file \"hello\"; }");
    // Were it run, it would fail: there is no such program.
    let Some(scene) = plugin_scene_with(store, &json!({}), |step| {
        step["command"] = json!("/nowhere/eval-once pipeline --file other.nix");
    }) else {
        return;
    };
    scene.build.run();
    scene.recorded();
    let log = scene.build.job("record").plain();
    assert!(
        log.contains("this hook has run the recording already"),
        "{log}"
    );
    assert_eq!(scene.uploads().len(), 1);
}

#[test]
fn the_jobs_own_command_runs_after_the_upload() {
    let Some(store) = store() else { return };
    store.targets("{ hello = file \"hello\"; }");
    let Some(scene) = plugin_scene_with(store, &json!({}), |step| {
        step["command"] = json!("printf 'after %s\n' upload");
    }) else {
        return;
    };
    scene.build.run();
    scene.recorded();
    let log = scene.build.job("record").plain();
    let (_, after) = log.split_once("running the job's own command").unwrap();
    assert!(after.contains("after upload"), "{log}");
    assert_eq!(scene.uploads().len(), 1);
}
