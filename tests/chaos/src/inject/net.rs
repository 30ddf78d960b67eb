//! Faults of the network between the nodes.

use super::Strike;
use crate::fault::Action;
use mareedb_bench::net::{Link, Switch};
use std::time::{Duration, Instant};

impl Strike<'_> {
    /// Disturbs links for as long as the fault lasts.
    pub(super) async fn disturb(&mut self, switch: &Switch, action: Action) -> Option<u64> {
        let count = self.bed.count();
        if count < 2 {
            return None;
        }
        let at = self.at;
        match action {
            Action::Halves => {
                // A minority, with the place in it.
                let size = 1 + self.random.below((count as u64 - 1) / 2);
                let size = usize::try_from(size).expect("few nodes");
                let inside: Vec<usize> = (0..size).map(|step| (at + step) % count).collect();
                self.cut_off(switch, &inside).await
            }
            Action::IsolateLeader => self.cut_off(switch, &[self.bed.leader()]).await,
            Action::OneWay => {
                // Either one does not hear it, or nobody does.
                let deaf: Vec<usize> = if self.random.percent(50) {
                    vec![(at + 1) % count]
                } else {
                    (0..count).filter(|other| *other != at).collect()
                };
                let ways: Vec<(usize, usize)> = deaf.iter().map(|other| (at, *other)).collect();
                let bits = deaf.iter().fold(0, |bits, at| bits | Self::bit(*at));
                let victims = Self::bit(at) | if deaf.len() == 1 { bits } else { 0 };
                self.change(
                    switch,
                    &ways,
                    |link| link.cut = true,
                    |link| link.cut = false,
                )
                .await;
                Some(victims)
            }
            Action::Bridge => {
                let half = (count - 1) / 2;
                let side = |step: usize| (at + 1 + step) % count;
                let mut ways = Vec::new();
                for one in 0..half {
                    for other in half..count - 1 {
                        ways.push((side(one), side(other)));
                        ways.push((side(other), side(one)));
                    }
                }
                self.change(
                    switch,
                    &ways,
                    |link| link.cut = true,
                    |link| link.cut = false,
                )
                .await;
                Some(((1 << count) - 1) & !Self::bit(at))
            }
            Action::Flap => {
                let end = Instant::now() + self.lasts;
                let ways = both_ways(&[at], count);
                while Instant::now() < end {
                    for cut in [true, false] {
                        for (from, to) in &ways {
                            switch.change(*from, *to, |link| link.cut = cut);
                        }
                        let pause = Duration::from_millis(self.random.within((30, 500)));
                        tokio::time::sleep(pause).await;
                    }
                }
                Some(Self::bit(at))
            }
            Action::Delay => {
                let delay = Duration::from_millis(self.random.within((2, 120)));
                let jitter = delay.mul_f64(self.random.below(100) as f64 / 100.0);
                let begin = |link: &mut Link| {
                    link.delay = delay;
                    link.jitter = jitter;
                };
                let end = |link: &mut Link| {
                    link.delay = Duration::ZERO;
                    link.jitter = Duration::ZERO;
                };
                self.around(switch, begin, end).await
            }
            Action::Slow => {
                let rate = self.random.within((20_000, 300_000));
                self.around(
                    switch,
                    |link| link.bytes_per_s = rate,
                    |link| link.bytes_per_s = 0,
                )
                .await
            }
            Action::Loss => {
                let lost = u32::try_from(self.random.within((10, 400))).expect("below 1000");
                self.around(
                    switch,
                    |link| link.loss_permille = lost,
                    |link| link.loss_permille = 0,
                )
                .await
            }
            Action::Reset => {
                self.around(switch, |link| link.reset = true, |link| link.reset = false)
                    .await
            }
            Action::Refuse => {
                // Connections that are up have to go, else nobody dials.
                let begin = |link: &mut Link| {
                    link.refuse = true;
                    link.reset = true;
                };
                let end = |link: &mut Link| {
                    link.refuse = false;
                    link.reset = false;
                };
                self.around(switch, begin, end).await
            }
            _ => unreachable!("{action:?} is no fault of the network"),
        }
    }

    /// Cuts some nodes off from the others.
    async fn cut_off(&self, switch: &Switch, inside: &[usize]) -> Option<u64> {
        let ways = both_ways(inside, self.bed.count());
        self.change(
            switch,
            &ways,
            |link| link.cut = true,
            |link| link.cut = false,
        )
        .await;
        Some(inside.iter().fold(0, |bits, at| bits | Self::bit(*at)))
    }

    /// Changes all links of the struck node.
    async fn around(
        &self,
        switch: &Switch,
        begin: impl Fn(&mut Link),
        end: impl Fn(&mut Link),
    ) -> Option<u64> {
        let ways = both_ways(&[self.at], self.bed.count());
        self.change(switch, &ways, begin, end).await;
        Some(Self::bit(self.at))
    }

    async fn change(
        &self,
        switch: &Switch,
        ways: &[(usize, usize)],
        begin: impl Fn(&mut Link),
        end: impl Fn(&mut Link),
    ) {
        for (from, to) in ways {
            switch.change(*from, *to, &begin);
        }
        self.last().await;
        for (from, to) in ways {
            switch.change(*from, *to, &end);
        }
    }
}

/// All links between some nodes and the others, both directions.
fn both_ways(inside: &[usize], count: usize) -> Vec<(usize, usize)> {
    let mut ways = Vec::new();
    for at in inside {
        for other in (0..count).filter(|other| !inside.contains(other)) {
            ways.push((*at, other));
            ways.push((other, *at));
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_leaves_the_links_on_each_side() {
        let ways = both_ways(&[0, 3], 5);
        assert_eq!(ways.len(), 2 * 2 * 3);
        assert!(!ways.contains(&(0, 3)) && !ways.contains(&(1, 2)));
        assert!(ways.contains(&(0, 1)) && ways.contains(&(4, 3)));
    }
}
