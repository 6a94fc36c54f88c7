//! Trains a preset in one process on made-up text and prints where the time of a step goes:
//!
//! `cargo run --release -p shoal-model --example step -- tiny bf16 8 256 20`
//!
//! Preset, precision, sequences, tokens of each, steps. `MTP` in the environment sets the depth of
//! multi-token prediction (default 0, to compare with trainers that have none); threads follow
//! `RAYON_NUM_THREADS`. Times are medians over the steps; the first two steps warm up.
#![expect(clippy::print_stdout, reason = "it is what the example is for")]

use std::error::Error;

use shoal_kernels::adamw::AdamStep;
use shoal_model::{Alone, BatchTokens, Cut, LossScale, Stage, StageOptions, Update};
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

/// Parts of a step, in order.
const PARTS: [&str; 4] = ["forward", "backward, input half", "backward, weight half", "update"];

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Runs one step; returns its loss per token and the seconds of each part.
#[expect(clippy::disallowed_methods, reason = "measuring is reading the clock")]
fn step(
    stage: &mut Stage,
    batch: &BatchTokens,
    number: u64,
) -> Result<(f64, [f64; 4]), Box<dyn Error>> {
    let tokens = batch.batch().inputs.len() as f64;
    let weight = 1.0 / tokens as f32;
    let scale = LossScale { main: weight, mtp: 0.3 * weight, balance: 1e-4 * weight };
    let start = std::time::Instant::now();
    stage.forward(0, &batch.batch(), None, &scale, &mut Alone)?;
    let forward = start.elapsed().as_secs_f64();
    stage.backward_input(0, None, &mut Alone)?;
    let input = start.elapsed().as_secs_f64();
    stage.backward_weight(0)?;
    let weight = start.elapsed().as_secs_f64();
    let norms = stage.sum_of_squares();
    let norm = (norms.dense + norms.expert + norms.embedding).sqrt() as f32;
    let adam = AdamStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: number,
        grad_scale: 1.0 / norm.max(1.0),
    };
    stage.update(&Update { adam, bias_speed: 1e-3 });
    let all = start.elapsed().as_secs_f64();
    let loss = stage.take_losses().main_sum / tokens;
    Ok((loss, [forward, input - forward, weight - input, all - weight]))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let preset = args.next().unwrap_or_else(|| "tiny".into());
    let mut config = ModelConfig::preset(&preset)
        .ok_or_else(|| format!("no preset {preset}; wanted {}", ModelConfig::PRESETS.join(", ")))?;
    config.num_nextn_predict_layers = std::env::var("MTP").map_or(Ok(0), |depth| depth.parse())?;
    let name = args.next().unwrap_or_else(|| "bf16".into());
    let precision = Precision::ALL
        .into_iter()
        .find(|precision| precision.to_string() == name)
        .ok_or_else(|| format!("no precision {name}; wanted fp8, bf16 or f32"))?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse());
    let (sequences, tokens, steps) = (number(8)?, number(256)?, number(20)?);

    let mut stage = Stage::new(Cut::whole(config.clone()), &StageOptions::new(precision, 1));
    // Text that can be learned: each token follows from the one before, or is drawn anew.
    let mut state = 1_u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut next = move |last: u32| match random() % 4 {
        0 => random() % config.vocab_size,
        _ => (last * 5 + 1) % config.vocab_size,
    };
    let (mut parts, mut all): ([Vec<f64>; 4], Vec<f64>) = Default::default();
    let mut losses = Vec::new();
    for at in 0..steps + 2 {
        let mut windows = vec![vec![0; tokens + 1]; sequences];
        for window in &mut windows {
            for at in 0..tokens {
                window[at + 1] = next(window[at]);
            }
        }
        let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
        let batch = BatchTokens::from_windows(&windows)?;
        let (loss, times) = step(&mut stage, &batch, at as u64 + 1)?;
        losses.push(loss);
        if at >= 2 {
            parts.iter_mut().zip(times).for_each(|(all, time)| all.push(time));
            all.push(times.iter().sum());
        }
    }
    let whole = median(all);
    println!(
        "{preset} {precision}, {sequences} x {tokens} tokens: {:.0} tokens/s, loss {:.4} to {:.4}",
        (sequences * tokens) as f64 / whole,
        losses[0],
        losses[losses.len() - 1],
    );
    for (name, times) in PARTS.into_iter().zip(parts) {
        let time = median(times);
        println!("  {name:<22} {:>8.2} ms {:>5.1} %", time * 1e3, time / whole * 100.0);
    }
    Ok(())
}
