//! A bit flips in a file of the state machine.

use crate::files::Files;
use crate::leader::{GROUP, Leader, Verdict, open};
use crate::node::Node;
use mareedb_storaged::state::StoreError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tempfile::TempDir;

/// What comes of it.
enum Came {
    Told(String),
    Nothing,
    Wrong(String),
}

impl Node {
    /// The store says so, naming the file, or nobody needed the bit: never a panic, nor another state.
    pub(crate) fn rot(&mut self, image: &Files, at: usize) {
        let files: Vec<(String, usize)> = image
            .paths()
            .into_iter()
            .map(|(path, id)| (path, image.content(id).len()))
            .filter(|(_, len)| *len > 0)
            .collect();
        if files.is_empty() {
            return;
        }
        let number = usize::try_from(self.dice.roll(files.len() as u64)).expect("small");
        let (path, len) = &files[number];
        let bit = usize::try_from(self.dice.roll(*len as u64 * 8)).expect("small");
        let dir = crate::scratch();
        image.make(dir.path());
        let whole = dir.path().join(path);
        let mut bytes = std::fs::read(&whole).expect("a file");
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&whole, bytes).expect("a file");
        let came = catch_unwind(AssertUnwindSafe(|| self.with_rot(&dir))).unwrap_or_else(|_| {
            // lsm-tree asserts some of what it reads, in builds with debug assertions only.
            if cfg!(debug_assertions) {
                Came::Nothing
            } else {
                Came::Wrong("a panic".into())
            }
        });
        match came {
            Came::Told(text) if text.contains("tree-") || text.contains("manifest") => {
                self.met.told += 1
            }
            Came::Told(text) => panic!(
                "{}",
                self.report(&format!(
                    "bit {bit} of {path} after {at} changes: told without a file: {text}"
                ))
            ),
            Came::Nothing => self.met.harmless += 1,
            Came::Wrong(what) => panic!(
                "{}",
                self.report(&format!(
                    "bit {bit} of {path} ({len} bytes) after {at} changes: {what}"
                ))
            ),
        }
    }

    fn with_rot(&mut self, dir: &TempDir) -> Came {
        let store = match open(self.leader.options(dir.path())) {
            Ok(store) => store,
            Err(error) => return Came::Told(error.to_string()),
        };
        let count = Leader::count(&store);
        if !self.ends.contains(&count) {
            return Came::Wrong(format!("SM-1: {count} is the middle of a batch"));
        }
        match self.leader.look(&store, &mut self.dice) {
            Verdict::Fine => {}
            Verdict::Told(text) => return Came::Told(text),
            Verdict::Wrong(what) => return Came::Wrong(what),
        }
        let went_on = || -> Result<(), StoreError> {
            store.apply(GROUP, &self.leader.log[count..], u64::MAX)?;
            store.flush(GROUP)?;
            store.maintain()
        };
        match went_on() {
            Ok(()) => {}
            Err(error) => return Came::Told(error.to_string()),
        }
        match self.leader.look(&store, &mut self.dice) {
            Verdict::Fine => Came::Nothing,
            Verdict::Told(text) => Came::Told(text),
            Verdict::Wrong(what) => Came::Wrong(format!("with the log: {what}")),
        }
    }
}
