//! Writes `docs/what-can-i-train.md`: what gaming cards can train, by number of cards and network, as the planner predicts.
//!
//! `cargo run --release -p shoal-plan --example what_can_i_train > docs/what-can-i-train.md`

#![expect(clippy::print_stdout, reason = "an example prints")]

#[path = "../tests/planner/fleets.rs"]
#[expect(dead_code, reason = "random fleets are others' business")]
mod fleets;

use shoal_plan::arithmetic::parameters;
use shoal_plan::cost::Software;
use shoal_plan::fleet::{Fleet, Rig};
use shoal_plan::job::Job;
use shoal_plan::planner::{Answer, Layout, Question, bill, plan};

/// DeepSeek-style models, from the smallest: as a manifest has them.
const MODELS: [&str; 9] = [
    "{preset: moonlight, num_hidden_layers: 12, n_routed_experts: 16, hidden_size: 768, moe_intermediate_size: 512, \
     intermediate_size: 3072, vocab_size: 32768}",
    "{preset: moonlight, num_hidden_layers: 16, n_routed_experts: 32, hidden_size: 1024, moe_intermediate_size: 704, \
     intermediate_size: 4096, vocab_size: 65536}",
    "{preset: moonlight, num_hidden_layers: 20, n_routed_experts: 32, hidden_size: 1536, moe_intermediate_size: 1024, \
     intermediate_size: 6144, vocab_size: 65536}",
    "{preset: moonlight, num_hidden_layers: 27, n_routed_experts: 32}",
    "moonlight",
    "{preset: moonlight, num_hidden_layers: 36, hidden_size: 3072, moe_intermediate_size: 1536, num_attention_heads: 24}",
    "{preset: moonlight, num_hidden_layers: 44, hidden_size: 4096, n_routed_experts: 96, moe_intermediate_size: 1536, \
     num_attention_heads: 32}",
    "{preset: deepseek-v3, num_hidden_layers: 60, hidden_size: 5120, n_routed_experts: 160, moe_intermediate_size: 1536, \
     n_group: 8, topk_group: 3}",
    "deepseek-v3",
];

const CARDS: [(&str, f64); 3] = [("RTX3090", 0.2), ("RTX4090", 0.4), ("RTX5090", 0.7)];
const COUNTS: [u32; 8] = [1, 2, 4, 8, 16, 64, 256, 2048];
const NETWORKS: [&str; 3] = ["1Gbit/s", "10Gbit/s", "25Gbit/s"];

/// Price of a kilowatt-hour.
const ELECTRICITY: f64 = 0.30;

/// Tokens for each parameter that works on a token: Hoffmann et al. 2022, arXiv:2203.15556, of dense models.
const CHINCHILLA: f64 = 20.0;

const DAYS_OF_A_YEAR: f64 = 365.0;

fn main() {
    println!("{HEAD}");
    for (gpu, rent) in CARDS {
        println!("\n## {gpu}\n");
        println!(
            "| cards | largest model that fits | network | grid | step | spent on | tokens/s | days | electricity | rent |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        for count in COUNTS {
            rows(gpu, rent, count);
        }
    }
    println!("\n## 671 B parameters, 37 B at work\n\n{HUGE}\n");
    println!(
        "| cards | sequence | network | grid | tokens/s | days to 14.8 x 10^12 tokens | electricity | rent |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (gpu, rent) in CARDS {
        for count in [512, 1024, 2048, 4096] {
            huge(gpu, rent, count);
        }
    }
    println!("\n{FOOT}");
}

/// Rigs of four cards, or fewer.
fn fleet(gpu: &str, rent: f64, count: u32, network: &str) -> Fleet {
    let mut rig = Rig::new("rig", gpu, count.min(4));
    rig.machines = count.div_ceil(4);
    rig.nic = network.parse().expect("a rate");
    rig.rent_per_gpu_hour = rent;
    // Eight channels of DDR4 or four of DDR5: what four cards in one machine come with.
    rig.host_memory_gb_s = if count < 4 { rig.host_memory_gb_s } else { 120.0 };
    let mut fleet = Fleet::of(vec![rig]);
    fleet.sites.values_mut().for_each(|site| site.electricity_per_kwh = ELECTRICITY);
    fleet
}

/// A batch of a million tokens, and more on many cards, as nothing else keeps them at work.
fn job(model: &str, count: u32) -> Job {
    fleets::job(model, 256.max(4 * count), 4096)
}

fn planned(job: &Job, fleet: &Fleet) -> Option<Answer> {
    plan(&Question { job, fleet, software: Software::SHOAL }).ok()
}

fn billions(parameters: u64) -> String {
    format!("{:.1} B", parameters as f64 / 1e9)
}

fn rows(gpu: &str, rent: f64, count: u32) {
    // Whether a model fits does not depend on the network.
    let network = NETWORKS[NETWORKS.len() - 1];
    let fits =
        |model: &&&str| planned(&job(model, count), &fleet(gpu, rent, count, network)).is_some();
    let Some(model) = MODELS.iter().rev().find(fits) else {
        println!("| {count} | none of these | | | | | | | | |");
        return;
    };
    let job = job(model, count);
    let sizes = parameters(&job.model);
    let name = format!("{} ({} at work)", billions(sizes.total), billions(sizes.active));
    // One machine sends nothing over its network.
    let networks = if count <= 4 { &NETWORKS[2..] } else { &NETWORKS[..] };
    for network in networks {
        let fleet = fleet(gpu, rent, count, network);
        let Some(answer) = planned(&job, &fleet) else { continue };
        let question = Question { job: &job, fleet: &fleet, software: Software::SHOAL };
        let tokens = CHINCHILLA * sizes.active as f64;
        let bill = bill(&question, &Layout::of(&fleet), &answer, tokens);
        let prediction = &answer.prediction;
        let most = prediction.kinds.named().into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let (what, seconds) = most.expect("there are kinds");
        let long = if bill.days > DAYS_OF_A_YEAR { " **(more than a year)**" } else { "" };
        let shown = if count <= 4 { "none" } else { network };
        println!(
            "| {count} | {name} | {shown} | {} | {:.1} s | {what} {:.0} % | {:.0} | {:.1}{long} | {:.0} | {:.0} |",
            answer.candidate.grid,
            prediction.step_s,
            100.0 * seconds / prediction.step_s,
            prediction.tokens_per_s,
            bill.days,
            bill.electricity,
            bill.rent
        );
    }
}

fn huge(gpu: &str, rent: f64, count: u32) {
    let network = NETWORKS[NETWORKS.len() - 1];
    let of = |sequence: u32| fleets::job("deepseek-v3", 4 * count * 4096 / sequence, sequence);
    let fits =
        |sequence: &u32| planned(&of(*sequence), &fleet(gpu, rent, count, network)).is_some();
    let Some(sequence) = [4096, 2048, 1024].into_iter().find(fits) else {
        println!("| {count} {gpu} | does not fit | | | | | | |");
        return;
    };
    let job = of(sequence);
    for network in NETWORKS {
        let fleet = fleet(gpu, rent, count, network);
        let Some(answer) = planned(&job, &fleet) else { continue };
        let question = Question { job: &job, fleet: &fleet, software: Software::SHOAL };
        let bill = bill(&question, &Layout::of(&fleet), &answer, 14.8e12);
        println!(
            "| {count} {gpu} | {sequence} | {network} | {} | {:.0} | {:.0} | {:.1} M | {:.1} M |",
            answer.candidate.grid,
            answer.prediction.tokens_per_s,
            bill.days,
            bill.electricity / 1e6,
            bill.rent / 1e6
        );
    }
}

const HEAD: &str = "# What can I train?

Generated by `cargo run --release -p shoal-plan --example what_can_i_train > docs/what-can-i-train.md`. It is what the planner
*predicts* ([planner.md](planner.md)) for a trainer on GPUs. **Nobody has trained on such rigs with shoal yet** nor held these figures
against a run, and the kernels in them are as good as the best published ones: take them as limits, not as promises.
What does not fit here is what no grid was found for; above 128 cards few patterns are tried, and it is no proof.

Nine DeepSeek-style models are tried, from 0.3 to 671 B parameters, in FP8 (BF16 on an RTX 3090, which has no FP8), all states on
the cards, `spec.training.recompute: none` and no offload, which the trainer does not have. Rigs have four cards without a direct way to each other
and one network interface. Batches are 256 sequences of 4096 tokens, or four for each card where that is more. Days are to 20
tokens for each parameter *at work* (arXiv:2203.15556, which is about dense models), with every card there all the time.
Electricity is 0.30 a kWh at board power; rent is assumed at 0.20, 0.40 and 0.70 an hour of an RTX 3090, 4090 and 5090. Both
are in the same currency.";

const HUGE: &str = "What DeepSeek-V3's network would take on gaming cards, to the tokens it was trained on. Its own run took 2.664 M hours of
H800s (arXiv:2412.19437), 54 days on 2048 of them. Sequences of 4096 tokens, or half or a quarter of that where these do not fit:
without recomputed blocks the first stages have the activations of a whole pipeline of microbatches.";

const FOOT: &str = "## Where it stops making sense

- Where *spent on* says messages, token exchange or gradient sums, the cards wait for the network: a faster network, or fewer
  cards, does more for the money than more cards.
- More cards let a larger model fit, which is then trained on more tokens: the days grow. With the same model they fall; ask
  `shoal plan`.
- A model that fills the cards needs few replicas with many stages, and then idles: the step of 64 cards at 1 Gbit/s may be no
  shorter than that of 16 with a smaller model. Cards that find no work are left out of a grid.
- Memory is what stops one to four cards: 13 bytes a parameter in FP8 stay on the cards, beside the activations of every microbatch
  under way.";
