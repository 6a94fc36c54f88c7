//! The name somebody probably meant.

/// The candidate closest to `name`, if one is close enough to be a slip: a third of its letters,
/// and two at least, may differ.
pub(crate) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let near = candidates.into_iter().map(|other| (distance(&lower, &other.to_lowercase()), other));
    let (edits, best) = near.min_by_key(|(edits, _)| *edits)?;
    let allowed = (best.chars().count() / 3).max(2);
    // Of a short name nearly everything is within two edits.
    (edits <= allowed && edits < best.chars().count()).then_some(best)
}

/// Letters to insert, delete, replace or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let names = ["batch", "steps", "sequence", "lr", "lr_final_ratio", "warmup_steps"];
        let check = |name: &str, wanted: Option<&str>| assert_eq!(nearest(name, names), wanted);
        check("bacth", Some("batch"));
        check("Batch", Some("batch"));
        check("step", Some("steps"));
        check("sequense", Some("sequence"));
        check("warmupsteps", Some("warmup_steps"));
        check("optimizer", None);
        check("", None);
        check(&"x".repeat(10_000), None);
    }

    #[test]
    fn distances() {
        for (a, b, wanted) in [("", "abc", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("ab", "b", 1)]
        {
            assert_eq!(distance(a, b), wanted, "{a} {b}");
        }
    }
}
