//! Calls of gatewayd.

use super::{BATCH, Host};
use crate::client::Call;
use bytes::Bytes;
use mareedb_ipc::RingError;
use mareedb_ipc::wire::GroupId;
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError, ToConsensus};
use std::collections::BTreeMap;

impl Host {
    pub(super) fn take_client(&mut self) -> Result<bool, RingError> {
        let mut proposals: BTreeMap<GroupId, Vec<(Call, Bytes)>> = BTreeMap::new();
        let mut drained = false;
        for _ in 0..BATCH {
            let Some((message, end)) = self.lanes.from_client.try_recv::<ToConsensus>()? else {
                drained = true;
                break;
            };
            self.lanes.from_client.release(end);
            match message {
                ToConsensus::Hello { epoch } => {
                    tracing::info!(epoch, "gatewayd is up");
                    self.client.born();
                    self.exchange.reborn();
                    // It may have attached before this process did, and holds calls that a predecessor took.
                    self.hello_to_gateway();
                    self.sent_view = None;
                    self.sent_targets = None;
                    // It dials nobody, and turns peers away, before it knows who it is.
                    self.send_targets();
                }
                ToConsensus::Propose {
                    call,
                    group,
                    command,
                } => {
                    let call = self.client.call(call);
                    if self.replicas.contains_key(&group) {
                        proposals.entry(group).or_default().push((call, command));
                    } else {
                        self.client.proposed(call, Err(ConsensusError::NotReady));
                    }
                }
                ToConsensus::ReadIndex { call, group } => {
                    let call = self.client.call(call);
                    match self.replicas.get(&group) {
                        Some(replica) => replica.read_index(call),
                        None => self.client.read_index(call, Err(ConsensusError::NotReady)),
                    }
                }
                ToConsensus::Admin { call, request } => self.admin(call, &request),
            }
        }
        for (group, batch) in proposals {
            if let Some(replica) = self.replicas.get(&group) {
                replica.propose(batch);
            }
        }
        Ok(drained)
    }

    pub(super) fn admin(&mut self, call: u64, request: &AdminRequest) {
        let AdminRequest::TransferLeadership { to } = request;
        let result = self.hand_over(*to);
        self.client.admin(self.client.call(call), result);
    }
}
