//! The first place where a number stopped being finite: what a refused step tells the person.

use std::fmt;

use shoal_kernels::tensor::Tensor;
pub use shoal_plan::report::Pass;

/// A value that is not finite, and where it was met first on a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NonFinite {
    pub pass: Pass,
    /// 0-based; the heads count as the layer after the last.
    pub layer: u32,
    /// It came from another cell, which names the place better.
    pub received: bool,
    /// For a person: `layer 2 forward`, `layer 1 expert 5 forward`, `gradient of NAME`.
    pub place: String,
}

impl NonFinite {
    pub(crate) fn forward(layer: u32, place: impl Into<String>) -> Self {
        Self { pass: Pass::Forward, layer, received: false, place: place.into() }
    }

    pub(crate) fn backward(layer: u32, place: impl Into<String>) -> Self {
        Self { pass: Pass::Backward, layer, received: false, place: place.into() }
    }

    /// The same, met in something another cell sent.
    pub(crate) fn received(self) -> Self {
        Self { received: true, ..self }
    }

    /// The smallest of several findings of one step is nearest to the cause: own before received,
    /// forward before backward, and then in the order the layers run.
    pub fn causal_order(&self) -> (bool, Pass, i64) {
        let layer = i64::from(self.layer);
        let place = match self.pass {
            Pass::Forward | Pass::Gradient => layer,
            Pass::Backward => -layer,
        };
        (self.received, self.pass, place)
    }
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}

/// Only the first finding is kept: what follows from it says nothing new.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    first: Option<NonFinite>,
}

impl Findings {
    /// Looks at every element of `x` unless something was found before.
    pub(crate) fn check(&mut self, x: &Tensor, finding: impl FnOnce() -> NonFinite) {
        if self.first.is_none() && !x.all_finite() {
            self.first = Some(finding());
        }
    }

    /// Records a place found elsewhere.
    pub(crate) fn note(&mut self, finding: impl FnOnce() -> NonFinite) {
        self.first.get_or_insert_with(finding);
    }

    pub(crate) fn first(&self) -> Option<&NonFinite> {
        self.first.as_ref()
    }
}
