//! The figures of `docs/planner.md`: thirty random fleets, DeepSeek-V3's run, and ten thousand cards.
//!
//! `cargo run --release -p shoal-plan --example planner [fleets [SEED...]|deepseek|torchtitan|many]`

#![expect(clippy::print_stdout, reason = "an example prints")]

#[path = "../tests/planner/deepseek.rs"]
mod deepseek;
#[path = "../tests/planner/fleets.rs"]
mod fleets;

use shoal_plan::cost::Software;
use shoal_plan::fleet::{Fleet, Rig};
use shoal_plan::job::Job;
use shoal_plan::planner::{Answer, Question, equal_split, plan};

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("fleets") => thirty(),
        Some("deepseek") => deepseek_v3(),
        Some("torchtitan") => torchtitan(),
        Some("many") => many(),
        _ => {
            thirty();
            deepseek_v3();
            torchtitan();
            many();
        }
    }
}

fn thirty() {
    println!("| fleet | rigs | cards | mixed | grid | step | bound | gap | equal split | times |");
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let (mut gaps, mut times) = (Vec::new(), Vec::new());
    let seeds: Vec<u64> = std::env::args().skip(2).filter_map(|seed| seed.parse().ok()).collect();
    let seeds = if seeds.is_empty() { (1..=30).collect() } else { seeds };
    for seed in seeds {
        let fleet = fleets::random(seed);
        let job = fleets::job_for(&fleet);
        let question = Question { job: &job, fleet: &fleet, software: Software::SHOAL };
        let (rigs, cards) = (fleet.rigs.len(), fleet.gpus());
        let mixed = if fleets::is_mixed(&fleet) { "yes" } else { "no" };
        let Ok(answer) = plan(&question) else {
            println!("| {seed} | {rigs} | {cards} | {mixed} | none fits | | | | | |");
            continue;
        };
        let step = answer.prediction.step_s;
        let gap = step / answer.bound_s - 1.0;
        gaps.push(gap);
        let equal = equal_split(&question).map(|(_, equal)| equal.step_s);
        let (equal, ratio) = match equal {
            Some(equal) => {
                if mixed == "yes" {
                    times.push(equal / step);
                }
                (format!("{equal:.1} s"), format!("{:.2}", equal / step))
            }
            None => ("does not fit".to_owned(), String::new()),
        };
        let candidate = &answer.candidate;
        println!(
            "| {seed} | {rigs} | {cards} | {mixed} | {} {} | {step:.1} s | {:.1} s | {:.0} % | {equal} | {ratio} |",
            candidate.grid,
            candidate.schedule,
            answer.bound_s,
            100.0 * gap
        );
    }
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    gaps.sort_by(f64::total_cmp);
    let within = gaps.iter().filter(|gap| **gap <= 0.1).count();
    println!(
        "\ngap to the bound: mean {:.0} %, median {:.0} %, {within} of {} within 10 %; against equal split on {} mixed \
         fleets where it fits: {:.2} x on average",
        100.0 * mean(&gaps),
        100.0 * gaps[gaps.len() / 2],
        gaps.len(),
        times.len(),
        mean(&times)
    );
}

fn deepseek_v3() {
    let job = fleets::job("deepseek-v3", 15360, 4096);
    let (prediction, hours) = deepseek::prediction(&job);
    println!(
        "DeepSeek-V3 on 2048 H800: step {:.2} s, {:.1} billion tokens a day",
        prediction.step_s,
        prediction.tokens_per_s * 86400.0 / 1e9
    );
    let published = deepseek::PUBLISHED_GPU_HOURS;
    println!(
        "{:.1}K GPU hours for 10^12 tokens, published {:.0}K: {:+.1} %",
        hours / 1e3,
        published / 1e3,
        100.0 * (hours / published - 1.0)
    );
    println!(
        "14.8e12 tokens at 2 USD an hour: {:.3} million USD, published 5.328",
        hours * 14.8 * 2.0 / 1e6
    );
    println!("MFU {:.1} % of BF16's peak", 100.0 * prediction.mfu);
    for (name, seconds) in prediction.kinds.named() {
        println!("  {name}: {seconds:.2} s");
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let worst = prediction.cells.iter().max_by_key(|cell| cell.total()).expect("cells");
    println!("fullest card: {:.1} of {:.1} GiB", gib(worst.total()), gib(worst.capacity));
}

fn torchtitan() {
    let job = fleets::job_in("bf16", "deepseek-v3", 2048, 4096);
    let Some(answer) = on_b200(&job) else {
        println!("DeepSeek-V3's network on 256 B200 in BF16: nothing fits");
        return;
    };
    let each = answer.prediction.tokens_per_s / 256.0;
    let published = TORCHTITAN_TOKENS_PER_S;
    println!(
        "DeepSeek-V3's network on 256 B200 in BF16: grid {}, {each:.0} tokens/s a GPU; published {published:.0}: {:+.0} %",
        answer.candidate.grid,
        100.0 * (each / published - 1.0)
    );
}

fn many() {
    let mut rigs: Vec<Rig> = Vec::new();
    for (name, gpu, machines) in [("a", "RTX4090", 500), ("b", "RTX5090", 250), ("c", "H100", 500)]
    {
        let mut rig = Rig::new(name, gpu, 8);
        rig.machines = machines;
        rig.nic = "100Gbit/s".parse().expect("a rate");
        rigs.push(rig);
    }
    let fleet = Fleet::of(rigs);
    let job = fleets::job("deepseek-v3", 16384, 4096);
    let question = Question { job: &job, fleet: &fleet, software: Software::SHOAL };
    match plan(&question) {
        Ok(answer) => println!(
            "{} cards: {}, step {:.1} s, bound {:.1} s, {} candidates",
            fleet.gpus(),
            answer.candidate.grid,
            answer.prediction.step_s,
            answer.bound_s,
            answer.considered
        ),
        Err(misfit) => println!("{} cards: {misfit}", fleet.gpus()),
    }
}

/// Tokens a second and GPU of torchtitan with DeepEP on 256 B200 in BF16, the same network: PyTorch and Nebius, 2026.
const TORCHTITAN_TOKENS_PER_S: f64 = 859.0;

/// The planner's own choice on such a cluster. Their parallelism and batch are not in what was read, so the batch is a
/// guess: 2048 sequences.
fn on_b200(job: &Job) -> Option<Answer> {
    let mut rig = Rig::new("b200", "B200", 8);
    (rig.machines, rig.rdma) = (32, true);
    rig.nic = "3200Gbit/s".parse().expect("a rate");
    let fleet = Fleet::of(vec![rig]);
    plan(&Question { job, fleet: &fleet, software: Software::SHOAL }).ok()
}
