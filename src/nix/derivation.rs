//! Reading a `.drv` file: what its outputs are called, and where they will be.

use std::collections::BTreeMap;

use super::StorePath;

/// The outputs of a derivation, read from the text of its `.drv` file: `Derive([("out","/nix/store/…","",""),…`.
///
/// An output whose path is not known before it is built (floating content-addressed) has none. `None`: this is no text of
/// a derivation that we can read.
#[must_use]
pub fn outputs_of_derivation(text: &str) -> Option<BTreeMap<String, Option<StorePath>>> {
    // Output names and paths hold no character that would be escaped in a `.drv`.
    let mut rest = text
        .strip_prefix("Derive([")
        .or_else(|| text.split_once(",[").map(|(_, rest)| rest))?;
    let mut outputs = BTreeMap::new();
    while let Some(output) = rest.strip_prefix("(\"") {
        let (fields, after) = output.split_once("\")")?;
        let [name, path, _algorithm, _hash] = fields.split("\",\"").collect::<Vec<_>>()[..] else {
            return None;
        };
        outputs.insert(name.to_owned(), StorePath::parse(path).ok());
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    (rest.starts_with(']') && !outputs.is_empty()).then_some(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outputs_of_a_drv_are_read_from_its_text() {
        let hash = "w11m5yi1fzmzl7ri7y308xcnn9jyzv3r";
        let text = format!(
            r#"Derive([("dev","/s/store/{hash}-a-dev","",""),("out","/s/store/{hash}-a","r:sha256","0f")],[("/s/x.drv",["out"])],[],"x86_64-linux","/bin/sh",["-c","[(\"x\""],[("name","a")])"#
        );
        let outputs = outputs_of_derivation(&text).unwrap();
        assert_eq!(outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
        assert_eq!(
            outputs["out"].as_ref().unwrap().as_str(),
            format!("/s/store/{hash}-a")
        );
    }

    #[test]
    fn a_floating_output_has_no_path_yet() {
        let text = r#"Derive([("out","","r:sha256","")],[],[],"x","y",[],[])"#;
        assert_eq!(outputs_of_derivation(text).unwrap()["out"], None);
    }

    #[test]
    fn what_is_no_derivation_has_no_outputs() {
        for bad in [
            "",
            "{ }",
            "Derive(",
            "Derive([])",
            "Derive([(\"out\",\"x\")]",
        ] {
            assert_eq!(outputs_of_derivation(bad), None, "{bad}");
        }
    }
}
