//! `eval-once pin`: keeps and shares `.drv`s as a recording does, for pipelines that another program generates.

use std::collections::BTreeSet;

use serde_json::json;

use super::BuildkiteBuild;
use super::keep::pin::{PinResult, PinnedDrvs, pin};
use super::keep::{PinOwner, open_state_folder, remove_expired_at_times};
use super::request::KEEP_DAYS;
use super::share::{ShareWish, Sharing};
use crate::counts::number;
use crate::evaluation_keys;
use crate::exit::{Class, Classify as _, Failure};
use crate::host::Host;
use crate::keys::table::KeyOwner;
use crate::keys::{KeyReader, Keys, refuse};
use crate::log::Log;
use crate::nix::DrvPath;
use crate::share_keys::{self, ShareSetting};
use crate::store::Store;
use crate::supervise::Supervisor;

/// An order to keep `.drv`s.
#[derive(Debug)]
pub struct PinOrder {
    /// What is kept, each once.
    pub drvs: BTreeSet<DrvPath>,
    /// How.
    pub request: PinRequest,
    /// The host's settings.
    pub host: Host,
    /// The build of the job; none by hand.
    pub build: Option<BuildkiteBuild>,
}

/// The keys of a pin by hand, each read into its meaning.
#[derive(Debug)]
pub struct PinRequest {
    /// Nix settings, by name.
    options: Vec<(String, String)>,
    share: Option<ShareSetting>,
    share_limit: Option<u64>,
    share_required: bool,
    keep_days: u32,
}

impl PinRequest {
    /// Reads the keys.
    ///
    /// # Errors
    /// One is wrong (64).
    pub fn read(keys: Keys) -> Result<Self, Failure> {
        let mut reader = KeyReader::new(keys)?;
        let request = Self {
            options: evaluation_keys::read_options(&mut reader)?,
            share: share_keys::read_recording_share(&mut reader)?,
            share_limit: reader.number("share-limit")?,
            share_required: reader.boolean("share-required")?.unwrap_or(false),
            keep_days: reader
                .number("keep-days")?
                .and_then(|days| u32::try_from(days).ok())
                .unwrap_or(KEEP_DAYS),
        };
        reader.finish(KeyOwner::Pin)?;
        Ok(request)
    }
}

/// Reads the paths that are given, one a word.
///
/// # Errors
/// One is no `.drv`, or there is none (64).
pub fn read_drvs<'a>(
    words: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<DrvPath>, Failure> {
    let drvs = words
        .into_iter()
        .map(|word| DrvPath::parse(word).map_err(|wrong| refuse(format_args!("{word:?} {wrong}"))));
    let drvs: BTreeSet<DrvPath> = drvs.collect::<Result<_, _>>()?;
    if drvs.is_empty() {
        return Err(refuse("there is no .drv to pin: standard input is empty"));
    }
    Ok(drvs)
}

/// Pins the `.drv`s, and shares them. Gives a JSON document: the pin, and the keys that each step needs beside `drv`.
///
/// # Errors
/// A `.drv` is gone, or the state folder or the store fails (75); `share-required` is set, and sharing fails (75).
pub fn pin_drvs(
    order: &PinOrder,
    supervisor: &mut Supervisor,
    log: &Log,
) -> Result<String, Failure> {
    let (request, host) = (&order.request, &order.host);
    let state = open_state_folder(host, log)?;
    let wish = ShareWish {
        share: request.share.as_ref(),
        limit: request.share_limit,
        required: request.share_required,
        keep_days: request.keep_days,
    };
    let sharing = Sharing::new(&wish, host, order.build.as_ref(), false)?;
    remove_expired_at_times(&state);
    supervisor.hide_secrets(&host.nix.text);
    let store = &mut Store::new(&request.options, Some(&host.nix.state), log);
    let pinned = PinnedDrvs::without_paths(&order.drvs);
    let owner = PinOwner::of_drvs(&order.drvs, order.build.as_ref());
    let days = request.keep_days;
    let file = match pin(
        &pinned,
        &owner,
        days,
        &state,
        store,
        supervisor,
        log,
        |_| Vec::new(),
    )? {
        PinResult::Pinned(file, _) => file,
        PinResult::Gone(gone) => return Err(of_gone(&gone)),
    };
    let count = order.drvs.len();
    log.say(format_args!(
        "pinned {} for {}: {file}",
        number(count, ".drv"),
        number(usize::try_from(days).unwrap_or(usize::MAX), "day"),
    ));
    let drvs: Vec<&DrvPath> = order.drvs.iter().collect();
    let keys = sharing.publish(&drvs, &state, store, supervisor, log)?;
    let document = json!({
        "version": 1,
        "pin": file,
        "drvs": count,
        "step": keys.unwrap_or_default(),
    });
    let text = serde_json::to_string_pretty(&document);
    Ok(text.classify(Class::Bug, || "cannot write JSON".into())? + "\n")
}

/// The failure where some of the `.drv`s are not in the store.
fn of_gone(gone: &[DrvPath]) -> Failure {
    let others = match gone.len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let first = gone.first().map(ToString::to_string).unwrap_or_default();
    Failure::new(
        Class::Infrastructure,
        format_args!("{first}{others} does not exist in this store, so nothing is pinned"),
    )
    .hint("evaluate again, and pin in the same job: a garbage collection may have deleted it")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a.drv";

    #[test]
    fn a_word_that_is_no_drv_is_refused_by_name() {
        let output = DRV.replace(".drv", "");
        for (words, part) in [
            (&[DRV, "result"][..], "\"result\" is not a store path"),
            (&[&output], &output),
            (&[&format!("{DRV}!dev")], "leave away the `!`"),
            (&[], "standard input is empty"),
        ] {
            let failure = read_drvs(words.iter().copied()).unwrap_err();
            assert_eq!(failure.class, Class::Config);
            assert!(failure.to_string().contains(part), "{failure}");
        }
        assert_eq!(read_drvs([DRV, DRV]).unwrap().len(), 1);
    }

    #[test]
    fn the_first_drv_that_is_gone_is_named_and_the_others_are_counted() {
        let drv = DrvPath::parse(DRV).unwrap();
        let text = |gone: &[DrvPath]| of_gone(gone).to_string();
        let both = [drv.clone(), drv];
        assert!(text(&both[..1]).starts_with(&format!("{DRV} does not exist")));
        assert!(text(&both).contains("(and 1 more)"));
    }
}
