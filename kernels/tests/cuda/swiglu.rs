//! The gated activation against the CPU's: the same bytes, but for the gates' gradients.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::quantise::Shape;
use shoal_kernels::cuda::swiglu::{Gates, Hidden, Sides};
use shoal_kernels::tensor::DType;
use shoal_kernels::{Quantized, ScaleFormat, Tensor, Tiling, swiglu};

use super::gpu::{Case, Gpu, Tiles, bf16s, close, f32_bytes, f32s, refused, same};
use super::honest::{Change, Mutant, mutant};

const SIZES: [(usize, usize); 8] =
    [(1, 1), (0, 64), (9, 127), (10, 128), (3, 264), (20, 300), (2, 1408), (5, 0)];
const FORMATS: [ScaleFormat; 2] = [ScaleFormat::Pow2, ScaleFormat::Fp32];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, cols) in SIZES {
        let shape = Shape { rows, cols };
        for gated in [false, true] {
            let name = |pass: &str| {
                let gates = if gated { " gates" } else { "" };
                format!("swiglu {pass}{gates} {rows}x{cols}")
            };
            cases.push(Case::new(name("forward"), move |gpu| forward(gpu, shape, gated)));
            cases.push(Case::new(name("backward bf16"), move |gpu| {
                let inputs = Inputs::new(gpu, shape, gated);
                backward_bf16(gpu, &inputs)
            }));
            cases.push(Case::new(name("backward fp8"), move |gpu| {
                let inputs = Inputs::new(gpu, shape, gated);
                let pairs = FORMATS.into_iter().flat_map(|a| FORMATS.map(|b| (a, b)));
                pairs.into_iter().try_for_each(|formats| backward_fp8(gpu, &inputs, formats))
            }));
        }
    }
    cases.push(Case::new("swiglu refuses", refuses));
    cases
}

struct Inputs {
    shape: Shape,
    g: Tensor,
    u: Tensor,
    dh: Tensor,
    gates: Option<Vec<f32>>,
}

impl Inputs {
    /// Some numbers beyond where the sigmoid ends, some that are not finite.
    fn new(gpu: &Gpu, shape: Shape, gated: bool) -> Self {
        let Shape { rows, cols } = shape;
        let mut random = Random::new(gpu.seed ^ (rows * 4099 + cols) as u64);
        let mut matrix = |size: f32| {
            let mut x = random.normal(rows * cols);
            for x in &mut x {
                *x *= size;
            }
            x
        };
        let (mut g, u, dh) = (matrix(4.0), matrix(1.0), matrix(0.1));
        let odd = [200.0, -200.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 87.5, -1e-30];
        for (i, odd) in odd.into_iter().enumerate() {
            if let Some(g) = g.get_mut(i * 31 + 40) {
                *g = odd;
            }
        }
        let tensor = |x: &[f32]| Tensor::from_f32(DType::Bf16, &[rows, cols], x);
        let gates = gated.then(|| random.uniform(rows, 0.0, 2.5));
        Self { shape, g: tensor(&g), u: tensor(&u), dh: tensor(&dh), gates }
    }
}

fn forward(gpu: &Gpu, shape: Shape, gated: bool) -> Result<(), String> {
    let kernels = gpu.swiglu();
    let Inputs { g, u, gates, .. } = Inputs::new(gpu, shape, gated);
    let want = swiglu::forward(&g, &u, gates.as_deref());
    let (device_g, device_u) = (gpu.upload(g.bytes()), gpu.upload(u.bytes()));
    let device_gates = gates.as_ref().map(|gates| gpu.upload(&f32_bytes(gates)));
    let device_gates = device_gates.as_ref().map(|gates| gates.all());
    let inputs = (device_g.all(), device_u.all(), device_gates);

    let h = gpu.guarded(want.bytes().len());
    kernels.forward(&gpu.stream, inputs, Hidden::Bf16(h.slice()), shape).unwrap();
    same("h", &bf16s(&gpu.result("h", &h)?), &want.to_f32())?;
    for (format, kept) in FORMATS.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let tiles = || Tiles::new(gpu, shape, Tiling::Row, format);
        let (h, g_kept, u_kept) = (tiles(), tiles(), tiles());
        let keep = kept.then(|| [g_kept.slices(), u_kept.slices()]);
        let hidden = Hidden::Fp8 { h: h.slices(), kept: keep };
        kernels.forward(&gpu.stream, inputs, hidden, shape).unwrap();
        let quantised = |x: &Tensor| Quantized::quantise(x, Tiling::Row, format);
        h.are(gpu, "h", &quantised(&want))?;
        if kept {
            g_kept.are(gpu, "g", &quantised(&g))?;
            u_kept.are(gpu, "u", &quantised(&u))?;
        }
    }
    Ok(())
}

/// Gates and room for their gradients on the device, while `run` uses them; then compares.
fn with_gates(
    gpu: &Gpu,
    inputs: &Inputs,
    want: &swiglu::Gradients,
    run: impl FnOnce(Option<Gates<'_>>),
) -> Result<(), String> {
    let Some(gates) = &inputs.gates else {
        run(None);
        return Ok(());
    };
    let gates = gpu.upload(&f32_bytes(gates));
    let d_gates = gpu.guarded(gates.bytes());
    run(Some(Gates { gates: gates.all(), d_gates: d_gates.slice() }));
    let got = f32s(&gpu.result("d_gates", &d_gates)?);
    close("d_gates", &got, &want.d_gate, (2e-5, 1e-5))
}

fn backward_bf16(gpu: &Gpu, inputs: &Inputs) -> Result<(), String> {
    let Inputs { shape, g, u, dh, gates } = inputs;
    let want = swiglu::backward(g, u, gates.as_deref(), dh);
    let [device_g, device_u, device_dh] = [g, u, dh].map(|x| gpu.upload(x.bytes()));
    let [h, dg, du] = [(); 3].map(|()| gpu.guarded(g.bytes().len()));
    let sides = Sides::Bf16 {
        g: device_g.all(),
        u: device_u.all(),
        h: h.slice(),
        dg: dg.slice(),
        du: du.slice(),
    };
    with_gates(gpu, inputs, &want, |gates| {
        let kernels = gpu.swiglu();
        kernels.backward(&gpu.stream, (device_dh.all(), gates), sides, *shape).unwrap();
    })?;
    for (what, got, want) in [("h", h, want.h), ("dg", dg, want.dg), ("du", du, want.du)] {
        same(what, &bf16s(&gpu.result(what, &got)?), &want.to_f32())?;
    }
    Ok(())
}

fn backward_fp8(
    gpu: &Gpu,
    inputs: &Inputs,
    (activations, gradients): (ScaleFormat, ScaleFormat),
) -> Result<(), String> {
    let Inputs { shape, g, u, dh, gates } = inputs;
    let [kept_g, kept_u] = [g, u].map(|x| Quantized::quantise(x, Tiling::Row, activations));
    let read =
        |x: &Quantized| Tensor::from_f32(DType::Bf16, &[shape.rows, shape.cols], &x.dequantise());
    let want = swiglu::backward(&read(&kept_g), &read(&kept_u), gates.as_deref(), dh);
    let [device_g, device_u] = [&kept_g, &kept_u].map(|x| Tiles::holding(gpu, x));
    let device_dh = gpu.upload(dh.bytes());
    let tiles = |format| Tiles::new(gpu, *shape, Tiling::Row, format);
    let (h, dg, du) = (tiles(activations), tiles(gradients), tiles(gradients));
    let sides = Sides::Fp8 {
        g: device_g.slices(),
        u: device_u.slices(),
        h: h.slices(),
        dg: dg.slices(),
        du: du.slices(),
    };
    with_gates(gpu, inputs, &want, |gates| {
        let kernels = gpu.swiglu();
        kernels.backward(&gpu.stream, (device_dh.all(), gates), sides, *shape).unwrap();
    })?;
    h.are(gpu, "h", &Quantized::quantise(&want.h, Tiling::Row, activations))?;
    dg.are(gpu, "dg", &Quantized::quantise(&want.dg, Tiling::Row, gradients))?;
    du.are(gpu, "du", &Quantized::quantise(&want.du, Tiling::Row, gradients))
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    let kernels = gpu.swiglu();
    let shape = Shape { rows: 2, cols: 16 };
    let buffer = gpu.upload(&[0; 1024]);
    let part = |at: usize, bytes: usize| buffer.slice(at..at + bytes);
    let forward =
        |g, u, gates, h| kernels.forward(&gpu.stream, (g, u, gates), Hidden::Bf16(h), shape);
    let (g, u) = (part(0, 64), part(64, 64));
    refused(forward(part(0, 62), u, None, part(128, 64)), "g has 62 bytes")?;
    refused(forward(g, u, Some(part(256, 4)), part(128, 64)), "gates has 4 bytes")?;
    refused(forward(g, u, None, part(112, 64)), "h overlaps with u")?;
    let one = Tiles::new(gpu, shape, Tiling::Row, ScaleFormat::Pow2);
    let two = Tiles::new(gpu, shape, Tiling::Row, ScaleFormat::Fp32);
    let mixed = Hidden::Fp8 { h: one.slices(), kept: Some([two.slices(), two.slices()]) };
    refused(kernels.forward(&gpu.stream, (g, u, None), mixed, shape), "not in one format")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "the sigmoid ends early",
        "swiglu_forward",
        ("0fC2AE0000", 0, Change::To("0fC0AE0000")),
        ("swiglu forward 20x300", "h["),
    ),
    mutant(
        "scales of g go where those of u belong",
        "swiglu_forward_pow2",
        ("swiglu_forward_pow2_param_6]", 0, Change::To("swiglu_forward_pow2_param_8]")),
        ("swiglu forward 20x300", "scales of g"),
    ),
    mutant(
        "a difference is turned round",
        "swiglu_backward",
        ("sub.rn.f32", 3, Change::Swap),
        ("swiglu backward bf16 20x300", ""),
    ),
];
