//! Sums over what had ended, or had begun, by a moment.

/// Amounts with the moments from which they count.
pub(super) struct Sums {
    /// Moments, ascending, each with the sum of all amounts up to and with it.
    steps: Vec<(u64, i128)>,
}

impl Sums {
    /// Of pairs of a moment and an amount, in any order.
    pub(super) fn new(mut amounts: Vec<(u64, i128)>) -> Sums {
        amounts.sort_unstable();
        let mut sum = 0;
        for (_, amount) in &mut amounts {
            sum += *amount;
            *amount = sum;
        }
        Sums { steps: amounts }
    }

    /// The sum of what lies before `moment`.
    pub(super) fn before(&self, moment: u64) -> i128 {
        self.at(self.steps.partition_point(|&(at, _)| at < moment))
    }

    /// The sum of what does not lie after `moment`.
    pub(super) fn until(&self, moment: u64) -> i128 {
        self.at(self.steps.partition_point(|&(at, _)| at <= moment))
    }

    fn at(&self, count: usize) -> i128 {
        match count.checked_sub(1) {
            Some(last) => self.steps[last].1,
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sums;

    #[test]
    fn a_moment_counts_until_and_not_before_itself() {
        let sums = Sums::new(vec![(20, 5), (10, 1), (20, 2)]);
        assert_eq!((sums.before(10), sums.until(10)), (0, 1));
        assert_eq!((sums.before(20), sums.until(20)), (1, 8));
        assert_eq!((sums.before(99), sums.until(0)), (8, 0));
    }
}
