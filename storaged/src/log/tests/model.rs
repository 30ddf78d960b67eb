//! What a log must hold: a model that forgets nothing, and replays what the log was told.

use super::super::index::{self, Index};
use super::super::unit::Change;
use bytes::Bytes;
use mareedb_ipc::wire::storage::EntryBody;
use mareedb_ipc::wire::{GroupId, LogPosition, OperationId, Vote};
use std::collections::BTreeMap;

/// What an entry must hold: it follows from its position, so that every read can be checked.
pub(super) fn body(position: LogPosition) -> EntryBody {
    let seed = position.index.wrapping_mul(31).wrapping_add(position.term);
    let len = usize::try_from(seed * seed % 3000).unwrap();
    let bytes = Bytes::from(vec![seed.to_le_bytes()[0]; len]);
    match seed % 11 {
        0 => EntryBody::Blank,
        1 => EntryBody::Membership(bytes),
        _ => EntryBody::Normal(bytes),
    }
}

/// A group of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plain {
    vote: Option<(Vote, OperationId)>,
    purged: Option<LogPosition>,
    last: Option<LogPosition>,
    committed: Option<LogPosition>,
    entries: BTreeMap<u64, LogPosition>,
}

impl Plain {
    fn purge(&mut self, upto: LogPosition) {
        self.purged = Some(upto);
        self.entries.retain(|index, _| *index > upto.index);
        self.last = self.last.max(Some(upto));
    }

    fn install(&mut self, upto: LogPosition) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        let other = self.entries.get(&upto.index);
        if other.is_some_and(|position| *position != upto) {
            self.entries.clear();
            self.last = None;
        }
        self.purge(upto);
    }
}

/// Everything that a log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    groups: BTreeMap<GroupId, Plain>,
    records: BTreeMap<String, Bytes>,
}

/// What the log was told, one record after the other.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Operation(OperationId, Change),
    /// Known by the unit that it is alone in.
    Installed(GroupId, LogPosition),
}

impl Told {
    /// A few words for a list of steps.
    pub(super) fn brief(&self) -> String {
        match self {
            Told::Operation(id, Change::Append { group, entries }) => {
                let at = |entry: Option<&mareedb_ipc::wire::storage::LogEntry>| {
                    entry.map_or_else(String::new, |entry| entry.position.to_string())
                };
                format!(
                    "[{}] append {}..={} to {group}",
                    id.position,
                    at(entries.first()),
                    at(entries.last())
                )
            }
            Told::Operation(id, change) => format!("[{}] {change:?}", id.position),
            Told::Installed(group, upto) => format!("snapshot of {group} up to {upto}"),
        }
    }
}

/// What a log must hold that was told this, each with the unit that it is in.
pub(super) fn replay(told: &[(u64, Told)]) -> Content {
    let mut content = Content::default();
    for (_, told) in told {
        let (id, change) = match told.clone() {
            Told::Installed(group, upto) => {
                content.groups.get_mut(&group).unwrap().install(upto);
                continue;
            }
            Told::Operation(id, change) => (id, change),
        };
        match change {
            Change::Create { group, .. } => {
                content.groups.entry(group).or_default();
            }
            Change::Vote { group, vote } => {
                content.groups.get_mut(&group).unwrap().vote = Some((vote, id));
            }
            Change::Append { group, entries } => {
                let state = content.groups.get_mut(&group).unwrap();
                for entry in entries {
                    state.entries.insert(entry.position.index, entry.position);
                    state.last = Some(entry.position);
                }
            }
            Change::Truncate { group, last } => {
                let state = content.groups.get_mut(&group).unwrap();
                state.entries.retain(|_, at| Some(*at) <= last);
                state.last = last;
            }
            Change::Purge { group, upto } => content.groups.get_mut(&group).unwrap().purge(upto),
            Change::Committed { group, committed } => {
                content.groups.get_mut(&group).unwrap().committed = committed;
            }
            Change::Node(record) => {
                content.records.insert(record.name, record.value);
            }
        }
    }
    content
}

/// What a log says that it holds.
pub(super) fn content_of(index: &Index) -> Content {
    let plain = |state: &index::Group| Plain {
        vote: state.vote,
        purged: state.purged,
        last: state.last,
        committed: state.committed,
        entries: state
            .entries
            .iter()
            .map(|(index, slot)| (*index, slot.position))
            .collect(),
    };
    Content {
        groups: index
            .groups
            .iter()
            .map(|(group, state)| (*group, plain(state)))
            .collect(),
        records: index
            .records
            .iter()
            .map(|(name, record)| (name.clone(), record.value.clone()))
            .collect(),
    }
}
