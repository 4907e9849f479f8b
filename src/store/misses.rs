//! Paths that Nix calls missing and that are valid by the time we ask: whether to try again.

use crate::paths::FileId;

/// The misses of one try after the other.
///
/// Something has registered the path in between. A path that is the same file at the next miss was never gone, and Nix is believed; another
/// file shows that the collector was at work again. In a store whose files are not here, only one miss is seen.
#[derive(Debug, Default)]
pub struct Misses {
    count: u32,
    file: Option<FileId>,
}

impl Misses {
    /// Counts a miss of a path at which this file is now, if it is worth another try.
    pub fn count(&mut self, file: Option<FileId>) -> bool {
        let is_new = self.count == 0 || file.is_some() && file != self.file;
        if is_new {
            self.count += 1;
            self.file = file;
        }
        is_new
    }

    /// How many were counted.
    #[must_use]
    pub fn counted(&self) -> u32 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_miss_counts_again_where_another_file_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let mut misses = Misses::default();
        assert!(misses.count(None), "the first one");
        assert!(!misses.count(FileId::at(&path)), "nothing is there");
        for count in 2..4 {
            // Beside the old one, whose number it would else be given.
            let new = folder.path().join(format!("new-{count}"));
            fs::write(&new, "").unwrap();
            fs::rename(&new, &path).unwrap();
            assert!(misses.count(FileId::at(&path)));
            assert!(!misses.count(FileId::at(&path)), "the same file");
            assert_eq!(misses.counted(), count);
        }
    }
}
