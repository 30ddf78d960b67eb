//! Faults that can be planted in the store.

use crate::{Call, Consistency};

/// What is planted in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An acknowledged write is not done.
    LostWrite,
    /// A write that failed is done.
    FailedWrite,
    /// A linearizable read is answered from the past.
    StaleRead,
    /// A write is done a second time a little later.
    Twice,
    /// A compare-and-swap is done without its condition, and answered as done.
    BlindSwap,
    /// A list transaction works on an old version of its lists and puts the result in the place of the new one.
    LostUpdate,
    /// A transfer takes and does not give, until the next write.
    HalfTransfer,
    /// A write gets the revision of the one before it.
    OldRevision,
    /// A stale read shows a value that was never committed.
    Uncommitted,
}

impl Fault {
    /// Whether the fault can strike such a call.
    pub(super) fn fits(self, call: &Call) -> bool {
        match self {
            Fault::LostWrite | Fault::FailedWrite | Fault::OldRevision => {
                !call.is_read() && !matches!(call, Call::BankOpen { .. })
            }
            Fault::Twice => {
                matches!(
                    call,
                    Call::Increment { .. }
                        | Call::Transfer { .. }
                        | Call::Lists(_)
                        | Call::Put { .. }
                ) && !call.is_read()
            }
            Fault::StaleRead => {
                call.is_read()
                    && !matches!(
                        call,
                        Call::Get {
                            consistency: Consistency::Stale | Consistency::At(_),
                            ..
                        } | Call::SetRead {
                            consistency: Consistency::Stale,
                            ..
                        } | Call::CounterRead {
                            consistency: Consistency::Stale,
                            ..
                        } | Call::BankRead {
                            consistency: Consistency::Stale,
                            ..
                        }
                    )
            }
            Fault::BlindSwap => matches!(call, Call::CompareAndSwap { .. }),
            Fault::LostUpdate => matches!(call, Call::Lists(_)) && !call.is_read(),
            Fault::HalfTransfer => matches!(call, Call::Transfer { .. }),
            Fault::Uncommitted => matches!(
                call,
                Call::Get {
                    consistency: Consistency::Stale | Consistency::At(_),
                    ..
                }
            ),
        }
    }
}
