//! Hidden states and gradients on their way between the cells of a column.
//!
//! Two cells may hand each other both at once: with two stages and several chunks, hidden states go
//! round from the last stage to the first on the link that also brings it gradients. So each
//! message says what it is, and one that comes before its slot waits here.
//!
//! Layout: the tensor's bytes, then 9 bytes of what it is: direction (0 forward, 1 backward), and
//! the receiver's chunk and microbatch, u32 in little endian.

use std::collections::BTreeMap;

use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::grid::CellId;
use shoal_plan::job::Precision;
use shoal_plan::schedule::Work;

use super::error::EngineError;
use super::step::Trainer;

const LABEL_BYTES: usize = 9;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// Hidden states.
    Forward,
    /// Their gradient.
    Backward,
}

/// What a message is: for which slot of the receiver.
pub(super) type Label = (Direction, Work);

/// What came before its slot.
pub(super) type Early = BTreeMap<(CellId, Label), Vec<u8>>;

impl Trainer {
    /// The cell of this column that `work` goes to, and what it is there; or comes from.
    /// `None` at the end of the network that lies in this direction.
    pub(super) fn neighbour(&self, direction: Direction, work: Work) -> Option<(CellId, Work)> {
        let (pipeline, stage) = (self.inputs.job.pipeline(), self.at.stage);
        let (stage, theirs) = match direction {
            Direction::Forward => pipeline.after(stage, work)?,
            Direction::Backward => pipeline.before(stage, work)?,
        };
        Some((self.inputs.plan.grid.in_stage(self.id, stage), theirs))
    }

    /// Hands on what a slot made of `work`.
    pub(super) fn send_hidden(
        &mut self,
        direction: Direction,
        work: Work,
        hidden: &Tensor,
    ) -> Result<(), EngineError> {
        let (to, theirs) = self.neighbour(direction, work).expect("a schedule sends to somebody");
        let mut bytes = Vec::with_capacity(hidden.bytes().len() + LABEL_BYTES);
        bytes.extend_from_slice(hidden.bytes());
        bytes.extend_from_slice(&encode((direction, theirs)));
        Ok(self.comm.send(to, bytes)?)
    }

    /// Waits for what a slot needs for `work`: `[sequences * sequence, hidden_size]`.
    pub(super) fn recv_hidden(
        &mut self,
        direction: Direction,
        work: Work,
        sequences: usize,
    ) -> Result<Tensor, EngineError> {
        let back = match direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        let (from, _) = self.neighbour(back, work).expect("a schedule waits for somebody");
        let wanted = (direction, work);
        let bytes = loop {
            if let Some(bytes) = self.early.remove(&(from, wanted)) {
                break bytes;
            }
            let mut bytes = self.comm.recv(from)?;
            let label = decode(&mut bytes).ok_or(EngineError::Message {
                what: "hidden states",
                from,
                got: bytes.len(),
                want: LABEL_BYTES,
            })?;
            if label == wanted {
                break bytes;
            }
            self.early.insert((from, label), bytes);
        };
        let job = &self.inputs.job;
        let dtype = wire_dtype(job.training.precision);
        let rows = sequences * job.training.sequence as usize;
        let shape = [rows, job.model.hidden_size as usize];
        let (got, want) = (bytes.len(), rows * shape[1] * dtype.size());
        let wrong = |_| EngineError::Message { what: "hidden states", from, got, want };
        Tensor::from_bytes(dtype, &shape, &bytes).map_err(wrong)
    }
}

fn encode((direction, work): Label) -> [u8; LABEL_BYTES] {
    let mut label = [0; LABEL_BYTES];
    label[0] = match direction {
        Direction::Forward => 0,
        Direction::Backward => 1,
    };
    label[1..5].copy_from_slice(&work.chunk.to_le_bytes());
    label[5..].copy_from_slice(&work.microbatch.to_le_bytes());
    label
}

/// Takes the label off a message. `None` if there is none.
fn decode(bytes: &mut Vec<u8>) -> Option<Label> {
    let (rest, label) = bytes.split_last_chunk::<LABEL_BYTES>()?;
    let [direction, c0, c1, c2, c3, m0, m1, m2, m3] = *label;
    let direction = match direction {
        0 => Direction::Forward,
        1 => Direction::Backward,
        _ => return None,
    };
    let chunk = u32::from_le_bytes([c0, c1, c2, c3]);
    let microbatch = u32::from_le_bytes([m0, m1, m2, m3]);
    let n = rest.len();
    bytes.truncate(n);
    Some((direction, Work { chunk, microbatch }))
}

/// Hidden states travel between stages in the dtype of the residual stream.
fn wire_dtype(precision: Precision) -> DType {
    match precision {
        Precision::Fp8 | Precision::Bf16 => DType::Bf16,
        Precision::F32 => DType::F32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_comes_back_and_leaves_the_tensor() {
        for direction in [Direction::Forward, Direction::Backward] {
            let label = (direction, Work { chunk: 3, microbatch: 70_000 });
            let mut bytes = vec![1, 2, 3];
            bytes.extend(encode(label));
            assert_eq!(decode(&mut bytes), Some(label));
            assert_eq!(bytes, [1, 2, 3]);
        }
        assert_eq!(decode(&mut vec![0; 8]), None);
        assert_eq!(decode(&mut vec![2; 9]), None);
    }
}
