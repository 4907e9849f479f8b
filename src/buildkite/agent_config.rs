//! The file with an agent's settings (`buildkite-agent.cfg`), as far as they are about hooks, and how the agent reads what is true.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// The value of a setting: that of the last line `name=value`, `name="value"` or `name: value` that is no comment (`cliconfig/file.go` of the
/// agent).
#[must_use]
pub fn setting(text: &str, name: &str) -> Option<String> {
    let mut values = text.lines().rev().filter_map(|line| {
        let line = without_comment(line);
        let (key, value) = line.split_once('=').or_else(|| line.split_once(':'))?;
        let key = key.strip_prefix("export").unwrap_or(key);
        (key.trim() == name).then(|| value.trim().to_owned())
    });
    let value = values.next()?;
    let is_quoted = ['"', '\''].iter().any(|it| value.matches(*it).count() == 2);
    Some(if is_quoted {
        let inner = value.trim_matches(['"', '\'']);
        inner.replace("\\\"", "\"").replace("\\n", "\n")
    } else {
        value
    })
}

/// A line up to its first `#` that is not quoted. A piece between two of them with one quote in it begins or ends the quotes, so far as
/// the agent counts them.
fn without_comment(line: &str) -> Cow<'_, str> {
    let mut kept: Vec<&str> = Vec::new();
    let mut is_quoted = false;
    for piece in line.split('#') {
        if ['"', '\''].iter().any(|it| piece.matches(*it).count() == 1) {
            if is_quoted {
                kept.push(piece);
            }
            is_quoted = !is_quoted;
        }
        if kept.is_empty() || is_quoted {
            kept.push(piece);
        }
    }
    match kept[..] {
        [all] => Cow::Borrowed(all),
        _ => Cow::Owned(kept.join("#")),
    }
}

/// Whether Go (`strconv.ParseBool`), and so the agent, reads this as true.
#[must_use]
pub fn is_true(value: &OsStr) -> bool {
    matches!(
        value.as_bytes(),
        b"1" | b"t" | b"T" | b"true" | b"True" | b"TRUE"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_is_no_comment_counts_and_has_no_quotes() {
        let text = "# hooks-path=\"/no\"\ntoken=\"x\"\nhooks-path = \"/etc/a b\"\n\
                    strict-single-hooks=true # on\nhooks-path='/etc/hooks' # here\n #hooks-path=/no\n";
        assert_eq!(setting(text, "hooks-path").unwrap(), "/etc/hooks");
        assert_eq!(setting(text, "strict-single-hooks").unwrap(), "true");
        assert_eq!(setting(text, "additional-hooks-paths"), None);
    }

    #[test]
    fn a_line_has_the_forms_that_the_agent_reads() {
        for (line, value) in [
            ("a=b", "b"),
            ("  a = b  ", "b"),
            ("a: b", "b"),
            ("export a='b'", "b"),
            ("a=\"b # c\"", "b # c"),
            ("a=\"b#c\" # d \"e\"", "b#c"),
            ("a=b=c", "b=c"),
            ("a=", ""),
        ] {
            assert_eq!(setting(line, "a").as_deref(), Some(value), "{line}");
        }
    }
}
