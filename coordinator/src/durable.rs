//! The state, and all that it has to say, written down before it is said: a coordinator that dies at
//! any moment and is started anew is the one before.
//!
//! News and rows of the ledger are numbered. Whoever takes them leaves out what it has; until it is known to
//! have them they are kept, and said again after a restart. What is said to workers is not kept: the
//! state they come back to says it again. What was heard and led to nothing yet is not written
//! down either: workers keep what the coordinator has not said that it read, and say it again.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shoal_plan::plan::RunId;

use crate::error::Error;
use crate::journal::Store;
use crate::ledger::LedgerRow;
use crate::news::News;
use crate::settings::Settings;
use crate::state::{Effect, Event, Saved, State};

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Neither news nor a row.
    Effect(Effect),
    News {
        number: u64,
        news: News,
    },
    Row {
        number: u64,
        row: LedgerRow,
    },
}

/// One record: the state, and what was said since the record before it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    run: RunId,
    /// Lines of the ledger before this launch's first row.
    ledger_lines: u64,
    state: Saved,
    news: Vec<(u64, News)>,
    rows: Vec<(u64, LedgerRow)>,
    /// News up to this number were heard.
    heard: u64,
    /// Rows up to this number are durable in the ledger.
    recorded: u64,
}

/// Things that were said, by number, until somebody has them.
#[derive(Debug)]
struct Said<T> {
    kept: VecDeque<(u64, T)>,
    /// The last one that was said, that is written down, that somebody has.
    last: u64,
    stored: u64,
    taken: u64,
}

/// The coordinator of one run, and its store.
#[derive(Debug)]
pub struct Durable<S> {
    state: State,
    store: S,
    run: RunId,
    ledger_lines: u64,
    news: Said<News>,
    rows: Said<LedgerRow>,
    /// Not yet written down.
    outputs: Vec<Output>,
    /// The next record has to hold everything: it is the first, or writing has failed.
    behind: bool,
    /// Of the last record.
    bytes: usize,
}

impl<S: Store> Durable<S> {
    /// The coordinator that the store knows, if it is of this run. What it had yet to do comes first.
    ///
    /// # Errors
    /// A store that cannot be read, or is damaged.
    pub fn reopen(settings: &Settings, mut store: S) -> Result<Result<Self, S>, Error> {
        let mut records = Vec::new();
        for text in store.load()? {
            let record = serde_json::from_slice::<Record>(&text);
            records.push(record.map_err(|source| Error::Record { source })?);
        }
        let Some(newest) = records.last().filter(|newest| newest.run == settings.run) else {
            return Ok(Err(store));
        };
        let (heard, recorded, ledger_lines) = (newest.heard, newest.recorded, newest.ledger_lines);
        let (mut news, mut rows) = (Said::after(heard), Said::after(recorded));
        for record in &mut records {
            news.again(std::mem::take(&mut record.news));
            rows.again(std::mem::take(&mut record.rows));
        }
        let saved = records.pop().expect("the newest is there").state;
        let (state, effects) = State::restore(settings.clone(), saved);
        let rows_again = rows.kept.iter().cloned();
        let mut outputs: Vec<_> =
            rows_again.map(|(number, row)| Output::Row { number, row }).collect();
        outputs.extend(effects.into_iter().map(Output::Effect));
        let (run, behind) = (settings.run.clone(), true);
        Ok(Ok(Self { state, store, run, ledger_lines, news, rows, outputs, behind, bytes: 0 }))
    }

    /// A run that begins, with so many lines in its ledger.
    pub fn begin(settings: Settings, store: S, ledger_lines: u64) -> Self {
        let (run, news, rows) = (settings.run.clone(), Said::after(0), Said::after(0));
        let state = State::new(settings, 0);
        let (outputs, behind) = (Vec::new(), true);
        Self { state, store, run, ledger_lines, news, rows, outputs, behind, bytes: 0 }
    }

    /// Hands an event to the state; returns what it wants done. It is not to be done yet.
    pub fn apply(&mut self, now_ms: u64, event: Event) -> &[Output] {
        let before = self.outputs.len();
        for effect in self.state.apply(now_ms, event) {
            self.outputs.push(match effect {
                Effect::News(news) => Output::News { number: self.news.say(news.clone()), news },
                Effect::Record(row) => Output::Row { number: self.rows.say(row.clone()), row },
                effect @ (Effect::Send { .. }
                | Effect::Close { .. }
                | Effect::Ignored { .. }
                | Effect::CommitCheckpoint(_)
                | Effect::DiscardCheckpoint { .. }
                | Effect::Trace { .. }
                | Effect::Answer { .. }) => Output::Effect(effect),
            });
        }
        &self.outputs[before..]
    }

    /// Writes down where the state is now; what it wanted done is to be done after this.
    ///
    /// # Errors
    /// The store takes nothing. `outputs` has the rest all the same: training goes on without it.
    pub fn persist(&mut self) -> Result<(), Error> {
        if !self.says_something() {
            return Ok(());
        }
        let mut all = self.is_full();
        let mut record = self.record(all);
        if !all && !self.store.has_room(record.len()) {
            all = true;
            record = self.record(true);
        }
        self.bytes = record.len();
        let stored = if all { self.store.replace(&record) } else { self.store.append(&record) };
        self.behind = stored.is_err();
        (self.news.stored, self.rows.stored) = (self.news.last, self.rows.last);
        stored
    }

    /// What is to be done now, in order.
    pub fn outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether the next record replaces all, and so leaves out what others have by then.
    pub fn is_full(&self) -> bool {
        self.behind || !self.store.has_room(2 * self.bytes)
    }

    /// Whether there is anything to write down.
    pub fn says_something(&self) -> bool {
        self.outputs.iter().any(Output::says_something)
    }

    /// News up to this number were heard.
    pub fn heard(&mut self, number: u64) {
        self.news.take(number);
    }

    /// Rows up to this number are durable in the ledger.
    pub fn recorded(&mut self, number: u64) {
        self.rows.take(number);
    }

    /// News that nobody is known to have heard.
    pub fn unheard(&self) -> impl Iterator<Item = &(u64, News)> {
        self.news.kept.iter()
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn ledger_lines(&self) -> u64 {
        self.ledger_lines
    }

    /// What remains when the process is killed.
    pub fn into_store(self) -> S {
        self.store
    }

    fn record(&self, everything: bool) -> Vec<u8> {
        let record = Record {
            run: self.run.clone(),
            ledger_lines: self.ledger_lines,
            state: self.state.save(),
            news: self.news.since(everything),
            rows: self.rows.since(everything),
            heard: self.news.taken,
            recorded: self.rows.taken,
        };
        serde_json::to_vec(&record).expect("a record has only string keys")
    }
}

impl Output {
    /// Whether anybody will know of it.
    fn says_something(&self) -> bool {
        match self {
            // What closes a stranger's connection, too; that of a member comes with news. An order that is
            // refused changes nothing.
            Self::Effect(
                Effect::Ignored { .. }
                | Effect::Close { .. }
                | Effect::Answer { reply: Err(_), .. },
            ) => false,
            Self::Effect(_) | Self::News { .. } | Self::Row { .. } => true,
        }
    }
}

impl<T: Clone> Said<T> {
    /// All up to a number were taken.
    fn after(taken: u64) -> Self {
        Self { kept: VecDeque::new(), last: taken, stored: taken, taken }
    }

    fn say(&mut self, what: T) -> u64 {
        self.last += 1;
        self.kept.push_back((self.last, what));
        self.last
    }

    /// Said before the restart.
    fn again(&mut self, said: Vec<(u64, T)>) {
        for (number, what) in said {
            if number > self.last {
                self.last = number;
                self.kept.push_back((number, what));
            }
        }
        self.stored = self.last;
    }

    fn take(&mut self, number: u64) {
        self.taken = self.taken.max(number.min(self.last));
        while self.kept.front().is_some_and(|(kept, _)| *kept <= self.taken) {
            self.kept.pop_front();
        }
    }

    fn since(&self, everything: bool) -> Vec<(u64, T)> {
        let stored = if everything { 0 } else { self.stored };
        self.kept.iter().filter(|(number, _)| *number > stored).cloned().collect()
    }
}
