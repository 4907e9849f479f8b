//! What real Nix prints of an error, and what of it is the message: every text that an expression may throw comes out whole, by
//! `nix-instantiate` and by `nix repl` on a pipe. With each Nix that is on the PATH of the tests.

use std::fmt::Write as _;
use std::fs::{self, File};

use eval_once::{
    command_line::Ending,
    nix::{NixOutput, message::MESSAGE_AT_MOST},
};

use super::support::store::Store;

/// Texts that an expression throws. Nix itself drops blanks at the end of each line.
const TEXTS: [&str; 16] = [
    "one line",
    "the plugin reported error: disk missing",
    "error: begins so",
    "one\nerror: two\n\n  indented\nlast: No space left on device",
    "a\n\nerror: b",
    "error:\n… while calling x\n\nerror: imitated",
    "a\n… while calling the 'throw' builtin\n  at /x:1:1:\n\nb",
    "look at /x:1:1: it is odd",
    "look\nat /x:1:1:\n     1| foo\n      |  ^\nmore of mine",
    "trace: a\nwarning: b\nhint: c\nevaluating file '/x'",
    "(stack trace truncated; use '--show-trace' to show the full, detailed trace)\nmine",
    "mine\n(use '--show-trace' to show detailed location information)\nmine",
    "response body:\nmine",
    "ünï — ‘quoted’ \u{1f4a5}",
    "\"quoted\" \\back\\ ${not} $",
    "deep\n\n\n\nblank lines",
];

/// `text` as a string of the Nix language.
fn quoted(text: &str) -> String {
    let text = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('$', "\\$")
        .replace('\n', "\\n");
    format!("\"{text}\"")
}

/// What Nix prints of each attribute of `messages.nix` that does not evaluate: by a process for each, and by a conversation.
fn printed(store: &Store, count: usize) -> Vec<[Vec<u8>; 2]> {
    let single = |i: usize| {
        let line = store.program("nix-instantiate");
        let line = line.args(["--eval", "--strict", "messages.nix", "-A"]);
        line.arg(format!("m{i}")).bytes()
    };
    let mut lines = String::from("messages = import ./messages.nix\n");
    for i in 0..count {
        let _ = writeln!(lines, "builtins.trace \"MARK begin\" messages.m{i}");
        lines.push_str("builtins.trace \"MARK end\" null\n");
    }
    let input = store.write("lines", &lines);
    let mut repl = store
        .program("nix")
        .args(["--extra-experimental-features", "nix-command", "repl"])
        .env("TERM", "dumb")
        .env("INPUTRC", "/dev/null")
        .command();
    let stderr = repl
        .stdin(File::open(input).unwrap())
        .output()
        .unwrap()
        .stderr;
    // Byte by byte, for a message need not be UTF-8.
    let mut parts = split(&stderr, b"trace: MARK begin\n").into_iter().skip(1);
    let parts = (0..count).map(|i| {
        let part = parts.next().unwrap();
        let said = split(&part, b"trace: MARK end\n").swap_remove(0);
        [single(i), said]
    });
    parts.collect()
}

fn split(bytes: &[u8], border: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        if let Some(after) = rest.strip_prefix(border) {
            parts.push(Vec::new());
            rest = after;
        } else {
            parts.last_mut().unwrap().push(*first);
            rest = &rest[1..];
        }
    }
    parts
}

/// Evaluates these expressions, and gives their messages.
fn messages(store: &Store, expressions: &[Vec<u8>]) -> Vec<[String; 2]> {
    let mut file = b"{\n".to_vec();
    for (i, expression) in expressions.iter().enumerate() {
        file.extend(format!("  m{i} = ").into_bytes());
        file.extend(expression);
        file.extend(b";\n");
    }
    file.extend(b"}\n");
    fs::write(store.work().join("messages.nix"), file).unwrap();
    printed(store, expressions.len())
        .into_iter()
        .map(|both| both.map(|printed| NixOutput::of(&printed).final_message(Ending::Exited(1))))
        .collect()
}

#[test]
fn every_text_that_an_expression_throws_is_a_whole_message() {
    let Some(store) = Store::new() else { return };
    let expressions: Vec<_> = TEXTS
        .iter()
        .flat_map(|text| {
            let text = quoted(text);
            [
                format!("throw {text}"),
                format!("abort {text}"),
                format!("builtins.trace \"error: traced\" (assert (throw {text}); 1)"),
                // So many frames that Nix leaves out the one of the `throw`.
                format!("builtins.addErrorContext \"a\" (builtins.head [ (let x = throw {text}; in x + 1) ])"),
            ]
        })
        .map(String::into_bytes)
        .collect();
    let messages = messages(&store, &expressions);
    for (text, messages) in TEXTS.iter().zip(messages.chunks(4)) {
        let abort = format!("evaluation aborted with the following error message: '{text}'");
        let expected = [*text, &abort, text, text];
        for (both, expected) in messages.iter().zip(expected) {
            for (message, by) in both.iter().zip(["nix-instantiate", "nix repl"]) {
                assert_eq!(message, expected, "{by}");
            }
        }
    }
}

#[test]
fn nixs_own_messages_have_their_place_and_suggestions_and_no_frames() {
    let Some(store) = Store::new() else { return };
    let expressions = [
        "{ digit = 1; }.digt",
        "1 + { }",
        "assert 1 == 2; 3",
        "let x = x; in x",
        "({ a }: a) { b = 1; }",
        "builtins.fromJSON \"{\"",
        "import ./not.nix",
    ];
    store.write("not.nix", "{ a = ; }\n");
    let expressions = expressions.map(|it| it.as_bytes().to_vec());
    let messages = messages(&store, &expressions);
    for (both, part) in messages.iter().zip([
        "attribute 'digt' missing\n",
        "cannot add a set to an integer",
        "",
        "infinite recursion encountered\n",
        "called without required argument 'a'",
        "parse error at line 1",
        "syntax error, unexpected ';'",
    ]) {
        assert_eq!(both[0], both[1]);
        assert!(both[0].contains(part), "{both:?}");
        assert!(!both[0].contains("… while"), "{both:?}");
        assert!(!both[0].contains("«string»"), "{both:?}");
        assert!(!both[0].contains("status"), "{both:?}");
    }
    assert!(messages[0][1].contains("messages.nix:2:"), "{messages:?}");
    assert!(
        messages[0][1].ends_with("Did you mean digit?"),
        "{messages:?}"
    );
}

#[test]
fn a_message_of_any_bytes_is_text_and_a_long_one_ends_with_an_ellipsis() {
    let Some(store) = Store::new() else { return };
    let long = |line: &str, count: usize| {
        format!("throw (builtins.concatStringsSep \"\" (builtins.genList (_: {line}) {count}) + \"END\")")
            .into_bytes()
    };
    let expressions = [
        b"throw \"\xff\x1b[31mred\x1b[0m \xe2\x80 end\"".to_vec(),
        long("\"line\\n\"", 5_000),
        long("\"0123456789\"", 5_000),
        long("\"error: x\\n\"", 100_000),
        long("\"0123456789\"", 100_000),
        // What comes before it is longer than all that is kept.
        b"let f = n: if n == 0 then throw \"the end\" else builtins.addErrorContext \"frame ${toString n} ${builtins.toString (builtins.genList (x: x) 100)}\" (f (n - 1)); in f 500".to_vec(),
    ];
    let messages = messages(&store, &expressions);
    for by in [0, 1] {
        let message = |i: usize| messages[i][by].as_str();
        assert_eq!(message(0), "\u{fffd}red \u{fffd} end");
        assert_eq!(message(1), "line\n".repeat(5_000) + "END");
        assert_eq!(message(2), "0123456789".repeat(5_000) + "END");
        for (i, begin) in [(3, "error: x\nerror: x\n"), (4, "0123456789")] {
            assert!(message(i).starts_with(begin), "{}", &message(i)[..99]);
            assert!(message(i).ends_with('…'), "{}", message(i).len());
            let length = message(i).len();
            assert!(
                (MESSAGE_AT_MOST - 99..MESSAGE_AT_MOST + 9).contains(&length),
                "{length}"
            );
        }
        assert_eq!(message(5), "the end");
    }
}
