//! What a step costs on given cards and links, before anything runs: compute by roofline (`compute`), links by
//! latency and rate (`links`). Every efficiency is in `efficiency`, with its source, and none is fitted to a
//! published training run: those are predicted (`docs/planner.md`).

pub mod compute;
pub mod efficiency;
pub mod links;

/// What the trainer does with the hardware, where trainers differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Software {
    /// The share of a slot's arithmetic that an exchange of tokens can hide behind: 0 none, 1 all.
    pub overlap: f64,
    /// The share of a card that communication takes from the arithmetic.
    pub taken: f64,
    /// The schedule is `DualPipe`: exchanges hide only while a forward and a backward of two chunks go together, and not
    /// while the pipeline fills and drains.
    pub pairs: bool,
    /// A row crosses the network once for each machine, and is handed on inside; or once for each cell.
    pub once_a_machine: bool,
}

impl Software {
    /// This trainer: nothing overlaps, one row for each token and destination cell.
    pub const SHOAL: Self = Self { overlap: 0.0, taken: 0.0, pairs: false, once_a_machine: false };

    /// DeepSeek-V3's, for comparison with its report (section 3.2): exchanges run beside the arithmetic on 20 of
    /// 132 multiprocessors, and a token crosses `InfiniBand` once for each of at most four machines.
    pub const DEEPSEEK: Self =
        Self { overlap: 1.0, taken: 20.0 / 132.0, pairs: true, once_a_machine: true };

    /// What an exchange of `exchange_s` adds to a slot of `compute_s`.
    pub fn exposed(self, exchange_s: f64, compute_s: f64) -> f64 {
        (exchange_s - self.overlap * compute_s).max(0.0)
    }
}
