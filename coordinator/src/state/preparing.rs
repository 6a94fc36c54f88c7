//! How a worker catches up before it enters, while the others train: it is told the plan that will
//! give it cells, opens the text, builds those cells and fills them with the newest snapshot in memory.
//! It says which states it holds by their hashes; the edge is asked for when all newcomers are so far.

use serde::{Deserialize, Serialize};
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::standing::Standing;
use shoal_proto::ToWorker;

use super::recovering::Restart;
use super::{Ignored, State};
use crate::news::{News, Restored};

/// Whoever takes longer enters as it is.
pub(super) const PATIENCE_MS: u64 = 20_000;

/// What a member without cells was asked to get ready for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Preparing {
    /// When it was first asked.
    since_ms: u64,
    generation: Generation,
    /// The hosts of that plan.
    wanted: Vec<WorkerId>,
    done: bool,
}

impl State {
    /// Whether all that would come to host by a plan over `wanted` are ready for it. Those that were
    /// not asked are.
    pub(super) fn are_prepared(&mut self, wanted: &[WorkerId]) -> bool {
        let (now_ms, generation) = (self.now_ms, Generation(self.generation().0 + 1));
        let mut all_are = true;
        let mut to_ask = Vec::new();
        for worker in wanted {
            let member = &self.members[worker];
            if member.hosts {
                continue;
            }
            let asked = member.preparing.as_ref();
            let since_ms = asked.map_or(now_ms, |asked| asked.since_ms);
            if asked.is_none_or(|asked| asked.wanted != wanted || asked.generation != generation) {
                to_ask.push((*worker, since_ms));
            }
            let done = asked.is_some_and(|asked| asked.done && asked.wanted == wanted);
            all_are &= done || now_ms >= since_ms + PATIENCE_MS;
        }
        if all_are || to_ask.is_empty() {
            return all_are;
        }
        let standing = self.holdings.newest_complete(|held| held.step <= self.committed);
        let source = if standing.is_some() { Restored::Memory } else { Restored::Seed };
        let restart = Restart { standing: standing.unwrap_or(self.start), source };
        // That there is no plan shows when it is made in earnest.
        let Ok(assign) = self.drafted(generation, wanted, restart) else { return true };
        for (worker, since_ms) in to_ask {
            let wanted = wanted.to_vec();
            let member = self.member(worker);
            member.preparing = Some(Preparing { since_ms, generation, wanted, done: false });
            let (connection, assign) = (member.connection, Box::new(assign.clone()));
            let message = ToWorker::Prepare(assign);
            self.effects.push(super::Effect::Send { connection, message });
        }
        false
    }

    pub(super) fn prepared(
        &mut self,
        worker: WorkerId,
        (generation, standing): (Generation, Standing),
        cells: &[(CellId, String)],
    ) {
        let now_ms = self.now_ms;
        let other = cells.iter().find(|(cell, blake3)| {
            let known = self.holdings.blake3(*cell, standing.step);
            known.is_some_and(|known| known != blake3)
        });
        let other = other.map(|(cell, _)| *cell);
        let member = self.member(worker);
        let connection = member.connection;
        let Some(asked) = member.preparing.as_mut().filter(|asked| asked.generation == generation)
        else {
            return self.ignore(connection, Ignored::Repeated);
        };
        asked.done = true;
        let seconds = now_ms.saturating_sub(asked.since_ms) as f64 / 1e3;
        if let Some(cell) = other {
            // It is fetched again at the edge, by its hash.
            let why = format!("{cell} after step {} is not what others hold of it", standing.step);
            return self.ignore(connection, Ignored::Contradiction(why));
        }
        let (cells, step) = (cells.len() as u32, standing.step);
        self.news(News::Prepared { worker, cells, step, seconds });
    }
}
