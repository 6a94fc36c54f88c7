//! The update at the end of a step: AdamW on the masters, their average, router biases from the
//! counts.
//!
//! Source: DeepSeek-V3 report, sections 2.1.2 (bias), 3.2 (average) and 4.2 (AdamW).

use shoal_kernels::adamw::AdamStep;

/// What one optimizer step needs to know. Equal on all cells.
#[derive(Clone, Debug)]
pub struct Update {
    pub adam: AdamStep,
    /// Router bias update speed (gamma).
    pub bias_speed: f32,
}

/// Adds `speed` for an expert with fewer tokens than the mean, subtracts it for one with more.
/// `counts` are over the whole batch: all cells of the stage, all microbatches.
pub(crate) fn step_bias(bias: &mut [f32], counts: &[u64], speed: f32) {
    assert_eq!(bias.len(), counts.len(), "one count per expert");
    let (n, total) = (counts.len() as u64, counts.iter().sum::<u64>());
    for (bias, count) in bias.iter_mut().zip(counts) {
        match (count * n).cmp(&total) {
            std::cmp::Ordering::Less => *bias += speed,
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => *bias -= speed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_experts_bias_falls_an_idle_ones_rises_and_the_mean_stays() {
        // Quarters: every sum is exact, so bits may be compared.
        let bits = |bias: [f32; 4]| bias.map(f32::to_bits);
        let mut bias = [0.0, 0.0, 0.0, 0.5];
        step_bias(&mut bias, &[9, 4, 0, 3], 0.25);
        assert_eq!(bits(bias), bits([-0.25, 0.0, 0.25, 0.75]));
        step_bias(&mut bias, &[0; 4], 0.25);
        assert_eq!(bits(bias), bits([-0.25, 0.0, 0.25, 0.75]));
    }
}
