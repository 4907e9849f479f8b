//! Recordings beside a collector that never rests, alone, and two of them beside `prune`. One that ends with 0 has kept every `.drv`;
//! one that the collector disturbed too often may end with 75, and is retried as the rules in the guide have it.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::json;

use crate::{
    place::{Place, SOURCE},
    seed::Random,
    stage::Stage,
    support::{
        collector::beside_collectors, program::Ended, recording::Pipeline, target::expression,
    },
};

/// How the first try ended, and whether one of three ended with 0.
pub(crate) const COLUMNS: [&str; 3] = ["0", "75", AT_LAST];

const AT_LAST: &str = "0 in the end";

/// How many targets are recorded.
const TARGETS: usize = 24;

/// How often it is tried where it ends with 75: the limit of the rule in the guide is two retries.
const TRIES: usize = 3;

/// How many of a hundred recordings are to end with 0 at the first try.
const GOAL: usize = 99;

/// With this argument, each target reads a source with a hash.
const READS_SOURCE: &str = "source";

/// Targets of which each takes a while to evaluate, and differs with the argument.
fn targets() -> String {
    let target = |number: usize| {
        format!(
            "t{number} = slow (build \"t{number}-${{of}}\" \"read x <${{file \"d{number}-${{of}}\"}}; echo $x ${{text {{ }}}} >$out\");\n"
        )
    };
    let all: String = (0..TARGETS).map(target).collect();
    format!(
        "{{ of ? \"x\" }}: let slow = builtins.seq (builtins.foldl' (a: b: a + b) 0 (builtins.genList (n: n) 40000)); \
         source = {SOURCE}; text = _: if of == {READS_SOURCE:?} then builtins.readFile (source + \"/text\") else \"\"; in {{ {all} }}"
    )
}

/// The pins of earlier recordings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pins {
    Removed,
    Kept,
    Expired,
}

/// What is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Recording,
    /// One of the same targets as those of a flake, whose source has to be kept as well.
    Flake,
    /// One of targets that read a source with a hash, which a collection may take meanwhile.
    Source,
    TwoAndPrune,
}

/// What a seed stands for.
#[derive(Debug)]
struct Plan {
    place: usize,
    what: What,
    /// Both recordings are of the same arguments, and so have the same pin.
    same: bool,
    pins: Pins,
    with_bare: bool,
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut random = Random::of(seed);
        let place = random.below(2);
        let with_others = random.one_in(3);
        let same = random.one_in(2);
        let pins = random.pick(&[Pins::Removed, Pins::Removed, Pins::Kept, Pins::Expired]);
        let with_bare = random.one_in(2);
        let what = if with_others {
            What::TwoAndPrune
        } else {
            random.pick(&[What::Recording, What::Flake, What::Source])
        };
        Self {
            place,
            what,
            same,
            pins,
            with_bare,
        }
    }
}

/// Runs the part.
pub(crate) fn run(stage: &Stage) {
    let targets = expression(&targets());
    let prepare = || {
        let places = Place::both(stage, &targets);
        for place in &places {
            write_flake(place, &targets);
        }
        places
    };
    stage.run(
        if stage.is_patient() { 4 } else { 2 },
        prepare,
        |places, seed| trial(stage, places, seed),
    );
    let tally = stage.tally;
    let tries = tally.total("record", "0") + tally.total("record", "75");
    if tries > 0 {
        let good = tally.total("record", "0");
        let missed = if good * 100 < tries * GOAL {
            format!(" (at least {GOAL} of 100: MISSED)")
        } else {
            String::new()
        };
        tally.note(format!(
            "{good} of {tries} recordings ended with 0 at once{missed}."
        ));
    }
    if tally.tries("bare") > 0 && tally.total("bare", "wrong") == 0 {
        tally.note(
            "THE BARE COMMAND SHOWED NOTHING WRONG EITHER: this storm was none, and says nothing about eval-once."
                .to_owned(),
        );
    }
}

fn trial(stage: &Stage, places: &[Place; 2], seed: u64) {
    let plan = Plan::of(seed);
    let place = &places[plan.place];
    match plan.pins {
        Pins::Removed => forget(place),
        Pins::Kept => {}
        Pins::Expired => expire(place),
    }
    let what = match plan.what {
        What::Recording => "one recording",
        What::Flake => "one recording of a flake",
        What::Source => "one recording, source with a hash",
        What::TwoAndPrune => "two recordings and prune",
    };
    let row = format!("{what}, {}", place.kind());
    let mut beside = vec![place.collector()];
    if plan.what == What::Source {
        beside.push(place.other_evaluator());
    }
    beside_collectors(&beside, || {
        if plan.what == What::TwoAndPrune {
            two_and_prune(stage, place, &plan, &row, seed);
        } else {
            one(stage, place, &plan, &row, seed);
        }
    });
    if plan.with_bare {
        forget(place);
        let row = format!("bare nix-instantiate, {}", place.kind());
        beside_collectors(&[place.collector()], || bare(stage, place, &row));
    }
}

fn one(stage: &Stage, place: &Place, plan: &Plan, row: &str, seed: u64) {
    for number in 0..TRIES {
        let of = match plan.what {
            What::Source => READS_SOURCE,
            _ => "x",
        };
        let ended = match plan.what {
            What::Flake => record_flake(place).run(),
            _ => record(place, of).run(),
        };
        let first = number == 0;
        if first {
            stage.tally.tried(row);
        }
        match judge(place, &ended) {
            Ok(column) => {
                if first {
                    stage.tally.count(row, column);
                    note_75(stage, &ended, seed);
                }
                mend(stage, place, &ended, of, seed);
                if column == "0" {
                    stage.tally.count(row, AT_LAST);
                    return;
                }
            }
            Err(what) => {
                let log = format!("{plan:?}, try {number}\n{ended}");
                return stage.tally.wrong(row, seed, &what, &log);
            }
        }
    }
}

fn two_and_prune(stage: &Stage, place: &Place, plan: &Plan, row: &str, seed: u64) {
    let others = if plan.same { ["x", "x"] } else { ["x", "y"] };
    let recordings = others.map(|of| record(place, of).start());
    let prune = place.eval_once(&["prune"]).run();
    stage.tally.tried(row);
    let ended = recordings.map(crate::support::program::Running::end);
    let mut columns = BTreeSet::new();
    for ended in &ended {
        match judge(place, ended) {
            Ok(column) => {
                columns.insert(column);
                note_75(stage, ended, seed);
            }
            Err(what) => {
                return stage
                    .tally
                    .wrong(row, seed, &what, &format!("{plan:?}\n{ended}\n{prune}"));
            }
        }
    }
    if !prune.status.success() {
        let what = format!("prune: {}", prune.status);
        return stage
            .tally
            .wrong(row, seed, &what, &format!("{plan:?}\n{prune}"));
    }
    // Of both the worse one.
    let worse = columns.last().copied().unwrap_or("75");
    stage.tally.count(row, worse);
    let again = |ended: &Ended, of| {
        mend(stage, place, ended, of, seed);
        ended.status.success() || (1..TRIES).any(|_| record(place, of).run().status.success())
    };
    if ended.iter().zip(others).all(|(ended, of)| again(ended, of)) {
        stage.tally.count(row, AT_LAST);
    }
}

/// Says why a recording ended with 75.
fn note_75(stage: &Stage, ended: &Ended, seed: u64) {
    if ended.status.code() == Some(75) {
        let error = ended.stderr.lines().find(|line| line.contains("error: "));
        let error = error.unwrap_or("no error");
        stage.tally.note(format!("75 with seed {seed}: {error}"));
    }
}

/// Does what a recording's hint says where a `.drv` is valid and has no file. Nix leaves one so where its collector removes the file that
/// another process has just written anew, with bare `nix-instantiate` too: nothing else brings it back, and each later recording of it
/// would end with 75.
fn mend(stage: &Stage, place: &Place, ended: &Ended, of: &str, seed: u64) {
    if ended
        .stderr
        .contains("write it anew with `nix-instantiate --repair")
    {
        let repair = ["--repair", "default.nix", "--argstr", "of", of];
        let mended = place.store.program("nix-instantiate").args(repair).run();
        stage.tally.note(format!(
            "Nix had lost the file of a valid .drv, seed {seed}; `nix-instantiate --repair`: {}",
            mended.status
        ));
    }
}

fn record(place: &Place, of: &str) -> crate::support::program::Program {
    place.eval_once(&[
        "pipeline",
        "--dry-run",
        "--file",
        "default.nix",
        "--skip",
        "none",
        "--argstr",
        "of",
        of,
    ])
}

/// The same targets as those of a flake in a plain folder: nothing but its copy in the store is evaluated.
fn record_flake(place: &Place) -> crate::support::program::Program {
    place.eval_once(&[
        "pipeline",
        "--dry-run",
        "--flake",
        "path:.",
        "--skip",
        "none",
    ])
}

fn write_flake(place: &Place, targets: &str) {
    let store = &place.store;
    let arguments = ["--eval", "--expr", "builtins.currentSystem"];
    let system = store.nix("nix-instantiate", arguments);
    let system = system.trim();
    // A pure evaluation has no `currentSystem`, and none of these reads the source.
    let targets = targets
        .replace("builtins.currentSystem", system)
        .replace(SOURCE, "./source");
    let flake =
        format!("{{ outputs = {{ self }}: {{ packages.${{{system}}} = ({targets}) {{ }}; }}; }}");
    store.write("flake.nix", &flake);
}

/// What is counted of a recording, or what is wrong with it.
fn judge(place: &Place, ended: &Ended) -> Result<&'static str, String> {
    match ended.status.code() {
        Some(0) => {}
        Some(75) => return Ok("75"),
        _ => return Err(format!("{} instead of 0 or 75", ended.status)),
    }
    let drvs = Pipeline::of(ended).drvs();
    let paths: Vec<&str> = drvs.values().map(String::as_str).collect();
    if paths.len() != TARGETS {
        return Err(format!("{} steps instead of {TARGETS}", paths.len()));
    }
    let invalid = place.invalid(&paths);
    if invalid.is_empty() {
        Ok("0")
    } else {
        Err(format!("{} .drvs are not kept: {invalid:?}", invalid.len()))
    }
}

/// Evaluates all targets, and looks whether their `.drv`s are there afterwards.
fn bare(stage: &Stage, place: &Place, row: &str) {
    let ended = place.client("nix-instantiate").arg("default.nix").run();
    stage.tally.tried(row);
    let drvs: Vec<&str> = ended.stdout.lines().collect();
    if ended.status.success() && drvs.len() == TARGETS && place.invalid(&drvs).is_empty() {
        stage.tally.count(row, "0");
    } else {
        stage.tally.wrong_elsewhere(row);
    }
}

/// Removes all pins.
fn forget(place: &Place) {
    let pins = place.store.our_state().join("pins");
    if pins.exists() {
        fs::remove_dir_all(pins).unwrap();
    }
}

/// Makes all pins such as `prune` removes.
fn expire(place: &Place) {
    let pins = place.store.our_state().join("pins");
    for pin in fs::read_dir(pins).into_iter().flatten() {
        let file = pin.unwrap().path().join("keep.json");
        if Path::new(&file).exists() {
            fs::write(file, json!({ "until": 1 }).to_string()).unwrap();
        }
    }
}
