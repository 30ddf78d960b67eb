//! What is known of the other nodes: who they are, when they were last heard of, how far they lag.

use mareedb_ipc::wire::peer::{DownReason, PeerHello};
use mareedb_ipc::wire::{GroupId, NodeId, RandomId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A node without a message for so long counts as offline: a dead one is shown within 2 s.
pub const OFFLINE_MS: u64 = 1_500;

/// So many addresses are remembered at most. A cluster has far fewer; but before it is formed anybody may name some.
pub const PEERS_MAX: usize = 256;

/// A peer by the address at which it is dialled.
#[derive(Debug, Default)]
pub struct Peer {
    /// Its last hello.
    pub hello: Option<PeerHello>,
    /// Whether the outgoing stream is up.
    pub up: bool,
    /// Why it is down.
    pub why: Option<DownReason>,
    /// When it was last heard of.
    pub heard_at: Option<u64>,
    /// When it last said that its disk stalls.
    stalled_at: Option<u64>,
    /// Whether it last said that its clock is ahead of a majority's.
    clock_ahead: bool,
    /// Whether it last said that it takes no leadership.
    declines: bool,
}

/// All peers.
#[derive(Debug, Default)]
pub struct Peers {
    by_addr: BTreeMap<String, Peer>,
    /// The last report of a leader: term, when, lags.
    report: Option<(u64, u64, BTreeMap<NodeId, u64>)>,
}

impl Peers {
    /// What is known of `addr`. When there are too many, the one that was silent for the longest is forgotten.
    fn peer(&mut self, addr: &str) -> &mut Peer {
        if !self.by_addr.contains_key(addr) && self.by_addr.len() >= PEERS_MAX {
            let silent = self.by_addr.iter();
            let silent = silent.min_by_key(|(_, peer)| (peer.up, peer.heard_at));
            if let Some(silent) = silent.map(|(addr, _)| addr.clone()) {
                self.by_addr.remove(&silent);
            }
        }
        self.by_addr.entry(addr.to_owned()).or_default()
    }
    /// The cluster is formed: nobody else is remembered than its members.
    pub fn keep(&mut self, members: &BTreeSet<String>) {
        self.by_addr.retain(|addr, _| members.contains(addr));
    }
    /// A stream is up.
    pub fn up(&mut self, addr: &str, hello: PeerHello) {
        let peer = self.peer(addr);
        peer.up = true;
        peer.why = None;
        peer.hello = Some(hello);
    }
    /// A stream is down.
    pub fn down(&mut self, addr: &str, why: DownReason) {
        let peer = self.peer(addr);
        peer.up = false;
        peer.why = Some(why);
    }
    /// Why the stream to `addr` is down; `None`: it is up, or nothing was told.
    pub fn why_down(&self, addr: &str) -> Option<DownReason> {
        self.by_addr.get(addr).and_then(|peer| peer.why)
    }
    /// A frame came in: of a member, once there is a cluster.
    pub fn heard(&mut self, addr: &str, hello: &PeerHello, now: u64) {
        let peer = self.peer(addr);
        peer.heard_at = Some(now);
        if peer.hello.as_ref() != Some(hello) {
            peer.hello = Some(hello.clone());
        }
    }
    /// A peer says that its disk stalls.
    pub fn stalls(&mut self, addr: &str, now: u64) {
        self.peer(addr).stalled_at = Some(now);
    }
    /// Whether its disk stalls, as far as it has said so lately.
    pub fn stalled(&self, addr: &str, now: u64) -> bool {
        let said = self.by_addr.get(addr).and_then(|peer| peer.stalled_at);
        said.is_some_and(|at| now.saturating_sub(at) < OFFLINE_MS / 2)
    }
    /// A peer says whether its clock is ahead of a majority's.
    pub fn set_clock_ahead(&mut self, addr: &str, ahead: bool) {
        self.peer(addr).clock_ahead = ahead;
    }
    /// A peer says whether it takes leadership.
    pub fn set_declines(&mut self, addr: &str, declines: bool) {
        self.peer(addr).declines = declines;
    }
    /// Whether leadership that is handed to it is taken at once, as far as is known. Its clock is another question.
    pub fn takes_leadership(&self, addr: &str, now: u64) -> bool {
        let declines = self.by_addr.get(addr).is_some_and(|peer| peer.declines);
        self.online(addr, now) && !self.stalled(addr, now) && !declines
    }
    /// Whether its clock is ahead of a majority's, as far as it has said so.
    pub fn clock_ahead(&self, addr: &str) -> bool {
        self.by_addr.get(addr).is_some_and(|peer| peer.clock_ahead)
    }
    /// Whether leadership may be handed to it.
    pub fn fit_to_lead(&self, addr: &str, now: u64) -> bool {
        self.takes_leadership(addr, now) && !self.clock_ahead(addr)
    }
    /// A leader's report came in; an older term's is ignored.
    pub fn reported(&mut self, term: u64, lags: Vec<(NodeId, u64)>, now: u64) {
        if self
            .report
            .as_ref()
            .is_none_or(|(known, ..)| *known <= term)
        {
            self.report = Some((term, now, lags.into_iter().collect()));
        }
    }
    /// Nodes whose outgoing stream is up: where they were dialled, and who they are.
    pub fn connected(&self) -> impl Iterator<Item = (&str, RandomId)> {
        self.by_addr.iter().filter_map(|(addr, peer)| {
            let hello = peer.hello.as_ref().filter(|_| peer.up)?;
            Some((addr.as_str(), hello.identity.incarnation))
        })
    }
    /// A peer.
    pub fn get(&self, addr: &str) -> Option<&Peer> {
        self.by_addr.get(addr)
    }
    /// Milliseconds since a peer was heard of.
    pub fn silence(&self, addr: &str, now: u64) -> Option<u64> {
        Some(now.saturating_sub(self.by_addr.get(addr)?.heard_at?))
    }
    /// Whether it was heard of lately.
    pub fn online(&self, addr: &str, now: u64) -> bool {
        self.silence(addr, now)
            .is_some_and(|silence| silence < OFFLINE_MS)
    }
    /// A node's lag by the last report, unless that is old.
    pub fn lag(&self, node: NodeId, now: u64) -> Option<u64> {
        let (_, at, lags) = self.report.as_ref()?;
        (now.saturating_sub(*at) < OFFLINE_MS).then(|| lags.get(&node).copied())?
    }
    /// Addresses whose nodes turned this one away, if nobody takes it in: then it is this node that is wrong, and not one
    /// stray peer.
    pub fn rejected_by(&self) -> Vec<&str> {
        if self.by_addr.values().any(|peer| peer.up) {
            return Vec::new();
        }
        self.by_addr
            .iter()
            .filter(|(_, peer)| peer.why == Some(DownReason::Rejected))
            .map(|(addr, _)| addr.as_str())
            .collect()
    }
}

/// When each entry came into a leader's log, coarsely: enough to say how old what a follower lacks is.
#[derive(Debug, Default)]
pub struct Ages {
    samples: BTreeMap<GroupId, VecDeque<(u64, u64)>>,
}

/// The end of a leader's log is sampled so often.
pub const SAMPLE_MS: u64 = 10;
/// Samples kept a group, at one each [`SAMPLE_MS`] some 40 s; older ones only make a lag look smaller than it is beyond that.
const SAMPLES_MAX: usize = 4096;

impl Ages {
    /// The log of `group` ends at `last` now.
    pub fn sample(&mut self, group: GroupId, last: u64, now: u64) {
        let samples = self.samples.entry(group).or_default();
        if samples.back().is_none_or(|(index, _)| *index < last) {
            samples.push_back((last, now));
        }
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }
    /// Forgets a group that this node does not lead any more.
    pub fn forget(&mut self, group: GroupId) {
        self.samples.remove(&group);
    }
    /// [`Ages::lag`], if `matched` is not from before what is known: those entries are older than they look.
    pub fn known_lag(&self, group: GroupId, matched: Option<u64>, now: u64) -> Option<u64> {
        let (first, _) = self.samples.get(&group)?.front()?;
        (matched >= Some(*first)).then(|| self.lag(group, matched, now))
    }
    /// Age of the oldest entry beyond `matched`; 0 when there is none.
    pub fn lag(&self, group: GroupId, matched: Option<u64>, now: u64) -> u64 {
        let Some(samples) = self.samples.get(&group) else {
            return 0;
        };
        let beyond = samples.partition_point(|(index, _)| Some(*index) <= matched);
        samples
            .get(beyond)
            .map_or(0, |(_, at)| now.saturating_sub(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mareedb_ipc::wire::FIRST_DATA_GROUP;

    #[test]
    fn lag_is_the_age_of_the_oldest_missing_entry() {
        let mut ages = Ages::default();
        ages.sample(FIRST_DATA_GROUP, 5, 100);
        ages.sample(FIRST_DATA_GROUP, 5, 110);
        ages.sample(FIRST_DATA_GROUP, 9, 120);
        assert_eq!(ages.lag(FIRST_DATA_GROUP, Some(9), 150), 0);
        assert_eq!(ages.known_lag(FIRST_DATA_GROUP, Some(7), 150), Some(30));
        assert_eq!(ages.known_lag(FIRST_DATA_GROUP, Some(4), 150), None);
        assert_eq!(ages.known_lag(FIRST_DATA_GROUP, None, 150), None);
        assert_eq!(ages.lag(FIRST_DATA_GROUP, Some(7), 150), 30);
        assert_eq!(ages.lag(FIRST_DATA_GROUP, Some(4), 150), 50);
        assert_eq!(ages.lag(FIRST_DATA_GROUP, None, 150), 50);
    }

    #[test]
    fn a_stall_is_over_when_nobody_speaks_of_it_any_more() {
        let mut peers = Peers::default();
        peers.by_addr.entry("a".into()).or_default().heard_at = Some(1_000);
        assert!(peers.fit_to_lead("a", 1_000) && !peers.stalled("a", 1_000));
        peers.stalls("a", 1_000);
        assert!(peers.stalled("a", 1_300) && !peers.fit_to_lead("a", 1_300));
        assert!(!peers.stalled("a", 1_000 + OFFLINE_MS / 2));
        assert!(!peers.fit_to_lead("b", 1_000), "it was never heard of");
    }

    #[test]
    fn who_declines_is_not_handed_leadership() {
        let mut peers = Peers::default();
        peers.by_addr.entry("a".into()).or_default().heard_at = Some(1_000);
        assert!(peers.takes_leadership("a", 1_000));
        peers.set_declines("a", true);
        assert!(!peers.takes_leadership("a", 1_000) && !peers.fit_to_lead("a", 1_000));
        peers.set_declines("a", false);
        assert!(peers.takes_leadership("a", 1_000));
    }

    #[test]
    fn addresses_that_anybody_names_do_not_fill_the_memory() {
        let mut peers = Peers::default();
        peers.by_addr.entry("member".into()).or_default().heard_at = Some(u64::MAX);
        for number in 0..3 * PEERS_MAX {
            peers.down(&format!("stranger {number}"), DownReason::Unreachable);
        }
        assert_eq!(peers.by_addr.len(), PEERS_MAX);
        assert!(peers.get("member").is_some(), "it was heard of");
        peers.keep(&BTreeSet::from(["member".to_owned()]));
        assert_eq!(peers.by_addr.len(), 1);
    }

    #[test]
    fn a_report_of_an_older_term_or_of_long_ago_is_not_shown() {
        let mut peers = Peers::default();
        peers.reported(3, vec![(NodeId(1), 7)], 0);
        peers.reported(2, vec![(NodeId(1), 99)], 10);
        assert_eq!(peers.lag(NodeId(1), 10), Some(7));
        assert_eq!(peers.lag(NodeId(1), OFFLINE_MS + 1), None);
    }
}
