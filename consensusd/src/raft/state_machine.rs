//! openraft's state machine over the log lane: storaged has the entries already, so that applying is naming an index.

use super::{C, Reply, decode_membership, log_id, position};
use crate::tenure::Tenure;
use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use mareedb_ipc::wire::storage::{SnapshotMeta as WireMeta, StorageAnswer, StorageRequest};
use mareedb_ipc::wire::{GroupId, LogPosition, RandomId};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use std::collections::BTreeMap;
use std::io;

/// What openraft passes around as a snapshot: never its bytes, which stay in storaged.
#[derive(Clone, Debug)]
pub enum SnapshotHandle {
    /// This node's own state: whoever sends it opens it at that moment.
    Own,
    /// A received state, complete and not yet installed.
    Received(RandomId),
}

/// The state machine of a group.
#[derive(Clone)]
pub struct StateMachine {
    group: GroupId,
    tenure: Tenure,
    applied: WireMeta,
}

impl StateMachine {
    /// The state machine as storaged has recovered it.
    pub fn recovered(tenure: Tenure, group: GroupId, applied: WireMeta) -> StateMachine {
        StateMachine {
            group,
            tenure,
            applied,
        }
    }

    async fn ask(&self, request: StorageRequest) -> io::Result<StorageAnswer> {
        match self.tenure.request(request).await {
            StorageAnswer::Failed { message } => Err(io::Error::other(message)),
            answer => Ok(answer),
        }
    }
}

/// openraft's words for what a snapshot holds.
pub fn from_wire_meta(meta: &WireMeta) -> io::Result<SnapshotMetaOf<C>> {
    let last_membership = match &meta.membership {
        None => StoredMembershipOf::<C>::default(),
        Some((at, bytes)) => {
            StoredMembershipOf::<C>::new(Some(log_id(*at)), decode_membership(bytes)?)
        }
    };
    Ok(SnapshotMetaOf::<C> {
        last_log_id: meta.last_applied.map(log_id),
        last_membership,
    })
}

/// wire's words for what a snapshot holds.
pub fn to_wire_meta(meta: &SnapshotMetaOf<C>) -> WireMeta {
    let membership = meta.last_membership.log_id().as_ref().map(|at| {
        (
            position(at),
            super::encode_membership(meta.last_membership.membership()),
        )
    });
    WireMeta {
        last_applied: meta.last_log_id.as_ref().map(position),
        membership,
    }
}

fn unexpected(answer: &StorageAnswer) -> io::Error {
    io::Error::other(format!("storaged answered something else: {answer:?}"))
}

impl RaftSnapshotBuilder<C> for StateMachine {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<C, SnapshotHandle>, io::Error> {
        // STO-PURGE: the meta tells what is *persisted*, since openraft purges the log by it.
        let group = self.group;
        match self.ask(StorageRequest::BuildSnapshot { group }).await? {
            StorageAnswer::Snapshot(meta) => Ok(SnapshotOf::<C, SnapshotHandle> {
                meta: from_wire_meta(&meta)?,
                snapshot: SnapshotHandle::Own,
            }),
            other => Err(unexpected(&other)),
        }
    }
}

impl RaftStateMachine<C> for StateMachine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogIdOf<C>>, StoredMembershipOf<C>), io::Error> {
        let meta = from_wire_meta(&self.applied)?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<C>, io::Error>> + Unpin + OptionalSend,
    {
        let mut upto: Option<LogPosition> = None;
        let mut waiting: BTreeMap<u64, (bool, ApplyResponder<C>)> = BTreeMap::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            upto = Some(position(&entry.log_id));
            let normal = matches!(entry.payload, EntryPayload::Normal(_));
            if let Some(responder) = responder {
                waiting.insert(entry.log_id.index, (normal, responder));
            }
        }
        let Some(upto) = upto else { return Ok(()) };
        let first_normal = |waiting: &BTreeMap<u64, (bool, ApplyResponder<C>)>| {
            waiting
                .iter()
                .find(|(_, (normal, _))| *normal)
                .map_or(u64::MAX, |(index, _)| *index)
        };
        loop {
            let results_from = first_normal(&waiting);
            let answer = self
                .ask(StorageRequest::Apply {
                    group: self.group,
                    results_from,
                    upto,
                })
                .await?;
            let StorageAnswer::Applied { outcomes, .. } = answer else {
                return Err(unexpected(&answer));
            };
            for (index, outcome) in outcomes {
                if let Some((_, responder)) = waiting.remove(&index) {
                    responder.send(Reply(outcome));
                }
            }
            // Outcomes that do not fit one answer are asked for again; without progress there are none.
            let missing = first_normal(&waiting);
            if missing == u64::MAX || missing == results_from {
                break;
            }
        }
        for (index, (normal, responder)) in waiting {
            if normal {
                // Applied, and its outcome forgotten: who proposed it is told that it is uncertain, and asks again with the
                // same identity.
                tracing::warn!(group = %self.group, index, "storaged gave no outcome");
            }
            responder.send(Reply(Bytes::new()));
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<C>,
        snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        let SnapshotHandle::Received(install) = snapshot else {
            return Err(io::Error::other(
                "this node's own state is no received snapshot",
            ));
        };
        let request = StorageRequest::FinishInstall {
            group: self.group,
            install,
            meta: to_wire_meta(meta),
        };
        match self.ask(request).await? {
            StorageAnswer::Snapshot(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<C, SnapshotHandle>>, io::Error> {
        let group = self.group;
        match self.ask(StorageRequest::CurrentSnapshot { group }).await? {
            StorageAnswer::MaybeSnapshot(None) => Ok(None),
            StorageAnswer::MaybeSnapshot(Some(meta)) => Ok(Some(SnapshotOf::<C, SnapshotHandle> {
                meta: from_wire_meta(&meta)?,
                snapshot: SnapshotHandle::Own,
            })),
            other => Err(unexpected(&other)),
        }
    }
}
