//! Checking a file that is too large for memory: it is spread over smaller files by object, and these are checked one by one.
//!
//! All that a checker says of an object follows from the object's own operations, so nothing is lost, with one exception: revisions
//! are ordered across objects. For these a few numbers of each operation are kept from all pieces. Lists count as one object
//! where transactions connect them, directly or through others; strict serializability, like linearizability, holds of the whole if it
//! holds of each of these.
//!
//! That the operations of a process do not overlap is seen only where they lie in one piece.

use crate::check::{self, Options, Within, revisions};
use crate::json::{self, ReadError};
use crate::{Call, History, Micro, Operation, Report};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The size of a file that is checked in one piece without being asked to, about: an operation takes twice its line in memory.
const PIECE_BYTES: u64 = 256 << 20;

/// How many pieces a file is best checked in.
///
/// # Errors
/// The file cannot be looked at.
pub fn advised(path: &Path) -> io::Result<usize> {
    let pieces = std::fs::metadata(path)?.len() / PIECE_BYTES + 1;
    Ok(usize::try_from(pieces).unwrap_or(usize::MAX).min(512))
}

/// Runs all checkers over a file in that many pieces, at least 1. The pieces lie in the folder for temporary files and need as much room
/// there as the file has.
///
/// # Errors
/// The file cannot be read, a line is malformed, the operations do not make a history, or a piece cannot be written.
pub fn check(path: &Path, pieces: usize, options: &Options) -> Result<Vec<Report>, ReadError> {
    if pieces <= 1 {
        return Ok(check::all(&json::read(path)?, options));
    }
    let failed = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = tempfile::tempdir().map_err(failed)?;
    let names: Vec<_> = (0..pieces)
        .map(|piece| folder.path().join(piece.to_string()))
        .collect();
    let mut seen = Vec::new();
    let mut files = names
        .iter()
        .map(|name| File::create(name).map(BufWriter::new))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    let lists = folder.path().join("lists");
    let mut unplaced = BufWriter::new(File::create(&lists).map_err(failed)?);
    let mut connected = Connected::default();
    for operation in json::Lines::open(path)? {
        let operation = operation?;
        if let Call::Lists(steps) = &operation.call {
            connected.join(steps);
            json::write(&mut unplaced, &operation).map_err(failed)?;
        } else {
            let file = &mut files[piece(&operation, pieces)];
            json::write(file, &operation).map_err(failed)?;
        }
        if options.revisions_grow == Within::Group {
            seen.extend(revisions::Sight::of(&operation));
        }
    }
    unplaced.flush().map_err(failed)?;
    drop(unplaced);
    // Which lists are connected is known only now.
    for operation in json::Lines::open(&lists)? {
        let operation = operation?;
        if let Call::Lists(steps) = &operation.call {
            let file = &mut files[connected.group(steps) % pieces];
            json::write(file, &operation).map_err(failed)?;
        }
    }
    std::fs::remove_file(&lists).map_err(failed)?;
    for file in &mut files {
        file.flush().map_err(failed)?;
    }
    drop(files);
    // Ordered as a whole below, not piece by piece.
    let apart = match options.revisions_grow {
        Within::Group => Options {
            revisions_grow: Within::Nothing,
            ..*options
        },
        Within::Key | Within::Nothing => *options,
    };
    let mut whole: Vec<Report> = check::all(&History::default(), &apart);
    for name in &names {
        let history = json::read(name).map_err(|error| match error {
            ReadError::History { source, .. } => ReadError::History {
                path: path.to_owned(),
                source,
            },
            other => other,
        })?;
        for (report, more) in whole.iter_mut().zip(check::all(&history, &apart)) {
            report.merge(more);
        }
    }
    if options.revisions_grow == Within::Group
        && let Some(report) = whole
            .iter_mut()
            .find(|report| report.checker == revisions::NAME)
    {
        revisions::ordered("the group", seen, report);
    }
    Ok(whole)
}

/// In which piece an operation is checked.
fn piece(operation: &Operation, pieces: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    operation.call.object().hash(&mut hasher);
    usize::try_from(hasher.finish() % pieces as u64).unwrap_or(0)
}

/// Which lists transactions connect: a union-find.
#[derive(Default)]
struct Connected {
    numbers: HashMap<String, usize>,
    /// For each list another one of its group, itself for one of them.
    parents: Vec<usize>,
}

impl Connected {
    fn number(&mut self, list: &str) -> usize {
        if let Some(number) = self.numbers.get(list) {
            return *number;
        }
        let number = self.parents.len();
        self.numbers.insert(list.to_owned(), number);
        self.parents.push(number);
        number
    }

    fn root(&mut self, mut number: usize) -> usize {
        while self.parents[number] != number {
            // Halves the way for the next one who goes it.
            self.parents[number] = self.parents[self.parents[number]];
            number = self.parents[number];
        }
        number
    }

    /// One transaction touches all these.
    fn join(&mut self, steps: &[Micro]) {
        let mut first = None;
        for step in steps {
            let (Micro::Append { key, .. } | Micro::Read { key }) = step;
            let number = self.number(key);
            let root = self.root(number);
            let first = *first.get_or_insert(root);
            let first = self.root(first);
            self.parents[root] = first;
        }
    }

    /// The group of a transaction that was joined; 0 for one without steps.
    fn group(&mut self, steps: &[Micro]) -> usize {
        let Some(Micro::Append { key, .. } | Micro::Read { key }) = steps.first() else {
            return 0;
        };
        let number = self.number(key);
        self.root(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_connected_through_others() {
        let steps = |keys: &[&str]| -> Vec<Micro> {
            keys.iter()
                .map(|key| Micro::Read {
                    key: (*key).to_owned(),
                })
                .collect()
        };
        let mut connected = Connected::default();
        for keys in [&["a", "b"][..], &["c", "d"], &["e"], &["d", "f", "b"], &[]] {
            connected.join(&steps(keys));
        }
        let groups: Vec<usize> = ["a", "b", "c", "d", "f"]
            .iter()
            .map(|key| connected.group(&steps(&[key])))
            .collect();
        assert!(groups.iter().all(|group| *group == groups[0]), "{groups:?}");
        assert_ne!(connected.group(&steps(&["e"])), groups[0]);
    }
}
