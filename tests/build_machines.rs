//! Builds on another machine (`builders`): what failed there is told apart from a machine that is lost. ssh is a stand-in, behind which
//! the same folders are another machine's: the rest is Nix.

use std::fs;

use super::support::{stand_in::StandIns, store::Store};

/// A store of which another machine builds everything, reached as `ssh`; with `room`, its store has so much, in KiB. Also what to run a
/// step with.
fn with_machine(store: &Store, url: &str, room: Option<u32>) -> Option<StandIns> {
    let far = |name: &str| store.root().join("far").join(name);
    for folder in ["store", "var"] {
        fs::create_dir_all(far(folder)).unwrap();
    }
    let there = match room {
        Some(kib) => format!("-t tmpfs -o size={kib}k none"),
        None => format!("--bind {}", far("store").display()),
    };
    let mounts = format!(
        "mount {there} {} && mount --bind {} {}",
        store.folder().display(),
        far("var").display(),
        store.state().display(),
    );
    let before = store.with_mounts(&mounts)?;
    let quoted: Vec<String> = before
        .iter()
        .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''")))
        .collect();
    // Nix asks for a line from a connection that it means to use again.
    let ssh = format!(
        "#!/bin/sh\nunset NIX_REMOTE\nexport NIX_CONFIG='builders =\nmax-jobs = 1'\nfor word; do\n  \
         case $word in *LocalCommand=echo*) echo started ;; esac\ndone\nuntil case $1 in '' | nix-* | *nix-store* | *nix-daemon*) ;; \
         *) false ;; esac; do shift; done\n[ -n \"$1\" ] || exit 255\nexec {} /bin/sh -c \"$*\"\n",
        quoted.join(" "),
    );
    store.configure(&format!(
        "builders = {url} - - 1 1 kvm,big-parallel,nixos-test,benchmark\nmax-jobs = 0\nbuilders-use-substitutes = false"
    ));
    Some(StandIns::new(store.root().join("bin")).instead("ssh", &ssh))
}

#[test]
fn what_failed_on_another_machine_has_its_own_class_and_a_machine_that_is_lost_is_75() {
    let fixed = "outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \"0000000000000000000000000000000000000000000000000000\";";
    for url in ["ssh://m", "ssh-ng://m"] {
        let Some(store) = Store::new() else { return };
        let Some(machine) = with_machine(&store, url, None) else {
            return;
        };
        store.targets(&format!(
            r#"{{
  good = file "good"; three = build "three" "exit 3"; one = build "one" "exit 1"; none = build "none" "";
  hash = with' {{ {fixed} }} "hash" "echo hi > $out"; lost = build "lost" "kill -9 $PPID";
  needs = with' {{ three = build "needed" "exit 3"; }} "needs" "echo > $out";
}}"#
        ));
        let step = |attribute: &str| {
            let step = store.step(["--file", "default.nix", "--attr", attribute]);
            step.without("NIX_REMOTE").env("PATH", machine.path(&store))
        };
        step("good").run().exits(0);
        for (attribute, status, class, why) in [
            ("three", 100, "build", "its builder ended with status 3"),
            ("needs", 100, "build", "its builder ended with status 3"),
            ("one", 100, "build", "its builder ended with status 1"),
            ("none", 100, "build", "did not produce its output `out`"),
            ("hash", 102, "hash", "hash mismatch: specified sha256-"),
            ("lost", 75, "surroundings", "was lost, or could not go on"),
        ] {
            let ended = step(attribute).run();
            ended.fails(status, class);
            assert!(
                ended.reported().contains(why),
                "{url}, {attribute}: {ended}"
            );
        }
    }
}

#[test]
fn another_machine_without_room_for_what_a_build_needs_is_75() {
    for url in ["ssh://m", "ssh-ng://m"] {
        let Some(store) = Store::new() else { return };
        let Some(machine) = with_machine(&store, url, Some(300)) else {
            return;
        };
        fs::write(store.work().join("source"), vec![b'x'; 1 << 20]).unwrap();
        store.targets(r#"{ small = file "small"; large = with' { source = ./source; } "large" "echo > $out"; }"#);
        for (attribute, status) in [("small", 0), ("large", 75)] {
            let step = store.step(["--file", "default.nix", "--attr", attribute]);
            let step = step.without("NIX_REMOTE").env("PATH", machine.path(&store));
            step.run().exits(status);
        }
    }
}
