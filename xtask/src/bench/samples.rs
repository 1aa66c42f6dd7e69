//! Repeated measurements of one thing.

/// Values in the order they were taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The one in the middle, which a few disturbed rounds do not move; `None` without any.
    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) })
    }
}

/// The mean of ratios: the n-th root of their product; `None` without any.
pub(super) fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    let count = u32::try_from(ratios.len()).ok().filter(|&count| count > 0)?;
    Some((ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_value_in_the_middle() {
        for (values, median) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[4.0, 1.0], Some(2.5)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
            (&[1.0, 100.0, 2.0, 3.0], Some(2.5)),
        ] {
            let mut samples = Samples::default();
            values.iter().for_each(|&value| samples.add(value));
            assert_eq!(samples.median(), median, "{values:?}");
        }
    }

    #[test]
    fn the_mean_of_a_ratio_and_its_inverse_is_one() {
        assert_eq!(geometric_mean(&[]), None);
        assert!((geometric_mean(&[4.0, 0.25]).unwrap() - 1.0).abs() < 1e-12);
        assert!((geometric_mean(&[2.0, 2.0, 2.0]).unwrap() - 2.0).abs() < 1e-12);
    }
}
