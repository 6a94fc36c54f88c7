//! What goes wrong, by chance, for a while; then nothing more, and the run must end well.

use std::collections::BTreeMap;

use shoal_coordinator::control::Order;
use shoal_coordinator::state::Event as StateEvent;
use shoal_plan::plan::WorkerId;
use shoal_proto::FailureKind;
use shoal_worker::session::Event;

use crate::links::LINK_MS;
use crate::world::{KEEPALIVE_MS, What, World};

/// Faults come until then.
const FAULTS_UNTIL_MS: u64 = 15_000;

/// Ways that lead nowhere until some time.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    up: BTreeMap<WorkerId, u64>,
    down: BTreeMap<WorkerId, u64>,
    data: BTreeMap<(WorkerId, WorkerId), u64>,
}

impl Cuts {
    /// From a worker to the coordinator.
    pub(crate) fn up_until(&self, worker: WorkerId, now_ms: u64) -> Option<u64> {
        self.up.get(&worker).copied().filter(|until_ms| *until_ms > now_ms)
    }

    pub(crate) fn down_until(&self, worker: WorkerId, now_ms: u64) -> Option<u64> {
        self.down.get(&worker).copied().filter(|until_ms| *until_ms > now_ms)
    }

    pub(crate) fn any_until(&self, worker: WorkerId, now_ms: u64) -> Option<u64> {
        self.up_until(worker, now_ms).max(self.down_until(worker, now_ms))
    }

    /// Of two workers.
    pub(crate) fn between(&self, a: WorkerId, b: WorkerId, now_ms: u64) -> bool {
        self.data.get(&(a.min(b), a.max(b))).is_some_and(|until_ms| *until_ms > now_ms)
    }
}

impl World {
    pub(crate) fn fault(&mut self) {
        if self.now_ms > FAULTS_UNTIL_MS {
            return;
        }
        self.later((50, 2_000), What::Fault);
        let Some(worker) = self.a_worker() else { return };
        let kind = self.random.below(20);
        self.log(|| format!("FAULT {kind} of {worker}"));
        match kind {
            0..=2 => {
                self.counts.crashes += 1;
                self.end_process(worker, "killed by signal 9", 500);
            }
            3 => {
                let for_ms = self.random.between(100, 12_000);
                self.stop_process(worker, for_ms);
            }
            4 | 5 => {
                let until_ms = self.now_ms + self.random.between(100, 10_000);
                let way = self.random.below(3);
                // One that is there already is not made shorter: what waits keeps its order.
                if way != 0 {
                    let up = self.cuts.up.entry(worker).or_default();
                    *up = until_ms.max(*up);
                }
                if way != 1 {
                    let down = self.cuts.down.entry(worker).or_default();
                    *down = until_ms.max(*down);
                }
                if let Some(link) = self.workers[&worker].link {
                    self.later((KEEPALIVE_MS, KEEPALIVE_MS), What::Keepalive { link });
                }
            }
            6 | 7 => {
                if let Some(link) = self.workers[&worker].link {
                    self.break_link(link);
                }
            }
            8 => {
                let for_ms = [(100, 8_000), (10_000, 60_000)][self.random.below(2) as usize];
                let until_ms = self.now_ms + self.random.between(for_ms.0, for_ms.1);
                let Some(other) = self.a_worker().filter(|other| *other != worker) else { return };
                self.cuts.data.insert((worker.min(other), worker.max(other)), until_ms);
                // Closed, or dropping packets, one way or both.
                match self.random.below(3) {
                    0 => self.lose_link(worker),
                    way => {
                        let (ends, one_way) = ((worker, other), way == 1);
                        self.later((LINK_MS, LINK_MS), What::SilentLink { ends, one_way });
                    }
                }
            }
            9 => self.disk_fault = true,
            10 => {
                let stopped = self.workers[&worker].stopped;
                if !stopped {
                    self.ask_to_leave(worker);
                }
            }
            11 | 16 => self.kill_coordinator(),
            12..=15 | 18 | 19 => self.fault_of_membership(kind, worker),
            _ => {
                if self.now_ms > 10_000 && self.random.below(8) == 0 {
                    self.stop_asked = true;
                    self.tell_coordinator(StateEvent::StopRequested);
                } else if self.random.below(2) == 0 {
                    self.fail_by_itself(worker);
                }
            }
        }
    }

    /// A worker gives way, is slow, has wrong numbers, is drained; a checkpoint does not hold what was written;
    /// somebody wants a pause.
    fn fault_of_membership(&mut self, kind: u64, worker: WorkerId) {
        match kind {
            12 if !self.workers[&worker].stopped => {
                let reason = Some("a game runs".to_owned());
                self.session(worker, Event::YieldRequested { reason });
                self.later_for(worker, (200, 9_000), |pid| What::YieldEnds { worker, pid });
            }
            13 => {
                // Now and then it is as fast as the others again.
                let slowness = self.random.between(1, 6) as f64;
                self.slowness.insert(worker, slowness);
            }
            14 => self.sum_fault = Some(worker),
            18 => self.order(Order::Drain { worker, force: false }),
            19 => {
                self.order(Order::Pause);
                self.later((200, 9_000), What::Resume);
            }
            15 if self.random.below(4) == 0 => {
                self.damaged.extend(self.disk.keys().next_back().copied());
            }
            _ => {}
        }
    }

    /// From another terminal. Whoever gets no answer asks again, or not.
    fn order(&mut self, order: Order) {
        self.tell_coordinator(StateEvent::Ordered { asked: 0, order });
    }

    /// A run that was paused is to go on: that is asked for until somebody answers.
    pub(crate) fn resume(&mut self) {
        let before = self.orders_taken;
        self.order(Order::Resume);
        if self.orders_taken == before && self.checks.ended.is_none() {
            self.later((200, 1_000), What::Resume);
        }
    }

    /// A connection between engines ends though both live: both report it.
    fn lose_link(&mut self, worker: WorkerId) {
        let Some(engine) = self.workers[&worker].engine.as_ref() else { return };
        let (generation, stopped) = (engine.generation(), self.workers[&worker].stopped);
        if !engine.over && !stopped {
            self.fail_engine(worker, generation, FailureKind::PeerLost);
        }
    }

    /// At most twice: the third time ends the run, as it should.
    fn fail_by_itself(&mut self, worker: WorkerId) {
        let Some(engine) = self.workers[&worker].engine.as_ref() else { return };
        let (generation, stopped) = (engine.generation(), self.workers[&worker].stopped);
        let times = self.own_failures.entry(worker).or_default();
        if *times < 2 && !stopped && !engine.over {
            *times += 1;
            self.fail_engine(worker, generation, FailureKind::Internal);
        }
    }
}
