//! Secrets: refused in whatever is written into steps, and hidden in whatever is printed or published.

use std::fs;

use eval_once::keys::{
    KeyReader, Keys,
    table::{self, KeyKind, KeyOwner},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    EVAL_ONCE,
    agent::{plugin_repository, program},
    buildkite::{Build, Outcome},
    program::{Ended, Program},
    stand_in::StandIns,
    store::Store,
    tool,
    web::Web,
};

/// What must not be seen anywhere.
const SECRET: &str = "s3cr3tpassw0rd";

/// A URL with it.
fn url() -> String {
    format!("https://user:{SECRET}@127.0.0.1:9/x")
}

#[test]
fn every_key_that_has_room_for_a_secret_refuses_one_by_its_name() {
    for owner in [KeyOwner::Step, KeyOwner::Recording, KeyOwner::Target] {
        let mut tried = 0;
        for key in table::of(owner) {
            let values = match key.kind {
                // Another value of the latter is refused by its type, and must not be repeated then.
                KeyKind::Text(_)
                | KeyKind::TextOrFalse(..)
                | KeyKind::Boolean
                | KeyKind::BooleanOr(_)
                | KeyKind::Choice(..)
                | KeyKind::Number(..) => vec![json!(url())],
                KeyKind::Texts(_) | KeyKind::AttrPath | KeyKind::AttrPaths => {
                    vec![json!([url()]), json!(["a", url()])]
                }
                KeyKind::Pairs(_) | KeyKind::Paths => {
                    vec![json!({ "x": url() }), json!({ url(): "x" })]
                }
                KeyKind::Maps => vec![json!([{ "x": url() }])],
                KeyKind::Json => vec![
                    json!({ "x": url() }),
                    json!({ "x": { "y": [1, url()] } }),
                    json!({ "x": [{ url(): null }] }),
                ],
            };
            for value in values {
                let keys = Keys::from_iter([(key.name.to_owned(), value.clone())]);
                let refusal = KeyReader::new(keys).unwrap_err().to_string();
                assert!(
                    refusal.starts_with(&format!("`{}", key.name)),
                    "{value}: {refusal}"
                );
                assert!(refusal.contains("holds a secret"), "{value}: {refusal}");
                assert!(!refusal.contains(SECRET), "{refusal}");
                tried += 1;
            }
        }
        assert!(tried > 5, "{}", owner.noun());
    }
}

/// What a recording runs.
const PROGRAMS: [&str; 4] = ["nix", "nix-store", "nix-instantiate", "buildkite-agent"];

/// A store with something to record, and stand-ins that count every process.
fn counted(store: &Store) -> StandIns {
    let stand_ins = StandIns::new(store.bin());
    ["nix", "nix-store", "nix-instantiate"]
        .into_iter()
        .fold(stand_ins, StandIns::counting)
        .instead("buildkite-agent", "#!/bin/sh\nexit 1\n")
}

#[test]
fn a_recording_with_a_secret_ends_before_anything_is_run_and_says_where_it_belongs() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; }");
    let stand_ins = counted(&store);
    let check = |program: Program, parts: &[&str]| {
        let ended = program
            .env("PATH", stand_ins.path(&store))
            .env("EVAL_ONCE_LOG", "debug")
            .run();
        ended.exits(64).prints("").never_says(SECRET);
        for part in parts {
            ended.passes_on(part);
        }
        for program in PROGRAMS {
            assert!(stand_ins.calls(program).is_empty(), "{program}: {ended}");
        }
    };
    let url = url();
    let tokens = format!("github.com={SECRET}");
    for (flags, key, place) in [
        (&["--file", url.as_str()][..], "file", "`netrc-file`"),
        (
            &["--flake", &format!("git+{url}")],
            "flake",
            "credential helper",
        ),
        (
            &["--flake", &format!("github:o/r?token={SECRET}")],
            "flake",
            "`access-tokens`",
        ),
        (
            &["--option", "access-tokens", &tokens],
            "options.access-tokens",
            "NIX_CONFIG",
        ),
        (
            &["--option", "substituters", &url],
            "options.substituters",
            "`netrc-file`",
        ),
        (
            &["--argstr", "token", SECRET],
            "argstr.token",
            "from a file on the agents",
        ),
        (
            &["--push", &format!("https://h?token={SECRET}")],
            "push",
            "`netrc-file`",
        ),
        (
            &[
                "--step",
                &json!({ "env": { "X_TOKEN": SECRET } }).to_string(),
            ],
            "step.env.X_TOKEN",
            "`environment` hook",
        ),
    ] {
        for program in ["pipeline", "step", "explain"] {
            if program == "pipeline" || !key.starts_with("step") {
                let key = format!("error: `{key}` holds a secret");
                check(store.eval_once([program]).args(flags), &[&key, place]);
            }
        }
    }
    check(
        store.eval_once(["pipeline"]).env("EVAL_ONCE_SHARE", &url),
        &["error: EVAL_ONCE_SHARE holds a secret", "`netrc-file`"],
    );
    // What is not understood is not repeated either.
    check(store.eval_once(["pipeline", "--stray", &url]), &[]);
    check(store.eval_once(["pipeline", &url]), &["***"]);
    check(store.eval_once(["pipeline", "--workers", &url]), &["***"]);
    check(
        store
            .eval_once(["step"])
            .env("EVAL_ONCE_STEP", format!("\"{url}\"")),
        &[],
    );
    // The control: without one, it is recorded.
    let ended = store
        .eval_once(["pipeline", "--dry-run", "--argstr", "tokenizer", SECRET])
        .env("PATH", stand_ins.path(&store))
        .run();
    ended.exits(0);
    assert!(ended.stdout.contains(SECRET), "{ended}");
}

#[test]
fn a_secret_in_another_form_is_refused_as_well() {
    let Some(store) = Store::new() else { return };
    let curl = json!({ "command": format!("curl -u bob:{SECRET} https://h") }).to_string();
    let header = json!({ "command": format!("curl -H 'X-Vault-Token: {SECRET}' https://h") });
    for (flags, key) in [
        // curl takes three slashes for two.
        (&["--file", &*url().replace("//", "///")][..], "file"),
        (&["--file", "https://127.0.0.1:9/x?pass=hunter2"], "file"),
        (
            &[
                "--option",
                "post-build-hook",
                &format!("/x --token={SECRET}"),
            ],
            "options.post-build-hook",
        ),
        (&["--step", &curl], "step.command"),
        (&["--step", &header.to_string()], "step.command"),
    ] {
        let ended = store.eval_once(["pipeline"]).args(flags).run();
        ended.exits(64).prints("").never_says(SECRET);
        ended.never_says("hunter2");
        ended.passes_on(&format!("error: `{key}` holds a secret"));
    }
}

#[test]
fn what_a_host_keeps_secret_is_in_no_argument() {
    let Some(store) = Store::new() else { return };
    store.targets("{ hello = file \"hello\"; other = file \"other\"; }");
    let folder = store.root().join("cache");
    fs::create_dir(&folder).unwrap();
    let info = format!("StoreDir: {}\n", store.folder().display());
    fs::write(folder.join("nix-cache-info"), info).unwrap();
    let web = Web::serve(&folder);
    let address = web.url().replace("http://", "");
    store.configure(&format!("access-tokens = github.com={SECRET}"));
    // One answers, and the other one is left out as soon as Nix has said that it does not.
    store.configure(&format!(
        "substituters = http://user:{SECRET}@{address} http://user:{SECRET}@127.0.0.1:9"
    ));
    store.configure("connect-timeout = 1");
    store.configure("download-attempts = 1");
    let stand_ins = counted(&store);
    let run = |arguments: &[&str], status: i32| -> Ended {
        let ended = store
            .eval_once(arguments)
            .env("PATH", stand_ins.path(&store))
            .env(
                "NIX_CONFIG",
                format!("access-tokens = gitlab.com=PAT:{SECRET}"),
            )
            .env("EVAL_ONCE_LOG", "debug")
            .run();
        ended.exits(status);
        assert!(!ended.stdout.contains(SECRET), "{ended}");
        ended
    };
    // A .drv that no cache has is looked for in each.
    let drv = &store.instantiate("default.nix", "other");
    store.delete([drv]);
    let other = ["--drv", drv, "--file", "default.nix", "--attr", "other"];
    run(&[&["explain", "--json"][..], &other].concat(), 0);
    run(&[&["step"][..], &other].concat(), 0);
    run(&["pipeline", "--dry-run", "--skip", "cached"], 0);
    run(&["step", "--attr", "hello"], 0);
    run(&["explain", "--attr", "hello", "--json"], 0);
    // 1: the agent is a stand-in that says nothing.
    let checkup = run(&["doctor", "--json"], 1);
    assert!(
        checkup.stdout.contains("1 of 2 cannot be used"),
        "{checkup}"
    );
    let calls = PROGRAMS.iter().flat_map(|program| stand_ins.calls(program));
    let arguments: Vec<String> = calls.flatten().collect();
    assert!(arguments.len() > 10, "{arguments:?}");
    let with_secret: Vec<&String> = arguments
        .iter()
        .filter(|argument| argument.contains(SECRET))
        .collect();
    assert_eq!(with_secret, [""; 0]);
    assert!(web.downloads("narinfo") > 2);
}

#[test]
fn a_download_that_fails_repeats_no_secret_of_its_url() {
    let Some(store) = Store::new() else { return };
    let url = url().replace("https", "http");
    store.configure("download-attempts = 1");
    store.targets(&format!(
        "{{ fetched = file (builtins.readFile (builtins.fetchurl \"{url}\")); }}"
    ));
    for arguments in [
        &["pipeline", "--dry-run"][..],
        &["step", "--attr", "fetched", "--log", "raw"],
    ] {
        let program = store.eval_once(arguments).env("EVAL_ONCE_LOG", "debug");
        let ended = program.run();
        ended.exits(75).never_says(SECRET);
        ended.passes_on("://***@127.0.0.1:9/x");
        assert!(!ended.stdout.contains(SECRET), "{ended}");
    }
    let ended = store.step(["--attr", "fetched"]).run();
    assert!(!ended.reported().contains(SECRET), "{ended}");
    ended.fails(75, "surroundings");
    // The control: Nix itself shows it.
    let plain = store
        .program("nix-instantiate")
        .args(["--attr", "fetched"])
        .run();
    assert!(plain.stderr.contains(SECRET), "{plain}");
}

/// Targets whose metadata, messages and logs hold secrets.
fn hostile() -> String {
    let url = url();
    format!(
        r#"{{
  good = file "good";
  env = file "env" // {{ meta.buildkite.env.X_TOKEN = "{SECRET}"; }};
  plugin = file "plugin" // {{ meta.buildkite.plugins = [ "{url}#v1" ]; }};
  push = file "push" // {{ meta.eval-once.push = "{url}"; }};
  described = file "described" // {{ meta.description = "from {url}"; }};
  thrown = throw "cannot fetch {url}";
  traced = builtins.trace "fetching {url}" (file "traced");
  built = build "built" "echo 'fetching {url}'; echo 'Authorization: Bearer {SECRET}' >&2; exit 1";
  # Colours within secrets, and secrets of several lines.
  coloured = build "coloured" "printf 'https://user:\\033[31m{SECRET}\\033[0m@h/x\\nX_\\033[1mTOKEN\\033[m={SECRET}\\nred\\n'; exit 1";
  key = build "key" "echo '-----BEGIN RSA PRIVATE KEY-----'; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo \"$i{SECRET}abcdefghijklmnopqrstuvwxyz\"; done; exit 1";
  netrc = build "netrc" "echo 'machine example.org'; echo '  login ci'; echo '  password {SECRET}'; exit 1";
}}"#
    )
}

#[test]
fn an_entry_of_netrc_in_a_message_is_hidden_wherever_it_is_shown() {
    let Some(store) = Store::new() else { return };
    store.targets(&format!(
        r#"{{
  thrown = throw "machine h.example\n  login u\n  password {SECRET}\n";
  quoted = throw "default login u password '{SECRET}'";
  traced = builtins.trace "machine h\nlogin u\npassword {SECRET}" (throw "it");
}}"#
    ));
    for log in ["pretty", "raw"] {
        for attr in ["thrown", "quoted", "traced"] {
            let step = store.step(["--attr", attr, "--log", log]);
            let ended = step.run();
            ended.exits(65).never_says(SECRET);
            assert!(ended.stderr.contains("***"), "{ended}");
        }
    }
    let ended = store.eval_once(["pipeline", "--dry-run"]).run();
    let printed = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!printed.contains(SECRET), "{ended}");
    assert!(ended.stderr.contains("***"), "{ended}");
}

#[test]
fn what_a_builder_says_of_passwords_decides_nothing() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"{
  hash = with' { outputHashMode = "flat"; outputHashAlgo = "sha256"; outputHash = "0000000000000000000000000000000000000000000000000000"; }
    "hash" "echo default; echo the password in use; echo machine h; echo password derivation; echo > $out";
  status = build "status" "echo machine h; echo password failed; exit 1";
}"#,
    );
    for (attr, status) in [("hash", 102), ("status", 100)] {
        let target = store.target(attr);
        let ended = store.step(target.drv_flags()).run();
        ended.exits(status).passes_on("password ***");
    }
}

#[test]
fn nothing_of_a_build_shows_a_secret_of_its_repository() {
    if tool("git").is_none() || program().is_none() {
        return;
    }
    let Some(store) = Store::new() else { return };
    store.targets(&hostile());
    let repositories = TempDir::new().unwrap();
    let plugin = plugin_repository(repositories.path());
    for log in ["pretty", "raw"] {
        let keys = json!({ "summary": true, "share": false, "log": log });
        let plugins = json!([{ &plugin: { "pipeline": keys } }]);
        let step = json!({ "key": "record", "label": "Record", "plugins": plugins });
        let Some(build) = Build::new(&step) else {
            return;
        };
        let build = build
            .checkout(store.work())
            .envs(store.env())
            .envs([("EVAL_ONCE_BIN", EVAL_ONCE), ("EVAL_ONCE_LOG", "debug")])
            .agents(1);
        assert_eq!(build.run(), Outcome::Failed, "something in it is red");
        let mut seen = vec![];
        seen.extend(
            build
                .jobs()
                .into_iter()
                .map(|job| (format!("the log of {:?}", job.label), job.plain())),
        );
        seen.extend(
            build
                .annotations()
                .into_iter()
                .map(|(name, it)| (name, it.body)),
        );
        seen.extend(build.meta_data());
        seen.extend(
            build
                .uploads()
                .into_iter()
                .map(|it| ("an upload".into(), it.to_string())),
        );
        let artifacts = build.artifacts().into_iter();
        seen.extend(
            artifacts.map(|(name, bytes)| (name, String::from_utf8_lossy(&bytes).into_owned())),
        );
        let shown: Vec<_> = seen
            .iter()
            .filter(|(_, text)| text.contains(SECRET))
            .collect();
        assert!(shown.is_empty(), "{shown:#?}");
        // The control: what is beside them is there.
        for part in [
            "X_TOKEN=***",
            "  password ***",
            "cannot fetch https://***@127.0.0.1:9/x",
            "Authorization: Bearer ***",
        ] {
            assert!(seen.iter().any(|(_, text)| text.contains(part)), "{part}");
        }
        let document = seen
            .iter()
            .find(|(name, _)| name == "eval-once.json")
            .unwrap();
        let document: Value = serde_json::from_str(&document.1).unwrap();
        let refused = document["errors"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|error| error["refused"] == true);
        let refused: Vec<&str> = refused
            .map(|error| error["message"].as_str().unwrap())
            .collect();
        assert_eq!(refused.len(), 3, "{refused:?}");
        for message in refused {
            assert!(message.contains("holds a secret"), "{message}");
        }
    }
}
