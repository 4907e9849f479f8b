//! The base: what an earlier build has recorded, and how its targets stand. What is the same and was green there needs no step.
//!
//! It is read from files, which `eval-once base` fetches; this module does not know where they come from. Whatever is wrong with
//! them is a warning, and nothing is skipped then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::evaluate::gaps::Note;
use super::keep::skip::{UNCHANGED, push_of};
use super::pipeline::document::Recorded;
use super::report::{Earlier, EarlierRecording};
use super::{RecordingRequest, Target};
use crate::keys::Keys;
use crate::nix::AttrPath;
use crate::outcomes::{OUTCOMES, OutcomeWord, Outcomes};

/// What an earlier build has recorded.
#[derive(Debug)]
pub(super) struct Base {
    /// The recordings of the build.
    recordings: Vec<Recorded>,
    /// The outcomes of its targets; none are known where the build has no summary.
    outcomes: Outcomes,
}

impl Base {
    /// Reads the base that the request names, if it names one; and what is wrong with it.
    pub(super) fn read(request: &RecordingRequest) -> (Option<Self>, Option<Note>) {
        let Some(file) = &request.base else {
            return (None, None);
        };
        let warning = |what: String, hint: &str| Note {
            text: format!("nothing is skipped because of `base`: {what}"),
            hint: Some(hint.to_owned()),
            is_warning: true,
        };
        let recordings = match read(file).and_then(|text| recordings(&text)) {
            Ok(recordings) => recordings,
            Err(what) => {
                let what = format!("{}: {what}", file.display());
                let hint = "fetch it with `eval-once base` before the recording";
                return (None, Some(warning(what, hint)));
            }
        };
        let beside = file.with_file_name(OUTCOMES);
        let outcomes = read(&beside)
            .and_then(|text| Outcomes::read(&text).map_err(|failure| failure.to_string()));
        let (outcomes, note) = match outcomes {
            Ok(outcomes) => (outcomes, None),
            Err(what) => {
                let what = format!("{}: {what}", beside.display());
                let hint = "record with `summary: true`, which leaves the outcomes";
                (Outcomes::default(), Some(warning(what, hint)))
            }
        };
        let base = Self {
            recordings,
            outcomes,
        };
        (Some(base), note)
    }

    /// Adds the reasons of those targets that are the same in the base and were green there. Of a target with `push`, only the store
    /// that gets its outputs knows whether it is needed.
    pub(super) fn add_reasons(
        &self,
        reasons: &mut [Option<String>],
        targets: &[Target],
        request: &RecordingRequest,
    ) {
        let green = self.green_drvs();
        for (reason, target) in reasons.iter_mut().zip(targets) {
            let is_green = green.contains(target.drv.as_store_path().as_str());
            if reason.is_none() && is_green && push_of(target, request) == Ok(None) {
                *reason = Some(format!("{UNCHANGED}{}", self.name()));
            }
        }
    }

    /// How long each of these targets took there, in seconds, where that is known: by their attributes, for most of those that are
    /// built have another `.drv`.
    pub(super) fn seconds(&self, targets: &[Target]) -> Vec<Option<f64>> {
        let mut known: BTreeMap<&AttrPath, f64> = BTreeMap::new();
        for entry in &self.outcomes.targets {
            let seconds = entry.seconds.filter(|it| it.is_finite() && *it >= 0.0);
            if let (Some(seconds), true) = (seconds, entry.outcome.is_green()) {
                let attrs = std::iter::once(&entry.attr).chain(&entry.also);
                known.extend(attrs.map(|attr| (attr, seconds)));
            }
        }
        let targets = targets.iter();
        targets
            .map(|target| known.get(&target.attr).copied())
            .collect()
    }

    /// What the recording is compared with: the base's recording of the same `source` from the same root.
    pub(super) fn earlier(&self, source: &Keys, root: &AttrPath) -> Option<Earlier> {
        let recorded = match &self.recordings[..] {
            [only] => only,
            several => several.iter().find(|recorded| {
                let mut source = source.clone();
                source.insert("attr".into(), root.names().into());
                without_options(&recorded.source) == without_options(&source)
            })?,
        };
        let targets = recorded.targets.iter();
        let drvs = targets.flat_map(|target| {
            let attrs = std::iter::once(&target.attr).chain(&target.also);
            attrs.map(|attr| (attr.clone(), target.drv.clone()))
        });
        let entries = self.outcomes.targets.iter();
        let red = entries.filter(|entry| entry.outcome.is_red());
        let red = red.flat_map(|entry| std::iter::once(&entry.attr).chain(&entry.also));
        Some(Earlier {
            recording: EarlierRecording::Base(self.name()),
            drvs: drvs.collect(),
            red: red.cloned().collect(),
        })
    }

    /// What the build is called.
    fn name(&self) -> String {
        match self.outcomes.build {
            Some(number) => format!("build {number}"),
            None => "the base build".into(),
        }
    }

    /// The `.drv`s that the base has recorded, and each outcome of which was green there.
    fn green_drvs(&self) -> BTreeSet<&str> {
        let mut outcomes: BTreeMap<&str, bool> = BTreeMap::new();
        for entry in &self.outcomes.targets {
            if let Some(drv) = &entry.drv {
                *outcomes.entry(drv).or_insert(true) &= OutcomeWord::is_green(entry.outcome);
            }
        }
        let recorded = self.recordings.iter().flat_map(|it| &it.targets);
        let recorded = recorded.map(|target| target.drv.as_str());
        recorded
            .filter(|drv| outcomes.get(drv).copied().unwrap_or(false))
            .collect()
    }
}

fn without_options(source: &Keys) -> Keys {
    let mut source = source.clone();
    source.remove("options");
    source
}

/// The text of a file. What is none, such as a pipe, might never end.
fn read(file: &Path) -> Result<String, String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".into());
    }
    fs::read_to_string(file).map_err(|error| error.to_string())
}

/// The recordings in the text of an `eval-once.json`; `eval-once base` writes those of a build one behind the other.
fn recordings(text: &str) -> Result<Vec<Recorded>, String> {
    let documents = serde_json::Deserializer::from_str(text).into_iter();
    let documents = documents.map(|document| {
        let document: Recorded =
            document.map_err(|error| format!("not an eval-once.json: {error}"))?;
        document.check().map_err(|failure| failure.to_string())?;
        Ok(document)
    });
    let recordings: Vec<Recorded> = documents.collect::<Result<_, String>>()?;
    if recordings.is_empty() {
        return Err("is empty".into());
    }
    Ok(recordings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::pipeline::fixtures::{request, target, target_building};
    use crate::recording::upload::DOCUMENT;
    use crate::text::hostile::{cases, spoilt, text};
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    proptest! {
        #![proptest_config(cases(256))]

        #[test]
        fn a_base_of_any_values_skips_only_what_was_green_there(
            documents in proptest::collection::vec(spoilt(recording("ci.nix", &[&target(0, &["a"])])), 1..3),
            ended in prop_oneof![9 => spoilt(outcomes(&[(&target(0, &["a"]), "passed")])), 1 => text()],
        ) {
            let (Ok(recordings), Ok(outcomes)) = (recordings(&documents.join("\n")), Outcomes::read(&ended)) else {
                return Ok(());
            };
            let base = Base { recordings, outcomes };
            let targets = [target(0, &["a"]), target(1, &["b"])];
            let mut reasons = [None, None];
            base.add_reasons(&mut reasons, &targets, &request());
            // Of the second, nothing is known.
            prop_assert_eq!(&reasons[1], &None);
            let is_named = documents.concat().contains(targets[0].drv.as_store_path().as_str());
            let is_green = ended.contains("passed") || ended.contains("skipped");
            prop_assert!(reasons[0].is_none() || is_named && is_green);
            for seconds in base.seconds(&targets).into_iter().flatten() {
                prop_assert!(seconds >= 0.0);
            }
            let _ = base.earlier(&Keys::new(), &AttrPath::default());
        }
    }

    /// Writes a base, and reads it as a recording does.
    fn base(recordings: &[Value], outcomes: Option<&Value>) -> (Option<Base>, Option<Note>) {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join(DOCUMENT);
        let texts: Vec<String> = recordings.iter().map(ToString::to_string).collect();
        fs::write(&file, texts.join("\n")).unwrap();
        if let Some(outcomes) = outcomes {
            fs::write(folder.path().join(OUTCOMES), outcomes.to_string()).unwrap();
        }
        let request = RecordingRequest {
            base: Some(file),
            ..request()
        };
        Base::read(&request)
    }

    fn recording(file: &str, targets: &[&Target]) -> Value {
        let targets: Vec<_> = targets
            .iter()
            .map(|it| json!({ "attr": it.attr, "drv": it.drv, "key": "k" }))
            .collect();
        json!({ "version": 1, "source": { "file": file, "attr": [] }, "targets": targets })
    }

    fn outcomes(outcomes: &[(&Target, &str)]) -> Value {
        let targets: Vec<_> = outcomes
            .iter()
            .map(|(it, word)| json!({ "attr": it.attr, "drv": it.drv, "outcome": word }))
            .collect();
        json!({ "version": 1, "build": 41, "targets": targets })
    }

    #[test]
    fn only_what_is_the_same_and_was_green_is_skipped() {
        let words = [
            "passed",
            "skipped",
            "failed",
            "soft-failed",
            "cancelled",
            "unknown",
            "unfinished",
            "a new word",
            "not-run",
            "refused",
        ];
        let mut targets: Vec<Target> = (0..words.len())
            .map(|i| target(i, &[&format!("t{i}")]))
            .collect();
        let ended: Vec<_> = targets.iter().zip(words).collect();
        let all: Vec<&Target> = targets.iter().collect();
        let (base, note) = base(&[recording("ci.nix", &all)], Some(&outcomes(&ended)));
        assert_eq!(note, None);
        // The base does not know the last; the one before wishes to be pushed.
        let mut pushed = target_building(0, &json!({ "push": "s3://cache" }));
        pushed.attr = targets[0].attr.clone();
        targets.extend([pushed, target(99, &["new"])]);
        let mut reasons = vec![None; targets.len()];
        reasons[1] = Some("a cache has it".to_owned());
        base.unwrap()
            .add_reasons(&mut reasons, &targets, &request());
        let mut expected = vec![None; targets.len()];
        expected[0] = Some("unchanged since build 41".to_owned());
        expected[1] = Some("a cache has it".to_owned());
        assert_eq!(reasons, expected);
    }

    #[test]
    fn a_drv_that_was_green_in_one_recording_and_red_in_another_is_built() {
        let one = target(1, &["a"]);
        let both = outcomes(&[(&one, "passed"), (&one, "failed")]);
        let recordings = [recording("a.nix", &[&one]), recording("b.nix", &[&one])];
        let (base, _) = base(&recordings, Some(&both));
        assert!(base.unwrap().green_drvs().is_empty());
    }

    #[test]
    fn a_recording_is_compared_with_that_of_the_same_source() {
        let (one, other) = (target(1, &["a"]), target(2, &["b"]));
        let ended = outcomes(&[(&one, "failed"), (&other, "passed")]);
        let recordings = [recording("a.nix", &[&one]), recording("b.nix", &[&other])];
        let (base, _) = base(&recordings, Some(&ended));
        let base = base.unwrap();
        let names = |file: &str| {
            let source = json!({ "file": file, "options": { "cores": "2" } });
            let earlier = base.earlier(source.as_object().unwrap(), &AttrPath::default())?;
            Some(earlier.drvs[0].0.to_string())
        };
        assert_eq!(names("b.nix").as_deref(), Some("b"));
        assert_eq!(names("c.nix"), None);
    }

    #[test]
    fn what_cannot_be_read_is_said_and_skips_nothing() {
        let one = target(1, &["a"]);
        let good = recording("ci.nix", &[&one]);
        let mut later = good.clone();
        later["version"] = 2.into();
        for (recordings, outcomes, says, is_compared) in [
            (vec![], None, "is empty", false),
            (vec![json!(5)], None, "not an eval-once.json", false),
            (vec![later], None, "has version 2", false),
            (
                vec![good.clone()],
                None,
                "eval-once-outcomes.json: No such",
                true,
            ),
            (
                vec![good],
                Some(json!({ "version": 3 })),
                "has version 3",
                true,
            ),
        ] {
            let (base, note) = base(&recordings, outcomes.as_ref());
            let note = note.unwrap();
            assert!(note.text.contains(says) && note.is_warning, "{}", note.text);
            assert_eq!(base.is_some(), is_compared, "{says}");
            if let Some(base) = base {
                let mut reasons = [None];
                base.add_reasons(&mut reasons, std::slice::from_ref(&one), &request());
                assert_eq!(reasons, [None]);
            }
        }
        let nowhere = RecordingRequest {
            base: Some("/nonesuch/eval-once.json".into()),
            ..request()
        };
        let (base, note) = Base::read(&nowhere);
        assert!(
            base.is_none()
                && note
                    .unwrap()
                    .text
                    .contains("/nonesuch/eval-once.json: No such")
        );
    }
}
