//! Where a number stopped being finite, found on a device without waiting for it.
//!
//! Every check has a place of 8 bytes that a kernel lowers to the index of the first bad number; all are read at once at
//! the end of a step, and the first in the order of the checks is the one to tell.

use shoal_kernels::cuda::{Block, DeviceError, reduce};

use super::gpu::Gpu;
use super::matrix::Matrix;
use crate::findings::NonFinite;

/// Places of one block.
const PLACES: usize = 512;

/// The checks of one step.
#[derive(Debug, Default)]
pub(super) struct Findings {
    blocks: Vec<Block>,
    places: Vec<Place>,
}

/// What a check looked at, up to which element, part after part.
type Place = Vec<(usize, NonFinite)>;

impl Findings {
    /// Looks at every element of `x` when the device gets there.
    pub(super) fn check(
        &mut self,
        gpu: &Gpu,
        x: &Matrix,
        finding: NonFinite,
    ) -> Result<(), DeviceError> {
        self.check_parts(gpu, x, vec![(x.len(), finding)])
    }

    /// The same where each part of `x` has a name of its own: up to which element it is one's.
    pub(super) fn check_parts(
        &mut self,
        gpu: &Gpu,
        x: &Matrix,
        parts: Vec<(usize, NonFinite)>,
    ) -> Result<(), DeviceError> {
        let at = self.places.len();
        self.reserve(gpu, at + 1)?;
        self.places.push(parts);
        let place = self.blocks[at / PLACES].slice(at % PLACES * 8..(at % PLACES + 1) * 8);
        gpu.kernels.reduce.first_nonfinite(&gpu.stream, x.vector(), place, x.len())
    }

    /// Takes memory for so many checks in all, where it is not there.
    pub(super) fn reserve(&mut self, gpu: &Gpu, checks: usize) -> Result<(), DeviceError> {
        while self.blocks.len() * PLACES < checks {
            let block = gpu.block("places of findings", PLACES * 8)?;
            gpu.stream.fill(block.all(), 0xff)?;
            self.blocks.push(block);
        }
        Ok(())
    }

    /// The first that was not finite, if any; waits for the device.
    pub(super) fn first(&self, gpu: &Gpu) -> Result<Option<NonFinite>, DeviceError> {
        for (block, findings) in self.blocks.iter().zip(self.places.chunks(PLACES)) {
            let places: Vec<u64> = gpu.download_all(block.slice(0..findings.len() * 8))?;
            let found = places.iter().zip(findings).find(|(place, _)| **place != reduce::NONE);
            if let Some((at, parts)) = found {
                let part = parts.iter().find(|(end, _)| *at < *end as u64);
                return Ok(part.map(|(_, finding)| finding.clone()));
            }
        }
        Ok(None)
    }

    /// Starts again from nothing, in the memory that there is.
    pub(super) fn clear(&mut self, gpu: &Gpu) -> Result<(), DeviceError> {
        self.places.clear();
        self.blocks.iter().try_for_each(|block| gpu.stream.fill(block.all(), 0xff))
    }
}
