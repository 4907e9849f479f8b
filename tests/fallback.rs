//! What a target's step evaluates where its record is gone: what the target names (`meta.eval-once.attr`, `file`, `expr`), where that is
//! cheaper than the recorded path.

use serde_json::{Value, json};

use crate::support::{program::Ended, recording::Pipeline, store::Store, target::expression};

/// The step of this attribute, with its `.drv` deleted.
fn step_without_drv(store: &Store, attr: &str) -> (Value, Ended) {
    let recorded = store
        .eval_once(["pipeline", "--dry-run", "--skip", "none"])
        .run();
    let label = format!(":nix: {attr}");
    let steps = Pipeline::of(&recorded).list();
    let step = steps.iter().find(|step| step["label"] == label.as_str());
    let record = step.unwrap()["env"]["EVAL_ONCE_STEP"].as_str().unwrap();
    let record: Value = serde_json::from_str(record).unwrap();
    std::fs::remove_dir_all(store.our_state().join("pins")).unwrap();
    store.collect();
    let ended = store
        .eval_once(["step"])
        .env("EVAL_ONCE_STEP", record.to_string())
        .reporting_to(store.root().join(format!("{attr}.json")))
        .run();
    (record, ended)
}

#[test]
fn a_step_evaluates_what_its_target_names_and_not_the_list_of_all_targets() {
    let Some(store) = Store::new() else { return };
    store.write("web/default.nix", &expression("file \"web\""));
    store.targets(
        r#"builtins.trace "the list of all targets" {
          web = import ./web // { meta.eval-once.file = "web"; };
          api = file "api" // { meta.eval-once.expr = "(import ./default.nix).other"; };
          other = file "other";
        }"#,
    );
    let (record, ended) = step_without_drv(&store, "web");
    assert_eq!(
        json!([record["file"], record["attr"], record["target"]]),
        json!(["web", [], ["web"]])
    );
    ended.exits(0).takes("evaluated", "drv-missing");
    ended.never_says("the list of all targets");
    assert_eq!(ended.report()["drift"], false);

    // What gives another derivation is seen as any drift is.
    let (_, ended) = step_without_drv(&store, "api");
    ended.exits(0).passes_on("the list of all targets");
    assert_eq!(ended.report()["drift"], true);
}
