//! Leadership that is to be handed over.

use super::answers::consensus_error;
use super::{Attempt, Core, Leader};
use crate::peer::frame::{Call, Reply};
use mareedb_api::{ApiError, ErrorCode};
use mareedb_ipc::wire::gateway::AdminRequest;
use mareedb_ipc::wire::{META_GROUP, NodeId};
use tokio::time::Instant;

impl Core {
    /// [`Core::transfer`] to the member with this name; empty: to the one with the longest log.
    ///
    /// # Errors
    /// NOT_FOUND: no member has the name; else as [`Core::transfer`].
    pub async fn transfer_to(&self, name: &str, deadline: Instant) -> Result<String, ApiError> {
        let view = self.view();
        let member = view
            .iter()
            .flat_map(|view| &view.members)
            .find(|member| member.name == name);
        if member.is_none() && !name.is_empty() {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!("no member is called '{name}'"),
            ));
        }
        self.transfer(member.map(|member| member.id), deadline)
            .await
    }

    /// Hands the leaderships of the leader's node over.
    ///
    /// # Errors
    /// Nobody leads, or nobody can take over.
    pub async fn transfer(
        &self,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<String, ApiError> {
        let within = deadline.saturating_duration_since(Instant::now());
        let told = |attempt| match attempt {
            Attempt::Unproposed(code, why) => ApiError::new(code, why),
            Attempt::Final(error) => error,
            Attempt::Uncertain => {
                ApiError::new(ErrorCode::OutcomeUnknown, "the leader did not answer")
            }
        };
        let result = match self.leader_of(META_GROUP).map_err(told)? {
            Leader::Here => {
                let request = AdminRequest::TransferLeadership { to };
                self.calls.admin(request).await
            }
            Leader::At(addr) => {
                let call = Call::Transfer {
                    to: to.map(|NodeId(id)| id),
                };
                match self.peers.call(&addr, within, call).await {
                    Ok(Reply::Transferred(result)) => result,
                    _ => return Err(told(Attempt::Uncertain)),
                }
            }
        };
        result.map_err(|error| told(consensus_error(error)))
    }
}
