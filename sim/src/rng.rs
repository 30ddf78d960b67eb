//! Pseudo-random numbers by a seed (SplitMix64): the same on every machine and in every version.

use std::ops::Range;

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The stream of a seed; `purpose` makes several of one seed.
    pub fn new(seed: u64, purpose: u64) -> Rng {
        let mut rng = Rng(seed ^ purpose.wrapping_mul(0xA076_1D64_78BD_642F));
        rng.draw();
        Rng(rng.draw())
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 for 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is far below what any of this could show.
        self.draw() % bound.max(1)
    }

    /// A number in a range.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// An index of something that has so many.
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("it was one")
    }

    /// One of these.
    ///
    /// # Panics
    /// There are none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.index(of.len())]
    }

    /// True in so many of 1,000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// A time of 0.7 times `mean` or more, 1.7 times on average, seldom much longer (exponential from there on).
    pub fn around(&mut self, mean: u64) -> u64 {
        let fraction = self.below(1 << 20) + 1;
        // -ln(fraction / 2^20), from its bits.
        let bits = u64::from(fraction.leading_zeros()) - 43;
        let low = (fraction << bits) & ((1 << 20) - 1);
        let milli = bits * 693 + (693 - low * 693 / (1 << 20));
        mean * milli / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_follow_from_seed_and_purpose() {
        let take = |seed, purpose| {
            let mut rng = Rng::new(seed, purpose);
            [rng.draw(), rng.draw(), rng.draw()]
        };
        assert_eq!(take(1, 0), take(1, 0));
        assert_ne!(take(1, 0), take(2, 0));
        assert_ne!(take(1, 0), take(1, 1));
    }

    #[test]
    fn times_are_seldom_much_longer_than_most() {
        let mut rng = Rng::new(7, 0);
        let sum: u64 = (0..100_000).map(|_| rng.around(1000)).sum();
        let mean = sum / 100_000;
        assert!((1_600..1_800).contains(&mean), "{mean}");
    }
}
