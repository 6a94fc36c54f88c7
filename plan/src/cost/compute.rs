//! The arithmetic of one microbatch on one card, by roofline: the longer of its FLOPs at the tensor cores' rate
//! and its bytes at the memory's.
//!
//! Letters: a product has `rows` tokens, `inputs` columns in and `outputs` out. Forward sums over `inputs`, the input
//! half of backward over `outputs`, the weight half over `rows`.

use super::Software;
use super::efficiency::{self as share, Product};
use crate::arithmetic::{self, Linear};
use crate::fleet::Rig;
use crate::job::{Job, Precision};
use crate::model::ModelConfig;
use crate::numerics::ScaleFormat;

/// The three parts of a microbatch's work, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Halves {
    pub forward: f64,
    pub input: f64,
    pub weight: f64,
}

impl Halves {
    pub fn total(self) -> f64 {
        self.forward + self.input + self.weight
    }

    #[must_use]
    pub fn plus(self, other: Self, times: f64) -> Self {
        Self {
            forward: self.forward + times * other.forward,
            input: self.input + times * other.input,
            weight: self.weight + times * other.weight,
        }
    }

    fn times(self, factor: f64) -> Self {
        Self::default().plus(self, factor)
    }

    /// The longer of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            forward: self.forward.max(other.forward),
            input: self.input.max(other.input),
            weight: self.weight.max(other.weight),
        }
    }
}

/// A card as the arithmetic sees it, for one job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// FLOP/s at their peak, and how much of it a product reaches: of the Linears, and of what is never FP8.
    narrow: (f64, Product),
    wide: (f64, Product),
    memory_bytes_per_s: f64,
    /// Bytes of a Linear's operand.
    operand_bytes: f64,
    /// What communication leaves.
    left: f64,
}

/// The tokens of one microbatch on one card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Of its own sequences.
    pub own: f64,
    /// Tokens that chose its experts, each once for each choice.
    pub routed: f64,
    /// Experts on the card.
    pub experts: f64,
}

/// Times of a microbatch in a layer of each kind, and of what the last stage has besides.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerTimes {
    pub dense: Halves,
    pub moe: Halves,
    pub last: Halves,
}

impl Card {
    pub fn of(rig: &Rig, job: &Job, software: Software) -> Self {
        let (gpu, measured) = (rig.card(), &rig.measured);
        let bf16 = share::product(gpu, false);
        let peak = measured.bf16_tflops.map_or(gpu.bf16_tflops, |tflops| tflops / bf16.most);
        let wide = (peak * 1e12, bf16);
        let narrow = match job.training.precision {
            Precision::Fp8 => {
                let block_scaled =
                    gpu.mxfp8_tflops.filter(|_| powers_of_two(job)).or(gpu.fp8_tflops);
                match (measured.fp8_tflops, block_scaled) {
                    (Some(tflops), _) => {
                        let fp8 = share::product(gpu, true);
                        (tflops / fp8.most * 1e12, fp8)
                    }
                    (None, Some(tflops)) => (tflops * 1e12, share::product(gpu, true)),
                    // Dequantised on the way into a BF16 product.
                    (None, None) => wide,
                }
            }
            Precision::Bf16 => wide,
            // Without tensor cores: half of BF16 with FP32 sums on gaming cards, a sixteenth in data centres.
            Precision::F32 => (wide.0 / if gpu.is_geforce() { 2.0 } else { 16.0 }, bf16),
        };
        let streamed = gpu.memory_gb_s * share::MEMORY;
        let operand_bytes = match job.training.precision {
            Precision::Fp8 => 1.0,
            Precision::Bf16 => 2.0,
            Precision::F32 => 4.0,
        };
        let memory_bytes_per_s = measured.memory_gb_s.unwrap_or(streamed) * 1e9;
        Self { narrow, wide, memory_bytes_per_s, operand_bytes, left: 1.0 - software.taken }
    }

    /// A microbatch in every kind of layer.
    pub fn layer_times(&self, job: &Job, load: Load) -> LayerTimes {
        let model = &job.model;
        let last = model.num_hidden_layers - 1;
        let of = |layer| self.layer(job, layer, load);
        let dense = if model.is_moe(0) { Halves::default() } else { of(0) };
        let moe = if model.is_moe(last) { of(last) } else { dense };
        LayerTimes { dense, moe, last: self.last_stage(job, load) }
    }

    fn layer(&self, job: &Job, layer: u32, load: Load) -> Halves {
        let model = &job.model;
        let mut sum = Halves::default();
        for linear in arithmetic::linears(model, layer, job.training.recompute) {
            sum = sum.plus(self.product(linear, load.own, 1.0, self.narrow), 1.0);
        }
        if model.is_moe(layer) && load.experts > 0.0 {
            for linear in arithmetic::expert_linears(model, job.training.recompute) {
                sum = sum.plus(self.product(linear, load.routed, load.experts, self.narrow), 1.0);
            }
        }
        sum = sum.plus(self.attention(job, load.own), 1.0);
        sum = sum.plus(self.streamed(model, model.is_moe(layer), load), 1.0);
        // About as many kernels as operations; a slot of a few microseconds each is bound by them.
        let launches = Halves { forward: 30.0, input: 45.0, weight: 15.0 };
        sum.times(1.0 / self.left).max(launches.times(share::LAUNCH_S))
    }

    /// The head, and each MTP module with its projection, its layer and its pass through the head.
    fn last_stage(&self, job: &Job, load: Load) -> Halves {
        let model = &job.model;
        let d = u64::from(model.hidden_size);
        let matrix = |inputs, outputs| Linear { inputs, outputs, again: false };
        let head = self.product(matrix(d, model.vocab_size.into()), load.own, 1.0, self.wide);
        let projection = self.product(matrix(2 * d, d), load.own, 1.0, self.wide);
        let mut sum = head.times(1.0 / self.left);
        for layer in model.mtp_layers() {
            sum = sum.plus(head.plus(projection, 1.0), 1.0 / self.left);
            sum = sum.plus(self.layer(job, layer, load), 1.0);
        }
        sum
    }

    /// `rows` tokens spread over `matrices` alike, with their gradients.
    fn product(&self, linear: Linear, rows: f64, matrices: f64, of: (f64, Product)) -> Halves {
        let (inputs, outputs) = (linear.inputs as f64, linear.outputs as f64);
        let operand =
            if of == self.narrow { self.operand_bytes } else { self.operand_bytes.max(2.0) };
        let each = rows / matrices;
        let (peak, product) = of;
        // A tile of the output costs as much when some of its rows are empty.
        let tiles = (each / share::TILE_ROWS).ceil() * share::TILE_ROWS * matrices;
        let weights = inputs * outputs * matrices;
        let roof = |rows: f64, depth: f64, bytes: f64| {
            let compute = 2.0 * rows * inputs * outputs / (peak * product.at(depth.max(1.0)));
            compute.max(bytes / self.memory_bytes_per_s)
        };
        let forward =
            roof(tiles, inputs, weights * operand + rows * (inputs * operand + 2.0 * outputs));
        let back =
            roof(tiles, outputs, weights * operand + rows * (outputs * operand + 2.0 * inputs));
        // Gradients are added to in FP32: read and written.
        let weight = roof(rows, each, weights * 8.0 + rows * (inputs + outputs) * operand);
        let again = if linear.again { forward } else { 0.0 };
        Halves { forward, input: back + again, weight }
    }

    fn attention(&self, job: &Job, own: f64) -> Halves {
        let third = own * arithmetic::attention_flops(&job.model, job.training.sequence) / 3.0;
        let forward = third / (self.wide.0 * share::ATTENTION_FORWARD);
        let products = share::ATTENTION_BACKWARD_PRODUCTS * third;
        let again = if job.training.recompute.attention() { forward } else { 0.0 };
        let input = products / (self.wide.0 * share::ATTENTION_BACKWARD) + again;
        Halves { forward, input, weight: 0.0 }
    }

    /// What is read and written around the products: two norms and two residual sums (10 rows of the stream),
    /// rotated queries, keys and values, the copies of a token to its experts and back, SwiGLU, and quantising.
    /// Backward moves twice that; the weight half turns every operand round once.
    fn streamed(&self, model: &ModelConfig, is_moe: bool, load: Load) -> Halves {
        let d = f64::from(model.hidden_size);
        let heads = f64::from(model.num_attention_heads);
        let qkv = 2.0 * f64::from(model.qk_head_dim()) + f64::from(model.v_head_dim);
        let shared = f64::from(model.n_shared_experts) * f64::from(model.moe_intermediate_size);
        let hidden = if is_moe { shared } else { model.intermediate_size.into() };
        // Gate and up are read in two bytes each, the product is written as an operand.
        let swiglu = |width: f64| width * (4.0 + self.operand_bytes);
        let own = 2.0 * 10.0 * d + 4.0 * heads * qkv + swiglu(hidden);
        let copies = d * (2.0 * self.operand_bytes + 4.0);
        let routed = if is_moe { copies + swiglu(model.moe_intermediate_size.into()) } else { 0.0 };
        let forward = (own * load.own + routed * load.routed) / self.memory_bytes_per_s;
        let operands = 2.0 * d + heads * qkv + 3.0 * hidden;
        let turned = operands * load.own + if is_moe { 5.0 * d * load.routed } else { 0.0 };
        let weight = 2.0 * self.operand_bytes * turned / self.memory_bytes_per_s;
        Halves { forward, input: 2.0 * forward, weight }
    }

    /// The update of `parameters`: masters, gradients and two moments are read, masters, moments and the
    /// weights written.
    pub fn update_s(&self, parameters: f64, moment_bytes: f64) -> f64 {
        let bytes = 4.0 + 4.0 + 2.0 * moment_bytes + 4.0 + self.operand_bytes;
        parameters * bytes / self.memory_bytes_per_s
    }
}

/// Whether every FP8 tensor has power-of-two scales, as block-scaled instructions want them.
fn powers_of_two(job: &Job) -> bool {
    let scales = job.training.scales;
    let all = [scales.weights, scales.activations, scales.gradients];
    all.iter().all(|scale| *scale == ScaleFormat::Pow2)
}
