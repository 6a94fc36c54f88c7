//! What workers measure, through the door: steps, evaluations, endings, and how the run stands.

use shoal_plan::plan::WorkerId;
use shoal_plan::report::{Ending, Evaluation, Outcome, Pass, SkippedStep, StepReport, StepRow};
use shoal_plan::routing::Routing;
use shoal_plan::standing::{Best, Standing};

use super::{WireError, finite, present, raw, readable, shortened, value};

/// Evaluation sets of one job.
const SETS_MAX: usize = 1024;

/// Layers of one model.
const LAYERS_MAX: usize = 4096;

pub(super) fn step(raw: raw::StepReport) -> Result<StepReport, WireError> {
    use raw::step_report::Outcome as Raw;
    let outcome = match present("step_done.report.outcome", raw.outcome)? {
        Raw::Trained(row) => Outcome::Trained(step_row(row)?),
        Raw::Skipped(skipped) => Outcome::Skipped(SkippedStep {
            step: skipped.step,
            skipped: readable("step_done.report.skipped.place", &skipped.place)?,
            worker: WorkerId(skipped.worker),
            in_a_row: skipped.in_a_row,
            pass: pass(skipped.pass)?,
        }),
    };
    Ok(StepReport { first_sequence: raw.first_sequence, sequences: raw.sequences, outcome })
}

impl From<StepReport> for raw::StepReport {
    fn from(report: StepReport) -> Self {
        use raw::step_report::Outcome as Raw;
        let StepReport { first_sequence, sequences, outcome } = report;
        let outcome = Some(match outcome {
            Outcome::Trained(row) => Raw::Trained(raw_step_row(row)),
            Outcome::Skipped(skipped) => Raw::Skipped(raw::SkippedStep {
                step: skipped.step,
                place: shortened(skipped.skipped),
                worker: skipped.worker.0,
                in_a_row: skipped.in_a_row,
                pass: raw::Pass::from(skipped.pass).into(),
            }),
        });
        Self { first_sequence, sequences, outcome }
    }
}

fn step_row(raw: raw::StepRow) -> Result<StepRow, WireError> {
    Ok(StepRow {
        step: raw.step,
        loss: finite("step_done.report.trained.loss", raw.loss)?,
        main_loss: finite("step_done.report.trained.main_loss", raw.main_loss)?,
        mtp_loss: finite("step_done.report.trained.mtp_loss", raw.mtp_loss)?,
        balance_loss: finite("step_done.report.trained.balance_loss", raw.balance_loss)?,
        grad_norm: finite("step_done.report.trained.grad_norm", raw.grad_norm)?,
        lr: finite("step_done.report.trained.lr", raw.lr)?,
        tokens: raw.tokens,
        router: router(raw.router)?,
    })
}

fn router(raw: Vec<raw::Routing>) -> Result<Vec<Routing>, WireError> {
    if raw.len() > LAYERS_MAX {
        let (field, want) = ("step_done.report.trained.router", format!("at most {LAYERS_MAX}"));
        return Err(WireError::Count { field, got: raw.len(), want });
    }
    let bias = |got: f32| finite("step_done.report.trained.router.bias", got.into());
    let layer = |raw: raw::Routing| {
        bias(raw.bias_min).and(bias(raw.bias_max))?;
        Ok(Routing {
            layer: raw.layer,
            load_entropy: finite("step_done.report.trained.router.entropy", raw.load_entropy)?,
            load_max: finite("step_done.report.trained.router.max", raw.load_max)?,
            dropped: raw.dropped,
            bias_min: raw.bias_min,
            bias_max: raw.bias_max,
        })
    };
    raw.into_iter().map(layer).collect()
}

fn raw_routing(layer: Routing) -> raw::Routing {
    let Routing { layer, load_entropy, load_max, dropped, bias_min, bias_max } = layer;
    raw::Routing { layer, load_entropy, load_max, dropped, bias_min, bias_max }
}

/// A duration.
pub(super) fn seconds(raw: f64) -> Result<f64, WireError> {
    let field = "step_done.compute_seconds";
    let seconds = finite(field, raw)?;
    if seconds < 0.0 { Err(value(field, seconds, "0 or more")) } else { Ok(seconds) }
}

fn pass(raw: i32) -> Result<Pass, WireError> {
    Ok(match raw::Pass::try_from(raw) {
        Ok(raw::Pass::Forward) => Pass::Forward,
        Ok(raw::Pass::Backward) => Pass::Backward,
        Ok(raw::Pass::Gradient) => Pass::Gradient,
        Ok(raw::Pass::Unspecified) | Err(_) => {
            return Err(value("step_done.report.skipped.pass", raw, "a known pass"));
        }
    })
}

impl From<Pass> for raw::Pass {
    fn from(pass: Pass) -> Self {
        match pass {
            Pass::Forward => Self::Forward,
            Pass::Backward => Self::Backward,
            Pass::Gradient => Self::Gradient,
        }
    }
}

fn raw_step_row(row: StepRow) -> raw::StepRow {
    let StepRow { step, loss, main_loss, mtp_loss, balance_loss, grad_norm, lr, tokens, router } =
        row;
    let router = router.into_iter().map(raw_routing).collect();
    raw::StepRow { step, loss, main_loss, mtp_loss, balance_loss, grad_norm, lr, tokens, router }
}

pub(super) fn evaluations(raw: Vec<raw::Evaluation>) -> Result<Vec<Evaluation>, WireError> {
    if raw.is_empty() || raw.len() > SETS_MAX {
        let (field, want) = ("evaluated.evaluations", format!("1 to {SETS_MAX}"));
        return Err(WireError::Count { field, got: raw.len(), want });
    }
    let evaluation = |raw: raw::Evaluation| {
        // Infinite is a finding; a NaN could be anything.
        if raw.loss.is_nan() {
            return Err(value("evaluated.evaluations.loss", raw.loss, "a number or infinity"));
        }
        let set = readable("evaluated.evaluations.set", &raw.set)?;
        Ok(Evaluation { set, loss: raw.loss, tokens: raw.tokens, bytes: raw.bytes })
    };
    raw.into_iter().map(evaluation).collect()
}

impl From<Evaluation> for raw::Evaluation {
    fn from(Evaluation { set, loss, tokens, bytes }: Evaluation) -> Self {
        Self { set: shortened(set), loss, tokens, bytes }
    }
}

pub(super) fn standing(
    field: &'static str,
    raw: Option<raw::Standing>,
) -> Result<Standing, WireError> {
    let raw::Standing { step, sequences, skips, rollbacks, best, stale } = present(field, raw)?;
    let checked =
        |raw: raw::Best| Ok(Best { step: raw.step, loss: finite("standing.best.loss", raw.loss)? });
    let best = best.map(checked).transpose()?;
    Ok(Standing { step, sequences, skips, rollbacks, best, stale })
}

impl From<Standing> for raw::Standing {
    fn from(standing: Standing) -> Self {
        let Standing { step, sequences, skips, rollbacks, best, stale } = standing;
        let best = best.map(|Best { step, loss }| raw::Best { step, loss });
        Self { step, sequences, skips, rollbacks, best, stale }
    }
}

pub(super) fn ending(raw: i32) -> Result<Ending, WireError> {
    Ok(match raw::Ending::try_from(raw) {
        Ok(raw::Ending::Completed) => Ending::Completed,
        Ok(raw::Ending::Stopped) => Ending::Stopped,
        Ok(raw::Ending::NoImprovement) => Ending::NoImprovement,
        Ok(raw::Ending::Unspecified) | Err(_) => {
            return Err(value("finished.ending", raw, "a known ending"));
        }
    })
}

impl From<Ending> for raw::Ending {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Completed => Self::Completed,
            Ending::Stopped => Self::Stopped,
            Ending::NoImprovement => Self::NoImprovement,
        }
    }
}
