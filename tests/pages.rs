//! The README and the guide are true: their links lead somewhere, and their examples do what they show.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use eval_once::step::{Reason, WayName};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    plugin_yml::{for_each_use, for_each_value_of, pod_settings, yaml_blocks},
    support::{
        EVAL_ONCE, agent,
        buildkite::{Build, Outcome},
        program::Program,
        store::Store,
        tool,
    },
};

#[test]
fn every_link_on_a_page_leads_to_a_file_and_a_heading_that_exist() {
    let mut links = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in targets_of_links(&text) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = if file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap().join(file)
            };
            let place = format!("{}: ({target})", page.display());
            assert!(file.exists(), "{place}: there is no such file");
            if !anchor.is_empty() {
                let anchors = anchors(&fs::read_to_string(&file).unwrap());
                assert!(
                    anchors.contains(anchor),
                    "{place}: no such heading; there are {anchors:#?}"
                );
            }
        }
    }
    assert!(links > 50, "only {links} links were found");
}

/// `docs/security.md` names the test of each claim as `module::test`.
#[test]
fn every_test_that_the_page_on_security_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut files = rust_files(&root.join("src"));
    files.extend(rust_files(&root.join("tests")));
    let is_there = |module: &str, test: &str| {
        let is_module = |file: &&PathBuf| file.file_stem().is_some_and(|stem| stem == module);
        let text = files
            .iter()
            .filter(is_module)
            .map(|file| fs::read_to_string(file).unwrap());
        let lines: Vec<String> = text
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let function = format!("fn {test}(");
        let at = lines
            .iter()
            .position(|line| line.trim_start().starts_with(&function));
        // Within a `proptest!`, too.
        at.is_some_and(|at| {
            lines[..at]
                .iter()
                .rev()
                .take(3)
                .any(|line| line.trim() == "#[test]")
        })
    };
    let quoted = page.split('`').skip(1).step_by(2);
    let named: Vec<(&str, &str)> = quoted.filter_map(|name| name.split_once("::")).collect();
    assert!(named.len() > 30, "{named:?}");
    for (module, test) in named {
        assert!(
            is_there(module, test),
            "docs/security.md: there is no test {module}::{test}"
        );
    }
    // The control.
    assert!(!is_there("pages", "rust_files"));
    assert!(!is_there("pages", "no_such_test"));
}

/// The Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = folders.iter().flat_map(|folder| rust_files(folder));
    let files = files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|it| it == "rs"));
    files.chain(below).collect()
}

#[test]
fn anchors_are_made_as_github_makes_them() {
    let page = "# `a`, `b-c`\n## The step's own command: `command`\n```console\n# no heading\n```\n## Again\n## Again\n";
    let expected = ["a-b-c", "the-steps-own-command-command", "again", "again-1"];
    assert_eq!(anchors(page), expected.map(str::to_owned).into());
}

/// A page that shows what the examples give shows what they give today.
///
/// The paths are those below `/nix/store`, whatever store this machine has: none is needed to compute them.
#[test]
fn every_path_and_key_of_an_example_on_a_page_is_the_one_that_nix_computes() {
    let Some(paths) = example_paths() else {
        return;
    };
    let keys: BTreeSet<String> = paths
        .values()
        .flatten()
        .filter_map(|path| path.strip_suffix(".drv"))
        .map(|path| format!("drv-{}", &path["/nix/store/".len()..][..32]))
        .collect();
    let (mut shown, mut wrong) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let page = page.display();
        for path in hashed("/nix/store/", &text) {
            let name = path["/nix/store/".len() + 33..].trim_end_matches('.');
            let Some(right) = paths.get(name) else {
                continue; // of no example
            };
            shown += 1;
            if !right.contains(path.trim_end_matches('.')) {
                wrong.push(format!("{page}: {path}, which is {right:?}"));
            }
        }
        for key in hashed("drv-", &text) {
            shown += 1;
            if !keys.contains(&key) {
                wrong.push(format!("{page}: {key} is the key of no example's step"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(shown > 50, "only {shown} paths and keys were found");
}

#[test]
fn the_readme_begins_with_a_sentence_of_fifteen_words() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (title, rest) = readme.split_once("\n\n").unwrap();
    assert_eq!(title, "# eval-once");
    let sentence = rest.split_once(".\n").unwrap().0;
    assert_eq!(sentence.split_whitespace().count(), 15, "{sentence}");
}

#[test]
fn every_pipeline_on_a_page_is_one_that_buildkite_takes() {
    let schema = fs::read(root().join("src/buildkite/pipeline-schema.json")).unwrap();
    let schema = jsonschema::validator_for(&serde_json::from_slice(&schema).unwrap()).unwrap();
    let mut pipelines = 0;
    for (page, block) in yaml_blocks() {
        let pipeline: Value = serde_yaml_ng::from_str(&block).unwrap();
        assert!(
            pipeline["steps"].is_array(),
            "{page}: only a part of a pipeline:\n{block}"
        );
        if let Err(error) = schema.validate(&pipeline) {
            panic!("{page}: {error}:\n{block}");
        }
        pipelines += 1;
    }
    assert!(pipelines > 20, "only {pipelines} pipelines were found");
}

/// The controller merges them into its own: they cannot be run here. A volume that is not there would only show in a cluster.
#[test]
fn every_pod_on_a_page_mounts_volumes_that_it_has() {
    let mut pods = 0;
    for (page, block) in pod_settings() {
        let settings: Value = serde_yaml_ng::from_str(&block)
            .unwrap_or_else(|error| panic!("{page}: not YAML, {error}:\n{block}"));
        let config = settings["config"].as_object().unwrap();
        let known = ["tags", "default-command-params", "pod-spec-patch"];
        for key in config.keys() {
            assert!(known.contains(&key.as_str()), "{page}: {key}");
        }
        let names = |list: &Value| -> BTreeSet<String> {
            let items = list.as_array().unwrap().iter();
            items
                .map(|item| item["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            names(&config["default-command-params"]["extraVolumeMounts"]),
            names(&config["pod-spec-patch"]["volumes"]),
            "{page}:\n{block}"
        );
        pods += 1;
    }
    assert!(pods > 2, "only {pods} pods were found");
}

/// What is recorded and built on the pages is recorded and built in the example.
///
/// In a private store the recorded paths have other hashes, so each step finds its record gone, and evaluates.
#[test]
fn every_recording_and_every_step_on_a_page_runs_in_the_example() {
    let Some(store) = Store::new() else { return };
    let example = root().join("examples/repository");
    store
        .program("cp")
        .args(["-R".as_ref(), example.as_os_str(), ".".as_ref()])
        .run()
        .exits(0);
    let folder = store.work().join("repository");
    let (mut recordings, mut steps) = (BTreeSet::new(), BTreeSet::new());
    for (_, block) in yaml_blocks() {
        let pipeline: Value = serde_yaml_ng::from_str(&block).unwrap();
        for_each_use(&pipeline, &mut |_, keys| match &keys["pipeline"] {
            Value::Null if !keys["summary"].is_null() => {}
            Value::Null => drop(steps.insert(keys.to_string())),
            keys => drop(recordings.insert(flags(keys))),
        });
        for_each_value_of("EVAL_ONCE_STEP", &pipeline, &mut |record| {
            steps.insert(record.as_str().unwrap().to_owned());
        });
        for_each_value_of("command", &pipeline, &mut |command| {
            if let Some(flags) = command
                .as_str()
                .and_then(|it| it.strip_prefix("eval-once pipeline "))
            {
                recordings.insert(flags.split(' ').map(str::to_owned).collect());
            }
        });
    }
    assert!(recordings.len() > 8, "{recordings:#?}");
    assert!(steps.len() > 8, "{steps:#?}");
    for flags in recordings {
        let ended = store
            .eval_once(["pipeline", "--dry-run"])
            .args(&flags)
            .folder(&folder)
            .run();
        if flags.windows(2).any(|flag| flag == ["--on-error", "fail"]) {
            ended.exits(65); // one attribute of the example does not evaluate
            continue;
        }
        let steps = ended.exits(0).json()["steps"].as_array().unwrap().len();
        // Nothing follows a target in the example.
        let is_release = flags.windows(2).any(|flag| flag == ["--phases", "release"]);
        assert_eq!(steps > 0, !is_release, "{flags:?}: {ended}");
    }
    for record in steps {
        let record = record.replace("/nix/store", &store.folder().display().to_string());
        let step = store.eval_once(["step"]).env("EVAL_ONCE_STEP", record);
        step.folder(&folder).run().exits(0);
    }
}

/// The keys of a recording as flags.
fn flags(keys: &Value) -> Vec<String> {
    let mut flags = Vec::new();
    for (key, value) in keys.as_object().unwrap() {
        let text = |value: &Value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        };
        let flag = match key.as_str() {
            "options" => "--option".to_owned(),
            key => format!("--{key}"),
        };
        match (key.as_str(), value) {
            (_, Value::Bool(true)) => flags.push(flag),
            (key, Value::Bool(false)) => flags.push(format!("--no-{key}")),
            ("arg" | "argstr" | "options", Value::Object(map)) => {
                for (name, value) in map {
                    flags.extend([flag.clone(), name.clone(), text(value)]);
                }
            }
            ("exclude" | "expect-errors" | "include" | "phases", Value::Array(items)) => {
                for item in items {
                    let names = item.as_array().map(|names| {
                        let names: Vec<String> = names.iter().map(Value::to_string).collect();
                        names.join(".")
                    });
                    flags.extend([flag.clone(), names.unwrap_or_else(|| text(item))]);
                }
            }
            _ => flags.extend([flag, text(value)]),
        }
    }
    flags
}

/// The build that `docs/summary.md` describes. Its annotations are the README's picture.
#[test]
fn the_summary_on_its_page_is_that_of_the_example() {
    let (Some(_), Some(_), Some(store)) = (tool("git"), agent::program(), Store::new()) else {
        return;
    };
    let example = root().join("examples/repository/.");
    store
        .program("cp")
        .args(["-R".as_ref(), example.as_os_str(), ".".as_ref()])
        .run()
        .exits(0);
    store.build(&store.instantiate("ci.nix", "packages.libgreet"));
    let manual = store.instantiate("ci.nix", "packages.manual");
    let hook = format!(
        "[ \"$BUILDKITE_STEP_KEY\" != drv-{} ] || {{
          rm -r \"$EVAL_ONCE_STATE_DIR/pins\"
          env -u NIX_REMOTE nix-store --delete --ignore-liveness $(nix-store -q --referrers {manual}) {manual}
        }}\n",
        &manual.rsplit('/').next().unwrap()[..32]
    );
    let repositories = TempDir::new().unwrap();
    let plugin = agent::plugin_repository(repositories.path());
    let plugins =
        json!([{ plugin: { "pipeline": { "file": "ci.nix", "summary": true, "share": false } } }]);
    let step = json!({ "key": "record", "label": ":nix: record", "plugins": plugins });
    let Some(build) = Build::new(&step) else {
        return;
    };
    let build = build.checkout(store.work()).envs(store.env());
    let build = build.envs([("EVAL_ONCE_BIN", EVAL_ONCE)]);
    let build = build.shell_hook("pre-command", &hook).agents(1);
    assert_eq!(
        build.run(),
        Outcome::Failed,
        "one attribute does not evaluate"
    );

    let page = fs::read_to_string(root().join("docs/summary.md")).unwrap();
    let quoted = page.lines().filter_map(|line| line.strip_prefix("> "));
    let annotation = &build.annotations()["eval-once-summary"].body;
    assert_eq!(comparable(quoted), comparable(annotation.lines()));
}

/// The lines of a summary, sorted, without links to jobs, and without what was measured in it.
fn comparable<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut lines: Vec<String> = lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (before, target) = line.split_once("<a href=").unwrap_or((line, ""));
            let (_, name) = target.split_once('>').unwrap_or_default();
            let row = format!("{before}{}", name.replace("</a>", ""));
            let end = if row.starts_with('|') {
                row.trim_end_matches(" |").rfind('|')
            } else {
                row.find(":** ")
            };
            row[..end.unwrap_or(row.len())].to_owned()
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
fn every_reason_of_a_report_is_explained_and_stands_beside_its_way() {
    let root = root();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let guide = fs::read_to_string(root.join("docs/steps.md")).unwrap();
    let reasons = [
        (WayName::Realised, Reason::DrvValid),
        (WayName::Realised, Reason::DrvSubstituted),
        (WayName::Available, Reason::OutputsAvailable),
        (WayName::Available, Reason::Skipped),
        (WayName::Fetched, Reason::FetchedFromShare),
        (WayName::Evaluated, Reason::DrvMissing),
        (WayName::Evaluated, Reason::DrvCollected),
        (WayName::Evaluated, Reason::OutputsCollected),
        (WayName::Evaluated, Reason::OtherStore),
        (WayName::Evaluated, Reason::NotRecorded),
    ];
    for (way, reason) in reasons {
        let (way, reason) = (way.word(), reason.word());
        let explained = format!("| `{reason}` | `{way}` | ");
        assert!(guide.contains(&explained), "{explained} is missing");
        let row = readme.lines().find(|line| {
            line.starts_with(&format!("| `{way}` |")) && line.contains(&format!("`{reason}`"))
        });
        assert!(row.is_some(), "the README's {way} lacks {reason}");
    }
}

#[test]
fn what_the_log_says_on_the_page_about_fleets_is_what_the_program_can_say() {
    let root = root();
    let page = fs::read_to_string(root.join("docs/fleet.md")).unwrap();
    let files = fs::read_dir(root.join("tests/messages")).unwrap();
    let sentences: String = files
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with("| the log says |"))
        .take_while(|line| line.starts_with('|'));
    let mut said = 0;
    for row in rows.filter(|row| !row.contains("(Nix; ")) {
        let cell = row.split('|').nth(1).unwrap();
        for sentence in cell.split('`').skip(1).step_by(2) {
            if sentence.contains(' ') {
                said += 1;
                for part in sentence.split('…').map(str::trim) {
                    assert!(sentences.contains(part), "the program never says {part:?}");
                }
            }
        }
    }
    assert!(said > 6, "only {said} sentences were found");
}

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_test_that_contributors_are_shown_exists() {
    let page = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    let tests: String = fs::read_dir(root().join("tests"))
        .unwrap()
        .filter_map(|file| fs::read_to_string(file.unwrap().path()).ok())
        .collect();
    let names = page.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let names: Vec<&str> = names.filter(|it| it.matches('_').count() > 4).collect();
    assert!(names.len() > 4, "{names:?}");
    for name in names {
        assert!(tests.contains(&format!("fn {name}")), "no test {name}");
    }
}

/// The README, the guide, and what else a newcomer reads.
pub(super) fn pages() -> Vec<PathBuf> {
    let root = root();
    let mut pages: Vec<PathBuf> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
        .map(|page| root.join(page))
        .into();
    let guide = fs::read_dir(root.join("docs")).unwrap();
    pages.extend(
        guide
            .map(|page| page.unwrap().path())
            .filter(|page| page.extension().is_some_and(|extension| extension == "md")),
    );
    pages
}

/// The lines of a page that are no code block's.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    page.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// What stands in the parentheses of `[…](…)`, links and pictures alike.
fn targets_of_links(page: &str) -> Vec<String> {
    let text = prose(page).collect::<Vec<_>>().join("\n");
    text.split("](")
        .skip(1)
        .map(|rest| rest.split_once(')').unwrap().0.to_owned())
        .collect()
}

/// The anchors of a page's headings: lower case, what is no letter, digit, `-` or `_` left out, spaces as `-`, numbered from the
/// second of the same on.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    prose(page)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let slug: String = line
                .trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect();
            let before = seen.entry(slug.clone()).or_default();
            *before += 1;
            match *before {
                1 => slug,
                again => format!("{slug}-{}", again - 1),
            }
        })
        .collect()
}

/// Every `PREFIX` that the 32 characters of a hash follow, with the rest of its name.
pub(super) fn hashed(prefix: &str, page: &str) -> Vec<String> {
    page.split(prefix)
        .skip(1)
        .filter_map(|rest| {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "+-._?=".contains(*c))
                .collect();
            let hash = name.get(..32)?;
            let is_hash = hash
                .chars()
                .all(|c| c.is_ascii_digit() || (c.is_ascii_lowercase() && !"eotu".contains(c)));
            (is_hash && (prefix == "drv-" || name[32..].starts_with('-')))
                .then(|| format!("{prefix}{name}"))
        })
        .collect()
}

/// The `.drv`s and outputs of both examples, by name; `None` without Nix, with a message.
fn example_paths() -> Option<BTreeMap<String, BTreeSet<String>>> {
    let state = TempDir::new().unwrap();
    let examples = root().join("examples");
    let expression = format!(
        "let
          all = value:
            let known = builtins.tryEval value; in
            if !known.success then [ ]
            else if builtins.isList value then builtins.concatMap all value
            else if !(builtins.isAttrs value) then [ ]
            else if value.type or null == \"derivation\" then
              [ value.drvPath ] ++ map (output: value.${{output}}.outPath) (value.outputs or [ \"out\" ])
            else builtins.concatMap all (builtins.attrValues value);
        
          system = \"x86_64-linux\";
        in all [ (import {0}/repository/ci.nix {{ inherit system; }}) (import {0}/small {{ inherit system; }}) ]",
        examples.display()
    );
    let printed = Program::new(tool("nix-instantiate")?)
        .args(["--store", "dummy://", "--eval", "--strict", "--json"])
        .args(["-E", &expression])
        .env("NIX_STORE_DIR", "/nix/store")
        .env("NIX_STATE_DIR", state.path())
        .env("HOME", state.path())
        .run();
    let printed = printed.exits(0).json();
    let mut paths: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in printed.as_array().unwrap() {
        let path = path.as_str().unwrap();
        let name = path["/nix/store/".len() + 33..].to_owned();
        paths.entry(name).or_default().insert(path.to_owned());
    }
    Some(paths)
}
