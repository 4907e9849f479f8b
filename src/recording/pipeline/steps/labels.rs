//! What people read of a step: labels, the names of groups, reasons. The text in them comes from repositories that need not be
//! trusted.

use crate::nix::AttrPath;
use crate::recording::pipeline::limits::LABEL_AT_MOST;
use crate::text::{is_unseen, shortened};

/// An attribute path as people read it.
pub(super) fn attr_name(attr: &AttrPath) -> String {
    match attr.names() {
        [] => "(root)".into(),
        _ => attr.to_string(),
    }
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
    let text = inert(text).replace(':', "\u{2236}");
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
