//! Initial values: each parameter is drawn from its own stream, keyed by seed and name, so that
//! every grid starts from the same model.

use std::f64::consts::TAU;

/// Separates these streams from any other use of the same hash.
const CONTEXT: &str = "shoal 2025 initial parameter values v1";

/// Draws `values` from a normal distribution of mean 0 by the Box-Muller transform.
pub(crate) fn normal(seed: u64, name: &str, deviation: f32, values: &mut [f32]) {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let mut stream = hasher.finalize_xof();
    let mut bytes = [0u8; 4096];
    for chunk in values.chunks_mut(bytes.len() / 4) {
        stream.fill(&mut bytes);
        for (pair, drawn) in chunk.chunks_mut(2).zip(bytes.as_chunks::<8>().0) {
            let [a, b, c, d, e, f, g, h] = *drawn;
            let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
            let radius = (-2.0 * uniform(u32::from_le_bytes([a, b, c, d])).ln()).sqrt();
            let angle = TAU * uniform(u32::from_le_bytes([e, f, g, h]));
            let both = [radius * angle.cos(), radius * angle.sin()];
            for (value, drawn) in pair.iter_mut().zip(both) {
                *value = (drawn * f64::from(deviation)) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_asked_deviation_and_depend_on_seed_and_name_alone() {
        let draw = |seed, name, n| {
            let mut values = vec![0.0; n];
            normal(seed, name, 0.02, &mut values);
            values
        };
        let values = draw(7, "a", 20_001);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        // Four standard errors of 20,001 draws.
        assert!(mean.abs() < 4.0 * 0.02 / 141.0, "mean {mean}");
        assert!((square.sqrt() / 0.02 - 1.0).abs() < 4.0 / 200.0, "deviation {}", square.sqrt());
        assert_eq!(values[..5000], draw(7, "a", 5000));
        assert_ne!(values[..10], draw(8, "a", 10));
        assert_ne!(values[..10], draw(7, "b", 10));
    }
}
