//! A plan as people read it.

use std::collections::BTreeMap;
use std::fmt::Write;

use shoal_plan::arithmetic;
use shoal_plan::planner::advice::{binding, seconds};
use shoal_plan::planner::{CellUse, bill};

use super::{Planned, Trial, snapshots};
use crate::progress::short;
use crate::show::{count, table};

pub(super) fn text(planned: &Planned<'_>) -> String {
    let sections = [
        head(planned),
        rigs(planned),
        ways(planned),
        step(planned),
        snapshots::text(planned),
        bill_of(planned),
        others(planned),
        manifest(planned),
    ];
    sections.into_iter().filter(|section| !section.is_empty()).collect::<Vec<_>>().join("\n")
}

fn head(planned: &Planned<'_>) -> String {
    let (job, fleet, answer) = (planned.question.job, planned.question.fleet, &planned.answer);
    let parameters = arithmetic::parameters(&job.model);
    let candidate = &answer.candidate;
    let prediction = &answer.prediction;
    let mut text = format!(
        "{}: {} parameters, {} at work on each token, {}; batches of {} tokens\n",
        job.name,
        count(parameters.total),
        count(parameters.active),
        job.training.precision,
        short(f64::from(job.training.batch) * f64::from(job.training.sequence)),
    );
    let _ = writeln!(
        text,
        "on {} GPUs of {} rigs: grid {} (stages x expert shards x replicas), {}, {} sequences at a time",
        fleet.gpus(),
        fleet.rigs.len(),
        candidate.grid,
        candidate.schedule,
        candidate.microbatch
    );
    let gap = 100.0 * (prediction.step_s / answer.bound_s - 1.0);
    let _ = writeln!(
        text,
        "{} a step, {} tokens/s, {:.1} % of the BF16 peak; the lower bound is {}, and this is {gap:.0} % above it",
        seconds(prediction.step_s),
        short(prediction.tokens_per_s),
        100.0 * prediction.mfu,
        seconds(answer.bound_s),
    );
    let how =
        if answer.exact { "every order of expert groups" } else { "several patterns of cards" };
    let _ =
        writeln!(text, "{} candidates: {how}, the best simulated and improved", answer.considered);
    text
}

/// Memory by kind of the fullest cell of each rig, and what binds it.
fn rigs(planned: &Planned<'_>) -> String {
    let (layout, answer) = (&planned.layout, &planned.answer);
    let names = [
        "rig",
        "cards",
        "stages",
        "weights",
        "masters",
        "gradients",
        "moments",
        "activations",
        "buffers",
        "all",
        "of",
        "sent/step",
        "bound by",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    let reasons = binding(&planned.question, layout, answer);
    let columns = answer.candidate.grid.columns() as usize;
    for ((at, rig), reason) in planned.question.fleet.rigs.iter().enumerate().zip(reasons) {
        let cells: Vec<usize> = (0..answer.candidate.cards.len())
            .filter(|cell| layout.rig(answer.candidate.cards[*cell]) == at)
            .collect();
        let mut row =
            vec![rig.name.clone(), format!("{} of {} {}", cells.len(), rig.gpus(), rig.gpu)];
        let used = answer.prediction.cells.iter().filter(|cell| layout.rig(cell.card) == at);
        let fullest = used.max_by_key(|cell| cell.total());
        let (Some(first), Some(last)) = (cells.first(), cells.last()) else {
            row.extend(std::iter::repeat_n(String::new(), 10));
            row.push(reason);
            rows.push(row);
            continue;
        };
        let (first, last) = (first / columns, last / columns);
        row.push(if first == last { first.to_string() } else { format!("{first}-{last}") });
        row.extend(fullest.map_or_else(|| vec!["-".to_owned(); 8], memory));
        let sent = answer
            .prediction
            .bytes_out
            .iter()
            .filter(|(machine, _)| layout.network.rig(**machine) == at);
        row.push(format!("{}B", short(sent.map(|(_, bytes)| *bytes).sum())));
        row.push(reason);
        rows.push(row);
    }
    format!("Memory of the fullest card of each rig, GiB:\n{}", table(&rows))
}

/// Pairs of rigs that exchange data and do not both dial.
pub(super) fn relayed(planned: &Planned<'_>) -> BTreeMap<(String, String), (String, f64)> {
    let network = &planned.layout.network;
    let mut pairs: BTreeMap<(String, String), (String, f64)> = BTreeMap::new();
    for ((a, b), bytes) in &planned.answer.prediction.bytes_between {
        let Some(relay) = network.relay(*a, *b) else { continue };
        let (a, b) = (network.rig_name(*a).to_owned(), network.rig_name(*b).to_owned());
        let ends = if a <= b { (a, b) } else { (b, a) };
        let relay = network.relay_name(relay).to_owned();
        pairs.entry(ends).or_insert((relay, 0.0)).1 += bytes;
    }
    pairs
}

fn ways(planned: &Planned<'_>) -> String {
    let pairs = relayed(planned);
    if pairs.is_empty() {
        return String::new();
    }
    let mut rows = vec![["pair", "data goes", "a step"].map(str::to_owned).to_vec()];
    for ((a, b), (relay, bytes)) in pairs {
        let sent = format!("{}B", short(bytes));
        rows.push(vec![format!("{a} and {b}"), format!("through {relay}"), sent]);
    }
    let head = "Rigs that cannot dial each other; a relay carries each byte in and out:";
    format!("{head}\n{}", table(&rows))
}

fn memory(cell: &CellUse) -> Vec<String> {
    let bytes = &cell.bytes;
    let kinds = [
        bytes.weights,
        bytes.masters + bytes.average,
        bytes.gradients,
        bytes.moments,
        bytes.activations,
        cell.buffers,
        cell.total(),
        cell.capacity,
    ];
    kinds.map(|bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 30))).to_vec()
}

fn step(planned: &Planned<'_>) -> String {
    let prediction = &planned.answer.prediction;
    let mut text = "A step, at the busiest stage of the slowest replica:\n".to_owned();
    let row = |(name, length): (&str, f64)| {
        vec![
            name.to_owned(),
            seconds(length),
            format!("{:.0} %", 100.0 * length / prediction.step_s),
        ]
    };
    text += &table(&prediction.kinds.named().map(row));
    text
}

fn bill_of(planned: &Planned<'_>) -> String {
    let bill = bill(&planned.question, &planned.layout, &planned.answer, planned.tokens);
    let currency = &planned.question.fleet.currency;
    let mut text = format!(
        "To {} tokens: {:.1} days, {} GPU hours, {} kWh",
        short(planned.tokens).replace('G', "B"),
        bill.days,
        short(bill.gpu_hours),
        short(bill.kwh)
    );
    if bill.electricity + bill.rent > 0.0 {
        let _ = write!(
            text,
            "; electricity {} {currency}, rent {} {currency}",
            short(bill.electricity),
            short(bill.rent)
        );
    }
    text + "\n"
}

fn others(planned: &Planned<'_>) -> String {
    let mut text = String::new();
    if !planned.answer.rejected.is_empty() {
        text += "Not chosen:\n";
        let row = |other: &shoal_plan::planner::Rejected| {
            vec![
                other.candidate.grid.to_string(),
                other.candidate.schedule.to_string(),
                other.why.clone(),
            ]
        };
        text += &table(&planned.answer.rejected.iter().map(row).collect::<Vec<_>>());
    }
    if !planned.answer.idle.is_empty() {
        let _ = writeln!(text, "{} GPUs have no cell", planned.answer.idle.len());
    }
    if !planned.trials.is_empty() {
        text += "What if:\n";
        let now = planned.answer.prediction.tokens_per_s;
        let row = |trial: &Trial| match trial.tokens_per_s {
            Some(speed) => {
                let change = format!("{:+.0} %", 100.0 * (speed / now - 1.0));
                vec![
                    trial.change.clone(),
                    format!("{} tokens/s", short(speed)),
                    change,
                    trial.grid.clone(),
                ]
            }
            None => vec![trial.change.clone(), "nothing fits".to_owned()],
        };
        text += &table(&planned.trials.iter().map(row).collect::<Vec<_>>());
    }
    text
}

/// The plan as the manifest has it.
fn manifest(planned: &Planned<'_>) -> String {
    let candidate = &planned.answer.candidate;
    let list = |all: &[u32]| {
        if all.windows(2).all(|pair| pair[0] == pair[1]) {
            "[]".to_owned()
        } else {
            format!("{all:?}")
        }
    };
    format!(
        "In the manifest:\n  training: {{microbatch: {}}}{}\n  parallelism: {{stages: {}, expert_shards: {}, replicas: {}, \
         schedule: {}, chunks: {},\n    layers: {:?}, experts: {}, shares: {}}}",
        candidate.microbatch,
        snapshots::manifest(planned),
        candidate.grid.stages,
        candidate.grid.expert_shards,
        candidate.grid.replicas,
        candidate.schedule,
        candidate.chunks,
        candidate.layers,
        list(&candidate.experts),
        list(&candidate.shares),
    )
}
