//! What we read from `.drv` files, against the Nix that wrote them.

use std::io;

use eval_once::nix::{Derivation, DrvPath, inputs_on_disk};
use eval_once::recording::pipeline::edges::{BadGraph, Edges};

use crate::support::store::Store;

/// Targets that need each other, with everything in their environments that is hard to read.
const TARGETS: &str = r#"
rec {
  base = build "base" "echo > $out";
  between = with' { inherit base; } "between" "echo > $out";
  plain = with' { inherit between; requiredSystemFeatures = [ "kvm" "big-parallel" ]; text = "a\n\t\"\\ \r [(\"x\",é"; } "plain" "echo > $out";
  structured = with' { inherit base plain; __structuredAttrs = true; requiredSystemFeatures = [ "a b" "kvm" ]; outputs = [ "out" "dev" ]; text = "\"\\é"; } "structured" ":";
}
"#;

fn drv(store: &Store, attribute: &str) -> DrvPath {
    DrvPath::parse(&store.instantiate("default.nix", attribute)).unwrap()
}

#[test]
fn a_derivation_says_what_nix_has_written_into_it() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let [base, plain, structured] =
        ["base", "plain", "structured"].map(|attribute| drv(&store, attribute));
    let read = Derivation::read(&plain).unwrap();
    assert_eq!(read.name, "plain");
    assert_eq!(read.features, ["kvm", "big-parallel"]);
    assert_eq!(read.inputs, [drv(&store, "between")]);
    let read = Derivation::read(&structured).unwrap();
    assert_eq!(read.features, ["a b", "kvm"]);
    let mut inputs = [base, plain];
    inputs.sort();
    assert_eq!(read.inputs, inputs);
    for (name, path) in &read.outputs {
        let expected = store.output(&structured.to_string(), name);
        assert_eq!(path.as_ref().unwrap().as_str(), expected);
    }
    let system = store.nix(
        "nix-instantiate",
        ["--eval", "--expr", "builtins.currentSystem"],
    );
    assert_eq!(format!("{:?}", read.system), system);
}

#[test]
fn edges_are_found_in_a_store_and_a_drv_that_is_gone_is_named() {
    let Some(store) = Store::new() else { return };
    store.targets(TARGETS);
    let targets = ["structured", "base", "plain"].map(|attribute| drv(&store, attribute));
    let edges = Edges::load(&targets, inputs_on_disk).unwrap();
    assert_eq!(edges.of(0), [2], "base is behind plain");
    assert_eq!(edges.of(2), [1], "through what is no target");
    let gone = drv(&store, "between");
    std::fs::remove_file(gone.as_store_path().as_path()).unwrap();
    match Edges::load(&targets, inputs_on_disk) {
        Err(BadGraph::Unreadable(drv, error)) => {
            assert_eq!((drv, error.kind()), (gone, io::ErrorKind::NotFound));
        }
        other => panic!("{other:?}"),
    }
}
