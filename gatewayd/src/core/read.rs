//! Reads: of the leader behind a read index, or of what this node has applied.

use super::answers::{consensus_error, read_error};
use super::{Attempt, Core, FORWARD_LIMIT, Leader};
use crate::metrics::Hop;
use crate::peer::frame::{Call, Reply};
use mareedb_api::{ApiError, ErrorCode};
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::gateway::ConsensusError;
use mareedb_ipc::wire::read::{Query, ReadError, ReadRequest, ReadResponse};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

impl Core {
    /// Reads on this node as its leader: a read index, then the reader.
    ///
    /// # Errors
    /// See [`ConsensusError`]; what the reader answers is inside.
    pub async fn read_here(
        &self,
        mut read: ReadRequest,
        limit: Duration,
    ) -> Result<Result<ReadResponse, ReadError>, ConsensusError> {
        let began = std::time::Instant::now();
        read.min_index = self.calls.read_index(read.group).await?;
        self.metrics.hop(Hop::ReadIndex, began);
        let began = std::time::Instant::now();
        let result = self.calls.read(read, limit).await;
        self.metrics.hop(Hop::Read, began);
        Ok(result)
    }

    /// Reads what this node's replica has applied, whatever others have.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_local(
        &self,
        group: GroupId,
        query: Query,
        within: Duration,
    ) -> Result<ReadResponse, ReadError> {
        let read = ReadRequest {
            group,
            epoch: 0,
            min_index: 0,
            query,
        };
        match tokio::time::timeout(within, self.calls.read(read, within)).await {
            Ok(answer) => answer,
            Err(_) => Err(ReadError::NotApplied),
        }
    }

    /// Reads a key or a range of one group.
    ///
    /// # Errors
    /// What the reader answered, or, after `deadline`, NO_QUORUM or NOT_READY.
    pub async fn read(
        &self,
        key: &[u8],
        query: Query,
        stale: bool,
        deadline: Instant,
    ) -> Result<ReadResponse, ApiError> {
        let mut last;
        loop {
            let attempt = self.try_read(key, query.clone(), stale, deadline);
            match timeout_at(deadline, attempt).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(Attempt::Final(error))) => return Err(error),
                Ok(Err(Attempt::Unproposed(code, why))) => last = (code, why),
                Ok(Err(Attempt::Uncertain)) | Err(_) => {
                    last = (ErrorCode::NoQuorum, "the leader did not answer".into());
                }
            }
            if Instant::now() >= deadline {
                return Err(ApiError::new(last.0, last.1));
            }
            self.pause(deadline).await;
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
        let within = deadline.saturating_duration_since(Instant::now());
        let result = if stale {
            Ok(self.calls.read(read, within).await)
        } else {
            let leader = self.leader_of(group)?;
            let asked = async {
                match &leader {
                    Leader::Here => Ok(self.read_here(read, within).await),
                    Leader::At(addr) => {
                        let within = within.min(FORWARD_LIMIT);
                        let asked = self.forward(addr, within, Call::Read(read));
                        match timeout_at(Instant::now() + within, asked).await {
                            Ok(Ok(Reply::Read(result))) => Ok(result),
                            _ => Err(Attempt::Uncertain),
                        }
                    }
                }
            };
            self.unless_moved(group, &leader, asked).await?
        };
        match result {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(read_error(error)),
            Err(error) => Err(consensus_error(error)),
        }
    }
}
