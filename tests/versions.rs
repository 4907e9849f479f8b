//! A daemon of another version of Nix than its clients (`script/versions`): what only such a pair shows.

use crate::support::{
    daemon::{path_of_daemons, version_on},
    store::Store,
};

#[test]
fn the_daemon_of_a_test_is_of_the_version_that_was_asked_for() {
    let Some(store) = Store::new() else { return };
    let daemon = store.daemon();
    let builds = version_on(&path_of_daemons(&store));
    // The name before 2.19, which all know.
    let ended = store
        .program("nix")
        .args(["store", "ping", "--store", "daemon"])
        .envs(daemon.env())
        .run();
    ended.exits(0);
    // 2.8 prints it on standard error.
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert!(
        said.contains(&format!("Version: {builds}")),
        "{builds}: {ended}"
    );
}
