//! eval-once: Nix CI on Buildkite that evaluates every target once.
//!
//! A recording evaluates all targets and writes one step for each; a step then only realises the `.drv` that the evaluation
//! wrote. Nothing keeps that `.drv` from being garbage collected meanwhile, and the step may run on a host that never had it. So
//! a step tries a list of *ways* to its outputs, and evaluates again only as the last of them. It always says which way it took,
//! and why.
//!
//! # Layers
//!
//! A module imports only modules of lower layers; two of the same layer do not know one another. `tests/layers.rs` reads this
//! table and the imports, and fails where they differ.
//!
//! | layer | module | is responsible for |
//! | --- | --- | --- |
//! | 13 | [`options`] | what the user asked for: the command line and the environment, turned into values |
//! | 12 | [`job`] | what a job of the agent becomes: a step, a recording or a summary of ours, or the job as it would be without us; the command that follows |
//! | 11 | [`base`] | fetching what an earlier build has recorded and how it ended, for a recording that skips what is the same |
//! | 11 | [`summary`] | the build at a glance: what recordings planned and steps reported, as an annotation and as JUnit |
//! | 10 | [`step`] | one target: the list of ways, the choice between them, the report |
//! | 10 | [`recording`] | all targets: evaluating them once, keeping their `.drv`s, the pipeline that builds them |
//! | 9 | [`doctor`] | what on this host makes steps and recordings fail: a list of checks, each with how to mend it |
//! | 9 | [`share`] | how `.drv`s get from the host that records to those that build: an archive as an artifact, or a store |
//! | 8 | [`store`] | asking Nix: what is valid, what is missing, locks, roots, logs; each question once; copying |
//! | 8 | [`agent`] | asking the Buildkite agent; each question once |
//! | 8 | [`rest`] | asking Buildkite's REST API; each question once |
//! | 7 | [`build_keys`] | the keys that say how a target is built: read by a step, passed on by a recording |
//! | 7 | [`parallel`] | several programs in parallel, whatever they are |
//! | 7 | [`host`] | this host: its settings, memory and disk |
//! | 7 | [`state`] | the host's state folder: evaluation slots, roots that outlive a process |
//! | 6 | [`share_keys`] | the keys that say how `.drv`s and outputs get to other hosts |
//! | 6 | [`artifact_globs`] | the key that says which files of a step's outputs become artifacts |
//! | 6 | [`evaluation_keys`] | the keys that say what is evaluated: the same for a step and for a recording |
//! | 6 | [`supervise`] | every process: starting, signalling, waiting, being replaced by one |
//! | 6 | [`environment`] | what the agent's `environment` hook puts into a job |
//! | 6 | [`outcomes`] | the outcome of every target of a build, as a file that later recordings and other programs read |
//! | 6 | [`status_line`] | the line that shows progress |
//! | 5 | [`log`] | everything that is printed in a job's log |
//! | 5 | [`nix`] | Nix as data: store paths, command lines, what its programs print and what that means |
//! | 5 | [`buildkite`] | Buildkite as data: plugin configuration, the agent's rules, the pipeline as types |
//! | 4 | [`keys`] | reading what a user has configured, strictly, whatever it means |
//! | 3 | [`counts`] | how a recording is counted, and in which words |
//! | 3 | [`command_line`] | programs as data: what is run, as what, and how it ended |
//! | 3 | [`secret_lines`] | credentials that take several lines of a stream |
//! | 2 | [`exit`] | what a failure means for a retry: classes and exit statuses |
//! | 2 | [`secrets`] | the one detector of credentials: what of a text is secret, and where it belongs |
//! | 1 | [`text`] | text from elsewhere, made safe to show |
//! | 1 | [`fingerprint`] | hashes as text |
//! | 1 | [`similar`] | the name that a misspelt one was probably meant to be |
//! | 1 | [`paths`] | paths by their letters, and where they really lead |
//! | 1 | [`private`] | files and folders that are their user's alone, whatever the umask |
//!
//! The program itself (`main.rs`) reads the options, calls one of the layers 9 to 12, and turns the result into an exit status.
//!
//! # Glossary
//!
//! | term | meaning |
//! | --- | --- |
//! | derivation | a build as Nix describes it; its description is the `.drv` file in the store |
//! | store path | a path below the store's folder ([`nix::StorePath`]); *valid* means registered in Nix's database |
//! | output | a store path that a derivation makes: `out`, `dev`, … |
//! | realise | get the outputs of a derivation, by building or by substituting them |
//! | substitute, substituter | get a store path from a binary cache; the cache that has it |
//! | GC root | a link that keeps a store path and its closure from the garbage collector |
//! | closure | a store path with everything that it refers to, directly or not |
//! | evaluation | what turns a Nix expression into derivations |
//! | evaluation error | an attribute that does not evaluate (not "broken": `meta.broken` of Nixpkgs is another thing) |
//! | expected error | an evaluation error of an attribute that `expect-errors` names: it is shown, and is not red |
//! | target | an attribute that is a derivation, and gets a step |
//! | record | what the evaluation found of a target: attribute path, `.drv`, outputs, metadata |
//! | recording | evaluating all targets once and uploading the pipeline: `eval-once pipeline` |
//! | walk, walker | finding all targets below the root; the Nix function that does so (`nix/walk.nix`) |
//! | root | what is walked: the value of the expression, or of the attribute that `attr` names |
//! | worker | a Nix process that evaluates the root once, and then one task after the other |
//! | conversation | a worker that is `nix repl` on a pipe: an error ends a line, not the process |
//! | task, span | what a worker is given at a time; neighbouring attributes of one set, of which a task consists |
//! | schedule | what waits, and which worker is given what: a plain value |
//! | pin | the store file whose references are the recorded `.drv`s; its GC root keeps them all (what one does to nixpkgs is *lock*) |
//! | step, job | one target in the pipeline; one run of a step on an agent |
//! | way | how a step gets its outputs: `realised`, `available`, `fetched`, `evaluated` |
//! | base | an earlier build with its recordings and outcomes: what is the same and was green there is skipped |
//! | share | a store, or an artifact of the build, through which one host's `.drv`s reach the others |
//! | outcome | how a step ended according to Buildkite (its job), which may differ from how its build ended |
//! | infrastructure failure | class 75 (`surroundings` in JSON): the machine, the daemon, the network or Buildkite failed; a retry may help |
//! | root cause | the derivation that itself failed, wherever in the closure it is |
//! | reproduce | run by hand what a step ran |
//!
//! # Boundaries
//!
//! *Architecture invariant:* only [`options`] reads the environment, the command line and whether there is a terminal. Everything
//! below it gets values.
//!
//! *Architecture invariant:* only [`supervise`] starts, signals or waits for a process. [`nix`] and [`buildkite`] build command
//! lines as data, so that a test can compare them and `explain` can print them; [`store`] and [`agent`] run them.
//!
//! *Architecture invariant:* [`log`] alone writes to standard error, except that `--report /dev/stderr` writes the report there.
//!
//! *Architecture invariant:* [`secrets`] alone knows what a secret is. A key that holds one is refused; of what is printed or
//! published, all text from elsewhere passes [`secrets::redacted`].
//!
//! *Architecture invariant:* nothing passes through a shell but the user's own step command. Attribute names and paths come from
//! untrusted repositories; they travel as single arguments.
//!
//! *Architecture invariant:* a path of the store is a [`nix::StorePath`] or a [`nix::DrvPath`] once it has been parsed at the
//! edge, and the store's folder is the one that path names, never a literal.
//!
//! *Architecture invariant:* no thread is started and nothing global is changed, the signal handlers of
//! [`supervise::Supervisor`] apart.

#[cfg(not(unix))]
compile_error!("eval-once runs where Nix runs: on Linux and macOS. On Windows, use it inside WSL.");

pub mod agent;
pub mod artifact_globs;
pub mod base;
pub mod build_keys;
pub mod buildkite;
pub mod command_line;
pub mod counts;
pub mod doctor;
pub mod environment;
pub mod evaluation_keys;
pub mod exit;
pub mod fingerprint;
pub mod host;
pub mod job;
pub mod keys;
pub mod log;
pub mod nix;
pub mod options;
pub mod outcomes;
pub mod parallel;
pub mod paths;
pub mod private;
pub mod recording;
pub mod rest;
pub mod secret_lines;
pub mod secrets;
pub mod share;
pub mod share_keys;
pub mod similar;
pub mod state;
pub mod status_line;
pub mod step;
pub mod store;
pub mod summary;
pub mod supervise;
pub mod text;
