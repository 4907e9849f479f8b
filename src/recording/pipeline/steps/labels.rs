//! What people read of a step: labels, the names of groups, reasons. The text in them comes from repositories that need not be
//! trusted.

use crate::keys::secret_values::sentence;
use crate::nix::AttrPath;
use crate::recording::pipeline::limits::LABEL_AT_MOST;
use crate::secrets::shortened;
use crate::secrets::{self, redacted};
use crate::text::is_unseen;

/// An attribute path as people read it.
pub(super) fn attr_name(attr: &AttrPath) -> String {
    match attr.names() {
        [] => "(root)".into(),
        _ => redacted(&attr.to_string()).into_owned(),
    }
}

/// Checks that no name of an attribute path is a secret: the step has it in its label, its key and its record.
///
/// # Errors
/// One is; the sentence repeats nothing of it.
pub(super) fn check_names(attr: &AttrPath) -> Result<(), String> {
    let home = attr.names().iter().find_map(|name| secrets::find(name));
    home.map_or(Ok(()), |home| Err(sentence("its name", home)))
}

/// The name of an attribute path's group, which is the first `names` of its names; none where it has no more than those.
pub(in crate::recording::pipeline) fn group(attr: &AttrPath, names: usize) -> Option<String> {
    let first = attr
        .names()
        .get(..names)
        .filter(|first| !first.is_empty())?;
    (attr.names().len() > names).then(|| label(":nix:", &AttrPath::new(first.to_vec()).to_string()))
}

/// A label: an emoji of ours, and a text from the repository.
pub(super) fn label(emoji: &str, text: &str) -> String {
    // In a label `:word:` is an emoji, also between quotes.
    let text = inert(&redacted(text)).replace(':', "\u{2236}");
    format!("{emoji} {}", shortened(&text, LABEL_AT_MOST))
}

/// `text` with every character replaced that a reader would not see, or that changes how the rest is shown.
pub(super) fn inert(text: &str) -> String {
    let seen = |c: char| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() || is_unseen(c) => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(seen).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::path;
    use crate::text::hostile::text;
    use crate::text::is_hidden;
    use proptest::prelude::*;

    #[test]
    fn a_label_shows_every_character_and_has_no_emoji_of_the_repositorys() {
        let hostile = ":boom:\u{202e}\u{1b}[31m\n\u{200b}x\u{3164}";
        let text = label(":nix:", &path(&["a", hostile]).to_string());
        assert_eq!(
            text,
            ":nix: a.\"∶boom∶\u{fffd}\u{fffd}[31m\\n\u{fffd}x\u{fffd}\""
        );
        let text = label(":nix:", &"é".repeat(5_000));
        assert_eq!(text.chars().count(), 6 + 200);
    }

    #[test]
    fn a_token_is_refused_as_a_name_and_hidden_in_labels() {
        let token = "ghp_0123456789abcdefghijABCDEFGHIJ012345";
        let attr = path(&["web", token, "run"]);
        let message = check_names(&attr).unwrap_err();
        assert!(message.starts_with("its name holds a secret"), "{message}");
        assert!(!message.contains(token));
        assert_eq!(attr_name(&attr), "web.***.run");
        assert_eq!(label(":nix:", token), ":nix: ***");
        assert_eq!(check_names(&path(&["web", "ghp_1", "token"])), Ok(()));
    }

    proptest! {
        #[test]
        fn a_label_is_one_line_with_our_emoji_alone(name in text()) {
            let shown = label(":nix:", &path(&[&name]).to_string());
            prop_assert!(shown.starts_with(":nix: "));
            prop_assert_eq!(shown.matches(':').count(), 2);
            prop_assert!(!shown.contains(is_hidden));
        }
    }

    #[test]
    fn groups_are_named_by_the_first_names() {
        let group = |names: &[&str], size| group(&path(names), size);
        assert_eq!(group(&["a", "b", "c"], 2).as_deref(), Some(":nix: a.b"));
        assert_eq!(group(&["a", "b"], 2), None);
        assert_eq!(group(&["a", "b"], 0), None);
    }
}
