//! A step on paper: slot lists with lengths, and messages with latency and transfer time, as a discrete-event
//! simulation. Exact for what it is told: every stage works through its list, a send never waits, and the messages
//! that one stage sends leave one after another through its network interface.

use super::{Pipeline, Slot};

/// A message between two stages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wire {
    /// From the last byte sent to the last byte there, in seconds.
    pub latency_s: f64,
    /// How long it keeps the sender's interface.
    pub transfer_s: f64,
}

/// One slot of arithmetic, in seconds from the start of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    pub slot: Slot,
    pub start: f64,
    pub end: f64,
}

/// A simulated step of one pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Of each stage, in order.
    pub bars: Vec<Vec<Bar>>,
    /// When the last stage has done its last slot.
    pub end: f64,
}

impl Timeline {
    /// Seconds in which a stage works.
    pub fn busy(&self, stage: u32) -> f64 {
        self.bars[stage as usize].iter().map(|bar| bar.end - bar.start).sum()
    }
}

/// Runs the slots of every stage of a pipeline.
///
/// `length` is of a computing slot of a stage, in seconds; `wire` of the message that a sending slot of a stage
/// hands to another: `wire(from, to, slot)`. The lists of a `Pipeline` never block each other.
pub fn run(
    pipeline: Pipeline,
    n_micro: u32,
    length: impl Fn(u32, Slot) -> f64,
    wire: impl Fn(u32, u32, Slot) -> Wire,
) -> Timeline {
    let lists = pipeline.all_slots(n_micro);
    let mut stages: Vec<Stage> = lists.iter().map(|_| Stage::default()).collect();
    // When the message that a stage waits for is there: never, while nobody has sent it.
    let mut there = vec![f64::NAN; 2 * (pipeline.stages * pipeline.chunks * n_micro) as usize];
    let place = |stage: u32, slot: Slot| {
        let work = slot.work();
        let place = (stage * pipeline.chunks + work.chunk) * n_micro + work.microbatch;
        2 * place as usize + usize::from(matches!(slot, Slot::RecvBackward(_)))
    };
    loop {
        let mut moved = false;
        for (at, slots) in (0..).zip(&lists) {
            let stage = &mut stages[at as usize];
            while let Some(slot) = slots.get(stage.next).copied() {
                let to = match slot {
                    Slot::Forward(_) | Slot::BackwardInput(_) | Slot::BackwardWeight(_) => {
                        let (start, end) = (stage.now, stage.now + length(at, slot));
                        stage.bars.push(Bar { slot, start, end });
                        stage.now = end;
                        None
                    }
                    Slot::RecvForward(_) | Slot::RecvBackward(_) => {
                        let arrived = there[place(at, slot)];
                        if arrived.is_nan() {
                            break;
                        }
                        stage.now = stage.now.max(arrived);
                        None
                    }
                    Slot::SendForward(work) => {
                        pipeline.after(at, work).map(|(to, work)| (to, Slot::RecvForward(work)))
                    }
                    Slot::SendBackward(work) => {
                        pipeline.before(at, work).map(|(to, work)| (to, Slot::RecvBackward(work)))
                    }
                };
                if let Some((to, waits)) = to {
                    let wire = wire(at, to, slot);
                    stage.interface_free = stage.interface_free.max(stage.now) + wire.transfer_s;
                    there[place(to, waits)] = stage.interface_free + wire.latency_s;
                }
                stage.next += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let ended = stages.iter().zip(&lists).all(|(stage, slots)| stage.next == slots.len());
    assert!(ended, "the lists of {pipeline:?} block each other");
    let end = stages.iter().map(|stage| stage.now).fold(0.0, f64::max);
    Timeline { bars: stages.into_iter().map(|stage| stage.bars).collect(), end }
}

#[derive(Default)]
struct Stage {
    next: usize,
    now: f64,
    interface_free: f64,
    bars: Vec<Bar>,
}

#[cfg(test)]
mod tests {
    use super::super::Schedule;
    use super::*;

    const FREE: fn(u32, u32, Slot) -> Wire = |_, _, _| Wire { latency_s: 0.0, transfer_s: 0.0 };

    fn lengths(f: f64, b: f64, w: f64) -> impl Fn(u32, Slot) -> f64 {
        move |_, slot| match slot {
            Slot::Forward(_) => f,
            Slot::BackwardInput(_) => b,
            Slot::BackwardWeight(_) => w,
            Slot::RecvForward(_)
            | Slot::SendForward(_)
            | Slot::RecvBackward(_)
            | Slot::SendBackward(_) => f64::NAN,
        }
    }

    fn pipelines() -> impl Iterator<Item = Pipeline> {
        let plain = (1..=8).flat_map(|stages| {
            let of = move |schedule| Pipeline { schedule, stages, chunks: 1 };
            [Schedule::OneFOneB, Schedule::ZbH1].map(of)
        });
        let schedule = Schedule::Interleaved;
        let chunked = (2..=6).map(move |stages| Pipeline { schedule, stages, chunks: 2 });
        plain.chain(chunked)
    }

    /// Where stages are even, the closed formulas: the share of `bubble_share`, and `(p - 1)(F + B)` under 1F1B,
    /// `(p - 1)(F + B - W)` under ZB-H1 for any lengths with `W <= F`.
    #[test]
    fn even_stages_wait_as_long_as_the_formulas_say() {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * (1.0 + b.abs());
        for pipeline in pipelines() {
            for n_micro in 1..=20 {
                let step = run(pipeline, n_micro, lengths(1.0, 1.0, 1.0), FREE).end;
                let work = f64::from(3 * n_micro * pipeline.chunks);
                let share = (step - work) / step;
                let wanted = pipeline.bubble_share(n_micro);
                assert!(close(share, wanted), "{pipeline:?} x {n_micro}: {share}, want {wanted}");
            }
            let behind = f64::from(pipeline.stages - 1);
            for (f, b, w) in [(2.0, 3.0, 2.0), (1.8, 2.2, 0.9), (1.0, 2.0, 1.0)] {
                let n_micro = pipeline.stages + 5;
                let work = f64::from(n_micro) * (f + b + w);
                let bubble = run(pipeline, n_micro, lengths(f, b, w), FREE).end - work;
                match pipeline.schedule {
                    Schedule::OneFOneB => assert!(close(bubble, behind * (f + b)), "{bubble}"),
                    Schedule::ZbH1 => assert!(close(bubble, behind * (f + b - w)), "{bubble}"),
                    Schedule::Interleaved => {}
                }
            }
        }
    }

    #[test]
    fn a_step_is_never_shorter_than_its_slowest_stage_nor_than_one_microbatchs_way() {
        let mut state = 9_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            1.0 + (state >> 40) as f64 / (1_u64 << 24) as f64
        };
        for pipeline in pipelines() {
            let times: Vec<[f64; 3]> =
                (0..pipeline.stages).map(|_| [random(), random(), random()]).collect();
            let length = |stage: u32, slot: Slot| {
                let [f, b, w] = times[stage as usize];
                lengths(f, b, w)(stage, slot)
            };
            let n_micro = 7;
            let wire = |_, _, _| Wire { latency_s: 0.25, transfer_s: 0.125 };
            let plain = run(pipeline, n_micro, length, FREE);
            let slowed = run(pipeline, n_micro, length, wire);
            let most = (0..pipeline.stages).map(|stage| plain.busy(stage)).fold(0.0, f64::max);
            let chunks = f64::from(pipeline.chunks);
            let way: f64 = times.iter().map(|[f, b, _]| chunks * (f + b)).sum();
            assert!(plain.end >= most - 1e-9 && plain.end >= way - 1e-9, "{pipeline:?}");
            assert!(slowed.end >= plain.end - 1e-9);
            if pipeline.stages > 1 {
                let hops = 2.0 * (f64::from(pipeline.stages * pipeline.chunks) - 1.0);
                assert!(slowed.end >= way + hops * 0.375 - 1e-9, "{pipeline:?}");
            }
        }
    }

    #[test]
    fn a_slow_wire_paces_the_pipeline() {
        let pipeline = Pipeline { schedule: Schedule::OneFOneB, stages: 2, chunks: 1 };
        let wire = |_, _, _| Wire { latency_s: 0.0, transfer_s: 10.0 };
        // Each microbatch holds the first stage's interface for ten seconds, and comes back as slowly.
        let step = run(pipeline, 8, lengths(1.0, 1.0, 1.0), wire).end;
        assert!((80.0..180.0).contains(&step), "{step}");
    }
}
