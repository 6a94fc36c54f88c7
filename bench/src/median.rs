//! The figure that stands for many: one that a few slow or fast ones do not move.

/// The median; of an even number the mean of the two in the middle; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got}, want {want}");
        near(median(&[3.0, 100.0, 1.0]), 3.0);
        near(median(&[4.0, 1.0, 2.0, 100.0]), 3.0);
        near(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }
}
