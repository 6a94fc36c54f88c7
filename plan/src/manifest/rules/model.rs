//! Rules of the network's sizes.

use super::{Broken, Facts, broken};

/// Routed experts and their groups; none of the rules is about a dense model.
fn routed(facts: &Facts<'_>) -> Option<(u32, u32)> {
    let model = &facts.job.model;
    (model.n_routed_experts > 0).then_some((model.n_routed_experts, model.n_group))
}

pub(super) fn groups_divide_experts(facts: &Facts<'_>) -> Option<Broken> {
    let (experts, groups) = routed(facts)?;
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

pub(super) fn groups_can_be_scored(facts: &Facts<'_>) -> Option<Broken> {
    let (experts, groups) = routed(facts)?;
    if !experts.is_multiple_of(groups) || experts / groups >= 2 {
        return None;
    }
    let what =
        format!("{groups} groups of one expert each: a group's score is the sum of its two best");
    broken("spec.model.n_group", what, format!("wanted at most {}", (experts / 2).max(1)))
}

pub(super) fn kept_groups_exist(facts: &Facts<'_>) -> Option<Broken> {
    let (_, groups) = routed(facts)?;
    let kept = facts.job.model.topk_group;
    if kept <= groups {
        return None;
    }
    let what = format!("a token keeps {kept} groups, but n_group is {groups}");
    broken("spec.model.topk_group", what, format!("wanted at most {groups}"))
}

pub(super) fn kept_groups_have_enough_experts(facts: &Facts<'_>) -> Option<Broken> {
    let model = &facts.job.model;
    let (experts, groups) = routed(facts)?;
    let room = model.topk_group.min(groups) * (experts / groups);
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

pub(super) fn rope_turns_pairs(facts: &Facts<'_>) -> Option<Broken> {
    let got = facts.job.model.qk_rope_head_dim;
    if got.is_multiple_of(2) {
        return None;
    }
    let what = format!("wanted an even number (RoPE turns pairs), got {got}");
    broken("spec.model.qk_rope_head_dim", what, "")
}

pub(super) fn scaling_lengthens(facts: &Facts<'_>) -> Option<Broken> {
    let model = &facts.job.model;
    let original = model.rope_scaling?.original_max_position_embeddings;
    let all = model.max_position_embeddings;
    if original <= all {
        return None;
    }
    broken(
        "spec.model.rope_scaling.original_max_position_embeddings",
        format!("{original} positions before scaling, but max_position_embeddings is {all}"),
        format!("wanted at most {all}: the longest sequence of pre-training"),
    )
}

pub(super) fn scaling_ramp_rises(facts: &Facts<'_>) -> Option<Broken> {
    let scaling = facts.job.model.rope_scaling?;
    if scaling.beta_slow <= scaling.beta_fast {
        return None;
    }
    let what = format!("{} turns, but beta_fast is {}", scaling.beta_slow, scaling.beta_fast);
    broken("spec.model.rope_scaling.beta_slow", what, "wanted at most beta_fast")
}

fn divisors(n: u32) -> String {
    let all = (1..=n).filter(|divisor| n.is_multiple_of(*divisor));
    all.map(|divisor| divisor.to_string()).collect::<Vec<_>>().join(", ")
}
