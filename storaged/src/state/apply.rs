//! What an entry does. Deterministic: no clock, no randomness; logged time is the revision clock (DET-1).

use super::StoreError;
use super::batch::Batch;
use super::once;
use bytes::Bytes;
use mareedb_ipc::wire::command::{Command, Outcome, unstamp};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{Revision, encode};

/// Settings that the outcome depends on: the same on all nodes.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Data bytes beyond which growth is refused; 0: none.
    pub quota_bytes: u64,
    /// Live idempotency keys.
    pub idempotency_keys_max: u64,
    /// How long one is kept, in logged time.
    pub idempotency_ttl_ms: u64,
    /// How long an unused session is kept, in logged time.
    pub session_ttl_ms: u64,
}

/// What an entry is applied under.
pub(super) struct Now<'a> {
    /// The entry's revision.
    pub(super) revision: Revision,
    pub(super) range: &'a KeyRange,
    pub(super) rules: &'a Rules,
}

impl Now<'_> {
    /// Logged milliseconds since then.
    pub(super) fn since(&self, then: Revision) -> u64 {
        self.revision.unix_ms().saturating_sub(then.unix_ms())
    }
}

/// An entry is in the log by a quorum's word: one that cannot be read is damage, not bad input.
fn read(entry: &LogEntry, payload: &[u8]) -> Result<(Revision, Command), StoreError> {
    unstamp(payload)
        .map_err(|error| StoreError::Damaged(format!("entry {}: {error}", entry.position)))
}

/// Applies an entry; gives the outcome of a command.
pub(super) fn apply(
    batch: &mut Batch,
    entry: &LogEntry,
    range: &KeyRange,
    rules: &Rules,
) -> Result<Option<Bytes>, StoreError> {
    let outcome = match &entry.body {
        EntryBody::Blank => None,
        EntryBody::Membership(bytes) => {
            batch.system.meta.membership = Some((entry.position, bytes.clone()));
            None
        }
        EntryBody::Normal(payload) => {
            let (proposed, command) = read(entry, payload)?;
            let next = batch.system.clock.0.checked_add(1).ok_or_else(|| {
                StoreError::Damaged(format!("entry {}: no revision is left", entry.position))
            })?;
            let revision = Revision(proposed.0.max(next));
            batch.system.clock = revision;
            let now = Now {
                revision,
                range,
                rules,
            };
            once::expire_keys(batch, &now)?;
            Some(Bytes::from(run(batch, command, &now)?))
        }
    };
    batch.system.meta.last_applied = Some(entry.position);
    Ok(outcome)
}

/// The outcome of an entry that is applied already, from what its session remembers (ONCE-1).
pub(super) fn remembered(batch: &Batch, entry: &LogEntry) -> Result<Option<Bytes>, StoreError> {
    let EntryBody::Normal(payload) = &entry.body else {
        return Ok(None);
    };
    let (_, command) = read(entry, payload)?;
    let outcome = match command {
        Command::OpenSession { .. } => encode(&Outcome::SessionOpen),
        Command::Tick => encode(&Outcome::Ticked),
        Command::Split { .. } => encode(&Outcome::Unsupported),
        Command::Write { origin, .. } => once::remembered(batch, origin)?,
    };
    Ok(Some(outcome.into()))
}

fn run(batch: &mut Batch, command: Command, now: &Now) -> Result<Vec<u8>, StoreError> {
    Ok(match command {
        Command::OpenSession { session, node } => {
            once::expire_sessions(batch, now)?;
            once::open_session(batch, session, node, now)?;
            encode(&Outcome::SessionOpen)
        }
        Command::Tick => {
            once::expire_sessions(batch, now)?;
            encode(&Outcome::Ticked)
        }
        Command::Split { .. } => encode(&Outcome::Unsupported),
        Command::Write {
            origin,
            epoch,
            idempotency,
            txn,
        } => once::write(batch, origin, epoch, idempotency, &txn, now)?,
    })
}
