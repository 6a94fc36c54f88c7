//! What one cell holds and sends in each precision, counted from its buffers and messages:
//!
//! `cargo run --release -p shoal-model --example memory -- tiny 8 128`
//!
//! Preset, sequences of the microbatch, tokens of each. The whole model is in one cell, whose
//! messages to its experts have the size that they have between machines.

use std::error::Error;

use shoal_model::{
    Alone, BatchTokens, Cut, Exchange, ExchangeError, LossScale, Memory, Stage, StageOptions,
};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

/// Counts what goes through it, by leg: dispatch and combine take turns.
#[derive(Default)]
struct Counted {
    calls: usize,
    dispatch: usize,
    combine: usize,
}

impl Exchange for Counted {
    fn size(&self) -> usize {
        Alone.size()
    }

    fn rank(&self) -> usize {
        Alone.rank()
    }

    fn all_to_all(&mut self, outgoing: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let bytes: usize = outgoing.iter().map(Vec::len).sum();
        *(if self.calls.is_multiple_of(2) { &mut self.dispatch } else { &mut self.combine }) +=
            bytes;
        self.calls += 1;
        Alone.all_to_all(outgoing)
    }
}

/// Memory after forward and between the halves of backward, and the bytes of one microbatch on the wire.
fn measure(
    config: &ModelConfig,
    precision: Precision,
    (sequences, tokens): (usize, usize),
) -> Result<(Memory, Counted), Box<dyn Error>> {
    let mut stage = Stage::new(Cut::whole(config.clone()), &StageOptions::new(precision, 1));
    let token = |at: usize| (at as u32).wrapping_mul(2_654_435_761) % config.vocab_size;
    let ids: Vec<u32> = (0..sequences * (tokens + 1)).map(token).collect();
    let windows: Vec<&[u32]> = ids.chunks(tokens + 1).collect();
    let batch = BatchTokens::from_windows(&windows)?;
    let scale = LossScale { main: 1e-3, mtp: 1e-4, balance: 1e-4 };
    let mut wire = Counted::default();
    stage.forward(0, &batch.batch(), None, &scale, &mut wire)?;
    let mut memory = stage.memory();
    stage.backward_input(0, None, &mut wire)?;
    memory.deferred = stage.memory().deferred;
    Ok((memory, wire))
}

#[expect(clippy::print_stdout, reason = "it is what the example is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let preset = args.next().unwrap_or_else(|| "tiny".into());
    let config = ModelConfig::preset(&preset)
        .ok_or_else(|| format!("no preset {preset}; wanted {}", ModelConfig::PRESETS.join(", ")))?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let shape = (number(8)?, number(128)?);
    println!("{preset}, one microbatch of {} sequences of {} tokens; bytes\n", shape.0, shape.1);
    let [fp8, bf16, f32] = Precision::ALL.map(|precision| measure(&config, precision, shape));
    let [fp8, bf16, f32] = [fp8?, bf16?, f32?];
    println!("| kind | fp8 | bf16 | f32 | fp8 / f32 |\n|---|---|---|---|---|");
    let row = |kind: &str, [a, b, c]: [usize; 3]| {
        if c > 0 {
            println!("| {kind} | {a} | {b} | {c} | {:.3} |", a as f64 / c as f64);
        }
    };
    let all = [fp8.0, bf16.0, f32.0];
    for (at, (kind, _)) in all[0].kinds().into_iter().enumerate() {
        row(kind, all.map(|memory| memory.kinds()[at].1));
    }
    let cached = all.map(|memory| memory.cached() - memory.deferred);
    row("all cached", cached);
    row("everything, at forward's end", all.map(|memory| memory.total() - memory.deferred));
    row("sent to experts", [fp8.1.dispatch, bf16.1.dispatch, f32.1.dispatch]);
    row("returned by experts", [fp8.1.combine, bf16.1.combine, f32.1.combine]);
    Ok(())
}
