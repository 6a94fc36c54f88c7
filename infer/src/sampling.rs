//! From logits to a token: greedy, or drawn; and the rule by which a drafted token is kept.
//!
//! Source of the rule: Leviathan et al. 2023, arXiv:2211.17192, and Chen et al. 2023,
//! arXiv:2302.01318: a draft x from q is kept with probability min(1, p(x) / q(x)), and replaced by a
//! draw from max(0, p - q), normalised, otherwise. What comes out has distribution p, whatever q is.

use shoal_kernels::compare::Random;

use crate::error::InferError;

/// How a token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits. 0: always the likeliest token, of equals the lowest id.
    pub temperature: f32,
    /// Only the likeliest tokens that together reach this probability; 1: all.
    pub top_p: f32,
    /// Only so many of the likeliest tokens; 0: all.
    pub top_k: usize,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 1 }
    }
}

/// A drafted token, and the distribution that it was drawn from (none where drafting was greedy).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    pub(crate) token: u32,
    pub(crate) chances: Option<Vec<f64>>,
}

impl Sampling {
    /// Whether the numbers make sense.
    pub fn check(&self) -> Result<(), InferError> {
        let option = |what, got: f32, want| InferError::Option { what, got: got.to_string(), want };
        if !(0.0..=100.0).contains(&self.temperature) {
            return Err(option("temperature", self.temperature, "a number from 0 to 100"));
        }
        if !(0.0 < self.top_p && self.top_p <= 1.0) {
            return Err(option("top_p", self.top_p, "a number above 0, at most 1"));
        }
        Ok(())
    }

    fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// A token to propose.
    pub(crate) fn draft(&self, logits: &[f32], random: &mut Random) -> Draft {
        if self.is_greedy() {
            return Draft { token: greedy(logits), chances: None };
        }
        let chances = self.chances(logits);
        Draft { token: draw(&chances, random), chances: Some(chances) }
    }

    /// The token that follows, and whether it is the one that was drafted.
    pub(crate) fn choose(
        &self,
        logits: &[f32],
        draft: Option<&Draft>,
        random: &mut Random,
    ) -> (u32, bool) {
        if self.is_greedy() {
            let token = greedy(logits);
            return (token, draft.is_some_and(|draft| draft.token == token));
        }
        let chances = self.chances(logits);
        match draft {
            None => (draw(&chances, random), false),
            Some(Draft { token, chances: drafted }) => {
                let drafted = drafted.as_ref().expect("drafts are drawn as tokens are");
                verify(&chances, drafted, *token, random)
            }
        }
    }

    /// The probability of every token. Adds up to 1.
    fn chances(&self, logits: &[f32]) -> Vec<f64> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let chance = |logit: &f32| {
            // A logit that is no number is never drawn.
            let chance = (f64::from(logit - largest) / f64::from(self.temperature)).exp();
            if chance.is_nan() { 0.0 } else { chance }
        };
        let mut chances: Vec<f64> = logits.iter().map(chance).collect();
        normalise(&mut chances);
        if self.top_k == 0 && 1.0 <= self.top_p {
            return chances;
        }
        let mut order: Vec<usize> = (0..chances.len()).collect();
        order.sort_by(|a, b| chances[*b].total_cmp(&chances[*a]).then(a.cmp(b)));
        let mut left = f64::from(self.top_p);
        let mut kept = 0;
        for index in &order {
            if left <= 0.0 || (self.top_k != 0 && self.top_k <= kept) {
                chances[*index] = 0.0;
            } else {
                left -= chances[*index];
                kept += 1;
            }
        }
        normalise(&mut chances);
        chances
    }
}

/// The index of the largest logit, of equals the lowest. A NaN is never larger.
pub(crate) fn greedy(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if logits[best] < *logit || (logits[best].is_nan() && !logit.is_nan()) {
            best = index;
        }
    }
    best as u32
}

/// Keeps the draft or draws from what the draft left over.
fn verify(p: &[f64], q: &[f64], draft: u32, random: &mut Random) -> (u32, bool) {
    let at = draft as usize;
    if unit(random) * q[at] < p[at] {
        return (draft, true);
    }
    let mut rest: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)).collect();
    // Equal distributions but for roundings leave nothing over: then either is right.
    if rest.iter().sum::<f64>() <= 0.0 {
        return (draw(p, random), false);
    }
    normalise(&mut rest);
    (draw(&rest, random), false)
}

/// Draws an index.
fn draw(chances: &[f64], random: &mut Random) -> u32 {
    let mut left = unit(random);
    for (index, chance) in chances.iter().enumerate() {
        left -= chance;
        if left < 0.0 {
            return index as u32;
        }
    }
    // Roundings left a little: the last that can be drawn.
    chances.iter().rposition(|chance| 0.0 < *chance).unwrap_or(0) as u32
}

fn normalise(chances: &mut [f64]) {
    let total: f64 = chances.iter().sum();
    for chance in chances {
        *chance /= total;
    }
}

/// Uniform in [0, 1).
fn unit(random: &mut Random) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(temperature: f32, top_p: f32, top_k: usize) -> Sampling {
        Sampling { temperature, top_p, top_k, seed: 1 }
    }

    fn assert_near(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}, want {want:?}");
    }

    #[test]
    fn temperature_top_p_and_top_k_shape_the_distribution() {
        let logits = [0.0, (3.0_f32).ln(), f32::NEG_INFINITY, (4.0_f32).ln()];
        assert_near(&warm(1.0, 1.0, 0).chances(&logits), &[0.125, 0.375, 0.0, 0.5]);
        assert_near(
            &warm(0.5, 1.0, 0).chances(&logits),
            &[1.0 / 26.0, 9.0 / 26.0, 0.0, 16.0 / 26.0],
        );
        assert_near(&warm(1.0, 1.0, 1).chances(&logits), &[0.0, 0.0, 0.0, 1.0]);
        assert_near(&warm(1.0, 0.6, 0).chances(&logits), &[0.0, 3.0 / 7.0, 0.0, 4.0 / 7.0]);
        assert_near(&warm(1.0, 0.4, 0).chances(&logits), &[0.0, 0.0, 0.0, 1.0]);
        assert_near(&warm(1.0, 0.9, 2).chances(&[f32::NAN, 0.0, 0.0]), &[0.0, 0.5, 0.5]);
        assert_near(&warm(1.0, 1.0, 2).chances(&[1.0, 1.0, 1.0]), &[0.5, 0.5, 0.0]);
    }

    #[test]
    fn the_coldest_choice_is_the_likeliest_of_equals_the_lowest() {
        assert_eq!(greedy(&[1.0, 3.0, 3.0, f32::NAN]), 1);
        assert_eq!(greedy(&[f32::NAN, -1.0]), 1);
        let mut random = Random::new(1);
        let cold = Sampling::default();
        assert_eq!(cold.choose(&[0.0, 5.0], None, &mut random), (1, false));
        let draft = cold.draft(&[9.0, 5.0], &mut random);
        assert_eq!(cold.choose(&[0.0, 5.0], Some(&draft), &mut random), (1, false));
        assert_eq!(cold.choose(&[6.0, 5.0], Some(&draft), &mut random), (0, true));
    }

    /// Exactly: the chance of x is q(x) min(1, p(x) / q(x)) plus what is rejected times the residual.
    #[test]
    fn drafts_kept_or_replaced_have_the_models_distribution() {
        for (p, q) in [
            ([0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]),
            ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]),
            ([1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]),
            ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]),
        ] {
            const N: u32 = 40_000;
            let mut random = Random::new(5);
            let (mut counts, mut kept) = ([0_u32; 4], 0);
            for _ in 0..N {
                let draft = draw(&q, &mut random);
                assert!(0.0 < q[draft as usize], "a draft can be drawn");
                let (token, accepted) = verify(&p, &q, draft, &mut random);
                assert!(!accepted || token == draft);
                counts[token as usize] += 1;
                kept += u32::from(accepted);
            }
            // Five standard deviations of a count, at most sqrt(N) / 2 each.
            let near = |got: u32, want: f64| {
                assert!(
                    (f64::from(got) - want * f64::from(N)).abs() < 500.0,
                    "{counts:?}, want {p:?}"
                );
            };
            counts.iter().zip(p).for_each(|(got, want)| near(*got, want));
            near(kept, p.iter().zip(q).map(|(p, q)| p.min(q)).sum());
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for (temperature, top_p) in
            [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5), (1.0, f32::NAN)]
        {
            assert!(warm(temperature, top_p, 0).check().is_err(), "{temperature}, {top_p}");
        }
        assert!(warm(0.0, 1.0, 0).check().is_ok());
    }
}
