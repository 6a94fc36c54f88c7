//! Workers of a run are killed for as long as one likes: how fast it recovers, and what it still gets
//! done in comparison with a run that is left alone.

use std::fs;
use std::time::Duration;

use crate::Dice;
use crate::place::{Place, signal};
use crate::watched::{Event, LIVENESS_SECONDS, Watched, equal_losses, now, sleep, unix_now};

/// The preset `tiny` on four workers, for longer than any soak.
const SETTINGS: &str = "    steps: 10000000
    lr_schedule: constant
    precision: fp8
    batch: 8
    sequence: 128
    microbatch: 2
  evaluation:
    every: 0
  checkpoint:
    every: 200
    memory:
      every: 10
  parallelism:
    stages: 2
    expert_shards: 2
  workers:
    local: 4
    threads: 1
    restarts: 100000
";

/// How often it is looked whether a step was committed: seldom, for the same cores train.
const LOOK: Duration = Duration::from_millis(200);

/// What happened while workers were killed.
struct Churned {
    /// When, in seconds since 1970.
    kills: Vec<f64>,
    seconds: f64,
    steps: u64,
    /// The longest time without a new step in force.
    gap: f64,
}

/// Kills one worker after another, `gaps` apart, for `time`; panics where a promise is broken.
pub(crate) fn run(name: &str, time: Duration, gaps: (Duration, Duration), seed: u64) {
    println!("{name}: seed {seed}, {} s", time.as_secs());
    let place = Place::new(name, "");
    let job = place.0.join("job.yaml");
    let manifest = fs::read_to_string(&job).unwrap();
    let data = manifest.split_once("  data:").unwrap().1.split_once("  training:").unwrap().0;
    let head = manifest.split_once("  model:").unwrap().0;
    let ours = format!("{head}  model: tiny\n  data:{data}  training:\n{SETTINGS}");
    fs::write(&job, ours).unwrap();

    let calm = Watched::start(&place, "calm", &[]);
    let (before, since) = (calm.steps(), now());
    sleep((time / 4).max(Duration::from_secs(15)));
    let calm_rate = (calm.steps() - before) as f64 / since.elapsed().as_secs_f64();
    println!("  fault-free           {calm_rate:.2} steps/s");
    calm.stop();

    let mut churned_run = Watched::start(&place, "churn", &[]);
    let churned = churn(&mut churned_run, time, gaps, &mut Dice(seed));
    let events = churned_run.events();
    let recovered: Vec<f64> =
        events.iter().filter(|event| event.kind == "recovered").map(|event| event.time).collect();
    let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    let kills = churned.kills.iter();
    let times = kills.filter_map(|kill| first_after(*kill, &recovered, &churned.kills)).collect();
    let stalls = events.iter().filter(|event| event.kind == "moved").map(stall).collect();
    let account = churned_run.stop();
    let equal = equal_losses(&place, "calm", "churn");

    let rate = churned.steps as f64 / churned.seconds;
    println!("  with faults          {rate:.2} steps/s, goodput {:.1} %", 100.0 * rate / calm_rate);
    println!("  kills                {}", churned.kills.len());
    println!(
        "  recoveries           {}, moves at a step's edge {}, quarantines {}, pauses {}",
        recovered.len(),
        count("moved"),
        count("quarantined"),
        count("paused")
    );
    spread("kill to first step ", times);
    spread("stall of a move    ", stalls);
    println!("  longest wait         {:.1} s without a new step", churned.gap);
    println!(
        "  ledger               {} steps, each once; {} committed steps were done again, and came out the same",
        account.steps, account.taken_back
    );
    println!(
        "  equal, bit for bit   the losses of the first {equal} steps and of the fault-free run"
    );
    assert!(
        churned.gap < f64::from(LIVENESS_SECONDS),
        "{:.1} s without a new step: {name} --seed {seed}",
        churned.gap
    );
}

/// Of a move at a step's edge, as the run tells it.
fn stall(moved: &Event) -> f64 {
    let (_, seconds) = moved.fact.split_once("stalled ").unwrap();
    seconds.trim_end_matches(" s").parse().unwrap()
}

fn spread(what: &str, mut seconds: Vec<f64>) {
    seconds.sort_by(f64::total_cmp);
    let Some(most) = seconds.last() else { return };
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    let (p50, p99, n) = (at(0.5), at(0.99), seconds.len());
    println!("  {what}  p50 {p50:.2} s, p99 {p99:.2} s, most {most:.2} s, of {n}");
}

/// Seconds from a kill to the recovery that ends it, unless another kill came first.
fn first_after(kill: f64, recovered: &[f64], kills: &[f64]) -> Option<f64> {
    let next = kills.iter().copied().find(|other| *other > kill).unwrap_or(f64::INFINITY);
    recovered.iter().find(|at| **at > kill && **at <= next).map(|at| at - kill)
}

fn churn(
    run: &mut Watched<'_>,
    time: Duration,
    gaps: (Duration, Duration),
    dice: &mut Dice,
) -> Churned {
    let (start, steps) = (now(), run.steps());
    let (mut next, mut kills) = (dice.between(gaps), Vec::new());
    let (mut newest, mut stepped, mut gap) = (steps, now(), 0.0_f64);
    while start.elapsed() < time {
        if start.elapsed() >= next {
            next += dice.between(gaps);
            let workers = run.workers();
            if !workers.is_empty() {
                kills.push(unix_now());
                signal(workers[dice.below(workers.len())].1, "KILL");
            }
        }
        sleep(LOOK);
        if let Some(status) = run.launch.child.try_wait().unwrap() {
            let told = fs::read_to_string(&run.launch.err).unwrap();
            panic!("{status} while workers were killed:\n{told}");
        }
        let done = run.steps();
        if done > newest {
            (newest, stepped) = (done, now());
        }
        gap = gap.max(stepped.elapsed().as_secs_f64());
    }
    let seconds = start.elapsed().as_secs_f64();
    // Steps that will be done again are no gain; what is taken back later is seen later.
    Churned { kills, seconds, steps: run.steps().saturating_sub(steps), gap }
}
