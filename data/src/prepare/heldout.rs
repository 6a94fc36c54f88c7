//! Which part of a source is kept for evaluation.

use crate::settings::Settings;
use crate::shards::windows;

/// A held-out share above this many times the wanted one means that documents are too uneven.
const SHARE_EXCESS_MAX: f64 = 3.0;

/// What each source must give.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    fraction: f64,
    sequence: u32,
    windows_min_train: u64,
    windows_min_heldout: u64,
}

/// Whether a document is held out, by the hash of its content.
pub(super) fn is_chosen(hash: &blake3::Hash, fraction: f32) -> bool {
    unit_interval(hash) < f64::from(fraction)
}

/// The first 8 bytes of a hash as a number, 0 <= x < 1, equally likely everywhere.
fn unit_interval(hash: &blake3::Hash) -> f64 {
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    (u64::from_le_bytes(*first) >> 11) as f64 / (1u64 << 53) as f64
}

impl Needs {
    /// An equal part of what all sources together must give.
    pub(super) fn of(settings: &Settings) -> Self {
        let n = settings.sources.len() as u64;
        Self {
            fraction: f64::from(settings.heldout_fraction),
            sequence: settings.sequence,
            windows_min_train: settings.windows_min_train.div_ceil(n),
            windows_min_heldout: settings.windows_min_heldout.div_ceil(n),
        }
    }

    /// With `heldout` of `total` tokens in the chosen documents: how many tokens of the tail to
    /// hold out instead, `None` if the documents do.
    ///
    /// # Errors
    /// How many tokens it would take for both sides to have enough.
    pub(super) fn tail(&self, total: u64, heldout: u64) -> Result<Option<u64>, u64> {
        let is_enough = |heldout: u64| {
            windows(heldout, self.sequence) >= self.windows_min_heldout
                && windows(total - heldout, self.sequence) >= self.windows_min_train
        };
        let share_max = SHARE_EXCESS_MAX * self.fraction * total as f64;
        if is_enough(heldout) && heldout as f64 <= share_max {
            return Ok(None);
        }
        let sequence = u64::from(self.sequence);
        let heldout_min = self.windows_min_heldout * sequence + 1;
        let share = (total as f64 * self.fraction).round() as u64;
        let tail = share.max(heldout_min).min(total);
        if is_enough(tail) {
            return Ok(Some(tail));
        }
        if is_enough(heldout_min.min(total)) {
            return Ok(Some(heldout_min));
        }
        Err(heldout_min + self.windows_min_train * sequence + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_held_out_where_both_sides_get_enough() {
        let needs =
            Needs { fraction: 0.1, sequence: 10, windows_min_train: 2, windows_min_heldout: 1 };
        let check = |total: u64, heldout: u64, want: Result<Option<u64>, u64>| {
            assert_eq!(needs.tail(total, heldout), want, "{heldout} of {total}");
        };
        check(10_000, 1300, Ok(None));
        // One document: the tail of it.
        check(1000, 0, Ok(Some(100)));
        check(1000, 1000, Ok(Some(100)));
        // The share is less than a window: one window all the same.
        check(60, 0, Ok(Some(11)));
        check(32, 0, Ok(Some(11)));
        check(31, 0, Err(32));
        // A chosen document that is most of the text.
        check(10_290, 10_000, Ok(Some(1029)));
    }

    #[test]
    fn hashes_choose_their_share() {
        let chosen = (0..10_000_u32).filter(|at| is_chosen(&blake3::hash(&at.to_le_bytes()), 0.1));
        // 1000 expected, standard deviation 30: five of them on each side.
        let n = chosen.count();
        assert!((850..1150).contains(&n), "{n}");
    }
}
