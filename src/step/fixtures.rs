//! Steps for tests.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::rc::Rc;

use serde_json::Value;

use super::request::StepRequest;
use super::run::StepRun;
use crate::evaluation_keys::Checkout;
use crate::host::Host;
use crate::log::Log;
use crate::nix::settings::NixSettings;
use crate::supervise::Supervisor;

/// A `.drv` in a store that does not exist.
pub(super) const DRV: &str = "/s/0123456789abcdfghijklmnpqrsvwxyz-x.drv";

/// What `check` finds of a step with these keys, and what the step has printed.
pub(super) fn with_step<T>(keys: &Value, check: impl FnOnce(&mut StepRun<'_>) -> T) -> (T, String) {
    let folder = tempfile::tempdir().unwrap();
    let checkout = Checkout {
        folder: folder.path().into(),
        confined: false,
        no_checkout: false,
    };
    let host = Host {
        state: None,
        evaluations: NonZeroUsize::MIN,
        recorded_only: false,
        share: None,
        nix: NixSettings::default(),
        temporary: folder.path().into(),
    };
    let request = StepRequest::read(keys.as_object().unwrap().clone(), &checkout).unwrap();
    let printed = Rc::new(RefCell::new(Vec::new()));
    let log = Log::to(printed.clone());
    let mut supervisor = Supervisor::install(&log).unwrap();
    let mut step = StepRun::new(&request, &checkout, &host, &mut supervisor, &log);
    let found = check(&mut step);
    let printed = String::from_utf8(printed.borrow().clone()).unwrap();
    (found, printed)
}
