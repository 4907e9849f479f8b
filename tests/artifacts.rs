//! Files of a target's outputs that become artifacts of the build (`meta.eval-once.artifacts`), through the real agent.

use serde_json::json;

use crate::support::{
    EVAL_ONCE,
    buildkite::{Build, JobState, Outcome},
    store::Store,
};

#[test]
fn files_of_the_outputs_become_artifacts_and_no_file_of_the_host_does() {
    let Some(store) = Store::new() else { return };
    let secret = store.write("secret", "secret");
    store.targets(&format!(
        r#"let
          mkdir = "export PATH={path};";
          with_ = artifacts: drv: drv // {{ meta.eval-once = {{ inherit artifacts; }}; }};
        in {{
          docs."the manual" = with_ [ "share/**" "lib/*.so" ] (buildAll [ "out" "doc" ] "manual" ''
            ${{mkdir}} mkdir -p $out/share/deep $doc/share
            echo index > $out/share/index.html
            echo hidden > $out/share/deep/.hidden
            echo 'odd' > "$out/share/; * [x] \"q\" <b>.txt"
            ln -s {secret} $out/share/secret
            ln -s ../share/index.html $out/share/linked.html
            echo doc > $doc/share/doc.txt
          '');
          single = with_ [ "*" ] (file "single");
          joined = with_ [ "**" ] (build "joined" ''
            ${{mkdir}} mkdir $out; ln -s ${{file "single"}} $out/single; ln -s {store} $out/store
          '');
          link = with_ [ "*" ] (build "link" "${{mkdir}} ln -s {secret} $out");
          bad = with_ [ "*" ] (build "bad" "exit 1");
        }}"#,
        path = std::env::var("PATH").unwrap(),
        secret = secret.display(),
        store = store.folder().display(),
    ));
    let Some(build) = Build::new(&json!({
        "key": "record",
        "command": format!("{EVAL_ONCE} pipeline --recurse all --keys attr"),
    })) else {
        return;
    };
    let build = build
        .checkout(store.work())
        .envs(store.env())
        .our_hook("command");
    assert_eq!(build.run(), Outcome::Failed);
    let job = build.job("nix-docs-the_manual");
    let log = job.plain();
    assert_eq!(job.state, JobState::Passed, "{log}");
    for part in [
        "warning: no file of the outputs matches \"lib/*.so\" of `artifacts`",
        "warning: 1 file of the outputs is left out of the artifacts: it leads out of the outputs and what they refer to, or nowhere",
        "uploaded 5 artifacts of docs.\"the manual\"",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    let artifacts = build.artifacts();
    let text = |name: &str| {
        let content = artifacts.get(name);
        let content = content.unwrap_or_else(|| panic!("{name}: {:?}", artifacts.keys()));
        String::from_utf8_lossy(content).into_owned()
    };
    for (name, content) in [
        ("docs._the_manual_-cbbf8316/share/index.html", "index\n"),
        ("docs._the_manual_-cbbf8316/share/linked.html", "index\n"),
        ("docs._the_manual_-cbbf8316/share/deep/.hidden", "hidden\n"),
        (
            "docs._the_manual_-cbbf8316/share/; * [x] \"q\" <b>.txt",
            "odd\n",
        ),
        ("docs._the_manual_-doc-0cf60898/share/doc.txt", "doc\n"),
    ] {
        assert_eq!(text(name), content);
    }
    let single = artifacts.keys().find(|name| name.starts_with("single/"));
    assert_eq!(text(single.unwrap()), "single\n");
    assert_eq!(text("joined/single"), "single\n");
    for job in ["nix-joined", "nix-link"] {
        let log = build.job(job).plain();
        assert!(log.contains("1 file of the outputs is left out"), "{log}");
    }
    let others =
        ["joined/", "link/"].map(|it| artifacts.keys().filter(move |name| name.starts_with(it)));
    assert_eq!(others.map(Iterator::count), [1, 0]);
    assert!(!artifacts.values().any(|content| content == b"secret"));
    assert_eq!(build.job("nix-bad").exit_status, Some(100));
    let body = &build.annotations()["eval-once-artifacts"].body;
    let link = "<a href=\"artifact://docs._the_manual_-cbbf8316/share/index.html\">";
    assert!(body.contains(link), "{body}");
    assert!(!body.contains("<b>"), "{body}");
}

#[test]
fn by_hand_nothing_is_uploaded_and_a_wrong_glob_is_refused() {
    let Some(store) = Store::new() else { return };
    store.targets("{ a = file \"a\"; }");
    let step = |glob: &str| {
        store
            .eval_once(["step", "--attr", "a", "--artifacts", glob])
            .run()
    };
    step("*")
        .exits(0)
        .passes_on("the artifacts are not uploaded: this is no Buildkite job");
    step("/etc/*").exits(64).passes_on("`artifacts` holds");
}
