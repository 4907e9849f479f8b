//! The outputs of a derivation, as the file of its `.drv` says. Nix is not asked: in a store that is not where its paths say, nothing is
//! known.

use std::collections::{BTreeMap, HashSet};

use crate::exit::Failure;
use crate::nix::{
    DrvPath, StorePath, derivation_text, inputs_of_derivation, is_cut_off, is_fixed_output,
    outputs_of_derivation,
};

/// The outputs of a derivation, by name.
pub(super) type Outputs = BTreeMap<String, StorePath>;

/// What the file of a `.drv` says of its outputs.
#[derive(Debug, Default)]
pub(super) struct DrvOutputs {
    /// Their paths; none of an output whose path is not known before it is built.
    pub(super) paths: BTreeMap<String, Option<StorePath>>,
    /// Whether the derivation has a fixed output.
    pub(super) fixed: bool,
}

impl DrvOutputs {
    /// Reads the file of `drv`; empty where it cannot be read, as in a store that is not where its paths say.
    pub(super) fn read(drv: &DrvPath) -> Self {
        let Ok(text) = derivation_text(drv) else {
            return Self::default();
        };
        Self {
            paths: outputs_of_derivation(&text).unwrap_or_default(),
            fixed: is_fixed_output(&text),
        }
    }

    /// The outputs, where the paths of all are known.
    pub(super) fn all_known(&self) -> Option<Outputs> {
        let outputs: Option<Outputs> = self
            .paths
            .iter()
            .map(|(name, path)| Some((name.clone(), path.clone()?)))
            .collect();
        outputs.filter(|outputs| !outputs.is_empty())
    }
}

/// The first `.drv` that is no whole derivation, of those that Nix would read to realise this one: what `drv` needs, as far as the
/// outputs of what needs it are not there. (What a killed builder has left at the path of one is taken for it: Nix would have to be
/// asked, which costs more than the rest.) `goes_on` is called for each.
///
/// # Errors
/// Those of `goes_on`.
pub(super) fn cut_off(
    drv: &DrvPath,
    mut goes_on: impl FnMut() -> Result<(), Failure>,
) -> Result<Option<DrvPath>, Failure> {
    let mut seen = HashSet::from([drv.clone()]);
    let mut waiting = vec![drv.clone()];
    while let Some(next) = waiting.pop() {
        goes_on()?;
        let Ok(text) = derivation_text(&next) else {
            continue;
        };
        if is_cut_off(&text) {
            return Ok(Some(next));
        }
        let outputs = outputs_of_derivation(&text).unwrap_or_default();
        let mut paths = outputs.values().flatten();
        let all_known = paths.clone().count() == outputs.len();
        if all_known && paths.all(|path| path.as_path().symlink_metadata().is_ok()) {
            continue;
        }
        let inputs = inputs_of_derivation(&text).unwrap_or_default();
        waiting.extend(
            inputs
                .into_iter()
                .filter(|input| seen.insert(input.clone())),
        );
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("/s/0123456789abcdfghijklmnpqrsvwxyz-{name}")).unwrap()
    }

    #[test]
    fn an_output_of_unknown_path_leaves_all_of_them_unknown() {
        let known = |paths: &[(&str, Option<StorePath>)]| {
            let paths = paths
                .iter()
                .map(|(name, path)| ((*name).to_owned(), path.clone()));
            DrvOutputs {
                paths: paths.collect(),
                ..DrvOutputs::default()
            }
            .all_known()
        };
        let both = [("out", Some(path("a"))), ("dev", Some(path("b")))];
        assert_eq!(known(&both).unwrap().len(), 2);
        assert_eq!(known(&[("out", Some(path("a"))), ("dev", None)]), None);
        assert_eq!(known(&[]), None);
    }

    #[test]
    fn only_what_nix_would_read_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(format!("{}-{name}", "0".repeat(32)));
        let drv = |name: &str| DrvPath::parse(path(name).to_str().unwrap()).unwrap();
        let write = |name: &str, inputs: &[&str]| {
            let out = path(name.strip_suffix(".drv").unwrap());
            let inputs: Vec<String> = inputs
                .iter()
                .map(|input| format!(r#"("{}",["out"])"#, path(input).display()))
                .collect();
            let text = format!(
                r#"Derive([("out","{}","","")],[{}],[],"x","/bin/sh",[],[])"#,
                out.display(),
                inputs.join(",")
            );
            std::fs::write(path(name), text).unwrap();
        };
        let found = || cut_off(&drv("top.drv"), || Ok(())).unwrap();
        assert_eq!(found(), None, "nothing can be read");
        write("top.drv", &["left.drv", "right.drv"]);
        write("left.drv", &["low.drv"]);
        write("right.drv", &["low.drv"]);
        write("low.drv", &[]);
        assert_eq!(found(), None);
        std::fs::write(path("low.drv"), "Derive([(\"out\",\"").unwrap();
        assert_eq!(found(), Some(drv("low.drv")));
        // What needs it is built: Nix reads no further.
        std::fs::write(path("left"), "").unwrap();
        assert_eq!(found(), Some(drv("low.drv")));
        std::fs::write(path("right"), "").unwrap();
        assert_eq!(found(), None);
        std::fs::remove_file(path("right")).unwrap();
        std::fs::write(path("top"), "").unwrap();
        assert_eq!(found(), None);
        std::fs::write(path("top.drv"), "").unwrap();
        assert_eq!(found(), Some(drv("top.drv")));
    }

    #[test]
    fn a_drv_that_cannot_be_read_has_no_known_outputs() {
        let drv = DrvPath::parse("/s/0123456789abcdfghijklmnpqrsvwxyz-none.drv").unwrap();
        let outputs = DrvOutputs::read(&drv);
        assert!(outputs.paths.is_empty() && !outputs.fixed);
    }
}
