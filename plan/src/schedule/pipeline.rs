//! A pipeline: its stages, the chunks of each, and the schedule they follow. What a worker runs and
//! what a person reads about it.

use super::{Route, Schedule, Slot, Work, interleaved, one_f_one_b, zb_h1};

/// The pipeline of one column. Neither count is ever zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pipeline {
    pub schedule: Schedule,
    pub stages: u32,
    /// Of each stage: 1 under every schedule but `interleaved`.
    pub chunks: u32,
}

impl Pipeline {
    /// The slots of one stage.
    pub fn slots(self, stage: u32, n_micro: u32) -> Vec<Slot> {
        match self.schedule {
            Schedule::OneFOneB => one_f_one_b(stage, self.stages, n_micro),
            Schedule::ZbH1 => zb_h1(stage, self.stages, n_micro),
            Schedule::Interleaved => interleaved(stage, self.stages, self.chunks, n_micro),
        }
    }

    /// The slots of every stage.
    pub fn all_slots(self, n_micro: u32) -> Vec<Vec<Slot>> {
        (0..self.stages).map(|stage| self.slots(stage, n_micro)).collect()
    }

    /// Whose forward follows `work` of `stage`: a stage and its work. `None` at the network's end.
    pub fn after(self, stage: u32, work: Work) -> Option<(u32, Work)> {
        self.after_along(Route::Around, stage, work)
    }

    /// Whose forward comes before `work` of `stage`. `None` at the network's start.
    pub fn before(self, stage: u32, work: Work) -> Option<(u32, Work)> {
        self.before_along(Route::Around, stage, work)
    }

    /// Which schedule it is and what it does to the bubble, in one line.
    pub fn reason(self, n_micro: u32) -> String {
        let Self { schedule, stages, chunks } = self;
        if stages == 1 {
            return format!(
                "{schedule}: one stage waits for no other, so every schedule is the same"
            );
        }
        let under = |schedule| 100.0 * Self { schedule, ..self }.bubble_share(n_micro);
        let (plain, here) = (under(Schedule::OneFOneB), under(schedule));
        let plural = if n_micro == 1 { "" } else { "es" };
        let counted = format!("{n_micro} microbatch{plural}; equal stages, F = B = W");
        match schedule {
            Schedule::ZbH1 if n_micro == 1 => format!(
                "{schedule}: stages wait {here:.0} % of a step, as under 1f1b: a single \
                 microbatch leaves nothing to fill the drain with ({counted})"
            ),
            Schedule::ZbH1 => format!(
                "{schedule}: stages wait {here:.0} % of a step instead of {plain:.0} % under \
                 1f1b, as deferred weight halves fill the drain; same losses ({counted})"
            ),
            Schedule::OneFOneB if n_micro == 1 => {
                format!("{schedule}: stages wait {plain:.0} % of a step ({counted})")
            }
            Schedule::OneFOneB => format!(
                "{schedule}: stages wait {plain:.0} % of a step; under zb-h1 {:.0} %, with \
                 the same losses ({counted})",
                under(Schedule::ZbH1)
            ),
            Schedule::Interleaved => format!(
                "{schedule}: stages wait {here:.0} % of a step instead of {plain:.0} % under \
                 1f1b, as {chunks} chunks of each take turns; hidden states cross between stages \
                 {chunks} times as often ({counted})"
            ),
        }
    }

    /// The share of a step in which a stage waits, if all stages, and all chunks, are equally fast,
    /// messages take no time, and a forward, an input half and a weight half take as long as each
    /// other.
    pub fn bubble_share(self, n_micro: u32) -> f64 {
        let (stages, chunks) = (u64::from(self.stages), u64::from(self.chunks));
        let micro = u64::from(n_micro);
        assert!(stages > 0 && chunks > 0 && micro > 0, "a step has stages and microbatches");
        let behind = stages - 1;
        // In units of one slot. `stopwatch` holds these against simulated steps.
        let (slots, bubble) = match self.schedule {
            Schedule::OneFOneB => (micro, 2 * behind),
            Schedule::ZbH1 => (micro, 2 * behind - behind.min(micro - 1)),
            Schedule::Interleaved => {
                // Too few microbatches to fill the stages: each further chunk waits on both ways
                // for the first of them to come round, and weight halves fill the way back.
                let around = stages.saturating_sub(micro) + stages.saturating_sub(2 * micro);
                (micro * chunks, 2 * behind + (chunks - 1) * around)
            }
        };
        bubble as f64 / (3 * slots + bubble) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_and_before_walk_the_whole_network() {
        let pipeline = Pipeline { schedule: Schedule::Interleaved, stages: 3, chunks: 2 };
        let (mut at, mut seen) = ((0, Work { chunk: 0, microbatch: 7 }), vec![]);
        assert_eq!(pipeline.before(at.0, at.1), None);
        while let Some(next) = pipeline.after(at.0, at.1) {
            assert_eq!(pipeline.before(next.0, next.1), Some(at));
            seen.push((next.1.chunk, next.0));
            at = next;
        }
        assert_eq!(seen, [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    }

    #[test]
    fn reasons_read_well() {
        let check = |schedule: Schedule, stages: u32, n_micro: u32, wanted: &str| {
            let chunks = if schedule == Schedule::Interleaved { 2 } else { 1 };
            assert_eq!(Pipeline { schedule, stages, chunks }.reason(n_micro), wanted);
        };
        check(
            Schedule::OneFOneB,
            2,
            4,
            "1f1b: stages wait 14 % of a step; under zb-h1 8 %, with the same losses \
             (4 microbatches; equal stages, F = B = W)",
        );
        check(
            Schedule::ZbH1,
            4,
            8,
            "zb-h1: stages wait 11 % of a step instead of 20 % under 1f1b, as deferred weight \
             halves fill the drain; same losses (8 microbatches; equal stages, F = B = W)",
        );
        check(
            Schedule::ZbH1,
            2,
            1,
            "zb-h1: stages wait 40 % of a step, as under 1f1b: a single microbatch leaves nothing \
             to fill the drain with (1 microbatch; equal stages, F = B = W)",
        );
        check(
            Schedule::Interleaved,
            2,
            4,
            "interleaved: stages wait 8 % of a step instead of 14 % under 1f1b, as 2 chunks of each \
             take turns; hidden states cross between stages 2 times as often (4 microbatches; equal \
             stages, F = B = W)",
        );
        let alone = "zb-h1: one stage waits for no other, so every schedule is the same";
        check(Schedule::ZbH1, 1, 4, alone);
    }
}
