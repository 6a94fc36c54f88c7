//! How a rig finds out whether it stands well: towards the coordinator over calls of their own, towards other
//! rigs over a port of theirs that does nothing else. Every probe has a bound in bytes and in time, and nobody
//! has two at once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub mod address;
mod asked;
pub mod neighbour;
#[cfg(test)]
mod proof;
pub mod reaching;
mod wire;
pub mod words;

/// Of one probe in one direction.
pub const BYTES_MAX: u64 = 16 << 20;
pub const TIME: Duration = Duration::from_secs(3);

/// Bytes at a time.
pub(crate) const PIECE: usize = 64 << 10;

/// A probe's ends may be slow to begin and to end.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// Rigs whose probes are served at once.
const AT_ONCE: usize = 8;

/// What came through in how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    pub bytes: u64,
    pub seconds: f64,
}

impl Rate {
    pub fn bytes_per_second(self) -> f64 {
        // What took no time that could be measured was faster than anything that can be said.
        self.bytes as f64 / self.seconds.max(1e-6)
    }
}

/// Who is being served.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<BTreeSet<String>>>);

/// One's turn, over when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    name: String,
}

impl Turns {
    /// # Errors
    /// Why not now.
    pub(crate) fn take(&self, name: &str) -> Result<Turn, String> {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if served.contains(name) {
            return Err(format!("a probe of {name} is under way: one at a time"));
        }
        if served.len() >= AT_ONCE {
            return Err(format!("{AT_ONCE} others are being probed: try again in a few seconds"));
        }
        served.insert(name.to_owned());
        Ok(Turn { turns: self.clone(), name: name.to_owned() })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

/// Bytes that no link makes shorter.
pub(crate) fn noise() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(PIECE).collect()
}

/// The middle one: what is usual, whatever one of them had to wait for.
pub(crate) fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_served_twice_at_once_and_not_too_many_are() {
        let turns = Turns::default();
        let first = turns.take("a").unwrap();
        assert!(turns.take("a").unwrap_err().contains("one at a time"));
        let others: Vec<_> = (1..AT_ONCE).map(|n| turns.take(&format!("r{n}")).unwrap()).collect();
        assert!(turns.take("z").unwrap_err().contains("try again"));
        drop(first);
        assert!(turns.take("a").is_ok() && others.len() + 1 == AT_ONCE);
    }

    #[test]
    fn one_slow_answer_is_not_usual() {
        assert!((median(vec![9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!(median(Vec::new()).abs() < 1e-9);
    }
}
