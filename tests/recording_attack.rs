//! A recording of a hostile repository, or of a very unusual one: one attribute never takes another with it, and no
//! step builds anything but the attribute it is named for.

use eval_once::text::is_hidden;

use crate::support::{program::Program, recording::Pipeline, store::Store};

/// A recording by hand, of built targets too, with these flags.
fn record(store: &Store, flags: &[&str]) -> Program {
    store
        .eval_once(["pipeline", "--dry-run", "--skip", "none"])
        .args(flags)
}

#[test]
fn a_name_of_any_characters_is_recorded_as_it_is() {
    let Some(store) = Store::new() else { return };
    // All ASCII characters that Nix can write into a name, and what terminals take for commands.
    let names: Vec<String> = (1..128u8)
        .map(|byte| format!("a{}b", char::from(byte)))
        .chain(
            [
                "",
                "\u{1b}",
                "\u{1b}[1;31mred",
                "\u{1b}]8;;x\u{1b}\\",
                "\u{9b}31m",
                "\u{202e}",
                "🦀",
            ]
            .map(Into::into),
        )
        .collect();
    let attributes: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let json = serde_json::to_string(&serde_json::to_string(name).unwrap()).unwrap();
            let json = json.replace("${", "\\${");
            format!("${{builtins.fromJSON {json}}} = file \"n{number}\";\n")
        })
        .collect();
    store.targets(&format!("{{ {} }}", attributes.concat()));
    let drvs = Pipeline::of(&record(&store, &[]).run()).drvs();
    assert_eq!(drvs.len(), names.len());
    for (number, name) in names.iter().enumerate() {
        let recorded = &drvs[&serde_json::to_string(&[name]).unwrap()];
        assert!(
            recorded.ends_with(&format!("-n{number}.drv")),
            "{name:?}: {recorded}"
        );
    }
}

#[test]
fn what_a_recording_prints_of_an_attribute_is_plain_text() {
    let Some(store) = Store::new() else { return };
    let odd = r#"${builtins.fromJSON ''"\u001b]1339;url=x\u0007\u001b[31mred\u009b2K\b\r\u202e\u200b"''}"#;
    store.targets(&format!(
        r#"{{
          "a{odd}b" = throw "its {odd}\n~~~ words";
          "c{odd}d" = file "c" // {{ meta.buildkite."e{odd}f" = 1; }};
          "g{odd}h" = file "g" // {{ meta.timeout = "{odd}\n~~~ x"; }};
          "i{odd}j" = builtins.trace "{odd}\n+++ a\n--- b\n~~~ c\n^^^ +++" (file "i");
        }}"#
    ));
    for flags in [&[][..], &["--on-error", "fail"]] {
        let ended = record(&store, flags).env("EVAL_ONCE_LOG", "debug").run();
        let wild = |c: char| is_hidden(c) && c != '\n' && c != '\t';
        assert!(!ended.stdout.contains(wild), "{:?}", ended.stdout);
        ended.passes_on("\n +++ a\n --- b\n ~~~ c\n ^^^ +++\n");
        let ours = ended.ours().join("\n");
        assert!(ours.contains("evaluation error: "), "{ended}");
        assert!(!ended.stderr.contains(wild), "{:?}", ended.stderr);
        let marks = ["~~~", "+++", "---", "^^^"];
        let mut lines = ended.stderr.lines();
        let opened = lines.find(|line| marks.iter().any(|mark| line.starts_with(mark)));
        assert_eq!(opened, None, "{ended}");
    }
}

#[test]
fn a_drv_path_that_is_only_named_is_one_error_and_no_more() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"
let named = drvPath: { type = "derivation"; name = "x"; outputName = "out"; outPath = "/x"; inherit drvPath; };
in {
  a-fine = file "a";
  elsewhere = named "/elsewhere/store/00000000000000000000000000000000-x.drv";
  gone = named "${builtins.storeDir}/00000000000000000000000000000000-x.drv";
  output = named ((file "output").drvPath + "!out");
  none = named "${builtins.toFile "x" "y"}";
  there = named (builtins.unsafeDiscardStringContext (file "there").drvPath);
  z-fine = file "z";
}"#,
    );
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(
        pipeline.drvs().keys().collect::<Vec<_>>(),
        [r#"["a-fine"]"#, r#"["there"]"#, r#"["z-fine"]"#],
        "{ended}"
    );
    assert_eq!(pipeline.broken().len(), 4, "{ended}");
}

#[test]
fn metadata_that_throws_as_a_whole_is_not_a_green_step() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ fine = file \"fine\" // { meta = [ ]; }; bad = file \"bad\" // { meta = throw \"no metadata\"; }; }",
    );
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(pipeline.drvs().keys().collect::<Vec<_>>(), [r#"["fine"]"#]);
    assert_eq!(pipeline.broken(), [r#"":boom: bad""#], "{ended}");
}

#[test]
fn an_expression_cannot_speak_for_the_store() {
    let Some(store) = Store::new() else { return };
    store.targets(
        r#"
let gone = "\nerror: path '${builtins.storeDir}/00000000000000000000000000000000-x.drv' is not valid";
in {
  a-fine = file "a";
  abort-full = abort "No space left on device";
  abort-gone = abort gone;
  abort-daemon = abort "\nerror: unexpected end-of-file";
  throw-full = throw "database or disk is full";
  throw-gone = throw gone;
  traced = builtins.trace gone (file "traced");
  z-fine = file "z";
}"#,
    );
    let ended = record(&store, &[]).run();
    let pipeline = Pipeline::of(&ended);
    assert_eq!(
        pipeline.drvs().keys().collect::<Vec<_>>(),
        [r#"["a-fine"]"#, r#"["traced"]"#, r#"["z-fine"]"#],
        "{ended}"
    );
    assert_eq!(pipeline.broken().len(), 5, "{ended}");
}
