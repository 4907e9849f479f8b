//! The plugin's shell hooks: which program they find, and that they become it.
//!
//! The programs are stand-ins that print their label and arguments, cargo among them: here it matters who is run, and not
//! what it does. What the real agent does with the hooks is for other tests.

use std::{
    ffi::OsString,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use unix::sys::stat::Mode;

use crate::support::{
    program::{Ended, Program},
    stand_in::write_program,
    tool, until,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A host with our plugin's clone on it, and on `PATH` only what this test puts there.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["hooks/command", "hooks/environment", "lib/find.bash"] {
            host.write(
                &format!("plugin/{file}"),
                &fs::read_to_string(repository.join(file)).unwrap(),
            );
        }
        host.write("plugin/Cargo.toml", "");
        host.write("plugin/Cargo.lock", "");
        host.write("plugin/src/main.rs", "fn main() {}\n");
        host.write("plugin/.git/HEAD", &format!("{COMMIT}\n"));
        fs::create_dir(host.path("bin")).unwrap();
        host
    }

    /// With the tool that looks at who can write into the state folder, before a program there is run.
    fn with_find(self) -> Self {
        symlink(tool("find").unwrap(), self.path("bin/find")).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let file = self.path(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// A program that says which one it is.
    fn program(&self, name: &str, label: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        write_program(
            &self.path(name),
            &format!("#!/bin/sh\necho \"{label}: $*\"\n"),
        );
    }

    /// The tools that building needs, and a cargo that builds a program labelled `built`, after `script`.
    fn cargo(&self, script: &str) {
        for name in [
            "cksum", "find", "flock", "mkdir", "mv", "rm", "sleep", "sort",
        ] {
            let link = self.path("bin").join(name);
            if let Some(tool) = tool(name).filter(|_| !link.exists()) {
                symlink(tool, link).unwrap();
            }
        }
        let calls = self.path("cargo-calls");
        let install = tool("install").unwrap();
        self.program("draft", "built");
        write_program(
            &self.path("bin/cargo"),
            &format!(
                "#!/bin/sh\n\
                 echo \"in $PWD: $*\" >>'{calls}'\n\
                 {script}\n\
                 while [ \"$1\" != --target-dir ]; do shift; done\n\
                 '{install}' -D -m 755 '{draft}' \"$2/release/eval-once\"\n",
                calls = calls.display(),
                install = install.display(),
                draft = self.path("draft").display(),
            ),
        );
    }

    /// Where a program is that was built for this machine from this commit, below a state folder.
    fn built(&self, commit: &str) -> String {
        let machine = self.bash(&["-c", "printf %s \"$MACHTYPE\""]).run();
        format!("bin/{}/{commit}/eval-once", machine.stdout)
    }

    fn cargo_calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("cargo-calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    /// Bash with arguments, on this host.
    fn bash(&self, arguments: &[&str]) -> Program {
        Program::new(tool("bash").unwrap())
            .args(arguments)
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .folder(self.folder.path())
    }

    /// The command hook, in the agent's way: sourced by a shell that has nothing else to do.
    fn command_hook(&self) -> Program {
        let hook = self.path("plugin/hooks/command");
        self.bash(&["-c", ". \"$0\""]).arg(hook)
    }

    /// The environment hook in the agent's way, and what the agent then sees.
    fn environment_hook(&self) -> Program {
        let hook = self.path("plugin/hooks/environment");
        self.bash(&["-c", ". \"$0\"; echo \"status $?, GREETING=$GREETING\""])
            .arg(hook)
    }
}

#[track_caller]
fn ran(ended: &Ended, label: &str) {
    ended.exits(0).prints(&format!("{label}: hook command\n"));
}

#[test]
fn the_program_is_looked_for_in_one_order_and_without_any_tool() {
    let host = Host::new().with_find();
    let built = format!("home/.local/state/eval-once/{}", host.built(COMMIT));
    host.program("named", "named");
    host.program("plugin/bin/eval-once", "in bin");
    host.program("plugin/target/release/eval-once", "in target");
    host.program("bin/eval-once", "on PATH");
    host.program(&built, "built before");

    let named = host
        .command_hook()
        .env("EVAL_ONCE_BIN", host.path("named"))
        .run();
    ran(&named, "named");
    for (program, label) in [
        ("plugin/bin/eval-once", "in bin"),
        ("plugin/target/release/eval-once", "in target"),
        ("bin/eval-once", "on PATH"),
        (&built, "built before"),
    ] {
        let found = host.command_hook().run();
        ran(&found, label);
        found.says(&[]);
        host.remove(program);
    }
    host.command_hook().run().exits(69);
}

#[test]
fn an_empty_name_is_no_name() {
    let host = Host::new();
    host.program("bin/eval-once", "on PATH");
    let ended = host.command_hook().env("EVAL_ONCE_BIN", "").run();
    ran(&ended, "on PATH");
}

#[test]
fn a_named_program_that_is_none_is_refused_by_name_whatever_else_is_there() {
    let host = Host::new();
    host.program("bin/eval-once", "on PATH");
    host.write("text", "no program");
    for name in ["absent", "text", "plugin"] {
        let name = host.path(name);
        let ended = host.command_hook().env("EVAL_ONCE_BIN", &name).run();
        let error = format!(
            "error: EVAL_ONCE_BIN is {}, which is not an executable file",
            name.display()
        );
        ended
            .exits(69)
            .prints("")
            .says(&[&error, "hint: correct EVAL_ONCE_BIN, or unset it"]);
    }
}

#[test]
fn the_command_hook_becomes_the_program() {
    let host = Host::new();
    fs::create_dir(host.path("plugin/bin")).unwrap();
    write_program(
        &host.path("plugin/bin/eval-once"),
        "#!/bin/sh\necho $$\nexit 42\n",
    );
    let running = host.command_hook().start();
    let pid = running.pid();
    running.end().exits(42).prints(&format!("{pid}\n"));
}

#[test]
fn a_hook_is_found_by_a_relative_path_too() {
    let host = Host::new();
    host.program("plugin/bin/eval-once", "in bin");
    for (folder, hook) in [("plugin", "hooks/command"), ("plugin/hooks", "command")] {
        let ended = host.bash(&[hook]).folder(host.path(folder)).run();
        ran(&ended, "in bin");
    }
}

#[test]
fn a_program_that_is_nowhere_is_built_once_for_each_commit() {
    let host = Host::new();
    host.cargo("echo 'Compiling eval-once' >&2");

    let first = host.command_hook().run();
    ran(&first, "built");
    first.says(&["the program is not installed; building it once, into "]);
    first.passes_on("Compiling eval-once");
    let second = host.command_hook().run();
    ran(&second, "built");
    second.says(&[]);
    let [call] = &host.cargo_calls()[..] else {
        panic!("built more than once: {:?}", host.cargo_calls());
    };
    assert!(call.contains("build --release --locked"), "{call}");
    let plugin = host.path("plugin").canonicalize().unwrap();
    assert!(
        call.starts_with(&format!("in {}:", plugin.display())),
        "{call}"
    );

    host.write("plugin/.git/HEAD", &format!("{OTHER_COMMIT}\n"));
    ran(&host.command_hook().run(), "built");
    assert_eq!(host.cargo_calls().len(), 2);
}

#[test]
fn a_program_is_built_for_this_user_alone_and_that_of_another_user_is_not_run() {
    let host = Host::new();
    host.cargo("");
    let mut hook = host.command_hook();
    hook = hook.behind(&["/bin/sh", "-c", "umask 000 && exec \"$@\"", "sh"].map(OsString::from));
    ran(&hook.run(), "built");
    let state = host.path("home/.local/state/eval-once");
    let built = state.join(host.built(COMMIT));
    for folder in built.ancestors().skip(1) {
        let mode = fs::metadata(folder).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o700, "{}", folder.display());
        if folder == state {
            break;
        }
    }
    if unix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&built, Some(65_531), None).unwrap();
        let ended = hook.run();
        ended.exits(75).prints("").says(&[
            "error: the state folder cannot be used for the program eval-once, which is not installed: ",
            "hint: remove ",
        ]);
        assert_eq!(host.cargo_calls().len(), 1);
    }
}

#[test]
fn a_clone_on_a_branch_is_known_by_the_branchs_commit() {
    let host = Host::new().with_find();
    host.program(&format!("state/{}", host.built(COMMIT)), "built before");
    let hook = || {
        host.command_hook()
            .env("EVAL_ONCE_STATE_DIR", host.path("state"))
    };
    host.write("plugin/.git/HEAD", "ref: refs/heads/main\n");

    host.write("plugin/.git/refs/heads/main", &format!("{COMMIT}\n"));
    ran(&hook().run(), "built before");

    host.remove("plugin/.git/refs/heads/main");
    host.write(
        "plugin/.git/packed-refs",
        &format!(
            "# pack-refs with: peeled fully-peeled sorted\n\
             {OTHER_COMMIT} refs/heads/ma\n{COMMIT} refs/heads/main\n{OTHER_COMMIT} refs/remotes/origin/main\n"
        ),
    );
    ran(&hook().run(), "built before");
}

#[test]
fn a_plugin_that_is_no_clone_is_built_again_when_its_sources_change() {
    let host = Host::new();
    host.cargo("");
    fs::remove_dir_all(host.path("plugin/.git")).unwrap();
    for builds in [1, 1] {
        ran(&host.command_hook().run(), "built");
        assert_eq!(host.cargo_calls().len(), builds);
    }
    host.write("plugin/src/main.rs", "fn main() { println!(); }\n");
    for builds in [2, 2] {
        ran(&host.command_hook().run(), "built");
        assert_eq!(host.cargo_calls().len(), builds);
    }
}

#[test]
fn jobs_that_start_together_build_once() {
    let host = Host::new();
    let gate = host.path("gate");
    unix::unistd::mkfifo(&gate, Mode::S_IRWXU).unwrap();
    host.cargo(&format!("read -r go <'{}'", gate.display()));

    let jobs: Vec<_> = (0..4).map(|_| host.command_hook().start()).collect();
    until("one of them builds", || !host.cargo_calls().is_empty());
    // Opening waits for cargo to have opened it; each cargo that runs takes one line.
    let mut gate = fs::OpenOptions::new().write(true).open(gate).unwrap();
    gate.write_all(b"go\ngo\ngo\ngo\n").unwrap();
    for job in jobs {
        ran(&job.end(), "built");
    }
    assert_eq!(host.cargo_calls().len(), 1);
}

#[test]
fn a_build_leaves_only_the_program_and_its_lock() {
    let host = Host::new();
    host.cargo("");
    ran(&host.command_hook().run(), "built");
    let place = host.path(&format!(
        "home/.local/state/eval-once/{}",
        host.built(COMMIT)
    ));
    let mut left: Vec<_> = fs::read_dir(place.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["eval-once", "lock"]);
}

#[test]
fn a_build_that_fails_is_a_missing_program_and_is_tried_again() {
    let host = Host::new();
    host.cargo("echo 'error: no space left' >&2; exit 101");
    let ended = host.command_hook().run();
    ended
        .exits(69)
        .prints("")
        .passes_on("no space left")
        .says(&[
            "building it once",
            "error: the program eval-once was not found, and building it into ",
            "hint: install the program and set EVAL_ONCE_BIN to its path",
        ]);

    host.cargo("");
    ran(&host.command_hook().run(), "built");
}

#[test]
fn where_nothing_can_be_built_one_sentence_says_how_to_install() {
    let host = Host::new();
    let hint = "hint: install the program and set EVAL_ONCE_BIN to its path";
    host.command_hook().run().exits(69).prints("").says(&[
        "error: the program eval-once was not found, and cannot be built: cargo is not on PATH",
        hint,
    ]);

    host.cargo("");
    host.command_hook().without("HOME").run().exits(69).says(&[
        "error: the program eval-once was not found, and cannot be built: neither EVAL_ONCE_STATE_DIR nor HOME is set",
        hint,
    ]);

    host.write("file", "");
    host.command_hook()
        .env("EVAL_ONCE_STATE_DIR", host.path("file"))
        .run()
        .exits(75)
        .says(&[
            "error: the state folder cannot be used for the program eval-once, which is not installed: ",
            "hint: set EVAL_ONCE_STATE_DIR to a folder of this user's own",
        ]);
    assert!(host.cargo_calls().is_empty());
}

#[test]
fn the_environment_hook_sets_what_the_program_prints() {
    let host = Host::new();
    fs::create_dir(host.path("plugin/bin")).unwrap();
    write_program(
        &host.path("plugin/bin/eval-once"),
        "#!/bin/sh\ntest \"$*\" = environment || exit 1\necho \"export GREETING='it'\\\\''s  here'\"\n",
    );
    host.environment_hook()
        .run()
        .exits(0)
        .prints("status 0, GREETING=it's  here\n")
        .says(&[]);
}

#[test]
fn the_environment_hook_leaves_a_missing_program_to_the_command_hook() {
    let host = Host::new();
    host.environment_hook()
        .run()
        .prints("status 0, GREETING=\n")
        .says(&[]);
    host.environment_hook()
        .env("EVAL_ONCE_BIN", host.path("absent"))
        .run()
        .prints("status 0, GREETING=\n")
        .says(&[]);
}

#[test]
fn a_program_that_fails_in_the_environment_hook_fails_it() {
    let host = Host::new();
    fs::create_dir(host.path("plugin/bin")).unwrap();
    let program = host.path("plugin/bin/eval-once");
    write_program(
        &program,
        "#!/bin/sh\necho 'export GREETING=half'\nexit 70\n",
    );
    host.environment_hook()
        .run()
        .prints("status 70, GREETING=\n")
        .says(&["bin/eval-once environment ended with status 70"]);
}

/// Programs that the system does not run here: of a processor that this is not, and with a loader that is not there.
const FOREIGN: [&[u8]; 2] = [
    b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x2b\0\x01\0\0\0",
    b"#!/no/such/loader\n",
];

#[test]
fn a_program_for_another_machine_is_a_missing_program() {
    let host = Host::new();
    let machine = host.bash(&["-c", "printf %s \"$MACHTYPE\""]).run().stdout;
    for place in ["named", "plugin/bin/eval-once", "bin/eval-once"] {
        for program in FOREIGN {
            let file = host.path(place);
            host.write(place, "");
            fs::write(&file, program).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
            let named = |hook: Program| match place {
                "named" => hook.env("EVAL_ONCE_BIN", &file),
                _ => hook,
            };
            let said = [
                format!("cannot be run on this machine ({machine})"),
                "hint: install a program that was built for this machine".into(),
            ];
            let said: Vec<&str> = said.iter().map(String::as_str).collect();
            let ended = named(host.command_hook()).run();
            ended.exits(69).prints("").says(&said);
            assert!(ended.stderr.contains("error: the program "), "{ended}");
            named(host.environment_hook())
                .run()
                .prints("status 69, GREETING=\n")
                .says(&said);
        }
        host.remove(place);
    }
}

#[test]
fn a_setting_that_is_a_relative_path_is_refused_by_name() {
    let host = Host::new();
    host.cargo("");
    // One that is there, from where the hook runs.
    host.program("named", "named");
    for (name, value) in [
        ("EVAL_ONCE_BIN", "named"),
        ("EVAL_ONCE_STATE_DIR", "state"),
        ("HOME", "home"),
    ] {
        let error = format!("error: {name} is {value}, a relative path");
        let hint = format!("hint: give {name} an absolute path without control characters");
        let ended = host.command_hook().env(name, value).run();
        ended.exits(64).prints("").says(&[&error, &hint]);
    }
    assert!(host.cargo_calls().is_empty());
    assert!(!host.path("state").exists() && !host.path("home").exists());
    // Its specification says that this one is ignored then.
    let ended = host.command_hook().env("XDG_STATE_HOME", "xdg").run();
    ran(&ended, "built");
    assert!(!host.path("xdg").exists());
    assert!(host.path("home/.local/state/eval-once").exists());
}

#[test]
fn a_setting_with_control_characters_is_refused_and_is_text_in_the_log() {
    let host = Host::new().with_find();
    host.cargo("");
    // A link, a group of the log, and one that other characters hide.
    for value in [
        "\u{1b}]1339;url=https://evil\u{7}",
        "\n+++ opened",
        "\r--- opened",
    ] {
        let value = format!("/x{value}");
        for name in [
            "EVAL_ONCE_BIN",
            "EVAL_ONCE_STATE_DIR",
            "XDG_STATE_HOME",
            "HOME",
        ] {
            let ended = host.command_hook().env(name, &value).run();
            ended.exits(64).prints("");
            assert_eq!(ended.stderr.lines().count(), 2, "{ended}");
            let tame = |c: char| c == '\n' || (' '..='~').contains(&c);
            assert!(ended.stderr.chars().all(tame), "{ended}");
            ended.passes_on(&format!("{name} is /x")).passes_on(
                ", which has a control character'
",
            );
        }
    }
    // Other characters are quoted as well, since some of them hide what follows.
    let ended = host.command_hook().env("EVAL_ONCE_BIN", "/\u{202e}x").run();
    ended
        .exits(69)
        .passes_on(r"/\342\200\256x, which is not an executable file");
}

#[test]
fn a_missing_program_is_reported_by_the_environment_hook_where_the_command_hook_may_not_run() {
    let host = Host::new();
    host.environment_hook()
        .env("BUILDKITE_STRICT_SINGLE_HOOKS", "true")
        .run()
        .prints("status 69, GREETING=\n")
        .says(&[
            "error: the program eval-once was not found",
            "hint: install the program",
        ]);
}

#[test]
fn a_refusal_in_the_environment_hook_is_printed_once() {
    let host = Host::new();
    fs::create_dir(host.path("plugin/bin")).unwrap();
    write_program(
        &host.path("plugin/bin/eval-once"),
        "#!/bin/sh\necho 'eval-once: error: refused' >&2\nexit 64\n",
    );
    host.environment_hook()
        .run()
        .prints("status 64, GREETING=\n")
        .says(&["error: refused"]);
}
