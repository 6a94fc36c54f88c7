//! The fuzz targets' bodies on a stable compiler, for a bounded number of inputs: valid files changed
//! byte by byte and field by field. The seed is fixed, so a failure comes again.

use std::fs;
use std::path::Path;

use shoal_kernels::compare::Random;

#[path = "../../fuzz/bodies.rs"]
mod bodies;

/// Numbers that break what does not check.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "1.5",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "null",
    "[]",
    "\"x\"",
];

/// Runs a body on each seed, on its beginnings, and on `n` changed copies of it.
fn run(body: fn(&[u8]), seeds: &[Vec<u8>], n: usize) {
    let mut random = Random::new(17);
    for seed in seeds {
        body(seed);
        for at in 0..seed.len().min(4096) {
            body(&seed[..at]);
        }
        for _ in 0..n {
            let mut bytes = seed.clone();
            for _ in 0..=draw(&mut random, 3) {
                change(&mut bytes, &mut random);
            }
            body(&bytes);
        }
    }
}

fn draw(random: &mut Random, n: usize) -> usize {
    (random.uniform(1, 0.0, 1.0)[0] * n as f32) as usize % n.max(1)
}

/// One change: a bit, a byte, a stretch taken out or doubled, a number exchanged.
fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return bytes.push(b'{');
    }
    let at = draw(random, bytes.len());
    match draw(random, 6) {
        0 => bytes[at] ^= 1 << draw(random, 8),
        1 => bytes[at] = b"\0\xff\"{}[]:,.-09a"[draw(random, 14)],
        2 => drop(bytes.drain(at..(at + 1 + draw(random, 40)).min(bytes.len()))),
        3 => {
            let end = (at + 1 + draw(random, 200)).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            let to = draw(random, bytes.len());
            bytes.splice(to..to, piece);
        }
        _ => exchange_number(bytes, at, NUMBERS[draw(random, NUMBERS.len())]),
    }
}

/// Writes another value in place of the first number after `at`.
fn exchange_number(bytes: &mut Vec<u8>, at: usize, number: &str) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    if let Some(start) = bytes[at..].iter().position(is_digit).map(|offset| at + offset) {
        let end = bytes[start..].iter().position(|byte| !is_digit(byte));
        let end = end.map_or(bytes.len(), |offset| start + offset);
        bytes.splice(start..end, number.bytes());
    }
}

/// A file of three tensors; the header's length is made to fit after each change by the caller.
fn file() -> Vec<u8> {
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b.c":{"dtype":"BF16","shape":[2,3],"data_offsets":[8,20]},"d":{"dtype":"F8_E4M3","shape":[1,4],"data_offsets":[20,24]}} "#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(&[7; 24]);
    bytes
}

#[test]
fn changed_files_of_tensors_are_refused_or_read_as_the_formats_own_reader_does() {
    run(bodies::safetensors_header, &[file()], 20_000);
    // The length always fits the header here, so that more of the changes get past it.
    let refitted: fn(&[u8]) = |bytes| {
        let header = bytes.get(8..bytes.len().saturating_sub(24)).unwrap_or_default();
        let mut whole = (header.len() as u64).to_le_bytes().to_vec();
        whole.extend_from_slice(header);
        whole.extend_from_slice(&[7; 24]);
        bodies::safetensors_header(&whole);
    };
    run(refitted, &[file()], 40_000);
}

#[test]
fn changed_indices_are_refused_or_name_files_of_the_same_directory() {
    let index = br#"{"metadata":{"total_size":12},"weight_map":{"a.weight":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let paths = br#"{"weight_map":{"a":"../x.safetensors","b":"/x/y.safetensors"}}"#;
    run(bodies::index_json, &[index.to_vec(), paths.to_vec()], 20_000);
}

#[test]
fn changed_configs_are_refused_or_describe_a_model_that_can_be_listed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let mut seeds: Vec<Vec<u8>> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    seeds.sort();
    assert_eq!(seeds.len(), 3);
    let small = br#"{"model_type":"deepseek_v3","vocab_size":16,"hidden_size":8,"intermediate_size":8,"moe_intermediate_size":4,"num_hidden_layers":2,"num_nextn_predict_layers":1,"num_attention_heads":2,"n_shared_experts":1,"n_routed_experts":4,"num_experts_per_tok":2,"n_group":2,"topk_group":1,"routed_scaling_factor":1.0,"first_k_dense_replace":1,"q_lora_rank":4,"kv_lora_rank":4,"qk_nope_head_dim":4,"qk_rope_head_dim":4,"v_head_dim":4,"rms_norm_eps":1e-6,"rope_theta":10000,"max_position_embeddings":64}"#;
    seeds.push(small.to_vec());
    run(bodies::config_json, &seeds, 2_000);
}
