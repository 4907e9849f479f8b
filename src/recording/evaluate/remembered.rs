//! What the evaluation of the same recording cost the last time on this host: a note in the state folder.

use super::schedule::Costs;
use crate::state::{NOTES_LAST, StateFolder};

/// The note's name for a recording with this identity ([`identity`](crate::recording::keep::identity)).
fn name(identity: &str) -> String {
    format!("costs-{identity}")
}

/// What it cost the last time; none where that is not known, or the note cannot be used.
pub(in crate::recording) fn load(state: &StateFolder, identity: &str) -> Option<Costs> {
    let text = state.note(&name(identity), NOTES_LAST)?;
    let costs: Costs = serde_json::from_str(&text).ok()?;
    costs.is_plausible().then_some(costs)
}

/// Remembers what it cost, if that was measured. Where it cannot be written, the next recording has to measure again.
pub(in crate::recording) fn save(state: &StateFolder, identity: &str, costs: &Costs) {
    if costs.is_plausible()
        && let Ok(text) = serde_json::to_string(costs)
    {
        let _ = state.write_note(&name(identity), &text);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::*;

    fn costs() -> Costs {
        let text =
            r#"{"attributes":12,"root":1.5,"warm_up":0.25,"each":0.01,"base":1e8,"growth":2e5}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn costs_are_remembered_for_the_same_recording_only() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        assert_eq!(load(&state, "a"), None);
        save(&state, "a", &costs());
        assert_eq!(load(&state, "a"), Some(costs()));
        assert_eq!(load(&state, "b"), None);
        let file = folder.path().join("notes/eval-once-costs-a");
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_note_is_none() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        save(&state, "a", &costs());
        let file = folder.path().join("notes/eval-once-costs-a");
        let good = fs::read_to_string(&file).unwrap();
        let bad = [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace("1.5", "-1.5"),
            good.replace("0.01", "0"),
            good.replace("1.5", "1e300"),
            good.replace("\"root\"", "\"other\""),
            "[1]".to_owned(),
        ];
        for text in bad {
            assert_ne!(text, good);
            fs::write(&file, &text).unwrap();
            assert_eq!(load(&state, "a"), None, "{text}");
        }
        fs::write(&file, [0xff, 0xfe]).unwrap();
        assert_eq!(load(&state, "a"), None);
        fs::write(&file, good).unwrap();
        assert_eq!(load(&state, "a"), Some(costs()));
    }

    #[test]
    fn what_was_not_measured_is_not_remembered() {
        let folder = TempDir::new().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        save(&state, "a", &costs());
        save(&state, "a", &Costs::default());
        assert_eq!(load(&state, "a"), Some(costs()));
    }
}
