//! Many paths, divided among commands: the arguments of one have a limit.

use crate::nix::StorePath;

/// How many bytes of paths one command gets. Arguments and environment together may have two MiB on Linux, one on macOS.
const ARGUMENTS_AT_MOST: usize = 512 << 10;

/// As many paths at once as one command can take.
pub(super) fn batches<'a, 'p>(
    paths: &'a [&'p StorePath],
) -> impl Iterator<Item = &'a [&'p StorePath]> {
    let mut rest = paths;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|path| {
            bytes += path.as_str().len() + 9;
            bytes <= ARGUMENTS_AT_MOST
        });
        let (batch, others) = rest.split_at(fits.count());
        rest = others;
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_paths_go_into_a_command_as_it_takes() {
        let path = StorePath::parse(&format!("/nix/store/{}-x", "0".repeat(32))).unwrap();
        let paths = vec![&path; 50_000];
        let sizes: Vec<usize> = batches(&paths).map(<[_]>::len).collect();
        assert!(sizes.len() > 1, "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 50_000);
        assert!(
            sizes
                .iter()
                .all(|size| size * (path.as_str().len() + 9) <= ARGUMENTS_AT_MOST)
        );
        assert_eq!(batches(&[]).count(), 0);
    }
}
