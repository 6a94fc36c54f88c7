//! What the tests share: memory with typed contents, and kernels around a few instructions.

use shoal_standin::{Fault, Launch, Memory, Module, Options, Stats, launch};

/// The kernels of `ptx/tile.cu` as the compiler wrote them.
pub(crate) const TILE: &str = include_str!("../ptx/tile.ptx");

/// Reproducible numbers.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        // A linear congruential generator of Knuth, its upper bits mixed down.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    /// In -1..1.
    pub(crate) fn real(&mut self) -> f32 {
        (self.below(1 << 20) as f32 / (1 << 19) as f32) - 1.0
    }
}

pub(crate) fn words_to_bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(crate) fn floats_to_bytes(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|float| float.to_le_bytes()).collect()
}

/// A new allocation with these bytes.
pub(crate) fn upload(memory: &Memory, bytes: &[u8]) -> u64 {
    let address = memory.allocate(bytes.len());
    memory.write(address, bytes).unwrap();
    address
}

pub(crate) fn download(memory: &Memory, address: u64) -> Vec<u32> {
    let mut bytes = vec![0; memory.size_of(address).unwrap()];
    memory.read(address, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Pointers, then 32-bit numbers.
pub(crate) fn pack(pointers: &[u64], numbers: &[u32]) -> Vec<u8> {
    let mut bytes: Vec<u8> = pointers.iter().flat_map(|pointer| pointer.to_le_bytes()).collect();
    bytes.extend(words_to_bytes(numbers));
    bytes
}

/// Grid in x, block in x, dynamic shared bytes.
pub(crate) type Shape = (u32, u32, usize);

/// Loads `ptx` and launches its first kernel.
pub(crate) fn run(
    ptx: &str,
    memory: &Memory,
    (grid, block, dynamic_shared): Shape,
    params: &[u8],
    options: &Options,
) -> Result<Stats, Fault> {
    let module = Module::load(ptx).unwrap();
    let kernel = module.entries().next().unwrap();
    let launched =
        Launch { grid: [grid, 1, 1], block: [block, 1, 1], dynamic_shared, params, options };
    launch(kernel, memory, &launched)
}

/// A kernel for some architecture with all registers the snippets of the tests use.
pub(crate) fn kernel(target: &str, declarations: &str, body: &str) -> String {
    format!(
        ".version 8.7\n.target {target}\n.address_size 64\n\
         .visible .entry snippet(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .pred %p<8>;\n.reg .b32 %r<64>;\n.reg .b64 %rd<32>;\n.reg .b32 %a, %b, %c, %d;\n\
         .reg .b64 %x, %y, %z, %q;\n{declarations}\n\
         ld.param.u64 %rd1, [in];\nld.param.u64 %rd2, [out];\nmov.u32 %r1, %tid.x;\n\
         mov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmad.lo.u32 %r4, %r2, %r3, %r1;\n\
         {body}\nret;\n}}\n"
    )
}

/// Runs instructions once for every case: 64-bit inputs in %x, %y, %z (low halves in %a, %b, %c), the
/// result from %q, or from %d if the text names it.
pub(crate) fn evaluate(text: &str, cases: &[[u64; 3]]) -> Vec<u64> {
    let result = if text.contains("%d") { "cvt.u64.u32 %q, %d;" } else { "" };
    let count = cases.len();
    let body = format!(
        "setp.ge.u32 %p7, %r4, {count};\n@%p7 bra $end;\n\
         mad.wide.u32 %rd3, %r4, 24, %rd1;\nmad.wide.u32 %rd4, %r4, 8, %rd2;\n\
         ld.global.u64 %x, [%rd3];\nld.global.u64 %y, [%rd3+8];\nld.global.u64 %z, [%rd3+16];\n\
         cvt.u32.u64 %a, %x;\ncvt.u32.u64 %b, %y;\ncvt.u32.u64 %c, %z;\n\
         {text}\n{result}\nst.global.u64 [%rd4], %q;\n$end:"
    );
    let memory = Memory::new();
    let inputs: Vec<u8> = cases.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let (input, output) = (upload(&memory, &inputs), memory.allocate(8 * count));
    let blocks = count.div_ceil(128) as u32;
    let params = pack(&[input, output], &[]);
    let ptx = kernel("sm_89", "", &body);
    run(&ptx, &memory, (blocks, 128, 0), &params, &Options::default()).unwrap();
    let halves = download(&memory, output);
    halves
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[low, high]| u64::from(*high) << 32 | u64::from(*low))
        .collect()
}
