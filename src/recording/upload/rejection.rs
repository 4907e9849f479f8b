//! What Buildkite says of a pipeline that it rejects, as the agent passes it on, and what that means.

use super::chunk::Chunk;
use crate::exit::{Class, Failure};

/// What Buildkite says where it rejects a pipeline, and nothing where something else went wrong: `… Pipeline upload rejected:
/// MESSAGE`, or at once `… 422 Unprocessable Entity: MESSAGE`.
pub(super) fn rejection(said: &str) -> Option<String> {
    let starts = ["upload rejected: ", "422 Unprocessable Entity: ", " 422 "];
    said.lines().rev().find_map(|line| {
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

/// The failure of a chunk that Buildkite does not take, with the step that it is about.
pub(super) fn rejected(message: &str, chunk: &Chunk, number: usize) -> Failure {
    let named = chunk.keys.iter().find(|key| message.contains(key.as_str()));
    let about = match named {
        Some(key) => format!(
            "the step {} ({key})",
            chunk.label(key).unwrap_or_else(|| "without a label".into())
        ),
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
        format_args!("Buildkite rejects upload {number}: {message}: it is about {about}"),
    )
    .hint("`--dry-run` prints the pipeline; uploads before this one have been applied")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rejection_is_told_from_a_buildkite_that_cannot_be_reached() {
        for said in [
            "2026-01-01 INFO x\nfatal: Failed to upload and process pipeline: Pipeline upload rejected: The key \"a\" has already been used by another step in this build\n",
            "error: POST https://x/pipelines: 422 Unprocessable Entity: The key \"a\" has already been used by another step in this build",
        ] {
            let message = rejection(said).unwrap();
            assert!(
                message.starts_with("The key \"a\"") && is_used(&message),
                "{message}"
            );
        }
        assert_eq!(rejection("fatal: dial tcp: connection refused"), None);
        assert_eq!(rejection("500 Internal Server Error"), None);
    }

    #[test]
    fn a_rejected_chunk_is_told_with_the_step_it_is_about() {
        let chunk = Chunk {
            keys: vec!["drv-a".into(), "drv-b".into()],
            pipeline: json!({"steps": [{"key": "drv-a", "label": "one"}, {"key": "drv-b", "label": "two"}]}).to_string(),
        };
        let told = rejected("step drv-b: `x` is not a valid property", &chunk, 3).to_string();
        assert!(
            told.contains("the step two (drv-b)") && told.contains("upload 3"),
            "{told}"
        );
        let told = rejected("something", &chunk, 1).to_string();
        assert!(told.contains("one of the steps one, two"), "{told}");
    }
}
