//! The coordinator's process: it dies at any moment, between any two of its acts, and is started anew
//! with what its store has. What it told its launcher and its ledger must be one story all the same (I10):
//! nothing is left out, and what is said again is what was said before.

use std::collections::BTreeMap;

use shoal_coordinator::durable::{Durable, Output};
use shoal_coordinator::journal::Store;
use shoal_coordinator::state::{Effect, Event as StateEvent};
use shoal_coordinator::{Error, Settings};
use shoal_plan::plan::WorkerId;
use shoal_worker::session::Event;

use crate::defects::Defect;
use crate::world::{What, World};

/// Small, so that everything is often written anew.
const ROOM_BYTES: usize = 64 << 10;

/// Between the death of a coordinator and the next one.
const AWAY_MS: (u64, u64) = (100, 4_000);

/// Records in memory: what was taken outlives the process, and nothing else does.
#[derive(Debug, Default)]
pub(crate) struct Records(Vec<Vec<u8>>);

impl Store for Records {
    fn load(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.0.clone())
    }

    fn append(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0.push(record.to_vec());
        Ok(())
    }

    fn replace(&mut self, record: &[u8]) -> Result<(), Error> {
        self.0 = vec![record.to_vec()];
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.0.iter().map(Vec::len).sum::<usize>() + bytes <= ROOM_BYTES
    }
}

/// The process, or what is left of it.
#[derive(Debug)]
pub(crate) struct Coordinator {
    settings: Settings,
    lives: Option<Durable<Records>>,
    left: Option<Records>,
    /// Which process it is.
    pub(crate) life: u64,
    /// The checkpoint whose manifest it is writing.
    pub(crate) writes: Option<u64>,
    /// It dies with the next event that has a consequence, at this point of carrying it out.
    dies: Option<Dies>,
    /// Its clock is the world's, less this.
    behind_ms: u64,
    /// What the launcher and the ledger have, by number from 1.
    news: Vec<String>,
    rows: Vec<String>,
    /// Processes that the launcher saw end.
    exits: BTreeMap<WorkerId, (u32, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dies {
    BeforeWriting,
    AfterWriting,
    HalfWay,
}

impl Coordinator {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            lives: Some(Durable::begin(settings.clone(), Records::default(), 0)),
            settings,
            left: None,
            life: 0,
            writes: None,
            dies: None,
            behind_ms: 0,
            news: Vec::new(),
            rows: Vec::new(),
            exits: BTreeMap::new(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.lives.is_some()
    }

    /// Whether something that was said is new; an error if it is not what was said before.
    fn is_new(heard: &mut Vec<String>, number: u64, what: String) -> Result<bool, String> {
        let number = number as usize;
        match heard.get(number - 1) {
            Some(before) if *before == what => Ok(false),
            Some(before) => {
                Err(format!("{number} was said otherwise before: {before}, now {what} (I10)"))
            }
            None if number == heard.len() + 1 => {
                heard.push(what);
                Ok(true)
            }
            None => Err(format!("{} is missing before {number} (I10)", heard.len() + 1)),
        }
    }
}

impl World {
    /// Nothing is heard by a coordinator that is dead.
    pub(crate) fn tell_coordinator(&mut self, event: StateEvent) {
        if self.checks.ended.is_some() {
            return;
        }
        let now_ms = self.now_ms - self.coordinator.behind_ms;
        let Some(durable) = &mut self.coordinator.lives else { return };
        let text = format!("{event:?}");
        let does_nothing = durable.apply(now_ms, event).is_empty();
        self.log(|| format!("coordinator: {text}"));
        if !does_nothing || self.coordinator.dies.is_none() {
            self.write_down_and_carry_out();
        }
    }

    fn write_down_and_carry_out(&mut self) {
        let dies = self.coordinator.dies.take();
        let says_first = self.defect == Some(Defect::SaidBeforeWritten);
        let Some(durable) = &mut self.coordinator.lives else { return };
        if dies == Some(Dies::BeforeWriting) {
            let outputs = durable.outputs();
            if says_first {
                self.carry_out_all(outputs);
            }
            return self.coordinator_ends();
        }
        durable.persist().unwrap();
        let mut outputs = durable.outputs();
        match dies {
            None | Some(Dies::BeforeWriting) => {}
            Some(Dies::AfterWriting) => outputs.clear(),
            Some(Dies::HalfWay) => outputs.truncate(outputs.len() / 2),
        }
        self.carry_out_all(outputs);
        if dies.is_some() {
            self.coordinator_ends();
        }
    }

    fn carry_out_all(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            let (mut effect, is_new) = match output {
                Output::Effect(effect) => (effect, Ok(true)),
                Output::News { number, news } => {
                    let is_new = Coordinator::is_new(
                        &mut self.coordinator.news,
                        number,
                        format!("{news:?}"),
                    );
                    (Effect::News(news), is_new)
                }
                Output::Row { number, row } => {
                    let is_new =
                        Coordinator::is_new(&mut self.coordinator.rows, number, format!("{row:?}"));
                    (Effect::Record(row), is_new)
                }
            };
            match is_new {
                Ok(true) => {}
                Ok(false) => continue,
                Err(complaint) => {
                    self.complaint.get_or_insert(complaint);
                    return;
                }
            }
            if self.defect.is_some_and(|defect| !defect.carried_out(&mut effect)) {
                continue;
            }
            self.log(|| format!("    {effect:?}"));
            if let Err(complaint) = self.checks.effect(&effect) {
                self.complaint.get_or_insert(complaint);
            }
            self.carry_out(effect);
        }
        // The launcher says so in its time; the ledger is synced now and then.
        let heard = self.random.below(3) > 0;
        let synced = self.random.below(8) == 0;
        let (news, rows) = (self.coordinator.news.len() as u64, self.coordinator.rows.len() as u64);
        if let Some(durable) = &mut self.coordinator.lives {
            if heard {
                durable.heard(news);
            }
            if synced {
                durable.recorded(rows);
            }
        }
    }

    /// Now, or on its way through the next event with a consequence.
    pub(crate) fn kill_coordinator(&mut self) {
        match self.random.below(4) {
            0 => self.coordinator_ends(),
            1 => self.coordinator.dies = Some(Dies::BeforeWriting),
            2 => self.coordinator.dies = Some(Dies::AfterWriting),
            _ => self.coordinator.dies = Some(Dies::HalfWay),
        }
    }

    fn coordinator_ends(&mut self) {
        let Some(durable) = self.coordinator.lives.take() else { return };
        self.log(|| "the coordinator ends".to_owned());
        self.counts.coordinator_crashes += 1;
        self.coordinator.left = Some(durable.into_store());
        // The manifest is complete, or it is not.
        if let Some(step) = self.coordinator.writes.take()
            && self.random.below(2) == 0
        {
            self.complete(step);
        }
        let open: Vec<u64> =
            self.links.iter().filter(|(_, link)| !link.closed).map(|(link, _)| *link).collect();
        for link in open {
            let found = self.links.get_mut(&link).unwrap();
            (found.lost, found.closed) = (true, true);
            let worker = found.worker;
            self.later_for(worker, (0, 300), |pid| What::Broken { worker, pid, link: Some(link) });
        }
        self.later(AWAY_MS, What::CoordinatorStarts);
    }

    pub(crate) fn start_coordinator(&mut self) -> Result<(), String> {
        let settings = self.coordinator.settings.clone();
        let records = self.coordinator.left.take().ok_or("two coordinators")?;
        let reopened = Durable::reopen(&settings, records).map_err(|error| error.to_string())?;
        let durable = reopened.unwrap_or_else(|records| Durable::begin(settings, records, 0));
        self.log(|| "the coordinator starts".to_owned());
        self.coordinator.life += 1;
        self.coordinator.behind_ms = self.now_ms - durable.state().now_ms();
        let unheard: Vec<_> = durable.unheard().cloned().collect();
        self.coordinator.lives = Some(durable);
        self.write_down_and_carry_out();
        if !self.coordinator.is_up() {
            return Ok(());
        }
        let again = unheard.into_iter().map(|(number, news)| Output::News { number, news });
        self.carry_out_all(again.collect());
        // What the launcher said before may have been lost.
        for (worker, (pid, what)) in self.coordinator.exits.clone() {
            self.tell_coordinator(StateEvent::WorkerExited { worker, pid, what });
        }
        if self.stop_asked {
            self.tell_coordinator(StateEvent::StopRequested);
        }
        Ok(())
    }

    pub(crate) fn launcher_saw(&mut self, worker: WorkerId, pid: u32, what: String) {
        self.coordinator.exits.insert(worker, (pid, what.clone()));
        self.tell_coordinator(StateEvent::WorkerExited { worker, pid, what });
    }

    /// The last act of a checkpoint is over, if the coordinator that began it lives.
    pub(crate) fn written(&mut self, step: u64, result: Result<(), String>, life: u64) {
        if life != self.coordinator.life || !self.coordinator.is_up() {
            return;
        }
        self.coordinator.writes = None;
        if result.is_ok() {
            self.complete(step);
        }
        self.tell_coordinator(StateEvent::CheckpointWritten { step, result });
    }

    fn complete(&mut self, step: u64) {
        self.disk.insert(step, self.writing.clone());
        self.checks.checkpoint = step;
    }

    /// A worker's owner wants its machine.
    pub(crate) fn ask_to_leave(&mut self, worker: WorkerId) {
        let reason = "its machine is wanted".to_owned();
        self.session(worker, Event::LeaveRequested { reason });
    }
}
