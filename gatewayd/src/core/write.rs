//! Writes: proposed, and proposed again, until their outcome is known.

use super::answers::{consensus_error, refusal};
use super::{Attempt, Core, FORWARD_LIMIT, Leader};
use crate::metrics::Hop;
use crate::peer::frame::{Call, Reply};
use crate::session::Request;
use bytes::Bytes;
use mareedb_api::{ApiError, ErrorCode};
use mareedb_config::MESSAGE_EXTRA_BYTES;
use mareedb_ipc::wire::command::{
    Command, IdempotencyKey, Op, Outcome, Txn, TxnResult, encode_command,
};
use mareedb_ipc::wire::{GroupId, decode};
use tokio::time::{Instant, timeout_at};

impl Core {
    /// Carries out a transaction, once.
    ///
    /// # Errors
    /// What the state machine answered, or, after `deadline`, NO_QUORUM or NOT_READY if it was certainly not proposed, else
    /// OUTCOME_UNKNOWN.
    pub async fn write(
        &self,
        txn: Txn,
        idempotency: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Result<TxnResult, ApiError> {
        let key = first_key(&txn);
        let mut uncertain = false;
        let mut request: Option<(GroupId, Request, Bytes)> = None;
        loop {
            let attempt = async {
                let (group, epoch) = self.group_of(&key)?;
                self.open_session(group).await?;
                if request.as_ref().is_none_or(|(of, ..)| *of != group) {
                    let open = self.sessions.begin(group);
                    let command = encode_command(&Command::Write {
                        origin: open.origin,
                        epoch,
                        idempotency: idempotency.clone(),
                        txn: txn.clone(),
                    });
                    self.check_command(&command)?;
                    request = Some((group, open, command));
                }
                let command = request
                    .as_ref()
                    .map(|(.., command)| command.clone())
                    .unwrap_or_default();
                let outcome = self.propose(group, command, deadline).await?;
                Ok::<_, Attempt>(outcome)
            };
            let tried = match timeout_at(deadline, attempt).await {
                Ok(tried) => tried,
                // The wait was cut in the middle of an attempt, which may have been proposed.
                Err(_) if request.is_some() => Err(Attempt::Uncertain),
                // Without a session nothing of it was proposed.
                Err(_) => Err(Attempt::Unproposed(
                    ErrorCode::NoQuorum,
                    "the leader did not open the gateway's session in time".into(),
                )),
            };
            let why = match tried {
                Ok(outcome) => match outcome {
                    Outcome::Done(result) => return Ok(result),
                    // Nothing was applied now; what an earlier attempt did is forgotten with the session (ONCE-1).
                    Outcome::SessionUnknown => {
                        if let Some((of, lost, _)) = request.take() {
                            self.sessions.lost(of, lost.origin.session);
                        }
                        if uncertain {
                            return Err(ApiError::new(
                                ErrorCode::OutcomeUnknown,
                                "the gateway's session has expired before the outcome was known",
                            ));
                        }
                        moving("the gateway's session had expired")
                    }
                    // The range was split or moved, and nothing was applied: route anew, with a new number.
                    Outcome::WrongEpoch { .. } => {
                        request = None;
                        moving("the range of the key was split or moved")
                    }
                    other => return Err(refusal(other)),
                },
                // What is refused now says nothing of a copy that was proposed before (ONCE-1).
                Err(Attempt::Final(error)) if uncertain => {
                    return Err(ApiError::new(
                        ErrorCode::OutcomeUnknown,
                        format!(
                            "an attempt had no answer, so that the write may or may not take effect; another one was refused: {}",
                            error.message
                        ),
                    ));
                }
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Uncertain) => {
                    uncertain = true;
                    Attempt::Uncertain
                }
                Err(unproposed) => unproposed,
            };
            if Instant::now() >= deadline {
                return Err(if uncertain {
                    ApiError::new(
                        ErrorCode::OutcomeUnknown,
                        "no answer within timeout_ms; the write may or may not take effect",
                    )
                } else {
                    why.told()
                });
            }
            self.pause(deadline).await;
        }
    }

    async fn open_session(&self, group: GroupId) -> Result<(), Attempt> {
        if self.sessions.unopened(group).is_none() {
            return Ok(());
        }
        let _one = self.sessions.opening.lock().await;
        let Some(session) = self.sessions.unopened(group) else {
            return Ok(());
        };
        let node = self
            .view()
            .and_then(|view| view.me.id)
            .ok_or_else(|| self.unready())?;
        let command = encode_command(&Command::OpenSession { session, node });
        let limit = Instant::now() + FORWARD_LIMIT;
        let opened = self.propose(group, command, limit).await;
        match opened {
            Ok(Outcome::SessionOpen) => {
                self.sessions.opened(group, session);
                Ok(())
            }
            Ok(other) => Err(Attempt::Final(refusal(other))),
            // Of the write itself nothing was proposed.
            Err(Attempt::Uncertain) => Err(Attempt::Unproposed(
                ErrorCode::NoQuorum,
                "the gateway's session could not be opened".into(),
            )),
            Err(other) => Err(other),
        }
    }

    /// Whether a command fits what carries it: the rings hold the largest request, and some more for what is around it.
    fn check_command(&self, command: &Bytes) -> Result<(), Attempt> {
        let max = self.config.limits.request_bytes_max;
        if command.len() as u64 <= max + MESSAGE_EXTRA_BYTES / 2 {
            return Ok(());
        }
        Err(Attempt::Final(ApiError::new(
            ErrorCode::ValueTooLarge,
            format!(
                "the request has {} bytes, comparisons and all branches included, at most {max} (limits.request_bytes_max)",
                command.len()
            ),
        )))
    }

    /// One attempt to have a command applied.
    async fn propose(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Outcome, Attempt> {
        let leader = self.leader_of(group)?;
        let asked = async {
            match &leader {
                Leader::Here => {
                    let began = std::time::Instant::now();
                    let result = self.calls.propose(group, command).await;
                    self.metrics.hop(Hop::Propose, began);
                    Ok(result)
                }
                Leader::At(addr) => {
                    let call = Call::Propose { group, command };
                    match self.forward(addr, deadline, call).await? {
                        Reply::Proposed(result) => Ok(result),
                        _ => Err(Attempt::Uncertain),
                    }
                }
            }
        };
        let result = self.unless_moved(group, &leader, asked).await?;
        match result {
            Ok(outcome) => decode(&outcome).map_err(|error| {
                Attempt::Final(ApiError::new(ErrorCode::OutcomeUnknown, error.to_string()))
            }),
            Err(error) => Err(consensus_error(error)),
        }
    }
}

/// Nothing was applied, and the next attempt goes another way.
fn moving(why: &str) -> Attempt {
    Attempt::Unproposed(ErrorCode::NotReady, why.into())
}

fn first_key(txn: &Txn) -> Bytes {
    let op = txn.success.iter().chain(&txn.failure).next();
    match (txn.compare.first(), op) {
        (Some(compare), _) => compare.key.clone(),
        (None, Some(Op::Put { key, .. } | Op::Delete { key } | Op::Get { key })) => key.clone(),
        (None, Some(Op::Range { start, .. })) => start.clone(),
        (None, None) => Bytes::new(),
    }
}
