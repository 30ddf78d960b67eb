//! Proposals on their way into a group's log.
//!
//! All that wait go in by one `client_write_many`, in order. What a group may have in flight, from here to its outcome, is
//! bounded by a quarter of the log ring, and nothing goes in while half of the ring waits for the disk: openraft's core
//! waits for room in the ring, and while it does it neither votes nor beats. What does not go in yet waits here, bounded
//! by as much again; beyond that the answer is `Overloaded`.

use crate::client::{Call, Client};
use crate::clock::Clock;
use crate::exchange::Exchange;
use crate::log_link::LogLink;
use crate::raft::{C, Payload, Raft, leader_node};
use crate::rise::Rise;
use crate::rt;
use crate::takes::{By, Largest};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use mareedb_ipc::wire::NodeId;
use mareedb_ipc::wire::command::{Command, Rules, Stamp, encode_command};
use mareedb_ipc::wire::gateway::ConsensusError;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal};
use openraft::raft::WriteResult;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How often a leader's first word is tried before what waits for it is answered.
const FIRST_WORD_TRIES: u32 = 10;
/// Between two tries.
const FIRST_WORD_PAUSE: Duration = Duration::from_millis(1);
/// In-flight bytes are counted in units of this size.
const UNIT: usize = 64;

/// The proposals of a group.
#[derive(Clone)]
pub struct Proposals(Arc<Shared>);

struct Shared {
    raft: Raft,
    link: Arc<LogLink>,
    exchange: Arc<Exchange>,
    client: Arc<Client>,
    clock: Arc<dyn Clock>,
    word: Word,
    /// The term in which this node has said its first word.
    said: tokio::sync::Mutex<u64>,
    /// Up to when this leader has counted time in its term.
    counted: Mutex<Instant>,
    in_flight: Arc<Semaphore>,
    units_max: usize,
    queue: Mutex<Queue>,
    /// Of whom it was said last that commands wait for what it tells.
    awaited: Mutex<Option<By>>,
}

/// What a leader's first word in its term is made of.
pub struct Word {
    /// This node.
    pub node: NodeId,
    /// Its settings.
    pub rules: Rules,
    /// Why it leads.
    pub rise: Arc<Rise>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Call, Bytes)>,
    units: usize,
    running: bool,
}

impl Shared {
    /// Why a command of so many bytes is not proposed.
    fn refuses(&self, largest: &Largest, bytes: usize) -> Option<ConsensusError> {
        let why = largest.refuses(bytes)?;
        if !matches!(largest.by, By::Silent(_)) {
            return Some(ConsensusError::TooLarge(why));
        }
        let told = self.exchange.takes().largest_told();
        if let Some(why) = told.refuses(bytes) {
            return Some(ConsensusError::TooLarge(why));
        }
        // It may be starting, and tell in a moment. Until then the command comes again and again.
        let before = self.awaited.lock().replace(largest.by.clone());
        if before.as_ref() != Some(&largest.by) {
            tracing::warn!(%why, "a command waits");
        }
        Some(ConsensusError::NotReady)
    }
}

/// What a command costs: its bytes, and what an entry adds.
fn units(command: &Bytes) -> usize {
    command.len() / UNIT + 2
}

impl Proposals {
    /// Proposals to this group.
    pub fn new(
        raft: Raft,
        link: Arc<LogLink>,
        exchange: Arc<Exchange>,
        client: Arc<Client>,
        clock: Arc<dyn Clock>,
        word: Word,
    ) -> Proposals {
        let quarter = usize::try_from(link.capacity() / 4).unwrap_or(usize::MAX >> 4);
        let units_max = (quarter / UNIT).clamp(1, u32::MAX as usize);
        Proposals(Arc::new(Shared {
            raft,
            link,
            exchange,
            client,
            clock,
            word,
            said: tokio::sync::Mutex::default(),
            counted: Mutex::new(rt::now()),
            in_flight: Arc::new(Semaphore::new(units_max)),
            units_max,
            queue: Mutex::default(),
            awaited: Mutex::default(),
        }))
    }

    /// Takes what came in one wake-up. Each call gets one answer.
    pub fn add(&self, proposals: Vec<(Call, Bytes)>) {
        let me = &self.0;
        let mut refused: Vec<(Call, ConsensusError)> = Vec::new();
        let largest = me.exchange.takes().largest();
        let mut queue = me.queue.lock();
        for (call, command) in proposals {
            let units = units(&command);
            if let Some(why) = me.refuses(&largest, command.len()) {
                refused.push((call, why));
            } else if queue.units > 0 && queue.units + units > me.units_max {
                refused.push((call, ConsensusError::Overloaded));
            } else {
                queue.units += units;
                queue.waiting.push_back((call, command));
            }
        }
        let start = !queue.waiting.is_empty() && !std::mem::replace(&mut queue.running, true);
        drop(queue);
        for (call, why) in refused {
            me.client.proposed(call, Err(why));
        }
        if start {
            let me = self.clone();
            rt::spawn(async move { me.run().await });
        }
    }

    /// Answers all that waits: the group ends here.
    pub fn end(&self) {
        let waiting = std::mem::take(&mut self.0.queue.lock().waiting);
        for (call, _) in waiting {
            self.0.client.proposed(call, Err(ConsensusError::NotReady));
        }
    }

    /// Before anything else that this node proposes in its term as leader: why it leads, and the settings that outcomes
    /// depend on from here on, which are its own (DET-1). `true`: that is applied in the term that it leads in. `false`: it
    /// does not lead, or openraft does not let it.
    ///
    /// Cancellation: what was proposed stays proposed, and is said again.
    pub async fn lead(&self) -> bool {
        let me = &self.0;
        let mut said = me.said.lock().await;
        let Some(term) = self.leads() else {
            return false;
        };
        if term == *said {
            return true;
        }
        let command = encode_command(&Command::Lead {
            node: me.word.node,
            cause: me.word.rise.cause(),
            rules: me.word.rules.clone(),
        });
        for _ in 0..FIRST_WORD_TRIES {
            // What passed before this term is not this leader's to count.
            let from = rt::now();
            let payload = Payload(Stamp::at(me.clock.revision()).on(&command));
            match me.raft.client_write(payload).await {
                Ok(_) => {
                    *me.counted.lock() = from;
                    *said = term;
                    tracing::info!(term, cause = ?me.word.rise.cause(), "this node leads");
                    me.word.rise.told();
                    return true;
                }
                // It leads no longer, or not yet: openraft shows a restored leader before it lets it write.
                Err(refused) => {
                    tracing::debug!(term, %refused, "a leader's first word");
                    rt::sleep(FIRST_WORD_PAUSE).await;
                }
            }
            if self.leads() != Some(term) {
                break;
            }
        }
        false
    }

    /// The term that this node leads in.
    fn leads(&self) -> Option<u64> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    /// Whether this node's first word in the term that it leads in is still to be said, and nobody is about to. Only a hint to
    /// whoever would have it said.
    pub fn owes_a_word(&self) -> bool {
        let said = self.0.said.try_lock();
        said.is_ok_and(|said| self.leads().is_some_and(|term| term != *said))
    }

    /// Counts the time up to `now`, in whole milliseconds.
    fn count(&self, now: Instant) -> u32 {
        let mut counted = self.0.counted.lock();
        let elapsed = now.saturating_duration_since(*counted).as_millis();
        let elapsed = u32::try_from(elapsed).unwrap_or(u32::MAX);
        *counted += Duration::from_millis(elapsed.into());
        elapsed
    }

    async fn run(&self) {
        let me = &self.0;
        loop {
            me.link.uncongested().await;
            let Some((batch, units)) = self.next() else {
                return;
            };
            let permits = u32::try_from(units.min(me.units_max)).unwrap_or(u32::MAX);
            let Ok(permit) = me.in_flight.clone().acquire_many_owned(permits).await else {
                return;
            };
            self.propose(batch, permit).await;
        }
    }

    /// The next batch, of at most half of what may be in flight, so that one is prepared while another is on its way.
    fn next(&self) -> Option<(Vec<(Call, Bytes)>, usize)> {
        let mut queue = self.0.queue.lock();
        let mut batch = Vec::new();
        let mut total = 0;
        while let Some((_, command)) = queue.waiting.front() {
            let units = units(command);
            if !batch.is_empty() && total + units > self.0.units_max / 2 {
                break;
            }
            total += units;
            batch.extend(queue.waiting.pop_front());
        }
        queue.units = if queue.waiting.is_empty() {
            0
        } else {
            queue.units.saturating_sub(total)
        };
        queue.running = !batch.is_empty();
        (!batch.is_empty()).then_some((batch, total))
    }

    async fn propose(&self, batch: Vec<(Call, Bytes)>, permit: OwnedSemaphorePermit) {
        let me = &self.0;
        // Before it is known that this node leads, so that it led all the time up to here.
        let now = rt::now();
        if !me.raft.is_leader() {
            let leader = leader_node(&me.raft);
            for (call, _) in batch {
                let nobody = Err(ConsensusError::NotLeader { leader });
                me.client.proposed(call, nobody);
            }
            return;
        }
        if !self.lead().await {
            for (call, _) in batch {
                let nobody = Err(ConsensusError::NotLeader { leader: None });
                me.client.proposed(call, nobody);
            }
            return;
        }
        let (calls, commands): (Vec<Call>, Vec<Bytes>) = batch.into_iter().unzip();
        let mut elapsed_ms = self.count(now);
        let payloads: Vec<Payload> = commands
            .into_iter()
            .map(|command| {
                let stamp = Stamp {
                    revision: me.clock.revision(),
                    elapsed_ms: std::mem::take(&mut elapsed_ms),
                };
                Payload(stamp.on(&command))
            })
            .collect();
        match me.raft.client_write_many(payloads).await {
            Ok(results) => {
                let client = me.client.clone();
                rt::spawn(async move {
                    settle(&client, calls, results).await;
                    drop(permit);
                });
            }
            Err(fatal) => {
                tracing::error!(%fatal, "proposal");
                for call in calls {
                    me.client.proposed(call, Err(ConsensusError::Uncertain));
                }
            }
        }
    }
}

async fn settle(
    client: &Client,
    calls: Vec<Call>,
    mut results: BoxStream<'static, Result<WriteResult<C>, Fatal<C>>>,
) {
    let mut calls = calls.into_iter();
    while let Some(result) = results.next().await {
        let Some(call) = calls.next() else { return };
        let result = match result {
            // No outcome is known any more of an entry that was applied before storaged was born anew.
            Ok(Ok(response)) if response.response.0.is_empty() => Err(ConsensusError::Uncertain),
            Ok(Ok(response)) => Ok(response.response.0),
            // Nothing of it is in the log: it asked for what openraft does not allow.
            Ok(Err(
                refused @ (ClientWriteError::ChangeMembershipError(_)
                | ClientWriteError::PreconditionFailed(_)),
            )) => Err(ConsensusError::Refused(refused.to_string())),
            // ONCE-1: nothing of it is in the log. openraft 0.10.0-alpha.37 says this of a client's write only where it looks whether
            // it leads, may write and keeps leadership, before it appends anything of the whole batch (`write_entries` and the check
            // of `expected_leader`, in raft_core.rs). At an upgrade every place that makes a `ForwardToLeader` is to be looked at.
            Ok(Err(ClientWriteError::ForwardToLeader(elsewhere))) => {
                let leader = elsewhere.leader_node.map(|place| place.node);
                Err(ConsensusError::NotLeader { leader })
            }
            // It was appended, and another leader's log decides what became of it.
            Ok(Err(ClientWriteError::LogEntryDiscarded(_))) | Err(_) => {
                Err(ConsensusError::Uncertain)
            }
        };
        client.proposed(call, result);
    }
    for call in calls {
        client.proposed(call, Err(ConsensusError::Uncertain));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridClock;
    use crate::raft::Place;
    use crate::takes::Takes;
    use crate::testing::{Follower, ME};
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::gateway::FromConsensus;
    use mareedb_ipc::{Lane, Outbox, Role};
    use openraft::errors::ForwardToLeader;
    use std::collections::BTreeSet;

    /// A member that has not told yet may be about to: nothing is refused for good because of it.
    #[tokio::test]
    async fn what_a_silent_member_may_take_is_not_too_large() {
        let follower = Follower::start().await;
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let mut sender = consensus.sender(Role::Gateway, Lane::Client);
        let outbox = Outbox::before(&sender, || {});
        let client = Client::new(outbox.clone());
        let peer = consensus.sender(Role::Gateway, Lane::Peer);
        let peer = Outbox::before(&peer, || {});
        let exchange = Exchange::new(peer.clone(), peer, Takes::new(4 << 20, 4 << 20));
        let log = consensus.sender(Role::Storage, Lane::Log(0));
        let proposals = Proposals::new(
            follower.replica.raft().clone(),
            LogLink::new(log, Arc::default()),
            exchange.clone(),
            client.clone(),
            Arc::new(HybridClock::new(500, 0)),
            Word {
                node: ME,
                rules: Rules::default(),
                rise: Arc::default(),
            },
        );
        let takes = exchange.takes();
        takes.keep(&BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        takes.told("a", "node1", 4 << 20);
        let (large, huge) = (takes.largest().bytes + 1, takes.own() + 1);
        let mut gateway = node.attach(Role::Gateway);
        let mut receiver = gateway.receiver(Role::Consensus, Lane::Client);
        let mut results = Vec::new();
        for (number, (told, bytes)) in (0..).zip([
            (None, huge),
            (None, large),
            (Some(1000), large),
            (Some(4 << 20), large),
        ]) {
            if let Some(bytes) = told {
                takes.told("b", "node2", bytes);
            }
            proposals.add(vec![(client.call(number), Bytes::from(vec![0; bytes]))]);
            let told = loop {
                outbox.flush(&mut sender).unwrap();
                if let Some((told, end)) = receiver.try_recv::<FromConsensus>().unwrap() {
                    receiver.release(end);
                    break told;
                }
                tokio::task::yield_now().await;
            };
            let FromConsensus::Proposed { call, result } = told else {
                panic!("{told:?}")
            };
            assert_eq!(call, number);
            results.push(result);
        }
        let too_large = |at: usize, who: &str| match &results[at] {
            Err(ConsensusError::TooLarge(why)) => why.contains(who),
            _ => false,
        };
        assert!(too_large(0, "this node"), "{results:?}");
        assert_eq!(results[1], Err(ConsensusError::NotReady));
        assert!(too_large(2, "'node2'"), "{results:?}");
        // It went in, and who asked is told that this node only follows.
        let followed = matches!(results[3], Err(ConsensusError::NotLeader { .. }));
        assert!(followed, "{results:?}");
    }

    /// ONCE-1: only what certainly is not in any log may be called refused.
    #[tokio::test]
    async fn an_entry_that_another_leader_decides_about_is_uncertain() {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let mut sender = consensus.sender(Role::Gateway, Lane::Client);
        let outbox = Outbox::before(&sender, || {});
        let client = Client::new(outbox.clone());
        let elsewhere = ForwardToLeader::<C>::empty();
        let place = Place {
            node: NodeId(7),
            ..Place::default()
        };
        let there = ForwardToLeader::<C>::new(3, place);
        let results = [
            Ok(Err(ClientWriteError::ForwardToLeader(there))),
            Ok(Err(ClientWriteError::ForwardToLeader(elsewhere.clone()))),
            Ok(Err(ClientWriteError::LogEntryDiscarded(elsewhere))),
            Err(Fatal::Stopped),
        ];
        let calls = (0..5).map(|number| client.call(number)).collect();
        settle(&client, calls, futures::stream::iter(results).boxed()).await;
        outbox.flush(&mut sender).unwrap();
        let mut gateway = node.attach(Role::Gateway);
        let mut receiver = gateway.receiver(Role::Consensus, Lane::Client);
        let expected = [
            ConsensusError::NotLeader {
                leader: Some(NodeId(7)),
            },
            ConsensusError::NotLeader { leader: None },
            ConsensusError::Uncertain,
            ConsensusError::Uncertain,
            ConsensusError::Uncertain,
        ];
        for (call, error) in (0..).zip(expected) {
            let (told, end) = receiver.try_recv::<FromConsensus>().unwrap().unwrap();
            receiver.release(end);
            let expected = FromConsensus::Proposed {
                call,
                result: Err(error),
            };
            assert_eq!(told, expected);
        }
    }
}
