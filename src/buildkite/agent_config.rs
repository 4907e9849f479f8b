//! The file with an agent's settings (`buildkite-agent.cfg`), as far as they are about hooks.

/// The value of a setting: the last line `name=value` or `name="value"` that is no comment (`cliconfig/file.go` of the agent).
#[must_use]
pub fn setting<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut values = text.lines().rev().filter_map(|line| {
        let (key, value) = line.trim().split_once('=')?;
        (key.trim() == name).then(|| value.trim())
    });
    let value = values.next()?;
    let quoted = ['"', '\''].iter().find_map(|quote| {
        let (inner, _) = value.strip_prefix(*quote)?.split_once(*quote)?;
        Some(inner)
    });
    Some(quoted.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_that_is_no_comment_counts_and_has_no_quotes() {
        let text = "# hooks-path=\"/no\"\ntoken=\"x\"\nhooks-path = \"/etc/a b\"\n\
                    strict-single-hooks=true\nhooks-path='/etc/hooks' # here\n";
        assert_eq!(setting(text, "hooks-path"), Some("/etc/hooks"));
        assert_eq!(setting(text, "strict-single-hooks"), Some("true"));
        assert_eq!(setting(text, "additional-hooks-paths"), None);
    }
}
