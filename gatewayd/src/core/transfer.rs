//! Leadership that is to be handed over: asked for, and awaited.

use super::answers::{consensus_error, no_leader};
use super::{Attempt, Core};
use crate::peer::frame::{Call, Reply};
use mareedb_api::{ApiError, ErrorCode};
use mareedb_ipc::wire::gateway::{AdminRequest, ConsensusError};
use mareedb_ipc::wire::view::{ClusterView, GroupView};
use mareedb_ipc::wire::{GroupId, META_GROUP, NodeId};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

impl Core {
    /// Has the member with this name lead all groups; empty: one that the cluster's leader chooses takes over what that one leads. Gives the
    /// name once this node sees that it leads, which may be at once.
    ///
    /// # Errors
    /// NOT_FOUND: no member has the name. PRECONDITION_FAILED: there is no other member. NOT_READY: nobody is fit to take over.
    /// NO_QUORUM: nobody leads, or the leader cannot be reached. OUTCOME_UNKNOWN: it was asked for, and has not come about by `deadline`,
    /// or one of several leaders has refused.
    pub async fn transfer_to(&self, name: &str, deadline: Instant) -> Result<String, ApiError> {
        let view = self.view().filter(|view| !view.groups.is_empty());
        let view = view.ok_or_else(|| self.not_ready())?;
        if !name.is_empty() {
            let to = view.member_named(name).ok_or_else(|| {
                ApiError::new(ErrorCode::NotFound, format!("no member is called '{name}'"))
            })?;
            let all = view.groups.iter().map(|group| group.id).collect();
            return self.bring(to.id, all, BTreeSet::new(), deadline).await;
        }
        if view.members.len() < 2 {
            let alone = "the cluster has no other member that could lead";
            return Err(ApiError::new(ErrorCode::PreconditionFailed, alone)
                .with_remedy("No other node could lead: there is nothing to do."));
        }
        let (view, leader, heir) = self.hand_over(deadline).await?;
        let led = view.groups.iter();
        let led = led.filter(|group| group.leader == Some(leader));
        let led = led.map(|group| group.id).collect();
        let to = view.member_named(&heir).ok_or_else(|| {
            let what = format!("leadership goes to '{heir}', whom this node does not know");
            ApiError::new(ErrorCode::OutcomeUnknown, what).with_remedy(LOOK)
        })?;
        self.bring(to.id, led, BTreeSet::from([leader]), deadline)
            .await
    }

    /// Has who leads the meta group name an heir. Between two leaders there is none for a moment, or this node still names the old one.
    async fn hand_over(
        &self,
        deadline: Instant,
    ) -> Result<(Arc<ClusterView>, NodeId, String), ApiError> {
        loop {
            let mut why = self.unready();
            let view = self.view();
            let meta = view.as_ref().and_then(|view| view.group(META_GROUP));
            if let (Some(view), Some(meta)) = (&view, meta) {
                why = Attempt::Unproposed(ErrorCode::NoQuorum, no_leader(view, meta));
                if let Some(leader) = meta.leader {
                    match self.ask_to_hand_over(view, leader, None, deadline).await {
                        Ok(heir) => return Ok((view.clone(), leader, heir)),
                        Err(moved @ Attempt::Unproposed(ErrorCode::NoQuorum, _)) => why = moved,
                        Err(other) => return Err(other.told()),
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(why.told());
            }
            self.pause(deadline).await;
        }
    }

    /// Waits until these groups are led by one node. Leaders that were not `asked` yet are asked to hand over to it.
    async fn bring(
        &self,
        to: NodeId,
        groups: Vec<GroupId>,
        mut asked: BTreeSet<NodeId>,
        deadline: Instant,
    ) -> Result<String, ApiError> {
        loop {
            let view = self.view().ok_or_else(|| self.not_ready())?;
            let elsewhere = elsewhere(&view, &groups, to);
            let Some(first) = elsewhere.first() else {
                return Ok(name_of(&view, to));
            };
            let mut why = Attempt::Unproposed(ErrorCode::NoQuorum, no_leader(&view, first));
            let mut leaders = elsewhere.iter().filter_map(|group| group.leader);
            let leader = leaders.find(|leader| !asked.contains(leader));
            if let Some(leader) = leader {
                match self
                    .ask_to_hand_over(&view, leader, Some(to), deadline)
                    .await
                {
                    Err(Attempt::Final(error)) if asked.is_empty() => return Err(error),
                    // Others were asked, and may have handed over.
                    Err(Attempt::Final(error)) => {
                        return Err(may_arrive(&view, first, to, &error.message));
                    }
                    // It cannot be reached, or leads nothing any more: the view will say who does.
                    Err(Attempt::Unproposed(code, message)) => {
                        why = Attempt::Unproposed(code, message);
                    }
                    Ok(_) | Err(Attempt::Uncertain) => {
                        asked.insert(leader);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(if asked.is_empty() {
                    why.told()
                } else {
                    may_arrive(&view, first, to, "timeout_ms is over")
                });
            }
            self.pause(deadline).await;
        }
    }

    /// Asks a node that leads groups to hand them over; names who takes over, if that is known.
    async fn ask_to_hand_over(
        &self,
        view: &ClusterView,
        leader: NodeId,
        to: Option<NodeId>,
        deadline: Instant,
    ) -> Result<String, Attempt> {
        let asked = async {
            if view.me.id == Some(leader) {
                let request = AdminRequest::TransferLeadership { to };
                return Ok(self.calls.admin(request).await);
            }
            let member = view.member(leader).ok_or_else(|| self.unready())?;
            let call = Call::Transfer {
                to: to.map(|NodeId(id)| id),
            };
            match self.forward(&member.addr, deadline, call).await? {
                Reply::Transferred(result) => Ok(result),
                _ => Err(Attempt::Uncertain),
            }
        };
        let told = timeout_at(deadline, asked).await;
        told.unwrap_or(Err(Attempt::Uncertain))?
            .map_err(|error| match error {
                // Nobody is fit; that may be over in a moment.
                ConsensusError::Refused(why) => Attempt::Final(
                    ApiError::new(ErrorCode::NotReady, why).with_remedy(
                        "Wait until maree-db-cli cluster status shows another member online and without lag, then try again.",
                    ),
                ),
                error => consensus_error(error),
            })
    }
}

/// What to do when leadership may still move.
const LOOK: &str =
    "See who leads (maree-db-cli cluster status), and ask again if it is not who should.";

/// What is told of leadership that was asked for, and is not there.
fn may_arrive(view: &ClusterView, group: &GroupView, to: NodeId, why: &str) -> ApiError {
    let (group, to) = (group.id, name_of(view, to));
    let what = format!("leadership of {group} has not come to {to}: {why}");
    ApiError::new(ErrorCode::OutcomeUnknown, what).with_remedy(LOOK)
}

/// Those of the groups that are led by another node, or by none.
fn elsewhere<'a>(view: &'a ClusterView, groups: &[GroupId], to: NodeId) -> Vec<&'a GroupView> {
    let groups = view
        .groups
        .iter()
        .filter(|group| groups.contains(&group.id));
    groups.filter(|group| group.leader != Some(to)).collect()
}

fn name_of(view: &ClusterView, id: NodeId) -> String {
    let member = view.member(id);
    member.map(|member| member.name.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::Bed;
    use crate::links::tests::later;
    use mareedb_config::Config;
    use mareedb_ipc::wire::FIRST_DATA_GROUP;
    use mareedb_ipc::wire::gateway::{FromConsensus, ToConsensus};

    #[tokio::test]
    async fn a_leader_that_refuses_says_nothing_of_those_that_were_asked_before() {
        for (before, code) in [
            (BTreeSet::new(), ErrorCode::NotReady),
            (BTreeSet::from([NodeId(2)]), ErrorCode::OutcomeUnknown),
        ] {
            let mut bed = Bed::new(Config::default());
            bed.led_by(2, 1);
            let core = bed.core.clone();
            let mut groups = vec![FIRST_DATA_GROUP];
            if !before.is_empty() {
                groups.push(META_GROUP);
            }
            let moved = core.bring(NodeId(3), groups, before, later());
            tokio::pin!(moved);
            let call = match bed.asked(moved.as_mut()).await {
                ToConsensus::Admin { call, .. } => call,
                other => panic!("{other:?}"),
            };
            let result = Err(ConsensusError::Refused("nobody is fit".into()));
            bed.told(&FromConsensus::Admin { call, result });
            let told = moved.await.unwrap_err();
            assert_eq!(told.code, code, "{told}");
            assert!(told.message.contains("nobody is fit"), "{told}");
        }
    }
}
