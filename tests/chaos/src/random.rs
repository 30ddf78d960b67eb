//! Choices that a seed decides, and nothing else.

/// Random numbers (SplitMix64, Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Other numbers for each purpose, so that one who draws more does not change what another gets.
    pub fn fork(&self, purpose: &str, number: u64) -> Random {
        let mut state = self.0 ^ number.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        for byte in purpose.bytes() {
            state = Random(state ^ u64::from(byte)).draw();
        }
        Random(state)
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    /// From `range.0` to `range.1`, both included.
    pub fn within(&mut self, range: (u64, u64)) -> u64 {
        range.0 + self.below(range.1.saturating_sub(range.0) + 1)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// There is none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let at = self.below(from.len() as u64);
        &from[usize::try_from(at).expect("below a length")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_has_its_own_numbers_whatever_others_draw() {
        let mut root = Random::new(7);
        let before = root.fork("client", 1).draw();
        root.clone().draw();
        assert_eq!(root.fork("client", 1).draw(), before);
        assert_ne!(root.fork("client", 2).draw(), before);
        assert_ne!(root.fork("faults", 1).draw(), before);
        assert!((0..1000).all(|_| (3..=5).contains(&root.within((3, 5)))));
    }
}
