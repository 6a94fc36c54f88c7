//! Files of checkpoints, through the door: names that may stand in a path, hashes, and chunks that are neither
//! empty nor large.

use shoal_plan::checkpoint::{self, CheckpointFile};
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, WorkerId};

use super::{CHUNK_BYTES_MAX, WireError, hash, present, raw, reports, run_id, value};
use crate::files::{Deposit, DepositPiece, Withdrawal};

/// Files in one part of a checkpoint.
const FILES_MAX: usize = 1024;

/// Characters in a file name of a checkpoint.
const NAME_MAX: usize = 128;

/// The files of a part.
pub(super) fn of_part(raw: Vec<raw::CheckpointFile>) -> Result<Vec<CheckpointFile>, WireError> {
    if raw.is_empty() || raw.len() > FILES_MAX {
        let want = format!("1 to {FILES_MAX}");
        return Err(WireError::Count { field: "checkpoint_part.files", got: raw.len(), want });
    }
    let fields = ("checkpoint_part.files.name", "checkpoint_part.files.blake3");
    raw.into_iter().map(|raw| file(fields, raw)).collect()
}

pub(super) fn raw_file(file: CheckpointFile) -> raw::CheckpointFile {
    raw::CheckpointFile { name: file.name, bytes: file.bytes, blake3: file.blake3 }
}

/// A file that a cell writes: never the manifest, which is the coordinator's.
fn file(
    (name, blake3): (&'static str, &'static str),
    raw: raw::CheckpointFile,
) -> Result<CheckpointFile, WireError> {
    if !is_plain(&raw.name) || raw.name == checkpoint::FILE_NAME {
        return Err(value(name, raw.name.escape_debug(), "a plain file name"));
    }
    let blake3 = hash(blake3, raw.blake3)?;
    Ok(CheckpointFile { name: raw.name, bytes: raw.bytes, blake3 })
}

/// Names go into paths: letters, digits, `.`, `_` and `-`, no leading dot.
fn is_plain(name: &str) -> bool {
    name.len() <= NAME_MAX && checkpoint::is_plain(name)
}

impl TryFrom<raw::DepositPiece> for DepositPiece {
    type Error = WireError;

    fn try_from(raw: raw::DepositPiece) -> Result<Self, WireError> {
        use raw::deposit_piece::Piece;
        Ok(match present("deposit.piece", raw.piece)? {
            Piece::Head(raw) => Self::Head(Deposit {
                run: run_id("deposit.run", raw.run)?,
                worker: WorkerId(raw.worker),
                generation: Generation(raw.generation),
                standing: reports::standing("deposit.standing", raw.standing)?,
                cell: CellId(raw.cell),
                file: file(
                    ("deposit.file.name", "deposit.file.blake3"),
                    present("deposit.file", raw.file)?,
                )?,
            }),
            Piece::Chunk(raw) => Self::Chunk(bytes(raw)?),
        })
    }
}

impl From<DepositPiece> for raw::DepositPiece {
    fn from(piece: DepositPiece) -> Self {
        use raw::deposit_piece::Piece;
        let piece = match piece {
            DepositPiece::Head(head) => Piece::Head(raw::DepositHead {
                run: head.run.0,
                worker: head.worker.0,
                generation: head.generation.0,
                standing: Some(head.standing.into()),
                cell: head.cell.0,
                file: Some(raw_file(head.file)),
            }),
            DepositPiece::Chunk(bytes) => Piece::Chunk(raw::Chunk { bytes }),
        };
        Self { piece: Some(piece) }
    }
}

/// The bytes of a chunk.
///
/// # Errors
/// None, or more than `CHUNK_BYTES_MAX`.
pub fn bytes(raw: raw::Chunk) -> Result<Vec<u8>, WireError> {
    let got = raw.bytes.len();
    if got == 0 || got > CHUNK_BYTES_MAX {
        let want = format!("1 to {CHUNK_BYTES_MAX} bytes");
        return Err(value("chunk.bytes", format!("{got} bytes long"), &want));
    }
    Ok(raw.bytes)
}

impl TryFrom<raw::Withdrawal> for Withdrawal {
    type Error = WireError;

    fn try_from(raw: raw::Withdrawal) -> Result<Self, WireError> {
        if !is_plain(&raw.name) {
            return Err(value("withdrawal.name", raw.name.escape_debug(), "a plain file name"));
        }
        Ok(Self {
            run: run_id("withdrawal.run", raw.run)?,
            worker: WorkerId(raw.worker),
            generation: Generation(raw.generation),
            step: raw.step,
            name: raw.name,
        })
    }
}

impl From<Withdrawal> for raw::Withdrawal {
    fn from(withdrawal: Withdrawal) -> Self {
        let Withdrawal { run, worker, generation, step, name } = withdrawal;
        Self { run: run.0, worker: worker.0, generation: generation.0, step, name }
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::plan::RunId;
    use shoal_plan::standing::Standing;

    use super::*;

    fn head() -> Deposit {
        Deposit {
            run: RunId("r".into()),
            worker: WorkerId(3),
            generation: Generation(2),
            standing: Standing { step: 4, sequences: 32, ..Standing::default() },
            cell: CellId(1),
            file: CheckpointFile {
                name: "model-cell-1.safetensors".into(),
                bytes: 5,
                blake3: "0a".repeat(32),
            },
        }
    }

    fn withdrawal() -> Withdrawal {
        let (run, name) = (RunId("r".into()), checkpoint::FILE_NAME.to_owned());
        Withdrawal { run, worker: WorkerId(3), generation: Generation(2), step: 4, name }
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(read: Result<T, WireError>, want: &str) {
        let error = read.unwrap_err().to_string();
        assert!(error.contains(want), "{error}, want {want}");
    }

    #[test]
    fn what_a_deposit_says_comes_through_the_door_as_it_was_said() {
        for piece in [DepositPiece::Head(head()), DepositPiece::Chunk(vec![1; CHUNK_BYTES_MAX])] {
            let raw = raw::DepositPiece::from(piece.clone());
            assert_eq!(DepositPiece::try_from(raw).unwrap(), piece);
        }
        let raw = raw::Withdrawal::from(withdrawal());
        assert_eq!(Withdrawal::try_from(raw).unwrap(), withdrawal());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", "../x", "a/b", ".hidden", "a..b", "a\0b", &long] {
            let mut deposit = head();
            deposit.file.name = name.into();
            let raw = raw::DepositPiece::from(DepositPiece::Head(deposit));
            refused(DepositPiece::try_from(raw), "deposit.file.name is");
            let raw = raw::Withdrawal::from(Withdrawal { name: name.into(), ..withdrawal() });
            refused(Withdrawal::try_from(raw), "withdrawal.name is");
        }
        let mut deposit = head();
        deposit.file.name = checkpoint::FILE_NAME.into();
        let raw = raw::DepositPiece::from(DepositPiece::Head(deposit));
        refused(DepositPiece::try_from(raw), "manifest.json: want a plain file name");
    }

    #[test]
    fn a_head_without_a_file_a_hash_that_is_none_and_empty_or_large_chunks_are_refused() {
        refused(DepositPiece::try_from(raw::DepositPiece::default()), "deposit.piece is missing");
        let with = |change: fn(&mut raw::DepositHead)| {
            let raw = raw::DepositPiece::from(DepositPiece::Head(head()));
            let Some(raw::deposit_piece::Piece::Head(mut head)) = raw.piece else { panic!() };
            change(&mut head);
            let piece = Some(raw::deposit_piece::Piece::Head(head));
            DepositPiece::try_from(raw::DepositPiece { piece })
        };
        refused(with(|head| head.file = None), "deposit.file is missing");
        refused(with(|head| head.standing = None), "deposit.standing is missing");
        refused(with(|head| head.run = "a b".into()), "deposit.run is");
        let upper = |head: &mut raw::DepositHead| {
            head.file.as_mut().unwrap().blake3 = "0A".repeat(32);
        };
        refused(with(upper), "deposit.file.blake3 is");
        for bytes in [0, CHUNK_BYTES_MAX + 1] {
            let chunk = DepositPiece::Chunk(vec![0; bytes]);
            let raw = raw::DepositPiece::from(chunk);
            refused(DepositPiece::try_from(raw), "chunk.bytes is");
        }
    }
}
