//! The flat vectors behind the parameters of one class: an all-reduce is one call, and a parameter
//! is a range of them.

use std::ops::Range;

use shoal_kernels::bf16;
use shoal_plan::numerics;

use crate::memory::Memory;

/// All numbers of one class.
#[derive(Clone, Debug)]
pub(crate) struct Arena {
    pub(crate) master: Vec<f32>,
    pub(crate) gradient: Vec<f32>,
    moments: Vectors,
    /// The average of the masters over the updates; empty where none is kept.
    pub(crate) average: Vec<f32>,
}

/// First and second moments in the form in which they are kept.
#[derive(Clone, Debug)]
enum Vectors {
    Bf16(Vec<u16>, Vec<u16>),
    F32(Vec<f32>, Vec<f32>),
}

/// `AdamW`'s first and second moment of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Moments<'a> {
    /// BF16 bits.
    Bf16(&'a [u16], &'a [u16]),
    F32(&'a [f32], &'a [f32]),
}

impl Arena {
    pub(super) fn add_to(&self, memory: &mut Memory) {
        memory.masters += size_of_val(&self.master[..]);
        memory.gradients += size_of_val(&self.gradient[..]);
        memory.average += size_of_val(&self.average[..]);
        memory.moments += match &self.moments {
            Vectors::Bf16(first, second) => size_of_val(&first[..]) + size_of_val(&second[..]),
            Vectors::F32(first, second) => size_of_val(&first[..]) + size_of_val(&second[..]),
        };
    }

    pub(super) fn zeros(n: usize, moments: numerics::Moments, averaged: bool) -> Self {
        let moments = match moments {
            numerics::Moments::Bf16 => Vectors::Bf16(vec![0; n], vec![0; n]),
            numerics::Moments::F32 => Vectors::F32(vec![0.0; n], vec![0.0; n]),
        };
        let average = vec![0.0; if averaged { n } else { 0 }];
        Self { master: vec![0.0; n], gradient: vec![0.0; n], moments, average }
    }

    pub(super) fn moments(&self, span: Range<usize>) -> Moments<'_> {
        match &self.moments {
            Vectors::Bf16(first, second) => Moments::Bf16(&first[span.clone()], &second[span]),
            Vectors::F32(first, second) => Moments::F32(&first[span.clone()], &second[span]),
        }
    }

    /// First and second moments in the form in which they are kept.
    pub(crate) fn moment_bytes(&self) -> [&[u8]; 2] {
        match &self.moments {
            Vectors::Bf16(m, v) => [bytemuck::cast_slice(m), bytemuck::cast_slice(v)],
            Vectors::F32(m, v) => [bytemuck::cast_slice(m), bytemuck::cast_slice(v)],
        }
    }

    /// The same, to be overwritten.
    pub(crate) fn moment_bytes_mut(&mut self) -> [&mut [u8]; 2] {
        match &mut self.moments {
            Vectors::Bf16(m, v) => [bytemuck::cast_slice_mut(m), bytemuck::cast_slice_mut(v)],
            Vectors::F32(m, v) => [bytemuck::cast_slice_mut(m), bytemuck::cast_slice_mut(v)],
        }
    }

    /// Rounds moments to the form in which they are kept.
    pub(super) fn set_moments(&mut self, span: Range<usize>, first: &[f32], second: &[f32]) {
        match &mut self.moments {
            Vectors::Bf16(own_first, own_second) => {
                bf16::narrow(first, &mut own_first[span.clone()]);
                bf16::narrow(second, &mut own_second[span]);
            }
            Vectors::F32(own_first, own_second) => {
                own_first[span.clone()].copy_from_slice(first);
                own_second[span].copy_from_slice(second);
            }
        }
    }
}

/// What is left of an arena that is handed out from its front.
pub(super) struct Rest<'a> {
    pub(super) master: &'a mut [f32],
    pub(super) gradient: &'a mut [f32],
    pub(super) moments: MomentsMut<'a>,
    /// Where an average is kept.
    pub(super) average: Option<&'a mut [f32]>,
}

/// Both moments.
pub(super) enum MomentsMut<'a> {
    Bf16(&'a mut [u16], &'a mut [u16]),
    F32(&'a mut [f32], &'a mut [f32]),
}

impl<'a> Rest<'a> {
    pub(super) fn of(arena: &'a mut Arena) -> Self {
        let Arena { master, gradient, moments, average } = arena;
        let moments = match moments {
            Vectors::Bf16(m, v) => MomentsMut::Bf16(m, v),
            Vectors::F32(m, v) => MomentsMut::F32(m, v),
        };
        let average = (!average.is_empty()).then_some(&mut average[..]);
        Self { master, gradient, moments, average }
    }

    /// The next `n` numbers.
    pub(super) fn take(&mut self, n: usize) -> Self {
        let there = "an arena has the numbers of all its parameters";
        let Self { master, gradient, moments, average } = self;
        Self {
            master: master.split_off_mut(..n).expect(there),
            gradient: gradient.split_off_mut(..n).expect(there),
            moments: match moments {
                MomentsMut::Bf16(m, v) => MomentsMut::Bf16(
                    m.split_off_mut(..n).expect(there),
                    v.split_off_mut(..n).expect(there),
                ),
                MomentsMut::F32(m, v) => MomentsMut::F32(
                    m.split_off_mut(..n).expect(there),
                    v.split_off_mut(..n).expect(there),
                ),
            },
            average: average.as_mut().map(|average| average.split_off_mut(..n).expect(there)),
        }
    }
}
