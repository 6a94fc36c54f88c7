//! How the cells of an expert group trade rows. The worker implements it over its collectives.

use std::error::Error;
use std::fmt;

/// One expert group: the cells that share one copy of a stage's experts.
///
/// Every member calls in the same order; a call that fails leaves the group unusable.
pub trait Exchange {
    /// Members of the group.
    fn size(&self) -> usize;

    /// This member, `0..size()`: the expert shard it owns.
    fn rank(&self) -> usize;

    /// Sends `outgoing[d]` to member `d` (this one included) and returns what each member `s` sent
    /// here, at `[s]`. `outgoing` has `size()` elements and so has the result.
    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError>;
}

/// Why an all-to-all failed, in the words of whoever implements it.
#[derive(Debug)]
pub struct ExchangeError(pub Box<dyn Error + Send + Sync>);

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for ExchangeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// A group of one: what is sent comes back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Exchange for Alone {
    fn size(&self) -> usize {
        1
    }

    fn rank(&self) -> usize {
        0
    }

    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(outgoing)
    }
}
