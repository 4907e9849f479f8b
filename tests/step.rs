//! The ways in which a step gets its outputs.

use crate::support::store::Store;

#[test]
fn support_smoke() {
    let Some(store) = Store::new() else { return };
    store.write("default.nix", r#"{ a = derivation { name = "a"; system = builtins.currentSystem; builder = "/bin/sh"; args = ["-c" "echo hi > $out"]; }; }"#);
    let drv = store.instantiate("default.nix", "a");
    let daemon = store.daemon();
    store
        .program("nix-store")
        .args(["--realise", &drv])
        .envs(daemon.env())
        .run()
        .exits(0);
    let out = store.output(&drv, "out");
    store.delete([&drv]);
    assert!(!store.has(&drv));
    assert!(store.has(&out));
    let url = store.cache("c", [&out]);
    assert!(url.starts_with("file:///"));
}
