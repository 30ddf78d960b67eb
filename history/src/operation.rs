//! What clients did: one [`Operation`] for each request of a client, whatever came of it.
//!
//! An operation is logical. The database has puts, gets, deletes and transactions with conditions; an increment, a transfer
//! or an append to a list is a read and a conditional transaction, and a history has it as the one thing that the client
//! meant, with one outcome. The names in an operation (keys, sets, counters, banks) are the client's: how they lie in the
//! database is for whoever records, as long as two different names never share a key.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// One operation of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The client that asked. A client asks one thing at a time: the operations of a process never overlap.
    pub process: u64,
    /// Name of the node that was asked first.
    pub node: String,
    /// When it was asked, in ns since the origin of the history's clock.
    pub start_ns: u64,
    /// When the outcome was known to the client, on the same clock; `None` if it never was (the client gave up or died).
    pub end_ns: Option<u64>,
    /// What was asked.
    pub call: Call,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// Reads a key. Answered with [`Answer::Value`].
    Get {
        /// The key.
        key: String,
        /// How fresh the answer must be.
        consistency: Consistency,
    },
    /// Writes a key. Answered with [`Answer::Written`].
    Put {
        /// The key.
        key: String,
        /// Its new value; best never written twice to the same key, so that a read tells which write it saw.
        value: String,
    },
    /// Deletes a key. Answered with [`Answer::Deleted`].
    Delete {
        /// The key.
        key: String,
    },
    /// Writes a key if it has the expected value. Answered with [`Answer::Swapped`], also when the condition did not hold.
    CompareAndSwap {
        /// The key.
        key: String,
        /// The value that it must have; `None`: it must be absent.
        expected: Option<String>,
        /// The value that it gets.
        new: String,
    },
    /// Appends to lists and reads lists, all of it at one moment. Answered with [`Answer::Lists`].
    Lists(Vec<Micro>),
    /// Adds an element to a set. Answered with [`Answer::Written`].
    SetAdd {
        /// The set.
        set: String,
        /// The element; a client adds each element at most once.
        element: u64,
    },
    /// Reads a whole set. Answered with [`Answer::Set`].
    SetRead {
        /// The set.
        set: String,
        /// How fresh the answer must be.
        consistency: Consistency,
    },
    /// Adds to a counter, which starts at 0. Answered with [`Answer::Incremented`].
    Increment {
        /// The counter.
        counter: String,
        /// What is added.
        amount: u64,
    },
    /// Reads a counter. Answered with [`Answer::Count`].
    CounterRead {
        /// The counter.
        counter: String,
        /// How fresh the answer must be.
        consistency: Consistency,
    },
    /// Creates all accounts of a bank, before anything else is done with it. Answered with [`Answer::Written`].
    BankOpen {
        /// The bank.
        bank: String,
        /// Each account with what it holds at first.
        accounts: BTreeMap<String, i64>,
    },
    /// Moves money between two accounts of a bank. Answered with [`Answer::Written`]; refused for lack of money, it
    /// [failed](Outcome::Failed).
    Transfer {
        /// The bank.
        bank: String,
        /// The account that pays.
        from: String,
        /// The account that is paid.
        to: String,
        /// How much, above 0.
        amount: i64,
    },
    /// Reads all accounts of a bank at one moment. Answered with [`Answer::Accounts`].
    BankRead {
        /// The bank.
        bank: String,
        /// How fresh the answer must be.
        consistency: Consistency,
    },
}

/// One step of [`Call::Lists`]. A later step sees what the earlier ones did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Micro {
    /// Appends an element to the end of a list.
    Append {
        /// The list; an absent one is empty.
        key: String,
        /// The element; never appended to the same list twice, so that a read tells which append it saw.
        element: u64,
    },
    /// Reads a list.
    Read {
        /// The list.
        key: String,
    },
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// It shows every write that was acknowledged before the read began.
    Linearizable,
    /// It shows a moment of the past.
    Stale,
    /// It shows the moment of this revision (`?revision=`).
    At(#[serde(with = "decimal")] u64),
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// It was done.
    Ok(Answer),
    /// It certainly had no effect and will never have one; the error code tells why. A read that failed is of no interest.
    Failed(String),
    /// It may have had its effect, may have it later, or never: an error code such as `OUTCOME_UNKNOWN`, or what became of
    /// the connection.
    Unknown(String),
}

/// What the database answered. Revisions are those of the contract, and absent where it gives none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// A key as it was read.
    Value {
        /// Its value; `None` if it was absent.
        value: Option<String>,
        /// Its mod_revision; `None` if it was absent.
        #[serde(
            with = "decimal::option",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        revision: Option<u64>,
    },
    /// A write was done.
    Written {
        /// Its revision.
        #[serde(
            with = "decimal::option",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        revision: Option<u64>,
    },
    /// A delete was done.
    Deleted {
        /// Whether there was something to delete.
        deleted: bool,
        /// Its revision.
        #[serde(
            with = "decimal::option",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        revision: Option<u64>,
    },
    /// A compare-and-swap was decided.
    Swapped {
        /// Whether the condition held, and so the new value was written.
        succeeded: bool,
        /// The revision of the transaction.
        #[serde(
            with = "decimal::option",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        revision: Option<u64>,
    },
    /// A [`Call::Lists`] was done.
    Lists {
        /// For each step in order: what it read, `None` for an append. As many as the call has steps.
        results: Vec<Option<Vec<u64>>>,
        /// The revision of the transaction.
        #[serde(
            with = "decimal::option",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        revision: Option<u64>,
    },
    /// A set as it was read, in any order.
    Set {
        /// Its elements.
        elements: Vec<u64>,
    },
    /// An increment was done.
    Incremented {
        /// What the counter held after it, where the client knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<u64>,
        /// Its revision.
        #[serde(
            with = "decimal::option",
            default,
            skip_serializing_if = "Option::is_none"
        )]
        revision: Option<u64>,
    },
    /// A counter as it was read; 0 when its key is absent.
    Count {
        /// What it holds.
        value: u64,
    },
    /// A bank as it was read.
    Accounts {
        /// Each account that was there with what it holds.
        balances: BTreeMap<String, i64>,
    },
}

/// The thing that an operation is about, by which a history can be taken apart: what a checker says of one object follows
/// from that object's operations alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object<'a> {
    /// A key that is read, written, deleted and compared.
    Register(&'a str),
    /// A set.
    Set(&'a str),
    /// A counter.
    Counter(&'a str),
    /// A bank.
    Bank(&'a str),
    /// All lists together, since one transaction may touch any of them.
    Lists,
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Register(name) => write!(f, "register {name}"),
            Object::Set(name) => write!(f, "set {name}"),
            Object::Counter(name) => write!(f, "counter {name}"),
            Object::Bank(name) => write!(f, "bank {name}"),
            Object::Lists => write!(f, "lists"),
        }
    }
}

impl Call {
    /// What the call is about.
    pub fn object(&self) -> Object<'_> {
        match self {
            Call::Get { key, .. }
            | Call::Put { key, .. }
            | Call::Delete { key }
            | Call::CompareAndSwap { key, .. } => Object::Register(key),
            Call::SetAdd { set, .. } | Call::SetRead { set, .. } => Object::Set(set),
            Call::Increment { counter, .. } | Call::CounterRead { counter, .. } => {
                Object::Counter(counter)
            }
            Call::BankOpen { bank, .. }
            | Call::Transfer { bank, .. }
            | Call::BankRead { bank, .. } => Object::Bank(bank),
            Call::Lists(_) => Object::Lists,
        }
    }

    /// Whether the call cannot change anything.
    pub fn is_read(&self) -> bool {
        match self {
            Call::Get { .. }
            | Call::SetRead { .. }
            | Call::CounterRead { .. }
            | Call::BankRead { .. } => true,
            Call::Lists(steps) => steps.iter().all(|step| matches!(step, Micro::Read { .. })),
            Call::Put { .. }
            | Call::Delete { .. }
            | Call::CompareAndSwap { .. }
            | Call::SetAdd { .. }
            | Call::Increment { .. }
            | Call::BankOpen { .. }
            | Call::Transfer { .. } => false,
        }
    }

    /// Whether `answer` is one that this call can get.
    pub fn takes(&self, answer: &Answer) -> bool {
        match (self, answer) {
            (Call::Get { .. }, Answer::Value { value, revision }) => {
                value.is_some() || revision.is_none()
            }
            (
                Call::Put { .. }
                | Call::SetAdd { .. }
                | Call::BankOpen { .. }
                | Call::Transfer { .. },
                Answer::Written { .. },
            )
            | (Call::Delete { .. }, Answer::Deleted { .. })
            | (Call::CompareAndSwap { .. }, Answer::Swapped { .. })
            | (Call::SetRead { .. }, Answer::Set { .. })
            | (Call::Increment { .. }, Answer::Incremented { .. })
            | (Call::CounterRead { .. }, Answer::Count { .. })
            | (Call::BankRead { .. }, Answer::Accounts { .. }) => true,
            (Call::Lists(steps), Answer::Lists { results, .. }) => {
                steps.len() == results.len()
                    && steps.iter().zip(results).all(|(step, result)| {
                        matches!(step, Micro::Read { .. }) == result.is_some()
                    })
            }
            _ => false,
        }
    }
}

impl Operation {
    /// When the operation certainly had its effect or answer; `None` if its effect may still come: it was never answered,
    /// or its outcome is unknown.
    pub fn done_ns(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Unknown(_) => None,
            Outcome::Ok(_) | Outcome::Failed(_) => self.end_ns,
        }
    }

    /// The revision that the database gave to a write; `None` for reads and for writes that were not acknowledged with one.
    pub fn write_revision(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Ok(
                Answer::Written { revision }
                | Answer::Deleted { revision, .. }
                | Answer::Swapped { revision, .. }
                | Answer::Incremented { revision, .. },
            ) => *revision,
            Outcome::Ok(Answer::Lists { revision, .. }) if !self.call.is_read() => *revision,
            Outcome::Ok(_) | Outcome::Failed(_) | Outcome::Unknown(_) => None,
        }
    }
}

/// Revisions as decimal strings, as in the contract: they exceed what a JSON number holds everywhere. Numbers are accepted.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<'a> {
        Number(u64),
        Text(#[serde(borrow)] std::borrow::Cow<'a, str>),
    }

    impl Either<'_> {
        fn number<E: Error>(self) -> Result<u64, E> {
            match self {
                Either::Number(number) => Ok(number),
                Either::Text(text) => text
                    .parse()
                    .map_err(|_| E::custom(format!("'{text}' is no revision"))),
            }
        }
    }

    pub(super) fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        Either::deserialize(from)?.number()
    }

    pub(super) mod option {
        use super::Either;
        use serde::{Deserialize, Deserializer, Serializer};

        pub(in super::super) fn serialize<S: Serializer>(
            value: &Option<u64>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => to.collect_str(value),
                None => to.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<u64>, D::Error> {
            Option::<Either>::deserialize(from)?
                .map(Either::number)
                .transpose()
        }
    }
}
