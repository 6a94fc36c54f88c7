//! Whether the cells of a plan fit on the GPUs of its workers, to the byte (`Need`), before anything is
//! started.

use std::collections::BTreeMap;

use shoal_plan::device::device_of;
use shoal_plan::grid::CellId;
use shoal_plan::job::Job;
use shoal_plan::pace::{self, Devices};
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, Plan, WorkerId};
use shoal_worker::devices::{Need, Share};

use crate::progress::short;

/// Kinds of memory that a refusal names of each cell.
const KINDS_TOLD: usize = 3;

/// How many each worker has.
pub(super) fn devices_of(shares: &[Vec<Share>]) -> Devices {
    (0..).map(WorkerId).zip(shares.iter().map(|shares| shares.len() as u32)).collect()
}

/// What every cell of a grid needs of a GPU, whichever it is put on.
#[derive(Clone, Debug)]
pub(super) struct Needs(BTreeMap<CellId, Need>);

/// What the cells of one worker need of one of its GPUs.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) worker: WorkerId,
    pub(super) share: Share,
    pub(super) bytes: usize,
    cells: Vec<CellId>,
}

impl Needs {
    /// Placement has no part in it: any plan of the job will do.
    pub(super) fn of(job: &Job, plan: &Plan) -> Result<Self, String> {
        let need = |cell| Ok((cell, Need::of(job, plan, cell).map_err(|error| error.to_string())?));
        plan.grid.cells().map(need).collect::<Result<_, _>>().map(Self)
    }

    /// Under a plan, by worker and GPU.
    pub(super) fn loads(&self, plan: &Plan, shares: &[Vec<Share>]) -> Vec<Load> {
        let mut loads = Vec::new();
        for (worker, shares) in (0..).map(WorkerId).zip(shares) {
            let cells = plan.cells_of(worker);
            for (card, share) in shares.iter().enumerate() {
                let mine = cells.iter().enumerate();
                let mine = mine.filter(|(nth, _)| device_of(*nth, shares.len()) == card);
                let cells: Vec<CellId> = mine.map(|(_, cell)| *cell).collect();
                let bytes = cells.iter().map(|cell| self.0[cell].bytes).sum();
                loads.push(Load { worker, share: *share, bytes, cells });
            }
        }
        loads
    }

    /// What the cells of a load are made of, for people.
    pub(super) fn told(&self, load: &Load) -> String {
        let of = |(what, bytes): (&str, usize)| format!("{what} {}B", short(bytes as f64));
        let cell = |cell: &CellId| {
            let need = &self.0[cell];
            let kinds: Vec<String> = need.largest().into_iter().take(KINDS_TOLD).map(of).collect();
            format!("{cell} {}B ({}, ...)", short(need.bytes as f64), kinds.join(", "))
        };
        load.cells.iter().map(cell).collect::<Vec<_>>().join("; ")
    }

    /// What is to be known of the plans that may follow when workers are lost: the first load that does not fit, with the
    /// number of workers that are left.
    pub(super) fn after_losses(&self, job: &Job, shares: &[Vec<Share>]) -> Option<(usize, Load)> {
        let left = (job.workers.min.max(1)..job.workers.local).rev();
        let mut short = left.filter_map(|left| {
            let workers: Vec<WorkerId> = (0..left).map(WorkerId).collect();
            let mut plan = make_plan(job, &workers, Generation(2)).ok()?;
            pace::by_devices(job, &mut plan, &devices_of(shares));
            let loads = self.loads(&plan, shares).into_iter();
            let over = loads.filter(|load| load.share.bytes < load.bytes);
            Some((left as usize, over.max_by_key(|load| load.bytes)?))
        });
        short.next()
    }
}
