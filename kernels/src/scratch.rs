//! FP32 working memory that a thread keeps between operations.
//!
//! Fresh pages from the operating system cost more than the arithmetic done on them in small
//! layers, so buffers go back to their thread instead.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Buffers kept per thread; no operation holds more at once.
const KEPT: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A slice of `len` floats with unspecified contents.
pub(crate) struct Scratch {
    /// As long as its longest use, so that it is cleared only where it grows.
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new(len: usize) -> Self {
        let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        Self { buffer, len }
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // While a thread ends its list may be gone already; then the buffer is simply freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

/// A slice of `len` 16-bit numbers with unspecified contents.
pub(crate) struct HalfScratch {
    pairs: Scratch,
    len: usize,
}

impl HalfScratch {
    pub(crate) fn new(len: usize) -> Self {
        Self { pairs: Scratch::new(len.div_ceil(2)), len }
    }
}

impl Deref for HalfScratch {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        &bytemuck::cast_slice(&self.pairs)[..self.len]
    }
}

impl DerefMut for HalfScratch {
    fn deref_mut(&mut self) -> &mut [u16] {
        &mut bytemuck::cast_slice_mut(&mut self.pairs)[..self.len]
    }
}
