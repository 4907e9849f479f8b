//! Builds for the tests of this folder: recordings, targets and reports, with what a test does not mention filled in.

use serde_json::{Value, json};

use super::build_data::BuildData;
use crate::recording::pipeline::document::Recorded;
use crate::step::{SavedReport, SavedReportError};

/// A recording of `ci.nix` with these targets and evaluation errors, which took 12 s.
pub(super) fn recorded(targets: &Value, errors: &Value) -> Recorded {
    let document = json!({
        "version": 1, "source": { "file": "ci.nix", "attr": [] }, "targets": targets, "errors": errors,
        "seconds": { "evaluate": 10.0, "total": 12.0 },
    });
    Recorded::read(&document.to_string()).unwrap()
}

/// A target whose step has the key `drv-` and its attribute.
pub(super) fn target(attr: &str) -> Value {
    json!({ "attr": [attr], "key": format!("drv-{attr}"), "skip": null })
}

/// The report of a step that took `total` seconds; `more` adds fields, and replaces them.
pub(super) fn report(more: &Value, total: f64) -> Result<SavedReport, SavedReportError> {
    let mut report = json!({ "version": 1, "way": "realised", "reason": "drv-valid", "seconds": { "total": total } });
    let map = report.as_object_mut().unwrap();
    map.extend(more.as_object().unwrap().clone());
    SavedReport::read(&report.to_string())
}

/// A build with these recordings and reports, 1,000 seconds after 1970.
pub(super) fn build_data<const N: usize>(
    recordings: Vec<Recorded>,
    reports: [(&str, Result<SavedReport, SavedReportError>); N],
) -> BuildData {
    BuildData {
        recordings,
        now: 1_000,
        reports: reports
            .into_iter()
            .map(|(key, report)| (key.to_owned(), report))
            .collect(),
        ..BuildData::default()
    }
}
