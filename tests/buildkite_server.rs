//! The test server that plays Buildkite, with the real agent: it takes what Buildkite takes and refuses what it refuses.

use serde_json::json;

use crate::support::buildkite::{Build, JobState, Outcome};

#[test]
fn what_a_job_costs() {
    let commands: Vec<String> = (0..20)
        .map(|n| format!("echo {{command: 'echo {n}'}}"))
        .collect();
    let _ = commands;
    let steps: Vec<_> = (0..20)
        .map(|n| json!({"command": format!("echo n{n}")}))
        .collect();
    let pipeline = json!({"steps": steps}).to_string();
    let build = Build::new(json!({
        "key": "first",
        "command": format!("echo '{pipeline}' | buildkite-agent pipeline upload --no-interpolation"),
    }));
    let Some(build) = build else { return };
    let start = std::time::Instant::now();
    let outcome = build.run();
    eprintln!("{:?}", start.elapsed());
    for job in build.jobs() {
        eprintln!("{:?} {:?} {}", job.state, job.exit_status, job.plain());
    }
    assert_eq!(outcome, Outcome::Passed);
    assert_eq!(build.job("first").state, JobState::Passed);
}
