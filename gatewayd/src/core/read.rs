//! Reads: of the leader behind a read index, or of what this node has applied.

use super::answers::{consensus_error, read_error};
use super::{Attempt, BUSY_PAUSE, Core, Leader, PAUSE};
use crate::metrics::Hop;
use crate::peer::frame::{Call, Reply};
use mareedb_api::{ApiError, ErrorCode};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest, ReadResponse};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

impl Core {
    /// Reads on this node as its leader: a read index, then the reader, which does not begin after `until`.
    ///
    /// # Errors
    /// See [`ConsensusError`]; what the reader answers is inside.
    pub async fn read_here(
        &self,
        mut read: ReadRequest,
        until: Instant,
    ) -> Result<Result<ReadResponse, ReadError>, ConsensusError> {
        let began = std::time::Instant::now();
        // LIN-1
        read.min_index = self.calls.read_index(read.group).await?;
        self.metrics.hop(Hop::ReadIndex, began);
        let began = std::time::Instant::now();
        let result = self.calls.read(read, until).await;
        self.metrics.hop(Hop::Read, began);
        result
    }

    /// Reads what this node's replica has applied, whatever others have.
    ///
    /// # Errors
    /// What the reader answered, or NOT_READY: nothing, until then.
    pub async fn read_local(
        &self,
        group: GroupId,
        query: Query,
        until: Instant,
    ) -> Result<ReadResponse, ApiError> {
        let read = ReadRequest {
            group,
            epoch: 0,
            min_index: 0,
            query,
        };
        match timeout_at(until, self.calls.read(read, until)).await {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(error))) => Err(read_error(error, true).told()),
            Ok(Err(error)) => Err(consensus_error(error).told()),
            Err(_) => Err(unanswered(true).told()),
        }
    }

    /// Reads a key or a range of one group.
    ///
    /// # Errors
    /// What the reader answered, or, after `deadline`, NO_QUORUM, NOT_READY or OVERLOADED.
    pub async fn read(
        &self,
        key: &[u8],
        query: Query,
        stale: bool,
        deadline: Instant,
    ) -> Result<ReadResponse, ApiError> {
        loop {
            let attempt = self.try_read(key, query.clone(), stale, deadline);
            let why = match timeout_at(deadline, attempt).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                Ok(Err(Attempt::Uncertain)) | Err(_) => unanswered(stale),
                Ok(Err(unproposed)) => unproposed,
            };
            if Instant::now() >= deadline {
                return Err(why.told());
            }
            self.pause_for(pause_after(&why), deadline).await;
        }
    }

    async fn try_read(
        &self,
        key: &[u8],
        query: Query,
        stale: bool,
        deadline: Instant,
    ) -> Result<ReadResponse, Attempt> {
        let (group, epoch) = self.group_of(key)?;
        let read = ReadRequest {
            group,
            epoch,
            min_index: 0,
            query,
        };
        let result = if stale {
            self.calls.read(read, deadline).await
        } else {
            let leader = self.leader_of(group)?;
            let asked = async {
                match &leader {
                    Leader::Here => Ok(self.read_here(read, deadline).await),
                    Leader::At(addr) => {
                        match self.forward(addr, deadline, Call::Read(read)).await? {
                            Reply::Read(result) => Ok(result),
                            _ => Err(Attempt::Uncertain),
                        }
                    }
                }
            };
            self.unless_moved(group, &leader, asked).await?
        };
        match result {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(read_error(error, stale)),
            Err(error) => Err(consensus_error(error)),
        }
    }
}

/// How long to wait before it is asked again.
fn pause_after(why: &Attempt) -> Duration {
    match why {
        Attempt::Unproposed(ErrorCode::Overloaded, _) => BUSY_PAUSE,
        _ => PAUSE,
    }
}

/// Who was asked has not answered; a read changes nothing, so that nothing is uncertain.
fn unanswered(stale: bool) -> Attempt {
    if stale {
        Attempt::Unproposed(
            ErrorCode::NotReady,
            "this node's reader did not answer in time".into(),
        )
    } else {
        Attempt::Unproposed(
            ErrorCode::NoQuorum,
            "the leader did not answer in time".into(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_too_much_to_do_is_asked_again_later_than_others() {
        let busy = pause_after(&consensus_error(ConsensusError::Overloaded));
        let moved = pause_after(&consensus_error(ConsensusError::NotReady));
        assert!(busy > moved && moved == pause_after(&unanswered(false)));
    }
}
