//! The receiving end of a peer's stream of appends.
//!
//! Requests reach openraft in the order of their numbers, or the stream ends. Between here and the answer lie at most a
//! quarter of the log ring, and nothing is let in while half of the ring waits for the disk, so that openraft's core never
//! waits for room while votes are due. What is not let in waits here: what a sender has not got the answer of, and that is
//! `OPEN_MAX` requests at most.

use crate::frames::{Answer, OPEN_MAX};
use crate::log_link::LogLink;
use crate::raft::log_store::request_bytes;
use crate::raft::{C, Raft};
use crate::rt;
use futures::StreamExt;
use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// An open stream. Dropping it ends it after what was taken; the answers to that meet nobody.
pub struct Incoming {
    stream: u64,
    next: u64,
    requests: mpsc::Sender<AppendEntriesRequest<C>>,
}

/// Sizes of the requests that openraft has and has not answered.
#[derive(Default)]
struct Unanswered {
    sizes: Mutex<VecDeque<usize>>,
    answered: Notify,
}

impl Unanswered {
    fn bytes(&self) -> usize {
        self.sizes.lock().iter().sum()
    }
    async fn below(&self, limit: usize) {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            if self.bytes() < limit {
                return;
            }
            answered.await;
        }
    }
}

impl Incoming {
    /// Opens a stream into the group; `answer` is called once a request, in order.
    pub fn open(
        stream: u64,
        raft: &Raft,
        link: &Arc<LogLink>,
        answer: impl Fn(Answer) + Send + 'static,
    ) -> Incoming {
        let (open, incoming) = Incoming::waiting(stream);
        let unanswered = Arc::new(Unanswered::default());
        let limit = usize::try_from(link.capacity() / 4).unwrap_or(usize::MAX);
        let input = {
            let (link, unanswered) = (link.clone(), unanswered.clone());
            futures::stream::unfold(incoming, move |mut incoming| {
                let (link, unanswered) = (link.clone(), unanswered.clone());
                async move {
                    let request = incoming.recv().await?;
                    if !request.entries.is_empty() {
                        unanswered.below(limit).await;
                        link.uncongested().await;
                    }
                    unanswered
                        .sizes
                        .lock()
                        .push_back(request_bytes(&request.entries));
                    Some((request, incoming))
                }
            })
        };
        let mut output = Box::pin(raft.stream_append(Box::pin(input)));
        rt::spawn(async move {
            while let Some(result) = output.next().await {
                unanswered.sizes.lock().pop_front();
                unanswered.answered.notify_waiters();
                answer(match result {
                    Ok(result) => Answer::Stream(result),
                    Err(fatal) => Answer::Refused(fatal.to_string()),
                });
            }
        });
        open
    }

    /// A stream, and what waits to be let in.
    fn waiting(stream: u64) -> (Incoming, mpsc::Receiver<AppendEntriesRequest<C>>) {
        let (requests, waiting) = mpsc::channel(OPEN_MAX);
        let open = Incoming {
            stream,
            next: 0,
            requests,
        };
        (open, waiting)
    }

    /// Its name.
    pub fn stream(&self) -> u64 {
        self.stream
    }

    /// Takes the request with this number; `false`: it is not the next one, it is more than a sender may have open, or the stream has
    /// ended.
    pub fn take(&mut self, sequence: u64, request: AppendEntriesRequest<C>) -> bool {
        if sequence != self.next {
            return false;
        }
        self.next += 1;
        self.requests.try_send(request).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::alias::VoteOf;

    #[test]
    fn a_sender_that_waits_for_no_answers_ends_its_stream() {
        let request = || AppendEntriesRequest::<C> {
            vote: VoteOf::<C>::new_committed(1, 1),
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let (mut open, mut waiting) = Incoming::waiting(7);
        for sequence in 0..OPEN_MAX as u64 {
            assert!(open.take(sequence, request()));
        }
        assert!(waiting.try_recv().is_ok());
        let next = OPEN_MAX as u64;
        assert!(!open.take(next + 1, request()), "a gap");
        assert!(open.take(next, request()), "one was let in");
        assert!(!open.take(next + 1, request()), "none was since");
    }
}
