//! What an entry does. Deterministic: no clock, no randomness. Time is what leaders put into the log: the revision clock, which
//! follows their wall clocks, and the logged time, which is the sum of what they measured (DET-1).

use super::StoreError;
use super::batch::Batch;
use super::{elections, history, once};
use bytes::Bytes;
use mareedb_ipc::wire::command::{Command, Outcome, Rules, Stamp, unstamp};
use mareedb_ipc::wire::storage::{EntryBody, KeyRange, LogEntry};
use mareedb_ipc::wire::{Revision, encode};
use mareedb_ipc::world::{Fault, planted, wall_ms};

/// What an entry is applied under.
pub(super) struct Now<'a> {
    /// The entry's revision.
    pub(super) revision: Revision,
    /// Logged time.
    pub(super) ms: u64,
    /// The entry's term.
    pub(super) term: u64,
    pub(super) range: &'a KeyRange,
    pub(super) rules: Rules,
}

impl Now<'_> {
    /// Logged milliseconds since then.
    pub(super) fn since(&self, then: u64) -> u64 {
        self.ms.saturating_sub(then)
    }
}

/// An entry is in the log by a quorum's word: one that cannot be read is damage, not bad input.
fn read(entry: &LogEntry, payload: &[u8]) -> Result<(Stamp, Command), StoreError> {
    unstamp(payload)
        .map_err(|error| StoreError::Damaged(format!("entry {}: {error}", entry.position)))
}

/// Applies an entry; gives the outcome of a command.
pub(super) fn apply(
    batch: &mut Batch,
    entry: &LogEntry,
    range: &KeyRange,
) -> Result<Option<Bytes>, StoreError> {
    let outcome = match &entry.body {
        EntryBody::Blank => None,
        EntryBody::Membership(bytes) => {
            batch.system.meta.membership = Some((entry.position, bytes.clone()));
            None
        }
        EntryBody::Normal(payload) => {
            let (stamp, command) = read(entry, payload)?;
            let next = batch.system.clock.0.checked_add(1).ok_or_else(|| {
                StoreError::Damaged(format!("entry {}: no revision is left", entry.position))
            })?;
            // LIN-3: above all before it, whatever clock the leader has.
            let mut revision = Revision(stamp.revision.0.max(next));
            if planted(Fault::ClockInApply) {
                revision = revision.max(Revision::from_unix_ms(wall_ms()));
            }
            let before = (batch.system.ms, batch.system.clock);
            batch.system.clock = revision;
            batch.system.ms = batch.system.ms.saturating_add(stamp.elapsed_ms.into());
            if planted(Fault::ExpiryByWallClock) {
                let leap = revision.unix_ms() - before.1.unix_ms();
                batch.system.ms += if before.1.0 > 0 { leap } else { 0 };
            }
            let now = Now {
                revision,
                ms: batch.system.ms,
                term: entry.position.term,
                range,
                rules: batch.system.rules.clone(),
            };
            once::expire_keys(batch, &now)?;
            let outcome = run(batch, command, &now)?;
            history::advance(&mut batch.system, before);
            Some(outcome)
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
        Command::OpenSession { .. } => encode(&Outcome::SessionOpen).into(),
        Command::Tick => encode(&Outcome::Ticked).into(),
        Command::Split { .. } => encode(&Outcome::Unsupported).into(),
        Command::Lead { .. } => encode(&Outcome::Led).into(),
        Command::Write { origin, .. } => once::remembered(batch, origin)?,
    };
    Ok(Some(outcome))
}

fn run(batch: &mut Batch, command: Command, now: &Now) -> Result<Bytes, StoreError> {
    Ok(match command {
        Command::OpenSession { session, node } => {
            once::expire_sessions(batch, now)?;
            once::open_session(batch, session, node, now)?;
            encode(&Outcome::SessionOpen).into()
        }
        Command::Tick => {
            once::expire_sessions(batch, now)?;
            encode(&Outcome::Ticked).into()
        }
        Command::Split { .. } => encode(&Outcome::Unsupported).into(),
        Command::Lead { node, cause, rules } => {
            elections::lead(batch, node, cause, now)?;
            batch.system.rules = rules;
            encode(&Outcome::Led).into()
        }
        Command::Write {
            origin,
            epoch,
            idempotency,
            txn,
        } => once::write(batch, origin, epoch, idempotency, &txn, now)?,
    })
}
