//! What of Nix's own output is left out of a job's log, and what a debug log has instead.

use crate::support::{stand_in::StandIns, store::Store};

/// What several programs of Nix at once, and 2.34 by itself, print beside everything that they do.
const NOISE: [&str; 4] = [
    "warning: error: SQLite database '/nix/var/nix/db/db.sqlite' is busy",
    "warning: SQLite database '/nix/var/nix/db/db.sqlite' is busy",
    "error (ignored): error: cannot close the connection",
    "       because of what no reader can change",
];

#[test]
fn noise_of_nix_is_only_in_a_debug_log() {
    let Some(store) = Store::new() else { return };
    store.targets(
        "{ a = builtins.trace \"a trace\" (build \"a\" \"echo error ignored: no > $out\"); }",
    );
    let target = store.target("a");
    let noise = NOISE.map(|line| format!("echo \"{line}\" >&2; ")).concat();
    let stand_ins = ["nix-instantiate", "nix-store", "nix"]
        .into_iter()
        .fold(StandIns::new(store.bin()), |all, program| {
            all.before(program, &noise)
        });
    for debug in [false, true] {
        let with_noise = |program: crate::support::program::Program| {
            let program = program.env("PATH", stand_ins.path(&store));
            let level = if debug { "debug" } else { "" };
            program.env("EVAL_ONCE_LOG", level).run()
        };
        let recording = with_noise(store.eval_once(["pipeline", "--dry-run"]));
        let realised = with_noise(store.step(target.flags()));
        let evaluated = with_noise(store.step(["--attr", "a"]));
        for ended in [&recording, &realised, &evaluated] {
            ended.exits(0);
            for line in NOISE {
                assert_eq!(ended.stderr.contains(line), debug, "{line}: {ended}");
            }
        }
        for ended in [&recording, &evaluated] {
            assert!(ended.stderr.contains("trace: a trace"), "{ended}");
        }
        if debug {
            // Each command stands in one line.
            let commands = recording
                .stderr
                .lines()
                .filter(|line| line.starts_with("eval-once: debug: $ "));
            assert!(commands.clone().count() >= 4, "{recording}");
            assert!(recording.stderr.contains(" -E <pin> "), "{recording}");
            assert!(
                !recording.stderr.contains("Finds the targets below"),
                "{recording}"
            );
        }
    }
}
