//! What is shown and how: looks and keys go in, and the picture is a function of what is here. No clock, no terminal.

use std::collections::BTreeMap;

use crate::look::{Look, Past};

/// The parts of the picture, in the order of tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Run,
    Loss,
    Rigs,
    Stages,
    Experts,
    Links,
    Events,
}

pub(crate) const PARTS: [Part; 7] =
    [Part::Run, Part::Loss, Part::Rigs, Part::Stages, Part::Experts, Part::Links, Part::Events];

/// A key, as far as it means anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    Interrupt,
    Next,
    Previous,
    Up,
    Down,
    PageUp,
    PageDown,
    Enlarge,
    OtherJob {
        forwards: bool,
    },
    Help,
    /// Away with help, or with a part that is large.
    Back,
}

/// What a key leads to outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    Quit,
    Interrupt,
    /// Look at this job.
    Job(String),
}

#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own, of the person or the terminal"
)]
pub(crate) struct View {
    pub(super) past: Past,
    pub(super) part: Part,
    pub(super) scrolled: BTreeMap<Part, usize>,
    pub(super) large: bool,
    pub(super) help: bool,
    pub(super) colours: bool,
    pub(super) unicode: bool,
}

impl View {
    pub(crate) fn new(colours: bool, unicode: bool) -> Self {
        Self {
            past: Past::default(),
            part: Part::Run,
            scrolled: BTreeMap::new(),
            large: false,
            help: false,
            colours,
            unicode,
        }
    }

    /// Takes in a look.
    pub(crate) fn take(&mut self, look: Look) {
        self.past.take(look);
    }

    /// Nobody answered: what was seen before stands, and is said to be old.
    pub(crate) fn trouble(&mut self, why: String) {
        self.past.trouble(why);
    }

    pub(crate) fn press(&mut self, key: Key) -> Wish {
        let at = PARTS.iter().position(|part| *part == self.part).unwrap_or(0);
        let scroll = self.scrolled.entry(self.part).or_default();
        match key {
            Key::Quit => return Wish::Quit,
            Key::Interrupt => return Wish::Interrupt,
            Key::Next => self.part = PARTS[(at + 1) % PARTS.len()],
            Key::Previous => self.part = PARTS[(at + PARTS.len() - 1) % PARTS.len()],
            Key::Up => *scroll = scroll.saturating_sub(1),
            Key::Down => *scroll += 1,
            Key::PageUp => *scroll = scroll.saturating_sub(10),
            Key::PageDown => *scroll += 10,
            Key::Enlarge => self.large = !self.large,
            Key::Help => self.help = !self.help,
            Key::Back => (self.help, self.large) = (false, self.large && self.help),
            Key::OtherJob { forwards } => {
                if let Some(job) = self.other_job(forwards) {
                    return Wish::Job(job);
                }
            }
        }
        Wish::Nothing
    }

    fn other_job(&self, forwards: bool) -> Option<String> {
        let jobs = &self.past.look.jobs;
        let shown = self.past.look.run.as_ref().map(|run| run.name.as_str());
        let at = jobs.iter().position(|job| Some(job.name.as_str()) == shown);
        let n = jobs.len();
        let next = match (at, forwards) {
            _ if n == 0 => return None,
            (None, _) => 0,
            (Some(at), true) => (at + 1) % n,
            (Some(at), false) => (at + n - 1) % n,
        };
        Some(jobs[next].name.clone())
    }
}
