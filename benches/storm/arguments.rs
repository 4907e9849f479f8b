//! The command line of the storm.

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Arguments {
    names: Vec<String>,
    /// How long all parts may take together, in minutes.
    pub(crate) minutes: f64,
    /// The seed of the first trial; each trial has the next one.
    pub(crate) seed: u64,
    /// The most trials of each part.
    pub(crate) trials: Option<usize>,
}

impl Arguments {
    /// Reads `[NAME]… [--minutes N] [--seed N] [--trials N]`.
    pub(crate) fn read(
        arguments: impl IntoIterator<Item = String>,
        known: &[&str],
    ) -> Result<Self, String> {
        let mut read = Self {
            names: Vec::new(),
            minutes: 25.0,
            seed: 1,
            trials: None,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{argument} needs a number"))
            };
            let no_number = |value: &str| format!("{argument}: {value:?} is not such a number");
            match argument.as_str() {
                // Cargo adds it.
                "--bench" => {}
                "--minutes" => {
                    let value = value()?;
                    let minutes = value.parse().ok().filter(|it| (0.0..1e6).contains(it));
                    read.minutes = minutes.ok_or_else(|| no_number(&value))?;
                }
                "--seed" => {
                    let value = value()?;
                    read.seed = value.parse().map_err(|_| no_number(&value))?;
                }
                "--trials" => {
                    let value = value()?;
                    read.trials = Some(value.parse().map_err(|_| no_number(&value))?);
                }
                name if known.contains(&name) => read.names.push(argument),
                other => {
                    let known = known.join(", ");
                    return Err(format!("{other:?} is neither an option nor one of {known}"));
                }
            }
        }
        Ok(read)
    }

    /// Whether this part is run: where none is named, all are.
    pub(crate) fn names(&self, part: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == part)
    }
}
