//! The known name that a misspelt one was probably meant to be.

/// The nearest of `known`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, near) = known
        .iter()
        .map(|name| (distance(wrong, name), *name))
        .min()?;
    (distance <= 1 + wrong.chars().count() / 3).then_some(near)
}

/// Levenshtein's distance, where a transposition of neighbours counts once (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (at, row) in rows.iter_mut().enumerate() {
        row[0] = at;
    }
    for (at, cell) in rows[0].iter_mut().enumerate() {
        *cell = at;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_what_was_meant() {
        let known = ["peers", "node_id", "consensus_port"];
        assert_eq!(nearest("peres", &known), Some("peers"));
        assert_eq!(nearest("nodeid", &known), Some("node_id"));
        assert_eq!(nearest("consensus-port", &known), Some("consensus_port"));
        assert_eq!(nearest("colour", &known), None);
    }
}
