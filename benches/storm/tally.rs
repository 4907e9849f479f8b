//! What was tried and how it ended, as a table; and every wrong outcome, with what repeats it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// The counts of one part.
#[derive(Debug)]
pub(crate) struct Tally {
    part: &'static str,
    columns: &'static [&'static str],
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    rows: BTreeMap<String, BTreeMap<&'static str, usize>>,
    notes: Vec<String>,
    wrong: usize,
}

/// How many lines of a wrong outcome are shown at once.
const SHOWN_AT_MOST: usize = 20;

/// The columns that every table begins and ends with.
const TRIED: &str = "tried";
const WRONG: &str = "wrong";

impl Tally {
    /// Nothing yet. `columns` are those between the number of tries and that of wrong outcomes.
    pub(crate) fn new(part: &'static str, columns: &'static [&'static str]) -> Self {
        Self {
            part,
            columns,
            counted: Mutex::default(),
        }
    }

    /// One more try in this row.
    pub(crate) fn tried(&self, row: &str) {
        self.add(row, TRIED, 1);
    }

    /// One more of what this column counts.
    pub(crate) fn count(&self, row: &str, column: &'static str) {
        self.add(row, column, 1);
    }

    /// More of what this column counts.
    pub(crate) fn add(&self, row: &str, column: &'static str, number: usize) {
        assert!(
            [TRIED, WRONG].contains(&column) || self.columns.contains(&column),
            "the table of {} has no column {column:?}",
            self.part
        );
        let mut counted = self.counted.lock().unwrap();
        let row = counted.rows.entry(row.to_owned()).or_default();
        *row.entry(column).or_default() += number;
    }

    /// How many there are in a column, of the rows whose names have this part.
    pub(crate) fn total(&self, rows: &str, column: &'static str) -> usize {
        let counted = self.counted.lock().unwrap();
        let rows = counted.rows.iter().filter(|(row, _)| row.contains(rows));
        rows.filter_map(|(_, row)| row.get(column)).sum()
    }

    /// The number of tries, of the rows whose names have this part.
    pub(crate) fn tries(&self, rows: &str) -> usize {
        self.total(rows, TRIED)
    }

    /// A line below the table.
    pub(crate) fn note(&self, line: String) {
        self.counted.lock().unwrap().notes.push(line);
    }

    /// A wrong outcome in this row: shown at once, with the seed of its trial and a file with the whole log.
    pub(crate) fn wrong(&self, row: &str, seed: u64, what: &str, log: &str) {
        self.add(row, WRONG, 1);
        let number = {
            let mut counted = self.counted.lock().unwrap();
            counted.wrong += 1;
            counted.wrong
        };
        let file = logs().join(format!("{}-{seed}-{number}.log", self.part));
        let written = fs::create_dir_all(logs())
            .and_then(|()| fs::write(&file, format!("{row}: {what}\n\n{log}\n")));
        let first = what.lines().next().unwrap_or_default();
        eprintln!(
            "WRONG: {}: {row}: {first}\n  again: script/storm {} --seed {seed} --trials 1\n  log: {}",
            self.part,
            self.part,
            match written {
                Ok(()) => file.display().to_string(),
                Err(error) => format!("not written: {error}"),
            }
        );
        // What is read where the file is not: in the log of another machine.
        let said = log.lines().filter(|line| line.starts_with("eval-once: "));
        for line in said.take(SHOWN_AT_MOST) {
            eprintln!("  {line}");
        }
    }

    /// A wrong outcome of what a row compares us with: only counted.
    pub(crate) fn wrong_elsewhere(&self, row: &str) {
        self.add(row, WRONG, 1);
    }

    /// How many wrong outcomes were ours.
    pub(crate) fn wrong_outcomes(&self) -> usize {
        self.counted.lock().unwrap().wrong
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let counted = self.counted.lock().unwrap();
        let columns: Vec<&str> = [TRIED]
            .into_iter()
            .chain(self.columns.iter().copied())
            .chain([WRONG])
            .collect();
        let width = counted.rows.keys().map(|row| row.chars().count()).max();
        let width = width.unwrap_or_default();
        print!("{:<width$}", "");
        for column in &columns {
            print!("  {column:>7}");
        }
        println!();
        for (row, counts) in &counted.rows {
            print!("{row:<width$}");
            for column in &columns {
                let number = counts.get(column).copied().unwrap_or_default();
                print!("  {number:>0$}", column.chars().count().max(7));
            }
            println!();
        }
        for note in &counted.notes {
            println!("{note}");
        }
    }
}

/// Where logs of wrong outcomes are kept: in cargo's folder for such files.
fn logs() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("storm")
}
