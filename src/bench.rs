//! `shoal bench`: measures what this machine does with a model, and prints it.

mod card;
mod comm;
mod decode;
mod growth;
mod meter;
mod ops;
mod train;

use shoal_bench::Error;

use crate::cli::{Bench, Measured};
use crate::exit::Stopped;
use crate::voice::pool;

/// Tokens of noise to cut sequences from, where no text is given: enough that sequences differ.
const NOISE: usize = 1 << 16;

pub(crate) fn bench(verb: &Bench) -> Result<(), Stopped> {
    match &verb.measured {
        None => ops::bench(&verb.ops),
        Some(Measured::Ops(args)) => ops::bench(args),
        Some(Measured::Train(args)) => train::bench(args),
        Some(Measured::Growth(args)) => growth::bench(args),
        Some(Measured::Decode(args)) => decode::bench(args),
        Some(Measured::Comm(args)) => comm::bench(args),
    }
}

/// A length of time somebody asked for.
fn seconds(wanted: f64) -> Result<f64, Stopped> {
    if wanted > 0.0 && wanted.is_finite() {
        return Ok(wanted);
    }
    Err(Stopped::Input(format!("--seconds is {wanted}, want a number above 0")))
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        match error {
            Error::Option { .. } | Error::Text { .. } => Self::Input(error.to_string()),
            Error::NoDevice(_) => Self::Input(format!("--device: {error}")),
            Error::NonFinite { .. } | Error::Model { .. } | Error::Device(_) => {
                Self::Failed(error.into())
            }
        }
    }
}
