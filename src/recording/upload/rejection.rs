//! Buildkite's message about a pipeline that it rejects, as the agent prints it, and its meaning.

use std::collections::BTreeSet;

use super::chunk::Chunk;
use crate::exit::{Class, Failure};

/// Buildkite's message where it rejects a pipeline; none where anything else went wrong. The agent prints `… Pipeline upload
/// rejected: MESSAGE`, or at once `… 422 Unprocessable Entity: MESSAGE`.
pub(super) fn rejection(printed: &str) -> Option<String> {
    let starts = ["upload rejected: ", "422 Unprocessable Entity: ", " 422 "];
    printed.lines().rev().find_map(|line| {
        let message = starts
            .iter()
            .find_map(|start| line.split_once(start).map(|(_, rest)| rest))?;
        Some(message.trim().to_owned())
    })
}

/// Whether Buildkite rejects a pipeline because a key in it is used already.
pub(super) fn is_used(message: &str) -> bool {
    message.contains("already been used")
}

/// The place of the key that the message names: the longest one, for a key may begin as another one does.
pub(super) fn named(message: &str, keys: &[String]) -> Option<usize> {
    let named = keys.iter().enumerate();
    let named = named.filter(|(_, key)| message.contains(key.as_str()));
    named.max_by_key(|(_, key)| key.len()).map(|(at, _)| at)
}

/// The place of the key of the step that Buildkite rejects; none where the message names none, or several. A key has to stand there by
/// itself: a label or a condition, which the message may quote, can have a part that looks like one.
pub(super) fn blamed(message: &str, keys: &[String]) -> Option<usize> {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':');
    let words = message.split(|c| !is_of_key(c));
    let words: BTreeSet<&str> = words.map(|word| word.trim_end_matches(':')).collect();
    let mut named = keys.iter().enumerate();
    let mut next = || named.find(|(_, key)| words.contains(key.trim_end_matches(':')));
    let first = next().map(|(at, _)| at);
    first.filter(|_| next().is_none())
}

/// What Buildkite has rejected of a plan.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    /// The first of it, which the recording ends with.
    pub(super) first: Option<Failure>,
    count: usize,
}

impl Rejections {
    /// The most steps that are left out because of it: each costs another upload.
    const AT_MOST: usize = 20;

    /// Counts one; whether it is not too many yet.
    pub(super) fn more(&mut self) -> bool {
        self.count += 1;
        self.count <= Self::AT_MOST
    }
}

/// The failure of a chunk that Buildkite rejects, with the step that the message names.
pub(super) fn rejected(message: &str, chunk: &Chunk, number: usize) -> Failure {
    let about = match named(message, &chunk.keys) {
        Some(at) => {
            let key = &chunk.keys[at];
            let label = chunk.label(key);
            let label = label.unwrap_or_else(|| "without a label".into());
            format!("the step {label} ({key})")
        }
        None if chunk.keys.len() == 1 => format!(
            "the step {}",
            chunk
                .label(&chunk.keys[0])
                .unwrap_or_else(|| chunk.keys[0].clone())
        ),
        None => {
            let labels: Vec<String> = chunk
                .keys
                .iter()
                .take(10)
                .filter_map(|key| chunk.label(key))
                .collect();
            let more = chunk.keys.len().saturating_sub(labels.len());
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            format!("one of the steps {}{more}", labels.join(", "))
        }
    };
    Failure::new(
        Class::Config,
        format_args!("Buildkite rejects upload {number}, because of {about}: {message}"),
    )
    .hint("print the pipeline with `--dry-run`; uploads before this one have been applied, and all other steps where the message names one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rejection_is_distinguished_from_an_unreachable_buildkite() {
        for printed in [
            "2026-01-01 INFO x\nfatal: Failed to upload and process pipeline: Pipeline upload rejected: The key \"a\" has already been used by another step in this build\n",
            "error: POST https://x/pipelines: 422 Unprocessable Entity: The key \"a\" has already been used by another step in this build",
        ] {
            let message = rejection(printed).unwrap();
            assert!(
                message.starts_with("The key \"a\"") && is_used(&message),
                "{message}"
            );
        }
        assert_eq!(rejection("fatal: dial tcp: connection refused"), None);
        assert_eq!(rejection("500 Internal Server Error"), None);
    }

    #[test]
    fn a_message_names_a_key_and_not_one_that_it_begins_with() {
        let keys = ["drv-a", "drv-a-test", "drv-b"].map(str::to_owned);
        for (at, key) in keys.iter().enumerate() {
            let message = format!("The key \"{key}\" has already been used by another step");
            assert_eq!(named(&message, &keys), Some(at), "{key}");
        }
        assert_eq!(named("nothing", &keys), None);
    }

    #[test]
    fn a_step_is_blamed_where_its_key_alone_stands_by_itself() {
        let keys = ["nix-a", "nix-a-test", "nix-m"].map(str::to_owned);
        for (message, at) in [
            ("Step \"nix-m\" has an invalid if condition", Some(2)),
            ("nix-a: `if` is not valid", Some(0)),
            ("step nix-a-test, nix-a-test", Some(1)),
            ("nix-a waits for nix-m", None),
            ("nix-a-tests", None),
            ("`if` is not valid", None),
        ] {
            assert_eq!(blamed(message, &keys), at, "{message}");
        }
    }

    #[test]
    fn the_failure_of_a_rejected_chunk_names_the_step() {
        let chunk = Chunk {
            keys: vec!["drv-a".into(), "drv-b".into()],
            pipeline: json!({"steps": [{"key": "drv-a", "label": "one"}, {"key": "drv-b", "label": "two"}]}).to_string(),
        };
        let failure = rejected("step drv-b: `x` is not a valid property", &chunk, 3).to_string();
        assert!(
            failure.contains("the step two (drv-b)") && failure.contains("upload 3"),
            "{failure}"
        );
        let failure = rejected("something", &chunk, 1).to_string();
        assert!(failure.contains("one of the steps one, two"), "{failure}");
    }
}
