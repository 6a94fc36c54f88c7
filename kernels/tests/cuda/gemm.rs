//! Matrix products against f64 products of the very operands, and against `linear`.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::gemm::{Groups, Operand, Output, Shape, TileChoice};
use shoal_kernels::cuda::quantise::QuantizedSlices;
use shoal_kernels::cuda::{Buffer, Slice};
use shoal_kernels::linear;
use shoal_kernels::tensor::{DType, bf16_to_f32, f32_to_bf16};
use shoal_kernels::{
    Operand as CpuOperand, Quantized, ScaleFormat, Scales, Tensor, Tiling, Weight,
};

use super::gpu::{Case, Gpu, same_bytes};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Product {
    Forward,
    InputGrad,
    WeightGrad,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Pow2,
    Fp32,
    Bf16,
}

pub(crate) const PRODUCTS: [Product; 3] =
    [Product::Forward, Product::InputGrad, Product::WeightGrad];
pub(crate) const KINDS: [Kind; 3] = [Kind::Pow2, Kind::Fp32, Kind::Bf16];

/// T, N, K: whole tiles, one element, ragged everywhere, rows of no multiple of 16 bytes, widths of small models and
/// of V2-Lite's dense layer, nothing.
const SIZES: [(usize, usize, usize); 13] = [
    (128, 128, 128),
    (1, 1, 1),
    (200, 320, 272),
    (40, 576, 640),
    (131, 64, 96),
    (33, 50, 37),
    (130, 129, 257),
    (1, 192, 10944),
    (300, 1, 160),
    (129, 255, 6),
    (0, 64, 96),
    (64, 0, 96),
    (64, 96, 0),
];

/// Long in what each product sums over, beside the first of `SIZES`: `.ci/cuda-predicted` counts what is between.
const LONG: usize = 1024;

/// Rows of each expert.
const EXPERTS: [&[usize]; 5] =
    [&[0, 70, 0, 129, 1, 0, 150, 0], &[0, 0, 260, 0], &[0, 0, 0], &[], &[9; 40]];

/// What is tried.
#[derive(Clone, Copy, Debug)]
struct Plan {
    product: Product,
    kind: Kind,
    tile: TileChoice,
    shape: Shape,
    experts: Option<&'static [usize]>,
    out: DType,
    accumulate: bool,
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let tiles = [TileChoice::Small, TileChoice::Large];
    for (product, kind, tile) in PRODUCTS
        .into_iter()
        .flat_map(|p| KINDS.into_iter().flat_map(move |k| tiles.map(|t| (p, k, t))))
    {
        let case = |shape, experts: Option<&'static [usize]>, (out, accumulate)| {
            let plan = Plan { product, kind, tile, shape, experts, out, accumulate };
            let Shape { t, n, k } = shape;
            let rows = experts.map_or(String::new(), |rows| format!(" {} experts", rows.len()));
            let name = format!("gemm {product:?} {kind:?} {tile:?} {t}x{n}x{k}{rows} {out:?}");
            let name = name + if accumulate { " added" } else { "" };
            Case::new(name, move |gpu| check(gpu, plan))
        };
        let mut long = Shape { t: 128, n: 128, k: 128 };
        match product {
            Product::Forward => long.k = LONG,
            Product::InputGrad => long.n = LONG,
            Product::WeightGrad => long.t = LONG,
        }
        cases.push(case(long, None, (DType::F32, false)));
        // Results of both dtypes, over and added, in turn.
        let mut turn = 0;
        let mut push = |shape, experts| {
            let form = ([DType::F32, DType::Bf16][turn / 2 % 2], turn % 2 == 1);
            turn += 1;
            cases.push(case(shape, experts, form));
        };
        for (t, n, k) in SIZES {
            push(Shape { t, n, k }, None);
        }
        for rows in EXPERTS {
            let t = ranges(rows, product).last().map_or(0, |range| range.1 as usize) + 5;
            push(Shape { t, n: 144, k: 80 }, Some(rows));
            push(Shape { t, n: 64, k: 200 }, Some(rows));
        }
    }
    cases.extend(KINDS.map(|kind| {
        Case::new(format!("gemm {kind:?} against numbers that nobody rounded"), move |gpu| {
            unrounded(gpu, kind)
        })
    }));
    cases
}

/// First row and end of each expert; where the rows are contracted, each begins at a multiple of 128.
fn ranges(rows: &[usize], product: Product) -> Vec<(u32, u32)> {
    let mut end = 0;
    let range = |rows: &usize| {
        let first =
            if product == Product::WeightGrad { usize::next_multiple_of(end, 128) } else { end };
        end = first + rows;
        (first as u32, end as u32)
    };
    rows.iter().map(range).collect()
}

/// A matrix as the device gets it, and the values it stands for.
pub(crate) struct Matrix {
    values: Vec<f32>,
    bytes: Vec<u8>,
    scales: Vec<u8>,
    format: ScaleFormat,
}

/// Both on the device.
struct Uploaded {
    bytes: Buffer,
    scales: Buffer,
    kind: Kind,
    format: ScaleFormat,
}

impl Matrix {
    pub(crate) fn new(kind: Kind, x: &[f32], rows: usize, cols: usize, tiling: Tiling) -> Self {
        let format = if kind == Kind::Fp32 { ScaleFormat::Fp32 } else { ScaleFormat::Pow2 };
        if kind == Kind::Bf16 {
            let bits: Vec<u16> = x.iter().map(|x| f32_to_bf16(*x)).collect();
            let bytes = bits.iter().flat_map(|x| x.to_le_bytes()).collect();
            let values = bits.iter().map(|x| bf16_to_f32(*x)).collect();
            return Self { values, bytes, scales: Vec::new(), format };
        }
        let quantized = match tiling {
            Tiling::Column => {
                Quantized::quantise_f32(x, rows, cols, Tiling::Row, format).requantise_columns()
            }
            Tiling::Row | Tiling::Block => Quantized::quantise_f32(x, rows, cols, tiling, format),
        };
        let scales = match quantized.scales() {
            Scales::Pow2(scales) => scales[..].to_vec(),
            Scales::Fp32(scales) => scales.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Self {
            values: quantized.dequantise(),
            bytes: quantized.codes()[..].to_vec(),
            scales,
            format,
        }
    }

    /// One weight for each expert.
    fn stacked(kind: Kind, w: &[f32], n: usize, k: usize) -> Self {
        let mut whole = Self::new(kind, &[], 0, 0, Tiling::Block);
        for w in w.chunks((n * k).max(1)) {
            let one = Self::new(kind, w, n, k, Tiling::Block);
            whole.values.extend(one.values);
            whole.bytes.extend(one.bytes);
            whole.scales.extend(one.scales);
        }
        whole
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn upload(&self, gpu: &Gpu, kind: Kind) -> Uploaded {
        let (bytes, scales) = (gpu.upload(&self.bytes), gpu.upload(&self.scales));
        Uploaded { bytes, scales, kind, format: self.format }
    }
}

impl Uploaded {
    fn operand(&self) -> Operand<'_> {
        if self.kind == Kind::Bf16 {
            return Operand::Bf16(self.bytes.all());
        }
        let (codes, scales) = (self.bytes.all(), self.scales.all());
        Operand::Fp8(QuantizedSlices { codes, scales, format: self.format })
    }
}

/// Numbers whose rows and columns differ in size.
fn uneven(random: &mut Random, rows: usize, cols: usize) -> Vec<f32> {
    let mut x = random.normal(rows * cols);
    for (i, x) in x.iter_mut().enumerate() {
        *x *= 2.0_f32.powi((i / cols % 5) as i32 - 2 + (i % cols / 50 % 3) as i32);
    }
    x
}

fn check(gpu: &Gpu, plan: Plan) -> Result<(), String> {
    let Plan { product, kind, shape: Shape { t, n, k }, .. } = plan;
    let mut random = Random::new(gpu.seed ^ (t * 1_000_003 + n * 1009 + k) as u64);
    let copies = plan.experts.map_or(1, <[usize]>::len);
    let ranges = plan.experts.map_or(vec![(0, t as u32)], |rows| ranges(rows, product));
    // Of the contracted rows, those of no expert are zeros, as whoever pads them makes them.
    let mut tokens = |cols: usize| {
        let mut x = uneven(&mut random, t, cols);
        let of_expert = |row| ranges.iter().any(|range| (range.0..range.1).contains(&(row as u32)));
        for (row, x) in x.chunks_mut(cols.max(1)).enumerate() {
            if product == Product::WeightGrad && !of_expert(row) {
                x.fill(0.0);
            }
        }
        x
    };
    let (x, dy) = (tokens(k), tokens(n));
    let w = uneven(&mut random, copies * n, k);
    let (a, b, len) = match product {
        Product::Forward => {
            (Matrix::new(kind, &x, t, k, Tiling::Row), Matrix::stacked(kind, &w, n, k), t * n)
        }
        Product::InputGrad => {
            (Matrix::new(kind, &dy, t, n, Tiling::Row), Matrix::stacked(kind, &w, n, k), t * k)
        }
        Product::WeightGrad => (
            Matrix::new(kind, &dy, t, n, Tiling::Column),
            Matrix::new(kind, &x, t, k, Tiling::Column),
            copies * n * k,
        ),
    };
    let before = to_values(&from_values(&random.normal(len), plan.out), plan.out);
    let first = launch(gpu, plan, &a, &b, &ranges, &before)?;
    let again = launch(gpu, plan, &a, &b, &ranges, &before)?;
    same_bytes("a second run", &again, &first)?;
    let got = to_values(&first, plan.out);
    let want = reference(plan, &a.values, &b.values, &ranges, &before);
    compare(gpu, plan, &got, &want)?;
    if plan.experts.is_none() && !plan.accumulate {
        let judge = judged_by_linear(plan, &x, &dy, &w);
        let apart =
            difference(got.iter().map(|x| f64::from(*x)).zip(judge.iter().map(|x| f64::from(*x))));
        if apart.is_nan() || apart > gate(gpu, plan) {
            return Err(format!("from `linear`: calc_diff {apart:e}"));
        }
    }
    Ok(())
}

/// The result's bytes.
fn launch(
    gpu: &Gpu,
    plan: Plan,
    a: &Matrix,
    b: &Matrix,
    ranges: &[(u32, u32)],
    before: &[f32],
) -> Result<Vec<u8>, String> {
    let (a, b) = (a.upload(gpu, plan.kind), b.upload(gpu, plan.kind));
    let before = from_values(before, plan.out);
    let c = gpu.guarded(before.len());
    gpu.stream.upload(c.slice(), &before).unwrap();
    let pairs: Vec<u8> = ranges
        .iter()
        .flat_map(|range| [range.0.to_le_bytes(), range.1.to_le_bytes()].concat())
        .collect();
    let pairs = gpu.upload(&pairs);
    let groups = plan.experts.map(|rows| Groups { ranges: pairs.all(), experts: rows.len() });
    let out = Output { values: c.slice(), dtype: plan.out, accumulate: plan.accumulate };
    run(gpu, plan.product, plan.tile, a.operand(), b.operand(), out, plan.shape, groups);
    gpu.result("the product", &c)
}

#[expect(clippy::too_many_arguments, reason = "the arguments of the product, and which")]
pub(crate) fn run(
    gpu: &Gpu,
    product: Product,
    tile: TileChoice,
    a: Operand<'_>,
    b: Operand<'_>,
    out: Output<'_>,
    shape: Shape,
    groups: Option<Groups<'_>>,
) {
    let kernels = gpu.gemm().with_tile(tile);
    let stream = &gpu.stream;
    match product {
        Product::Forward => kernels.forward(stream, a, b, out, shape, groups),
        Product::InputGrad => kernels.input_grad(stream, a, b, out, shape, groups),
        Product::WeightGrad => kernels.weight_grad(stream, a, b, out, shape, groups),
    }
    .unwrap();
}

fn from_values(x: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::Bf16 => x.iter().flat_map(|x| f32_to_bf16(*x).to_le_bytes()).collect(),
    }
}

fn to_values(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::F32 => bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
        DType::Bf16 => bytes
            .chunks(2)
            .map(|x| bf16_to_f32(u16::from_le_bytes(x.try_into().unwrap())))
            .collect(),
    }
}

/// A result, and the sum of the magnitudes that went into it.
#[derive(Clone, Copy)]
struct Want {
    value: f64,
    magnitude: f64,
    /// Whether the kernel may touch it.
    touched: bool,
}

/// In f64, one product after another.
fn reference(plan: Plan, a: &[f32], b: &[f32], ranges: &[(u32, u32)], before: &[f32]) -> Vec<Want> {
    let Plan { product, shape: Shape { n, k, .. }, accumulate, .. } = plan;
    let untouched =
        |x: &f32| Want { value: f64::from(*x), magnitude: f64::from(x.abs()), touched: false };
    let mut c: Vec<Want> = before.iter().map(untouched).collect();
    for (expert, &(first, end)) in ranges.iter().enumerate() {
        let tokens = first as usize..end as usize;
        let mut put = |at: usize, terms: &mut dyn Iterator<Item = (f32, f32)>| {
            let old = if accumulate { c[at].value } else { 0.0 };
            let mut want = Want { value: old, magnitude: old.abs(), touched: true };
            for (x, y) in terms {
                let product = f64::from(x) * f64::from(y);
                want.value += product;
                want.magnitude += product.abs();
            }
            c[at] = want;
        };
        let w = if product == Product::WeightGrad { b } else { &b[expert * n * k..] };
        match product {
            Product::Forward => {
                for (t, j) in tokens.flat_map(|t| (0..n).map(move |j| (t, j))) {
                    put(t * n + j, &mut (0..k).map(|i| (a[t * k + i], w[j * k + i])));
                }
            }
            Product::InputGrad => {
                for (t, i) in tokens.flat_map(|t| (0..k).map(move |i| (t, i))) {
                    put(t * k + i, &mut (0..n).map(|j| (a[t * n + j], w[j * k + i])));
                }
            }
            // Nothing to add leaves what is there.
            Product::WeightGrad if tokens.is_empty() && accumulate => {}
            Product::WeightGrad => {
                for (j, i) in (0..n).flat_map(|j| (0..k).map(move |i| (j, i))) {
                    let terms = &mut tokens.clone().map(|t| (a[t * n + j], b[t * k + i]));
                    put((expert * n + j) * k + i, terms);
                }
            }
        }
    }
    c
}

/// 1 - 2 <x, y> / (<x, x> + <y, y>), as `DeepGEMM`'s tests have it; numerics of the FP8 recipe are gated by it.
fn difference(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut xy, mut squares) = (0.0, 0.0);
    for (x, y) in pairs {
        xy += x * y;
        squares += x * x + y * y;
    }
    if squares == 0.0 { 0.0 } else { 1.0 - 2.0 * xy / squares }
}

/// Whether sums inside the tensor core keep 13 bits only: E4M3 on compute capability 8.9.
fn is_coarse(gpu: &Gpu, plan: Plan) -> bool {
    plan.kind != Kind::Bf16 && gpu.device.properties().compute_capability == (8, 9)
}

fn gate(gpu: &Gpu, plan: Plan) -> f64 {
    // Rounding to BF16 alone: errors are below 2^-9, mean square 2^-18 / 3.
    let rounding = if plan.out == DType::Bf16 { 2.0_f64.powi(-18) } else { 0.0 };
    rounding + if is_coarse(gpu, plan) { 1e-6 } else { 1e-10 }
}

fn compare(gpu: &Gpu, plan: Plan, got: &[f32], want: &[Want]) -> Result<(), String> {
    // Of each sum of 32 or less, against its largest addend; FP32 beside it.
    let sums = if is_coarse(gpu, plan) { 8.0 * 2.0_f64.powi(-13) } else { 2.0_f64.powi(-18) };
    let rounding = if plan.out == DType::Bf16 { 2.0_f64.powi(-8) } else { 0.0 };
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let got = f64::from(*got);
        let room =
            if want.touched { want.magnitude * sums + want.value.abs() * rounding } else { 0.0 };
        let apart = (got - want.value).abs();
        if apart.is_nan() || apart > room {
            let touched = if want.touched { "" } else { ", which no expert has" };
            return Err(format!(
                "element {at}{touched}: {got}, want {} within {room:e}",
                want.value
            ));
        }
    }
    let touched = got.iter().zip(want).filter(|(_, want)| want.touched);
    let apart = difference(touched.map(|(got, want)| (f64::from(*got), want.value)));
    let gate = gate(gpu, plan);
    if apart <= gate { Ok(()) } else { Err(format!("calc_diff {apart:e}, at most {gate:e}")) }
}

/// The CPU's linear layer of the same numbers.
fn judged_by_linear(plan: Plan, x: &[f32], dy: &[f32], w: &[f32]) -> Vec<f32> {
    let Plan { product, kind, shape: Shape { t, n, k }, out, .. } = plan;
    let math = match kind {
        Kind::Pow2 => linear::Math::Fp8(ScaleFormat::Pow2),
        Kind::Fp32 => linear::Math::Fp8(ScaleFormat::Fp32),
        Kind::Bf16 => linear::Math::Bf16,
    };
    let tokens =
        |x: &[f32], cols| CpuOperand::prepare(&Tensor::from_f32(DType::F32, &[t, cols], x), math);
    let weight = || Weight::prepare(w, n, k, math);
    match product {
        Product::Forward => linear::forward(&tokens(x, k), &weight(), out).to_f32(),
        Product::InputGrad => linear::backward_input(&tokens(dy, n), &weight(), out).to_f32(),
        Product::WeightGrad => {
            let mut dw = vec![0.0; n * k];
            linear::backward_weight(&tokens(x, k), &tokens(dy, n), &mut dw);
            dw
        }
    }
}

/// `DeepGEMM`'s gate for the whole way, quantising included.
fn unrounded(gpu: &Gpu, kind: Kind) -> Result<(), String> {
    let (t, n, k) = (96, 160, 1024);
    let mut random = Random::new(gpu.seed);
    let (x, w) = (random.normal(t * k), random.normal(n * k));
    let a = Matrix::new(kind, &x, t, k, Tiling::Row);
    let b = Matrix::new(kind, &w, n, k, Tiling::Block);
    let (shape, out) = (Shape { t, n, k }, DType::F32);
    let (product, tile) = (Product::Forward, TileChoice::Best);
    let plan = Plan { product, kind, tile, shape, experts: None, out, accumulate: false };
    let got = to_values(&launch(gpu, plan, &a, &b, &[(0, t as u32)], &vec![0.0; t * n])?, out);
    let want = reference(plan, &x, &w, &[(0, t as u32)], &vec![0.0; t * n]);
    let apart = difference(got.iter().zip(want).map(|(got, want)| (f64::from(*got), want.value)));
    // A product that rounded nothing would prove nothing.
    if (1e-9..1e-3).contains(&apart) { Ok(()) } else { Err(format!("calc_diff {apart:e}")) }
}

/// Ranges of as many rows each.
pub(crate) fn even_ranges(experts: usize, rows: usize) -> Vec<u8> {
    let range = |e: usize| [(e * rows) as u32, ((e + 1) * rows) as u32];
    (0..experts).flat_map(range).flat_map(u32::to_le_bytes).collect()
}

/// Groups over ranges that were uploaded.
pub(crate) fn groups(ranges: Slice<'_>) -> Groups<'_> {
    Groups { ranges, experts: ranges.bytes() / 8 }
}
