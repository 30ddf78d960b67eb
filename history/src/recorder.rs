//! The recorder: many clients, one clock, one history.

use crate::json;
use crate::{Call, History, HistoryError, Operation, Outcome};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Takes down what clients do; cheap to clone, every clone writes to the same history.
///
/// An operation is written when its outcome is known. A [`Pending`] that is dropped without an outcome (its task was
/// cancelled, its client died) is written as never answered, so a history is whole once no client is left.
#[derive(Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    sink: Mutex<Sink>,
}

struct Sink {
    /// What is kept in memory; `None` when the history only goes to a file.
    kept: Option<Vec<Operation>>,
    file: Option<BufWriter<File>>,
    /// The first error of the file: reported at the end, since a client has nothing to do with it.
    error: Option<io::Error>,
    written: u64,
}

impl Recorder {
    /// A recorder that keeps the history in memory. Its clock starts now.
    pub fn in_memory() -> Recorder {
        Recorder::with_clock(real_clock(), Some(Vec::new()), None)
    }

    /// A recorder that writes each operation to a new file of JSON lines and keeps none in memory. Its clock starts now.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn to_file(path: &Path) -> io::Result<Recorder> {
        let file = BufWriter::new(File::create(path)?);
        Ok(Recorder::with_clock(real_clock(), None, Some(file)))
    }

    /// A recorder in memory whose clock is `now`, in ns: for a simulation with a time of its own. The clock must never go
    /// backwards.
    pub fn with_time(now: impl Fn() -> u64 + Send + Sync + 'static) -> Recorder {
        Recorder::with_clock(Box::new(now), Some(Vec::new()), None)
    }

    fn with_clock(
        clock: Box<dyn Fn() -> u64 + Send + Sync>,
        kept: Option<Vec<Operation>>,
        file: Option<BufWriter<File>>,
    ) -> Recorder {
        Recorder {
            shared: Arc::new(Shared {
                clock,
                sink: Mutex::new(Sink {
                    kept,
                    file,
                    error: None,
                    written: 0,
                }),
            }),
        }
    }

    /// Now, in ns on the history's clock.
    pub fn now_ns(&self) -> u64 {
        (self.shared.clock)()
    }

    /// An operation begins. Call this before the request leaves, with one operation at a time for each process.
    pub fn start(&self, process: u64, node: impl Into<String>, call: Call) -> Pending {
        let node = node.into();
        Pending {
            recorder: self.clone(),
            operation: Some(Operation {
                process,
                node,
                start_ns: self.now_ns(),
                end_ns: None,
                call,
                outcome: Outcome::Unknown("never answered".to_owned()),
            }),
        }
    }

    /// How many operations have been written so far.
    pub fn written(&self) -> u64 {
        self.sink().written
    }

    /// Puts everything that was written so far on its way to the file.
    ///
    /// # Errors
    /// The first error that the file had, once.
    pub fn flush(&self) -> io::Result<()> {
        let mut sink = self.sink();
        if let Some(error) = sink.error.take() {
            return Err(error);
        }
        match &mut sink.file {
            Some(file) => file.flush(),
            None => Ok(()),
        }
    }

    /// Everything that was kept in memory, as a history; what is still pending is not in it. Empties the memory.
    ///
    /// # Errors
    /// What was recorded is no history: see [`History::new`].
    pub fn take(&self) -> Result<History, HistoryError> {
        let kept = self.sink().kept.as_mut().map(std::mem::take);
        History::new(kept.unwrap_or_default())
    }

    fn write(&self, operation: Operation) {
        let mut sink = self.sink();
        sink.written += 1;
        let Sink {
            kept, file, error, ..
        } = &mut *sink;
        if let Some(file) = file
            && error.is_none()
            && let Err(why) = json::write(file, &operation)
        {
            *error = Some(why);
        }
        if let Some(kept) = kept {
            kept.push(operation);
        }
    }

    /// The sink also after a panic of another client's thread: each write to it is whole or has left an error.
    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.shared
            .sink
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn real_clock() -> Box<dyn Fn() -> u64 + Send + Sync> {
    let origin = Instant::now();
    Box::new(move || u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// An operation whose outcome is not known yet.
#[must_use = "dropped, it counts as never answered"]
pub struct Pending {
    recorder: Recorder,
    operation: Option<Operation>,
}

impl Pending {
    /// The outcome is known now. Call this after the whole answer has arrived.
    ///
    /// # Panics
    /// The answer is not one to this call: the recording program is wrong.
    pub fn finish(mut self, outcome: Outcome) {
        let end_ns = self.recorder.now_ns();
        if let Some(mut operation) = self.operation.take() {
            if let Outcome::Ok(answer) = &outcome {
                assert!(
                    operation.call.takes(answer),
                    "{answer:?} is no answer to {:?}",
                    operation.call
                );
            }
            operation.end_ns = Some(end_ns);
            operation.outcome = outcome;
            self.recorder.write(operation);
        }
    }

    /// The call, as it is recorded.
    pub fn call(&self) -> Option<&Call> {
        self.operation.as_ref().map(|operation| &operation.call)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            self.recorder.write(operation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Consistency};

    fn put(key: &str, value: &str) -> Call {
        Call::Put {
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn what_is_dropped_was_never_answered() {
        let recorder = Recorder::in_memory();
        let first = recorder.start(1, "a", put("k", "1"));
        drop(recorder.start(2, "b", put("k", "2")));
        first.finish(Outcome::Ok(Answer::Written { revision: Some(7) }));
        let history = recorder.take().expect("a history");
        let operations = history.operations();
        assert_eq!(operations.len(), 2);
        assert_eq!(operations[0].write_revision(), Some(7));
        assert!(operations[0].end_ns >= Some(operations[0].start_ns));
        assert_eq!(operations[1].end_ns, None);
        assert!(matches!(operations[1].outcome, Outcome::Unknown(_)));
        assert_eq!(recorder.written(), 2);
    }

    #[test]
    fn clients_on_many_threads_share_a_clock_and_a_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.jsonl");
        let recorder = Recorder::to_file(&path).expect("a file");
        std::thread::scope(|scope| {
            for process in 0..8 {
                let recorder = recorder.clone();
                scope.spawn(move || {
                    for n in 0..100 {
                        let call = put("k", &format!("{process}-{n}"));
                        recorder
                            .start(process, "a", call)
                            .finish(Outcome::Unknown("lost".to_owned()));
                    }
                });
            }
        });
        recorder.flush().expect("written");
        let history = json::read(&path).expect("a history");
        assert_eq!(history.operations().len(), 800);
        assert!(
            history
                .operations()
                .is_sorted_by_key(|operation| operation.start_ns)
        );
    }

    #[test]
    #[should_panic(expected = "is no answer to")]
    fn an_answer_to_another_call_is_a_fault_of_the_recording_program() {
        let call = Call::Get {
            key: "k".to_owned(),
            consistency: Consistency::Linearizable,
        };
        Recorder::in_memory()
            .start(1, "a", call)
            .finish(Outcome::Ok(Answer::Written { revision: None }));
    }
}
