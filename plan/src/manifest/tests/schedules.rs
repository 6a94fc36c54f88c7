//! Schedules of the learning rate and of the pipeline, as people write them.

use super::{check, parse_with, spec};
use crate::learning_rate::LrSchedule;
use crate::schedule::Schedule;

#[test]
fn learning_rates_that_cannot_be_are_refused() {
    let training =
        |line: &str, wanted: &[&str]| check(&format!("  training: {{{line}}}\n"), wanted);
    training(
        "lr_decay_fraction: 0.3",
        &[
            ":8:33: spec.training.lr_decay_fraction",
            "only lr_schedule wsd",
            "lr_schedule is cosine",
        ],
    );
    training(
        "lr_schedule: v3, lr_decay_fraction: 0.2",
        &["lr_schedule is v3", "remove it, or set"],
    );
    training(
        "lr_schedule: v3, lr_final_ratio: 0.1",
        &["spec.training.lr_final_ratio", "v3 ends at"],
    );
    training("lr_schedule: constant, lr_final_ratio: 0.1", &["constant stays at lr"]);
    training(
        "lr_schedule: wsd, steps: 100, warmup_steps: 81",
        &["spec.training.warmup_steps", "falls, after step 80 of 100", "at most 80, or a smaller"],
    );
    training(
        "lr_schedule: v3, steps: 100, warmup_steps: 68",
        &["rate of v3 falls, after step 67 of 100", "at most 67, or more steps"],
    );
    training(
        "lr_schedule: wsd, steps: 20, warmup_steps: 30",
        &["longer than the run", "at most steps, 20"],
    );
}

#[test]
fn schedules_are_chosen_by_name() {
    let training =
        |line: &str| parse_with(&spec(&format!("  training: {{{line}}}\n")), &[]).unwrap().training;
    let wsd = training("lr_schedule: wsd, steps: 100, warmup_steps: 80, lr_final_ratio: 0");
    assert_eq!((wsd.lr_schedule, wsd.lr_decay_fraction), (LrSchedule::Wsd, 0.2));
    assert_eq!(training("lr_schedule: wsd, lr_decay_fraction: 1").peak_end(), Some(0));
    assert_eq!(training("steps: 50").lr_schedule, LrSchedule::Cosine);
    assert_eq!(training("lr_schedule: constant").lr_schedule, LrSchedule::Constant);
    // The default warm-up forbids no trial run.
    assert_eq!(training("lr_schedule: v3, steps: 5").lr_schedule, LrSchedule::V3);

    let schedule = |lines: &str| parse_with(&spec(lines), &[]).unwrap().schedule;
    assert_eq!(schedule(""), Schedule::OneFOneB);
    assert_eq!(schedule("  parallelism: {schedule: 1f1b, stages: 2}\n"), Schedule::OneFOneB);
    assert_eq!(schedule("  parallelism: {schedule: zb-h1}\n"), Schedule::ZbH1);
    let flags = ["parallelism.schedule=zb-h1", "parallelism.stages=2"];
    assert_eq!(parse_with(&spec(""), &flags).unwrap().schedule, Schedule::ZbH1);
    check(
        "  parallelism: {schedule: zbh1}\n",
        &[
            "spec.parallelism.schedule: wanted one of 1f1b, zb-h1, interleaved",
            "did you mean `zb-h1`?",
        ],
    );
}
