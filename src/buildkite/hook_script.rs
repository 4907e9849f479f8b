//! What a hook that is a shell script runs, as far as one can read that without a shell: its simple commands, with comments, quotes,
//! substitutions and here-documents told apart. It does not know conditions, functions or the values of variables.

/// A simple command of a script.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SimpleCommand {
    /// Its words without quotes. Variables stand there by their names; a substitution is `$()`.
    words: Vec<String>,
    /// What it prints is a word or an input of another command.
    is_substituted: bool,
}

/// A command of a script that runs eval-once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptRun {
    /// The program as the script names it; it begins with `$` where that is a variable or a substitution.
    pub program: String,
    /// It replaces the shell.
    pub by_exec: bool,
    /// `BUILDKITE_HOOK_SCOPE` as it is exported to it.
    pub scope: Option<String>,
    /// What it prints goes to a command or a file.
    pub is_captured: bool,
    /// The script may have changed `PATH` before.
    pub may_have_other_path: bool,
}

/// What a script has to do with eval-once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookScript {
    /// Where it runs it.
    pub runs: Vec<ScriptRun>,
    /// A word of it names it.
    pub names_it: bool,
}

const SCOPE: &str = "BUILDKITE_HOOK_SCOPE";

/// Commands that run the command that follows them.
const PREFIXES: [&str; 10] = [
    "builtin", "command", "env", "exec", "ionice", "nice", "nohup", "setsid", "sudo", "time",
];

/// Words of the shell that stand before a command.
const KEYWORDS: [&str; 9] = [
    "!", "do", "elif", "else", "if", "then", "until", "while", "{",
];

impl HookScript {
    /// Reads a script. `arguments` are those after the program by which it does what the hook is for.
    #[must_use]
    pub fn read(text: &str, arguments: &[&str]) -> Self {
        let mut runs = Vec::new();
        let mut scope = Variable::default();
        let mut may_have_other_path = false;
        let commands = commands(text);
        let names_it = commands
            .iter()
            .flat_map(|command| &command.words)
            .any(|word| word.contains("eval-once"));
        for SimpleCommand {
            words,
            is_substituted,
        } in &commands
        {
            let begin = words.iter().position(|word| !KEYWORDS.contains(&&**word));
            let words = &words[begin.unwrap_or(words.len())..];
            let place = (0..words.len()).find(|&at| {
                is_ours(&words[at])
                    && words[at + 1..].len() >= arguments.len()
                    && words[at + 1..].iter().zip(arguments).all(|(a, b)| a == b)
                    && is_run(&words[..at])
            });
            let assigned = |name: &str| {
                let words = words.iter().take(place.unwrap_or(words.len()));
                let mut values =
                    words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                values.next_back().map(str::to_owned)
            };
            let first = words.first().map_or("", String::as_str);
            if let Some(at) = place {
                runs.push(ScriptRun {
                    program: words[at].clone(),
                    by_exec: words[..at].iter().any(|word| word == "exec"),
                    scope: assigned(SCOPE).or_else(|| scope.exported()),
                    is_captured: *is_substituted || words[at..].iter().any(|it| it.contains('>')),
                    may_have_other_path: may_have_other_path || assigned("PATH").is_some(),
                });
            } else {
                if let Some(value) = assigned(SCOPE) {
                    scope.value = Some(value);
                }
                let exports = ["export", "declare", "typeset"].contains(&first);
                let names_scope = |word: &String| {
                    word.strip_prefix(SCOPE)
                        .is_some_and(|it| it.is_empty() || it.starts_with('='))
                };
                match first {
                    "unset" if words.iter().any(names_scope) => scope = Variable::default(),
                    _ if exports && words.iter().any(names_scope) => scope.is_exported = true,
                    _ => {}
                }
                may_have_other_path |=
                    assigned("PATH").is_some() || [".", "source", "eval"].contains(&first);
            }
        }
        Self { runs, names_it }
    }
}

/// A variable of a script.
#[derive(Debug, Default)]
struct Variable {
    value: Option<String>,
    is_exported: bool,
}

impl Variable {
    fn exported(&self) -> Option<String> {
        self.value.clone().filter(|_| self.is_exported)
    }
}

/// Whether a word can be this program: its name, in whatever folder, or a variable or substitution.
fn is_ours(word: &str) -> bool {
    let name = word.rsplit_once('/').map_or(word, |(_, name)| name);
    name == "eval-once" || word.starts_with('$')
}

/// Whether a command with these words before the program runs it: `echo` does not.
fn is_run(before: &[String]) -> bool {
    let is_assignment = |word: &str| {
        let name = word.split_once('=').map(|(name, _)| name);
        name.is_some_and(|name| {
            name.bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'_')
        })
    };
    let mut words = before.iter().map(String::as_str);
    let first = words.find(|word| !is_assignment(word));
    first.is_none_or(|first| PREFIXES.contains(&first))
}

/// Where a command stands within another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nesting {
    /// `$(…)`, `<(…)`.
    Substitution,
    /// The same in backticks.
    Backticks,
    /// `(…)`.
    Subshell,
}

/// A command that goes on behind one that stands in it.
#[derive(Debug)]
struct Outer {
    /// What the inner one stands in.
    within: Nesting,
    words: Vec<String>,
    word: Option<String>,
    is_quoted: bool,
    is_substituted: bool,
}

/// What is read at the moment.
#[derive(Debug, Default)]
struct Reader {
    found: Vec<SimpleCommand>,
    words: Vec<String>,
    word: Option<String>,
    /// Between double quotes.
    is_quoted: bool,
    is_substituted: bool,
    /// The commands in which this one stands, outermost first.
    outer: Vec<Outer>,
    /// The next word ends a here-document.
    document_begins: bool,
    /// The words that end the here-documents of this line.
    documents: Vec<String>,
}

/// The commands of a script, in their order; one that stands within another comes first.
fn commands(text: &str) -> Vec<SimpleCommand> {
    let mut reader = Reader::default();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(escaped) => reader.push(escaped),
            },
            '"' => {
                reader.is_quoted = !reader.is_quoted;
                reader.word.get_or_insert_default();
            }
            '$' if chars.next_if_eq(&'(').is_some() => reader.open(Nesting::Substitution),
            '`' if reader
                .outer
                .last()
                .is_some_and(|it| it.within == Nesting::Backticks) =>
            {
                reader.close();
            }
            '`' => reader.open(Nesting::Backticks),
            _ if reader.is_quoted => reader.push(c),
            '\'' => {
                reader.word.get_or_insert_default();
                for quoted in chars.by_ref().take_while(|it| *it != '\'') {
                    reader.push(quoted);
                }
            }
            '#' if reader.word.is_none() => while chars.next_if(|it| *it != '\n').is_some() {},
            '<' if chars.next_if_eq(&'(').is_some() => reader.open(Nesting::Substitution),
            '<' if chars.next_if_eq(&'<').is_some() => {
                reader.end_word();
                if chars.next_if_eq(&'<').is_none() {
                    chars.next_if_eq(&'-');
                    reader.document_begins = true;
                }
            }
            '(' => {
                reader.end_command();
                reader.open(Nesting::Subshell);
            }
            ')' if reader
                .outer
                .last()
                .is_some_and(|it| it.within != Nesting::Backticks) =>
            {
                reader.close();
            }
            ' ' | '\t' => reader.end_word(),
            '\n' => {
                reader.end_command();
                for end in std::mem::take(&mut reader.documents) {
                    skip_document(&mut chars, &end);
                }
            }
            ';' | '&' | '|' | ')' => reader.end_command(),
            _ => reader.push(c),
        }
    }
    reader.end_command();
    while !reader.outer.is_empty() {
        reader.close();
    }
    reader.end_command();
    reader.found
}

/// Skips lines up to the one that ends a here-document.
fn skip_document(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, end: &str) {
    while chars.peek().is_some() {
        let line: String = chars.by_ref().take_while(|it| *it != '\n').collect();
        if line.trim_start_matches('\t') == end {
            return;
        }
    }
}

impl Reader {
    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        if std::mem::take(&mut self.document_begins) {
            self.documents.push(word);
        } else {
            self.words.push(word);
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        self.document_begins = false;
        if !self.words.is_empty() {
            self.found.push(SimpleCommand {
                words: std::mem::take(&mut self.words),
                is_substituted: self.is_substituted,
            });
        }
    }

    fn open(&mut self, within: Nesting) {
        self.outer.push(Outer {
            within,
            words: std::mem::take(&mut self.words),
            word: self.word.take(),
            is_quoted: std::mem::take(&mut self.is_quoted),
            is_substituted: self.is_substituted,
        });
        self.is_substituted |= within != Nesting::Subshell;
    }

    fn close(&mut self) {
        self.end_command();
        if let Some(outer) = self.outer.pop() {
            (self.words, self.word) = (outer.words, outer.word);
            (self.is_quoted, self.is_substituted) = (outer.is_quoted, outer.is_substituted);
            if outer.within != Nesting::Subshell {
                self.word.get_or_insert_default().push_str("$()");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let commands = commands(text);
        commands.iter().map(|it| it.words.join(" ")).collect()
    }

    #[test]
    fn a_script_is_read_as_its_commands() {
        for (text, expected) in [
            ("a b # c d\n#e\nf;g&&h", &["a b", "f", "g", "h"][..]),
            ("a 'b # c' \"d ; e\" f\\ g", &["a b # c d ; e f g"]),
            ("a \\\n b", &["a b"]),
            ("if a; then\n b\nfi", &["if a", "then", "b", "fi"]),
            ("a \"$(b \"$(c d)\" e)\" f", &["c d", "b $() e", "a $() f"]),
            ("a=`b c` d", &["b c", "a=$() d"]),
            ("(a; b) | c", &["a", "b", "c"]),
            (
                "case x in\n  y) a b ;;\nesac",
                &["case x in", "y", "a b", "esac"],
            ),
            ("a <<'E' b\nc d\nE\ne", &["a b", "e"]),
            ("a <<-E\n\tb\n\tE\nc", &["a", "c"]),
            ("a <<< b\nc", &["a b", "c"]),
            ("a#b ${#c}", &["a#b ${#c}"]),
            ("a 'b", &["a b"]),
            ("a \"$(b", &["b", "a $()"]),
            ("", &[]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
        // No depth is too deep.
        assert_eq!(commands(&"$(".repeat(100_000)).len(), 100_000);
    }

    #[test]
    fn what_a_command_hook_runs_is_told_from_what_it_only_names() {
        let runs = |text: &str| HookScript::read(text, &["hook", "command"]).runs;
        for text in [
            "exec eval-once hook command",
            "exec env A=b /opt/bin/eval-once hook command \"$@\"",
            "[ -z \"$X\" ] || exec \"${EVAL_ONCE_BIN}\" hook command",
            "if x; then exec -a y eval-once hook command; fi",
            "exec \"$(command -v eval-once)\" hook command",
        ] {
            let runs = runs(text);
            assert!(runs.len() == 1 && runs[0].by_exec, "{text}: {runs:?}");
        }
        assert!(!runs("eval-once hook command; exit $?")[0].by_exec);
        for text in [
            "# eval-once hook command",
            "echo eval-once hook command",
            "echo 'eval-once hook command'",
            "cat <<E\nexec eval-once hook command\nE",
            "exec eval-once doctor",
            "exec not-eval-once hook command",
        ] {
            assert_eq!(runs(text), [], "{text}");
        }
    }

    #[test]
    fn the_scope_is_the_one_that_is_exported_before() {
        let scope = |before: &str| {
            let text = format!("{before}exec eval-once hook command");
            HookScript::read(&text, &["hook", "command"]).runs[0]
                .scope
                .clone()
        };
        let name = "BUILDKITE_HOOK_SCOPE";
        for (before, expected) in [
            (String::new(), None),
            (format!("export {name}=global\n"), Some("global")),
            (format!("{name}='agent'; export A {name}\n"), Some("agent")),
            (format!("declare -x {name}=agent\n"), Some("agent")),
            (format!("{name}=global "), Some("global")),
            (format!("exec env {name}=global "), Some("global")),
            (format!("{name}=global\n"), None),
            (format!("#export {name}=global\n"), None),
            (format!("export {name}=global\nunset {name}\n"), None),
            (
                format!("export {name}=global\nexport {name}=local\n"),
                Some("local"),
            ),
            (format!("export MY_{name}=global\n"), None),
        ] {
            assert_eq!(scope(&before).as_deref(), expected, "{before}");
        }
    }

    #[test]
    fn what_an_environment_hook_runs_is_captured_or_only_printed() {
        let captured = |text: &str| {
            let runs = HookScript::read(text, &["environment"]).runs;
            runs.first().map(|run| run.is_captured)
        };
        for text in [
            "eval \"$(eval-once environment)\"",
            "x=$(/opt/eval-once environment) || exit\neval \"$x\"",
            "source <(eval-once environment)",
            "eval-once environment >x; . x",
        ] {
            assert_eq!(captured(text), Some(true), "{text}");
        }
        assert_eq!(captured("eval-once environment"), Some(false));
        assert_eq!(captured("# eval-once environment"), None);
    }
}
