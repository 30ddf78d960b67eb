//! The sending end of a stream of appends; the receiving one is [`crate::incoming`].
//!
//! Requests go out as they come, at most [`OPEN_MAX`] before their answers.

use super::C;
use super::behind::Behind;
use super::network::{failed, unexpected};
use crate::exchange::{Lost, StreamCall};
use crate::frames::{Answer, Ask, OPEN_MAX};
use crate::rt;
use futures::{Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError};
use openraft::raft::{AppendEntriesRequest, StreamAppendResult};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::Receiver;

/// A request that only says how far the leader has committed waits so long for entries to go with: it makes a follower apply, which
/// nobody waits for, and would otherwise double the frames of a leader with one client.
const COMMIT_HOLD: Duration = Duration::from_millis(5);

/// One stream of appends.
pub(super) struct Appending<S> {
    input: Option<S>,
    call: StreamCall,
    answers: Receiver<Result<Answer, Lost>>,
    sequence: u64,
    /// Questions without an answer.
    open: usize,
    /// A request without entries, and until when it waits. The next one says what it says.
    held: Option<(AppendEntriesRequest<C>, Instant)>,
    patience: Duration,
    /// When the oldest open question was asked, or the one before it was answered.
    waits_since: Instant,
    /// What the receiver has acknowledged on this stream.
    matched: Option<u64>,
    behind: Behind,
    ended: bool,
}

impl<S: Stream<Item = AppendEntriesRequest<C>> + Unpin> Appending<S> {
    /// A stream that nothing was sent on. One whose oldest question waits for `patience` is given up, and so is one whose receiver the log
    /// does not wait for.
    pub(super) fn new(
        input: S,
        call: StreamCall,
        answers: Receiver<Result<Answer, Lost>>,
        patience: Duration,
        behind: Behind,
    ) -> Appending<S> {
        Appending {
            input: Some(input),
            call,
            answers,
            sequence: 0,
            open: 0,
            held: None,
            patience,
            waits_since: rt::now(),
            matched: None,
            behind,
            ended: false,
        }
    }

    /// The next answer, in order; meanwhile requests go out.
    pub(super) async fn next(&mut self) -> Option<Result<StreamAppendResult<C>, RPCError<C>>> {
        loop {
            if self.ended || (self.input.is_none() && self.open == 0) {
                return None;
            }
            if self.matched.is_some_and(|at| self.behind.is_given_up(at)) {
                // openraft purges nothing that a stream has still to send. Without one it sends a snapshot.
                self.ended = true;
                return Some(Err(RPCError::Network(NetworkError::from_string(
                    "the log does not wait for it any longer",
                ))));
            }
            let deadline = self.waits_since + self.patience;
            let held = self.held.as_ref().map_or(deadline, |(_, until)| *until);
            tokio::select! {
                biased;
                answer = self.answers.recv() => {
                    self.open = self.open.saturating_sub(1);
                    self.waits_since = rt::now();
                    let item = match answer {
                        Some(Ok(Answer::Stream(result))) => {
                            if let Ok(Some(at)) = &result {
                                self.matched = Some(at.index);
                            }
                            Ok(result)
                        }
                        Some(Ok(other)) => unexpected(&other),
                        Some(Err(lost)) => Err(failed(lost)),
                        None => Err(RPCError::Network(NetworkError::from_string("the stream has ended"))),
                    };
                    self.ended = !matches!(item, Ok(Ok(_)));
                    return Some(item);
                }
                request = async { self.input.as_mut().expect("checked by the guard").next().await },
                    if self.input.is_some() && self.open < OPEN_MAX => {
                    let Some(request) = request else {
                        self.input = None;
                        if let Some((request, _)) = self.held.take()
                            && let Err(lost) = self.send(request)
                        {
                            return Some(Err(failed(lost)));
                        }
                        continue;
                    };
                    // The first one may be a question about the follower's log.
                    if request.entries.is_empty() && self.sequence > 0 {
                        let until = match self.held.take() {
                            Some((_, until)) => until,
                            None => rt::now() + COMMIT_HOLD,
                        };
                        self.held = Some((request, until));
                        continue;
                    }
                    self.held = None;
                    if let Err(lost) = self.send(request) {
                        return Some(Err(failed(lost)));
                    }
                }
                () = rt::sleep_until(held), if self.held.is_some() && self.open < OPEN_MAX => {
                    if let Some((request, _)) = self.held.take()
                        && let Err(lost) = self.send(request)
                    {
                        return Some(Err(failed(lost)));
                    }
                }
                () = rt::sleep_until(deadline), if self.open > 0 => {
                    self.ended = true;
                    return Some(Err(RPCError::Network(NetworkError::from_string("no answer in time"))));
                }
            }
        }
    }

    fn send(&mut self, request: AppendEntriesRequest<C>) -> Result<(), Lost> {
        let ask = Ask::Stream {
            stream: self.call.name(),
            sequence: self.sequence,
            request,
        };
        self.sequence += 1;
        if self.open == 0 {
            self.waits_since = rt::now();
        }
        self.open += 1;
        self.ended = true;
        self.call.send(ask)?;
        self.ended = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::log_id;
    use crate::testing;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::LogPosition;

    #[tokio::test]
    async fn a_stream_to_one_that_is_given_up_ends() {
        let node = NodeInProcess::small("{}");
        let (exchange, route) = testing::exchange(&node);
        let (call, answers) = exchange.open_stream("a", route).unwrap();
        let (name, behind) = (call.name(), Behind::default());
        let nothing = futures::stream::pending::<AppendEntriesRequest<C>>();
        let patience = Duration::from_secs(60);
        let mut appending = Appending::new(nothing, call, answers, patience, behind.clone());
        let answered = |index| {
            let at = log_id(LogPosition { term: 1, index });
            exchange.answered(route.back(), name, Answer::Stream(Ok(Some(at))));
        };
        behind.give_up(5);
        for index in [5, 6] {
            answered(index);
            let item = appending.next().await;
            assert!(matches!(item, Some(Ok(Ok(Some(at)))) if at.index == index));
        }
        behind.give_up(7);
        let end = appending.next().await;
        assert!(matches!(end, Some(Err(RPCError::Network(_)))), "{end:?}");
        assert!(appending.next().await.is_none());
    }
}
