//! What on this host makes steps and recordings fail, or costs them time: a list of checks, each with what was seen and how to mend it.
//!
//! It changes nothing but one GC root, which it makes and removes; with [`DoctorOrder::write_share`] it also copies a small file to the
//! share. No question waits for longer than its limit ([`crate::store::LOCAL_LIMIT`], [`crate::store::NETWORK_LIMIT`]), and what cannot
//! be asked is a line of its own, not a failure of this program. It does not know how a step or a recording works, only what they need.

mod agent;
mod checkup;
#[expect(clippy::unnecessary_wraps, reason = "checks are functions of one type")]
mod hooks;
#[expect(clippy::unnecessary_wraps, reason = "checks are functions of one type")]
mod nix;
#[expect(clippy::unnecessary_wraps, reason = "checks are functions of one type")]
mod place;
mod share;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::exit::Failure;
use crate::host::Host;
use crate::log::Log;
use crate::nix::StorePath;
use crate::store::{Store, StoreIdentity};
use crate::supervise::Supervisor;

pub use checkup::{Check, Checkup, Outcome};
pub use hooks::AgentHooks;

/// What is examined.
#[derive(Debug)]
pub struct DoctorOrder {
    /// The host's settings, or why they are refused.
    pub host: Result<Host, Failure>,
    /// `NIX_CONFIG`.
    pub nix_config: String,
    /// Where temporary files are made.
    pub temporary: PathBuf,
    /// `PATH`.
    pub path: OsString,
    /// The file of this program.
    pub program: Option<PathBuf>,
    /// This is a job of an agent.
    pub is_job: bool,
    /// What is known of the agent's hooks without asking.
    pub hooks: AgentHooks,
    /// Whether a small file is copied to the share.
    pub write_share: bool,
}

/// What the checks have found that later ones need.
#[derive(Debug, Default)]
struct Gathered {
    /// The version of the program `nix`.
    nix: Option<String>,
    /// Both `nix-store` and `nix-instantiate` work.
    has_programs: bool,
    /// The folder of the store, once it has answered.
    store: Option<PathBuf>,
    identity: Option<StoreIdentity>,
    /// The version of the agent.
    agent: Option<String>,
    /// A path that no store has.
    missing: Option<StorePath>,
}

struct Doctor<'a> {
    order: &'a DoctorOrder,
    supervisor: &'a mut Supervisor,
    store: Store,
    found: Gathered,
}

type CheckOf<'a> = fn(&mut Doctor<'a>) -> Result<Outcome, Failure>;

/// All checks, by their names, in the order in which they are made: a later one needs what an earlier one has found.
fn checks<'a>() -> [(&'static str, CheckOf<'a>); 20] {
    [
        ("host-settings", Doctor::host_settings),
        ("nix", Doctor::programs),
        ("store", Doctor::answers),
        ("trust", Doctor::trust),
        ("keep-derivations", Doctor::keep_derivations),
        ("keep-outputs", Doctor::keep_outputs),
        ("min-free", Doctor::min_free),
        ("substituters", Doctor::substituters),
        ("state-folder", Doctor::state_folder),
        ("roots", Doctor::roots),
        ("clock", Doctor::clock),
        ("temporary-folder", Doctor::temporary_folder),
        ("disk", Doctor::disk),
        ("agent", Doctor::agent),
        ("buildkite", Doctor::buildkite),
        ("command-hook", Doctor::command_hook),
        ("environment-hook", Doctor::environment_hook),
        ("strict-single-hooks", Doctor::strict_single_hooks),
        ("share-read", Doctor::share_read),
        ("share-write", Doctor::share_write),
    ]
}

/// Makes all checks. `show` gets each as soon as it is made: one that waits for its limit takes seconds.
///
/// # Errors
/// A signal asked us to end (128 + n); or the error that `show` returns.
pub fn examine(
    order: &DoctorOrder,
    supervisor: &mut Supervisor,
    log: &Log,
    mut show: impl FnMut(&Check) -> Result<(), Failure>,
) -> Result<Checkup, Failure> {
    supervisor.hide_secrets(&order.nix_config);
    let mut doctor = Doctor {
        order,
        supervisor,
        store: Store::new(&[], None, log),
        found: Gathered::default(),
    };
    let mut checkup = Checkup::default();
    for (name, check) in checks() {
        let check = Check::new(name, check(&mut doctor)?);
        show(&check)?;
        checkup.push(check);
    }
    Ok(checkup)
}
