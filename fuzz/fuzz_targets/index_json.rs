//! Bytes of anybody as a `model.safetensors.index.json`.

#![no_main]
#![expect(dead_code, reason = "each target has one body")]

use libfuzzer_sys::fuzz_target;

#[path = "../bodies.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::index_json(bytes));
