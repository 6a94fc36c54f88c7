//! Rules of the batch, the losses and the number formats.

use super::{Broken, Facts, broken};
use crate::device::DeviceChoice;
use crate::job::Precision;
use crate::numerics::Scales;

pub(super) fn ramp_has_both_ends(facts: &Facts<'_>) -> Option<Broken> {
    let training = &facts.job.training;
    match (training.batch_start, training.batch_ramp_steps) {
        (0, 0) => None,
        (0, steps) => {
            let what = format!("a ramp of {steps} steps from nowhere");
            let help = "set spec.training.batch_start: the sequences of the first step";
            broken("spec.training.batch_ramp_steps", what, help)
        }
        (start, 0) => {
            let what = format!("the batch starts at {start}, and never reaches {}", training.batch);
            let help = "set spec.training.batch_ramp_steps: how many steps that takes";
            broken("spec.training.batch_start", what, help)
        }
        (_, _) => None,
    }
}

pub(super) fn ramp_rises(facts: &Facts<'_>) -> Option<Broken> {
    let training = &facts.job.training;
    if training.batch_start <= training.batch {
        return None;
    }
    let what = format!("starts at {}, above batch {}", training.batch_start, training.batch);
    broken("spec.training.batch_start", what, format!("wanted at most {}", training.batch))
}

pub(super) fn scales_are_read(facts: &Facts<'_>) -> Option<Broken> {
    let training = &facts.job.training;
    if training.precision == Precision::Fp8 || training.scales == Scales::default() {
        return None;
    }
    let what = format!("only precision fp8 reads it, and precision is {}", training.precision);
    broken("spec.training.scales", what, "remove it, or set precision: fp8")
}

pub(super) fn device_has_the_precision(facts: &Facts<'_>) -> Option<Broken> {
    let (device, precision) = (&facts.job.workers.device, facts.job.training.precision);
    if precision != Precision::F32 || !matches!(device, DeviceChoice::Cuda(_)) {
        return None;
    }
    let what = format!("{device} has no precision f32: it is the CPU's alone");
    broken("spec.workers.device", what, "set device: cpu, or precision: bf16 or fp8")
}

pub(super) fn mtp_weight_is_read(facts: &Facts<'_>) -> Option<Broken> {
    const PATH: &str = "spec.training.mtp_weight_final";
    let (_, given) = facts.root.locate(PATH);
    if !given || facts.job.model.num_nextn_predict_layers > 0 {
        return None;
    }
    let what = "the model predicts one token only, so nothing reads it".to_owned();
    broken(PATH, what, "remove it, or set spec.model.num_nextn_predict_layers")
}
