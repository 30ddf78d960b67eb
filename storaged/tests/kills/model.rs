//! What the node must hold, and a load that changes it.

use super::host::{Bootstrapped, Host};
use bytes::Bytes;
use mareedb_ipc::wire::storage::{
    EntryBody, KeyRange, LogEntry, NodeRecord, StorageAnswer, StorageRequest, ToStorage,
};
use mareedb_ipc::wire::{FIRST_DATA_GROUP, GroupId, LogPosition, META_GROUP, ReplicaId, Vote};
use std::collections::BTreeMap;

pub const GROUPS: [GroupId; 2] = [META_GROUP, FIRST_DATA_GROUP];

/// splitmix64
pub struct Dice(pub u64);
impl Dice {
    pub fn roll(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % bound.max(1)
    }
}

/// What an entry must hold. Memberships are bytes that storaged does not look into.
pub fn entry(position: LogPosition) -> LogEntry {
    let seed = position.index.wrapping_mul(31).wrapping_add(position.term);
    let len = usize::try_from(seed * seed % 5000).unwrap();
    LogEntry {
        position,
        body: EntryBody::Membership(Bytes::from(vec![seed.to_le_bytes()[0]; len])),
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    pub vote: Option<Vote>,
    pub purged: Option<LogPosition>,
    pub last: Option<LogPosition>,
    pub committed: Option<LogPosition>,
    /// Terms by index.
    pub terms: BTreeMap<u64, u64>,
    /// Asked to be applied: never truncated.
    pub applying: Option<LogPosition>,
    /// May be purged.
    pub persisted: Option<LogPosition>,
}

impl Group {
    fn at(&self, index: u64) -> Option<LogPosition> {
        let term = *self.terms.get(&index)?;
        Some(LogPosition { term, index })
    }
}

pub struct Model {
    pub dice: Dice,
    pub groups: BTreeMap<GroupId, Group>,
    pub records: BTreeMap<String, Bytes>,
    term: u64,
    pub sent: u64,
    building: BTreeMap<GroupId, bool>,
}

impl Model {
    pub fn new(seed: u64) -> Model {
        Model {
            dice: Dice(seed),
            groups: BTreeMap::new(),
            records: BTreeMap::new(),
            term: 1,
            sent: 0,
            building: BTreeMap::new(),
        }
    }

    pub fn create(&mut self, host: &mut Host) {
        for group in GROUPS {
            host.send(&ToStorage::CreateReplica {
                group,
                replica: ReplicaId(7),
                range: KeyRange::whole(),
            });
            self.groups.insert(group, Group::default());
        }
        host.publish();
    }

    /// Appends entries; `false`: there is no room now.
    pub fn append(&mut self, host: &mut Host, group: GroupId) -> bool {
        let count = 1 + self.dice.roll(8);
        let from = self.groups[&group].last.map_or(0, |last| last.index + 1);
        let positions: Vec<LogPosition> = (from..from + count)
            .map(|index| LogPosition {
                term: self.term,
                index,
            })
            .collect();
        let message = ToStorage::Append {
            group,
            entries: positions.iter().copied().map(entry).collect(),
        };
        if !host.try_send(&message) {
            return false;
        }
        let state = self.groups.get_mut(&group).unwrap();
        for position in positions {
            state.terms.insert(position.index, position.term);
            state.last = Some(position);
        }
        true
    }

    /// One operation or request; `false`: there is no room now.
    pub fn step(&mut self, host: &mut Host) -> bool {
        self.hear(host);
        let group = GROUPS[usize::from(self.dice.roll(6) != 0)];
        let dice = self.dice.roll(40);
        let sent = match dice {
            0 => self.vote(host, group),
            1 => self.truncate(host, group),
            2 => {
                let name = format!("record-{}", self.dice.roll(3));
                let value = Bytes::from(self.dice.roll(u64::MAX).to_le_bytes().to_vec());
                let record = NodeRecord {
                    name: name.clone(),
                    value: value.clone(),
                };
                let sent = host.try_send(&ToStorage::SaveNodeRecord { record });
                if sent {
                    self.records.insert(name, value);
                }
                sent
            }
            3..=6 => self.apply(host, group),
            7 if !self.building.get(&group).copied().unwrap_or(false) => {
                let sent = host.try_ask(StorageRequest::BuildSnapshot { group });
                self.building.insert(group, sent);
                sent
            }
            8 => self.purge(host),
            _ => self.append(host, group),
        };
        self.sent += u64::from(sent);
        sent
    }

    fn vote(&mut self, host: &mut Host, group: GroupId) -> bool {
        self.term += 1;
        let vote = Vote {
            term: self.term,
            voted_for: Some(ReplicaId(7)),
            committed: false,
        };
        let sent = host.try_send(&ToStorage::SaveVote { group, vote });
        if sent {
            self.groups.get_mut(&group).unwrap().vote = Some(vote);
        }
        sent
    }

    fn truncate(&mut self, host: &mut Host, group: GroupId) -> bool {
        let state = &self.groups[&group];
        let least = state.applying.or(state.purged);
        let (Some(least), Some(end)) = (least, state.last) else {
            return true;
        };
        if end.index <= least.index {
            return true;
        }
        let to = least.index + 1 + self.dice.roll(end.index - least.index);
        let last = self.groups[&group].at(to);
        let sent = host.try_send(&ToStorage::Truncate { group, last });
        if sent {
            let state = self.groups.get_mut(&group).unwrap();
            state.terms.split_off(&(to + 1));
            state.last = last;
            self.term += 1;
        }
        sent
    }

    fn apply(&mut self, host: &mut Host, group: GroupId) -> bool {
        let Some(upto) = self.groups[&group].last else {
            return true;
        };
        let committed = Some(upto);
        if !host.try_send(&ToStorage::SaveCommitted { group, committed }) {
            return false;
        }
        let state = self.groups.get_mut(&group).unwrap();
        state.committed = committed;
        let sent = host.try_ask(StorageRequest::Apply {
            group,
            results_from: u64::MAX,
            upto,
        });
        if sent {
            state.applying = committed;
        }
        sent
    }

    /// The meta group keeps all that it has: its old entries are moved when segments are used again.
    fn purge(&mut self, host: &mut Host) -> bool {
        let group = FIRST_DATA_GROUP;
        let state = self.groups.get_mut(&group).unwrap();
        let Some(upto) = state.persisted else {
            return true;
        };
        if state
            .purged
            .is_some_and(|purged| purged.index >= upto.index)
        {
            return true;
        }
        let sent = host.try_send(&ToStorage::Purge { group, upto });
        if sent {
            state.purged = Some(upto);
            state.terms = state.terms.split_off(&(upto.index + 1));
        }
        sent
    }

    /// What answers say.
    pub fn hear(&mut self, host: &mut Host) {
        host.pump(false);
        for (_, asked, answer) in std::mem::take(&mut host.answers) {
            match (asked, answer) {
                (StorageRequest::Apply { upto, .. }, StorageAnswer::Applied { applied, .. }) => {
                    assert_eq!(applied, upto);
                }
                (StorageRequest::BuildSnapshot { group }, StorageAnswer::Snapshot(meta)) => {
                    self.building.insert(group, false);
                    let state = self.groups.get_mut(&group).unwrap();
                    assert!(meta.last_applied >= state.persisted);
                    state.persisted = meta.last_applied;
                }
                (asked, answer) => panic!("{asked:?} was answered with {answer:?}"),
            }
        }
    }

    /// DUR-2: the node holds exactly what it was told: what was acknowledged from its disk, the rest from the ring.
    pub fn check(&self, found: &Bootstrapped) {
        assert_eq!(found.replicas.len(), self.groups.len());
        for state in &found.replicas {
            let told = &self.groups[&state.group];
            let group = state.group;
            assert_eq!(state.vote.map(|(vote, _)| vote), told.vote, "{group}");
            assert_eq!(state.purged, told.purged, "{group}");
            assert_eq!(state.last, told.last, "{group}");
            // LOG-9: it may be one that was told before.
            assert!(state.committed <= told.committed, "{group}");
            assert!(state.applied.last_applied <= told.applying, "{group}");
            assert!(state.persisted.last_applied >= told.persisted, "{group}");
        }
        let records: BTreeMap<String, Bytes> = found
            .records
            .iter()
            .map(|record| (record.name.clone(), record.value.clone()))
            .collect();
        assert_eq!(records, self.records);
    }

    /// Every entry is there, byte for byte.
    pub fn check_entries(&mut self, host: &mut Host) {
        for (group, state) in &self.groups {
            let mut from = state.purged.map_or(0, |purged| purged.index + 1);
            let to = state.last.map_or(0, |last| last.index + 1);
            while from < to {
                // Answers of the load may come in between.
                let answer = host.ask(StorageRequest::ReadLog {
                    group: *group,
                    from,
                    to,
                    max_bytes: 100 << 10,
                });
                let StorageAnswer::Log { entries } = answer else {
                    panic!("{group}: entry {from}: {answer:?}");
                };
                assert!(!entries.is_empty(), "{group}: entry {from} is gone");
                for found in entries {
                    let position = LogPosition {
                        term: state.terms[&from],
                        index: from,
                    };
                    assert_eq!(found, entry(position), "{group}");
                    from += 1;
                }
            }
        }
        self.hear(host);
    }
}
