//! Leaders' words: rules in force, elections remembered.

use super::*;
use crate::state::elections::KEPT;
use mareedb_ipc::wire::command::Cause;

fn lead(term: u64, index: u64) -> LogEntry {
    let command = Command::Lead {
        node: NodeId(term % 3),
        cause: Cause::HandOver(NodeId(9)),
        rules: Rules::default(),
    };
    LogEntry {
        position: LogPosition { term, index },
        body: EntryBody::Normal(
            Stamp::at(Revision::from_unix_ms(index)).on(&encode_command(&command)),
        ),
    }
}

fn terms(store: &Store) -> Vec<u64> {
    let request = ReadRequest {
        group: GROUP,
        epoch: 0,
        min_index: 0,
        query: Query::Elections,
    };
    let answer = store.read(&request).unwrap();
    answer
        .elections
        .iter()
        .map(|(_, election)| election.term)
        .collect()
}

#[test]
fn a_thousand_elections_are_remembered_newest_first() {
    let dir = TempDir::new().unwrap();
    let store = store(dir.path());
    // Every leader speaks twice, as one does that was restored.
    let log: Vec<LogEntry> = (0..2 * (KEPT + 5))
        .map(|index| lead(1 + index / 2, index))
        .collect();
    for batch in log.chunks(37) {
        store.apply(GROUP, batch, u64::MAX).unwrap();
    }
    let expected: Vec<u64> = (6..=KEPT + 5).rev().collect();
    assert_eq!(terms(&store), expected);
    // DET-1: what is remembered is part of what replicas agree on, and of a copy.
    let other_dir = TempDir::new().unwrap();
    let other = super::store(other_dir.path());
    copy(&store, &other);
    assert_eq!(other.digest(GROUP), store.digest(GROUP));
    assert_eq!(terms(&other), expected);
}
