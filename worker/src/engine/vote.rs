//! The vote: what every cell must know of all others before anybody updates.
//!
//! One small message per cell, gathered by all and combined in cell order, so that all cells
//! reach the same verdict, the same norm and the same losses, bit for bit.
//!
//! Layout, little endian: sum of squares, main, MTP and balance sums (f64 each), 1 byte of flags
//! (bit 0: stop wanted, bit 1: something is not finite, bit 2: and it came from another cell, bit 3: an
//! end at this edge wanted, bit 4: the last snapshot in memory is still on its way), the
//! number of layers whose routing follows (u16), these (layer u32, entropy and busiest f64, dropped
//! u64, least and largest bias f32), then the [`NonFinite`] if flagged: pass (1 byte), layer (u32),
//! the place in UTF-8.

use shoal_model::{NonFinite, Pass};
use shoal_plan::grid::CellId;
use shoal_plan::routing::Routing;

use super::EngineError;

const STOP: u8 = 1;
const NOT_FINITE: u8 = 2;
const RECEIVED: u8 = 4;
const EDGE: u8 = 8;
const BUSY: u8 = 16;
const FLAGS_AT: usize = 4 * 8;
const HEAD_BYTES: usize = FLAGS_AT + 1 + 2;
const ROUTING_BYTES: usize = 4 + 3 * 8 + 2 * 4;

/// What a cell's worker was asked, and how it is with its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// End after this step, with a checkpoint.
    pub(super) stop: bool,
    /// End after this step, with the state in memory.
    pub(super) edge: bool,
    /// The cell's last snapshot in memory is not everywhere yet.
    pub(super) busy: bool,
}

impl Wishes {
    /// What anybody wishes.
    fn or(self, other: Self) -> Self {
        Self {
            stop: self.stop || other.stop,
            edge: self.edge || other.edge,
            busy: self.busy || other.busy,
        }
    }
}

/// One cell's part.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Vote {
    /// Squares of the gradients this cell counts: each unique parameter is counted by one cell.
    pub(super) sum_of_squares: f64,
    /// Unscaled sums of this step's losses on this cell.
    pub(super) main_sum: f64,
    pub(super) mtp_sum: f64,
    pub(super) balance_sum: f64,
    pub(super) wishes: Wishes,
    pub(super) nonfinite: Option<NonFinite>,
    /// Of the stage's layers; from one cell of each stage.
    pub(super) routing: Vec<Routing>,
}

/// What all cells conclude from all votes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) grad_norm: f64,
    pub(super) main_sum: f64,
    pub(super) mtp_sum: f64,
    pub(super) balance_sum: f64,
    /// Of all cells.
    pub(super) wishes: Wishes,
    /// The root cause, if the step must be refused.
    pub(super) refused: Option<(CellId, NonFinite)>,
    /// Of all layers, in their order.
    pub(super) routing: Vec<Routing>,
}

impl Vote {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        for value in [self.sum_of_squares, self.main_sum, self.mtp_sum, self.balance_sum] {
            bytes.extend(value.to_le_bytes());
        }
        let received = self.nonfinite.as_ref().is_some_and(|found| found.received);
        bytes.push(
            (u8::from(self.wishes.stop) * STOP)
                | (u8::from(self.wishes.edge) * EDGE)
                | (u8::from(self.wishes.busy) * BUSY)
                | (u8::from(self.nonfinite.is_some()) * NOT_FINITE)
                | (u8::from(received) * RECEIVED),
        );
        bytes.extend((self.routing.len() as u16).to_le_bytes());
        for layer in &self.routing {
            bytes.extend(routing_bytes(layer));
        }
        if let Some(found) = &self.nonfinite {
            bytes.push(match found.pass {
                Pass::Forward => 0,
                Pass::Backward => 1,
                Pass::Gradient => 2,
            });
            bytes.extend(found.layer.to_le_bytes());
            bytes.extend(found.place.as_bytes());
        }
        bytes
    }

    pub(super) fn from_bytes(from: CellId, bytes: &[u8]) -> Result<Self, EngineError> {
        let short = |want| EngineError::Message { what: "vote", from, got: bytes.len(), want };
        let number = |i: usize| {
            let bytes = bytes.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok());
            bytes.map(f64::from_le_bytes).ok_or_else(|| short(HEAD_BYTES))
        };
        let [flags, low, high] = *bytes.get(FLAGS_AT..HEAD_BYTES).unwrap_or_default() else {
            return Err(short(HEAD_BYTES));
        };
        let end = HEAD_BYTES + usize::from(u16::from_le_bytes([low, high])) * ROUTING_BYTES;
        let (layers, rest) =
            bytes[HEAD_BYTES..].split_at_checked(end - HEAD_BYTES).ok_or_else(|| short(end))?;
        let routing = layers.chunks_exact(ROUTING_BYTES).map(routing_from).collect();
        let nonfinite = match (flags & NOT_FINITE != 0, rest) {
            (false, _) => None,
            (true, [pass, a, b, c, d, place @ ..]) => Some(NonFinite {
                received: flags & RECEIVED != 0,
                pass: match pass {
                    0 => Pass::Forward,
                    1 => Pass::Backward,
                    _ => Pass::Gradient,
                },
                layer: u32::from_le_bytes([*a, *b, *c, *d]),
                place: String::from_utf8_lossy(place).into_owned(),
            }),
            (true, _) => return Err(short(end + 5)),
        };
        Ok(Self {
            sum_of_squares: number(0)?,
            main_sum: number(1)?,
            mtp_sum: number(2)?,
            balance_sum: number(3)?,
            wishes: Wishes {
                stop: flags & STOP != 0,
                edge: flags & EDGE != 0,
                busy: flags & BUSY != 0,
            },
            nonfinite,
            routing,
        })
    }
}

fn routing_bytes(layer: &Routing) -> Vec<u8> {
    let mut bytes = layer.layer.to_le_bytes().to_vec();
    bytes.extend(layer.load_entropy.to_le_bytes());
    bytes.extend(layer.load_max.to_le_bytes());
    bytes.extend(layer.dropped.to_le_bytes());
    bytes.extend(layer.bias_min.to_le_bytes());
    bytes.extend(layer.bias_max.to_le_bytes());
    bytes
}

/// Of `ROUTING_BYTES` bytes.
fn routing_from(bytes: &[u8]) -> Routing {
    let four = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let eight = |at: usize| {
        let ([a, b, c, d], [e, f, g, h]) = (four(at), four(at + 4));
        [a, b, c, d, e, f, g, h]
    };
    Routing {
        layer: u32::from_le_bytes(four(0)),
        load_entropy: f64::from_le_bytes(eight(4)),
        load_max: f64::from_le_bytes(eight(12)),
        dropped: u64::from_le_bytes(eight(20)),
        bias_min: f32::from_le_bytes(four(28)),
        bias_max: f32::from_le_bytes(four(32)),
    }
}

/// Combines the votes of all cells, given in cell order.
pub(super) fn count(votes: &[Vote]) -> Verdict {
    let sum = |part: fn(&Vote) -> f64| votes.iter().map(part).sum::<f64>();
    let grad_norm = sum(|vote| vote.sum_of_squares).sqrt();
    let cells = (0_u32..).map(CellId);
    let found = (cells.zip(votes))
        .filter_map(|(cell, vote)| Some((cell, vote.nonfinite.clone()?)))
        .min_by_key(|(cell, nonfinite)| (nonfinite.causal_order(), *cell));
    let overflow = || {
        // Every gradient is finite and their squares are not: name the largest share.
        let largest = (0..votes.len())
            .max_by(|a, b| votes[*a].sum_of_squares.total_cmp(&votes[*b].sum_of_squares));
        let place = "the gradient norm".to_owned();
        let (pass, layer) = (Pass::Gradient, u32::MAX);
        let nonfinite = NonFinite { pass, layer, received: false, place };
        (CellId(largest.unwrap_or(0) as u32), nonfinite)
    };
    let mut routing: Vec<Routing> = votes.iter().flat_map(|vote| &vote.routing).copied().collect();
    routing.sort_by_key(|layer| layer.layer);
    Verdict {
        grad_norm,
        routing,
        main_sum: sum(|vote| vote.main_sum),
        mtp_sum: sum(|vote| vote.mtp_sum),
        balance_sum: sum(|vote| vote.balance_sum),
        wishes: votes.iter().fold(Wishes::default(), |all, vote| all.or(vote.wishes)),
        refused: found.or_else(|| (!grad_norm.is_finite()).then(overflow)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(nonfinite: Option<(Pass, u32)>) -> Vote {
        let found = |(pass, layer)| NonFinite {
            pass,
            layer,
            received: layer == 9,
            place: format!("layer {layer}"),
        };
        Vote {
            sum_of_squares: 2.0,
            main_sum: 1.5,
            mtp_sum: 0.25,
            balance_sum: 0.5,
            wishes: Wishes { edge: true, ..Wishes::default() },
            nonfinite: nonfinite.map(found),
            routing: vec![Routing::of(3, &[3, 5], 8, &[0.5, -0.5])],
        }
    }

    #[test]
    fn a_vote_survives_the_wire_and_a_short_one_is_refused() {
        for vote in [vote(None), vote(Some((Pass::Backward, 7)))] {
            let bytes = vote.to_bytes();
            assert_eq!(Vote::from_bytes(CellId(1), &bytes).unwrap(), vote);
            let error = Vote::from_bytes(CellId(1), &bytes[..HEAD_BYTES - 1]).unwrap_err();
            assert!(error.to_string().contains("vote from cell-1 has 34 bytes"), "{error}");
            let cut = HEAD_BYTES + ROUTING_BYTES - 1;
            let error = Vote::from_bytes(CellId(1), &bytes[..cut]).unwrap_err();
            assert!(error.to_string().ends_with("want 71"), "{error}");
        }
    }

    #[test]
    fn the_root_cause_is_the_earliest_layer_forward_and_the_latest_backward() {
        let refused = |votes: &[Vote]| count(votes).refused.map(|(cell, at)| (cell.0, at.layer));
        let forward = |layer| vote(Some((Pass::Forward, layer)));
        let backward = |layer| vote(Some((Pass::Backward, layer)));
        assert_eq!(refused(&[forward(3), forward(1), vote(None)]), Some((1, 1)));
        assert_eq!(refused(&[backward(0), backward(3), vote(None)]), Some((1, 3)));
        assert_eq!(refused(&[backward(7), forward(3)]), Some((1, 3)));
        // Layer 9 was received from another cell here: the sender knows better.
        assert_eq!(refused(&[forward(9), backward(3)]), Some((1, 3)));
        assert_eq!(refused(&[vote(None), vote(None)]), None);
    }

    #[test]
    fn an_infinite_norm_of_finite_gradients_is_refused_too() {
        let large = Vote { sum_of_squares: f64::INFINITY, ..vote(None) };
        let verdict = count(&[vote(None), large]);
        assert_eq!(verdict.refused.map(|(cell, _)| cell), Some(CellId(1)));
    }

    #[test]
    fn what_one_wishes_all_hear_of() {
        let with = |stop, edge, busy| Vote { wishes: Wishes { stop, edge, busy }, ..vote(None) };
        let plain = with(false, false, false);
        for (stop, edge, busy) in [(true, false, false), (false, true, false), (false, false, true)]
        {
            let heard = count(&[plain.clone(), with(stop, edge, busy)]).wishes;
            assert_eq!(heard, Wishes { stop, edge, busy });
            let one = with(stop, edge, busy);
            assert_eq!(Vote::from_bytes(CellId(0), &one.to_bytes()).unwrap(), one);
        }
        assert_eq!(count(&[plain]).wishes, Wishes::default());
    }

    #[test]
    fn the_routing_of_all_stages_stands_in_the_order_of_the_layers() {
        let of = |layer| Routing::of(layer, &[1, 1], 2, &[0.0, 0.0]);
        let vote = |layers: &[u32]| Vote {
            routing: layers.iter().map(|layer| of(*layer)).collect(),
            ..Vote::default()
        };
        // Under the interleaved schedule a stage has layers 1 and 3.
        let verdict = count(&[vote(&[1, 3]), vote(&[]), vote(&[2, 4])]);
        let layers: Vec<u32> = verdict.routing.iter().map(|routing| routing.layer).collect();
        assert_eq!(layers, [1, 2, 3, 4]);
    }
}
