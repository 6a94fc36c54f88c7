//! Sums over a fixed number of lanes: the same bits on every width of vector.

/// Lanes of every FP32 sum: one AVX-512 register, two AVX2 ones, four SSE ones.
const LANES: usize = 16;

/// Adds the lanes as a tree, in one fixed order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `term(a, b)` over two slices of one length.
#[inline(always)]
fn sum_of(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += term(a[i], b[i]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(a_tail.iter().zip(b_tail)) {
        *lane += term(*a, *b);
    }
    fold(lanes)
}

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_of(
        a,
        b,
        #[inline(always)]
        |a, b| a * b,
    )
}

#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    sum_of(
        a,
        a,
        #[inline(always)]
        |a, _| a,
    )
}

/// The largest element; minus infinity for none. A NaN is passed over: the sum that follows a
/// maximum in every softmax meets it again.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = a.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = if block[i] > lanes[i] { block[i] } else { lanes[i] };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max })
}
