//! Two expert shards that trade rows, on the device, on the CPU, and one on each; and what a peer must not send.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use shoal_kernels::cuda::Device;
use shoal_model::{Class, Cut, Exchange, ExchangeError, Stage};
use shoal_plan::job::Precision;

use super::cases::{ARENA, SCALE, assert_near, gpu, options, small, tokens};

/// A group of two in one process.
struct Pair {
    rank: usize,
    to: Sender<Vec<u8>>,
    from: Receiver<Vec<u8>>,
}

impl Exchange for Pair {
    fn size(&self) -> usize {
        2
    }

    fn rank(&self) -> usize {
        self.rank
    }

    fn all_to_all(&mut self, mut outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let other = 1 - self.rank;
        let error = |error| ExchangeError(Box::new(error));
        self.to.send(std::mem::take(&mut outgoing[other])).unwrap();
        outgoing[other] = self.from.recv().map_err(error)?;
        Ok(outgoing)
    }
}

/// The gradients of both cells: their own, with the first few shards on the device and the others on the CPU.
fn gradients((device, on_it): (&Device, usize), precision: Precision) -> Vec<Vec<f32>> {
    let (to_1, from_0) = channel();
    let (to_0, from_1) = channel();
    let ends = [Pair { rank: 0, to: to_1, from: from_1 }, Pair { rank: 1, to: to_0, from: from_0 }];
    let config = small();
    thread::scope(|scope| {
        let cells: Vec<_> = ends
            .into_iter()
            .map(|mut end| {
                let config = &config;
                scope.spawn(move || {
                    let shard = end.rank;
                    let whole = Cut::whole(config.clone());
                    let cut = Cut { experts: vec![0..3, 3..4], shard, ..whole };
                    let mut stage = Stage::new(cut, &options(precision));
                    if shard < on_it {
                        stage.move_to(gpu(device, ARENA)).unwrap();
                    }
                    let batch = tokens(config, 5 + shard as u64);
                    stage.forward(0, &batch.batch(), None, &SCALE, &mut end).unwrap();
                    stage.backward(0, None, &mut end).unwrap();
                    stage.settle().unwrap();
                    [Class::Dense, Class::Expert]
                        .map(|class| stage.parameters().gradients(class).to_vec())
                })
            })
            .collect();
        cells.into_iter().flat_map(|cell| cell.join().unwrap()).collect()
    })
}

fn group(device: &Device, on_it: usize, precision: Precision) {
    let got = gradients((device, on_it), precision);
    let cpu = gradients((device, 0), precision);
    let exact = gradients((device, 0), Precision::F32);
    for (i, got) in got.iter().enumerate() {
        assert_near(&format!("{precision}, gradients {i}"), got, (&cpu[i], &exact[i]));
    }
}

pub(crate) fn mixed_group(device: &Device) {
    for precision in [Precision::Bf16, Precision::Fp8] {
        group(device, 1, precision);
    }
}

pub(crate) fn on_the_gpu(device: &Device) {
    group(device, 2, Precision::Fp8);
}

/// A group of two of which the other sends what it is told to, whatever it is sent.
struct Told(Vec<u8>);

impl Exchange for Told {
    fn size(&self) -> usize {
        2
    }

    fn rank(&self) -> usize {
        0
    }

    fn all_to_all(&mut self, _: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(vec![Vec::new(), self.0.clone()])
    }
}

/// One row in FP8: counts, 136 codes, 2 scales, and for each of its pairs a row, an expert and a gate.
fn message(rows: u32, scales: [u8; 2], pairs: &[(u32, u32)]) -> Vec<u8> {
    let gates = pairs.iter().map(|_| 0.5_f32.to_bits());
    let (of_rows, experts) = (pairs.iter().map(|pair| pair.0), pairs.iter().map(|pair| pair.1));
    let lists = of_rows.chain(experts).chain(gates).flat_map(u32::to_le_bytes);
    let counts = [rows, pairs.len() as u32].into_iter().flat_map(u32::to_le_bytes);
    counts.chain([56; 136]).chain(scales).chain(lists).collect()
}

/// What makes no sense is refused by name before it gets to the device.
pub(crate) fn strange_messages(device: &Device) {
    let config = small();
    let cut = Cut { experts: vec![0..3, 3..4], shard: 0, ..Cut::whole(config.clone()) };
    let mut stage = Stage::new(cut, &options(Precision::Fp8));
    stage.move_to(gpu(device, ARENA)).unwrap();
    let batch = tokens(&config, 5);
    let mut check = |message: Vec<u8>, want: &str| {
        let error = stage.forward(0, &batch.batch(), None, &SCALE, &mut Told(message)).unwrap_err();
        assert!(error.to_string().contains(want), "{error}, want {want}");
    };
    check(vec![0; 7], "7 bytes, want at least 8");
    check(message(2, [127; 2], &[(0, 1)]), "158 bytes for 2 rows and 1 pairs, want 296");
    check(message(1, [127, 0], &[(0, 1)]), "row 0 with the scale 2^-127");
    check(message(1, [127; 2], &[(0, 3)]), "row 0 for expert 3, want 0..3");
    check(message(1, [127; 2], &[(1, 0)]), "pair 0 of row 1");
    check(message(1, [127; 2], &[]), "pairs of 0 rows, want 1");
    check(message(1, [127; 2], &[(0, 0), (0, 1), (0, 2)]), "3 pairs of 1 rows");
    // A good one goes on, and what comes back then is not what was sent.
    check(message(1, [127; 2], &[(0, 0), (0, 2)]), "want ");
}
