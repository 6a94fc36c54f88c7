//! The numbers that a cell owns, on a device: masters, moments, gradients, the average if one is kept, and what compute
//! reads. The host's `Parameters` hold their names, and are the other end of every copy.

use std::collections::BTreeMap;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use shoal_kernels::adamw::AdamStep;
use shoal_kernels::cuda::elementwise::Vector;
use shoal_kernels::cuda::quantise::{QuantizedSlices, Shape};
use shoal_kernels::cuda::{Block, DeviceError, Slice, adamw, gemm};
use shoal_kernels::linear::Math;
use shoal_kernels::{DType, ScaleFormat, Tiling};
use shoal_plan::numerics;

use super::gpu::Gpu;
use super::layout::{Group, Layout, Run};
use crate::arithmetic::Arithmetic;
use crate::names::{Role, Specification};
use crate::options::StageOptions;
use crate::parameters::{self as host, Class};

/// A Linear's weight `(N, K)`, or those of several experts `(E, N, K)`, as products read it.
#[derive(Debug)]
pub(crate) struct Weight {
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) copies: usize,
    form: Form,
}

#[derive(Debug)]
enum Form {
    Bf16(Block),
    /// 128 x 128 blocks of each copy.
    Fp8 {
        codes: Block,
        scales: Block,
        format: ScaleFormat,
    },
}

/// A group of parameters, cheaper than its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupId(usize);

/// All numbers of one class.
#[derive(Debug)]
struct Numbers {
    master: Block,
    gradient: Block,
    first: Block,
    second: Block,
    average: Option<Block>,
    runs: Vec<Run>,
}

/// All parameters of one cell.
#[derive(Debug)]
pub(crate) struct Parameters {
    layout: Layout,
    ids: BTreeMap<String, GroupId>,
    /// By group; none where compute reads the masters.
    weights: Vec<Option<Weight>>,
    decays: Vec<bool>,
    /// By class.
    numbers: [Numbers; 3],
    moments: DType,
}

impl Weight {
    fn new(gpu: &Gpu, group: &Group, math: Math) -> Result<Self, DeviceError> {
        let [n, k] = group.shape[..] else { panic!("{} is no matrix", group.name) };
        let copies = group.members.len();
        let form = match math {
            Math::F32 => panic!("precision f32 stays on the CPU"),
            Math::Bf16 => Form::Bf16(gpu.block("a weight", 2 * copies * n * k)?),
            Math::Fp8(format) => {
                let scales = Shape { rows: n, cols: k }.scale_bytes(Tiling::Block, format);
                Form::Fp8 {
                    codes: gpu.block("a weight", copies * n * k)?,
                    scales: gpu.block("the scales of a weight", copies * scales)?,
                    format,
                }
            }
        };
        Ok(Self { n, k, copies, form })
    }

    pub(super) fn side(&self) -> gemm::Operand<'_> {
        match &self.form {
            Form::Bf16(block) => gemm::Operand::Bf16(block.all()),
            Form::Fp8 { codes, scales, format } => gemm::Operand::Fp8(QuantizedSlices {
                codes: codes.all(),
                scales: scales.all(),
                format: *format,
            }),
        }
    }

    /// Of a product with so many rows.
    pub(super) fn shape(&self, t: usize) -> gemm::Shape {
        gemm::Shape { t, n: self.n, k: self.k }
    }

    /// The parts that are quantised by themselves: all of it where no block of scales spans two copies.
    fn parts(&self) -> Vec<(Range<usize>, adamw::Weight<'_>)> {
        let all = 0..self.copies * self.n * self.k;
        let Form::Fp8 { codes, scales, format } = &self.form else {
            let Form::Bf16(block) = &self.form else {
                unreachable!("a weight has one of two forms")
            };
            return vec![(all.clone(), adamw::Weight::Bf16(block.all(), all.len()))];
        };
        let (parts, rows) = if self.n.is_multiple_of(128) {
            (1, self.copies * self.n)
        } else {
            (self.copies, self.n)
        };
        let shape = Shape { rows, cols: self.k };
        let (size, scale_bytes) = (rows * self.k, shape.scale_bytes(Tiling::Block, *format));
        let part = |i: usize| {
            let span = i * size..(i + 1) * size;
            let tiles = QuantizedSlices {
                codes: codes.slice(span.clone()),
                scales: scales.slice(i * scale_bytes..(i + 1) * scale_bytes),
                format: *format,
            };
            (span, adamw::Weight::Fp8(tiles, shape))
        };
        (0..parts).map(part).collect()
    }
}

impl Numbers {
    fn new(
        gpu: &Gpu,
        layout: &Layout,
        class: Class,
        (moments, averaged): (DType, bool),
    ) -> Result<Self, DeviceError> {
        let n = layout.size(class);
        // Gaps between parameters are never written: nothing but zeros may be summed up there.
        let zeros = |what, size: usize| {
            let block = gpu.block(what, n * size)?;
            gpu.stream.fill(block.all(), 0)?;
            Ok(block)
        };
        Ok(Self {
            master: zeros("masters", 4)?,
            gradient: zeros("gradients", 4)?,
            first: zeros("first moments", moments.size())?,
            second: zeros("second moments", moments.size())?,
            average: averaged.then(|| zeros("the average of the masters", 4)).transpose()?,
            runs: layout.runs(class),
        })
    }
}

/// Copies runs of numbers of `size` bytes to the device.
fn upload(
    gpu: &Gpu,
    runs: &[Run],
    to: &Block,
    from: &[u8],
    size: usize,
) -> Result<(), DeviceError> {
    for Run { host, device, len } in runs {
        let bytes = &from[host * size..(host + len) * size];
        gpu.write(to.slice(device * size..(device + len) * size), bytes)?;
    }
    Ok(())
}

/// Copies runs of numbers of `size` bytes from the device, and waits for them.
fn download(
    gpu: &Gpu,
    runs: &[Run],
    from: &Block,
    to: &mut [u8],
    size: usize,
) -> Result<(), DeviceError> {
    for Run { host, device, len } in runs {
        let bytes = &mut to[host * size..(host + len) * size];
        gpu.read(from.slice(device * size..(device + len) * size), bytes)?;
    }
    Ok(())
}

impl Parameters {
    /// Room for everything; `push` brings the numbers.
    pub(super) fn blank(
        gpu: &Gpu,
        specifications: &[Specification],
        arithmetic: Arithmetic,
        options: &StageOptions,
    ) -> Result<Self, DeviceError> {
        let layout = Layout::of(specifications);
        let moments = match options.moments {
            numerics::Moments::Bf16 => DType::Bf16,
            numerics::Moments::F32 => DType::F32,
        };
        let kind = (moments, 0.0 < options.ema_decay);
        let excluded = &options.weight_decay_exclude;
        let decays = layout.groups.iter().map(|group| {
            let group = specifications[group.members.start].group();
            !group.is_some_and(|group| excluded.contains(&group))
        });
        let weight = |group: &Group| {
            let math = match group.role {
                Role::Linear => arithmetic.weight,
                Role::Wide | Role::Tied | Role::Table => arithmetic.wide,
                Role::Gain | Role::Router => return Ok(None),
            };
            Weight::new(gpu, group, math).map(Some)
        };
        let ids = layout.groups.iter().enumerate();
        Ok(Self {
            ids: ids.map(|(i, group)| (group.name.clone(), GroupId(i))).collect(),
            weights: layout.groups.iter().map(weight).collect::<Result<_, _>>()?,
            decays: decays.collect(),
            numbers: [
                Numbers::new(gpu, &layout, Class::Dense, kind)?,
                Numbers::new(gpu, &layout, Class::Expert, kind)?,
                Numbers::new(gpu, &layout, Class::Embedding, kind)?,
            ],
            moments,
            layout,
        })
    }

    /// The handle of a group that must be there, by the name of its first parameter.
    pub(super) fn id(&self, name: &str) -> GroupId {
        let id = self.ids.get(name);
        *id.unwrap_or_else(|| {
            panic!("this cell has no group of parameters that begins with {name}")
        })
    }

    /// As products read it.
    pub(super) fn weight(&self, id: GroupId) -> &Weight {
        let weight = self.weights[id.0].as_ref();
        weight.unwrap_or_else(|| panic!("{} is read as it is", self.layout.groups[id.0].name))
    }

    /// FP32, of a norm or a router.
    pub(super) fn master(&self, id: GroupId) -> Slice<'_> {
        self.of(id, 4, |numbers| &numbers.master)
    }

    /// FP32, added to by every pass.
    pub(super) fn gradient(&self, id: GroupId) -> Slice<'_> {
        self.of(id, 4, |numbers| &numbers.gradient)
    }

    fn of(&self, id: GroupId, size: usize, which: impl Fn(&Numbers) -> &Block) -> Slice<'_> {
        let group = &self.layout.groups[id.0];
        let span = group.span();
        which(&self.numbers[group.class.index()]).slice(span.start * size..span.end * size)
    }

    /// Copies the host's masters, moments and average here, and makes what compute reads of them.
    pub(super) fn push(&self, gpu: &Gpu, host: &host::Parameters) -> Result<(), DeviceError> {
        for class in Class::ALL {
            let (numbers, arena) = (&self.numbers[class.index()], host.arena(class));
            let runs = &numbers.runs;
            upload(gpu, runs, &numbers.master, cast_slice(&arena.master), 4)?;
            let [first, second] = arena.moment_bytes();
            upload(gpu, runs, &numbers.first, first, self.moments.size())?;
            upload(gpu, runs, &numbers.second, second, self.moments.size())?;
            if let Some(average) = &numbers.average {
                upload(gpu, runs, average, cast_slice(&arena.average), 4)?;
            }
        }
        self.prepare(gpu)
    }

    /// Copies masters, moments and average back, and waits for them.
    pub(super) fn fetch(&self, gpu: &Gpu, host: &mut host::Parameters) -> Result<(), DeviceError> {
        for class in Class::ALL {
            let (numbers, arena) = (&self.numbers[class.index()], host.arena_mut(class));
            let runs = &numbers.runs;
            download(gpu, runs, &numbers.master, cast_slice_mut(&mut arena.master), 4)?;
            let size = self.moments.size();
            let [first, second] = arena.moment_bytes_mut();
            download(gpu, runs, &numbers.first, first, size)?;
            download(gpu, runs, &numbers.second, second, size)?;
            if let Some(average) = &numbers.average {
                download(gpu, runs, average, cast_slice_mut(&mut arena.average), 4)?;
            }
        }
        Ok(())
    }

    /// Copies gradients to the host, and waits for them.
    pub(super) fn fetch_gradients(
        &self,
        gpu: &Gpu,
        host: &mut host::Parameters,
    ) -> Result<(), DeviceError> {
        for class in Class::ALL {
            let numbers = &self.numbers[class.index()];
            let to = cast_slice_mut(host.gradients_mut(class));
            download(gpu, &numbers.runs, &numbers.gradient, to, 4)?;
        }
        Ok(())
    }

    /// Copies gradients, summed over cells, from the host.
    pub(super) fn push_gradients(
        &self,
        gpu: &Gpu,
        host: &host::Parameters,
    ) -> Result<(), DeviceError> {
        for class in Class::ALL {
            let numbers = &self.numbers[class.index()];
            let from = cast_slice(host.gradients(class));
            upload(gpu, &numbers.runs, &numbers.gradient, from, 4)?;
        }
        Ok(())
    }

    /// Forgets every gradient.
    pub(super) fn zero_gradients(&self, gpu: &Gpu) -> Result<(), DeviceError> {
        self.numbers.iter().try_for_each(|numbers| gpu.stream.fill(numbers.gradient.all(), 0))
    }

    /// What compute reads, from the masters.
    fn prepare(&self, gpu: &Gpu) -> Result<(), DeviceError> {
        for (i, weight) in self.weights.iter().enumerate() {
            let Some(weight) = weight else { continue };
            let master = self.master(GroupId(i));
            for (span, part) in weight.parts() {
                let master = master.slice(4 * span.start..4 * span.end);
                match part {
                    adamw::Weight::Master(_) => {}
                    adamw::Weight::Bf16(copy, n) => {
                        let from = Vector { slice: master, dtype: DType::F32 };
                        let to = Vector { slice: copy, dtype: DType::Bf16 };
                        gpu.kernels.elementwise.cast(&gpu.stream, from, to, n)?;
                    }
                    adamw::Weight::Fp8(tiles, shape) => {
                        gpu.kernels.quantise.blocks(&gpu.stream, master, tiles, shape)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// AdamW on everything, fresh weights and no gradients, in one pass over memory. Returns the checksum of the masters,
    /// each part's from its own beginning on: alike on devices of one kind. Waits for it.
    pub(super) fn step(&self, gpu: &Gpu, adam: &AdamStep, decay: f32) -> Result<u64, DeviceError> {
        let sum = gpu.block("the checksum of the masters", 8)?;
        gpu.stream.fill(sum.all(), 0)?;
        for (i, group) in self.layout.groups.iter().enumerate() {
            let weight_decay = if self.decays[i] { adam.weight_decay } else { 0.0 };
            let adam = AdamStep { weight_decay, ..*adam };
            let parts = match &self.weights[i] {
                Some(weight) => weight.parts(),
                None => vec![(0..group.len(), adamw::Weight::Master(group.len()))],
            };
            for (span, weight) in parts {
                let span = group.device + span.start..group.device + span.end;
                let checksum = Some(sum.all());
                let state = adamw::State { checksum, ..self.state(group.class, span, decay) };
                gpu.kernels.adamw.step(&gpu.stream, state, weight, &adam)?;
            }
        }
        gpu.number(&sum)
    }

    fn state(&self, class: Class, span: Range<usize>, decay: f32) -> adamw::State<'_> {
        let numbers = &self.numbers[class.index()];
        let moment = self.moments.size();
        adamw::State {
            masters: numbers.master.slice(4 * span.start..4 * span.end),
            first: numbers.first.slice(moment * span.start..moment * span.end),
            second: numbers.second.slice(moment * span.start..moment * span.end),
            moments: self.moments,
            gradients: numbers.gradient.slice(4 * span.start..4 * span.end),
            average: numbers.average.as_ref().map(|average| adamw::Average {
                values: average.slice(4 * span.start..4 * span.end),
                decay,
            }),
            checksum: None,
        }
    }

    /// Exchanges masters and average, and makes what compute reads of the former.
    pub(super) fn swap_average(&mut self, gpu: &Gpu) -> Result<(), DeviceError> {
        for numbers in &mut self.numbers {
            if let Some(average) = &mut numbers.average {
                std::mem::swap(&mut numbers.master, average);
            }
        }
        self.prepare(gpu)
    }
}
