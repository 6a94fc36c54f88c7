//! What must hold between the values of a manifest. One function a rule; add yours to the list.

mod bounds;
mod data;
mod learning_rate;
mod model;
mod parallelism;
mod training;

pub(super) use bounds::{Bound, all as bounds};

use super::complaint::{Complaint, quote};
use super::tree::Node;
use crate::job::Job;
use crate::model::ModelConfig;
use crate::store::StoreAddress;

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
const BASICS: [Rule; 1] = [name_is_plain];

/// Of the model alone.
const OF_MODEL: [Rule; 7] = [
    model::groups_divide_experts,
    model::groups_can_be_scored,
    model::kept_groups_exist,
    model::kept_groups_have_enough_experts,
    model::rope_turns_pairs,
    model::scaling_lengthens,
    model::scaling_ramp_rises,
];

const RELATIONS: [Rule; 25] = [
    parallelism::experts_fill_shards,
    parallelism::listed_experts_add_up,
    parallelism::stages_have_layers,
    parallelism::listed_layers_add_up,
    parallelism::chunks_are_interleaved,
    parallelism::shares_fit_the_grid,
    parallelism::grid_is_not_huge,
    parallelism::workers_have_cells,
    parallelism::enough_workers_start,
    sequence_has_positions,
    training::ramp_has_both_ends,
    training::ramp_rises,
    training::scales_are_read,
    training::mtp_weight_is_read,
    training::device_has_the_precision,
    learning_rate::warmup_ends,
    learning_rate::decay_fraction_is_read,
    learning_rate::final_ratio_is_read,
    data::files_are_named,
    data::sources_are_named,
    data::tokenizer_fits,
    data::sets_are_named,
    patience_has_evaluations,
    metrics_have_ports,
    store_is_an_address,
];

/// Checks all rules and returns every one that is broken.
pub(super) fn check(job: &Job, root: &Node) -> Result<(), Vec<Complaint>> {
    let facts = Facts { job, root };
    let basics = BASICS.iter().filter_map(|rule| rule(&facts));
    let bounds = bounds(job).into_iter().filter_map(|bound| bound.broken(root));
    facts.refuse(basics.chain(bounds).collect())?;
    let relations = OF_MODEL.iter().chain(&RELATIONS);
    facts.refuse(relations.filter_map(|rule| rule(&facts)).collect())
}

/// Checks the rules that look at a model alone, which stands at `spec.model` of `root`.
pub(super) fn check_model(model: &ModelConfig, root: &Node) -> Result<(), Vec<Complaint>> {
    let job = Job { model: model.clone(), ..Job::example() };
    let facts = Facts { job: &job, root };
    let bounds = bounds::of_model(model).into_iter();
    facts.refuse(bounds.filter_map(|bound| bound.broken(root)).collect())?;
    facts.refuse(OF_MODEL.iter().filter_map(|rule| rule(&facts)).collect())
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

fn sequence_has_positions(facts: &Facts<'_>) -> Option<Broken> {
    let (sequence, positions) =
        (facts.job.training.sequence, facts.job.model.max_position_embeddings);
    if sequence <= positions {
        return None;
    }
    let what = format!("{sequence} tokens, but the model has {positions} positions");
    broken("spec.training.sequence", what, format!("wanted at most {positions}"))
}

fn store_is_an_address(facts: &Facts<'_>) -> Option<Broken> {
    let error = StoreAddress::parse(facts.job.checkpoint.store.as_ref()?).err()?;
    broken("spec.checkpoint.store", error.what, format!("wanted {}", error.help))
}

/// The coordinator has the port that is named, worker n the one n + 1 further.
fn metrics_have_ports(facts: &Facts<'_>) -> Option<Broken> {
    let (port, workers) = (facts.job.metrics.port, facts.job.workers.local);
    let last = u64::from(port) + u64::from(workers);
    if port == 0 || u16::try_from(last).is_ok() {
        return None;
    }
    let what = format!("{workers} workers after port {port} would need ports up to {last}");
    let help = format!("the last port is {}; 0 takes any free ones", u16::MAX);
    broken("spec.metrics.port", what, help)
}

fn patience_has_evaluations(facts: &Facts<'_>) -> Option<Broken> {
    let evaluation = &facts.job.evaluation;
    if evaluation.patience == 0 || evaluation.every > 0 {
        return None;
    }
    let what = "a run that is evaluated only at its end cannot stop early".to_owned();
    broken("spec.evaluation.patience", what, "set spec.evaluation.every, or patience: 0")
}
