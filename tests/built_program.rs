//! The program that the plugin's shell hook has built is run only where no other user of the host can have put it there.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use unix::{
    fcntl::{Flock, FlockArg},
    sys::stat::Mode,
    unistd::{geteuid, mkfifo},
};

use crate::support::{
    program::{Ended, Program},
    skip,
    stand_in::write_program,
};

/// Another user of the host.
const NEIGHBOUR: u32 = 65_531;

/// The commit of the plugin.
const COMMIT: &str = "0123456789012345678901234567890123456789";

/// A plugin whose program has to be built, in a folder that every user can write to, and that is sticky.
struct Plugin {
    folder: TempDir,
}

impl Plugin {
    fn new() -> Self {
        let folder = TempDir::with_prefix("eval-once-").unwrap();
        let it = Self { folder };
        // As any host's: not closed.
        set_mode(it.folder.path(), 0o755);
        for part in ["hooks", "lib", ".git", "cargo", "shared"] {
            fs::create_dir_all(it.path(part)).unwrap();
        }
        let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
        for file in ["hooks/command", "lib/find.bash"] {
            fs::copy(tree.join(file), it.path(file)).unwrap();
        }
        fs::write(it.path(".git/HEAD"), format!("{COMMIT}\n")).unwrap();
        set_mode(&it.path("shared"), 0o1777);
        it.cargo("");
        it
    }

    fn path(&self, part: &str) -> PathBuf {
        self.folder.path().join(part)
    }

    /// A stand-in for cargo, which does this at its end, in the folder that the program gets into.
    fn cargo(&self, at_the_end: &str) {
        let text = format!(
            "#!/bin/sh\necho called >>'{}'\n\
             while [ \"$1\" != --target-dir ]; do shift; done\n\
             mkdir -p \"$2/release\" && cd \"$2/release\" || exit\n\
             printf '#!/bin/sh\\necho genuine\\n' >eval-once && chmod +x eval-once && cd ../.. || exit\n\
             {at_the_end}\n",
            self.path("calls").display()
        );
        write_program(&self.path("cargo/cargo"), &text);
    }

    fn state(&self) -> PathBuf {
        self.path("shared/state")
    }

    /// The folder that the program gets into.
    fn place(&self) -> PathBuf {
        let machine = Program::new("/bin/bash")
            .args(["-c", "printf %s \"$MACHTYPE\""])
            .run()
            .stdout;
        self.state().join("bin").join(machine).join(COMMIT)
    }

    fn make_place(&self) {
        fs::create_dir_all(self.place()).unwrap();
        let mut folder = &*self.place();
        while folder.starts_with(self.state()) {
            set_mode(folder, 0o700);
            folder = folder.parent().unwrap();
        }
    }

    fn hook(&self, state: &Path) -> Ended {
        let path = format!("{}:/usr/bin:/bin", self.path("cargo").display());
        Program::new("/bin/bash")
            .args(["-c", "source \"$0\""])
            .arg(self.path("hooks/command"))
            .env("PATH", path)
            .env("EVAL_ONCE_STATE_DIR", state)
            .run()
    }

    fn is_refused(&self, state: &Path, why: &str) {
        let ended = self.hook(state);
        ended.exits(75).prints("").passes_on(
            "error: the state folder cannot be used for the program eval-once, which is not installed: ",
        );
        ended.passes_on(why);
    }

    fn was_built(&self) -> bool {
        self.path("calls").exists()
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_program_that_was_built_in_a_folder_of_ones_own_is_run_and_not_built_again() {
    let plugin = Plugin::new();
    plugin.hook(&plugin.state()).exits(0).prints("genuine\n");
    assert!(plugin.was_built());
    fs::remove_file(plugin.path("calls")).unwrap();
    plugin.hook(&plugin.state()).exits(0).prints("genuine\n");
    // By a link, and with a name that a shell would split.
    let link = plugin.path("it's a link");
    symlink("shared/../shared/state/", &link).unwrap();
    plugin.hook(&link).exits(0).prints("genuine\n");
    assert!(!plugin.was_built());
}

#[test]
fn what_a_neighbour_can_have_put_there_is_neither_built_into_nor_run() {
    type Spoil = fn(&Plugin);
    if !geteuid().is_root() {
        return skip("only root can be several users");
    }
    let cases: [(Spoil, &str); 7] = [
        (
            |it| lchown(it.state(), Some(NEIGHBOUR), None).unwrap(),
            "/shared/state belongs to another user",
        ),
        (
            |it| {
                fs::rename(it.state(), it.path("elsewhere")).unwrap();
                symlink(it.path("elsewhere"), it.state()).unwrap();
                lchown(it.state(), Some(NEIGHBOUR), None).unwrap();
            },
            "/shared/state belongs to another user",
        ),
        (
            |it| chown(it.state().join("bin"), Some(NEIGHBOUR), None).unwrap(),
            "/state/bin is not this user's, or is a link",
        ),
        (
            |it| set_mode(&it.state(), 0o770),
            "other users can write to ",
        ),
        (
            |it| set_mode(&it.place(), 0o777),
            "other users can write to ",
        ),
        (
            |it| set_mode(&it.path("shared"), 0o777),
            "is writable by all, and not sticky",
        ),
        (
            |it| set_mode(&it.place().join("eval-once"), 0o775),
            "other users can write to ",
        ),
    ];
    for (spoil, why) in cases {
        let plugin = Plugin::new();
        plugin.make_place();
        let program = plugin.place().join("eval-once");
        write_program(&program, "#!/bin/sh\necho evil\n");
        set_mode(&program, 0o755);
        // The control: else it is run.
        plugin.hook(&plugin.state()).exits(0).prints("evil\n");
        spoil(&plugin);
        plugin.is_refused(&plugin.state(), why);
        assert!(!plugin.was_built(), "{why}");
    }
}

#[test]
fn what_was_swapped_while_it_was_built_is_not_run() {
    for (swap, why) in [
        ("chmod 0777 .", "other users can write to "),
        ("chmod 0777 ../../..", "other users can write to "),
        (
            "mv target/release/eval-once other && ln -s ../../other target/release/eval-once",
            "is not this user's, or is a link",
        ),
    ] {
        let plugin = Plugin::new();
        plugin.cargo(swap);
        plugin.is_refused(&plugin.state(), why);
        assert!(plugin.was_built());
    }
}

#[test]
fn what_stands_in_the_place_of_the_builds_lock_is_neither_followed_nor_waited_for() {
    for is_link in [true, false] {
        let plugin = Plugin::new();
        plugin.make_place();
        let (lock, victim) = (plugin.place().join("lock"), plugin.path("victim"));
        fs::write(&victim, "precious").unwrap();
        if is_link {
            symlink(&victim, &lock).unwrap();
        } else {
            mkfifo(&lock, Mode::S_IRWXU).unwrap();
        }
        plugin.is_refused(&plugin.state(), "/lock is not this user's, or is a link");
        assert_eq!(fs::read_to_string(victim).unwrap(), "precious");
    }
}

#[test]
fn the_wait_for_another_jobs_build_is_said_and_ends() {
    let plugin = Plugin::new();
    let file = plugin.path("lock");
    let wait = || {
        Program::new("/bin/bash")
            .args([
                "-c",
                "source \"$0\"; exec 9>>\"$1\"; eval_once_lock \"$1\" 0 1",
            ])
            .args([plugin.path("lib/find.bash"), file.clone()])
            .env("PATH", "/usr/bin:/bin")
            .run()
    };
    wait().exits(0).prints("");
    let lock = fs::File::options().append(true).open(&file).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    let shown = file.display();
    wait().exits(1).prints(&format!(
        "eval-once: still waiting for another job, which builds the program (`lsof {shown}` shows its process)\n\
         eval-once: the lock {shown} was not free for 1 s (`lsof {shown}` shows which process has it)\n"
    ));
    drop(held);
    wait().exits(0).prints("");
}
