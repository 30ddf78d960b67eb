//! Histories as JSON lines: one [`Operation`] a line, in any order.

use crate::{History, HistoryError, Operation};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Why a file is not a history.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// A line is not an operation.
    #[error("{}:{line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The operations do not make a history.
    #[error("{}: {source}", path.display())]
    History {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HistoryError,
    },
}

/// Writes one line.
///
/// # Errors
/// Those of the writer.
pub fn write(to: &mut impl Write, operation: &Operation) -> io::Result<()> {
    serde_json::to_writer(&mut *to, operation)?;
    to.write_all(b"\n")
}

/// Reads a file line by line, in little memory. Empty lines are passed over.
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    line: u64,
    text: String,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Lines, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Lines {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 20, file),
            line: 0,
            text: String::new(),
        })
    }

    fn read(&mut self) -> Result<Option<Operation>, ReadError> {
        loop {
            self.text.clear();
            let bytes = self
                .file
                .read_line(&mut self.text)
                .map_err(|source| ReadError::Io {
                    path: self.path.clone(),
                    source,
                })?;
            if bytes == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.text.trim().is_empty() {
                continue;
            }
            return serde_json::from_str(&self.text)
                .map(Some)
                .map_err(|source| ReadError::Line {
                    path: self.path.clone(),
                    line: self.line,
                    source,
                });
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Operation, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Reads a whole file.
///
/// # Errors
/// The file cannot be read, a line is malformed, or the operations do not make a history.
pub fn read(path: &Path) -> Result<History, ReadError> {
    let operations: Vec<Operation> = Lines::open(path)?.collect::<Result<_, _>>()?;
    History::new(operations).map_err(|source| ReadError::History {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Call, Consistency, Micro, Outcome};
    use std::collections::BTreeMap;

    fn sample() -> Vec<Operation> {
        let get = |consistency| Call::Get {
            key: "k \"\n".to_owned(),
            consistency,
        };
        let pairs = [
            (
                get(Consistency::At(u64::MAX)),
                Outcome::Ok(Answer::Value {
                    value: Some("ä".to_owned()),
                    revision: Some(u64::MAX - 1),
                }),
            ),
            (
                get(Consistency::Stale),
                Outcome::Ok(Answer::Value {
                    value: None,
                    revision: None,
                }),
            ),
            (
                Call::Lists(vec![
                    Micro::Append {
                        key: "x".to_owned(),
                        element: 1,
                    },
                    Micro::Read {
                        key: "x".to_owned(),
                    },
                ]),
                Outcome::Ok(Answer::Lists {
                    results: vec![None, Some(vec![1])],
                    revision: Some(1 << 60),
                }),
            ),
            (
                Call::BankOpen {
                    bank: "b".to_owned(),
                    accounts: BTreeMap::from([("a".to_owned(), 10)]),
                },
                Outcome::Failed("NO_QUORUM".to_owned()),
            ),
            (
                Call::Increment {
                    counter: "c".to_owned(),
                    amount: 2,
                },
                Outcome::Unknown("OUTCOME_UNKNOWN".to_owned()),
            ),
        ];
        let mut at = 0;
        pairs
            .into_iter()
            .map(|(call, outcome)| {
                at += 10;
                Operation {
                    process: 1,
                    node: "a".to_owned(),
                    start_ns: at,
                    end_ns: Some(at + 5),
                    call,
                    outcome,
                }
            })
            .collect()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("h.jsonl");
        let mut bytes = Vec::new();
        for operation in sample() {
            write(&mut bytes, &operation).expect("written");
        }
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(read(&path).expect("a history").operations(), sample());
        let text = String::from_utf8(bytes).expect("text");
        assert!(
            text.contains(r#""revision":"18446744073709551614""#),
            "{text}"
        );
    }

    #[test]
    fn a_malformed_line_is_told_by_file_and_number() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("h.jsonl");
        let mut bytes = Vec::new();
        write(&mut bytes, &sample()[0]).expect("written");
        bytes.extend_from_slice(b"\n{\"process\":1,\n");
        std::fs::write(&path, &bytes).expect("written");
        let error = read(&path).expect_err("a malformed line").to_string();
        assert!(
            error.starts_with(&format!("{}:3: ", path.display())),
            "{error}"
        );
        std::fs::write(&path, b"{\"proces\":1}\n").expect("written");
        let error = read(&path).expect_err("an unknown field").to_string();
        assert!(error.contains("proces"), "{error}");
    }
}
