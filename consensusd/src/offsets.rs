//! How far this node's wall clock is ahead of the others', as far as can be said for certain.
//!
//! Each node tells its clock, and repeats the last one that it was told with the time that it has held it since. What comes
//! back so was read before the other clock was: the difference is what this clock is ahead by *at least*, whatever the
//! network's delays, and a slow network never makes a clock look fast.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was heard of a clock holds for so long.
const FRESH_MS: u64 = 3_000;

/// A clock that was told, as it is given back. Between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What it said, in milliseconds since 1970.
    pub wall_ms: u64,
    /// For how many milliseconds that was held.
    pub for_ms: u64,
}

#[derive(Debug, Default)]
struct Heard {
    /// Its clock, and when it was told.
    clock: Option<(u64, u64)>,
    /// What this node is ahead of it by at least, and when that was found.
    lead_ms: Option<(i64, u64)>,
}

/// Where a clock stands among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Ahead of a majority's by at least so many milliseconds, which is too much.
    Ahead(u64),
    /// It is not.
    Agrees,
    /// Too few have told theirs lately.
    Unknown,
}

/// The other nodes' wall clocks.
#[derive(Debug, Default)]
pub struct Offsets(BTreeMap<String, Heard>);

impl Offsets {
    /// What is to be given back to the node at `addr`.
    pub fn held(&self, addr: &str, now: u64) -> Option<Held> {
        let (wall_ms, at) = self.0.get(addr)?.clock?;
        let for_ms = now.saturating_sub(at);
        Some(Held { wall_ms, for_ms })
    }

    /// The node at `addr` tells its clock, and gives back this node's.
    pub fn heard(&mut self, addr: &str, wall_ms: u64, back: Option<Held>, now: u64) {
        let heard = self.0.entry(addr.to_owned()).or_default();
        heard.clock = Some((wall_ms, now));
        if let Some(back) = back {
            let lead = i128::from(back.wall_ms) + i128::from(back.for_ms) - i128::from(wall_ms);
            let lead = lead.clamp(i64::MIN.into(), i64::MAX.into());
            heard.lead_ms = Some((i64::try_from(lead).unwrap_or(0), now));
        }
    }

    /// Where this node's clock stands. `others`: all members but this one.
    pub fn standing<'a>(
        &self,
        others: impl ExactSizeIterator<Item = &'a str>,
        limit_ms: u64,
        now: u64,
    ) -> Standing {
        let count = others.len();
        let majority = count.div_ceil(2) + 1;
        let fresh = others
            .filter_map(|addr| self.0.get(addr)?.lead_ms)
            .filter(|(_, at)| now.saturating_sub(*at) < FRESH_MS)
            .map(|(lead, _)| u64::try_from(lead).unwrap_or(0));
        let (mut ahead, agree): (Vec<u64>, Vec<u64>) = fresh.partition(|lead| *lead > limit_ms);
        ahead.sort_unstable_by(|a, b| b.cmp(a));
        match ahead.get(majority - 1) {
            Some(lead) => Standing::Ahead(*lead),
            // Whatever those say that are silent, it is no majority.
            None if count - agree.len() < majority => Standing::Agrees,
            None => Standing::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Agrees, Ahead, Unknown};
    use super::*;

    fn held(wall_ms: u64, for_ms: u64) -> Option<Held> {
        Some(Held { wall_ms, for_ms })
    }

    fn told(leads: &[(&str, i64)], now: u64) -> Offsets {
        let mut offsets = Offsets::default();
        for (addr, lead) in leads {
            let theirs = 1_000_000u64.saturating_add_signed(-lead);
            offsets.heard(addr, theirs, held(999_900, 100), now);
        }
        offsets
    }

    fn standing(offsets: &Offsets, others: &[&str], now: u64) -> Standing {
        offsets.standing(others.iter().copied(), 500, now)
    }

    #[test]
    fn who_is_ahead_of_a_majority_knows_it() {
        let both = told(&[("b", 800), ("c", 700)], 0);
        assert_eq!(standing(&both, &["b", "c"], 0), Ahead(700));
        assert_eq!(standing(&both, &["b", "c"], FRESH_MS), Unknown, "long ago");
        // Two of three are the majority, and there are only two others.
        let one = told(&[("b", 800), ("c", 500)], 0);
        assert_eq!(standing(&one, &["b", "c"], 0), Agrees);
        assert_eq!(standing(&told(&[("b", 800)], 0), &["b", "c"], 0), Unknown);
        assert_eq!(standing(&told(&[("b", 80)], 0), &["b", "c"], 0), Agrees);
        let five = told(&[("b", 800), ("c", 700), ("d", 600), ("e", -9_000)], 0);
        assert_eq!(standing(&five, &["b", "c", "d", "e"], 0), Ahead(600));
        let five = told(&[("b", 800), ("c", 70), ("d", -600)], 0);
        assert_eq!(standing(&five, &["b", "c", "d", "e"], 0), Agrees);
        // Of two nodes, nobody can say who is right: one is no majority; nor of four are two.
        assert_eq!(standing(&told(&[("b", 800)], 0), &["b"], 0), Agrees);
        let four = told(&[("b", 800), ("c", 700)], 0);
        assert_eq!(standing(&four, &["b", "c", "d"], 0), Unknown);
        assert_eq!(standing(&Offsets::default(), &[], 0), Agrees);
    }

    #[test]
    fn a_slow_network_makes_no_clock_fast_and_no_word_breaks_it() {
        // Equal clocks: what comes back 9 s late on each way shows no lead.
        let mut offsets = Offsets::default();
        offsets.heard("b", 1_010_000, held(1_000_000, 1_000), 18_000);
        assert_eq!(offsets.held("b", 18_250), held(1_010_000, 250));
        assert_eq!(standing(&offsets, &["b", "c"], 18_000), Agrees);
        offsets.heard("b", 0, held(u64::MAX, u64::MAX), 1);
        offsets.heard("c", u64::MAX, held(0, 0), 1);
        assert_eq!(standing(&offsets, &["b", "c"], 1), Agrees);
        assert_eq!(offsets.held("b", 0), held(0, 0));
        assert_eq!(offsets.held("d", 0), None);
    }
}
