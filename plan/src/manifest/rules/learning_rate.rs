//! Rules of the learning rate: the warm-up has room, and no key is written that nothing reads.

use super::{Broken, Facts, broken};
use crate::learning_rate::LrSchedule;

/// Only a warm-up that was asked for: the default is also right for a few steps of a trial run.
pub(super) fn warmup_ends(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.training.warmup_steps";
    let training = &facts.job.training;
    let (_, given) = facts.root.locate(PATH);
    let warmup = training.warmup_steps;
    if !given {
        return None;
    }
    if warmup > training.steps {
        let what = format!("the warm-up of {warmup} steps is longer than the run");
        return broken(PATH, what, format!("wanted at most steps, {}", training.steps));
    }
    let end = training.peak_end().filter(|end| warmup > *end)?;
    let schedule = training.lr_schedule;
    let what = format!(
        "the warm-up of {warmup} steps is not over when the learning rate of {schedule} falls, \
         after step {end} of {}",
        training.steps
    );
    let room =
        if schedule == LrSchedule::Wsd { "a smaller lr_decay_fraction" } else { "more steps" };
    broken(PATH, what, format!("wanted at most {end}, or {room}"))
}

pub(super) fn decay_fraction_is_read(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.training.lr_decay_fraction";
    let schedule = facts.job.training.lr_schedule;
    let (_, given) = facts.root.locate(PATH);
    if !given || schedule == LrSchedule::Wsd {
        return None;
    }
    let what = format!("only lr_schedule wsd reads it, and lr_schedule is {schedule}");
    broken(PATH, what, "remove it, or set lr_schedule: wsd")
}

pub(super) fn final_ratio_is_read(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.training.lr_final_ratio";
    let schedule = facts.job.training.lr_schedule;
    let ends = match schedule {
        LrSchedule::Cosine | LrSchedule::Wsd => return None,
        LrSchedule::V3 => "v3 ends at its own share of lr, 7.3e-6 / 2.2e-4",
        LrSchedule::Constant => "constant stays at lr",
    };
    let (_, given) = facts.root.locate(PATH);
    if !given {
        return None;
    }
    let what = format!("only lr_schedule cosine and wsd read it: {ends}");
    broken(PATH, what, "remove it, or set lr_schedule: cosine or wsd")
}
