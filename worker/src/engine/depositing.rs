//! How cells leave their files of checkpoints with a coordinator that gathers them: each writes them into scratch
//! files, which is what its training waits for, and a thread of the engine sends them while it trains on.
//!
//! A cell has one checkpoint on its way. Before it writes the next one, and before it ends, it waits until the last one
//! has arrived or failed: so scratch files never take more room than one checkpoint of the worker's cells, and a
//! part is said before the end of the cell, as where it writes to the disk itself.

use std::fs::File;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use shoal_plan::checkpoint::CheckpointFile;
use shoal_plan::grid::CellId;
use shoal_plan::standing::Standing;

use super::{CellNews, Control, tell};
use crate::daemon::{Courier, CourierError};
use crate::metrics::StepWatch;

/// One cell's files of one checkpoint.
pub(super) struct Parcel {
    cell: CellId,
    standing: Standing,
    files: Vec<(CheckpointFile, File)>,
    watch: Option<StepWatch>,
    /// Dropped when the files have arrived, or will not.
    _done: Sender<()>,
}

/// One cell's way to the thread that sends.
pub(super) struct Depositor {
    cell: CellId,
    parcels: Sender<Parcel>,
    /// Ends with the last parcel.
    last: Option<Receiver<()>>,
}

impl Depositor {
    pub(super) fn new(cell: CellId, parcels: Sender<Parcel>) -> Self {
        Self { cell, parcels, last: None }
    }

    /// Until nothing of this cell is on its way.
    pub(super) fn wait(&mut self) {
        if let Some(last) = self.last.take() {
            // Nothing is ever sent: it ends.
            last.recv().ok();
        }
    }

    /// Has the files sent; what becomes of them is told by the thread. False if there is no thread any more.
    pub(super) fn send(
        &mut self,
        standing: Standing,
        files: Vec<(CheckpointFile, File)>,
        watch: Option<StepWatch>,
    ) -> bool {
        let (done, last) = channel();
        self.last = Some(last);
        let parcel = Parcel { cell: self.cell, standing, files, watch, _done: done };
        self.parcels.send(parcel).is_ok()
    }
}

/// Starts the thread, which ends when all cells have and nothing is left to send, or the engine is aborted.
pub(super) fn start(
    courier: Courier,
    control: Arc<Control>,
    news: Sender<(CellId, CellNews)>,
) -> Sender<Parcel> {
    let (parcels, waiting) = channel::<Parcel>();
    std::thread::spawn(move || {
        for parcel in waiting {
            if control.is_aborted() {
                return;
            }
            let Parcel { cell, standing, files, watch, _done } = parcel;
            let send = || deposit(&courier, &control, (standing, cell), &files);
            let sent = watch.map_or_else(send, |watch| watch.checkpoint("send", send));
            let step = standing.step;
            match sent {
                Ok(()) => {
                    let files = files.into_iter().map(|(file, _)| file).collect();
                    tell(&news, cell, CellNews::Part { standing, files });
                }
                // Nobody listens any more.
                Err(CourierError::Stopped { .. }) => return,
                Err(error) => {
                    let why = error.to_string();
                    tracing::error!(%cell, step, why, "no files of the checkpoint");
                    tell(&news, cell, CellNews::PartFailed { standing, why });
                }
            }
        }
    });
    parcels
}

/// Leaves all files of a part.
fn deposit(
    courier: &Courier,
    control: &Control,
    whose: (Standing, CellId),
    files: &[(CheckpointFile, File)],
) -> Result<(), CourierError> {
    let is_off = || control.is_aborted();
    files.iter().try_for_each(|(file, content)| courier.deposit(whose, (file, content), &is_off))
}
