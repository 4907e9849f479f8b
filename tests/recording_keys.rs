//! The keys of a recording, as flags and as a plugin's configuration: what is not understood is refused by name, and nothing
//! is run.

use eval_once::{
    evaluation_keys::Checkout,
    nix::{Argument, Source},
    step::StepRequest,
};
use serde_json::{Value, json};

use crate::support::{
    program::{Ended, Program},
    recording::Pipeline,
    stand_in::StandIns,
    store::Store,
};

/// What a recording runs.
const PROGRAMS: [&str; 5] = [
    "nix",
    "nix-store",
    "nix-instantiate",
    "nix-eval-jobs",
    "buildkite-agent",
];

/// The variables of a job that a recording needs.
const JOB: [(&str, &str); 4] = [
    ("BUILDKITE_JOB_ID", "job"),
    ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
    ("BUILDKITE_BUILD_ID", "build"),
    ("BUILDKITE_STEP_ID", "step"),
];

/// A store with something to record, and stand-ins that count every process.
struct Scene {
    store: Store,
    stand_ins: StandIns,
}

impl Scene {
    fn new() -> Option<Self> {
        let store = Store::new()?;
        store.targets("{ hello = file \"hello\"; }");
        let stand_ins = StandIns::new(store.bin())
            .counting("nix")
            .counting("nix-store")
            .counting("nix-instantiate")
            .instead("nix-eval-jobs", "#!/bin/sh\nexit 1\n")
            .instead("buildkite-agent", "#!/bin/sh\nexit 1\n");
        Some(Self { store, stand_ins })
    }

    fn pipeline(&self, flags: &[&str]) -> Program {
        self.store
            .eval_once(["pipeline"])
            .args(flags)
            .env("PATH", self.stand_ins.path(&self.store))
    }

    /// Our plugin's hook in a job, with this configuration.
    fn hook(&self, configuration: &Value) -> Program {
        let plugins = json!([{ "your-org/eval-once#v1": configuration }]);
        self.store
            .eval_once(["hook", "command"])
            .env("PATH", self.stand_ins.path(&self.store))
            .env("BUILDKITE", "true")
            .envs(JOB)
            .env("BUILDKITE_COMMAND", "")
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", self.store.work())
            .env("BUILDKITE_PLUGINS", plugins.to_string())
            .env("BUILDKITE_PLUGIN_CONFIGURATION", configuration.to_string())
    }

    /// It refused in one sentence with each of these parts, and ran nothing.
    #[track_caller]
    fn refused(&self, ended: &Ended, parts: &[&str]) {
        ended.exits(64).prints("");
        let ours = ended.ours();
        let errors: Vec<_> = ours
            .iter()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(
            errors.len(),
            1,
            "not one line that says what is wrong: {ended}"
        );
        for part in parts {
            assert!(
                ours.join("\n").contains(part),
                "{part:?} is not printed: {ended}"
            );
        }
        self.ran_nothing(ended);
    }

    #[track_caller]
    fn ran_nothing(&self, ended: &Ended) {
        for program in PROGRAMS {
            assert!(
                self.stand_ins.calls(program).is_empty(),
                "{program}: {ended}"
            );
        }
    }
}

#[test]
fn a_wrong_key_of_a_recording_is_refused_by_its_name_wherever_it_is_written() {
    let Some(scene) = Scene::new() else { return };
    for (keys, parts) in [
        (
            json!({ "drv": "x" }),
            ["`drv` is not a key of a recording", "recurse"],
        ),
        (json!({ "out-link": true }), ["`out-link`", "`false`"]),
        (
            json!({ "command": true }),
            ["`command`", "`after` or `none`"],
        ),
        (
            json!({ "command": "none", "emit": "command" }),
            ["`command: none`", "use `emit: plugin`"],
        ),
        (json!({ "log": "loud" }), ["`log`", "`pretty` or `raw`"]),
        (
            json!({ "on-drift": "ignore" }),
            ["`on-drift`", "`warn` or `fail`"],
        ),
        (
            json!({ "step": { "env": { "X": null } } }),
            ["`step.env.X`", "null"],
        ),
        (json!({ "agents": { "x": null } }), ["`agents.x`", "null"]),
        (
            json!({ "agents": { "x": "queue=q" } }),
            ["`agents.x`", "map"],
        ),
        (
            json!({ "recurse": "some" }),
            ["`recurse`", "`marked` or `all`"],
        ),
        (
            json!({ "skip": true }),
            ["`skip`", "`built`, `cached` or `none`"],
        ),
        (json!({ "exclude": "a" }), ["`exclude`", "list"]),
        (json!({ "exclude": ["a..b"] }), ["`exclude`", "empty name"]),
        (json!({ "workers": 0 }), ["`workers`", "from 1"]),
        (json!({ "chunk": 501 }), ["`chunk`", "to 500"]),
        (json!({ "meta": "no" }), ["`meta`", "`false`"]),
        (
            json!({ "plugin": "https://t@h/x" }),
            ["`plugin`", "holds a secret"],
        ),
        (
            json!({ "share": "artefact" }),
            ["`share`", "no URL of a store"],
        ),
        (
            json!({ "push": "https://name:secret@host" }),
            ["`push`", "holds a secret"],
        ),
        (json!({ "share-limit": 0 }), ["`share-limit`", "from 1"]),
    ] {
        let ended = scene.hook(&json!({ "pipeline": keys })).run();
        scene.refused(&ended, &parts);
    }
    for (flags, part) in [
        (["--exclude", "a..b"].as_slice(), "`exclude`"),
        (&["--workers", "0"], "`workers`"),
        (&["--chunk", "501"], "`chunk`"),
        (&["--emit", "plugin"], "`plugin`"),
        (&["--command", "none"], "`emit: command`"),
        (&["--out-link", "x/"], "`out-link`"),
        (&["--plugin", "HTTPS://t@h/x"], "`plugin`"),
        (&["--share", "artifact"], "`share: artifact`"),
        (&["--step", "{"], "--step"),
        (&["--step", "[]"], "--step"),
        (&["--agents", "{\"x\":1}"], "`agents.x`"),
        (&["--file", "a", "--expr", "b"], "`expr`"),
    ] {
        scene.refused(&scene.pipeline(flags).run(), &[part]);
    }
    for (flags, part) in [
        (["--drv", "x"].as_slice(), "--drv"),
        (&["--recurse", "some"], "[possible values: marked, all]"),
        (&["--log", "prety"], "a similar value exists: 'pretty'"),
        (&["--workers", "many"], "many"),
        (&["--meta"], "--meta"),
        (&["stray"], "stray"),
    ] {
        let ended = scene.pipeline(flags).run();
        ended.exits(64).prints("").passes_on(part);
        scene.ran_nothing(&ended);
    }
}

#[test]
fn a_job_that_has_only_some_of_its_variables_is_not_green_without_an_upload() {
    let Some(scene) = Scene::new() else { return };
    for missing in &JOB[1..] {
        let some = || JOB.into_iter().filter(|name| name != missing);
        let ended = scene.pipeline(&[]).envs(some()).run();
        scene.refused(&ended, &[missing.0, "--dry-run"]);
        let ended = scene
            .hook(&json!({ "pipeline": {} }))
            .without(missing.0)
            .run();
        scene.refused(&ended, &[missing.0]);
        // Who only wants to see the pipeline needs no job.
        let ended = scene
            .store
            .eval_once(["pipeline", "--dry-run", "--skip", "none"])
            .envs(some())
            .run();
        assert_eq!(ended.exits(0).json()["steps"].as_array().unwrap().len(), 1);
    }
    let ended = scene
        .hook(&json!({ "pipeline": {} }))
        .without("BUILDKITE_JOB_ID")
        .run();
    scene.refused(&ended, &["BUILDKITE_JOB_ID"]);
}

#[test]
fn a_plugin_that_cannot_determine_its_reference_asks_for_it() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene
        .hook(&json!({ "pipeline": {} }))
        .env("BUILDKITE_PLUGINS", "[]")
        .run();
    scene.refused(&ended, &["BUILDKITE_PLUGINS", "set `plugin`"]);
}

#[test]
fn a_command_that_does_more_than_the_recording_that_the_plugin_does_is_refused() {
    let Some(scene) = Scene::new() else { return };
    let ended = scene
        .hook(&json!({ "pipeline": {} }))
        .env("BUILDKITE_COMMAND", "eval-once pipeline --file x && make")
        .run();
    scene.refused(&ended, &["`eval-once pipeline`"]);
}

#[test]
fn help_of_recordings_goes_to_standard_output() {
    let Some(store) = Store::new() else { return };
    for subcommand in ["pipeline", "prune"] {
        let ended = store.eval_once([subcommand, "--help"]).run();
        ended.exits(0).says(&[]);
        assert!(ended.stdout.contains("Usage"), "{ended}");
        assert_eq!(ended.stderr, "");
    }
}

#[test]
fn a_step_reads_from_its_record_what_the_recording_was_asked_and_found() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; }");
    let drv = store.instantiate("default.nix", "hello");
    let out = store.output(&drv, "out");
    for (flags, source) in [
        (
            ["--file", "default.nix", "--emit", "command"],
            Source::File("default.nix".into()),
        ),
        (
            ["--expr", "import ./.", "--plugin", "o/eval-once#v1"],
            Source::Expr("import ./.".into()),
        ),
    ] {
        let ended = store
            .eval_once(["pipeline", "--dry-run", "--skip", "none"])
            .args(flags)
            .args(["--argstr", "name", "a b", "--option", "cores", "2"])
            .args(["--on-drift", "fail", "--out-link", "out/x"])
            .run();
        let record = Pipeline::of(&ended).step(&["hello"]).record;
        let place = Checkout {
            folder: store.work(),
            confined: false,
            no_checkout: false,
        };
        let request = StepRequest::read(record.as_object().unwrap().clone(), &place).unwrap();
        assert_eq!(request.drv.unwrap().as_store_path().as_str(), drv);
        assert_eq!(request.outputs["out"].as_str(), out);
        let evaluation = request.evaluation.unwrap();
        assert_eq!(evaluation.source, source);
        assert_eq!(evaluation.attr.names(), ["hello"]);
        let argument = Argument::String("a b".into());
        assert_eq!(evaluation.arguments, [("name".to_owned(), argument)]);
        assert_eq!(request.options, [("cores".to_owned(), "2".to_owned())]);
        assert!(request.fail_on_drift && request.command && !request.skip);
    }
}
