//! What the nodes are like from second to second.

use crate::cluster::Cluster;
use crate::load::number;
use crate::system::{Process, Servers};
use crate::usage::Memory;
use serde::Serialize;
use std::time::Duration;

/// A node under overload may take long to say how it is.
const ASK_LIMIT: Duration = Duration::from_millis(900);

/// The nodes at one moment.
#[derive(Debug, Serialize)]
pub struct Moment {
    /// PSS of each process of each node, in KiB.
    pub pss_kib: Vec<Vec<(&'static str, u64)>>,
    /// Leader and term of the meta group, as the first node that answers sees them.
    pub leader: Option<(String, u64)>,
    /// Processes that are not the ones of the beginning.
    pub replaced: Vec<String>,
}

/// Remembers the processes of the beginning.
pub struct Watch {
    first: Vec<Vec<Process>>,
}

impl Watch {
    /// The nodes as they are now.
    pub fn new(servers: &Servers) -> Watch {
        Watch {
            first: servers.all_processes(),
        }
    }

    /// The nodes as they are now.
    pub async fn look(&self, servers: &Servers) -> Moment {
        let nodes = servers.all_processes().into_iter().map(|node| {
            let memory = node.into_iter();
            let memory = memory.filter_map(|(name, pid)| Some((name, Memory::of(pid)?.pss_kib)));
            memory.collect::<Vec<_>>()
        });
        let mut moment = Moment {
            pss_kib: nodes.collect(),
            leader: None,
            replaced: servers.replaced(&self.first),
        };
        if let Some(cluster) = servers.cluster() {
            moment.leader = leader(cluster).await;
        }
        moment
    }
}

async fn leader(cluster: &Cluster) -> Option<(String, u64)> {
    for node in &cluster.nodes {
        let asked = tokio::time::timeout(ASK_LIMIT, node.ask("/v1/cluster")).await;
        if let Ok(Ok(status)) = asked
            && let Some(leader) = status["leader"].as_str()
        {
            return Some((leader.to_owned(), number(&status["term"])?));
        }
    }
    None
}

impl Moment {
    /// PSS of the node that has most.
    pub fn largest_node_kib(&self) -> u64 {
        self.pss_kib
            .iter()
            .map(|node| node.iter().map(|(_, kib)| kib).sum())
            .max()
            .unwrap_or(0)
    }

    /// PSS of the largest process with this name.
    pub fn largest_kib(&self, name: &str) -> u64 {
        let all = self.pss_kib.iter().flatten();
        all.filter(|(this, _)| *this == name)
            .map(|(_, kib)| *kib)
            .max()
            .unwrap_or(0)
    }
}
