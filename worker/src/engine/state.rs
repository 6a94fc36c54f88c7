//! A cell's whole state as one run of bytes, for the memory of workers, and back into its stages.
//!
//! Layout: 8 bytes magic, 32 bytes blake3 over names, shapes and dtypes of what follows; then for each
//! stage of the cell, in the order of the network, of every parameter in arena order its master, both
//! moments as they are kept, and the average where there is one; then the router biases. Little
//! endian. Nothing in it says whose it is: twins in other replicas give the same bytes.

use bytemuck::{cast_slice, cast_slice_mut};
use shoal_kernels::bf16_to_f32;
use shoal_model::{Cut, Moments, Stage, StageOptions, names};
use shoal_plan::numerics;

use super::error::EngineError;
use super::snapshot::{self, Numbers};

const _: () = assert!(cfg!(target_endian = "little"), "snapshots lie as numbers do in memory");

const MAGIC: [u8; 8] = *b"SHOALST1";
const HEAD_BYTES: usize = 8 + 32;

/// What the bytes of a cell's state are, from its part of the model alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    digest: [u8; 32],
    /// Of the whole snapshot.
    pub(super) bytes: u64,
}

impl Layout {
    pub(super) fn of(cuts: &[Cut], options: &StageOptions) -> Self {
        let averaged = 0.0 < options.ema_decay;
        let moments = match options.moments {
            numerics::Moments::Bf16 => 2,
            numerics::Moments::F32 => 4,
        };
        let per_value = 4 + 2 * moments + if averaged { 4 } else { 0 };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[u8::from(averaged), moments]);
        let mut bytes = HEAD_BYTES as u64;
        for cut in cuts {
            for specification in names::specifications(cut) {
                hasher.update(
                    format!("{} {:?};", specification.name, specification.shape).as_bytes(),
                );
                let n: usize = specification.shape.iter().product();
                bytes += u64::from(per_value) * n as u64;
            }
            let biases = cut.moe_layers().len() as u64 * u64::from(cut.config.n_routed_experts);
            hasher.update(format!("{biases} biases;").as_bytes());
            bytes += 4 * biases;
        }
        Self { digest: *hasher.finalize().as_bytes(), bytes }
    }

    /// Overwrites `into` with the state of these stages. Nothing is allocated where it is long enough.
    pub(super) fn write(&self, stages: &[Stage], into: &mut Vec<u8>) {
        into.clear();
        into.reserve(usize::try_from(self.bytes).unwrap_or(0));
        into.extend(MAGIC);
        into.extend(self.digest);
        for stage in stages {
            let parameters = stage.parameters();
            for name in parameters.names() {
                into.extend_from_slice(cast_slice(parameters.master(name)));
                match parameters.moments(name) {
                    Moments::Bf16(first, second) => {
                        into.extend_from_slice(cast_slice(first));
                        into.extend_from_slice(cast_slice(second));
                    }
                    Moments::F32(first, second) => {
                        into.extend_from_slice(cast_slice(first));
                        into.extend_from_slice(cast_slice(second));
                    }
                }
                into.extend_from_slice(cast_slice(parameters.average(name).unwrap_or_default()));
            }
            for values in stage.biases().into_values() {
                into.extend_from_slice(cast_slice(values));
            }
        }
    }

    /// Fills stages with the state that stages of the same cut have written. What they had on a device is given up.
    pub(super) fn fill(
        &self,
        stages: &mut [Stage],
        options: &StageOptions,
        bytes: &[u8],
    ) -> Result<(), EngineError> {
        let head = bytes.split_first_chunk::<HEAD_BYTES>();
        let same = |head: &[u8; HEAD_BYTES]| head[..8] == MAGIC && head[8..] == self.digest;
        let Some((_, rest)) =
            head.filter(|(head, _)| same(head) && bytes.len() as u64 == self.bytes)
        else {
            let (got, want) = (bytes.len() as u64, self.bytes);
            return Err(EngineError::OtherState { got, want });
        };
        stages.iter_mut().for_each(Stage::leave_device);
        let mut numbers = Numerals { rest, options };
        stages.iter_mut().try_for_each(|stage| snapshot::fill(stage, &mut numbers))
    }
}

/// Numbers that stand one after the other, in the order in which `snapshot::fill` asks for them.
struct Numerals<'a> {
    rest: &'a [u8],
    options: &'a StageOptions,
}

impl Numerals<'_> {
    /// The length of the whole was held against the layout: there is enough.
    fn take<T: bytemuck::Pod>(&mut self, n: usize) -> Vec<T> {
        let (bytes, rest) = self.rest.split_at(n * size_of::<T>());
        self.rest = rest;
        let mut values = vec![T::zeroed(); n];
        cast_slice_mut(&mut values).copy_from_slice(bytes);
        values
    }

    fn moment(&mut self, n: usize) -> Vec<f32> {
        match self.options.moments {
            // Rounded back to BF16, these are the same bits.
            numerics::Moments::Bf16 => self.take(n).into_iter().map(bf16_to_f32).collect(),
            numerics::Moments::F32 => self.take(n),
        }
    }
}

impl Numbers for Numerals<'_> {
    fn has_average(&self) -> bool {
        0.0 < self.options.ema_decay
    }

    fn master(&mut self, _: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        Ok(self.take(shape.iter().product()))
    }

    fn moments(&mut self, _: &str, shape: &[usize]) -> Result<(Vec<f32>, Vec<f32>), EngineError> {
        let n = shape.iter().product();
        Ok((self.moment(n), self.moment(n)))
    }

    fn average(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EngineError> {
        self.master(name, shape)
    }

    fn bias(&mut self, _: &str, experts: usize) -> Result<Vec<f32>, EngineError> {
        Ok(self.take(experts))
    }
}
