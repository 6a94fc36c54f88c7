//! A plan for programs.

use serde_json::{Map, Value, json};
use shoal_plan::planner::{advice::binding, bill};

use super::{Planned, snapshots};

pub(super) fn value(planned: &Planned<'_>) -> Value {
    let (answer, layout) = (&planned.answer, &planned.layout);
    let (candidate, prediction) = (&answer.candidate, &answer.prediction);
    let rig = |card: usize| planned.question.fleet.rigs[layout.rig(card)].name.clone();
    let cells = prediction.cells.iter().map(|cell| {
        json!({
            "rig": rig(cell.card), "stage": cell.stage, "column": cell.column, "capacity_bytes": cell.capacity,
            "weights_bytes": cell.bytes.weights, "masters_bytes": cell.bytes.masters,
            "average_bytes": cell.bytes.average, "gradients_bytes": cell.bytes.gradients,
            "moments_bytes": cell.bytes.moments, "activations_bytes": cell.bytes.activations,
            "buffers_bytes": cell.buffers,
        })
    });
    let kinds: Map<String, Value> = {
        let named = prediction.kinds.named().into_iter();
        named
            .map(|(name, seconds)| (format!("{}_s", name.replace(' ', "_")), seconds.into()))
            .collect()
    };
    let bill = bill(&planned.question, layout, answer, planned.tokens);
    let reasons = binding(&planned.question, layout, answer);
    let names = planned.question.fleet.rigs.iter().map(|rig| rig.name.clone());
    let bound_by: Map<String, Value> =
        names.zip(reasons).map(|(name, reason)| (name, reason.into())).collect();
    let mut sent = Map::new();
    for (machine, bytes) in &prediction.bytes_out {
        let name = &planned.question.fleet.rigs[layout.network.rig(*machine)].name;
        let before = sent.get(name).and_then(Value::as_f64).unwrap_or(0.0);
        sent.insert(name.clone(), (before + bytes).into());
    }
    let relayed = super::report::relayed(planned).into_iter().map(|((a, b), (relay, bytes))| {
        json!({ "rigs": [a, b], "through": relay, "bytes_a_step": bytes })
    });
    let rejected = answer.rejected.iter().map(|other| {
        json!({ "grid": other.candidate.grid.to_string(), "step_s": other.step_s, "why": other.why })
    });
    let trials = planned.trials.iter().map(|trial| {
        json!({ "change": trial.change, "tokens_per_s": trial.tokens_per_s, "grid": trial.grid })
    });
    json!({
        "grid": candidate.grid, "schedule": candidate.schedule, "chunks": candidate.chunks,
        "microbatch": candidate.microbatch, "layers": candidate.layers, "experts": candidate.experts,
        "shares": candidate.shares, "hosts": candidate.cards.iter().map(|card| rig(*card)).collect::<Vec<_>>(),
        "idle": answer.idle.iter().map(|card| rig(*card)).collect::<Vec<_>>(),
        "step_s": prediction.step_s, "bound_s": answer.bound_s, "step_by_kind": kinds,
        "tokens_per_s": prediction.tokens_per_s, "mfu": prediction.mfu,
        "memory": cells.collect::<Vec<_>>(), "bound_by": bound_by, "bytes_sent_a_step": sent,
        "relayed": relayed.collect::<Vec<_>>(),
        "snapshots": snapshots::value(planned), "tokens": planned.tokens,
        "bill": {
            "currency": planned.question.fleet.currency, "days": bill.days, "gpu_hours": bill.gpu_hours,
            "kwh": bill.kwh, "electricity": bill.electricity, "rent": bill.rent,
        },
        "rejected": rejected.collect::<Vec<_>>(), "what_if": trials.collect::<Vec<_>>(),
    })
}
