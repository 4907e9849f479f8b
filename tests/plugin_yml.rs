//! `plugin.yml`: its schema takes what we take and refuses what we refuse, and the documented examples are of it.
//!
//! The schema is read by others: by Buildkite's plugin linter (Ajv in strict mode, draft 7) and by agents that validate
//! plugins (a Go validator of draft 2019-09). So it keeps to what both know.

use std::{collections::BTreeSet, fs, path::Path};

use jsonschema::Validator;
use serde_json::{Map, Value, json};

use crate::support::{EVAL_ONCE, program::Program, stand_in::StandIns};

const DRV: &str = "/nix/store/d0f9sw07xbzs65sx8dqcxp52ng3mmcpx-hello.drv";
const ARCHIVE: &str =
    "eval-once-drvs-6a09e667bb67ae853c6ef372a54ff53a510e527f9b05688c1f83d9ab5be0cd19.tar";
const OUT: &str = "/nix/store/zdyxs9nng4lbwfm8svz1g2g9lqsg5gsx-hello";

/// Each key that says what is evaluated: values it takes, values it refuses.
fn evaluation_keys() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    vec![
        (
            "file",
            vec![
                json!("ci.nix"),
                json!("<nixpkgs/nixos>"),
                json!("https://example.org/a.tar.gz"),
            ],
            vec![json!(1), json!(["ci.nix"])],
        ),
        ("expr", vec![json!("import ./. { }")], vec![json!({})]),
        (
            "flake",
            vec![json!("."), json!("github:your-org/app/main?dir=nix")],
            vec![json!(".#app"), json!(false)],
        ),
        (
            "attr",
            vec![
                json!("a.b"),
                json!(["a", "b.c", ""]),
                json!([]),
                json!("a.\"b.c\""),
            ],
            vec![json!(["a", 1]), json!({ "a": "b" }), json!([["a"]])],
        ),
        (
            "arg",
            vec![
                json!({ "pkgs": "import <nixpkgs> { }", "n": 1, "x": 0.5, "debug": true }),
                json!({}),
            ],
            vec![
                json!({ "a": ["b"] }),
                json!({ "a": null }),
                json!(["a", "b"]),
            ],
        ),
        (
            "argstr",
            vec![json!({ "system": "x86_64-linux" })],
            vec![json!({ "a": 1 }), json!({ "a": null }), json!("a=b")],
        ),
        (
            "include",
            vec![json!(["nixpkgs=./nixpkgs", "./lib"])],
            vec![json!("nixpkgs=."), json!([1])],
        ),
        (
            "options",
            vec![json!({ "cores": 2, "timeout": "60", "keep-going": true })],
            vec![json!({ "cores": [2] }), json!({ "cores": null })],
        ),
    ]
}

/// The keys of a step.
fn step_keys() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    let mut keys = evaluation_keys();
    keys.extend([
        (
            "drv",
            vec![
                json!(DRV),
                json!("/home/u/nix/store/d0f9sw07xbzs65sx8dqcxp52ng3mmcpx-a+b.c_d?e=f.drv"),
            ],
            vec![
                json!(OUT),
                json!("d0f9sw07xbzs65sx8dqcxp52ng3mmcpx-hello.drv"),
                json!("/nix/store/hello.drv"),
                json!("/nix/store/d0f9sw07xbzs65sx8dqcxp52ng3mmcpe-hello.drv"),
                json!(format!("{DRV}!out")),
                json!({ "path": DRV }),
            ],
        ),
        (
            "outputs",
            vec![json!({ "out": OUT, "dev": format!("{OUT}-dev") })],
            vec![
                json!([OUT]),
                json!({ "out": null }),
                json!({ "out": "hello" }),
            ],
        ),
        (
            "call",
            vec![json!(true), json!(false)],
            vec![json!("false"), json!(0)],
        ),
        (
            "out-link",
            vec![json!("result"), json!("out/app"), json!(false)],
            vec![json!(true), json!(0)],
        ),
        (
            "command",
            vec![json!("after"), json!("none")],
            vec![json!("before"), json!(false)],
        ),
        (
            "on-drift",
            vec![json!("warn"), json!("fail")],
            vec![json!("ignore"), json!(true)],
        ),
        (
            "log",
            vec![json!("pretty"), json!("raw")],
            vec![json!("json"), json!(1)],
        ),
        (
            "skip",
            vec![json!(true), json!(false)],
            vec![json!("true"), json!("cached")],
        ),
        (
            "run",
            vec![json!("deploy"), json!("*")],
            vec![json!(true), json!(["deploy"])],
        ),
        (
            "needs",
            vec![json!({}), json!({ "attr": ["web"] })],
            vec![json!("web"), json!(["web"])],
        ),
        (
            "refused",
            vec![json!("web: its metadata makes no step")],
            vec![json!(true), json!(["web"])],
        ),
    ]);
    keys.extend(share_keys());
    keys
}

/// The keys of a step that say how it shares with other hosts.
fn share_keys() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    vec![
        (
            "share",
            vec![
                json!(format!("artifact:{ARCHIVE}")),
                json!("s3://your-org-nix?region=eu-west-1"),
                json!(false),
            ],
            vec![json!(true), json!(0)],
        ),
        (
            "share-required",
            vec![json!(true), json!(false)],
            vec![json!("true")],
        ),
        (
            "targets",
            vec![
                json!([{ "key": "drv-x", "drv": "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x.drv" }]),
            ],
            vec![json!({}), json!(["x"])],
        ),
        (
            "share-size",
            vec![json!(0), json!(1_u64 << 40)],
            vec![json!(-1), json!(0.5), json!("1")],
        ),
        (
            "target",
            vec![json!("a.b"), json!(["a", "b c"])],
            vec![json!(1), json!([1])],
        ),
        (
            "artifacts",
            vec![json!([]), json!(["share/doc/**", "*"])],
            vec![json!("share/**"), json!([1])],
        ),
        (
            "push",
            vec![json!("s3://your-org-nix"), json!("ssh-ng://nix@cache")],
            vec![json!(false), json!(["s3://your-org-nix"])],
        ),
        (
            "push-partial",
            vec![json!(true), json!(false)],
            vec![json!("true")],
        ),
        (
            "checkout",
            vec![json!("always"), json!("fallback")],
            vec![json!("never"), json!(false)],
        ),
        (
            "keep-days",
            vec![json!(1), json!(365)],
            vec![json!(0), json!("3")],
        ),
    ]
}

/// The keys of a recording.
fn recording_keys() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    let from_to = |least: u32, largest: u32| {
        (
            vec![json!(least), json!(largest)],
            vec![json!(least - 1), json!(-1), json!(2.5), json!("2")],
        )
    };
    let one_of = |names: &[&str]| -> Vec<Value> { names.iter().map(|name| json!(name)).collect() };
    let mut keys = evaluation_keys();
    for (key, least, largest) in [
        ("workers", 1, 256),
        ("memory", 1, 1 << 20),
        ("evaluation-timeout", 1, 86_400),
        ("group-by", 1, 3),
        ("batch", 1, 30),
        ("shared-steps", 2, 5),
        ("chunk", 1, 500),
        ("keep-days", 1, 365),
        ("share-limit", 1, 1 << 20),
    ] {
        let (good, bad) = from_to(least, largest);
        keys.push((key, good, bad));
    }
    for (key, names) in [
        ("recurse", &["marked", "all"][..]),
        ("evaluator", &["nix", "nix-eval-jobs"]),
        ("skip", &["built", "cached", "none"]),
        ("skip-style", &["mark", "run", "omit"]),
        ("on-error", &["step", "fail", "report"]),
        ("notify", &["none", "github-status"]),
        ("emit", &["plugin", "command"]),
        ("command", &["after", "none"]),
        ("on-drift", &["warn", "fail"]),
        ("log", &["pretty", "raw"]),
        ("checkout", &["always", "fallback"]),
    ] {
        keys.push((key, one_of(names), vec![json!("other"), json!(true)]));
    }
    for key in ["meta", "summary", "share-required", "push-partial"] {
        keys.push((key, vec![json!(true), json!(false)], vec![json!("false")]));
    }
    for key in ["exclude", "expect-errors"] {
        let good = json!(["tests.*", "a.*.b", ["a", "b.c"]]);
        let bad = vec![json!("tests.*"), json!([1]), json!([["a", 1]])];
        keys.push((key, vec![good], bad));
    }
    keys.extend([
        (
            "share",
            vec![
                json!("artifact"),
                json!("file:///srv/share?compression=zstd"),
                json!(false),
            ],
            vec![json!(true), json!(0)],
        ),
        (
            "push",
            vec![json!("s3://your-org-nix?region=eu-west-1")],
            vec![json!(false), json!({})],
        ),
        (
            "base",
            vec![json!(".git/base/eval-once.json")],
            vec![json!(false), json!(["x"])],
        ),
        (
            "plugin",
            vec![json!("your-org/eval-once#v0.1.0")],
            vec![json!({ "your-org/eval-once#v0.1.0": {} })],
        ),
        (
            "step",
            vec![json!({ "agents": { "queue": "nix" }, "retry": { "manual": false } })],
            vec![json!(["agents"]), json!("agents")],
        ),
        (
            "agents",
            vec![
                json!({ "x86_64-linux": { "queue": "linux" }, "feature:kvm": { "kvm": true } }),
                json!({ "aarch64-linux": ["queue=arm", "size=large"] }),
            ],
            vec![
                json!({ "x86_64-linux": "queue=linux" }),
                json!({ "x86_64-linux": { "queue": null } }),
                json!({ "x86_64-linux": ["queue"] }),
                json!(["queue=linux"]),
            ],
        ),
        (
            "out-link",
            vec![json!("result"), json!(false)],
            vec![json!(true), json!(0)],
        ),
    ]);
    keys.extend(keys_of_steps());
    keys
}

/// The keys of a recording that concern the keys of steps.
fn keys_of_steps() -> Vec<(&'static str, Vec<Value>, Vec<Value>)> {
    vec![
        (
            "keys",
            vec![json!("drv"), json!("attr")],
            vec![json!("name"), json!(["attr"])],
        ),
        (
            "key-prefix",
            vec![json!("arm-"), json!("a:b_")],
            vec![json!(5), json!(["a"])],
        ),
        (
            "phases",
            vec![json!(["build"]), json!(["release", "build"])],
            vec![json!("build"), json!([1])],
        ),
    ]
}

#[test]
fn the_schema_is_one_by_its_own_meta_schema() {
    let schema = schema();
    if let Err(error) = jsonschema::draft7::meta::validate(&schema) {
        panic!("not a draft 7 schema: {error}");
    }
    if let Err(error) = jsonschema::draft201909::meta::validate(&schema) {
        panic!("not a draft 2019-09 schema: {error}");
    }
}

#[test]
fn the_schema_has_only_keywords_that_every_reader_of_plugin_yml_knows() {
    const KNOWN: [&str; 11] = [
        "additionalProperties",
        "anyOf",
        "description",
        "enum",
        "items",
        "maxProperties",
        "maximum",
        "minimum",
        "pattern",
        "properties",
        "type",
    ];
    let mut unknown = BTreeSet::new();
    for_each_schema(&schema(), &mut |schema| {
        unknown.extend(
            schema
                .keys()
                .filter(|keyword| !KNOWN.contains(&keyword.as_str()))
                .cloned(),
        );
    });
    assert!(
        unknown.is_empty(),
        "keywords that not all know: {unknown:?}"
    );
}

#[test]
fn plugin_yml_says_what_buildkites_linter_asks_for() {
    let definition = definition();
    for key in ["name", "description", "author"] {
        assert!(
            definition[key]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{key} is missing"
        );
    }
    assert_eq!(definition["name"], "eval-once");
    assert!(definition["requirements"].is_array());
    assert!(definition["configuration"]["properties"].is_object());
}

#[test]
fn every_key_says_what_it_means() {
    let schema = schema();
    for keys in [&schema["properties"], recording(&schema)] {
        for (key, property) in keys.as_object().unwrap() {
            assert!(
                property["description"].is_string(),
                "{key} has no description"
            );
        }
    }
}

#[test]
fn there_is_every_key_of_a_step_and_of_a_recording_and_no_other() {
    let names =
        |keys: &Value| -> BTreeSet<String> { keys.as_object().unwrap().keys().cloned().collect() };
    let expected = |keys: Vec<(&str, Vec<Value>, Vec<Value>)>| -> BTreeSet<String> {
        keys.into_iter().map(|(key, ..)| key.to_owned()).collect()
    };
    let schema = schema();
    let mut of_a_step = expected(step_keys());
    of_a_step.extend(["pipeline".into(), "summary".into()]);
    assert_eq!(names(&schema["properties"]), of_a_step);
    assert_eq!(names(recording(&schema)), expected(recording_keys()));
}

#[test]
fn each_key_takes_what_it_may_be() {
    let validator = validator();
    accept(&validator, &json!({}));
    accept(&validator, &json!({ "pipeline": {} }));
    accept(&validator, &json!({ "summary": true }));
    accept(&validator, &json!({ "summary": "fail" }));
    for (key, good, _) in step_keys() {
        for value in good {
            accept(&validator, &json!({ key: value }));
        }
    }
    for (key, good, _) in recording_keys() {
        for value in good {
            accept(&validator, &json!({ "pipeline": { key: value } }));
        }
    }
}

#[test]
fn each_key_refuses_null_and_what_it_may_not_be() {
    let validator = validator();
    refuse(&validator, &json!({ "pipeline": null }));
    refuse(&validator, &json!({ "pipeline": true }));
    for bad in [json!(false), json!("true"), Value::Null] {
        refuse(&validator, &json!({ "summary": bad }));
    }
    for (key, _, bad) in step_keys() {
        for value in bad.into_iter().chain([Value::Null]) {
            refuse(&validator, &json!({ key: value }));
        }
    }
    for (key, _, bad) in recording_keys() {
        for value in bad.into_iter().chain([Value::Null]) {
            refuse(&validator, &json!({ "pipeline": { key: value } }));
        }
    }
    for (key, too_much) in [
        ("chunk", 501),
        ("workers", 1025),
        ("group-by", 65),
        ("keep-days", 36_501),
    ] {
        refuse(&validator, &json!({ "pipeline": { key: too_much } }));
    }
}

/// Nix does nothing but fail here: whatever is taken fails later, and not with 64.
#[test]
fn the_program_takes_and_refuses_what_the_schema_does() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("default.nix"), "{ }").unwrap();
    let path = folder.path().join("bin");
    ["nix", "nix-store", "nix-instantiate", "nix-eval-jobs"]
        .into_iter()
        .fold(StandIns::new(&path), |stand_ins, program| {
            stand_ins.instead(program, "#!/bin/sh\nexit 1\n")
        });
    let hook = |configuration: &Value| {
        let plugins = json!([{ "https://example.org/eval-once#v1": configuration }]);
        Program::new(EVAL_ONCE)
            .args(["hook", "command"])
            .env("PATH", &path)
            .env("BUILDKITE_PLUGIN_CONFIGURATION", configuration.to_string())
            .env("BUILDKITE_PLUGINS", plugins.to_string())
            .env("BUILDKITE_BUILD_CHECKOUT_PATH", folder.path())
            .envs([
                ("BUILDKITE_JOB_ID", "job"),
                ("BUILDKITE_BUILD_ID", "build"),
                ("BUILDKITE_STEP_ID", "step"),
                ("BUILDKITE_AGENT_ACCESS_TOKEN", "token"),
            ])
            .env("EVAL_ONCE_STATE_DIR", folder.path().join("state"))
            .folder(folder.path())
            .run()
    };
    let of_a_step: fn(&str, Value) -> Value = |key, value| json!({ key: value });
    let of_a_recording: fn(&str, Value) -> Value = |key, value| match key {
        // It is refused without the other.
        "batch" => json!({ "pipeline": { key: value, "base": "eval-once.json" } }),
        _ => json!({ "pipeline": { key: value } }),
    };
    let keys = [(step_keys(), of_a_step), (recording_keys(), of_a_recording)]
        .into_iter()
        .flat_map(|(keys, of)| keys.into_iter().map(move |keys| (keys, of)));
    for ((key, good, bad), configuration) in keys {
        for value in bad.into_iter().chain([Value::Null]) {
            hook(&configuration(key, value)).exits(64).passes_on(key);
        }
        for value in good {
            let ended = hook(&configuration(key, value.clone()));
            if key == "refused" {
                ended.exits(64).passes_on(value.as_str().unwrap());
            } else {
                assert_ne!(
                    ended.status.code(),
                    Some(64),
                    "refused: {key}: {value}: {ended}"
                );
            }
        }
    }
    for pair in [
        json!({ "file": "a", "expr": "b" }),
        json!({ "file": "a", "flake": "b" }),
        json!({ "expr": "a", "flake": "b" }),
        json!({ "attribute": "a" }),
    ] {
        hook(&pair).exits(64);
        hook(&json!({ "pipeline": pair })).exits(64);
    }
    for (key, mut good, _) in step_keys() {
        let value = good.remove(0);
        hook(&json!({ "pipeline": {}, key: value }))
            .exits(64)
            .passes_on("pipeline");
        hook(&json!({ "summary": true, key: value }))
            .exits(64)
            .passes_on(key);
    }
    for summary in [json!(false), json!("true"), Value::Null] {
        hook(&json!({ "summary": summary }))
            .exits(64)
            .passes_on("summary");
    }
}

#[test]
fn all_keys_of_a_step_go_together_as_do_those_of_a_recording() {
    let together = |keys: Vec<(&str, Vec<Value>, Vec<Value>)>| -> Value {
        keys.into_iter()
            .filter(|(key, ..)| !["expr", "flake"].contains(key))
            .map(|(key, mut good, _)| (key.to_owned(), good.remove(0)))
            .collect::<Map<_, _>>()
            .into()
    };
    accept(&validator(), &together(step_keys()));
    accept(
        &validator(),
        &json!({ "pipeline": together(recording_keys()) }),
    );
}

#[test]
fn an_unknown_key_is_refused() {
    let validator = validator();
    refuse(&validator, &json!({ "attribute": "a" }));
    refuse(&validator, &json!({ "out_link": "result" }));
    refuse(&validator, &json!({ "pipeline": { "atr": "a" } }));
    // Keys of a step that a recording does not have, and the other way round.
    refuse(&validator, &json!({ "pipeline": { "drv": DRV } }));
    refuse(&validator, &json!({ "workers": 2 }));
}

#[test]
fn only_one_thing_is_evaluated() {
    let validator = validator();
    let pairs = [
        json!({ "file": "a", "expr": "b" }),
        json!({ "file": "a", "flake": "b" }),
        json!({ "expr": "a", "flake": "b" }),
        json!({ "file": "a", "expr": "b", "flake": "c" }),
    ];
    for pair in pairs {
        refuse(&validator, &pair);
        refuse(&validator, &json!({ "pipeline": pair }));
    }
}

#[test]
fn a_recording_has_no_key_of_a_step_beside_it_nor_has_a_summary() {
    let validator = validator();
    for (key, mut good, _) in step_keys() {
        let value = good.remove(0);
        refuse(&validator, &json!({ "pipeline": {}, key: value }));
        refuse(&validator, &json!({ "summary": true, key: value }));
    }
    refuse(&validator, &json!({ "pipeline": {}, "summary": true }));
}

#[test]
fn every_documented_example_is_of_the_schema_and_of_this_version() {
    let validator = validator();
    let reference = format!("#v{}", env!("CARGO_PKG_VERSION"));
    let mut examples = 0;
    for (page, block) in yaml_blocks() {
        let block: Value = serde_yaml_ng::from_str(&block)
            .unwrap_or_else(|error| panic!("{page}: not YAML, {error}:\n{block}"));
        for_each_use(&block, &mut |plugin, configuration| {
            examples += 1;
            assert!(
                plugin.ends_with(&reference),
                "{page}: {plugin} is not of version {reference}"
            );
            if let Err(error) = validator.validate(configuration) {
                panic!("{page}: {plugin}: {error}:\n{configuration:#}");
            }
        });
    }
    assert!(examples > 0, "no page shows how the plugin is used");
}

#[test]
fn every_documented_record_is_of_the_schema() {
    let validator = validator();
    let mut records = 0;
    for (page, block) in yaml_blocks() {
        let block: Value = serde_yaml_ng::from_str(&block).unwrap();
        for_each_value_of("EVAL_ONCE_STEP", &block, &mut |record| {
            records += 1;
            let record: Value = serde_json::from_str(record.as_str().unwrap())
                .unwrap_or_else(|error| panic!("{page}: not JSON, {error}: {record}"));
            assert!(record.get("pipeline").is_none(), "{page}: {record:#}");
            if let Err(error) = validator.validate(&record) {
                panic!("{page}: {error}:\n{record:#}");
            }
        });
    }
    assert!(records > 0, "no page shows a step's record as JSON");
}

#[test]
fn the_readme_names_every_key_and_the_guide_explains_every_key_of_a_recording() {
    let page = |name| fs::read_to_string(root().join(name)).unwrap();
    let (readme, guide) = (page("README.md"), page("docs/pipeline.md"));
    let recording = recording_keys();
    for (key, ..) in step_keys().iter().chain(&recording) {
        assert!(readme.contains(&format!("`{key}`")), "{key} is missing");
    }
    for (key, ..) in &recording {
        assert!(guide.contains(&format!("`{key}`")), "{key} is missing");
    }
}

/// The whole of `plugin.yml`.
fn definition() -> Value {
    let text = fs::read_to_string(root().join("plugin.yml")).unwrap();
    serde_yaml_ng::from_str(&text).unwrap()
}

/// The schema in it.
fn schema() -> Value {
    definition()["configuration"].take()
}

fn recording(schema: &Value) -> &Value {
    &schema["properties"]["pipeline"]["properties"]
}

fn validator() -> Validator {
    jsonschema::draft7::new(&schema()).unwrap()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn accept(validator: &Validator, configuration: &Value) {
    if let Err(error) = validator.validate(configuration) {
        panic!("refused, {error}: {configuration:#}");
    }
}

#[track_caller]
fn refuse(validator: &Validator, configuration: &Value) {
    assert!(
        !validator.is_valid(configuration),
        "accepted: {configuration:#}"
    );
}

/// Visits a schema and all that are in it.
fn for_each_schema(schema: &Value, visit: &mut impl FnMut(&Map<String, Value>)) {
    let Some(schema) = schema.as_object() else {
        return; // `false`: refused whatever it is
    };
    visit(schema);
    for (keyword, value) in schema {
        match keyword.as_str() {
            "properties" => value
                .as_object()
                .unwrap()
                .values()
                .for_each(|schema| for_each_schema(schema, visit)),
            "anyOf" => value
                .as_array()
                .unwrap()
                .iter()
                .for_each(|schema| for_each_schema(schema, visit)),
            "items" | "additionalProperties" => for_each_schema(value, visit),
            _ => {}
        }
    }
}

/// The pipelines in the README and the guide, each with the page it is on: all blocks marked as YAML that are not another file.
pub(super) fn yaml_blocks() -> Vec<(String, String)> {
    let mut blocks = all_yaml_blocks();
    blocks.retain(|(_, block)| !block.starts_with(POD_SETTINGS));
    blocks
}

/// The settings of Buildkite's controller for Kubernetes on the pages.
pub(super) fn pod_settings() -> Vec<(String, String)> {
    let mut blocks = all_yaml_blocks();
    blocks.retain(|(_, block)| block.starts_with(POD_SETTINGS));
    blocks
}

/// How such a block begins.
const POD_SETTINGS: &str = "# values.yaml\n";

fn all_yaml_blocks() -> Vec<(String, String)> {
    let mut pages = vec![root().join("README.md")];
    if let Ok(guide) = fs::read_dir(root().join("docs")) {
        pages.extend(guide.map(|page| page.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    let mut blocks = Vec::new();
    for page in pages {
        let text =
            fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        let mut open: Option<String> = None;
        for line in text.lines() {
            match &mut open {
                Some(_) if line.trim() == "```" => {
                    blocks.push((page.display().to_string(), open.take().unwrap()));
                }
                Some(block) => {
                    block.push_str(line);
                    block.push('\n');
                }
                None if ["```yaml", "```yml"].contains(&line.trim()) => open = Some(String::new()),
                None => {}
            }
        }
        assert!(open.is_none(), "{}: a block has no end", page.display());
    }
    blocks
}

/// Visits each use of our plugin in a pipeline or a part of one: its reference, and its configuration (`{}` if none).
pub(super) fn for_each_use(yaml: &Value, visit: &mut impl FnMut(&str, &Value)) {
    let none = json!({});
    match yaml {
        Value::String(text) if is_ours(text) => visit(text, &none),
        Value::Array(items) => items.iter().for_each(|item| for_each_use(item, visit)),
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    _ if !is_ours(key) => for_each_use(value, visit),
                    Value::Null => visit(key, &none),
                    configuration => visit(key, configuration),
                }
            }
        }
        _ => {}
    }
}

/// Visits each value that stands under this key.
pub(super) fn for_each_value_of(wanted: &str, yaml: &Value, visit: &mut impl FnMut(&Value)) {
    match yaml {
        Value::Array(items) => items
            .iter()
            .for_each(|item| for_each_value_of(wanted, item, visit)),
        Value::Object(map) => {
            for (key, value) in map {
                if key == wanted {
                    visit(value);
                } else {
                    for_each_value_of(wanted, value, visit);
                }
            }
        }
        _ => {}
    }
}

/// Is this a reference of our plugin, as it stands in `plugins:`?
fn is_ours(text: &str) -> bool {
    let location = text.split('#').next().unwrap_or_default();
    let name = location.rsplit('/').next().unwrap_or_default();
    let name = name.strip_suffix(".git").unwrap_or(name);
    let name = name.strip_suffix("-buildkite-plugin").unwrap_or(name);
    name == "eval-once" && location.contains('/')
}
