//! The way of a microbatch through stages that have several chunks.

use super::{Pipeline, Work};

/// Which virtual stage lies where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Round and round: from the last stage to the first stage's next chunk. Of one chunk, plainly from first to last.
    Around,
    /// Down through the first chunks, back up through the second ones.
    ThereAndBack,
    /// Two networks: chunk 0's from the first stage to the last, chunk 1's from the last to the first.
    BothWays,
}

impl Pipeline {
    /// Whose forward follows `work` of `stage`: a stage and its work. `None` at the network's end.
    pub fn after_along(self, route: Route, stage: u32, work: Work) -> Option<(u32, Work)> {
        let Work { chunk, microbatch } = work;
        let up = || Some((stage.checked_sub(1)?, work));
        let down = (stage + 1 < self.stages).then_some((stage + 1, work));
        match (route, chunk) {
            (Route::Around, _) => down.or_else(|| {
                (chunk + 1 < self.chunks).then_some((0, Work { chunk: chunk + 1, microbatch }))
            }),
            // At the turn the hidden states stay where they are.
            (Route::ThereAndBack, 0) => {
                Some(down.unwrap_or((stage, Work { chunk: 1, microbatch })))
            }
            (Route::BothWays, 0) => down,
            (Route::ThereAndBack | Route::BothWays, _) => up(),
        }
    }

    /// Whose forward comes before `work` of `stage`. `None` at the network's start.
    pub fn before_along(self, route: Route, stage: u32, work: Work) -> Option<(u32, Work)> {
        let Work { chunk, microbatch } = work;
        let up = || Some((stage.checked_sub(1)?, work));
        let down = (stage + 1 < self.stages).then_some((stage + 1, work));
        match (route, chunk) {
            (Route::Around, _) => match up() {
                None => Some((self.stages - 1, Work { chunk: chunk.checked_sub(1)?, microbatch })),
                found => found,
            },
            (Route::ThereAndBack | Route::BothWays, 0) => up(),
            (Route::BothWays, _) => down,
            (Route::ThereAndBack, _) => {
                Some(down.unwrap_or((stage, Work { chunk: 0, microbatch })))
            }
        }
    }
}
