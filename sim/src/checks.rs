//! What must hold at every moment, whatever happens (docs/invariants.md): looked at after every turn of every daemon.

use mareedb_ipc::wire::storage::{EntryBody, LogEntry};
use mareedb_ipc::wire::{GroupId, LogPosition, ReplicaId};
use mareedb_storaged::io::Disk;
use mareedb_storaged::log::Log;
use mareedb_storaged::state::Store;
use std::collections::{BTreeMap, HashMap};

/// A promise that was not kept.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Its id.
    pub id: &'static str,
    /// What was seen.
    pub what: String,
}

/// What is known of an entry that some log held.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    body: u64,
    /// Term of the entry before it, if that was there.
    before: Option<u64>,
}

/// What is known of a group.
#[derive(Default)]
struct Group {
    /// Who led each term.
    leaders: BTreeMap<u64, ReplicaId>,
    /// By index and term. Never iterated.
    entries: HashMap<(u64, u64), Entry>,
    /// What was applied at each index, by some replica.
    committed: BTreeMap<u64, u64>,
    /// The digest of the state after each index. Never iterated.
    digests: HashMap<u64, String>,
}

/// What a node's log was seen to hold.
#[derive(Default)]
struct Seen {
    terms: BTreeMap<u64, u64>,
    applied: Option<u64>,
}

/// All that was seen.
#[derive(Default)]
pub struct Checks {
    groups: BTreeMap<GroupId, Group>,
    seen: BTreeMap<(usize, GroupId), Seen>,
    violations: Vec<Violation>,
    /// Elections that were won.
    pub elections: u64,
    /// Entries that were applied by some replica first.
    pub committed: u64,
}

impl Checks {
    /// A promise was not kept.
    pub fn violated(&mut self, id: &'static str, what: String) {
        self.violations.push(Violation { id, what });
    }

    /// The first promise that was not kept.
    pub fn violation(&self) -> Option<&Violation> {
        self.violations.first()
    }

    /// A replica leads a term, and its log ends there. `true`: that is new.
    pub fn leads(
        &mut self,
        id: GroupId,
        term: u64,
        replica: ReplicaId,
        last: Option<LogPosition>,
    ) -> bool {
        let group = self.groups.entry(id).or_default();
        match group.leaders.get(&term) {
            Some(known) if *known == replica => return false,
            Some(known) => {
                let what = format!("{id}: {known} and {replica} lead term {term}");
                self.violated("RAFT-1", what);
                return false;
            }
            None => {}
        }
        group.leaders.insert(term, replica);
        self.elections += 1;
        // RAFT-7, leader completeness: what was committed before it was elected is in its log.
        if let Some((index, of)) = group.committed.last_key_value()
            && *of < term
            && last.is_none_or(|last| last.index < *index)
        {
            let what = format!(
                "{id}: {replica} leads term {term} with a log up to {last:?}, entry {index} was committed"
            );
            self.violated("RAFT-7", what);
        }
        true
    }

    /// What a node's log holds now.
    pub fn log(&mut self, node: usize, log: &Log, disk: &dyn Disk) {
        for (id, state) in &log.index.groups {
            let seen = self.seen.entry((node, *id)).or_default();
            let ends = |terms: &BTreeMap<u64, u64>| {
                let (index, term) = terms.last_key_value()?;
                Some(LogPosition {
                    term: *term,
                    index: *index,
                })
            };
            if ends(&seen.terms) == state.last {
                continue;
            }
            let first = state.purged.map_or(0, |purged| purged.index + 1);
            seen.terms = seen.terms.split_off(&first);
            seen.terms
                .split_off(&state.last.map_or(0, |last| last.index + 1));
            if let Some(purged) = state.purged {
                seen.terms.insert(purged.index, purged.term);
            }
            let mut new = Vec::new();
            for (index, slot) in state.entries.iter().rev() {
                if seen.terms.get(index) == Some(&slot.position.term) {
                    break;
                }
                new.push((slot.position, slot.cached.as_ref().map(hash)));
            }
            new.reverse();
            let group = self.groups.entry(*id).or_default();
            for (position, cached) in new {
                let body = match cached {
                    Some(body) => body,
                    None => {
                        let plan = log.plan(*id, position.index, position.index + 1, usize::MAX);
                        match plan
                            .fetch(disk)
                            .ok()
                            .and_then(|entries| entries.first().map(hash))
                        {
                            Some(body) => body,
                            // The disk does not give it; that is another matter.
                            None => continue,
                        }
                    }
                };
                let before = position
                    .index
                    .checked_sub(1)
                    .and_then(|before| seen.terms.get(&before).copied());
                seen.terms.insert(position.index, position.term);
                let entry = Entry { body, before };
                let known = group
                    .entries
                    .entry((position.index, position.term))
                    .or_insert(entry);
                known.before = known.before.or(before);
                let same = known.body == body && (before.is_none() || known.before == before);
                if !same {
                    let what =
                        format!("{id}: two entries at {position}, or two histories before it");
                    self.violations.push(Violation { id: "RAFT-2", what });
                }
            }
        }
    }

    /// What a node has applied, and what came of it.
    pub fn applied(&mut self, node: usize, log: &Log, store: &Store) {
        for (id, ..) in store.replicas() {
            let Some((index, digest)) = store.digest(id) else {
                continue;
            };
            let seen = self.seen.entry((node, id)).or_default();
            if seen.applied == Some(index)
                || store
                    .applied(id)
                    .is_none_or(|meta| meta.last_applied.is_none())
            {
                continue;
            }
            let from = seen.applied.map_or(0, |applied| applied + 1);
            seen.applied = Some(index);
            let group = self.groups.entry(id).or_default();
            let known = group.digests.entry(index).or_insert_with(|| digest.clone());
            if *known != digest {
                let what = format!(
                    "{id}: node{} and another differ after entry {index}",
                    node + 1
                );
                self.violations.push(Violation { id: "DET-1", what });
            }
            let Some(state) = log.index.groups.get(&id) else {
                continue;
            };
            if from > index {
                continue;
            }
            for (at, slot) in state.entries.range(from..=index) {
                let term = slot.position.term;
                match group.committed.get(at) {
                    Some(known) if *known == term => {}
                    Some(known) => {
                        let what = format!(
                            "{id}: node{} has applied {}, another has applied term {known} there",
                            node + 1,
                            slot.position
                        );
                        // RAFT-7: it was committed, and has not stayed.
                        self.violations.push(Violation { id: "RAFT-7", what });
                    }
                    None => {
                        group.committed.insert(*at, term);
                        self.committed += 1;
                    }
                }
            }
        }
    }

    /// A node has lost its memory, and its state machine is what its disk holds.
    pub fn forgot(&mut self, node: usize) {
        for (_, seen) in self.seen.iter_mut().filter(|((of, _), _)| *of == node) {
            *seen = Seen::default();
        }
    }
}

fn hash(entry: &LogEntry) -> u64 {
    match &entry.body {
        EntryBody::Blank => 1,
        EntryBody::Normal(bytes) => xxhash_rust::xxh3::xxh3_64_with_seed(bytes, 2),
        EntryBody::Membership(bytes) => xxhash_rust::xxh3::xxh3_64_with_seed(bytes, 3),
    }
}
