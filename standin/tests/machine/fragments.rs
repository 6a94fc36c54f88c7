//! Fragments and sums of the tensor-core products, against three loops over matrices that are
//! scattered as the PTX ISA lists the elements of a fragment.

use shoal_standin::{Accumulate, Memory, Options, Stats};

use super::kit::{Numbers, kernel, pack, run, upload, words_to_bytes};
use super::opcodes::e4m3;

const E4M3: &str = "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32";
const BF16: &str = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32";
const MX: &str = "mma.sync.aligned.kind::mxf8f6f4.block_scale.scale_vec::1X.m16n8k32.row.col.f32.e4m3.e4m3.f32.ue8m0";

/// A product of one warp, as codes and bits.
#[derive(Clone)]
struct Problem {
    /// 16 x K.
    a: Vec<u16>,
    /// K x 8.
    b: Vec<u16>,
    /// 16 x 8.
    c: Vec<f32>,
    scale_a: [u8; 16],
    scale_b: [u8; 8],
}

impl Problem {
    fn zero(k: usize) -> Problem {
        Problem {
            a: vec![0; 16 * k],
            b: vec![0; k * 8],
            c: vec![0.0; 128],
            scale_a: [127; 16],
            scale_b: [127; 8],
        }
    }

    fn random(k: usize, numbers: &mut Numbers) -> Problem {
        let code = |numbers: &mut Numbers| {
            if k == 32 {
                // Every finite code.
                let code = numbers.below(254) as u16;
                if code < 127 { code } else { code + 1 }
            } else {
                ((numbers.real() * 2f32.powi(numbers.below(12) as i32 - 6)).to_bits() >> 16) as u16
            }
        };
        Problem {
            a: (0..16 * k).map(|_| code(numbers)).collect(),
            b: (0..k * 8).map(|_| code(numbers)).collect(),
            c: (0..128).map(|_| numbers.real() * 100.0).collect(),
            scale_a: std::array::from_fn(|_| 120 + numbers.below(16) as u8),
            scale_b: std::array::from_fn(|_| 120 + numbers.below(16) as u8),
        }
    }
}

fn value(k: usize, code: u16) -> f64 {
    if k == 32 { e4m3(code as u8) } else { f64::from(f32::from_bits(u32::from(code) << 16)) }
}

/// Registers a0..a3, b0, b1, c0..c3, scale of A, scale of B of one lane.
///
/// As in the tables "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k32" of the PTX ISA, element i of
/// a fragment at a time. With g = lane / 4 and t = lane % 4, for 8-bit elements: `a_i` stands in row g
/// if i < 4 or 8 <= i < 12, else g + 8, and in column 4 t + (i & 3), 16 more if i >= 8; `b_i` in row
/// 4 t + (i & 3), 16 more if i >= 4, and column g. For 16-bit elements: `a_i` in row g if i < 2 or
/// 4 <= i < 6, else g + 8, and column 2 t + (i & 1), 8 more if i >= 4; `b_i` in row 2 t + (i & 1), 8
/// more if i >= 2, and column g.
fn registers(problem: &Problem, k: usize, lane: usize, selectors: [usize; 4]) -> Vec<u32> {
    let (group, thread) = (lane / 4, lane % 4);
    let per = if k == 32 { 4 } else { 2 };
    let a_at = |i: usize| {
        let is_upper =
            if k == 32 { i < 4 || (8..12).contains(&i) } else { i < 2 || (4..6).contains(&i) };
        let row = if is_upper { group } else { group + 8 };
        let column = thread * per + i % per + if i >= 2 * per { k / 2 } else { 0 };
        problem.a[row * k + column]
    };
    let b_at = |i: usize| {
        let row = thread * per + i % per + if i >= per { k / 2 } else { 0 };
        problem.b[row * 8 + group]
    };
    let bits = 32 / per;
    let join = |codes: Vec<u16>| {
        codes.iter().enumerate().fold(0, |word, (i, code)| word | u32::from(*code) << (bits * i))
    };
    let mut words: Vec<u32> =
        (0..4).map(|r| join((r * per..(r + 1) * per).map(a_at).collect())).collect();
    words.extend((0..2).map(|r| join((r * per..(r + 1) * per).map(b_at).collect())));
    let c_at = |i: usize| problem.c[(group + i / 2 * 8) * 8 + thread * 2 + i % 2];
    words.extend((0..4).map(|i| c_at(i).to_bits()));
    // Scales stand in the chosen byte of the chosen threads; all else is a scale that would be seen.
    let [byte_a, thread_a, byte_b, thread_b] = selectors;
    let mut scales = [[3u8; 4]; 2];
    if thread / 2 == thread_a {
        scales[0][byte_a] = problem.scale_a[group + thread % 2 * 8];
    }
    if thread == thread_b {
        scales[1][byte_b] = problem.scale_b[group];
    }
    words.extend(scales.map(u32::from_le_bytes));
    words
}

/// Runs every problem in a warp of its own. D in row order.
fn multiply(
    opcode: &str,
    k: usize,
    problems: &[Problem],
    (target, accumulate, selectors): (&str, Accumulate, [usize; 4]),
) -> (Vec<Vec<f32>>, Stats) {
    let [byte_a, thread_a, byte_b, thread_b] = selectors;
    let scales = if opcode == MX {
        format!(", {{%r30}}, {{{byte_a}, {thread_a}}}, {{%r31}}, {{{byte_b}, {thread_b}}}")
    } else {
        String::new()
    };
    let body = format!(
        "mad.wide.u32 %rd3, %r4, 48, %rd1;\nmad.wide.u32 %rd4, %r4, 16, %rd2;\n\
         ld.global.v4.b32 {{%r20,%r21,%r22,%r23}}, [%rd3];\nld.global.v2.b32 {{%r24,%r25}}, [%rd3+16];\n\
         ld.global.v2.b32 {{%r26,%r27}}, [%rd3+24];\nld.global.v2.b32 {{%r28,%r29}}, [%rd3+32];\n\
         ld.global.v2.b32 {{%r30,%r31}}, [%rd3+40];\n\
         {opcode} {{%r10,%r11,%r12,%r13}}, {{%r20,%r21,%r22,%r23}}, {{%r24,%r25}}, {{%r26,%r27,%r28,%r29}}{scales};\n\
         st.global.v4.b32 [%rd4], {{%r10,%r11,%r12,%r13}};"
    );
    let memory = Memory::new();
    let lanes = problems.iter().flat_map(|problem| (0..32).map(move |lane| (problem, lane)));
    let words: Vec<u32> =
        lanes.flat_map(|(problem, lane)| registers(problem, k, lane, selectors)).collect();
    let (input, output) =
        (upload(&memory, &words_to_bytes(&words)), memory.allocate(512 * problems.len()));
    let options = Options { accumulate, ..Options::default() };
    let shape = (problems.len() as u32, 32, 0);
    let ptx = kernel(target, "", &body);
    let stats = run(&ptx, &memory, shape, &pack(&[input, output], &[]), &options).unwrap();
    let words = super::kit::download(&memory, output);
    let matrices = words.chunks(128).map(|words| {
        let mut d = vec![0.0; 128];
        for (i, bits) in words.iter().enumerate() {
            let (lane, i) = (i / 4, i % 4);
            d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = f32::from_bits(*bits);
        }
        d
    });
    (matrices.collect(), stats)
}

/// D and the sum of the magnitudes that went into it.
fn three_loops(problem: &Problem, k: usize) -> Vec<(f64, f64)> {
    let mut d = Vec::with_capacity(128);
    for m in 0..16 {
        for n in 0..8 {
            let c = f64::from(problem.c[m * 8 + n]);
            let scale =
                2f64.powi(i32::from(problem.scale_a[m]) + i32::from(problem.scale_b[n]) - 254);
            let (mut sum, mut magnitude) = (c, c.abs());
            for i in 0..k {
                let product =
                    value(k, problem.a[m * k + i]) * value(k, problem.b[i * 8 + n]) * scale;
                sum += product;
                magnitude += product.abs();
            }
            d.push((sum, magnitude));
        }
    }
    d
}

#[track_caller]
fn assert_near(d: &[f32], expected: &[(f64, f64)], tolerance: f64) {
    for (i, (got, (wanted, magnitude))) in d.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - wanted).abs();
        assert!(error <= tolerance * magnitude, "element {i}: {got} for {wanted}");
    }
}

const PLAIN: (&str, Accumulate, [usize; 4]) = ("sm_89", Accumulate::Exact, [0; 4]);

#[test]
fn every_element_of_every_fragment_is_where_the_isa_says() {
    for (opcode, k) in [(E4M3, 32), (BF16, 16)] {
        let mut numbers = Numbers(3);
        let dense = Problem::random(k, &mut numbers);
        let one = if k == 32 { 0x38 } else { 0x3F80 };
        let mut problems = Vec::new();
        // One element of A against all of B, one of B against all of A, one of C alone.
        for i in 0..16 * k {
            let mut problem = Problem { b: dense.b.clone(), ..Problem::zero(k) };
            problem.a[i] = one;
            problems.push(problem);
        }
        for i in 0..k * 8 {
            let mut problem = Problem { a: dense.a.clone(), ..Problem::zero(k) };
            problem.b[i] = one;
            problems.push(problem);
        }
        for i in 0..128 {
            let mut problem = Problem::zero(k);
            problem.c[i] = dense.c[i];
            problems.push(problem);
        }
        let (matrices, stats) = multiply(opcode, k, &problems, PLAIN);
        for (d, problem) in matrices.iter().zip(&problems) {
            assert_near(d, &three_loops(problem, k), 0.0);
        }
        assert_eq!(stats.count("mma"), problems.len() as u64);
    }
}

#[test]
fn dense_products_are_rounded_once() {
    for (opcode, k) in [(E4M3, 32), (BF16, 16)] {
        let mut numbers = Numbers(4);
        let dense = |_| Problem {
            scale_a: [127; 16],
            scale_b: [127; 8],
            ..Problem::random(k, &mut numbers)
        };
        let problems: Vec<Problem> = (0..64).map(dense).collect();
        let (matrices, _) = multiply(opcode, k, &problems, PLAIN);
        for (d, problem) in matrices.iter().zip(&problems) {
            for (got, (wanted, _)) in d.iter().zip(three_loops(problem, k)) {
                assert_eq!(got.to_bits(), (wanted as f32).to_bits(), "{got} for {wanted}");
            }
        }
    }
}

#[test]
fn block_scales_come_from_the_selected_bytes_and_threads() {
    let mut numbers = Numbers(5);
    let problems: Vec<Problem> = (0..8).map(|_| Problem::random(32, &mut numbers)).collect();
    for byte in 0..4 {
        for thread in 0..4 {
            let selectors = [byte, thread % 2, 3 - byte, thread];
            let how = ("sm_120a", Accumulate::Exact, selectors);
            let (matrices, _) = multiply(MX, 32, &problems, how);
            for (d, problem) in matrices.iter().zip(&problems) {
                assert_near(d, &three_loops(problem, 32), 2f64.powi(-24));
            }
        }
    }
    // 0xFF is the NaN of UE8M0.
    let poisoned = Problem { scale_b: [0xFF; 8], ..problems[0].clone() };
    let how = ("sm_120a", Accumulate::Exact, [0; 4]);
    assert!(multiply(MX, 32, &[poisoned], how).0[0].iter().all(|d| d.is_nan()));
}

/// One fused step in floating point: the significands are cut at `fraction` bits below the greatest
/// exponent, added, and the sum is cut to `mantissa` bits.
fn fused_step(products: &[(f64, i32)], c: f64, fraction: i32, mantissa: i32) -> f64 {
    let exponent_of = |x: f64| ((x.to_bits() >> 52 & 0x7FF) as i32 - 1023).max(-126);
    let mut terms: Vec<(f64, i32)> =
        products.iter().copied().filter(|term| term.0 != 0.0).collect();
    if c != 0.0 {
        terms.push((c, exponent_of(c)));
    }
    let Some(greatest) = terms.iter().map(|term| term.1).max() else { return 0.0 };
    let unit = 2f64.powi(greatest - fraction);
    let sum: f64 = terms.iter().map(|term| (term.0 / unit).trunc() * unit).sum();
    let last = 2f64.powi(exponent_of(sum) - mantissa);
    (sum / last).trunc() * last
}

#[test]
fn hardware_sums_are_cut_as_measured() {
    // Target, opcode, K, bits below the greatest exponent, bits of the result, k of a step.
    let models = [
        ("sm_89", E4M3, 32, 13, 13, 16),
        ("sm_120a", E4M3, 32, 25, 23, 32),
        ("sm_80", BF16, 16, 24, 23, 8),
        ("sm_89", BF16, 16, 24, 23, 8),
        ("sm_120", BF16, 16, 25, 23, 16),
    ];
    for (target, opcode, k, fraction, mantissa, step) in models {
        let mut numbers = Numbers(6);
        let problems: Vec<Problem> = (0..64).map(|_| Problem::random(k, &mut numbers)).collect();
        let how = (target, Accumulate::Hardware, [0; 4]);
        let (matrices, _) = multiply(opcode, k, &problems, how);
        let least = if k == 32 { -6 } else { -126 };
        let exponent = |x: f64| ((x.to_bits() >> 52 & 0x7FF) as i32 - 1023).max(least);
        for (d, problem) in matrices.iter().zip(&problems) {
            for (i, got) in d.iter().enumerate() {
                let mut sum = f64::from(problem.c[i]);
                for start in (0..k).step_by(step) {
                    let products: Vec<(f64, i32)> = (start..start + step)
                        .map(|j| {
                            let a = value(k, problem.a[i / 8 * k + j]);
                            let b = value(k, problem.b[j * 8 + i % 8]);
                            (a * b, exponent(a) + exponent(b))
                        })
                        .collect();
                    sum = fused_step(&products, sum, fraction, mantissa);
                }
                assert_eq!(
                    f64::from(*got).to_bits(),
                    (sum + 0.0).to_bits(),
                    "{target} {opcode} {i}"
                );
            }
        }
    }
}

#[test]
fn infinities_and_nan_pass_through_both_models() {
    for accumulate in [Accumulate::Exact, Accumulate::Hardware] {
        let mut problem = Problem::zero(32);
        problem.a[0] = 0x7F;
        problem.c[9] = f32::INFINITY;
        let (matrices, _) = multiply(E4M3, 32, &[problem], ("sm_89", accumulate, [0; 4]));
        assert!(matrices[0][..8].iter().all(|d| d.is_nan()), "{accumulate:?}");
        assert_eq!(matrices[0][9].to_bits(), f32::INFINITY.to_bits());
        assert!(matrices[0][10..].iter().all(|d| d.to_bits() == 0));
    }
}
