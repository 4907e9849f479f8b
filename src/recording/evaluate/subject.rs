//! What is evaluated, in words.

use crate::nix::Source;
use crate::recording::RecordingRequest;

/// What is evaluated, in words: `a.b of ci.nix`.
pub(in crate::recording) fn describe(request: &RecordingRequest) -> String {
    let source = match &request.root.source {
        Source::File(name) | Source::Flake(name) => name.clone(),
        Source::Expr(_) => "the expression".into(),
    };
    if request.root.attr.names().is_empty() {
        source
    } else {
        format!("{} of {source}", request.root.attr)
    }
}
