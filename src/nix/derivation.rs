//! Reading a `.drv` file: its outputs, its input derivations, its system and features.
//!
//! The text is one term, `Derive([outputs],[inputs],[sources],system,builder,[arguments],[environment])`; newer versions of
//! Nix also write `DrvWithVersion("xp-dyn-drv",[outputs],…` (`Derivation::unparse` in Nix's `derivations.cc`). It is parsed
//! from the left, and only as far as necessary, so that a large environment costs nothing where it is not needed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;

use serde_json::Value;
use unix::fcntl::OFlag;

use super::{DrvPath, StorePath};

/// The contents of a `.drv` file, as far as a recording needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    /// Its outputs. An output whose path is not known before the build (floating content-addressed) has none.
    pub outputs: BTreeMap<String, Option<StorePath>>,
    /// The derivations whose outputs it needs.
    pub inputs: Vec<DrvPath>,
    /// The system it is built on.
    pub system: String,
    /// Its name: the name of its file without `.drv`.
    pub name: String,
    /// `requiredSystemFeatures`.
    pub features: Vec<String>,
}

/// A text that is not a derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadDerivation;

impl fmt::Display for BadDerivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the file is not a derivation")
    }
}

impl std::error::Error for BadDerivation {}

impl From<BadDerivation> for io::Error {
    fn from(bad: BadDerivation) -> Self {
        Self::new(io::ErrorKind::InvalidData, bad)
    }
}

/// The largest `.drv` that is read, in bytes. Real ones have a few hundred kilobytes at most.
const DRV_AT_MOST: u64 = 64 << 20;

/// The text of a `.drv` file. (In a store whose files are not where their paths say, it does not exist under that name.)
///
/// # Errors
/// It cannot be read, or cannot be a derivation.
pub fn derivation_text(drv: &DrvPath) -> io::Result<Vec<u8>> {
    // `O_NONBLOCK`, because opening a pipe under that name would block forever. The metadata comes from the open file: a recording
    // reads tens of thousands of files, and looks each up only once.
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(drv.as_store_path().as_path())?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() >= DRV_AT_MOST {
        return Err(BadDerivation.into());
    }
    let length = usize::try_from(metadata.len()).map_err(io::Error::other)?;
    let mut text = vec![0; length];
    file.read_exact(&mut text)?;
    Ok(text)
}

/// The input derivations of the derivation in this file.
///
/// # Errors
/// The file cannot be read, or is not a derivation.
pub fn inputs_on_disk(drv: &DrvPath) -> io::Result<Vec<DrvPath>> {
    Ok(inputs_of_derivation(&derivation_text(drv)?)?)
}

impl Derivation {
    /// Reads the file `drv`.
    ///
    /// # Errors
    /// The file cannot be read, or is not a derivation.
    pub fn read(drv: &DrvPath) -> io::Result<Self> {
        Ok(Self::parse(&derivation_text(drv)?, drv)?)
    }

    /// Parses the text of the file `drv`. Bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// The text is not a derivation.
    pub fn parse(text: &[u8], drv: &DrvPath) -> Result<Self, BadDerivation> {
        let mut term = Term::begin(text)?;
        let outputs = term.outputs()?;
        term.expect(b',')?;
        let inputs = term.inputs()?;
        term.expect(b',')?;
        term.skip_value()?;
        term.expect(b',')?;
        let system = term.text()?.into_owned();
        for _builder_and_arguments in 0..2 {
            term.expect(b',')?;
            term.skip_value()?;
        }
        term.expect(b',')?;
        let features = term.features()?;
        term.expect(b')')?;
        Ok(Self {
            outputs,
            inputs,
            system,
            name: drv.name().to_owned(),
            features,
        })
    }
}

/// The outputs of a derivation, from the text of its `.drv` file; none where the text is not a derivation that we can read.
///
/// An output whose path is not known before the build (floating content-addressed) has none.
#[must_use]
pub fn outputs_of_derivation(text: &[u8]) -> Option<BTreeMap<String, Option<StorePath>>> {
    Term::begin(text)
        .and_then(|mut term| term.outputs())
        .ok()
        .filter(|outputs| !outputs.is_empty())
}

/// Whether the text is a derivation whose output is fixed: its hash is known before the build.
#[must_use]
pub fn is_fixed_output(text: &[u8]) -> bool {
    let read = || {
        let mut term = Term::begin(text)?;
        let mut fixed = false;
        term.list(|term| {
            term.expect(b'(')?;
            for _name_path_and_algorithm in 0..3 {
                term.text()?;
                term.expect(b',')?;
            }
            let hash = term.text()?;
            fixed = !hash.is_empty() && hash != "impure";
            term.expect(b')')
        })?;
        Ok::<bool, BadDerivation>(fixed)
    };
    read().unwrap_or(false)
}

/// Whether the text is the begin of a derivation, or nothing, as after a power failure. Another format than the usual one is left to
/// Nix.
#[must_use]
pub fn is_cut_off(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(b"Derive(") else {
        return b"Derive(".starts_with(text);
    };
    let mut term = Term(rest);
    let mut read = || {
        term.skip_value()?;
        for _part in 1..7 {
            term.expect(b',')?;
            term.skip_value()?;
        }
        term.expect(b')')
    };
    read().is_err()
}

/// The input derivations of a derivation, from the text of its `.drv` file.
///
/// # Errors
/// The text is not a derivation.
pub fn inputs_of_derivation(text: &[u8]) -> Result<Vec<DrvPath>, BadDerivation> {
    let mut term = Term::begin(text)?;
    term.skip_value()?;
    term.expect(b',')?;
    term.inputs()
}

/// The rest of the text of a derivation.
struct Term<'a>(&'a [u8]);

impl<'a> Term<'a> {
    /// Begins before the outputs.
    fn begin(text: &'a [u8]) -> Result<Self, BadDerivation> {
        if let Some(rest) = text.strip_prefix(b"Derive(") {
            return Ok(Self(rest));
        }
        let mut term = Self(text.strip_prefix(b"DrvWithVersion(").ok_or(BadDerivation)?);
        term.text()?;
        term.expect(b',')?;
        Ok(term)
    }

    fn expect(&mut self, byte: u8) -> Result<(), BadDerivation> {
        self.0 = self.0.strip_prefix(&[byte]).ok_or(BadDerivation)?;
        Ok(())
    }

    /// Whether `byte` comes next; if so, it is consumed.
    fn next_is(&mut self, byte: u8) -> bool {
        self.expect(byte).is_ok()
    }

    /// Parses the elements of a list, each with `element`.
    fn list(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), BadDerivation>,
    ) -> Result<(), BadDerivation> {
        self.expect(b'[')?;
        if self.next_is(b']') {
            return Ok(());
        }
        loop {
            element(self)?;
            if self.next_is(b']') {
                return Ok(());
            }
            self.expect(b',')?;
        }
    }

    fn outputs(&mut self) -> Result<BTreeMap<String, Option<StorePath>>, BadDerivation> {
        let mut outputs = BTreeMap::new();
        self.list(|term| {
            term.expect(b'(')?;
            let name = term.text()?.into_owned();
            term.expect(b',')?;
            let path = StorePath::parse(&term.text()?).ok();
            for _algorithm_and_hash in 0..2 {
                term.expect(b',')?;
                term.text()?;
            }
            outputs.insert(name, path);
            term.expect(b')')
        })?;
        Ok(outputs)
    }

    fn inputs(&mut self) -> Result<Vec<DrvPath>, BadDerivation> {
        let mut inputs = Vec::new();
        self.list(|term| {
            term.expect(b'(')?;
            inputs.push(DrvPath::parse(&term.text()?).map_err(|_| BadDerivation)?);
            term.expect(b',')?;
            // The names of the outputs; for a dynamic derivation, a tree of them.
            term.skip_value()?;
            term.expect(b')')
        })?;
        Ok(inputs)
    }

    /// Parses the environment for `requiredSystemFeatures`. Structured attributes have them as a list in JSON.
    fn features(&mut self) -> Result<Vec<String>, BadDerivation> {
        let mut features = Vec::new();
        self.list(|term| {
            term.expect(b'(')?;
            let name = term.string()?;
            term.expect(b',')?;
            match name {
                b"requiredSystemFeatures" => {
                    features = term.text()?.split_whitespace().map(str::to_owned).collect();
                }
                b"__json" => {
                    if let Some(listed) = features_in_json(&term.text()?) {
                        features = listed;
                    }
                }
                _ => drop(term.string()?),
            }
            term.expect(b')')
        })?;
        Ok(features)
    }

    /// Parses a string without its quotes, and leaves its escapes.
    fn string(&mut self) -> Result<&'a [u8], BadDerivation> {
        self.expect(b'"')?;
        let mut from = 0;
        loop {
            let at = from
                + self.0[from..]
                    .iter()
                    .position(|byte| matches!(byte, b'"' | b'\\'))
                    .ok_or(BadDerivation)?;
            if self.0[at] == b'"' {
                let string = &self.0[..at];
                self.0 = &self.0[at + 1..];
                return Ok(string);
            }
            from = at + 2;
            if from > self.0.len() {
                return Err(BadDerivation);
            }
        }
    }

    /// Parses a string, and its escapes.
    fn text(&mut self) -> Result<Cow<'a, str>, BadDerivation> {
        let string = self.string()?;
        if !string.contains(&b'\\') {
            return Ok(String::from_utf8_lossy(string));
        }
        let mut plain = Vec::with_capacity(string.len());
        let mut bytes = string.iter().copied();
        while let Some(byte) = bytes.next() {
            plain.push(if byte == b'\\' {
                match bytes.next() {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(other) => other,
                    None => return Err(BadDerivation),
                }
            } else {
                byte
            });
        }
        Ok(Cow::Owned(String::from_utf8_lossy(&plain).into_owned()))
    }

    /// Skips a string, a list or a tuple.
    fn skip_value(&mut self) -> Result<(), BadDerivation> {
        let mut open = 0_usize;
        loop {
            match self.0.first().ok_or(BadDerivation)? {
                b'"' => drop(self.string()?),
                b'[' | b'(' => {
                    open += 1;
                    self.0 = &self.0[1..];
                }
                b']' | b')' => {
                    open = open.checked_sub(1).ok_or(BadDerivation)?;
                    self.0 = &self.0[1..];
                }
                b',' if open > 0 => self.0 = &self.0[1..],
                _ => return Err(BadDerivation),
            }
            if open == 0 {
                return Ok(());
            }
        }
    }
}

fn features_in_json(json: &str) -> Option<Vec<String>> {
    // Only this attribute: the whole structure may be large.
    #[derive(serde::Deserialize)]
    struct Attributes {
        #[serde(rename = "requiredSystemFeatures")]
        features: Option<Value>,
    }
    let attributes: Attributes = serde_json::from_str(json).ok()?;
    match attributes.features? {
        Value::Array(list) => Some(list.into_iter().filter_map(crate::keys::string).collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HASH: &str = "w11m5yi1fzmzl7ri7y308xcnn9jyzv3r";

    fn drv(name: &str) -> DrvPath {
        DrvPath::parse(&format!("/s/store/{HASH}-{name}.drv")).unwrap()
    }

    #[test]
    fn a_derivation_is_read_from_its_text() {
        let text = format!(
            r#"Derive([("dev","/s/store/{HASH}-a-dev","",""),("out","/s/store/{HASH}-a","r:sha256","0f")],[("/s/store/{HASH}-b.drv",["dev","out"]),("/s/store/{HASH}-c.drv",["out"])],["/s/store/{HASH}-src"],"x86_64-linux","/bin/sh",["-c","[(\"x\"","\\"],[("name","ignored"),("requiredSystemFeatures","kvm  big-parallel\n"),("text","é\n\t\"")])"#
        );
        let read = Derivation::parse(text.as_bytes(), &drv("a-1.0")).unwrap();
        assert_eq!(read.outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
        assert_eq!(
            read.outputs["out"].as_ref().unwrap().as_str(),
            format!("/s/store/{HASH}-a")
        );
        assert_eq!(read.inputs, [drv("b"), drv("c")]);
        assert_eq!(
            (read.system.as_str(), read.name.as_str()),
            ("x86_64-linux", "a-1.0")
        );
        assert_eq!(read.features, ["kvm", "big-parallel"]);
        assert_eq!(outputs_of_derivation(text.as_bytes()), Some(read.outputs));
        assert_eq!(inputs_of_derivation(text.as_bytes()), Ok(read.inputs));
    }

    #[test]
    fn every_begin_of_a_derivation_is_cut_off_and_a_whole_one_is_not() {
        let text = format!(
            r#"Derive([("out","/s/store/{HASH}-a","",""),("x","/y","","")],[("/s/store/{HASH}-b.drv",["out"])],["/s/store/{HASH}-src"],"x","/bin/sh",["-c","[(\"x\")])"],[("name",")"),("text","é\n\"])")])"#
        );
        assert!(!is_cut_off(text.as_bytes()));
        for length in 0..text.len() {
            assert!(is_cut_off(&text.as_bytes()[..length]), "{length}");
        }
        // Another format is Nix's affair.
        assert!(!is_cut_off(b"DrvWithVersion(") && !is_cut_off(b"{"));
    }

    #[test]
    fn structured_attributes_have_their_features_in_json() {
        let text = r#"Derive([("out","","r:sha256","")],[],[],"x","y",[],[("__json","{\"name\":\"n\",\"requiredSystemFeatures\":[\"kvm\",\"a b\"],\"deep\":{\"x\":[1]}}"),("out","")])"#;
        let read = Derivation::parse(text.as_bytes(), &drv("n")).unwrap();
        assert_eq!(read.features, ["kvm", "a b"]);
    }

    #[test]
    fn the_inputs_of_dynamic_derivations_are_read_as_well() {
        let text = format!(
            r#"DrvWithVersion("xp-dyn-drv",[("out","","r:sha256","")],[("/s/store/{HASH}-b.drv",["out"]),("/s/store/{HASH}-c.drv",(["dev"],[("out",["x"]),("y",([],[("z",["out"])]))]))],[],"x","y",[],[])"#
        );
        let read = Derivation::parse(text.as_bytes(), &drv("a")).unwrap();
        assert_eq!(read.inputs, [drv("b"), drv("c")]);
        assert_eq!(inputs_of_derivation(text.as_bytes()), Ok(read.inputs));
    }

    #[test]
    fn an_output_is_fixed_if_its_hash_is_known_before_the_build() {
        for (algorithm, hash, fixed) in [
            ("r:sha256", "0f", true),
            ("sha256", "0f", true),
            ("r:sha256", "", false),
            ("r:sha256", "impure", false),
            ("", "", false),
        ] {
            let output = format!(r#"("out","/s/store/x","{algorithm}","{hash}")"#);
            let text = format!(r#"Derive([{output}],[],[],"x","y",[],[])"#);
            assert_eq!(is_fixed_output(text.as_bytes()), fixed, "{text}");
        }
        assert!(!is_fixed_output(b"Derive([("));
    }

    #[test]
    fn a_floating_output_has_no_path_yet() {
        let text = br#"Derive([("out","","r:sha256","")],[],[],"x","y",[],[])"#;
        assert_eq!(outputs_of_derivation(text).unwrap()["out"], None);
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_replaced() {
        let text = b"Derive([(\"out\",\"\",\"\",\"\")],[],[],\"sys\xff\",\"y\",[\"\xc3\"],[(\"a\xff\",\"\\\xff\")])";
        let read = Derivation::parse(text, &drv("a")).unwrap();
        assert_eq!(read.system, "sys\u{fffd}");
    }

    #[test]
    fn a_text_that_is_not_a_derivation_has_no_outputs() {
        for bad in [
            "",
            "{ }",
            "Derive(",
            "Derive([])",
            "Derive([(\"out\",\"x\")]",
            "Derive([(\"out\",\"x",
            "Derive([(\"out\",\"x\\",
        ] {
            assert_eq!(outputs_of_derivation(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let store = tempfile::TempDir::new().unwrap();
        let path = store.path().join(format!("{HASH}-a.drv"));
        let drv = DrvPath::parse(path.to_str().unwrap()).unwrap();
        let kind = |drv| inputs_on_disk(drv).unwrap_err().kind();
        assert_eq!(kind(&drv), io::ErrorKind::NotFound);
        std::fs::write(&path, r#"Derive([("out","","","")],[],[],"x","y",[],[])"#).unwrap();
        assert!(inputs_on_disk(&drv).unwrap().is_empty());
        assert_eq!(Derivation::read(&drv).unwrap().name, "a");
        std::fs::write(&path, "the rest of a crash").unwrap();
        assert_eq!(kind(&drv), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(kind(&drv), io::ErrorKind::InvalidData);
    }

    #[test]
    fn megabytes_of_brackets_do_not_exhaust_the_stack() {
        let text = format!("Derive([],[(\"x\",{}", "(".repeat(4 << 20));
        assert!(Derivation::parse(text.as_bytes(), &drv("a")).is_err());
        let text = format!("Derive({}", "[".repeat(4 << 20));
        assert!(inputs_of_derivation(text.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in r#"(Derive\(|DrvWithVersion\("x",)?[\[\]()",\\a]{0,40}"#, raw in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Derivation::parse(text.as_bytes(), &drv("a"));
            let _ = inputs_of_derivation(text.as_bytes());
            let _ = inputs_of_derivation(&raw);
        }
    }
}
