//! Rows of a table, and their gradient: the same bytes as the CPU's.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::embedding::Tokens;
use shoal_kernels::cuda::{Arena, DeviceError};
use shoal_kernels::tensor::DType;
use shoal_kernels::{Tensor, embedding};

use super::gpu::{Case, Gpu, f32_bytes, refused, same_bytes};
use super::honest::{Change, Mutant, mutant};

/// Tokens, rows of the table, columns.
const SIZES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (0, 5, 16),
    (127, 5, 129),
    (129, 300, 64),
    (300, 40, 260),
    (33, 50_000, 8),
    (20, 3, 1032),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in SIZES {
        let (t, v, d) = size;
        let name = |pass: &str| format!("embedding {pass} {t} of {v}x{d}");
        cases.push(Case::new(name("forward"), move |gpu| forward(gpu, size)));
        cases.push(Case::new(name("backward"), move |gpu| backward(gpu, size)));
    }
    cases.push(Case::new("embedding refuses", refuses));
    cases
}

/// Half of them one of two.
fn ids(random: &mut Random, tokens: usize, vocabulary: usize) -> Vec<u32> {
    let mut id = || match random.below(2) {
        0 => random.below(vocabulary.min(2) as u64) as u32,
        _ => random.below(vocabulary as u64) as u32,
    };
    (0..tokens).map(|_| id()).collect()
}

/// Token ids on the device.
fn tokens(gpu: &Gpu, ids: &[u32], vocabulary: usize) -> Result<Tokens, DeviceError> {
    let arena = Arena::new(&gpu.device, "token ids", 16 * ids.len() + 4).unwrap();
    Tokens::new(&arena, &gpu.stream, (ids, 0), vocabulary)
}

fn forward(gpu: &Gpu, (t, v, d): (usize, usize, usize)) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ (t * 1009 + d) as u64);
    let ids = ids(&mut random, t, v);
    let table = Tensor::from_f32(DType::Bf16, &[v, d], &random.normal(v * d));
    let want = embedding::forward(&table.to_f32(), d, &ids, DType::Bf16);
    let device_table = gpu.upload(table.bytes());
    let tokens = tokens(gpu, &ids, v).unwrap();
    let y = gpu.guarded(2 * t * d);
    let kernels = gpu.embedding();
    kernels.forward(&gpu.stream, device_table.all(), &tokens, y.slice(), d).unwrap();
    same_bytes("y", &gpu.result("y", &y)?, want.bytes())
}

fn backward(gpu: &Gpu, (t, v, d): (usize, usize, usize)) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ (t * 1013 + d) as u64);
    let ids = ids(&mut random, t, v);
    let dy = Tensor::from_f32(DType::Bf16, &[t, d], &random.normal(t * d));
    let mut want = random.normal(v * d);
    let d_table = gpu.guarded(4 * v * d);
    gpu.stream.upload(d_table.slice(), &f32_bytes(&want)).unwrap();
    embedding::backward(&ids, &dy, &mut want);
    let device_dy = gpu.upload(dy.bytes());
    let tokens = tokens(gpu, &ids, v).unwrap();
    let kernels = gpu.embedding();
    kernels.backward(&gpu.stream, &tokens, device_dy.all(), d_table.slice(), d).unwrap();
    same_bytes("d_table", &gpu.result("d_table", &d_table)?, &f32_bytes(&want))
}

fn refuses(gpu: &Gpu) -> Result<(), String> {
    refused(tokens(gpu, &[0, 7, 3], 7).map(drop), "token 1 has id 7, the table has 7 rows")?;
    let tokens = tokens(gpu, &[0, 6, 3], 7).unwrap();
    let buffer = gpu.upload(&[0; 1024]);
    let (kernels, stream) = (gpu.embedding(), &gpu.stream);
    let part = |at: usize, bytes: usize| buffer.slice(at..at + bytes);
    let forward = |table, y| kernels.forward(stream, table, &tokens, y, 8);
    refused(forward(part(0, 96), part(128, 48)), "table has 96 bytes")?;
    refused(forward(part(0, 112), part(128, 32)), "y has 32 bytes")?;
    refused(forward(part(0, 112), part(96, 48)), "y overlaps with table")?;
    let backward = |dy, d_table| kernels.backward(stream, &tokens, dy, d_table, 8);
    refused(backward(part(0, 48), part(64, 220)), "d_table has 220 bytes")
}

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "a row of the table takes all tokens from its first on",
        "embedding_backward",
        ("min.u32", 0, Change::To("max.u32")),
        ("embedding backward 129 of 300x64", "d_table"),
    ),
    mutant(
        "one token more than there is",
        "embedding_forward",
        ("setp.ge.u32", 0, Change::To("setp.gt.u32")),
        ("embedding forward 129 of 300x64", ""),
    ),
];
