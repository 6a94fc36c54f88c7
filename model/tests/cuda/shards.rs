//! Two expert shards that trade rows, one on the device and one on the CPU.

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

/// The gradients of both cells: their own, with shard 0 on the device or all on the CPU.
fn gradients(on: Option<&Device>, precision: Precision) -> Vec<Vec<f32>> {
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
                    if let Some(device) = on.filter(|_| shard == 0) {
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

pub(crate) fn mixed_group(device: &Device) {
    for precision in [Precision::Bf16, Precision::Fp8] {
        let mixed = gradients(Some(device), precision);
        let cpu = gradients(None, precision);
        let exact = gradients(None, Precision::F32);
        for (i, got) in mixed.iter().enumerate() {
            assert_near(&format!("{precision}, gradients {i}"), got, (&cpu[i], &exact[i]));
        }
    }
}
