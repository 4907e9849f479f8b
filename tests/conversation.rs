//! What a conversation with an evaluator relies on: facts about `nix repl` on a pipe, of the Nix on `PATH`.
//!
//! A recording talks to `nix repl`, which is made for people. What it does with lines, errors, signals and settings is written down
//! nowhere but in its source, and changed more than once; so each fact stands here as a test, beside `nix-instantiate` where both
//! should do the same. Where versions differ, the test says which does what: a version that is not among those fails it.

use std::{
    fs,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use unix::{
    sys::signal::{Signal, kill, killpg},
    unistd::{Pid, geteuid},
};

use eval_once::nix::Message;

use super::support::{
    daemon::Daemon, loudly, processes::marked, program::Program, store::Store, until,
};

/// The user of the clients that go through a daemon.
const USER: u32 = 65534;

/// A conversation; its processes end with this value.
struct Conversation {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    /// How much of that was given back already.
    read: usize,
    asked: usize,
}

impl Conversation {
    fn start(program: &Program) -> Self {
        let mut child = program
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let here = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(bytes @ 1..) = stderr.read(&mut some) {
                here.lock().unwrap().extend_from_slice(&some[..bytes]);
            }
        });
        let mut conversation = Self {
            child,
            said,
            read: 0,
            asked: 0,
        };
        // What comes before the first line: a greeting.
        conversation.ask("null");
        conversation
    }

    fn send(&mut self, line: impl AsRef<[u8]>) {
        let stdin = self.child.stdin.as_mut().unwrap();
        // It may have ended: what it said is looked at anyway.
        let _ = stdin.write_all(&[line.as_ref(), b"\n"].concat());
        let _ = stdin.flush();
    }

    /// What it said and was not given back yet.
    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap()[self.read..]).into_owned()
    }

    /// Waits until it traces this, and gives what stands before it.
    #[track_caller]
    fn until(&mut self, traced: &str) -> String {
        let line = format!("trace: {traced}\n");
        until(&format!("the conversation traces {traced:?}"), || {
            let ended = self.child.try_wait().unwrap();
            let rest = self.rest();
            assert!(
                rest.contains(&line) || ended.is_none(),
                "it ended with {ended:?} and without {traced:?}: {rest}"
            );
            rest.contains(&line)
        });
        let rest = self.rest();
        let at = rest.find(&line).unwrap();
        // Whatever is not UTF-8 was asked for by bytes.
        self.read = self.said.lock().unwrap().len() - (rest.len() - at - line.len());
        // Nix before 2.10 with editline says at each line that it is not at a terminal.
        let said = rest[..at].split_inclusive('\n');
        said.filter(|line| !line.starts_with("Failed tcsetattr("))
            .collect()
    }

    /// Sends a line, and gives what it says until that is evaluated.
    #[track_caller]
    fn ask(&mut self, line: impl AsRef<[u8]>) -> String {
        self.send(line);
        self.asked += 1;
        let fence = format!("fence {}", self.asked);
        self.send(format!("builtins.trace \"{fence}\" null"));
        self.until(&fence)
    }

    /// What `expression`, a string, evaluates to.
    #[track_caller]
    fn value(&mut self, expression: &str) -> String {
        let said = self.ask(format!("builtins.trace \"value ${{{expression}}}\" null"));
        let value = said.lines().find_map(|line| {
            line.trim_start_matches('\u{7}')
                .strip_prefix("trace: value ")
        });
        value
            .unwrap_or_else(|| panic!("{expression} has no value: {said}"))
            .to_owned()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Sends nothing more, and waits for its end.
    fn close(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        let mut status = None;
        until("the conversation ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A store, and perhaps a daemon for it whose clients are ordinary users where root runs the tests.
struct Host {
    daemon: Option<Daemon>,
    store: Store,
}

impl Host {
    fn local() -> Option<Self> {
        Some(Self {
            daemon: None,
            store: Store::new()?,
        })
    }

    fn behind_a_daemon() -> Option<Self> {
        let store = Store::new()?;
        let daemon = Some(store.daemon());
        if geteuid().is_root() {
            store.open_to(USER);
        }
        Some(Self { daemon, store })
    }

    /// One without a daemon, then one with.
    fn each() -> impl Iterator<Item = Self> {
        [Self::local, Self::behind_a_daemon]
            .into_iter()
            .filter_map(|host| host())
    }

    fn client(&self, program: Program) -> Program {
        match &self.daemon {
            Some(daemon) if geteuid().is_root() => program.envs(daemon.env()).by_user(USER),
            Some(daemon) => program.envs(daemon.env()),
            None => program,
        }
    }

    fn program(&self, arguments: &[&str]) -> Program {
        let data = self.store.root().join("tmp/data");
        let program = self.store.program("nix");
        let before = ["--extra-experimental-features", "nix-command", "repl"];
        let program = program.args(before).args(["--log-format", "raw-with-logs"]);
        let program = program.args(arguments).envs([
            ("INPUTRC", PathBuf::from("/dev/null")),
            ("TERM", "dumb".into()),
            ("XDG_DATA_HOME", data.clone()),
            ("NIX_DATA_HOME", data),
        ]);
        self.client(program)
    }

    fn converse(&self, arguments: &[&str]) -> Conversation {
        Conversation::start(&self.program(arguments))
    }

    /// What `nix-instantiate` says about an expression.
    fn instantiate(&self, arguments: &[&str], expression: &str) -> String {
        let program = self.store.program("nix-instantiate");
        let program = program
            .args(["--eval", "--read-write-mode"])
            .args(arguments);
        let program = self.client(program.args(["-E", expression]));
        program.run().stderr
    }

    /// The version of the Nix on `PATH`: its first two numbers.
    fn version(&self) -> (u32, u32) {
        let said = self.store.nix("nix-store", ["--version"]);
        let version = said.rsplit(' ').next().unwrap();
        let mut numbers = version.split('.').map(|part| {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap_or(0)
        });
        (numbers.next().unwrap(), numbers.next().unwrap_or(0))
    }

    /// The names of the `.drv`s in the store.
    fn drvs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.store.folder()).unwrap().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut drvs: Vec<String> = names
            .filter_map(|name| Some(name.strip_suffix(".drv")?[33..].to_owned()))
            .collect();
        drvs.sort();
        drvs
    }
}

/// A derivation whose builder is this script.
fn derivation(name: &str, script: &str) -> String {
    format!(
        "(derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"{script}\" ]; PATH = \"/usr/bin:/bin\"; }})"
    )
}

/// A file whose attributes fail, each in its own way. The last is what the message has to have in it.
const FAILING: [(&str, &str, &str); 12] = [
    ("thrown", "throw \"own words\"", "own words"),
    (
        "lines",
        "throw \"one\\nerror: two\\n\\nthree\"",
        "one\nerror: two\n\nthree",
    ),
    ("aborted", "abort \"own words\"", "evaluation aborted"),
    ("asserted", "assert false; 1", "assertion"),
    ("missing", "{ name = 1; }.nme", "attribute 'nme' missing"),
    ("kind", "1 + { }", "cannot"),
    ("argument", "({ a }: a) { b = 1; }", "called"),
    (
        "variable",
        "import ./variable.nix",
        "undefined variable 'nope'",
    ),
    ("syntax", "import ./syntax.nix", "unexpected ';'"),
    ("file", "builtins.readFile ./none", "none'"),
    (
        "circle",
        "let x = x; in x",
        "infinite recursion encountered",
    ),
    (
        "named",
        "(derivation { name = \"named\"; system = \"x\"; builder = throw \"of a builder\"; }).drvPath",
        "of a builder",
    ),
];

#[test]
fn an_error_ends_the_line_with_the_message_of_nix_instantiate() {
    for host in Host::each() {
        let attributes = FAILING.map(|(name, expression, _)| format!("  {name} = {expression};\n"));
        let file = format!("{{\n{}}}\n", attributes.concat());
        host.store.write("failing.nix", &file);
        host.store.write("variable.nix", "nope");
        host.store.write("syntax.nix", "{ a = ; }");
        let mut conversation = host.converse(&[]);
        conversation.ask("failing = import ./failing.nix");
        for (name, _, text) in FAILING {
            let said = conversation.ask(format!("builtins.seq failing.{name} null"));
            let expression = format!("builtins.seq (import ./failing.nix).{name} null");
            let usual = host.instantiate(&[], &expression);
            let [said, usual] = [said, usual].map(|text| Message::last(&text).unwrap());
            assert!(said.text.contains(text), "{name}: {said:#?}");
            assert_eq!(said.text, usual.text, "{name}");
            assert_eq!(said.place, usual.place, "{name}");
            assert_eq!(said.around, usual.around, "{name}");
            assert_eq!(said.frames, usual.frames, "{name}");
        }
        // What is well is said nothing about.
        assert_eq!(conversation.ask("builtins.seq 1 null"), "");
    }
}

#[test]
fn a_build_during_the_evaluation_says_what_it_says_to_nix_instantiate() {
    for host in Host::each() {
        let failing = format!(
            "import {}",
            derivation("failing", "echo a line >&2; exit 3")
        );
        let said = host.converse(&[]).ask(&failing);
        let usual = host.instantiate(&[], &failing);
        let usual = usual.replace(
            "(use '--show-trace' to show detailed location information)\n",
            "",
        );
        assert!(said.contains("building '"), "{said}");
        assert!(said.contains("\na line\n"), "{said}");
        assert_eq!(said, usual);
        let mut conversation = host.converse(&[]);
        assert_eq!(
            conversation.value(&format!(
                "toString (import {})",
                derivation("well", "echo 7 > $out")
            )),
            "7"
        );
    }
}

#[test]
fn a_recursion_without_end_ends_nix_before_2_26() {
    let Some(host) = Host::local() else { return };
    let endless = "let f = n: 1 + f (n + 1); in f 0";
    let mut conversation = host.converse(&[]);
    if host.version() < (2, 20) {
        conversation.send(endless);
        assert_eq!(conversation.close().code(), Some(1));
        until("its message", || {
            conversation
                .rest()
                .contains("error: stack overflow (possible infinite recursion)\n")
        });
    } else {
        let said = conversation.ask(endless);
        let message = Message::last(&said).unwrap();
        assert!(message.text.starts_with("stack overflow"), "{message:#?}");
        assert_eq!(conversation.value("\"more\""), "more");
    }
}

/// Before 2.30 `nix repl` takes *any* message about an unexpected end for a line that is not finished.
#[test]
fn a_file_that_ends_too_early_is_an_unfinished_line_before_2_30() {
    for host in Host::each() {
        host.store.write("early.nix", "{ a = ");
        host.store.write("other.nix", "{ a = ; }");
        let mut conversation = host.converse(&[]);
        let mut after = |line: &str| {
            for line in [
                line,
                "assert true; builtins.trace \"done\" null",
                "builtins.trace \"next\" null",
            ] {
                conversation.send(line);
            }
            conversation.until("next")
        };
        let silent = host.version() < (2, 30);
        let said = after("builtins.trace \"began\" (import ./early.nix)");
        assert!(said.starts_with("trace: began\n"), "{said}");
        // Evaluated once, also where the next line is taken for its rest.
        assert_eq!(said.matches("trace: began\n").count(), 1, "{said}");
        assert_eq!(said.contains("trace: done\n"), !silent, "{said}");
        assert_eq!(said.contains("early.nix:"), !silent, "{said}");
        // Another error in a file, and none.
        for (line, message) in [("import ./other.nix", "other.nix:"), ("null", "")] {
            let said = after(line);
            let (before, _) = said.split_once("trace: done\n").unwrap();
            assert!(before.contains(message), "{said}");
            assert_eq!(before.is_empty(), message.is_empty(), "{said}");
        }
    }
}

#[test]
fn term_ends_a_build_and_its_line_but_not_the_conversation() {
    for host in Host::each() {
        // Told apart from everything else by the path of the store, which is in their environment.
        let marker = host.store.folder().to_string_lossy().into_owned();
        let builders = || {
            let all = marked(&marker).into_iter();
            all.filter(|process| process.command.starts_with("sleep"))
                .count()
        };
        let line = format!(
            "builtins.trace \"begins\" (import {})",
            derivation("endless", &format!("sleep 1000 & : {marker}; wait"))
        );
        let mut conversation = host.converse(&[]);
        conversation.send(&line);
        // What waits in the pipe is read afterwards.
        conversation.send("builtins.trace \"after\" null");
        conversation.until("begins");
        until("its builder runs", || builders() == 1);
        kill(conversation.pid(), Signal::SIGTERM).unwrap();
        let said = conversation.until("after");
        assert!(said.contains("error: interrupted by the user\n"), "{said}");
        until("no builder is left", || builders() == 0);
        // The signal counts no longer.
        let line = format!("toString (import {})", derivation("short", "echo 8 > $out"));
        assert_eq!(conversation.value(&line), "8");
        assert_eq!(conversation.close().code(), Some(0));
    }
}

/// With readline a signal ends none that waits for a line; with editline it may. So a status means nothing.
#[test]
fn the_end_of_its_input_ends_a_conversation_that_waits_whatever_signals_it_had() {
    let Some(host) = Host::local() else { return };
    assert_eq!(host.converse(&[]).close().code(), Some(0));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut conversation = host.converse(&[]);
        kill(conversation.pid(), signal).unwrap();
        let status = conversation.close();
        assert!(matches!(status.code(), Some(0 | 1)), "{signal}: {status}");
    }
}

#[test]
fn what_was_written_is_kept_from_the_collector_until_the_conversation_ends() {
    for host in Host::each() {
        let mut conversation = host.converse(&[]);
        let drv = conversation.value(&format!("{}.drvPath", derivation("kept", "exit 1")));
        host.store.collect();
        assert!(host.store.has(&drv));
        // Nor does it go where it is named.
        assert!(!host.store.try_delete([&drv]).status.success());
        conversation.close();
        // The daemon's worker ends after its client.
        until("it can be collected", || {
            host.store.collect();
            host.drvs().is_empty()
        });
    }
}

/// Another connection is made for the line after that, which holds nothing that was written before.
#[test]
fn a_daemons_worker_that_dies_fails_one_line_and_loses_what_was_written() {
    let Some(host) = Host::behind_a_daemon() else {
        return;
    };
    let mut conversation = host.converse(&[]);
    let write = |name: &str| format!("{}.drvPath", derivation(name, "exit 1"));
    conversation.value(&write("first"));
    host.daemon.as_ref().unwrap().kill_workers();
    let said = conversation.ask(write("second"));
    let message = Message::last(&said).unwrap();
    let known = [
        "Broken pipe",
        "Connection reset by peer",
        "unexpected end-of-file",
    ];
    assert!(
        known.iter().any(|known| message.text.contains(known)),
        "{message:#?}"
    );
    conversation.value(&write("third"));
    host.store.collect();
    assert_eq!(host.drvs(), ["third"]);
}

/// So a conversation that has said this is of no use any more.
#[test]
fn a_daemon_that_was_away_once_is_away_for_the_conversation() {
    let Some(mut host) = Host::behind_a_daemon() else {
        return;
    };
    let mut conversation = host.converse(&[]);
    let write = |name: &str| format!("{}.drvPath", derivation(name, "exit 1"));
    conversation.value(&write("first"));
    host.daemon = None;
    // The first fails by the old connection, the second as it makes a new one.
    for name in ["second", "third"] {
        assert!(Message::last(&conversation.ask(write(name))).is_some());
    }
    let _ = fs::remove_file(host.store.root().join("socket"));
    host.daemon = Some(host.store.daemon());
    let said = conversation.ask(write("fourth"));
    let message = Message::last(&said).unwrap();
    assert!(
        message
            .text
            .contains("opening a connection to remote store 'daemon' previously failed"),
        "{message:#?}"
    );
    // A new one sees that it is back.
    host.converse(&[]).value(&write("fifth"));
    assert!(host.drvs().contains(&"fifth".to_owned()));
}

/// A failure may be remembered: by the value from 2.34 on, and of a file from 2.26 on. So it is evaluated anew by another process.
#[test]
fn what_failed_is_tried_again_only_by_another_conversation() {
    for host in Host::each() {
        let flag = host.store.work().join("flag");
        let script = format!("test -e {} && echo 1 > $out", flag.display());
        let build = format!("toString (import {})", derivation("later", &script));
        let file = "toString (import ./later.nix)";
        let mut conversation = host.converse(&[]);
        conversation.ask(format!("build = {build}"));
        conversation.ask(format!("file = {file}"));
        for name in ["build", "file"] {
            let said = conversation.ask(format!("builtins.trace {name} null"));
            assert!(Message::last(&said).is_some(), "{name}: {said}");
        }
        fs::write(&flag, "").unwrap();
        host.store.write("later.nix", "1");
        let mut remembers = |name: &str| {
            let said = conversation.ask(format!("builtins.trace {name} null"));
            Message::last(&said).is_some()
        };
        let version = host.version();
        assert_eq!(remembers("build"), version >= (2, 34), "{version:?}");
        assert_eq!(remembers("file"), version >= (2, 26), "{version:?}");
        let mut another = host.converse(&[]);
        assert_eq!(another.value(&build), "1");
        assert_eq!(another.value(file), "1");
    }
}

const PURE: &str =
    "if builtins ? currentSystem || builtins.getEnv \"HOME\" != \"\" then \"impure\" else \"pure\"";

/// `nix repl` switches purity off: before 2.10 after it has read its arguments, since then before that.
#[test]
fn purity_is_an_argument_of_its_own_and_none_before_2_10() {
    let Some(host) = Host::local() else { return };
    assert_eq!(host.converse(&[]).value(PURE), "impure");
    let argument = ["--option", "pure-eval", "true"];
    let pure = if host.version() < (2, 10) {
        "impure"
    } else {
        "pure"
    };
    assert_eq!(host.converse(&argument).value(PURE), pure);
    // Unlike nix-instantiate it does not read it in the host's settings.
    host.store.configure("pure-eval = true");
    assert_eq!(host.converse(&[]).value(PURE), "impure");
    let usual = host.instantiate(&[], &format!("builtins.trace ({PURE}) null"));
    assert!(usual.contains("trace: pure\n"), "{usual}");
    assert_eq!(host.converse(&argument).value(PURE), pure);
}

#[test]
fn other_settings_count_as_for_nix_instantiate() {
    let Some(host) = Host::local() else { return };
    host.store.write("inside/value.nix", "7");
    let secret = host.store.root().join("home/secret");
    fs::write(&secret, "secret").unwrap();
    let expressions = [
        "toString (import ./inside/value.nix)".to_owned(),
        format!("builtins.readFile {}", secret.display()),
        "builtins.getEnv \"NAME\"".to_owned(),
        "toString <inside/value.nix>".to_owned(),
        "builtins.toJSON builtins.nixPath".to_owned(),
        format!("toString (import {})", derivation("built", "echo 1 > $out")),
    ];
    let search = format!("inside={}", host.store.work().join("inside").display());
    let settings: [(&[&str], &str, &str); 7] = [
        (&[], "", ""),
        (&[], "", &search),
        (&["-I", "inside=inside"], "", "inside=/none"),
        (&["--option", "restrict-eval", "true"], "", &search),
        (&["--option", "restrict-eval", "true", "-I", "."], "", ""),
        (&[], "restrict-eval = true", ""),
        (&[], "allow-import-from-derivation = false", ""),
    ];
    let outcomes = |said: &str| {
        let own = said.lines().filter(|line| line.starts_with("trace: "));
        let message = Message::last(said).map(|message| message.text);
        (own.collect::<Vec<_>>().join("\n"), message)
    };
    let mut seen = Vec::new();
    for (arguments, setting, path) in settings {
        let environment = [
            ("NAME", "value"),
            ("NIX_PATH", path),
            ("NIX_CONFIG", setting),
        ];
        let program = host.program(arguments).envs(environment);
        let mut conversation = Conversation::start(&program);
        for expression in &expressions {
            let line = format!("builtins.trace ({expression}) null");
            let said = conversation.ask(&line);
            let usual = host
                .store
                .program("nix-instantiate")
                .args(["--eval", "--read-write-mode"])
                .args(arguments)
                .args(["-E", &line])
                .envs(environment)
                .run()
                .stderr;
            let both = [&said, &usual].map(|text| outcomes(text));
            assert_eq!(both[0], both[1], "{arguments:?} {setting} {path}: {line}");
            seen.push(both[0].clone());
        }
    }
    // They do make a difference.
    seen.sort();
    seen.dedup();
    assert!(seen.len() >= 9, "{seen:#?}");
}

#[test]
fn a_long_line_of_any_bytes_but_control_characters_arrives_as_it_was_sent() {
    let Some(host) = Host::local() else { return };
    let mut conversation = host.converse(&[]);
    let long = vec![b'a'; 1_000_000];
    for text in [&b"\xc3\xa4"[..], b"\xff\xfe", &long] {
        let line = [
            b"builtins.trace \"length ${toString (builtins.stringLength \"",
            text,
            b"\")}\" null",
        ]
        .concat();
        let said = conversation.ask(line);
        assert_eq!(said, format!("trace: length {}\n", text.len()));
    }
}

/// readline completes at a tab, and takes what follows ^V as it is. editline, and from 2.35 on every Nix, read lines as they come.
#[test]
fn control_characters_in_a_line_mean_what_the_library_makes_of_them() {
    let Some(host) = Host::local() else { return };
    let mut conversation = host.converse(&[]);
    let lengths = ["\t", "\u{16}\t"]
        .map(|text| conversation.value(&format!("toString (builtins.stringLength \"{text}\")")));
    assert!(
        lengths == ["0", "1"] || lengths == ["1", "2"],
        "{lengths:?}"
    );
}

#[test]
fn a_persons_settings_for_a_terminal_do_not_count_and_no_line_is_kept() {
    let Some(host) = Host::local() else { return };
    let inputrc = host
        .store
        .write("inputrc", "set editing-mode vi\n\"n\": \"x\"\n");
    let data = host.store.root().join("tmp/data");
    // A home that cannot be.
    let program = host.program(&[]).env("HOME", "/dev/null/home");
    for program in [program.clone(), program.without("HOME")] {
        let mut conversation = Conversation::start(&program);
        assert_eq!(conversation.value("\"innen\""), "innen");
        assert_eq!(conversation.close().code(), Some(0));
    }
    let mut kept = Vec::new();
    for folder in [data.clone(), data.join("nix")] {
        kept.extend(fs::read(folder.join("repl-history")).unwrap_or_default());
    }
    assert_eq!(String::from_utf8_lossy(&kept), "");
    // With readline a person's settings would count; editline reads none.
    let mut program = host.program(&[]).env("INPUTRC", inputrc).command();
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"builtins.trace \"innen\" null\n").unwrap();
    drop(stdin);
    let said = child.wait_with_output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    let uses_readline = !said.contains("trace: innen\n");
    if uses_readline {
        assert!(said.contains("error:"), "{said}");
    }
}

/// How an expression comes into a conversation, with control characters and all: as an argument of a file that is loaded.
#[test]
fn an_argument_becomes_a_name_by_loading_a_file() {
    for host in Host::each() {
        let file = host.store.write("named.nix", "{ url }: { inherit url; }\n");
        let file = file.to_str().unwrap();
        let entry = format!("named={file}");
        let many = "/* a comment */ name: # another\n\t\"\t${name}\n\"";
        let restricted = ["--option", "restrict-eval", "true", "-I", &entry];
        let mut ways = vec![
            (vec![], format!(":load {file}")),
            (restricted.to_vec(), ":load <named>".to_owned()),
        ];
        if host.version() >= (2, 26) {
            // Before it, this one is in no folder that can be read.
            let pure = ["--option", "pure-eval", "true"].to_vec();
            ways.push((pure, ":load <nix/fetchurl.nix>".to_owned()));
        }
        for (arguments, load) in ways {
            let with = |text| [&arguments[..], &["--arg", "url", text]].concat();
            let mut conversation = host.converse(&with(many));
            let said = conversation.ask(&load);
            assert!(said.contains("Added "), "{load}: {said}");
            assert_eq!(
                conversation.value("toString (builtins.stringLength (url \"x\"))"),
                "3"
            );
            // It is evaluated only when it is used.
            let mut lazy = host.converse(&with("throw \"too early\""));
            let said = lazy.ask(&load);
            assert!(!said.contains("too early"), "{said}");
            assert!(lazy.ask("builtins.seq url null").contains("too early"));
        }
    }
}

#[test]
fn the_heap_to_begin_with_is_taken_from_the_environment() {
    let Some(host) = Host::local() else { return };
    if !PathBuf::from("/proc/self/status").exists() {
        loudly("how large a process is, is not in /proc here");
        return;
    }
    let size = |heap: u64| {
        let program = host.program(&[]);
        let program = program.env("GC_INITIAL_HEAP_SIZE", heap.to_string());
        let mut conversation = Conversation::start(&program);
        conversation.ask("builtins.seq 1 null");
        let status = fs::read_to_string(format!("/proc/{}/status", conversation.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmSize:"));
        let digits: String = line.unwrap().chars().filter(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap() / 1024
    };
    let [small, large] = [50 << 20, 2000 << 20].map(size);
    assert!(large > small + 1000, "{small} and {large} MiB");
}
