//! The reasons, in words: what binds each rig, why another grid is slower, and what would make a fleet fit.

use super::search::fits;
use super::{Answer, Kinds, Layout, Misfit, Prediction, Question};
use crate::fleet::{Fleet, Rig};
use crate::job::{Job, Precision};
use crate::numerics::Moments;

impl Kinds {
    /// The kinds by name.
    pub fn named(&self) -> [(&'static str, f64); 6] {
        [
            ("compute", self.compute),
            ("token exchange", self.exchange),
            ("messages", self.messages),
            ("bubble", self.bubble),
            ("gradient sums", self.sums),
            ("update", self.update),
        ]
    }
}

/// Why a prediction is slower than the chosen one: the kind that grows most.
pub(super) fn why_slower(chosen: &Prediction, other: &Prediction) -> String {
    let pairs = chosen.kinds.named().into_iter().zip(other.kinds.named());
    let grown = pairs.map(|((name, chosen), (_, other))| (name, other - chosen));
    let (name, by) = grown.max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are kinds");
    let times = other.step_s / chosen.step_s;
    format!("{times:.2} x as long, most of it {name} (+{} a step)", seconds(by))
}

/// What keeps each rig from doing more, by rig of the fleet.
pub fn binding(question: &Question<'_>, layout: &Layout<'_>, answer: &Answer) -> Vec<String> {
    let (candidate, prediction) = (&answer.candidate, &answer.prediction);
    let most = prediction.busy.iter().copied().fold(0.0, f64::max);
    let of_rig = |rig: usize| {
        let at = candidate.cards.iter().position(|card| layout.rig(*card) == rig);
        let Some(cell) = at else {
            return "nothing: without it the step is shorter, or it fits into no grid".to_owned();
        };
        let stages = |cell: usize| cell / candidate.grid.columns() as usize;
        let own = candidate.cards.iter().enumerate().filter(|(_, card)| layout.rig(**card) == rig);
        let busiest = own
            .map(|(cell, _)| stages(cell))
            .max_by(|a, b| prediction.busy[*a].total_cmp(&prediction.busy[*b]));
        let stage = busiest.unwrap_or_else(|| stages(cell));
        let full = prediction.cells.iter().filter(|cell| layout.rig(cell.card) == rig);
        let full = full.map(|cell| cell.total() as f64 / cell.capacity as f64).fold(0.0, f64::max);
        let busy = prediction.busy[stage] / prediction.step_s;
        if full > 0.9 {
            format!("memory: {:.0} % full", 100.0 * full)
        } else if prediction.busy[stage] >= 0.97 * most {
            let kinds = &prediction.kinds;
            let what = if kinds.exchange > kinds.compute { "token exchange" } else { "compute" };
            format!(
                "{what}: its stage {stage} is the slowest, at work {:.0} % of the step",
                100.0 * busy
            )
        } else {
            let slowest = prediction.busy.iter().position(|busy| *busy >= most).unwrap_or(0);
            format!(
                "whole layers: stage {stage} works {:.0} % of the step and waits for stage {slowest}",
                100.0 * busy
            )
        }
    };
    (0..question.fleet.rigs.len()).map(of_rig).collect()
}

/// Changes with which a job that does not fit would fit, from the cheapest. Each was looked at as `search::fits` does.
pub fn remedies(question: &Question<'_>) -> Vec<String> {
    let fits = |job: &Job, fleet: &Fleet| fits(&Question { job, fleet, ..*question });
    let mut remedies = Vec::new();
    let mut job = question.job.clone();
    if job.training.precision != Precision::Fp8
        || job.training.moments != Moments::Bf16
        || job.training.ema > 0.0
    {
        (job.training.precision, job.training.moments, job.training.ema) =
            (Precision::Fp8, Moments::Bf16, 0.0);
        if fits(&job, question.fleet) {
            remedies
                .push("precision: fp8, moments: bf16, ema: 0: fewer bytes a parameter".to_owned());
        }
    }
    let mut sequence = question.job.training.sequence / 2;
    while remedies.is_empty() && sequence >= 512 {
        job.training.sequence = sequence;
        if fits(&job, question.fleet) {
            remedies.push(format!("sequence: {sequence}, as activations are what is too large"));
        }
        sequence /= 2;
    }
    // More of what is there: by power drawn, then by card.
    let mut kinds: Vec<&Rig> = question.fleet.rigs.iter().collect();
    kinds.sort_by(|a, b| a.gpu.cmp(&b.gpu).then(b.count.cmp(&a.count)));
    kinds.dedup_by(|a, b| a.gpu == b.gpu);
    let mut more: Vec<(f64, String)> = Vec::new();
    for rig in kinds {
        for machines in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256] {
            let mut fleet = question.fleet.clone();
            fleet.rigs.push(Rig { name: "more".to_owned(), machines, ..rig.clone() });
            if fits(question.job, &fleet) {
                let cards = rig.count * machines;
                let watts = f64::from(cards) * rig.card().watts;
                let what = format!(
                    "{machines} more like {}: {cards} x {}, {:.1} kW",
                    rig.name,
                    rig.gpu,
                    watts / 1000.0
                );
                more.push((watts, what));
                break;
            }
        }
    }
    more.sort_by(|a, b| a.0.total_cmp(&b.0));
    remedies.extend(more.into_iter().map(|(_, what)| what));
    remedies
}

/// What is lacking, in words.
pub fn lacking(misfit: &Misfit) -> String {
    let gib = misfit.lacking_bytes as f64 / f64::from(1 << 30);
    format!("in the grid that comes nearest, a card of {} lacks {gib:.1} GiB", misfit.rig)
}

/// A length of time as people say it.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.2} s"),
        s => format!("{:.1} min", s / 60.0),
    }
}
