//! The core without C: a fake host memory, real PTX.

use std::sync::{Arc, Mutex};

use super::*;
use crate::order::Temper;

mod memory;
mod order;

const PTX: &str = include_str!("../../tests/cudarc/probe.ptx");

/// Elements of the usual buffer.
const N: usize = 256;

/// Host memory that is one array; addresses count from 4096.
#[derive(Clone, Default)]
struct FakeHost(Arc<Mutex<Vec<u8>>>);

const FIRST: usize = 4096;

impl HostMemory for FakeHost {
    fn read(&self, address: usize, into: &mut [u8]) {
        let from = address - FIRST;
        into.copy_from_slice(&self.0.lock().unwrap()[from..from + into.len()]);
    }

    fn write(&mut self, address: usize, from: &[u8]) {
        let to = address - FIRST;
        self.0.lock().unwrap()[to..to + from.len()].copy_from_slice(from);
    }

    fn allocate(&mut self, bytes: usize) -> Option<usize> {
        let mut memory = self.0.lock().unwrap();
        let start = memory.len();
        memory.resize(start + bytes, 0);
        Some(FIRST + start)
    }

    fn free(&mut self, _address: usize, _bytes: usize) {}
}

impl FakeHost {
    /// New memory of floats.
    fn floats(&mut self, value: f32, count: usize) -> usize {
        let address = self.allocate(count * 4).unwrap();
        self.set(address, value, count);
        address
    }

    fn set(&mut self, address: usize, value: f32, count: usize) {
        self.write(address, &value.to_le_bytes().repeat(count));
    }

    fn get(&self, address: usize, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; count * 4];
        self.read(address, &mut bytes);
        let words = bytes.chunks_exact(4);
        words.map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

/// A driver with one open card, its context current, and the kernels loaded.
struct Bench {
    driver: Driver,
    host: FakeHost,
    context: u64,
    module: u64,
}

impl Bench {
    fn new(pairs: &[(&str, &str)]) -> Self {
        let settings = Settings::read(|name| {
            let name = name.strip_prefix("SHOAL_STANDIN_")?;
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        });
        let host = FakeHost::default();
        let mut driver = Driver::new(settings.unwrap(), Box::new(host.clone()));
        driver.init().unwrap();
        let context = driver.retain(0).unwrap();
        let module = driver.load_module(context, PTX).unwrap();
        Self { driver, host, context, module }
    }

    fn seeded(seed: u64, temper: Temper) -> Self {
        let order = match temper {
            Temper::Lazy => "lazy",
            Temper::Eager => "eager",
            Temper::Mixed => "mixed",
        };
        Self::new(&[("SEED", &seed.to_string()), ("ORDER", order)])
    }

    /// A stream that does not wait for the default stream.
    fn stream(&mut self) -> u64 {
        self.driver.create_stream(self.context, 1).unwrap()
    }

    fn floats(&mut self, count: usize) -> u64 {
        self.driver.allocate(self.context, count * 4).unwrap()
    }

    fn launch(&mut self, stream: u64, kernel: &str, params: Vec<u8>) -> Result<(), Status> {
        let function = self.driver.function(self.context, self.module, kernel).unwrap();
        let shape = Shape { grid: [2, 1, 1], block: [128, 1, 1], dynamic_shared: 0 };
        self.driver.launch(self.context, stream, function, shape, params)
    }

    /// `out = value`.
    fn fill(&mut self, stream: u64, out: u64, value: f32) {
        let mut params = out.to_le_bytes().to_vec();
        params.extend(value.to_le_bytes());
        params.extend((N as u32).to_le_bytes());
        self.launch(stream, "fill", params).unwrap();
    }

    /// `out = input * factor`.
    fn scale(&mut self, stream: u64, out: u64, input: u64, factor: f32) {
        let mut params = out.to_le_bytes().to_vec();
        params.extend(input.to_le_bytes());
        params.extend(factor.to_le_bytes());
        params.extend((N as u32).to_le_bytes());
        self.launch(stream, "scale", params).unwrap();
    }

    /// Waits for a stream.
    fn synchronize(&mut self, stream: u64) -> Result<(), Status> {
        let goals = self.driver.stream_goals(self.context, stream)?;
        self.wait(&goals)
    }

    fn wait(&mut self, goals: &Goals) -> Result<(), Status> {
        while self.driver.advance(&goals.work) != Progress::Done {}
        self.driver.waited(goals.device)
    }

    /// Downloads to pageable memory.
    fn download(&mut self, stream: u64, from: u64) -> Vec<f32> {
        let to = self.host.floats(0.0, N);
        let goals = self.driver.download(self.context, stream, to, from, N * 4).unwrap();
        self.wait(&goals).unwrap();
        self.host.get(to, N)
    }

    fn found(&self, check: Check) -> usize {
        self.driver.report().found(check).len()
    }
}

fn is_all(values: &[f32], want: f32) -> bool {
    values.iter().all(|value| value.to_bits() == want.to_bits())
}

/// The tempers times some seeds.
fn draws(seeds: u64) -> impl Iterator<Item = (u64, Temper)> {
    let tempers = [Temper::Lazy, Temper::Eager, Temper::Mixed];
    (0..seeds).flat_map(move |seed| tempers.map(|temper| (seed, temper)))
}
