//! Documents of `GET /v1/cluster` and what is below it.

use super::number::Decimal;
use super::text::{Encoding, TextError};
use crate::v1;
use serde::{Deserialize, Serialize};

/// The cluster as the node that is asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// 1; raised when a field changes its meaning.
    pub schema_version: u32,
    /// 32 hexadecimal digits; null until the cluster is formed.
    pub cluster_id: Option<String>,
    /// One of [`crate::values::Verdict`].
    pub verdict: String,
    /// Why it is not healthy.
    pub reasons: Vec<Reason>,
    /// Name of the meta group's leader; null when none is known.
    pub leader: Option<String>,
    /// Term of the meta group.
    pub term: Decimal,
    /// Members.
    pub members_total: u32,
    /// Members that are reachable.
    pub members_online: u32,
    /// Members that must agree on a write.
    pub quorum: u32,
    /// How many more members may fail before the quorum is lost.
    pub failures_tolerated: u32,
    /// Largest lag of a member, also of one that is down; null when no leader tells.
    pub replication_lag_ms_max: Option<u64>,
    /// Whether Byzantine fault tolerance is active.
    pub bft_mode: bool,
    /// Members, in order of their id.
    pub members: Vec<Member>,
    /// Replication groups, in order of their id.
    pub groups: Vec<Group>,
    /// Name of the node that answers.
    pub observed_by: String,
}

/// A reason with a code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Code in capitals.
    pub code: String,
    /// What, why, and the way out.
    pub message: String,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name.
    pub name: String,
    /// Internal id, never reused.
    pub id: Decimal,
    /// `ip:port` of gRPC and of the peers.
    pub addr: String,
    /// `ip:port` of the REST API.
    pub rest_addr: String,
    /// One of [`crate::values::MemberRole`].
    pub role: String,
    /// One of [`crate::values::MemberStatus`].
    pub status: String,
    /// Age of the oldest entry that it has not matched; null when unknown.
    pub lag_ms: Option<u64>,
    /// Time since its last message to the node that answers; null: never.
    pub last_contact_ms: Option<u64>,
    /// Version of its executable; empty when unknown.
    pub version: String,
}

/// A replication group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Number; 0 is the meta group.
    pub id: Decimal,
    /// One of [`crate::values::GroupKind`].
    pub kind: String,
    /// First key of its range, in the document's encoding.
    pub start: String,
    /// First key beyond its range; empty: to the end of the key space.
    pub end: String,
    /// Epoch of the range.
    pub epoch: u64,
    /// Name of the leader's node; null when none is known.
    pub leader: Option<String>,
    /// Term.
    pub term: Decimal,
    /// Last committed entry that the answering node knows of; null when it has no replica.
    pub commit_index: Option<Decimal>,
    /// Its replicas.
    pub replicas: Vec<Replica>,
}

/// A replica of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Replica id, never reused.
    pub id: Decimal,
    /// Name of its node.
    pub node: String,
    /// One of [`crate::values::ReplicaKind`].
    pub kind: String,
}

impl ClusterStatus {
    /// The document of a status.
    pub fn from_proto(
        status: &v1::ClusterStatusResponse,
        encoding: Encoding,
    ) -> Result<Self, TextError> {
        Ok(ClusterStatus {
            schema_version: status.schema_version,
            cluster_id: status.cluster_id.clone(),
            verdict: status.verdict.clone(),
            reasons: status.reasons.iter().map(Reason::from).collect(),
            leader: status.leader.clone(),
            term: Decimal(status.term),
            members_total: status.members_total,
            members_online: status.members_online,
            quorum: status.quorum,
            failures_tolerated: status.failures_tolerated,
            replication_lag_ms_max: status.replication_lag_ms_max,
            bft_mode: status.bft_mode,
            members: status.members.iter().map(Member::from).collect(),
            groups: status
                .groups
                .iter()
                .map(|group| Group::from_proto(group, encoding))
                .collect::<Result<_, _>>()?,
            observed_by: status.observed_by.clone(),
        })
    }
}

impl From<&v1::Reason> for Reason {
    fn from(reason: &v1::Reason) -> Self {
        Reason {
            code: reason.code.clone(),
            message: reason.message.clone(),
        }
    }
}

impl From<&v1::Member> for Member {
    fn from(member: &v1::Member) -> Self {
        Member {
            name: member.name.clone(),
            id: Decimal(member.id),
            addr: member.addr.clone(),
            rest_addr: member.rest_addr.clone(),
            role: member.role.clone(),
            status: member.status.clone(),
            lag_ms: member.lag_ms,
            last_contact_ms: member.last_contact_ms,
            version: member.version.clone(),
        }
    }
}

impl Group {
    fn from_proto(group: &v1::Group, encoding: Encoding) -> Result<Self, TextError> {
        Ok(Group {
            id: Decimal(group.id),
            kind: group.kind.clone(),
            start: encoding.write(&group.start)?,
            end: encoding.write(&group.end)?,
            epoch: group.epoch,
            leader: group.leader.clone(),
            term: Decimal(group.term),
            commit_index: group.commit_index.map(Decimal),
            replicas: group
                .replicas
                .iter()
                .map(|replica| Replica {
                    id: Decimal(replica.id),
                    node: replica.node.clone(),
                    kind: replica.kind.clone(),
                })
                .collect(),
        })
    }
}

/// Elections, newest first, at most 1,000.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elections {
    /// The elections.
    pub items: Vec<Election>,
}

/// A leader took office.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Election {
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Group.
    pub group: Decimal,
    /// Term that it began.
    pub term: Decimal,
    /// Name of the leader's node.
    pub leader: String,
    /// Why there was an election.
    pub reason: String,
}

impl From<&v1::ElectionsResponse> for Elections {
    fn from(answer: &v1::ElectionsResponse) -> Self {
        Elections {
            items: answer
                .items
                .iter()
                .map(|election| Election {
                    at_unix_ms: election.at_unix_ms,
                    group: Decimal(election.group),
                    term: Decimal(election.term),
                    leader: election.leader.clone(),
                    reason: election.reason.clone(),
                })
                .collect(),
        }
    }
}

/// Answer to `POST /v1/cluster/transfer-leadership`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferAnswer {
    /// Name of the node that leads now.
    pub leader: String,
}

impl From<&v1::TransferLeadershipResponse> for TransferAnswer {
    fn from(answer: &v1::TransferLeadershipResponse) -> Self {
        TransferAnswer {
            leader: answer.leader.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn status() -> v1::ClusterStatusResponse {
        v1::ClusterStatusResponse {
            schema_version: 1,
            cluster_id: Some("0".repeat(32)),
            verdict: "degraded".into(),
            reasons: vec![v1::Reason {
                code: "MEMBER_DOWN".into(),
                message: "node3 is down".into(),
            }],
            leader: Some("node1".into()),
            term: 1 << 60,
            members_total: 3,
            members_online: 2,
            quorum: 2,
            failures_tolerated: 0,
            replication_lag_ms_max: None,
            bft_mode: false,
            members: vec![v1::Member {
                name: "node1".into(),
                id: 1,
                addr: "192.168.1.10:7001".into(),
                rest_addr: "192.168.1.10:8080".into(),
                role: "leader".into(),
                status: "ok".into(),
                lag_ms: Some(0),
                last_contact_ms: None,
                version: "0.1.0".into(),
            }],
            groups: vec![v1::Group {
                id: 1,
                kind: "data".into(),
                start: "a".into(),
                end: Default::default(),
                epoch: 1,
                leader: None,
                term: 4,
                commit_index: Some(9),
                replicas: vec![v1::Replica {
                    id: 5,
                    node: "node1".into(),
                    kind: "voter".into(),
                }],
            }],
            observed_by: "node2".into(),
        }
    }

    #[test]
    fn the_status_has_the_shape_of_the_contract() {
        let document = ClusterStatus::from_proto(&status(), Encoding::Base64).unwrap();
        let json = serde_json::to_value(&document).unwrap();
        assert_eq!(
            json,
            json!({"schema_version": 1, "cluster_id": "00000000000000000000000000000000", "verdict": "degraded",
                "reasons": [{"code": "MEMBER_DOWN", "message": "node3 is down"}], "leader": "node1",
                "term": "1152921504606846976", "members_total": 3, "members_online": 2, "quorum": 2,
                "failures_tolerated": 0, "replication_lag_ms_max": null, "bft_mode": false,
                "members": [{"name": "node1", "id": "1", "addr": "192.168.1.10:7001",
                    "rest_addr": "192.168.1.10:8080", "role": "leader", "status": "ok", "lag_ms": 0,
                    "last_contact_ms": null, "version": "0.1.0"}],
                "groups": [{"id": "1", "kind": "data", "start": "YQ==", "end": "", "epoch": 1, "leader": null,
                    "term": "4", "commit_index": "9", "replicas": [{"id": "5", "node": "node1",
                    "kind": "voter"}]}],
                "observed_by": "node2"})
        );
        assert_eq!(
            serde_json::from_value::<ClusterStatus>(json).unwrap(),
            document
        );
    }

    #[test]
    fn a_later_version_may_add_fields() {
        let document = ClusterStatus::from_proto(&status(), Encoding::Base64).unwrap();
        let mut json = serde_json::to_value(&document).unwrap();
        json["regions"] = json!(["north"]);
        json["verdict"] = json!("sleeping");
        assert_eq!(
            serde_json::from_value::<ClusterStatus>(json)
                .unwrap()
                .verdict,
            "sleeping"
        );
    }

    #[test]
    fn elections() {
        let answer = v1::ElectionsResponse {
            items: vec![v1::Election {
                at_unix_ms: 1_700_000_000_000,
                group: 0,
                term: 2,
                leader: "node2".into(),
                reason: "the leader's node is gone".into(),
            }],
        };
        let json = serde_json::to_value(Elections::from(&answer)).unwrap();
        assert_eq!(
            json,
            json!({"items": [{"at_unix_ms": 1_700_000_000_000_u64, "group": "0", "term": "2", "leader": "node2",
                "reason": "the leader's node is gone"}]})
        );
    }

    #[test]
    fn a_transfer() {
        let answer = v1::TransferLeadershipResponse {
            leader: "node2".into(),
        };
        let json = serde_json::to_value(TransferAnswer::from(&answer)).unwrap();
        assert_eq!(json, json!({"leader": "node2"}));
    }
}
