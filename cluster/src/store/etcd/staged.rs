//! How changes fit into etcd's transactions. It takes at most 128 operations and 1.5 MiB in one: more than that is
//! staged in pieces first, then promised in one small transaction, then put in place piece by piece, and the promise
//! taken back at the end. Whoever finds a promise finishes it: all of the changes or none.

use crate::store::Change;

/// Of etcd's 128; a few are ours.
const OPERATIONS_MAX: usize = 100;

/// Of etcd's 1.5 MiB.
const BYTES_MAX: usize = 1 << 20;

/// The largest value: one fits with its key.
pub(super) const VALUE_BYTES_MAX: usize = BYTES_MAX - (8 << 10);

/// Changes in as many pieces as they take, in their order.
pub(super) fn pieces(changes: &[Change]) -> Vec<&[Change]> {
    let size = |(key, value): &Change| key.len() + value.as_ref().map_or(0, Vec::len) + 256;
    let (mut pieces, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (at, change) in changes.iter().enumerate() {
        if at > from && (at - from == OPERATIONS_MAX || bytes + size(change) > BYTES_MAX) {
            pieces.push(&changes[from..at]);
            (from, bytes) = (at, 0);
        }
        bytes += size(change);
    }
    if from < changes.len() {
        pieces.push(&changes[from..]);
    }
    pieces
}

/// A change as it lies on the stage.
pub(super) fn on_stage((key, value): &Change) -> Vec<u8> {
    let mut bytes = vec![u8::from(value.is_some())];
    bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
    bytes.extend_from_slice(key.as_bytes());
    bytes.extend_from_slice(value.as_deref().unwrap_or_default());
    bytes
}

pub(super) fn off_stage(bytes: &[u8]) -> Option<Change> {
    let (&is_there, rest) = bytes.split_first()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (key, value) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let key = std::str::from_utf8(key).ok()?.to_owned();
    Some((key, (is_there == 1).then(|| value.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(n: usize, bytes: usize) -> Change {
        (format!("rig/{n}"), Some(vec![7; bytes]))
    }

    #[test]
    fn pieces_hold_everything_in_order_and_none_is_too_large() {
        let lengths =
            |changes: &[Change]| pieces(changes).iter().map(|p| p.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&[]), [0_usize; 0]);
        assert_eq!(lengths(&[change(0, 0)]), [1]);
        let many: Vec<_> = (0..250).map(|n| change(n, 10)).collect();
        assert_eq!(lengths(&many), [100, 100, 50]);
        let large: Vec<_> = (0..4).map(|n| change(n, BYTES_MAX / 2)).collect();
        assert_eq!(lengths(&large), [1, 1, 1, 1]);
        let mixed =
            [change(0, 9_000), change(1, VALUE_BYTES_MAX), change(2, 10), ("c".to_owned(), None)];
        let found = pieces(&mixed);
        assert_eq!(found.concat(), mixed);
        assert!(found.len() > 1, "the large one does not fit beside all others");
    }

    #[test]
    fn what_lies_on_the_stage_is_read_back_and_nonsense_is_not() {
        for change in [change(3, 5), change(4, 0), ("job/é".to_owned(), None)] {
            let bytes = on_stage(&change);
            assert_eq!(off_stage(&bytes), Some(change));
        }
        for nonsense in [&[][..], &[1, 2, 0], &[1, 9, 0, 0, 0, b'a']] {
            assert_eq!(off_stage(nonsense), None);
        }
    }
}
