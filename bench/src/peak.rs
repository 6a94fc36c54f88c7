//! The most that this CPU and its memory can do, with every thread of the current rayon pool at
//! work: multiply-adds on registers, and streams through memory that no cache holds.
#![expect(unsafe_code, reason = "functions for one instruction set are called after asking for it")]

use std::hint::black_box;

use rayon::prelude::*;
use serde::Serialize;

use crate::{Meter, timed};

/// Rounds of every measurement, of which the best counts: what else runs only slows one down.
const ROUNDS: usize = 7;

/// Multiply-adds of one call on each accumulator.
const REPEATS: usize = 400_000;

/// Enough accumulators for the latency of any unit, few enough for the registers of each.
const ACCUMULATORS: usize = 12;

/// Floats of each of the three vectors of a triad: 64 MiB, more than a last-level cache shares out.
const STREAM: usize = 16 << 20;

/// Floats that one task streams.
const CHUNK: usize = 64 << 10;

/// What was reached, by all threads together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peak {
    pub threads: usize,
    /// Of FP32 multiply-adds, two FLOPs each.
    pub f32_gflops: f64,
    /// Of pairs of BF16 with sums in FP32 (`vdpbf16ps`); `None` where the CPU has none.
    pub bf16_gflops: Option<f64>,
    /// Reading.
    pub read_gigabytes_per_second: f64,
    /// `a = b + s c`: two streams in, one out, written through the cache.
    pub triad_gigabytes_per_second: f64,
}

impl Peak {
    /// Measures; takes about a second.
    pub fn measure(meter: &dyn Meter) -> Self {
        let threads = rayon::current_num_threads();
        let (b, c) = (vec![1.0_f32; STREAM], vec![2.0_f32; STREAM]);
        let bytes = (STREAM * size_of::<f32>()) as f64;
        let read = best(meter, &|| {
            let chunks = b.par_chunks(CHUNK).zip(c.par_chunks(CHUNK));
            black_box(chunks.map(|(b, c)| sum(b) + sum(c)).sum::<f32>());
        });
        let mut a = vec![0.0_f32; STREAM];
        let mut triad = f64::INFINITY;
        for _ in 0..ROUNDS {
            let (seconds, ()) = timed(meter, || {
                let chunks = a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK));
                chunks.zip(c.par_chunks(CHUNK)).for_each(|((a, b), c)| {
                    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
                        *a = b + 3.0 * c;
                    }
                });
            });
            triad = triad.min(seconds);
            black_box(&a);
        }
        Self {
            threads,
            f32_gflops: gflops(meter, fastest_f32()),
            bf16_gflops: bf16().map(|kernel| gflops(meter, kernel)),
            read_gigabytes_per_second: 2.0 * bytes / read / 1e9,
            triad_gigabytes_per_second: 3.0 * bytes / triad / 1e9,
        }
    }

    /// Multiply-adds alone, FP32's and BF16's, in FLOP/s; some ten milliseconds.
    pub fn of_multiply_adds(meter: &dyn Meter) -> (f64, f64) {
        let f32 = gflops(meter, fastest_f32()) * 1e9;
        (f32, bf16().map_or(f32, |kernel| gflops(meter, kernel) * 1e9))
    }

    /// What products in this width could reach: FP32's where there is no BF16.
    pub fn gflops(&self, bf16: bool) -> f64 {
        self.bf16_gflops.filter(|_| bf16).unwrap_or(self.f32_gflops)
    }
}

/// Seconds of the best of all rounds.
fn best(meter: &dyn Meter, work: &(dyn Fn() + Sync)) -> f64 {
    let rounds = (0..ROUNDS).map(|_| timed(meter, work).0);
    rounds.fold(f64::INFINITY, f64::min)
}

/// Of all threads of the pool together.
fn gflops(meter: &dyn Meter, kernel: Kernel) -> f64 {
    let seconds = best(meter, &|| {
        rayon::broadcast(|_| (kernel.run)(REPEATS));
    });
    let n = rayon::current_num_threads() * REPEATS * ACCUMULATORS * kernel.flops;
    n as f64 / seconds / 1e9
}

/// Sixteen sums side by side, so that the loop is bound by the stream and not by one chain.
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    for chunk in values.as_chunks::<16>().0 {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    sums.iter().sum()
}

/// A loop of independent multiply-adds.
#[derive(Clone, Copy)]
struct Kernel {
    /// So many times on each accumulator.
    run: fn(usize),
    /// FLOPs of one instruction.
    flops: usize,
}

#[cfg(target_arch = "x86_64")]
fn fastest_f32() -> Kernel {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the CPU has what the function was compiled for.
        return Kernel { run: |n| unsafe { x86::f32_avx512(n) }, flops: 32 };
    }
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: as above.
        return Kernel { run: |n| unsafe { x86::f32_avx2(n) }, flops: 16 };
    }
    PORTABLE
}

#[cfg(not(target_arch = "x86_64"))]
fn fastest_f32() -> Kernel {
    PORTABLE
}

#[cfg(target_arch = "x86_64")]
fn bf16() -> Option<Kernel> {
    let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    // SAFETY: only made where the CPU has what the function was compiled for.
    has.then_some(Kernel { run: |n| unsafe { x86::bf16_avx512(n) }, flops: 64 })
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16() -> Option<Kernel> {
    None
}

/// Eight floats at a time, as the compiler sees fit for the baseline CPU.
const PORTABLE: Kernel = Kernel { run: portable, flops: 16 };

fn portable(repeats: usize) {
    let (a, b) = (black_box([1.0_f32; 8]), black_box([1e-9_f32; 8]));
    let mut sums = [[0.0_f32; 8]; ACCUMULATORS];
    for _ in 0..repeats {
        for sum in &mut sums {
            for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
                // Multiply and add: fused only where that is one instruction.
                *sum = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                    a.mul_add(b, *sum)
                } else {
                    *sum + a * b
                };
            }
        }
    }
    black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The same for the widest units of x86-64.

    use std::arch::x86_64::{
        __m256, __m512, __m512bh, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };
    use std::hint::black_box;

    use super::ACCUMULATORS;

    #[target_feature(enable = "avx512f")]
    pub(super) fn f32_avx512(repeats: usize) {
        let (a, b): (__m512, __m512) =
            (black_box(_mm512_set1_ps(1.0)), black_box(_mm512_set1_ps(1e-9)));
        let mut sums = [_mm512_setzero_ps(); ACCUMULATORS];
        for _ in 0..repeats {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn f32_avx2(repeats: usize) {
        let (a, b): (__m256, __m256) =
            (black_box(_mm256_set1_ps(1.0)), black_box(_mm256_set1_ps(1e-9)));
        let mut sums = [_mm256_setzero_ps(); ACCUMULATORS];
        for _ in 0..repeats {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512(repeats: usize) {
        let one = black_box(_mm512_set1_ps(1.0));
        let a: __m512bh = black_box(_mm512_cvtne2ps_pbh(one, one));
        let mut sums = [_mm512_setzero_ps(); ACCUMULATORS];
        for _ in 0..repeats {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, a);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ticks;

    #[test]
    fn a_peak_counts_the_work_of_every_thread() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let peak = pool.install(|| Peak::measure(&Ticks::default()));
        // A round takes one tick of a second.
        let each = 2.0 * (REPEATS * ACCUMULATORS) as f64 / 1e9;
        assert!((peak.f32_gflops / each - fastest_f32().flops as f64).abs() < 1e-6, "{peak:?}");
        assert_eq!(peak.bf16_gflops.is_some(), bf16().is_some());
        assert!((peak.read_gigabytes_per_second - 2.0 * STREAM as f64 * 4e-9).abs() < 1e-6);
        assert_eq!((peak.threads, peak.gflops(false)), (2, peak.f32_gflops));
    }

    #[test]
    fn the_sum_of_a_stream_is_its_sum() {
        let values: Vec<f32> = (0..64).map(|at| at as f32).collect();
        assert!((sum(&values) - 2016.0).abs() < 1e-3);
        portable(3);
    }
}
