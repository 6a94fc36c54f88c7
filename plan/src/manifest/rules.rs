//! What must hold between the values of a manifest. One function a rule; add yours to the list.

mod learning_rate;

use super::complaint::{Complaint, quote};
use super::tree::Node;
use crate::job::Job;

/// Cells of the largest grid. Keeps placement's exact search short.
const CELLS_MAX: u32 = 1024;

/// Values that bytes can take: tokens are bytes so far.
const BYTE_VOCABULARY: u32 = 256;

/// A rule that does not hold.
struct Broken {
    path: &'static str,
    what: String,
    help: String,
}

type Rule = fn(&Facts<'_>) -> Option<Broken>;

/// What a rule may look at.
struct Facts<'a> {
    job: &'a Job,
    root: &'a Node,
}

/// These come first: the others divide.
const BASICS: [Rule; 3] = [name_is_plain, model_has_experts, tokens_are_bytes];

const RELATIONS: [Rule; 16] = [
    groups_divide_experts,
    groups_can_be_scored,
    kept_groups_exist,
    kept_groups_have_enough_experts,
    a_layer_has_experts,
    rope_turns_pairs,
    shards_divide_experts,
    stages_have_layers,
    grid_is_not_huge,
    workers_have_cells,
    sequence_has_positions,
    cells_divide_batch,
    learning_rate::warmup_ends,
    learning_rate::decay_fraction_is_read,
    learning_rate::final_ratio_is_read,
    files_are_named,
];

/// Checks all rules and returns every one that is broken.
pub(super) fn check(job: &Job, root: &Node) -> Result<(), Vec<Complaint>> {
    let facts = Facts { job, root };
    let basics = BASICS.iter().filter_map(|rule| rule(&facts));
    let bounds = bounds(job).into_iter().filter_map(|bound| bound.broken(root));
    facts.refuse(basics.chain(bounds).collect())?;
    facts.refuse(RELATIONS.iter().filter_map(|rule| rule(&facts)).collect())
}

impl Facts<'_> {
    fn refuse(&self, broken: Vec<Broken>) -> Result<(), Vec<Complaint>> {
        if broken.is_empty() {
            return Ok(());
        }
        let complaint = |Broken { path, mut what, help }: Broken| {
            let (at, given) = self.root.locate(path);
            if !given {
                what += " (its default)";
            }
            Complaint::new(at, path, what).help(help)
        };
        Err(broken.into_iter().map(complaint).collect())
    }
}

/// The values a number may have.
struct Bound {
    path: &'static str,
    value: f64,
    low: f64,
    high: f64,
    /// `low` itself is too low.
    above: bool,
    /// `high` itself is too high.
    below: bool,
}

/// From `low` to `high`, both allowed.
fn within(path: &'static str, value: impl Into<f64>, low: f64, high: f64) -> Bound {
    Bound { path, value: value.into(), low, high, above: false, below: false }
}

impl Bound {
    fn above(self) -> Self {
        Self { above: true, ..self }
    }

    fn below(self) -> Self {
        Self { below: true, ..self }
    }

    fn broken(&self, root: &Node) -> Option<Broken> {
        let Self { path, value, low, high, above, below } = *self;
        let low_met = if above { value > low } else { value >= low };
        let high_met = if below { value < high } else { value <= high };
        // NaN meets neither.
        if low_met && high_met {
            return None;
        }
        let start = if above { "above" } else { "from" };
        let end = if below { "and below" } else { "to" };
        let got = root.at_path(path).map_or_else(|| value.to_string(), |it| it.value.to_string());
        let what = format!("wanted a number {start} {low} {end} {high}, got {got}");
        Some(Broken { path, what, help: String::new() })
    }
}

/// Bounds of every number. Upper bounds keep counts of parameters and bytes within 64 bits.
fn bounds(job: &Job) -> Vec<Bound> {
    let (training, data, grid) = (&job.training, &job.data, job.grid);
    let whole = |path: &'static str, value: u32, low: f64| within(path, value, low, 131_072.0);
    let mut bounds = vec![
        within("spec.data.max_mb", data.bytes_max as f64 / 1e6, 0.0, 1e9).above(),
        within("spec.data.heldout", data.heldout_fraction, 0.0, 1.0).above().below(),
        within("spec.training.steps", training.steps as f64, 1.0, 1e9),
        whole("spec.training.batch", training.batch, 1.0),
        whole("spec.training.sequence", training.sequence, 2.0),
        whole("spec.training.microbatch", training.microbatch, 1.0),
        within("spec.training.lr", training.lr, 0.0, 1.0).above(),
        within("spec.training.lr_final_ratio", training.lr_final_ratio, 0.0, 1.0),
        within("spec.training.lr_decay_fraction", training.lr_decay_fraction, 0.0, 1.0).above(),
        within("spec.training.beta1", training.beta1, 0.0, 1.0).below(),
        within("spec.training.beta2", training.beta2, 0.0, 1.0).below(),
        within("spec.training.epsilon", training.epsilon, 0.0, 1.0).above(),
        within("spec.training.weight_decay", training.weight_decay, 0.0, 10.0),
        within("spec.training.clip", training.clip, 0.0, 1e6).above(),
        within("spec.training.mtp_weight", training.mtp_weight, 0.0, 10.0),
        within("spec.training.balance_weight", training.balance_weight, 0.0, 10.0),
        within("spec.training.bias_speed", training.bias_speed, 0.0, 1.0),
        whole("spec.parallelism.stages", grid.stages, 1.0),
        whole("spec.parallelism.expert_shards", grid.expert_shards, 1.0),
        whole("spec.parallelism.replicas", grid.replicas, 1.0),
        whole("spec.workers.local", job.workers.local, 1.0),
        within("spec.workers.threads", job.workers.threads, 0.0, 1024.0),
        within("spec.checkpoint.every", job.checkpoint.every as f64, 1.0, 1e9),
        whole("spec.checkpoint.keep", job.checkpoint.keep, 1.0),
    ];
    bounds.extend(model_bounds(job));
    bounds
}

fn model_bounds(job: &Job) -> Vec<Bound> {
    let model = &job.model;
    let width = |path: &'static str, value: u32| within(path, value, 1.0, 131_072.0);
    let count = |path: &'static str, value: u32| within(path, value, 1.0, 4096.0);
    let mut bounds = vec![
        width("spec.model.hidden_size", model.hidden_size),
        width("spec.model.intermediate_size", model.intermediate_size),
        width("spec.model.moe_intermediate_size", model.moe_intermediate_size),
        count("spec.model.num_hidden_layers", model.num_hidden_layers),
        within("spec.model.num_nextn_predict_layers", model.num_nextn_predict_layers, 0.0, 1.0),
        count("spec.model.num_attention_heads", model.num_attention_heads),
        within("spec.model.n_shared_experts", model.n_shared_experts, 0.0, 64.0),
        within("spec.model.n_routed_experts", model.n_routed_experts, 0.0, 4096.0),
        count("spec.model.num_experts_per_tok", model.num_experts_per_tok),
        count("spec.model.n_group", model.n_group),
        count("spec.model.topk_group", model.topk_group),
        within("spec.model.routed_scaling_factor", model.routed_scaling_factor, 0.0, 1e3).above(),
        width("spec.model.kv_lora_rank", model.kv_lora_rank),
        count("spec.model.qk_nope_head_dim", model.qk_nope_head_dim),
        count("spec.model.qk_rope_head_dim", model.qk_rope_head_dim),
        count("spec.model.v_head_dim", model.v_head_dim),
        within("spec.model.rms_norm_eps", model.rms_norm_eps, 0.0, 1.0).above(),
        within("spec.model.rope_theta", model.rope_theta, 1.0, 1e12).above(),
        within("spec.model.max_position_embeddings", model.max_position_embeddings, 1.0, 1e9),
        within("spec.model.initializer_range", model.initializer_range, 0.0, 10.0).above(),
    ];
    bounds.extend(model.q_lora_rank.map(|rank| width("spec.model.q_lora_rank", rank)));
    bounds
}

#[expect(clippy::unnecessary_wraps, reason = "every rule ends in it")]
fn broken(path: &'static str, what: String, help: impl Into<String>) -> Option<Broken> {
    Some(Broken { path, what, help: help.into() })
}

fn name_is_plain(facts: &Facts<'_>) -> Option<Broken> {
    const LENGTH_MAX: usize = 64;
    let name = &facts.job.name;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= LENGTH_MAX && name.chars().all(plain) {
        return None;
    }
    let what = format!(
        "wanted at most {LENGTH_MAX} letters, digits, `-` and `_`, a letter or digit first, got {}",
        quote(name)
    );
    broken("metadata.name", what, "the name also names the run's directory")
}

fn model_has_experts(facts: &Facts<'_>) -> Option<Broken> {
    if facts.job.model.n_routed_experts > 0 {
        return None;
    }
    let what = "dense models (no routed experts) are not supported yet, got 0".to_owned();
    broken("spec.model.n_routed_experts", what, "the preset tiny has 16")
}

fn tokens_are_bytes(facts: &Facts<'_>) -> Option<Broken> {
    let got = facts.job.model.vocab_size;
    if got == BYTE_VOCABULARY {
        return None;
    }
    let what = format!(
        "wanted {BYTE_VOCABULARY}, got {got}: tokens are bytes, there is no other tokenizer yet"
    );
    broken(
        "spec.model.vocab_size",
        what,
        "set spec.model.vocab_size: 256 to train it from scratch on bytes",
    )
}

fn groups_divide_experts(facts: &Facts<'_>) -> Option<Broken> {
    let (experts, groups) = (facts.job.model.n_routed_experts, facts.job.model.n_group);
    if experts.is_multiple_of(groups) {
        return None;
    }
    let what = format!("{experts} routed experts cannot be divided evenly into {groups} groups");
    broken(
        "spec.model.n_group",
        what,
        format!("wanted a divisor of {experts}: {}", divisors(experts)),
    )
}

fn groups_can_be_scored(facts: &Facts<'_>) -> Option<Broken> {
    let (experts, groups) = (facts.job.model.n_routed_experts, facts.job.model.n_group);
    if !experts.is_multiple_of(groups) || experts / groups >= 2 {
        return None;
    }
    let what =
        format!("{groups} groups of one expert each: a group's score is the sum of its two best");
    broken("spec.model.n_group", what, format!("wanted at most {}", (experts / 2).max(1)))
}

fn kept_groups_exist(facts: &Facts<'_>) -> Option<Broken> {
    let (kept, groups) = (facts.job.model.topk_group, facts.job.model.n_group);
    if kept <= groups {
        return None;
    }
    let what = format!("a token keeps {kept} groups, but n_group is {groups}");
    broken("spec.model.topk_group", what, format!("wanted at most {groups}"))
}

fn kept_groups_have_enough_experts(facts: &Facts<'_>) -> Option<Broken> {
    let model = &facts.job.model;
    let room = model.topk_group.min(model.n_group) * (model.n_routed_experts / model.n_group);
    if model.num_experts_per_tok <= room {
        return None;
    }
    let what = format!(
        "a token chooses {} experts, but the {} groups it keeps have only {room}",
        model.num_experts_per_tok, model.topk_group
    );
    broken(
        "spec.model.num_experts_per_tok",
        what,
        format!("wanted at most {room}, or a larger topk_group"),
    )
}

fn a_layer_has_experts(facts: &Facts<'_>) -> Option<Broken> {
    let model = &facts.job.model;
    if model.first_k_dense_replace < model.num_hidden_layers {
        return None;
    }
    let what = format!(
        "{} dense layers of {} leave none with experts; dense models are not supported yet",
        model.first_k_dense_replace, model.num_hidden_layers
    );
    let help = format!("wanted at most {}", model.num_hidden_layers - 1);
    broken("spec.model.first_k_dense_replace", what, help)
}

fn rope_turns_pairs(facts: &Facts<'_>) -> Option<Broken> {
    let got = facts.job.model.qk_rope_head_dim;
    if got.is_multiple_of(2) {
        return None;
    }
    let what = format!("wanted an even number (RoPE turns pairs), got {got}");
    broken("spec.model.qk_rope_head_dim", what, "")
}

fn shards_divide_experts(facts: &Facts<'_>) -> Option<Broken> {
    let (experts, shards) = (facts.job.model.n_routed_experts, facts.job.grid.expert_shards);
    if experts.is_multiple_of(shards) {
        return None;
    }
    let what = format!("{experts} routed experts cannot be divided evenly over {shards} shards");
    let help = format!("wanted a divisor of {experts}: {}", divisors(experts));
    broken("spec.parallelism.expert_shards", what, help)
}

fn stages_have_layers(facts: &Facts<'_>) -> Option<Broken> {
    let (stages, layers) = (facts.job.grid.stages, facts.job.model.num_hidden_layers);
    if stages <= layers {
        return None;
    }
    let what = format!("{stages} stages for {layers} layers: every stage needs one");
    broken("spec.parallelism.stages", what, format!("wanted at most {layers}"))
}

fn cells(job: &Job) -> u64 {
    let grid = job.grid;
    let columns = u64::from(grid.expert_shards) * u64::from(grid.replicas);
    u64::from(grid.stages).saturating_mul(columns)
}

fn grid_is_not_huge(facts: &Facts<'_>) -> Option<Broken> {
    let cells = cells(facts.job);
    if cells <= u64::from(CELLS_MAX) {
        return None;
    }
    let what = format!("stages x expert_shards x replicas is {cells} cells");
    broken("spec.parallelism", what, format!("wanted at most {CELLS_MAX}"))
}

fn workers_have_cells(facts: &Facts<'_>) -> Option<Broken> {
    let (workers, cells) = (facts.job.workers.local, cells(facts.job));
    if u64::from(workers) <= cells {
        return None;
    }
    let grid = facts.job.grid;
    let what = format!("{workers} workers for {cells} cells (grid {grid}): every worker needs one");
    broken("spec.workers.local", what, format!("wanted at most {cells}, or more spec.parallelism"))
}

fn sequence_has_positions(facts: &Facts<'_>) -> Option<Broken> {
    let (sequence, positions) =
        (facts.job.training.sequence, facts.job.model.max_position_embeddings);
    if sequence <= positions {
        return None;
    }
    let what = format!("{sequence} tokens, but the model has {positions} positions");
    broken("spec.training.sequence", what, format!("wanted at most {positions}"))
}

fn cells_divide_batch(facts: &Facts<'_>) -> Option<Broken> {
    let (grid, training) = (facts.job.grid, &facts.job.training);
    let columns = u64::from(grid.expert_shards) * u64::from(grid.replicas);
    let unit = columns * u64::from(training.microbatch);
    let batch = u64::from(training.batch);
    if batch.is_multiple_of(unit) {
        return None;
    }
    let what = format!(
        "{batch} sequences cannot be divided evenly: {} expert_shards x {} replicas x microbatch {} \
         is {unit}",
        grid.expert_shards, grid.replicas, training.microbatch
    );
    let (down, up) = (batch / unit * unit, batch.div_ceil(unit) * unit);
    let near = if down == 0 { format!("{up}") } else { format!("{down} or {up}") };
    broken("spec.training.batch", what, format!("wanted a multiple of {unit}, such as {near}"))
}

fn files_are_named(facts: &Facts<'_>) -> Option<Broken> {
    if facts.job.data.files.iter().all(|pattern| !pattern.trim().is_empty()) {
        return None;
    }
    broken("spec.data.files", "wanted file names or patterns, got an empty text".to_owned(), "")
}

fn divisors(n: u32) -> String {
    let all = (1..=n).filter(|divisor| n.is_multiple_of(*divisor));
    all.map(|divisor| divisor.to_string()).collect::<Vec<_>>().join(", ")
}
