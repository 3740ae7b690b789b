//! Curves of a page: many points become few, and no extreme is lost.

use serde::{Serialize, Serializer};

/// Most points of one curve: about two for each pixel of a wide screen.
pub(crate) const MAX_POINTS: usize = 2000;

/// A curve of at most [`MAX_POINTS`] points. All lists have its length; `min` and `max` are empty where a point is one
/// measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Curve {
    /// Middle of the steps that a point stands for.
    pub step: Vec<Short>,
    /// Mean of the point's finite measurements; `null` where it has none.
    pub mean: Vec<Option<Short>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub min: Vec<Option<Short>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub max: Vec<Option<Short>>,
}

/// A number that is written with five significant digits: more than a screen can show, a third of the bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Short(pub f64);

impl Serialize for Short {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rounded = format!("{:.4e}", self.0).parse::<f64>().unwrap_or(self.0);
        // A whole number needs no `.0`.
        if rounded.fract() == 0.0 && rounded.abs() < 1e15 {
            serializer.serialize_i64(rounded as i64)
        } else {
            serializer.serialize_f64(rounded)
        }
    }
}

impl Curve {
    /// The curve through `points` (step, measurement), in ascending order of steps. Neighbours are put together, equally
    /// many for each point but the last.
    pub(crate) fn of(mut points: impl ExactSizeIterator<Item = (u64, Option<f64>)>) -> Self {
        let num_together = points.len().div_ceil(MAX_POINTS).max(1);
        let mut curve = Self::default();
        let mut together = Vec::with_capacity(num_together);
        loop {
            together.clear();
            together.extend(points.by_ref().take(num_together));
            if together.is_empty() {
                return curve;
            }
            let middle = together.iter().map(|(step, _)| *step as f64).sum::<f64>() / together.len() as f64;
            let finite = || together.iter().filter_map(|(_, value)| value.filter(|value| value.is_finite()));
            curve.step.push(Short(middle));
            curve.mean.push((finite().count() > 0).then(|| Short(finite().sum::<f64>() / finite().count() as f64)));
            if num_together > 1 {
                curve.min.push(finite().reduce(f64::min).map(Short));
                curve.max.push(finite().reduce(f64::max).map(Short));
            }
        }
    }

    /// Whether there is anything to draw.
    pub(crate) fn has_values(&self) -> bool {
        self.mean.iter().any(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_curve_stays_as_it_is() {
        let curve = Curve::of([(0, Some(0.5)), (1, None), (2, Some(f64::NAN)), (3, Some(0.25))].into_iter());
        assert_eq!(curve.step, [0.0, 1.0, 2.0, 3.0].map(Short));
        assert_eq!(curve.mean, [Some(Short(0.5)), None, None, Some(Short(0.25))]);
        assert!(curve.min.is_empty() && curve.max.is_empty());
        assert!(curve.has_values());
    }

    #[test]
    fn a_long_curve_keeps_every_extreme_and_the_mean() {
        let mut points: Vec<(u64, Option<f64>)> =
            (0..100_003).map(|step| (step, Some(1.0 + (step as f64 / 999.0).sin()))).collect();
        points[54_321].1 = Some(900.0);
        points[54_322].1 = Some(-7.0);
        points[99_999].1 = None;
        let curve = Curve::of(points.iter().copied());
        assert!(curve.mean.len() <= MAX_POINTS, "{}", curve.mean.len());

        let num_together = 51; // 100,003 / 2,000, rounded up
        for (index, chunk) in points.chunks(num_together).enumerate() {
            let values: Vec<f64> = chunk.iter().filter_map(|point| point.1).collect();
            let of = |fold: fn(f64, f64) -> f64| values.iter().copied().reduce(fold).unwrap();
            assert_eq!(curve.max[index], Some(Short(of(f64::max))));
            assert_eq!(curve.min[index], Some(Short(of(f64::min))));
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            assert!((curve.mean[index].unwrap().0 - mean).abs() < 1e-12);
            assert_eq!(curve.step[index].0, chunk[0].0 as f64 + (chunk.len() - 1) as f64 / 2.0);
        }
        assert!(curve.max.contains(&Some(Short(900.0))) && curve.min.contains(&Some(Short(-7.0))));
    }

    #[test]
    fn numbers_are_written_with_five_digits() {
        let written = serde_json::to_string(&[0.123456789, 1e-4, 250.0, 99999.7, 1.23456e-9].map(Short)).unwrap();
        assert_eq!(written, "[0.12346,0.0001,250,100000,1.2346e-9]");
    }
}
