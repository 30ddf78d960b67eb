//! Formation as other nodes drive it.

use super::next;
use mareedb_config::Config;
use mareedb_consensusd::formation::{Action, Facts, Formation, Member, Message, Proposal};
use mareedb_ipc::wire::storage::NodeRecord;
use mareedb_ipc::wire::view::Reason;
use mareedb_ipc::wire::{NodeId, RandomId};
use serde::{Deserialize, Serialize};

/// This node's incarnation.
pub(crate) const ME: RandomId = RandomId(7);

/// What happens to it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Step {
    /// So many milliseconds pass.
    Tick(u16),
    /// A node says something.
    Message(u8, Message),
    /// A node answered at an address.
    Connected(u8, u8),
    /// The oldest record that waits is durable.
    Saved,
}

pub(crate) fn begin(records: &[NodeRecord]) -> Result<Formation, Reason> {
    let mut config = Config::default();
    config.cluster.enabled = true;
    config.cluster.replication_factor = 2;
    config.cluster.peers = vec![addr(1), addr(2)];
    let mut drawn = ME.0;
    let draw = Box::new(move || {
        drawn += 1;
        RandomId(drawn - 1)
    });
    Formation::new(&config, "node1", &addr(0), "127.0.0.1:8080", records, draw)
}

fn addr(number: u8) -> String {
    format!("127.0.0.{}:7001", number % 4)
}

/// FORM-1: a member accepts at most one cluster, whatever it is told.
pub(crate) fn drive(formation: &mut Formation, mut bytes: &[u8]) {
    let mut now = 0;
    let mut unsaved: Vec<NodeRecord> = Vec::new();
    let mut accepted: Option<RandomId> = None;
    while let Some(step) = next::<Step>(&mut bytes) {
        let actions = match step {
            Step::Tick(ms) => {
                now += u64::from(ms);
                formation.tick(now)
            }
            Step::Message(from, message) => {
                let incarnation = RandomId(u128::from(from % 16));
                formation.message(&addr(from), incarnation, message, now)
            }
            Step::Connected(from, incarnation) => {
                formation.connected(&addr(from), RandomId(u128::from(incarnation)));
                Vec::new()
            }
            Step::Saved if unsaved.is_empty() => Vec::new(),
            Step::Saved => formation.saved(&unsaved.remove(0).name),
        };
        for action in actions {
            match action {
                Action::Save(record) => unsaved.push(record),
                Action::Send(_, Message::Accepted(cluster)) => {
                    assert_eq!(*accepted.get_or_insert(cluster), cluster, "FORM-1");
                }
                Action::Send(..) => {}
            }
        }
        let _ = (formation.forming(), formation.targets(), formation.my_id());
        let _ = (formation.is_founder(), formation.refused().is_some());
    }
}

pub(crate) fn facts(number: u8) -> Facts {
    Facts {
        name: format!("node{}", number + 1),
        incarnation: RandomId(u128::from(number) + ME.0),
        addr: addr(number),
        rest_addr: "127.0.0.1:8080".into(),
    }
}

pub(crate) fn proposal() -> Proposal {
    Proposal {
        cluster: RandomId(9),
        members: [0, 1]
            .map(|number| Member {
                id: NodeId(u64::from(number) + 1),
                facts: facts(number),
            })
            .to_vec(),
    }
}

pub(crate) fn steps() -> Vec<Step> {
    let hello = Message::Hello {
        facts: facts(1),
        met: [facts(0).incarnation, facts(1).incarnation].into(),
        peers: vec![addr(0)],
        cluster: None,
        at_least: 2,
    };
    let third = Message::Hello {
        facts: facts(2),
        met: [0, 1, 2].map(|number| facts(number).incarnation).into(),
        peers: vec![addr(0), addr(1)],
        cluster: None,
        at_least: 2,
    };
    vec![
        Step::Tick(100),
        Step::Saved,
        Step::Connected(1, 8),
        Step::Connected(2, 9),
        Step::Message(1, hello),
        Step::Message(2, third),
        Step::Tick(100),
        Step::Saved,
        Step::Tick(100),
        Step::Message(8, Message::Accepted(RandomId(8))),
        Step::Message(9, Message::Accepted(RandomId(8))),
        Step::Tick(100),
        Step::Saved,
        Step::Tick(100),
    ]
}

pub(crate) fn told() -> Vec<Step> {
    vec![
        Step::Tick(100),
        Step::Saved,
        Step::Message(1, Message::Propose(proposal())),
        Step::Saved,
        Step::Message(1, Message::Propose(proposal())),
        Step::Message(1, Message::Formed(proposal())),
        Step::Saved,
        Step::Tick(100),
    ]
}
