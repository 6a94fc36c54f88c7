//! What of the state is written down, so that a coordinator that is started anew is the one before:
//! everything but the settings, which whoever starts it knows, and what was only measured.
//!
//! `save` takes the state apart field by field: a new field does not compile until it is decided here.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use shoal_plan::plan::{Plan, WorkerId};
use shoal_plan::report::{Ending, Evaluation, StepReport};
use shoal_plan::standing::Standing;
use shoal_proto::{Assign, Meeting, Name, Source};

use super::apart::Apart;
use super::awaiting::Awaiting;
use super::cause::Signs;
use super::ending::LastWord;
use super::history::History;
use super::holdings::Holdings;
use super::in_a_row::InARow;
use super::member::Member;
use super::parts::Parts;
use super::recovering::Loss;
use super::stragglers::Stragglers;
use super::sums::Sums;
use super::tempo::Tempo;
use super::{Effect, Phase, State};
use crate::control;
use crate::settings::Settings;

/// The state as it is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    phase: Phase,
    started_ms: u64,
    now_ms: u64,
    members: BTreeMap<WorkerId, Member>,
    histories: BTreeMap<WorkerId, History>,
    plan: Option<Plan>,
    assignment: Option<Assigned>,
    committed: u64,
    start: Standing,
    reports: BTreeMap<u64, StepReport>,
    evaluations: BTreeMap<u64, Vec<Evaluation>>,
    parts: Parts,
    checkpointed: Standing,
    from_checkpoint: Standing,
    holdings: Holdings,
    checkpoint_failed: Option<(u64, String)>,
    finished: Option<(u64, Ending)>,
    stop_wanted: bool,
    pause_wanted: bool,
    signs: Signs,
    loss: Option<Loss>,
    link_broke: InARow,
    apart: Apart,
    #[serde(default)]
    meetings: Vec<control::Meeting>,
    edge_ms: Option<u64>,
    recoveries: u64,
    restarts: u64,
    awaiting: Option<Awaiting>,
    last_word: Option<LastWord>,
    sums: Sums,
}

/// Of an assignment what neither the plan nor the settings say.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Assigned {
    peers: BTreeMap<WorkerId, SocketAddr>,
    vaults: BTreeMap<WorkerId, SocketAddr>,
    resume_from: Option<u64>,
    sources: Vec<Source>,
    /// Of rigs.
    #[serde(default)]
    names: BTreeMap<WorkerId, String>,
    #[serde(default)]
    meetings: Vec<Meeting>,
}

fn named(names: &BTreeMap<WorkerId, String>) -> BTreeMap<WorkerId, Name> {
    let parsed = names.iter().filter_map(|(worker, name)| Some((*worker, name.parse().ok()?)));
    parsed.collect()
}

impl Assigned {
    fn of(assign: &Assign) -> Self {
        Self {
            peers: assign.peers.clone(),
            vaults: assign.vaults.clone(),
            resume_from: assign.resume_from,
            sources: assign.sources.clone(),
            names: assign.names.iter().map(|(id, name)| (*id, name.to_string())).collect(),
            meetings: assign.meetings.clone(),
        }
    }
}

impl State {
    pub fn save(&self) -> Saved {
        let Self {
            // Whoever starts a coordinator knows them.
            settings: _,
            // Measured anew.
            stragglers: _,
            tempo: _,
            // Gathered in memory: after a restart it is asked for again.
            traced: _,
            // Connections end with the process.
            proven: _,
            // Carried out before, or after.
            effects: _,
            phase,
            started_ms,
            now_ms,
            members,
            histories,
            plan,
            assignment,
            committed,
            start,
            reports,
            evaluations,
            parts,
            checkpointed,
            from_checkpoint,
            holdings,
            checkpoint_failed,
            finished,
            stop_wanted,
            pause_wanted,
            signs,
            loss,
            link_broke,
            apart,
            meetings,
            edge_ms,
            recoveries,
            restarts,
            awaiting,
            last_word,
            sums,
        } = self;
        Saved {
            phase: *phase,
            started_ms: *started_ms,
            now_ms: *now_ms,
            members: members.clone(),
            histories: histories.clone(),
            plan: plan.clone(),
            assignment: assignment.as_deref().map(Assigned::of),
            committed: *committed,
            start: *start,
            reports: reports.clone(),
            evaluations: evaluations.clone(),
            parts: parts.clone(),
            checkpointed: *checkpointed,
            from_checkpoint: *from_checkpoint,
            holdings: holdings.clone(),
            checkpoint_failed: checkpoint_failed.clone(),
            finished: *finished,
            stop_wanted: *stop_wanted,
            pause_wanted: *pause_wanted,
            signs: signs.clone(),
            loss: loss.clone(),
            link_broke: *link_broke,
            apart: apart.clone(),
            meetings: meetings.clone(),
            edge_ms: *edge_ms,
            recoveries: *recoveries,
            restarts: *restarts,
            awaiting: *awaiting,
            last_word: last_word.clone(),
            sums: sums.clone(),
        }
    }

    /// The coordinator that was written down, by the settings it was started with. Its clock goes on
    /// from `now_ms`; all connections are gone, and a manifest that was being written is to be
    /// written again.
    pub fn restore(settings: Settings, saved: Saved) -> (Self, Vec<Effect>) {
        let assignment = saved.assignment.zip(saved.plan.clone()).map(|(assigned, plan)| {
            Box::new(Assign {
                run: settings.run.clone(),
                plan,
                job: settings.job.clone(),
                peers: assigned.peers,
                resume_from: assigned.resume_from,
                standing: saved.start,
                vaults: assigned.vaults,
                sources: assigned.sources,
                names: named(&assigned.names),
                meetings: assigned.meetings,
            })
        });
        let mut stragglers = Stragglers::default();
        if let Some(plan) = &saved.plan {
            let devices = saved.members.iter().map(|(worker, member)| (*worker, member.devices));
            stragglers.plan(&settings.job, plan, &devices.collect());
        }
        let mut state = Self {
            settings,
            phase: saved.phase,
            started_ms: saved.started_ms,
            now_ms: saved.now_ms,
            members: saved.members,
            histories: saved.histories,
            plan: saved.plan,
            assignment,
            committed: saved.committed,
            start: saved.start,
            reports: saved.reports,
            evaluations: saved.evaluations,
            parts: saved.parts,
            checkpointed: saved.checkpointed,
            from_checkpoint: saved.from_checkpoint,
            holdings: saved.holdings,
            checkpoint_failed: saved.checkpoint_failed,
            finished: saved.finished,
            stop_wanted: saved.stop_wanted,
            pause_wanted: saved.pause_wanted,
            signs: saved.signs,
            loss: saved.loss,
            link_broke: saved.link_broke,
            apart: saved.apart,
            meetings: saved.meetings,
            edge_ms: saved.edge_ms,
            stragglers,
            tempo: Tempo::default(),
            traced: None,
            recoveries: saved.recoveries,
            restarts: saved.restarts,
            awaiting: saved.awaiting,
            last_word: saved.last_word,
            sums: saved.sums,
            proven: BTreeMap::new(),
            effects: Vec::new(),
        };
        state.await_all();
        if let Some(manifest) = state.parts.writing() {
            state.effects.push(Effect::CommitCheckpoint(manifest.clone()));
        }
        let effects = std::mem::take(&mut state.effects);
        (state, effects)
    }

    /// The time of the last event.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }
}
