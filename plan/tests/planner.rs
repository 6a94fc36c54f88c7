//! The planner as a whole: plans that fit, the bound below them, and what is said where nothing fits.

#[path = "planner/deepseek.rs"]
mod deepseek;
#[path = "planner/fleets.rs"]
mod fleets;

use std::collections::BTreeSet;

use shoal_plan::cost::Software;
use shoal_plan::fleet::{Fleet, Rig, what_if};
use shoal_plan::job::Job;
use shoal_plan::planner::snapshots::{COST_MAX, Price, price};
use shoal_plan::planner::{Answer, Layout, Question, advice, bill, equal_split, plan, predict};

const SMALL: &str = "{preset: moonlight, num_hidden_layers: 10, n_routed_experts: 16, hidden_size: 1024, vocab_size: 32768}";

fn question<'a>(job: &'a Job, fleet: &'a Fleet) -> Question<'a> {
    Question { job, fleet, software: Software::SHOAL }
}

/// Whatever holds for every plan.
fn check(job: &Job, fleet: &Fleet, answer: &Answer) {
    let (candidate, prediction) = (&answer.candidate, &answer.prediction);
    assert_eq!(candidate.layers.iter().sum::<u32>(), job.model.num_hidden_layers);
    assert_eq!(candidate.experts.iter().sum::<u32>(), job.model.n_routed_experts);
    assert_eq!(candidate.shares.iter().sum::<u32>(), job.training.batch);
    assert!(!candidate.layers.contains(&0) && !candidate.experts.contains(&0));
    assert_eq!(candidate.cards.len() as u32, candidate.grid.n_cells());
    let used: BTreeSet<usize> = candidate.cards.iter().copied().collect();
    assert_eq!(used.len(), candidate.cards.len(), "a card has one cell");
    assert_eq!(used.len() + answer.idle.len(), fleet.gpus() as usize);
    assert!(prediction.cells.iter().all(|cell| cell.total() <= cell.capacity));
    let kinds: f64 = prediction.kinds.named().iter().map(|(_, seconds)| seconds).sum();
    assert!((kinds - prediction.step_s).abs() < 1e-9 * kinds, "{kinds} {}", prediction.step_s);
    assert!(answer.bound_s <= prediction.step_s, "{} {}", answer.bound_s, prediction.step_s);
    assert!((0.0..1.5).contains(&prediction.mfu), "{}", prediction.mfu);
    assert!(answer.rejected.iter().all(|other| other.step_s >= prediction.step_s));
}

#[test]
fn plans_of_random_fleets_fit_and_are_no_slower_than_equal_split() {
    for seed in [22, 23, 25] {
        let fleet = fleets::random(seed);
        let job = fleets::job_for(&fleet);
        let question = question(&job, &fleet);
        let answer = plan(&question).unwrap();
        check(&job, &fleet, &answer);
        assert_eq!(predict(&question, &Layout::of(&fleet), &answer.candidate), answer.prediction);
        if let Some((_, equal)) = equal_split(&question) {
            assert!(answer.prediction.step_s <= equal.step_s, "fleet {seed}");
        }
    }
}

#[test]
fn snapshots_of_random_fleets_have_copies_on_other_rigs_and_a_price() {
    for seed in [22, 23, 25] {
        let fleet = fleets::random(seed);
        let job = fleets::job_for(&fleet);
        let (question, layout) = (question(&job, &fleet), Layout::of(&fleet));
        let answer = plan(&question).unwrap();
        let prediction = &answer.prediction;
        for (machine, bytes) in &prediction.bytes_out {
            let to = prediction.bytes_between.iter().filter(|((from, _), _)| from == machine);
            let sum: f64 = to.map(|(_, bytes)| bytes).sum();
            assert!((sum - bytes).abs() <= 1e-9 * bytes, "fleet {seed}: {sum} {bytes}");
        }
        let of = |copies: u32| {
            let mut job = job.clone();
            job.checkpoint.memory.copies = copies;
            let question = Question { job: &job, ..question };
            price(&question, &layout, &answer.candidate, prediction)
        };
        let all: Vec<Price> = (0..3).map(of).collect();
        for pair in all.windows(2) {
            assert!(pair[0].every_min <= pair[1].every_min, "fleet {seed}");
        }
        let (one, rigs) = (&all[1], all[1].machines.len());
        assert!(rigs < 2 || one.lacking == 0, "fleet {seed}");
        // What is sent arrives, and leaves by the links that are priced.
        let sent: u64 = one.machines.iter().map(|one| one.sent).sum();
        assert_eq!(sent, one.machines.iter().map(|one| one.others).sum::<u64>());
        assert_eq!(sent == 0, one.links.is_empty());
        assert!(one.links.iter().all(|link| link.seconds <= one.arrive_s), "fleet {seed}");
        assert!(one.cost(one.every_min) <= COST_MAX * 1.000_001, "fleet {seed}");
        assert!(one.arrive_s <= one.step_s * one.every_min as f64 * 1.000_001);
    }
}

#[test]
fn unequal_cards_get_unequal_work() {
    let job = fleets::job(SMALL, 64, 2048);
    let mut rigs = vec![Rig::new("slow", "RTX3090", 1), Rig::new("fast", "RTX5090", 1)];
    for rig in &mut rigs {
        rig.nic = "10Gbit/s".parse().unwrap();
    }
    let fleet = Fleet::of(rigs);
    let answer = plan(&question(&job, &fleet)).unwrap();
    check(&job, &fleet, &answer);
    assert!(answer.exact);
    let reasons = advice::binding(&question(&job, &fleet), &Layout::of(&fleet), &answer);
    assert_eq!(reasons.len(), 2);
    assert!(reasons.iter().all(|reason| !reason.is_empty()));
}

#[test]
fn a_slower_network_never_makes_a_plan_faster() {
    let job = fleets::job(SMALL, 64, 2048);
    let fleet = Fleet::of((0..3).map(|i| Rig::new(&format!("r{i}"), "RTX4070", 1)).collect());
    let speed = |rate: &str| {
        let fleet = what_if(&fleet, &format!("link.home={rate}")).unwrap();
        plan(&question(&job, &fleet)).unwrap().prediction.tokens_per_s
    };
    let speeds = ["100Mbit/s", "1Gbit/s", "10Gbit/s", "100Gbit/s"].map(speed);
    assert!(speeds.windows(2).all(|pair| pair[0] <= pair[1] * 1.001), "{speeds:?}");
}

#[test]
fn what_does_not_fit_says_what_is_missing_and_what_would_help() {
    let job = fleets::job("moonlight", 64, 4096);
    let fleet = Fleet::of(vec![Rig::new("a", "RTX4090", 4)]);
    let misfit = plan(&question(&job, &fleet)).unwrap_err();
    assert!(misfit.lacking_bytes > 0 && misfit.rig == "a", "{misfit}");
    assert!(advice::lacking(&misfit).contains("GiB"));
    let remedies = advice::remedies(&question(&job, &fleet));
    assert!(remedies.iter().any(|remedy| remedy.contains("more like a")), "{remedies:?}");
}

#[test]
fn the_bill_adds_up() {
    let job = fleets::job(SMALL, 64, 2048);
    let mut fleet = Fleet::of(vec![Rig::new("a", "RTX4090", 1)]);
    fleet.rigs[0].rent_per_gpu_hour = 0.5;
    fleet.rigs[0].availability = 0.5;
    fleet.sites.get_mut("home").unwrap().electricity_per_kwh = 0.4;
    let question = question(&job, &fleet);
    let answer = plan(&question).unwrap();
    let bill =
        bill(&question, &Layout::of(&fleet), &answer, 3600.0 * answer.prediction.tokens_per_s);
    assert!((bill.gpu_hours - 1.0).abs() < 1e-9 && (bill.rent - 0.5).abs() < 1e-9);
    assert!((bill.kwh - 0.55).abs() < 1e-9 && (bill.electricity - 0.22).abs() < 1e-9);
    assert!((bill.days - 2.0 / 24.0).abs() < 1e-9);
}

/// The figure that `docs/planner.md` reports, 23 % below the published one: whoever changes the model of cost sees it move.
/// While the pipeline fills and drains nothing hides the exchanges of DeepSeek-V3's run.
#[test]
fn deepseek_v3s_gpu_hours_are_as_documented() {
    let job = fleets::job("deepseek-v3", 15360, 4096);
    let (prediction, hours) = deepseek::prediction(&job);
    assert!((hours / 138.8e3 - 1.0).abs() < 0.005, "{hours}");
    let error = hours / deepseek::PUBLISHED_GPU_HOURS - 1.0;
    assert!((-0.24..-0.22).contains(&error), "{error}");
    let hidden = Software { pairs: false, ..Software::DEEPSEEK };
    let fleet = deepseek::cluster();
    let other = Question { job: &job, fleet: &fleet, software: hidden };
    let other = predict(&other, &Layout::of(&fleet), &deepseek::candidate(&job));
    // Under ZB-H1, where everything hides, no other stage helps the last one, which has the head: 148.8K.
    assert!(other.step_s > prediction.step_s && other.kinds.exchange < prediction.kinds.exchange);
    let kinds: f64 = prediction.kinds.named().iter().map(|(_, seconds)| seconds).sum();
    assert!((kinds - prediction.step_s).abs() < 1e-9 * kinds, "{kinds} {}", prediction.step_s);
    // Its activations need recomputing, which is not modelled yet.
    assert!(prediction.short().is_some());
    assert!(fleet.gpus() == 2048 && !fleets::is_mixed(&fleet));
}
