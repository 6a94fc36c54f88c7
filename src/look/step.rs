//! The newest steps of a worker's cells, as the worker tells it at `/step` (`worker/src/metrics/latest.rs`).

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct NewestStep {
    /// The newest last.
    pub cells: BTreeMap<u32, Vec<CellStep>>,
    /// Tokens of each expert over the whole batch, by layer.
    pub loads: BTreeMap<u32, Vec<u64>>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct CellStep {
    pub step: u64,
    /// Seconds since 1970.
    pub begun: f64,
    pub seconds: f64,
    /// What, of which microbatch, and from when to when, in microseconds since the step began.
    pub spans: Vec<(char, u32, u64, u64)>,
    /// Payload by receiver.
    pub sent: BTreeMap<u32, u64>,
}
