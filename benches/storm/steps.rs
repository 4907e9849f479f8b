//! Steps beside a collector that never rests: each ends with 0 and outputs that are valid, whatever way it took, or with the class of
//! the failure that is really its own. The bare command is run in the same minutes.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    place::{Place, SOURCE},
    seed::Random,
    stage::Stage,
    support::{
        collector::beside_collectors,
        program::{Ended, Running},
        target::Target,
    },
};

/// The ways that were taken, and the failures that were expected.
pub(crate) const COLUMNS: [&str; 6] = ["realised", "available", "evaluated", "100", "65", GONE];

/// The bare command alone: the `.drv` is gone before anything is done, so somebody would have to evaluate.
const GONE: &str = "invalid";

/// How many targets there are of each kind.
const TARGETS: usize = 8;

/// The bare command. 10: its check has found that the `.drv` is not valid.
const BARE: &str = r#"nix-store --check-validity "$1" 2>/dev/null || exit 10; exec nix-store --realise "$1" --add-root "$2""#;

/// Targets that have a dependency each, every other of which reads a source with a hash; one whose builder fails, and one that does not
/// evaluate.
fn targets() -> String {
    let target = |number: usize| {
        let comment = match number % 2 {
            0 => String::new(),
            _ => " # ${text}".to_owned(),
        };
        format!(
            "t{number} = build \"t{number}\" \"read x <${{file \"dep{number}\"}}; echo $x t{number} >$out{comment}\";\n"
        )
    };
    let all: String = (0..2 * TARGETS).map(target).collect();
    format!(
        "let slow = builtins.foldl' (a: b: a + b) 0 (builtins.genList (n: n) 200000); source = {SOURCE}; \
         text = builtins.seq source (builtins.seq slow (builtins.readFile (source + \"/text\"))); in \
         {{ {all} fails = build \"fails\" \"echo this is how it fails; exit 1\"; throws = throw \"its words\"; }}"
    )
}

/// What a step of a round is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One of the targets.
    Builds(usize),
    /// Its builder fails.
    Fails,
    /// It does not evaluate.
    Throws,
}

/// What is there of a target when its step begins. The collector may have taken it by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Drv,
    Outputs,
}

/// Steps that start at once.
#[derive(Debug)]
struct Round {
    /// Which of the places.
    place: usize,
    /// The `.drv`s are roots.
    is_rooted: bool,
    before: Before,
    steps: Vec<Kind>,
    /// The bare command has its turn as well.
    with_bare: bool,
}

impl Round {
    fn of(seed: u64) -> Self {
        let mut random = Random::of(seed);
        let place = random.below(2);
        let is_rooted = random.one_in(2);
        let before = random.pick(&[Before::Nothing, Before::Drv, Before::Outputs]);
        let at_once = 1 + random.below(8);
        let same = random.one_in(2).then(|| random.below(TARGETS));
        let kind = |_| {
            if random.one_in(12) {
                return random.pick(&[Kind::Fails, Kind::Throws]);
            }
            let number = same.unwrap_or_else(|| random.below(TARGETS));
            // The first ones are roots.
            Kind::Builds(if is_rooted { number } else { TARGETS + number })
        };
        let steps = (0..at_once).map(kind).collect();
        let with_bare = !is_rooted && random.one_in(3);
        Self {
            place,
            is_rooted,
            before,
            steps,
            with_bare,
        }
    }

    /// The attributes that it is about, each once.
    fn attributes(&self) -> Vec<String> {
        let mut attributes: Vec<String> = self
            .steps
            .iter()
            .filter_map(|kind| attribute(*kind))
            .collect();
        attributes.sort();
        attributes.dedup();
        attributes
    }
}

/// The attribute with a `.drv`.
fn attribute(kind: Kind) -> Option<String> {
    match kind {
        Kind::Builds(number) => Some(format!("t{number}")),
        Kind::Fails => Some("fails".to_owned()),
        Kind::Throws => None,
    }
}

/// A place, and what was recorded there.
struct Scene {
    place: Place,
    targets: Vec<Target>,
    fails: Target,
    /// Names the folders of steps.
    folders: AtomicU64,
    /// The `.drv`s of which Nix had lost the file.
    lost: Mutex<BTreeSet<String>>,
}

impl Scene {
    fn new(place: Place) -> Self {
        let targets = (0..2 * TARGETS)
            .map(|number| place.store.target(&format!("t{number}")))
            .collect();
        for number in 0..TARGETS {
            let root = place.store.root().join(format!("root{number}"));
            let root = root.to_str().unwrap();
            let attribute = format!("t{number}");
            let arguments = [
                "default.nix",
                "-A",
                &attribute,
                "--add-root",
                root,
                "--indirect",
            ];
            place.store.nix("nix-instantiate", arguments);
        }
        Self {
            fails: place.store.target("fails"),
            targets,
            place,
            folders: AtomicU64::new(0),
            lost: Mutex::default(),
        }
    }

    fn target(&self, kind: Kind) -> Option<&Target> {
        match kind {
            Kind::Builds(number) => Some(&self.targets[number]),
            Kind::Fails => Some(&self.fails),
            Kind::Throws => None,
        }
    }

    /// A folder for what steps make.
    fn folder(&self) -> PathBuf {
        let number = self.folders.fetch_add(1, Ordering::SeqCst);
        let folder = self.place.store.work().join(format!("round{number}"));
        fs::create_dir(&folder).unwrap();
        folder
    }

    /// Makes there what is to be there. The collector may prevent it, which is no less a storm.
    fn prepare(&self, round: &Round) {
        let attributes = round.attributes();
        if attributes.is_empty() {
            return;
        }
        let program = match round.before {
            Before::Nothing => return,
            Before::Drv if round.is_rooted => return,
            Before::Drv => self.place.client("nix-instantiate"),
            // The one whose builder fails ends it with an error.
            Before::Outputs => self
                .place
                .client("nix-build")
                .args(["--no-out-link", "--keep-going"]),
        };
        let attributes = attributes.iter().flat_map(|attribute| ["-A", attribute]);
        program.arg("default.nix").args(attributes).run();
    }

    fn step(&self, kind: Kind, folder: &Path, number: usize) -> Running {
        let attribute = attribute(kind).unwrap_or_else(|| "throws".to_owned());
        let link = folder.join(format!("result{number}"));
        let mut step = self
            .place
            .eval_once(&[
                "step",
                "--file",
                "default.nix",
                "--attr",
                &attribute,
                "--out-link",
            ])
            .arg(link)
            .reporting_to(folder.join(format!("report{number}.json")));
        if let Some(target) = self.target(kind) {
            step = step.args(target.flags());
        }
        step.start()
    }

    fn bare(&self, target: &Target, folder: &Path, number: usize) -> Running {
        let link = folder.join(format!("result{number}"));
        let shell = self.place.client("sh");
        shell
            .args(["-c", BARE, "sh", &target.drv])
            .arg(link)
            .start()
    }
}

/// Runs the part.
pub(crate) fn run(stage: &Stage) {
    let places = Place::both(stage, &crate::support::target::expression(&targets()));
    let collectors = places.each_ref().map(Place::collector);
    let scenes = places.map(Scene::new);
    let collections = beside_collectors(&collectors, || {
        // A round waits for the collector most of the time.
        stage.run(6, || (), |(), seed| one_round(stage, &scenes, seed));
    });
    let tally = stage.tally;
    tally.note(format!(
        "{} steps of ours, {collections} collections meanwhile.",
        tally.tries("rooted")
    ));
    if tally.tries("bare") > 0 && tally.total("bare", "wrong") == 0 {
        tally.note(
            "THE BARE COMMAND SHOWED NOTHING WRONG EITHER: this storm was none, and says nothing about eval-once."
                .to_owned(),
        );
    }
}

fn one_round(stage: &Stage, scenes: &[Scene; 2], seed: u64) {
    let round = Round::of(seed);
    let scene = &scenes[round.place];
    let rooted = if round.is_rooted {
        "rooted"
    } else {
        "not rooted"
    };
    let row = format!("{rooted}, {}", scene.place.kind());
    ours(stage, scene, &round, &row, seed);
    if round.with_bare {
        bare(
            stage,
            scene,
            &round,
            &format!("bare nix-store, {row}").replace("not rooted, ", ""),
        );
    }
}

fn ours(stage: &Stage, scene: &Scene, round: &Round, row: &str, seed: u64) {
    let folder = scene.folder();
    scene.prepare(round);
    let running: Vec<_> = round
        .steps
        .iter()
        .enumerate()
        .map(|(number, kind)| (*kind, scene.step(*kind, &folder, number)))
        .collect();
    let ended: Vec<_> = running
        .into_iter()
        .enumerate()
        .map(|(number, (kind, running))| (number, kind, running.end()))
        .collect();
    // Their links still keep them.
    let outputs: Vec<&str> = ended
        .iter()
        .filter(|(_, _, ended)| ended.status.success())
        .filter_map(|(_, kind, _)| Some(scene.target(*kind)?.out()))
        .collect();
    let invalid = scene.place.invalid(&outputs);
    let tally = stage.tally;
    for (number, kind, ended) in ended {
        tally.tried(row);
        if mend(stage, scene, kind, &ended, seed) {
            continue;
        }
        let link = folder.join(format!("result{number}"));
        match judge(scene, kind, &link, &invalid, &ended) {
            Ok(column) => tally.count(row, column),
            Err(what) => {
                let log = format!("{round:?}\n{kind:?}\n{ended}");
                tally.wrong(row, seed, &what, &log);
            }
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

/// Does what a step's hint says where a `.drv` is valid and has no file, as Nix leaves one beside its collector, and nothing else brings it back;
/// whether that was so.
fn mend(stage: &Stage, scene: &Scene, kind: Kind, ended: &Ended, seed: u64) -> bool {
    let missed = ended.stderr.lines().find_map(|line| {
        let (path, _) = line.split_once(" was missing during the evaluation of ")?;
        path.rsplit(' ').next()
    });
    let (Some(drv), Some(attribute), Some(75)) = (missed, attribute(kind), ended.status.code())
    else {
        return false;
    };
    // Steps that began at the same time meet the same.
    let mut lost = scene.lost.lock().unwrap();
    if Path::new(drv).exists() || !scene.place.invalid(&[drv]).is_empty() {
        return lost.contains(drv);
    }
    lost.insert(drv.to_owned());
    let repair = ["--repair", "default.nix", "-A", &attribute];
    let program = scene.place.store.program("nix-instantiate");
    let mended = program.args(repair).run();
    stage.tally.note(format!(
        "Nix had lost the file of a valid .drv, seed {seed}: a step ended with 75; `nix-instantiate --repair`: {}",
        mended.status
    ));
    true
}

/// What is counted of a step, or what is wrong with it.
fn judge(
    scene: &Scene,
    kind: Kind,
    link: &Path,
    invalid: &[String],
    ended: &Ended,
) -> Result<&'static str, String> {
    let expected = match kind {
        Kind::Builds(_) => 0,
        Kind::Fails => 100,
        Kind::Throws => 65,
    };
    if ended.status.code() != Some(expected) {
        return Err(format!("{} instead of {expected}", ended.status));
    }
    let report = ended.report();
    if report["exit"] != expected {
        return Err(format!("the report says {}", report["exit"]));
    }
    let (Kind::Builds(number), Some(target)) = (kind, scene.target(kind)) else {
        let is_made = link.symlink_metadata().is_ok();
        return match (is_made, kind) {
            (true, _) => Err("a failed step has made its link".to_owned()),
            (false, Kind::Fails) => Ok("100"),
            (false, _) => Ok("65"),
        };
    };
    let out = target.out();
    if fs::read_link(link).ok().as_deref() != Some(Path::new(out)) {
        return Err(format!("the link does not lead to {out}"));
    }
    if invalid.iter().any(|path| path == out) {
        return Err(format!("{out} is not valid"));
    }
    let content = fs::read_to_string(link).unwrap_or_default();
    if content != format!("dep{number} t{number}\n") {
        return Err(format!("{out} contains {content:?}"));
    }
    let way = report["way"].as_str().unwrap_or_default();
    let known = ["realised", "available", "evaluated"];
    let way = known.into_iter().find(|it| *it == way);
    way.ok_or_else(|| format!("the way is {}", report["way"]))
}

fn bare(stage: &Stage, scene: &Scene, round: &Round, row: &str) {
    let folder = scene.folder();
    scene.prepare(round);
    let targets = round
        .steps
        .iter()
        .filter(|kind| matches!(kind, Kind::Builds(_)));
    let running: Vec<_> = targets
        .filter_map(|kind| scene.target(*kind))
        .enumerate()
        .map(|(number, target)| (target, scene.bare(target, &folder, number)))
        .collect();
    for (number, (target, running)) in running.into_iter().enumerate() {
        let ended = running.end();
        stage.tally.tried(row);
        match ended.status.code() {
            Some(0) => {
                let link = folder.join(format!("result{number}"));
                if link.exists() && scene.place.invalid(&[target.out()]).is_empty() {
                    stage.tally.count(row, "realised");
                } else {
                    stage.tally.wrong_elsewhere(row);
                }
            }
            Some(10) => stage.tally.count(row, GONE),
            _ => stage.tally.wrong_elsewhere(row),
        }
    }
    fs::remove_dir_all(folder).unwrap();
}
