//! A state machine whose node dies again and again, and the images that this leaves.

use crate::calls;
use crate::files::{Dice, Files, Op};
use crate::leader::{GROUP, Leader, Verdict, open};
use crate::recorder::{History, Recorder, Skips, Trouble};
use bytes::Bytes;
use mareedb_ipc::wire::RandomId;
use mareedb_storaged::state::{Store, StoreError};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

/// Images of each life that are looked at beside the one that it goes on from.
const IMAGES: u64 = 3;

/// What was known after so many changes of the files.
#[derive(Clone, Debug)]
struct Fact {
    at: usize,
    /// So many entries were said to be durable: the log before may be purged (STO-PURGE).
    least: usize,
    /// So many were being applied.
    most: usize,
}

/// What a run has met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    /// Images that were opened.
    pub images: u64,
    /// Those with something that was not durable.
    pub lost: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Snapshots that were installed.
    pub installed: u64,
    /// Bits that flipped and that a store told of.
    pub told: u64,
    /// Bits that flipped and that nobody needed.
    pub harmless: u64,
}

/// See the module.
pub struct Node {
    pub(crate) dice: Dice,
    pub(crate) leader: Leader,
    history: History,
    facts: Vec<Fact>,
    /// Where batches ended: nothing between is a state that there was (SM-1).
    pub(crate) ends: BTreeSet<usize>,
    journal: Vec<String>,
    pub(crate) met: Met,
    skips: Option<Skips>,
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Io(io) if io.kind() == ErrorKind::StorageFull)
}

fn done_so_far() -> usize {
    calls::with(|recorder| recorder.history.ops.len()).expect("a thread that is recorded")
}

impl Node {
    /// A node without any file.
    pub fn new(seed: u64, skips: Option<Skips>) -> Node {
        let mut dice = Dice::new(seed);
        let entries = 20 + dice.roll(30);
        let leader = Leader::new(&mut dice, entries);
        Node {
            dice,
            leader,
            history: History::new(),
            facts: Vec::new(),
            ends: BTreeSet::from([0]),
            journal: Vec::new(),
            met: Met::default(),
            skips,
        }
    }

    fn note(&mut self, what: String) {
        self.journal.push(what);
    }

    fn least(&self, at: usize) -> usize {
        let facts = self.facts.iter().filter(|fact| fact.at <= at);
        facts.map(|fact| fact.least).max().unwrap_or(0)
    }

    fn most(&self, at: usize) -> usize {
        let facts = self.facts.iter().filter(|fact| fact.at <= at);
        facts.map(|fact| fact.most).max().unwrap_or(0)
    }

    fn fact(&mut self, least: usize, most: usize) {
        let at = done_so_far();
        self.facts.push(Fact { at, least, most });
    }

    /// A life from what the last one has left, some images of it, and its end.
    pub fn live(&mut self) {
        let dir = crate::scratch();
        let mut recorder = Recorder::new(dir.path(), self.history.clone());
        recorder.skips = self.skips;
        if self.dice.roll(3) == 0 {
            let trouble = Trouble {
                after: self.dice.roll(80),
                calls: 1 + self.dice.roll(6),
                errno: [libc::ENOSPC, libc::EIO][usize::from(self.dice.roll(2) == 0)],
            };
            self.note(format!("{trouble:?}"));
            recorder.trouble = Some(trouble);
        }
        let before = self.history.ops.len();
        let (recorder, ()) = calls::record(recorder, || self.work(dir.path()));
        self.met.failed += recorder.failed;
        self.history = recorder.done();
        let calls = self.history.ops.len() - before;
        for _ in 0..IMAGES {
            let at = self.moment(before, calls);
            let image = self.image(at);
            self.recovers(&image, at);
            if self.skips.is_none() && self.dice.roll(2) == 0 {
                self.rot(&image, at);
            }
        }
        let at = self.moment(before, calls);
        let (least, most) = (self.least(at), self.most(at));
        self.facts.clear();
        if self.dice.roll(3) == 0 {
            self.note(format!("killed after {at} changes"));
            self.history.ops.truncate(at);
            self.facts.push(Fact { at, least, most });
        } else {
            self.note(format!("crash after {at} changes"));
            self.history = History::over(self.history.at(at).crash(&mut self.dice));
            self.facts.push(Fact { at: 0, least, most });
        }
    }

    /// A moment of the last life: any, or the one before a sync, when most is at stake.
    fn moment(&mut self, from: usize, calls: usize) -> usize {
        let at = from + usize::try_from(self.dice.roll(calls as u64 + 1)).expect("small");
        let syncs = self.dice.roll(4);
        let later = self.history.ops[at..].iter().enumerate();
        let mut later = later.filter(|(_, op)| matches!(op, Op::Sync(_)));
        match syncs.checked_sub(1) {
            None => at,
            Some(skip) => {
                let next = later.nth(usize::try_from(skip).expect("small"));
                at + next.map_or(0, |(ahead, _)| ahead)
            }
        }
    }

    fn image(&mut self, at: usize) -> Files {
        let files = self.history.at(at);
        let image = files.crash(&mut self.dice);
        let differs = files
            .paths()
            .iter()
            .any(|(_, id)| files.content(*id) != image.content(*id));
        self.met.images += 1;
        self.met.lost += u64::from(differs || files.paths() != image.paths());
        image
    }

    /// What storaged does with a store, until its process ends.
    fn work(&mut self, dir: &Path) {
        let store = match open(self.leader.options(dir)) {
            Ok(store) => store,
            Err(error @ (StoreError::Io(_) | StoreError::Unsettled(_))) => {
                self.note(format!("open: {error}"));
                return;
            }
            Err(error) => panic!(
                "{}",
                self.report(&format!("SM-2: a crash alone is no damage: {error}"))
            ),
        };
        let count = self.check(&store, self.history.ops.len());
        self.note(format!("open at {count}"));
        self.fact(count, count);
        for _ in 0..self.dice.roll(16) {
            if let Err(error) = self.step(&store) {
                self.note(format!("{error}"));
                if !is_full(&error) && self.dice.roll(2) == 0 {
                    return;
                }
                // Nothing is lost: the log has it, and it is tried again; or an answer says so, and somebody else ends the process.
                match self.leader.look(&store, &mut self.dice) {
                    Verdict::Fine => {}
                    other => panic!("{}", self.report(&format!("on a full disk: {other:?}"))),
                }
            }
        }
    }

    fn step(&mut self, store: &Store) -> Result<(), StoreError> {
        match self.dice.roll(8) {
            0..=3 => self.apply(store),
            4 | 5 => {
                let meta = store.flush(GROUP)?;
                let at = meta.last_applied.map_or(0, |at| at.index + 1);
                self.note(format!("flushed {at}"));
                let at = usize::try_from(at).expect("small");
                self.fact(at, at);
                Ok(())
            }
            6 => {
                self.note("maintain".into());
                store.maintain()
            }
            _ => self.install(store),
        }
    }

    fn apply(&mut self, store: &Store) -> Result<(), StoreError> {
        let from = Leader::count(store);
        let room = self.leader.log.len() - from;
        let upto = from + usize::try_from(self.dice.roll(6)).expect("small").min(room);
        self.ends.insert(upto);
        self.fact(0, upto);
        self.note(format!("apply {from} to {upto}"));
        store.apply(GROUP, &self.leader.log[from..upto], u64::MAX)?;
        Ok(())
    }

    /// A snapshot of the leader replaces the state.
    fn install(&mut self, store: &Store) -> Result<(), StoreError> {
        let end = self.leader.log.len();
        let (snapshot, meta) = self.leader.store.open_snapshot(GROUP)?;
        let install = RandomId(u128::from(self.dice.roll(u64::MAX)));
        self.note("a snapshot begins".into());
        store.begin_install(GROUP, install)?;
        let mut cursor = Bytes::new();
        for number in 0.. {
            let chunk = self.leader.store.read_snapshot(snapshot, &cursor, 4000)?;
            store.install_chunk(install, number, &chunk)?;
            if self.dice.roll(40) == 0 {
                // Its sender is gone: the next transfer takes its place, or the next start removes what is left of it.
                return Ok(());
            }
            if self.dice.roll(8) == 0 {
                self.apply(store)?;
            }
            match chunk.next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        self.leader.store.close_snapshot(snapshot);
        self.ends.insert(end);
        self.fact(0, end);
        self.note("a snapshot is put in force".into());
        let told = store.finish_install(GROUP, install, &meta)?;
        assert!(told.last_applied >= meta.last_applied);
        self.fact(end, end);
        self.met.installed += 1;
        Ok(())
    }

    /// The state is one that there was, with all that was said to be durable.
    fn check(&mut self, store: &Store, at: usize) -> usize {
        let count = Leader::count(store);
        let (least, most) = (self.least(at), self.most(at));
        if count < least || count > most {
            panic!(
                "{}",
                self.report(&format!(
                    "DUR-2: {count} entries are applied, {least} were durable, {most} begun"
                ))
            );
        }
        if !self.ends.contains(&count) {
            panic!(
                "{}",
                self.report(&format!("SM-1: {count} is the middle of a batch"))
            );
        }
        match self.leader.look(store, &mut self.dice) {
            Verdict::Fine => count,
            other => panic!("{}", self.report(&format!("{other:?}"))),
        }
    }

    /// A store over an image is what it must be, and comes to the same end with the log.
    fn recovers(&mut self, image: &Files, at: usize) {
        let dir = crate::scratch();
        image.make(dir.path());
        let store = match open(self.leader.options(dir.path())) {
            Ok(store) => store,
            Err(error) => panic!(
                "{}",
                self.report(&format!("SM-2: image after {at} changes: {error}"))
            ),
        };
        self.note(format!("image after {at} changes"));
        let count = self.check(&store, at);
        store
            .apply(GROUP, &self.leader.log[count..], u64::MAX)
            .expect("the log is there");
        store
            .flush(GROUP)
            .and_then(|_| store.maintain())
            .expect("a disk without faults");
        match self.leader.look(&store, &mut self.dice) {
            Verdict::Fine => {}
            other => panic!(
                "{}",
                self.report(&format!(
                    "image after {at} changes, with the log: {other:?}"
                ))
            ),
        }
        assert_eq!(Leader::count(&store), self.leader.log.len());
        self.journal.pop();
    }

    /// What is wrong, with all that was done.
    pub(crate) fn report(&self, what: &str) -> String {
        let ops = self.history.ops.iter().map(crate::files::Op::brief);
        let from = self.history.ops.len().saturating_sub(60);
        let ops: Vec<String> = ops.skip(from).collect();
        format!(
            "{what}\nsteps:\n  {}\nfacts: {:?}\nthe last changes, from {from} on:\n  {}",
            self.journal.join("\n  "),
            self.facts,
            ops.join("\n  ")
        )
    }
}
