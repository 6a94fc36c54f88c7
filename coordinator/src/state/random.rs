//! Thousands of runs with messages late, repeated, garbled and lost, and workers dying: whatever
//! comes, the state neither panics nor contradicts itself. `SEED=n` replays one run.

use shoal_proto::FailureKind;

use super::fixtures::{
    G1, LAST_STEP, connection, evaluated, finished, go_back, hello, of_generation, part,
    part_failed, settings, step_done, step_skipped,
};
use super::*;

/// `SplitMix64`, Steele et al. 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What a healthy worker says, in order. With `rolls_back`, step 3 is skipped and the run goes back
/// to the checkpoint of step 2 once.
fn script(worker: u32, rolls_back: bool) -> Vec<FromWorker> {
    let mut script = vec![hello(worker), FromWorker::Ready { generation: G1 }];
    let train = |script: &mut Vec<FromWorker>, step| {
        script.push(step_done(worker, step));
        if step % 2 == 0 {
            script.extend((worker == 0).then(|| evaluated(step, 2.0)));
            script.push(part(worker, step));
        }
    };
    train(&mut script, 1);
    train(&mut script, 2);
    if !rolls_back {
        train(&mut script, 3);
        train(&mut script, 4);
        script.push(finished(LAST_STEP, Ending::Completed));
        return script;
    }
    script.push(step_skipped(worker, 3, 1));
    script.push(go_back(3, 1));
    let mut second = vec![FromWorker::Ready { generation: G1 }];
    train(&mut second, 3);
    train(&mut second, 4);
    second.push(finished(LAST_STEP, Ending::Completed));
    script.extend(second.into_iter().map(|message| of_generation(Generation(2), message)));
    script
}

fn disturbance(random: &mut Random) -> Event {
    let n = random.below(4) as u32;
    let connection = connection(n);
    let message = match random.below(17) {
        0 => return Event::HungUp { connection, why: "reset".into() },
        1 => {
            return Event::WorkerExited {
                worker: WorkerId(n),
                pid: 100 + n,
                what: "signal 9".into(),
            };
        }
        2 => return Event::BadMessage { connection, why: "nonsense".into() },
        3 => return Event::StopRequested,
        4 => return Event::CheckpointWritten { step: random.below(6), result: Ok(()) },
        5 => hello(random.below(4) as u32),
        6 => step_done(random.below(3) as u32, random.below(6) + 1),
        7 => part(random.below(4) as u32, random.below(7)),
        8 => finished(random.below(6), Ending::Stopped),
        9 => FromWorker::Ready { generation: Generation(random.below(3)) },
        10 => {
            let (step, what, layer) = (random.below(5), "lost".into(), None);
            let unreachable = (0..random.below(3)).map(|n| WorkerId(n as u32)).collect();
            let kind = FailureKind::PeerLost;
            FromWorker::Failed { generation: G1, step, kind, what, layer, unreachable }
        }
        11 => go_back(random.below(5), 1),
        12 => evaluated(random.below(5), 1.0),
        13 => step_skipped(random.below(3) as u32, random.below(6) + 1, 1),
        14 => part_failed(random.below(4) as u32, random.below(7)),
        15 => {
            let (worker, force) = (WorkerId(random.below(3) as u32), random.below(2) == 0);
            let now = random.below(2) == 0;
            let orders =
                [Order::Drain { worker, force }, Order::Stop { now }, Order::Pause, Order::Resume];
            let order = orders[random.below(4) as usize].clone();
            return Event::Ordered { asked: random.next(), order };
        }
        _ => FromWorker::Heartbeat { generation: None, step: 0 },
    };
    Event::Message { connection, message }
}

/// What must hold of all news of a run.
#[derive(Default)]
struct Judge {
    steps: u64,
    checkpoint: u64,
    rollbacks: u32,
    over: bool,
}

impl Judge {
    fn hear(&mut self, news: &News) {
        assert!(!self.over, "{news:?} after the end");
        match news {
            News::Step(report) => {
                assert_eq!(report.step(), self.steps + 1, "steps come in order, each once");
                self.steps = report.step();
            }
            News::Evaluated { step, .. } => assert_eq!(*step, self.steps, "after its step"),
            News::RolledBack { from, to, rollbacks, .. } => {
                let want = (self.steps, self.checkpoint, self.rollbacks + 1);
                assert_eq!((*from, *to, *rollbacks), want);
                (self.steps, self.rollbacks) = (*to, *rollbacks);
            }
            News::CheckpointCommitted { step } => {
                assert!(*step > self.checkpoint && *step <= self.steps, "checkpoint {step}");
                self.checkpoint = *step;
            }
            News::Finished { last_step, .. } => {
                assert_eq!((*last_step, *last_step), (self.steps, self.checkpoint));
                self.over = true;
            }
            News::Failed(failure) => {
                assert_eq!(failure.step_committed, self.steps);
                self.over = true;
            }
            News::Recovering { from_step, to_step, .. } => {
                assert_eq!(*from_step, self.steps);
                assert!(*to_step <= self.steps && *to_step >= self.checkpoint);
                self.steps = *to_step;
            }
            News::Evicted { .. }
            | News::Recovered { .. }
            | News::Rejoined { .. }
            | News::JoinedLate { .. }
            | News::Left { .. }
            | News::Draining { .. }
            | News::StopAsked { .. }
            | News::Paused { .. }
            | News::Resumed
            | News::Quarantined { .. }
            | News::Parted { .. }
            | News::SharesMove { .. }
            | News::Prepared { .. }
            | News::Yielding { .. }
            | News::Diverged { .. }
            | News::Straggler { .. }
            | News::MovedAtEdge { .. }
            | News::Joined { .. }
            | News::Planned(_)
            | News::Started
            | News::CheckpointFailed { .. }
            | News::CaughtUp { .. } => {}
        }
    }
}

/// Runs one seed; one event in `noise` is a disturbance (none for 0). Returns the judge.
fn simulate(seed: u64, noise: u64, rolls_back: bool) -> Judge {
    let mut random = Random(seed);
    let mut state = State::new(settings(), 0);
    let mut judge = Judge::default();
    let mut scripts = [script(0, rolls_back), script(1, rolls_back)];
    for script in &mut scripts {
        script.reverse();
    }
    let mut writing: Vec<u64> = Vec::new();
    let mut now_ms = 0;
    // Far beyond every lease and deadline: by then each run has ended, well or badly.
    while now_ms < 120_000 {
        let worker = random.below(2) as u32;
        let event = if noise > 0 && random.below(noise) == 0 {
            disturbance(&mut random)
        } else if let Some(step) = writing.pop() {
            Event::CheckpointWritten { step, result: Ok(()) }
        } else if let Some(message) = scripts[worker as usize].pop() {
            // A worker is not ready before it has a plan, and does not train before the start.
            let early = match message {
                FromWorker::Ready { generation } => {
                    state.plan.as_ref().is_none_or(|plan| plan.generation != generation)
                }
                FromWorker::StepDone { .. } => state.phase == Phase::Preparing,
                FromWorker::Hello(_)
                | FromWorker::Heartbeat { .. }
                | FromWorker::CheckpointPart { .. }
                | FromWorker::CheckpointPartFailed { .. }
                | FromWorker::Evaluated { .. }
                | FromWorker::GoBack { .. }
                | FromWorker::Held { .. }
                | FromWorker::AtEdge { .. }
                | FromWorker::Prepared { .. }
                | FromWorker::Yielding { .. }
                | FromWorker::Leaving { .. }
                | FromWorker::Traced { .. }
                | FromWorker::Finished { .. }
                | FromWorker::Failed { .. } => false,
            };
            if early {
                scripts[worker as usize].push(message);
                let message = FromWorker::Heartbeat { generation: Some(G1), step: 0 };
                Event::Message { connection: connection(worker), message }
            } else {
                Event::Message { connection: connection(worker), message }
            }
        } else if random.below(2) == 0 {
            let message = FromWorker::Heartbeat { generation: Some(G1), step: 0 };
            Event::Message { connection: connection(worker), message }
        } else {
            Event::Tick
        };
        now_ms += random.below(300);
        for effect in state.apply(now_ms, event) {
            match effect {
                Effect::CommitCheckpoint(manifest) => writing.push(manifest.standing.step),
                Effect::News(news) => judge.hear(&news),
                Effect::Send { .. }
                | Effect::DiscardCheckpoint { .. }
                | Effect::Close { .. }
                | Effect::Ignored { .. }
                | Effect::Answer { .. }
                | Effect::Trace { .. }
                | Effect::Record(_) => {}
            }
        }
    }
    // Workers that are lost do not come back here, and a run may wait for them; that every run ends is
    // shown where they do: `tests/simulation.rs` of the whole workspace.
    assert!(judge.over || noise > 0, "every undisturbed run ends");
    judge
}

fn seeds(n: u64) -> Range<u64> {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    one.map_or(0..n, |seed| seed..seed + 1)
}

#[test]
fn disturbed_runs_never_contradict_themselves() {
    for seed in seeds(1_000) {
        for noise in [2, 10, 40] {
            let run = || simulate(seed, noise, seed % 2 == 0);
            let survived = std::panic::catch_unwind(run).is_ok();
            assert!(survived, "replay with SEED={seed}, noise {noise}");
        }
    }
}

#[test]
fn an_undisturbed_run_finishes_in_every_order_of_messages() {
    for seed in seeds(1_000) {
        for rolls_back in [false, true] {
            let judge = simulate(seed, 0, rolls_back);
            let end = (judge.steps, judge.checkpoint, judge.rollbacks);
            assert_eq!(end, (LAST_STEP, LAST_STEP, u32::from(rolls_back)), "SEED={seed}");
        }
    }
}
