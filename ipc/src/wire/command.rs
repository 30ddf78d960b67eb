//! What a log entry says: commands to the state machine, and their outcomes.
//!
//! A normal entry's payload is stamped bytes: a [`Stamp`], then the postcard of a [`Command`]. gatewayd encodes the
//! command, consensusd puts the stamp in front without looking inside, storaged decodes both at apply. Payloads are on disk and cross nodes: variants are only ever added at the end of an enum, and
//! fields never change (docs/formats/wire.md).

use super::{NodeId, RandomId, Revision, WireError, decode, encode_into};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Who asks, so that each command takes effect once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionRef {
    /// The session: the incarnation of the gateway that the client spoke to.
    pub session: RandomId,
    /// Number of the request within the session, from 1.
    pub sequence: u64,
    /// Every request below this one was answered; its result may be forgotten.
    pub low_water: u64,
}

/// A client's Idempotency-Key with the fingerprint of the request that it came with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyKey {
    /// The client's text, 1 to 255 bytes.
    pub key: String,
    /// A 128-bit hash over everything else in the request.
    pub fingerprint: u128,
}

/// One command of the replicated state machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Opens a gateway session. Opening an open one changes nothing.
    OpenSession {
        /// The session.
        session: RandomId,
        /// The node whose gateway it is.
        node: NodeId,
    },
    /// Reads and writes, in one revision.
    Write {
        /// Exactly-once identity of the request.
        origin: SessionRef,
        /// The range epoch that the gateway routed by; another one at apply gives [`Outcome::WrongEpoch`].
        epoch: u64,
        /// The client's idempotency key, when it gave one.
        idempotency: Option<IdempotencyKey>,
        /// What to do.
        txn: Txn,
    },
    /// Nothing but logged time: clears away the sessions that are expired, as opening one does, and expired idempotency keys, as every
    /// command does. Nobody proposes it; it stays for the numbers of those behind it, which are on disk.
    Tick,
    /// Splits this group's key range; reserved: applying it answers [`Outcome::Unsupported`].
    Split {
        /// First key of the right child.
        at: Bytes,
    },
    /// A leader's first word in its term, before any other proposal of it: what outcomes depend on from here on, and why it
    /// leads. Repeated by a leader that was restored, which is no new election.
    Lead {
        /// The leader's node.
        node: NodeId,
        /// Why it came to lead.
        cause: Cause,
        /// Its settings, which are the group's from this entry on.
        rules: Rules,
    },
}

/// Settings that outcomes depend on. They are in the log, so that all replicas apply an entry under the same ones (DET-1),
/// whatever their own configurations say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// Data bytes beyond which growth is refused; 0: none.
    pub quota_bytes: u64,
    /// Live idempotency keys.
    pub idempotency_keys_max: u64,
    /// How long one is kept, in logged time.
    pub idempotency_ttl_ms: u64,
    /// How long an unused session is kept, in logged time.
    pub session_ttl_ms: u64,
    /// How long superseded versions are kept, in logged time; up to an eighth longer.
    pub history_ms: u64,
}

/// What holds before a leader has said otherwise. Never to be changed: old logs were applied under it.
impl Default for Rules {
    fn default() -> Self {
        Rules {
            quota_bytes: 0,
            idempotency_keys_max: 1_000_000,
            idempotency_ttl_ms: 300_000,
            session_ttl_ms: 600_000,
            history_ms: 300_000,
        }
    }
}

/// Why a node came to lead a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// It knew of no leader before: a new group, or all nodes were away.
    NoLeader,
    /// Nothing was heard of the leader on this node.
    Silence(NodeId),
    /// The leader's node refused connections.
    Refused(NodeId),
    /// The leader on this node handed over.
    HandOver(NodeId),
}

/// An election, as a group remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Election {
    /// The term.
    pub term: u64,
    /// Who was elected.
    pub node: NodeId,
    /// Why.
    pub cause: Cause,
}

/// A transaction: if all comparisons hold, `success`, else `failure`; in order, a later operation sees the earlier ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    /// Comparisons, all of which must hold.
    pub compare: Vec<Compare>,
    /// Operations when they hold.
    pub success: Vec<Op>,
    /// Operations when one does not.
    pub failure: Vec<Op>,
}

/// One comparison of a key's state with a constant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// What is compared, with the constant.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

/// The left side of a comparison and its constant. An absent key has version and revisions 0; a comparison of its value is false.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareTarget {
    /// The value, bytewise.
    Value(Bytes),
    /// Number of writes since the key was created.
    Version(u64),
    /// Revision of its creation.
    CreateRevision(u64),
    /// Revision of its last write.
    ModRevision(u64),
}

/// A comparison operator: `state OP constant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// Deletes a key; deleting an absent one is no write.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Reads a key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Reads a range.
    Range {
        /// First key.
        start: Bytes,
        /// First key beyond; empty: to the end of the key space.
        end: Bytes,
        /// At most so many items.
        limit: u32,
    },
}

/// A key with its value and history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The key.
    pub key: Bytes,
    /// The value; empty in a keys-only answer.
    pub value: Bytes,
    /// Revision that created the key.
    pub create_revision: Revision,
    /// Revision that last wrote it.
    pub mod_revision: Revision,
    /// Number of writes since its creation, from 1.
    pub version: u64,
}

/// The result of one [`Op`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResult {
    /// Of `Put`.
    Put,
    /// Of `Delete`: whether the key was there.
    Delete {
        /// Whether the key was there.
        deleted: bool,
    },
    /// Of `Get`.
    Get {
        /// The item, when there is one.
        item: Option<Item>,
    },
    /// Of `Range`.
    Range {
        /// Items in key order.
        items: Vec<Item>,
        /// Whether the limit cut the answer.
        more: bool,
    },
}

/// What a transaction answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnResult {
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// The revision of its writes; the group's last revision when it wrote nothing.
    pub revision: Revision,
    /// One result an operation of the branch taken.
    pub results: Vec<OpResult>,
}

/// What applying a [`Command`] gives; the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// A write's result; also of a repeat, which gets the first one.
    Done(TxnResult),
    /// A session is open.
    SessionOpen,
    /// Time was logged.
    Ticked,
    /// The session is not open (never was, or expired): nothing was applied.
    SessionUnknown,
    /// The request number lies below the session's low-water mark: nothing was applied.
    BelowLowWater,
    /// The idempotency key was used for another request: nothing was applied.
    IdempotencyKeyReused,
    /// Too many live idempotency keys: nothing was applied.
    IdempotencyKeysExhausted,
    /// A key outside this group's range, or a range epoch that has passed: nothing was applied.
    WrongEpoch {
        /// The epoch in force.
        epoch: u64,
    },
    /// The soft space quota is reached and the command would grow the store: nothing was applied.
    QuotaExceeded,
    /// A malformed command (a key written twice, too many operations, a limit passed): nothing was applied.
    Invalid {
        /// Why.
        message: String,
    },
    /// A command that this version does not carry out.
    Unsupported,
    /// A leader's word is taken.
    Led,
}

/// What a leader knows of time as it proposes a command: all that the state machine ever learns of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The revision that is proposed, by the leader's wall clock.
    pub revision: Revision,
    /// Milliseconds since the leader's last stamp in this group and term, by a clock that nobody sets; 0 in the first one.
    /// Their sum is the logged time, by which sessions and idempotency keys expire: no wall clock that jumps can end them
    /// early (ONCE-1). What passes between two leaders is not counted.
    pub elapsed_ms: u32,
}

/// Bytes of a stamp: the revision, then the milliseconds, little-endian.
pub const STAMP_BYTES: usize = 12;

impl Stamp {
    /// A stamp that counts no time.
    pub fn at(revision: Revision) -> Stamp {
        Stamp {
            revision,
            elapsed_ms: 0,
        }
    }

    /// Puts it in front of an encoded command.
    pub fn on(self, command: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(STAMP_BYTES + command.len());
        out.extend_from_slice(&self.revision.0.to_le_bytes());
        out.extend_from_slice(&self.elapsed_ms.to_le_bytes());
        out.extend_from_slice(command);
        Bytes::from(out)
    }
}

/// Splits a stamped payload into the stamp and the command.
///
/// # Errors
/// It is too short, or no command follows.
pub fn unstamp(payload: &[u8]) -> Result<(Stamp, Command), WireError> {
    let split = payload
        .split_first_chunk::<8>()
        .and_then(|(revision, rest)| {
            let (elapsed, body) = rest.split_first_chunk::<4>()?;
            Some((revision, elapsed, body))
        });
    let Some((revision, elapsed, body)) = split else {
        return Err(WireError {
            what: "stamped command",
            source: postcard::Error::DeserializeUnexpectedEnd,
        });
    };
    let stamp = Stamp {
        revision: Revision(u64::from_le_bytes(*revision)),
        elapsed_ms: u32::from_le_bytes(*elapsed),
    };
    Ok((stamp, decode(body)?))
}

/// Encodes a command, without a stamp.
pub fn encode_command(command: &Command) -> Bytes {
    let mut out = Vec::with_capacity(128);
    encode_into(command, &mut out);
    Bytes::from(out)
}
