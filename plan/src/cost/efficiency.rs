//! The share of its peak that hardware gives: numbers published for single operations, with their sources.
//!
//! They were written down before any whole run was predicted with them, and whole runs judge them. What
//! is marked *assumed* was found nowhere, and is a guess that a measurement should replace
//! (`measured` in a fleet's file).

use crate::gpus::Gpu;

/// How a matrix product's rate depends on its depth K, the length of its inner sums: a kernel starts and
/// ends every tile of its output once, whatever K is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    /// The share of the tensor peak as K grows.
    pub most: f64,
    /// K at half of that.
    pub half_depth: f64,
}

impl Product {
    /// The share of the peak at depth `k`.
    pub fn at(self, k: f64) -> f64 {
        self.most * k / (k + self.half_depth)
    }
}

/// FP8 with 128-wide scales, Hopper. Fitted by hand to the nine products of 4096 rows or more that the table
/// of DeepGEMM's first release has for an H800: 590 TFLOPS at K = 512 to 1358 at 16384 (tests).
pub const FP8_DATA_CENTRE: Product = Product { most: 0.70, half_depth: 600.0 };

/// BF16, A100, Hopper and B200. *Assumed*: cuBLAS reaches 0.75 to 0.8 of an H100's 989 TFLOPS in large
/// products, and half the depth is as much work in BF16 as the whole is in FP8.
pub const BF16_DATA_CENTRE: Product = Product { most: 0.78, half_depth: 300.0 };

/// BF16, gaming cards. An RTX 4090 gives 150 to 168 TFLOPS of 165 and an RTX 5090 224 to 240 of 209.5 in
/// large products (clocks above the stated boost); the RTX 5090's FP8 rates at M = N = K = 256, 1024 and 4096
/// (267, 339 and 389 of 419: PyTorch issue 155991) give the depth.
pub const BF16_GEFORCE: Product = Product { most: 0.93, half_depth: 130.0 };

/// FP8 with 128-wide scales, gaming cards. *Assumed* 0.75 of the peak: block-scaled products on the same
/// chips reach 802 TFLOPS of about 1000 (RTX PRO 6000: CUTLASS issue 3272), 619 with cuBLAS (quack issue 153), and 410
/// of 450 on an RTX 5080 (CUTLASS issue 2186); none is published for an RTX 4090, which adds FP32 sums on the side.
pub const FP8_GEFORCE: Product = Product { most: 0.75, half_depth: 260.0 };

/// Attention, forward, of the BF16 peak, counting what the causal mask leaves. About 550 of 989 TFLOPS at 4096
/// tokens and heads of 128 (`FlashAttention-3`, arXiv:2407.08608, figure 5, read off). *Assumed* elsewhere, and for
/// MLA's heads of 192 and 128.
pub const ATTENTION_FORWARD: f64 = 0.55;

/// Attention, backward: about 450 of 989 (the same, figure 6, read off). Its own count has 5 products where
/// forward has 2: see `ATTENTION_BACKWARD_PRODUCTS`.
pub const ATTENTION_BACKWARD: f64 = 0.45;

/// Backward computes the scores again: 5 products for forward's 2. arXiv:2205.14135, section 3.1.
pub const ATTENTION_BACKWARD_PRODUCTS: f64 = 2.5;

/// Rows of a tile of the output: fewer cost as much. DeepGEMM's alignment of groups, and ours.
pub const TILE_ROWS: f64 = 128.0;

/// The share of the memory's bandwidth that streaming operations see. The products of 128 rows in DeepGEMM's
/// table, which wait for weights, move 2103 to 2604 of 3350 GB/s: 0.78 at the most.
pub const MEMORY: f64 = 0.78;

/// Seconds to launch a kernel that is too small to hide it. *Assumed*: the usual 2 to 5 microseconds.
pub const LAUNCH_S: f64 = 3e-6;

/// The share of an NVLink direction in an all-to-all: 153 and 158 of 200 GB/s (DeepEP, H800, 8 cards), 726 and
/// 740 of 900 (B200).
pub const NVLINK: f64 = 0.78;

/// The share of a network interface with RDMA: DeepEP's logical rates less what stays on its own machine are
/// 45 of 50 GB/s (90 on 2 machines, 61 on 4), and 44.6 (51 on 8).
pub const RDMA: f64 = 0.90;

/// The share of a network interface without it: NCCL over sockets. *Assumed*.
pub const SOCKET: f64 = 0.80;

/// The share of a PCIe direction between cards that go through the machine's memory, while each sends and
/// receives: two RTX 5090 on eight lanes of PCIe 5 (31.5 GB/s) move 30 GB/s both ways together.
pub const HOST_BOUNCE: f64 = 0.48;

/// The share of a PCIe direction from card to card: 56 GB/s of 63, both ways (the same pair, patched driver).
pub const PCIE_PEERS: f64 = 0.85;

/// Times a byte crosses the machine's memory on its way between two cards: written once and read once.
pub const HOST_CROSSINGS: f64 = 2.0;

/// Seconds before the first byte: between cards over NVLink, and through the host (14 microseconds for the pair
/// above). An all-to-all over RDMA: DeepEP's 128 tokens over 8 cards take 77 microseconds, most of it latency.
pub const LATENCY_NVLINK_S: f64 = 5e-6;
pub const LATENCY_HOST_S: f64 = 14e-6;
pub const LATENCY_RDMA_S: f64 = 30e-6;

/// Of a card's memory, what is never free for training: the driver's context, the kernels, NCCL's buffers.
/// *Assumed*: half a GiB to a GiB.
pub const RESERVED_GIB: f64 = 1.0;

/// Of a machine's memory, what a snapshot never finds free: the system, a desktop, the text that is mapped. *Assumed*.
pub const HOST_RESERVED_GB: f64 = 4.0;

/// Bytes a second that one thread hashes with BLAKE3. Its authors' README has 7.2 GB/s with AVX-512 on 16 KiB; *assumed* is
/// less than half, for AVX2 and bytes that come from memory.
pub const HASH_BYTES_PER_S: f64 = 3e9;

/// Round trips of a copy of a snapshot: the connection, the handshake, a head and its verdict, and the verdict on the
/// bytes (`worker/src/vault/wire.rs`).
pub const COPY_ROUND_TRIPS: f64 = 4.0;

/// The products of a card in one precision.
pub fn product(gpu: &Gpu, fp8: bool) -> Product {
    match (gpu.is_geforce(), fp8) {
        (true, true) => FP8_GEFORCE,
        (true, false) => BF16_GEFORCE,
        (false, true) => FP8_DATA_CENTRE,
        (false, false) => BF16_DATA_CENTRE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of DeepGEMM's first release, H800, 4096 rows and more (K, TFLOPS). One product of 2112 columns is left
    /// out: its 17 tiles do not fill the card evenly.
    #[test]
    fn deep_gemms_products_are_within_a_tenth() {
        let dense = [
            (16384.0, 1358.0),
            (7168.0, 1304.0),
            (2048.0, 1025.0),
            (1536.0, 990.0),
            (512.0, 590.0),
        ];
        let grouped = [(7168.0, 1297.0), (2048.0, 1099.0), (7168.0, 1288.0), (2048.0, 1093.0)];
        let mut worst = 0.0_f64;
        for (k, measured) in dense.into_iter().chain(grouped) {
            let off = FP8_DATA_CENTRE.at(k) * 1978.9 / measured - 1.0;
            assert!(off.abs() < 0.10, "K = {k}: {:.0} % off", 100.0 * off);
            worst = worst.max(off.abs());
        }
        assert!(worst > 0.0);
    }

    #[test]
    fn the_5090s_products_are_within_a_tenth_of_what_gives_their_depth() {
        for (k, measured) in [(1024.0, 339.0), (4096.0, 388.9)] {
            let off = BF16_GEFORCE.at(k) * 419.0 / measured - 1.0;
            assert!(off.abs() < 0.10, "K = {k}: {:.0} % off", 100.0 * off);
        }
    }
}
