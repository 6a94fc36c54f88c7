//! What a cell did in a step, stretch by stretch, and when: what `shoal trace` gathers.

use serde::{Deserialize, Serialize};

use crate::grid::CellId;
use crate::schedule::Slot;

/// One stretch of a cell's time. Operations of the data plane lie within the slots that called them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    pub doing: Doing,
    /// Since the cell's step began, in nanoseconds.
    pub start_ns: u64,
    pub length_ns: u64,
    /// Of a slot, of its stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<u32>,
    /// Of a slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microbatch: Option<u32>,
    /// The other end of a message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<CellId>,
    /// Payload that the cell handed to the data plane, and took from it.
    #[serde(default)]
    pub sent_bytes: u64,
    #[serde(default)]
    pub received_bytes: u64,
}

/// One cell's step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTrace {
    pub step: u64,
    pub cell: CellId,
    /// When it began, by its machine's clock: microseconds since 1970.
    pub began_us: u64,
    /// In the order in which they ended.
    pub spans: Vec<Span>,
    /// Stretches for which there was no room.
    pub left_out: u64,
    /// No more of this step follows from this cell.
    pub whole: bool,
}

/// What a cell does. The order of `ALL` is the number on the wire: new ones are added at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Doing {
    Step,
    Forward,
    /// Both halves at once.
    Backward,
    BackwardInput,
    BackwardWeight,
    SendForward,
    SendBackward,
    RecvForward,
    RecvBackward,
    /// Gradients and routing counts are summed over the groups.
    Sums,
    /// All cells gather norms and losses, and so agree on the update.
    Vote,
    Update,
    Send,
    Recv,
    AllToAll,
    AllReduce,
    ReduceScatter,
    AllGather,
    Broadcast,
}

impl Span {
    /// Of no length, and with nothing else known of it.
    pub fn new(doing: Doing) -> Self {
        let (start_ns, length_ns, sent_bytes, received_bytes) = (0, 0, 0, 0);
        let (chunk, microbatch, peer) = (None, None, None);
        Self { doing, start_ns, length_ns, chunk, microbatch, peer, sent_bytes, received_bytes }
    }
}

impl Doing {
    pub const ALL: [Self; 19] = [
        Self::Step,
        Self::Forward,
        Self::Backward,
        Self::BackwardInput,
        Self::BackwardWeight,
        Self::SendForward,
        Self::SendBackward,
        Self::RecvForward,
        Self::RecvBackward,
        Self::Sums,
        Self::Vote,
        Self::Update,
        Self::Send,
        Self::Recv,
        Self::AllToAll,
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::Broadcast,
    ];

    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::BackwardInput => "backward input",
            Self::BackwardWeight => "backward weight",
            Self::SendForward => "send forward",
            Self::SendBackward => "send backward",
            Self::RecvForward => "recv forward",
            Self::RecvBackward => "recv backward",
            Self::Sums => "sums",
            Self::Vote => "vote",
            Self::Update => "update",
            Self::Send => "send",
            Self::Recv => "recv",
            Self::AllToAll => "all_to_all",
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast => "broadcast",
        }
    }

    /// An operation of the data plane: of these the cell waits.
    pub fn is_operation(self) -> bool {
        match self {
            Self::Send
            | Self::Recv
            | Self::AllToAll
            | Self::AllReduce
            | Self::ReduceScatter
            | Self::AllGather
            | Self::Broadcast => true,
            Self::Step
            | Self::Forward
            | Self::Backward
            | Self::BackwardInput
            | Self::BackwardWeight
            | Self::SendForward
            | Self::SendBackward
            | Self::RecvForward
            | Self::RecvBackward
            | Self::Sums
            | Self::Vote
            | Self::Update => false,
        }
    }

    /// What a slot does.
    pub fn of(slot: Slot) -> Self {
        match slot {
            Slot::RecvForward(_) => Self::RecvForward,
            Slot::Forward(_) => Self::Forward,
            Slot::SendForward(_) => Self::SendForward,
            Slot::RecvBackward(_) => Self::RecvBackward,
            Slot::BackwardInput(_) => Self::BackwardInput,
            Slot::SendBackward(_) => Self::SendBackward,
            Slot::BackwardWeight(_) => Self::BackwardWeight,
        }
    }

    /// Its number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(code as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_the_number_of_its_place() {
        for (place, doing) in Doing::ALL.into_iter().enumerate() {
            assert_eq!(
                (doing.code() as usize, Doing::from_code(doing.code())),
                (place, Some(doing))
            );
        }
        assert_eq!(Doing::from_code(Doing::ALL.len() as u32), None);
    }
}
