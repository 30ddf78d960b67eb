//! Checking a file that is too large for memory: it is spread over smaller files by object, and these are checked one by one.
//!
//! All that a checker says of an object follows from the object's own operations, so nothing is lost, with one exception: revisions
//! are ordered across objects. For these a few numbers of each operation are kept from all pieces. All list transactions are one
//! object: they lie in one piece, whatever their number.

use crate::check::{self, Options, Within, revisions};
use crate::json::{self, ReadError};
use crate::{History, Operation, Report};
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
    for operation in json::Lines::open(path)? {
        let operation = operation?;
        let file = &mut files[piece(&operation, pieces)];
        json::write(file, &operation).map_err(failed)?;
        if options.revisions_grow == Within::Group {
            seen.extend(revisions::Sight::of(&operation));
        }
    }
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
