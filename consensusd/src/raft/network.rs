//! openraft's network over the exchange of frames.

use super::append_stream::Appending;
use super::behind::Behind;
use super::state_machine::{SnapshotHandle, from_wire_meta};
use super::{C, Place};
use crate::exchange::{Exchange, Lost};
use crate::frames::{Answer, Ask, Route};
use crate::log_link::LogLink;
use crate::rt;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use mareedb_ipc::wire::peer::Way;
use mareedb_ipc::wire::storage::{StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, RandomId, ReplicaId};
use openraft::OptionalSend;
use openraft::alias::{SnapshotOf, VoteOf};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes after which a snapshot part ends. Small, since one entry of the tree above it may come whole.
const CHUNK_BYTES: u32 = 64 << 10;

/// How long a part of a snapshot may take, the last one's installation included. An answer that was lost is waited for as long.
const PART_LIMIT: Duration = Duration::from_secs(30);

/// Makes the connections of a group's replica.
#[derive(Clone)]
pub struct Factory {
    /// The exchange.
    pub exchange: Arc<Exchange>,
    /// The log lane, for snapshots.
    pub link: Arc<LogLink>,
    /// The cluster.
    pub cluster: RandomId,
    /// The group.
    pub group: GroupId,
    /// This replica.
    pub from: ReplicaId,
    /// A stream whose oldest question has waited so long is given up.
    pub patience: Duration,
    /// For whom the log is kept.
    pub behind: Behind,
}

/// The connection to one replica.
pub struct Connection {
    exchange: Arc<Exchange>,
    link: Arc<LogLink>,
    route: Route,
    addr: String,
    patience: Duration,
    behind: Behind,
}

impl RaftNetworkFactory<C> for Factory {
    type Network = Connection;
    async fn new_client(&mut self, target: u64, place: &Place) -> Connection {
        Connection {
            exchange: self.exchange.clone(),
            link: self.link.clone(),
            route: Route {
                cluster: self.cluster,
                group: self.group,
                from: self.from,
                to: ReplicaId(target),
            },
            addr: place.addr.clone(),
            patience: self.patience,
            behind: self.behind.clone(),
        }
    }
}

pub(super) fn failed(lost: Lost) -> RPCError<C> {
    match lost {
        Lost::Disconnected(_) => RPCError::Unreachable(Unreachable::new(&lost)),
        _ => RPCError::Network(NetworkError::new(&lost)),
    }
}

pub(super) fn unexpected<T>(answer: &Answer) -> Result<T, RPCError<C>> {
    Err(RPCError::Network(NetworkError::from_string(format!(
        "unexpected answer {answer:?}"
    ))))
}

/// An opened snapshot. It pins a version in storaged until it is closed, also when its sender is cancelled.
struct Pinned {
    link: Arc<LogLink>,
    snapshot: RandomId,
}
impl Drop for Pinned {
    fn drop(&mut self) {
        let snapshot = self.snapshot;
        self.link.leave(StorageRequest::CloseSnapshot { snapshot });
    }
}

impl Connection {
    async fn ask(&self, ask: Ask, option: &RPCOption) -> Result<Answer, RPCError<C>> {
        let asked = self.exchange.ask(Way::Peer, &self.addr, self.route, ask);
        match rt::timeout(option.hard_ttl(), asked).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(RPCError::Network(NetworkError::from_string(
                "no answer in time",
            ))),
        }
    }

    /// A stream of one request is a question: openraft sends each heartbeat so, beside the stream of its replication, which
    /// a second stream would end.
    async fn append_once(
        &self,
        request: AppendEntriesRequest<C>,
        option: &RPCOption,
    ) -> Result<StreamAppendResult<C>, RPCError<C>> {
        let before = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id);
        match self.ask(Ask::Append(request), option).await? {
            Answer::Append(response) => Ok(response.into_stream_result(before, last.or(before))),
            other => unexpected(&other),
        }
    }

    async fn storage(&self, request: StorageRequest) -> Result<StorageAnswer, StreamingError<C>> {
        match self.link.request(request).await {
            StorageAnswer::Failed { message } => {
                Err(StreamingError::Network(NetworkError::from_string(message)))
            }
            answer => Ok(answer),
        }
    }

    async fn send_snapshot(
        &self,
        vote: VoteOf<C>,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        let group = self.route.group;
        let (tell, opened) = oneshot::channel();
        let link = self.link.clone();
        // A task of its own: of a snapshot that opens after its sender was cancelled nobody else would know the name.
        rt::spawn(async move {
            let answer = link.request(StorageRequest::OpenSnapshot { group }).await;
            let _ = tell.send(match answer {
                StorageAnswer::Opened { snapshot, meta } => Ok((Pinned { link, snapshot }, meta)),
                StorageAnswer::Failed { message } => Err(message),
                _ => Err("the snapshot does not open".into()),
            });
        });
        let opened = opened
            .await
            .unwrap_or_else(|_| Err("the snapshot was not opened".into()));
        let (pinned, meta) = opened
            .map_err(|message| StreamingError::Network(NetworkError::from_string(message)))?;
        self.send_parts(vote, pinned.snapshot, &meta).await
    }

    async fn send_parts(
        &self,
        vote: VoteOf<C>,
        snapshot: RandomId,
        meta: &mareedb_ipc::wire::storage::SnapshotMeta,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        // What cannot be understood here cannot be installed there.
        from_wire_meta(meta).map_err(|error| StreamingError::Network(NetworkError::new(&error)))?;
        let install = RandomId::draw();
        let mut cursor = Bytes::new();
        let mut number = 0;
        loop {
            let request = StorageRequest::ReadSnapshot {
                snapshot,
                cursor,
                max_bytes: CHUNK_BYTES,
            };
            let StorageAnswer::Chunk(chunk) = self.storage(request).await? else {
                return Err(StreamingError::Network(NetworkError::from_string(
                    "the snapshot does not read",
                )));
            };
            let next = chunk.next.clone();
            let ask = Ask::Snapshot {
                install,
                number,
                chunk,
                finish: next.is_none().then(|| (vote, meta.clone())),
            };
            let asked = self.exchange.ask(Way::Bulk, &self.addr, self.route, ask);
            let Ok(answer) = rt::timeout(PART_LIMIT, asked).await else {
                return Err(StreamingError::Network(NetworkError::from_string(
                    "a part of the snapshot is not answered in time",
                )));
            };
            let answer = answer.map_err(|lost| StreamingError::from(failed(lost)))?;
            match (answer, next) {
                (Answer::Installed(vote), None) => return Ok(SnapshotResponse::new(vote)),
                (Answer::Taken, Some(next)) => cursor = next,
                (answer, _) => {
                    return Err(StreamingError::Network(NetworkError::from_string(format!(
                        "unexpected answer {answer:?}"
                    ))));
                }
            }
            number += 1;
        }
    }
}

impl RaftNetworkV2<C> for Connection {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<C>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<C>, RPCError<C>> {
        match self.ask(Ask::Append(request), &option).await? {
            Answer::Append(response) => Ok(response),
            other => unexpected(&other),
        }
    }

    /// Requests go out as they come, without waiting for answers; answers come in the same order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<C>, RPCError<C>>>, RPCError<C>>>
    where
        S: Stream<Item = AppendEntriesRequest<C>> + OptionalSend + Unpin + 'static,
    {
        let (exchange, addr) = (self.exchange.clone(), self.addr.clone());
        let (route, patience, behind) = (self.route, self.patience, self.behind.clone());
        let connection: &'s Connection = self;
        // openraft waits out its backoff where the first request is taken from it: a stream that failed before that would
        // be tried again at once, and again.
        let opened = async move {
            let mut input = input;
            let Some(first) = input.next().await else {
                return futures::stream::empty().boxed();
            };
            if input.size_hint().1 == Some(0) {
                let appended = connection.append_once(first, &option).await;
                return futures::stream::iter([appended]).boxed();
            }
            let (call, answers) = match exchange.open_stream(&addr, route) {
                Ok(opened) => opened,
                Err(lost) => return futures::stream::iter([Err(failed(lost))]).boxed(),
            };
            let input = futures::stream::iter([first]).chain(input);
            let appending = Appending::new(input, call, answers, patience, behind);
            futures::stream::unfold(appending, |mut state| async move {
                let item = state.next().await?;
                Some((item, state))
            })
            .boxed()
        };
        let stream: BoxStream<'s, _> = Box::pin(futures::stream::once(opened).flatten());
        Box::pin(async move { Ok(stream) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<C>,
        option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        let ask = if self.exchange.evidence().campaigns(self.route.group) {
            Ask::Succession(request)
        } else {
            Ask::Vote(request)
        };
        match self.ask(ask, &option).await? {
            Answer::Vote(response) => Ok(response),
            other => unexpected(&other),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<C>,
        option: RPCOption,
    ) -> Result<VoteResponse<C>, RPCError<C>> {
        match self.ask(Ask::PreVote(request), &option).await? {
            Answer::Vote(response) => Ok(response),
            other => unexpected(&other),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<C>,
        snapshot: SnapshotOf<C, SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<C>, StreamingError<C>> {
        // What is opened is newer, but openraft goes on from here.
        let has = snapshot.meta.last_log_id.map_or(0, |at| at.index);
        let sending = self.behind.send(self.route.to, has);
        tokio::select! {
            biased;
            sent = self.send_snapshot(vote) => {
                if sent.is_ok() {
                    sending.has_come();
                }
                sent
            }
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<C>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<C>, RPCError<C>> {
        let ask = Ask::Transfer {
            from: *request.from_leader(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied(),
        };
        match self.ask(ask, &option).await? {
            Answer::Transfer(response) => Ok(response),
            other => unexpected(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::takes::Takes;
    use mareedb_ipc::testing::NodeInProcess;
    use mareedb_ipc::wire::FIRST_DATA_GROUP;
    use mareedb_ipc::wire::storage::{FromStorage, SnapshotMeta, ToStorage};
    use mareedb_ipc::{Lane, Outbox, Receiver, Role};

    fn taken(receiver: &mut Receiver) -> Option<(u64, StorageRequest)> {
        let (message, end) = receiver.try_recv::<ToStorage>().unwrap()?;
        receiver.release(end);
        match message {
            ToStorage::Request { request, body } => Some((request, body)),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_snapshot_that_opens_after_its_sender_was_cancelled_is_closed() {
        let node = NodeInProcess::small("{}");
        let mut consensus = node.attach(Role::Consensus);
        let mut storage = node.attach(Role::Storage);
        let mut receiver = storage.receiver(Role::Consensus, Lane::Log(0));
        let sender = consensus.sender(Role::Storage, Lane::Log(0));
        let link = LogLink::new(sender, Arc::default());
        let peer = consensus.sender(Role::Gateway, Lane::Peer);
        let peer = Outbox::before(&peer, || {});
        let mut factory = Factory {
            exchange: Exchange::new(peer.clone(), peer, Takes::new(1 << 20, 1 << 20)),
            link: link.clone(),
            cluster: RandomId(1),
            group: FIRST_DATA_GROUP,
            from: ReplicaId(1),
            patience: Duration::from_secs(1),
            behind: Behind::default(),
        };
        let mut connection = factory.new_client(2, &Place::default()).await;
        let nothing = SnapshotMeta {
            last_applied: None,
            membership: None,
        };
        let own = SnapshotOf::<C, SnapshotHandle> {
            meta: from_wire_meta(&nothing).unwrap(),
            snapshot: SnapshotHandle::Own,
        };
        let cancel = async { ReplicationClosed::new("the leader has changed") };
        let option = RPCOption::new(Duration::from_secs(1));
        let sent = connection
            .full_snapshot(VoteOf::<C>::new(1, 1), own, cancel, option)
            .await;
        assert!(matches!(sent, Err(StreamingError::Closed(_))));
        tokio::task::yield_now().await;
        let Some((request, StorageRequest::OpenSnapshot { .. })) = taken(&mut receiver) else {
            panic!("it was not asked for");
        };
        let snapshot = RandomId(5);
        let body = StorageAnswer::Opened {
            snapshot,
            meta: nothing,
        };
        link.receive(FromStorage::Answer { request, body });
        tokio::task::yield_now().await;
        link.progress().unwrap();
        let closed = taken(&mut receiver).map(|(_, body)| body);
        assert_eq!(closed, Some(StorageRequest::CloseSnapshot { snapshot }));
    }
}
