//! Our binary as the agent's own command hook: a job that is not ours runs exactly as the agent would have run it, one with
//! `EVAL_ONCE_STEP` is built.
//!
//! What the agent would have done is not written down here: it is asked, by running the same job without any hook.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{PermissionsExt, symlink},
    },
    path::Path,
    process::Command,
};

use unix::sys::signal::Signal;

use crate::support::{
    EVAL_ONCE,
    agent::{Job, Ran, is_old},
    stand_in::write_program,
    until,
};

/// What of a job differs from one case to the next.
struct Case<'a> {
    command: &'a OsStr,
    variables: Vec<(&'a str, &'a OsStr)>,
    /// Fills the checkout, which is made anew for each run.
    checkout: &'a dyn Fn(&Path),
    /// An agent's `pre-command` hook (shell), empty for none.
    pre_command: &'a str,
    /// With a terminal, without, or both.
    terminals: &'a [bool],
}

impl<'a> Case<'a> {
    fn new(command: &'a (impl AsRef<OsStr> + ?Sized)) -> Self {
        Self {
            command: command.as_ref(),
            variables: Vec::new(),
            checkout: &|_| {},
            pre_command: "",
            terminals: &[false, true],
        }
    }

    fn with(mut self, name: &'a str, value: &'a (impl AsRef<OsStr> + ?Sized)) -> Self {
        self.variables.push((name, value.as_ref()));
        self
    }

    fn checkout(mut self, fill: &'a dyn Fn(&Path)) -> Self {
        self.checkout = fill;
        self
    }

    fn pre_command(mut self, script: &'a str) -> Self {
        self.pre_command = script;
        self
    }

    fn terminals(mut self, terminals: &'a [bool]) -> Self {
        self.terminals = terminals;
        self
    }

    /// Runs the job without a hook, then with ours, and expects the same of both.
    ///
    /// Gives what the agent itself did without a hook, so that a test can say what it was meant to be: two jobs that fail alike
    /// for another reason than the one in the test's name would compare just as well.
    #[track_caller]
    fn same(&self) -> Vec<Ran> {
        self.terminals
            .iter()
            .filter_map(|terminal| {
                let (default, ours) = self.both(*terminal)?;
                let what = format!("{}, terminal: {terminal}", self.command.display());
                let outputs = (
                    normal(default.ran.output.as_deref().unwrap()),
                    normal(ours.ran.output.as_deref().unwrap()),
                );
                assert_eq!(
                    outputs.0, outputs.1,
                    "{what}: the log differs: {}",
                    ours.ran.log
                );
                assert_eq!(default.ran.ending, ours.ran.ending, "{what}");
                assert_eq!(
                    ending_in_log(&default.ran),
                    ending_in_log(&ours.ran),
                    "{what}"
                );
                assert_eq!(
                    default.left, ours.left,
                    "{what}: other files are left behind"
                );
                assert_eq!(
                    default.environment, ours.environment,
                    "{what}: the environment differs"
                );
                Some(default.ran)
            })
            .collect()
    }

    /// As [`same`](Self::same), for a job that the agent refuses to run: with our hook it ends alike, and we say why.
    ///
    /// `part` stands in the agent's sentence and in ours; the whole sentence is another one in each version of the agent.
    #[track_caller]
    fn refused(&self, part: &str) {
        let names = |text: &str| text.to_lowercase().contains(&part.to_lowercase());
        for terminal in self.terminals {
            let Some((default, ours)) = self.both(*terminal) else {
                return;
            };
            let what = format!("{}, terminal: {terminal}", self.command.display());
            let sentence = default
                .ran
                .error()
                .unwrap_or_else(|| panic!("{what} was run: {}", default.ran.log));
            assert!(names(sentence), "{what}: {sentence}");
            assert_eq!(
                default.ran.ending, ours.ran.ending,
                "{what}: {}",
                ours.ran.log
            );
            let output = ours.ran.output.as_deref().unwrap();
            assert!(names(output), "{what}: not {part:?} but {output:?}");
            assert_eq!(
                default.left, ours.left,
                "{what}: other files are left behind"
            );
        }
    }

    fn both(&self, terminal: bool) -> Option<(BuiltStep, BuiltStep)> {
        let mut job = Job::new()?;
        job.command(self.command)
            .terminal(terminal)
            .set_all(self.variables.iter().copied());
        if !self.pre_command.is_empty() {
            job.shell_hook("pre-command", self.pre_command);
        }
        let default = self.once(&job);
        job.our_hook("command");
        let ours = self.once(&job);
        Some((default, ours))
    }

    fn once(&self, job: &Job) -> BuiltStep {
        let checkout = job.checkout();
        fs::remove_dir_all(&checkout).unwrap();
        fs::create_dir(&checkout).unwrap();
        (self.checkout)(&checkout);
        let ran = job.run();
        let dump = job.folder().join("environment");
        let environment = fs::read(&dump)
            .map(|text| variables(&text))
            .unwrap_or_default();
        let _ = fs::remove_file(dump);
        BuiltStep {
            ran,
            left: files(&checkout),
            environment,
        }
    }
}

/// What a job did.
struct BuiltStep {
    ran: Ran,
    /// The checkout's files with their permissions and contents.
    left: BTreeMap<OsString, (u32, Vec<u8>)>,
    /// What the job wrote with `env -0` to `../environment`.
    environment: BTreeMap<OsString, OsString>,
}

/// The agent names a death by signal in other words than an exit, though it ends with the same status (255).
fn ending_in_log(ran: &Ran) -> Option<String> {
    let error = ran.error()?;
    // A hook's failure is named with the hook.
    let (_, ending) = error.rsplit_once(": ").unwrap_or(("", error));
    Some(ending.to_owned())
}

/// Which pseudo terminal a job gets is chance.
fn normal(output: &str) -> String {
    let mut parts = output.split("/dev/pts/");
    let mut normal = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        normal.push_str("/dev/pts/N");
        normal.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    normal
}

fn variables(text: &[u8]) -> BTreeMap<OsString, OsString> {
    text.split(|byte| *byte == 0)
        .filter_map(|variable| {
            let at = variable.iter().position(|byte| *byte == b'=')?;
            let name = OsString::from_vec(variable[..at].to_vec());
            let value = OsString::from_vec(variable[at + 1..].to_vec());
            // The job API's socket and token are new for each job; that there are any is the same.
            let is_chance = name
                .to_string_lossy()
                .starts_with("BUILDKITE_AGENT_JOB_API_");
            Some((name, if is_chance { OsString::new() } else { value }))
        })
        .collect()
}

fn files(folder: &Path) -> BTreeMap<OsString, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        let content = fs::read(&path).unwrap_or_default();
        if path.is_dir() {
            files.extend(self::files(&path));
        }
        files.insert(path.into_os_string(), (mode, content));
    }
    files
}

fn write(file: &Path, mode: u32, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    // By another process where it is to be run: see `write_program`.
    if mode & 0o111 == 0 {
        fs::write(file, text).unwrap();
    } else {
        write_program(file, text);
    }
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn all_printed(runs: &[Ran], text: &str) {
    for ran in runs {
        let output = ran.output.as_deref().unwrap();
        assert!(output.contains(text), "not {text:?} but {output:?}");
    }
}

#[track_caller]
fn all_ended(runs: &[Ran], status: i32) {
    for ran in runs {
        assert_eq!(ran.ending.code(), Some(status), "{}", ran.log);
    }
}

#[test]
fn a_simple_command_runs_as_by_the_agent() {
    let runs = Case::new("echo one; echo two >&2; pwd").same();
    all_printed(&runs, "one");
    all_printed(&runs, "/checkout");
    all_ended(&runs, 0);
}

#[test]
fn a_command_of_several_lines_runs_as_by_the_agent_and_stops_at_the_first_failure() {
    let runs = Case::new("echo one\n\necho 'two\n  lines'\nfalse\necho never\n").same();
    all_printed(&runs, "lines");
    all_ended(&runs, 1);
}

#[test]
fn a_command_with_unicode_quotes_and_dollars_runs_as_by_the_agent() {
    let runs =
        Case::new("x='déjà vu 🚀'; echo \"$x\" \"\\$HOME\" `echo ok` $(echo \"$((1+1))\") \\\\")
            .same();
    all_printed(&runs, "déjà vu 🚀 $HOME ok 2 \\");
}

#[test]
fn a_command_that_is_not_unicode_runs_as_by_the_agent() {
    let command = OsString::from_vec(b"printf '%s' '\xff\xfe' | od -An -tx1".to_vec());
    let runs = Case::new(&command).same();
    all_printed(&runs, "ff fe");
}

#[test]
fn output_without_a_last_newline_and_with_control_sequences_passes_as_by_the_agent() {
    // The agent keeps back an end that one of its secrets may begin with, and after a binary hook never gives it: so the end is
    // a character that the random token of its Job API cannot have.
    let runs =
        Case::new("printf '\\033[31mred\\033[0m\\r--- group\\n\\001bin\\tary'; printf 'end!' >&2")
            .same();
    all_printed(&runs, "\x1b[31mred");
}

#[test]
fn a_file_of_the_checkout_is_made_executable_and_run_as_by_the_agent() {
    let runs = Case::new("script/test.sh")
        .checkout(&|checkout| {
            write(
                &checkout.join("script/test.sh"),
                0o640,
                "#!/bin/sh\necho run $0 in $PWD; exit 4\n",
            );
        })
        .same();
    all_printed(&runs, "run ./script/test.sh in /");
    all_ended(&runs, 4);
}

#[test]
fn an_executable_file_runs_as_by_the_agent_with_or_without_a_dot_and_newlines() {
    for command in ["run", "./run", "run\n", "r\nun", "./sub/../run"] {
        let runs = Case::new(command)
            .checkout(&|checkout| {
                write(&checkout.join("run"), 0o755, "#!/bin/sh\necho run as $0\n");
                write(&checkout.join("sub/other"), 0o644, "");
            })
            .same();
        all_printed(&runs, "run as ./run");
    }
}

#[test]
fn a_file_without_an_interpreter_line_runs_as_by_the_agent() {
    let runs = Case::new("plain")
        .checkout(&|checkout| {
            write(
                &checkout.join("plain"),
                0o644,
                "echo plain ${BASH_VERSION:+in bash}\n",
            );
        })
        .same();
    all_printed(&runs, "plain");
}

#[test]
fn a_file_whose_name_needs_quotes_runs_as_by_the_agent() {
    // The agent quotes nothing: a space makes two words of it, a `$` a variable. That is for it to mend, not for us.
    for name in ["two words", "dollar$HOME", "quote'", "semi;echo more", "*"] {
        Case::new(name)
            .checkout(&|checkout| write(&checkout.join(name), 0o644, "#!/bin/sh\necho ran\n"))
            .same();
    }
}

#[test]
fn a_file_outside_the_checkout_runs_as_by_the_agent() {
    let runs = Case::new("../outside.sh")
        .checkout(&|checkout| {
            write(
                &checkout.join("../outside.sh"),
                0o644,
                "#!/bin/sh\necho outside\n",
            );
        })
        .same();
    all_printed(&runs, "outside");
    all_ended(&runs, 0);
}

#[test]
fn a_file_with_arguments_is_a_command_as_for_the_agent() {
    let fill =
        |checkout: &Path| write(&checkout.join("run"), 0o644, "#!/bin/sh\necho ran \"$@\"\n");
    let runs = Case::new("./run with arguments").checkout(&fill).same();
    all_ended(&runs, 126);
    let runs = Case::new("sh ./run with arguments").checkout(&fill).same();
    all_printed(&runs, "ran with arguments");
}

#[test]
fn an_absolute_path_is_a_command_as_for_the_agent() {
    let runs = Case::new("/bin/echo").same();
    all_ended(&runs, 0);
    // Below the checkout, that path is a file: then it is that one.
    let runs = Case::new("/bin/echo")
        .checkout(&|checkout| write(&checkout.join("bin/echo"), 0o644, "#!/bin/sh\necho mine\n"))
        .same();
    all_printed(&runs, "mine");
}

#[test]
fn a_link_to_a_script_runs_as_by_the_agent() {
    let runs = Case::new("link")
        .checkout(&|checkout| {
            write(&checkout.join("there"), 0o600, "#!/bin/sh\necho $0\n");
            symlink("there", checkout.join("link")).unwrap();
            symlink("nowhere", checkout.join("dangling")).unwrap();
        })
        .same();
    all_printed(&runs, "./link");
    let runs = Case::new("dangling")
        .checkout(&|checkout| symlink("nowhere", checkout.join("dangling")).unwrap())
        .same();
    all_ended(&runs, 127);
}

#[test]
fn a_folder_as_command_fails_as_by_the_agent() {
    for command in ["folder", ".", "folder/"] {
        let runs = Case::new(command)
            .checkout(&|checkout| write(&checkout.join("folder/file"), 0o644, ""))
            .same();
        all_printed(&runs, "irectory");
    }
}

#[test]
fn statuses_pass_as_by_the_agent() {
    for status in [
        1, 2, 64, 75, 94, 100, 102, 125, 126, 127, 128, 130, 137, 143, 255,
    ] {
        let runs = Case::new(&format!("exit {status}"))
            .terminals(&[false])
            .same();
        all_ended(&runs, status);
    }
}

#[test]
fn death_by_a_signal_passes_as_by_the_agent() {
    for signal in ["TERM", "INT", "HUP", "KILL", "ABRT", "PIPE", "USR1", "SEGV"] {
        let runs = Case::new(&format!("echo dying; kill -{signal} $$; echo alive")).same();
        for ran in &runs {
            assert!(
                ran.log.contains("interrupted by a signal"),
                "{signal}: {}",
                ran.log
            );
        }
    }
}

#[test]
fn a_death_in_the_middle_of_a_shell_passes_as_by_the_agent() {
    let runs = Case::new("exec 2>/dev/null; sh -c 'kill -9 $$'; echo unreached").same();
    all_ended(&runs, 137);
}

#[test]
fn the_shell_is_split_as_the_agent_splits_it() {
    let command = "echo \"$0\" \"$#\" \"$-\"; eval 'echo done'";
    for shell in [
        "/bin/bash -e -c",
        "bash -e -c",
        "/usr/bin/env bash -e -c",
        "/bin/sh -c",
        "  /bin/bash\t-e \n -c  ",
        r#""/bin/bash" '-e' -c"#,
        r#"/bin/ba"sh" -"e"'u' -c"#,
        r"/bin/b\ash \-c",
        r#"/bin/bash "" '' -c"#,
        r"/bin/bash -c\",
        r#"/bin/bash -c "echo pre \"\$0\"; eval \"\$0\"""#,
        r#"/bin/bash -c 'echo it\\\'s; eval "$0"'"#,
        r#"/bin/bash -c "printf '%s\\n' a\tb; eval \"\$0\"""#,
        r#"/bin/bash -c 'echo "$HOME" ~ *; eval "$0"'"#,
        r#"/bin/bash -c "echo 'déjà vu 🚀'; eval \"\$0\"""#,
        "/bin/bash -c eval\u{a0}x",
        "/bin/bash -e # -c",
        "/bin/echo",
        "cat",
    ] {
        // Without a terminal: `cat` would read from it.
        Case::new(command)
            .with("BUILDKITE_SHELL", shell)
            .terminals(&[false])
            .same();
    }
}

#[test]
fn a_shell_that_a_hook_put_on_the_path_is_run_as_by_the_agent() {
    let fill = |checkout: &Path| {
        write(
            &checkout.join("sub/shell"),
            0o755,
            "#!/bin/sh\necho $0 in $PWD: \"$@\"\n",
        );
    };
    // Not one with a `/` that is relative: the agent looks for it from where it was started itself, which no hook can know.
    let runs = Case::new("the command")
        .with("BUILDKITE_SHELL", "shell a b")
        .checkout(&fill)
        .pre_command("export PATH=\"$PWD/sub:$PATH\"")
        .same();
    all_printed(&runs, ": a b the command");
}

#[test]
fn without_a_shell_variable_the_agents_default_shell_is_used() {
    let runs = Case::new("echo $0 $- ${BASH_VERSION:+bash}; false; echo never").same();
    all_printed(&runs, "/bin/bash ehBc bash");
    all_ended(&runs, 1);
}

#[test]
fn a_shell_that_is_not_found_fails_as_by_the_agent() {
    Case::new("true")
        .with("BUILDKITE_SHELL", "no-such-shell -c")
        .refused("no-such-shell");
    // A word ends at a blank, a tab or a newline, and nowhere else.
    Case::new("true")
        .with("BUILDKITE_SHELL", "/bin/bash\u{b}-c")
        .refused("-c");
    Case::new("true")
        .with("BUILDKITE_SHELL", "/no/such/shell -c")
        .refused("/no/such/shell");
}

#[test]
fn a_shell_that_cannot_be_split_fails_as_by_the_agent() {
    Case::new("true")
        .with("BUILDKITE_SHELL", "/bin/bash 'c")
        .refused("Failed to split shell");
    // What is quoted and empty is no word for older agents, and a program that is not found for newer ones.
    let nothing = if is_old() {
        "No shell set for job"
    } else {
        "executable file not found"
    };
    for (shell, why) in [
        ("", "No shell set for job"),
        (" ", "No shell set for job"),
        ("''", nothing),
    ] {
        Case::new("true")
            .with("BUILDKITE_SHELL", shell)
            .refused(why);
    }
    Case::new("true")
        .with("BUILDKITE_SHELL", OsStr::from_bytes(b"/bin/bash -c \xff"))
        .refused("Failed to split shell");
}

#[test]
fn an_empty_command_is_refused_as_by_the_agent() {
    for command in ["", " ", "\n", " \t\n ", "\u{a0}\u{2003}"] {
        Case::new(command).refused("The command phase has no `command` to execute");
    }
}

#[test]
fn a_console_command_is_refused_as_by_the_agent_where_command_eval_is_off() {
    for off in ["false", "0", "F", "FALSE", "False", "f", ""] {
        Case::new("echo hello")
            .with("BUILDKITE_COMMAND_EVAL", off)
            .terminals(&[false])
            .refused("not allowed to evaluate console commands");
    }
    for on in ["true", "1", "T"] {
        let runs = Case::new("echo hello")
            .with("BUILDKITE_COMMAND_EVAL", on)
            .terminals(&[false])
            .same();
        all_printed(&runs, "hello");
    }
}

#[test]
fn a_script_of_the_checkout_runs_as_by_the_agent_where_command_eval_is_off() {
    let executable =
        |checkout: &Path| write(&checkout.join("sub/run"), 0o755, "#!/bin/sh\necho ran $0\n");
    let runs = Case::new("sub/run")
        .with("BUILDKITE_COMMAND_EVAL", "false")
        .checkout(&executable)
        .same();
    all_printed(&runs, "ran ./sub/run");
    // One that is not executable stays so: it may never have been meant to be run.
    let runs = Case::new("run")
        .with("BUILDKITE_COMMAND_EVAL", "false")
        .checkout(&|checkout| write(&checkout.join("run"), 0o644, "#!/bin/sh\necho ran\n"))
        .same();
    all_ended(&runs, 126);
}

#[test]
fn a_script_outside_the_checkout_is_refused_as_by_the_agent_where_command_eval_is_off() {
    let fill = |checkout: &Path| {
        write(
            &checkout.join("../checkout-2/run"),
            0o755,
            "#!/bin/sh\necho ran\n",
        );
        write(&checkout.join("sub/file"), 0o644, "");
    };
    for command in ["../checkout-2/run", "sub/../../checkout-2/run", "."] {
        Case::new(command)
            .with("BUILDKITE_COMMAND_EVAL", "false")
            .checkout(&fill)
            .refused("only allowed to run scripts within your repository");
    }
    // The agent looks at the path only, not at where a link in it leads.
    let runs = Case::new("link")
        .with("BUILDKITE_COMMAND_EVAL", "false")
        .checkout(&|checkout| {
            fill(checkout);
            symlink("../checkout-2/run", checkout.join("link")).unwrap();
        })
        .same();
    all_printed(&runs, "ran");
}

#[test]
fn a_hook_that_changed_the_folder_changes_where_a_script_is_looked_for() {
    let fill = |checkout: &Path| {
        write(&checkout.join("run"), 0o755, "#!/bin/sh\necho top\n");
        write(
            &checkout.join("sub/run"),
            0o644,
            "#!/bin/sh\necho below in $PWD\n",
        );
    };
    let runs = Case::new("run")
        .checkout(&fill)
        .pre_command("cd sub")
        .same();
    all_printed(&runs, "below in /");
    Case::new("../run")
        .with("BUILDKITE_COMMAND_EVAL", "false")
        .checkout(&fill)
        .pre_command("cd sub")
        .refused("only allowed to run scripts within your repository");
}

#[test]
fn standard_input_is_empty_without_a_terminal_as_by_the_agent() {
    let runs = Case::new("readlink /proc/self/fd/0; wc -c; echo read")
        .terminals(&[false])
        .same();
    all_printed(&runs, "/dev/null\n0\nread");
}

#[test]
fn the_terminal_is_the_agents() {
    let runs =
        Case::new("tty; stty -a; test -t 0 && test -t 1 && test -t 2; echo $TERM; : > /dev/tty")
            .terminals(&[true])
            .same();
    all_printed(&runs, "rows 100; columns 160");
    all_printed(&runs, "xterm-256color");
    all_ended(&runs, 0);
    let runs = Case::new("tty").terminals(&[false]).same();
    all_printed(&runs, "not a tty");
}

#[test]
fn the_environment_is_the_agents() {
    let hostile = "a 'b' \"c\" $d `e` \\ \n--- f=g 🚀";
    for command in ["env -0 > ../environment", "dump"] {
        Case::new(command)
            .with("HOSTILE", hostile)
            .with("EMPTY", "")
            .with("EVAL_ONCE_LOG", "debug")
            .with("EVAL_ONCE_STATE_DIR", "/nowhere")
            .checkout(&|checkout| {
                write(
                    &checkout.join("dump"),
                    0o644,
                    "#!/bin/sh\nenv -0 > ../environment\n",
                );
            })
            .same();
    }
    // And it was seen at all.
    let Some(mut job) = Job::new() else { return };
    job.command("env -0 > ../environment")
        .set("HOSTILE", hostile)
        .our_hook("command");
    job.run();
    let seen = variables(&fs::read(job.folder().join("environment")).unwrap());
    assert_eq!(seen[OsStr::new("HOSTILE")], hostile);
    assert!(seen.contains_key(OsStr::new("BUILDKITE_AGENT_JOB_API_SOCKET")));
    let ours = seen
        .keys()
        .filter(|name| name.to_string_lossy().starts_with("BUILDKITE_HOOK_"))
        .count();
    assert_eq!(ours, 0, "{seen:?}");
}

#[test]
fn the_process_is_the_agents_child_and_as_the_agent_starts_its_children() {
    // Signal mask and dispositions, limits, open files, and that we have been replaced: its parent is the agent.
    let runs = Case::new(
        "grep -E '^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt|Umask|NoNewPrivs):' /proc/self/status
         cat /proc/self/limits
         for fd in /proc/$$/fd/*; do echo \"fd ${fd##*/}\"; done
         read -r pid comm state parent group session tty foreground rest < /proc/$$/stat
         echo \"leads: $((pid == group)) $((pid == session)) $((pid == foreground)) $comm\"
         echo \"parent: $(readlink /proc/$parent/exe | sed 's|.*/||')\"
         cat /proc/self/oom_score_adj; ulimit -a",
    )
    .same();
    all_printed(&runs, "SigBlk:\t0000000000000000");
    all_printed(&runs, "fd 2");
    all_printed(&runs, "parent: ");
}

#[test]
fn the_job_api_is_there_as_by_the_agent() {
    let Some(mut job) = Job::new() else { return };
    job.command("buildkite-agent env set FROM_JOB=\"it's set\"; buildkite-agent env get FROM_JOB");
    job.shell_hook("post-command", "printf '%s' \"$FROM_JOB\" > ../post");
    let mut seen = Vec::new();
    for with_hook in [false, true] {
        if with_hook {
            job.our_hook("command");
        }
        let ran = job.run();
        assert_eq!(ran.ending.code(), Some(0), "{}", ran.log);
        let post = job.folder().join("post");
        seen.push((ran.output, fs::read_to_string(&post).unwrap()));
        fs::remove_file(post).unwrap();
    }
    assert_eq!(seen[0].1, "it's set");
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn nothing_of_ours_is_in_the_log_of_a_job_that_is_not_ours() {
    let Some(mut job) = Job::new() else { return };
    job.command("true").our_hook("command");
    let ran = job.run();
    assert_eq!(ran.output.as_deref(), Some(""), "{}", ran.log);
    assert_eq!(ran.ending.code(), Some(0));
}

#[test]
fn a_copy_of_the_binary_and_a_shell_shim_are_hooks_as_a_link_is() {
    let Some(mut job) = Job::new() else { return };
    job.command("echo hello; exit 6");
    let hook = job.hooks().join("command");
    let copied = Command::new("install").arg(EVAL_ONCE).arg(&hook).status();
    assert!(copied.unwrap().success());
    let ran = job.run();
    assert_eq!(ran.output.as_deref(), Some("hello\n"), "{}", ran.log);
    assert_eq!(ran.ending.code(), Some(6));
    fs::remove_file(&hook).unwrap();
    // The agent sources a shell hook and sets no scope for it.
    let link = job.folder().join("bin/command");
    symlink(EVAL_ONCE, &link).unwrap();
    job.shell_hook("command", &format!("exec '{}'\n", link.display()));
    let ran = job.run();
    assert_eq!(ran.output.as_deref(), Some("hello\n"), "{}", ran.log);
    assert_eq!(ran.ending.code(), Some(6));
}

#[test]
fn a_cancelled_job_that_is_not_ours_gets_the_signal_and_its_time_as_by_the_agent() {
    let mut outputs = Vec::new();
    for (terminal, with_hook) in [(false, false), (false, true), (true, false), (true, true)] {
        let Some(mut job) = Job::new() else { return };
        job.terminal(terminal).command(
            "trap 'echo cleaning up; exit 7' TERM; : > ../begun; sleep 600 & wait $!; echo never",
        );
        if with_hook {
            job.our_hook("command");
        }
        let running = job.start();
        let begun = job.folder().join("begun");
        until("the command has begun", || begun.exists());
        running.signal(Signal::SIGTERM);
        let ran = running.wait();
        outputs.push(ran.output.unwrap().replace("\r\n", "\n"));
    }
    for output in outputs {
        assert!(output.contains("cleaning up\n"), "{output}");
        assert!(!output.contains("never"), "{output}");
    }
}
