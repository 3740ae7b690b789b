//! The exact average of a grey picture over each cell of a grid: every pixel counts by the part of it that lies in the
//! cell, whether cells are larger than pixels or smaller.

/// Averages over the cells of a (rows, columns) grid that divides a rectangle of the picture evenly.
///
/// - `row(y)` gives row `y` of the picture: `width` values; `height` rows.
/// - `[left, top, part_width, part_height]` is the rectangle, in pixels; cut to the picture where it reaches out.
///
/// Returns (rows, columns) averages. A cell without any pixel (outside the picture) is 0.
pub(crate) fn area_average(
    mut row: impl FnMut(usize) -> Vec<f32>,
    (width, height): (usize, usize),
    [left, top, part_width, part_height]: [f64; 4],
    (columns, rows): (usize, usize),
) -> Vec<f32> {
    let column_spans: Vec<Span> = Span::of_cells(left, part_width, columns, width);
    let row_spans: Vec<Span> = Span::of_cells(top, part_height, rows, height);
    let mut averages = Vec::with_capacity(rows * columns);
    // Neighbouring cells share at most one row of the picture where cells are larger than pixels: keep the last.
    let mut last: Option<(usize, Vec<f64>)> = None;
    for span in &row_spans {
        let mut sums = vec![0.0; columns];
        for (y, row_share) in span.pixels() {
            if last.as_ref().is_none_or(|(of, _)| *of != y) {
                let values = row(y);
                last = Some((y, column_spans.iter().map(|span| span.weighted_sum(&values)).collect()));
            }
            let row_sums = last.as_ref().map_or(&[][..], |(_, sums)| sums);
            for (sum, value) in sums.iter_mut().zip(row_sums) {
                *sum += row_share * value;
            }
        }
        averages.extend(sums.into_iter().zip(&column_spans).map(|(sum, column)| {
            let area = column.length() * span.length();
            if area > 0.0 { (sum / area) as f32 } else { 0.0 }
        }));
    }
    averages
}

/// A stretch of pixels along one axis.
struct Span {
    start: f64,
    end: f64,
}

impl Span {
    /// The stretches of `num_cells` equal cells of [start, start + length), cut to [0, limit).
    fn of_cells(start: f64, length: f64, num_cells: usize, limit: usize) -> Vec<Self> {
        let edge = |cell: usize| (start + length * cell as f64 / num_cells as f64).clamp(0.0, limit as f64);
        (0..num_cells).map(|cell| Self { start: edge(cell), end: edge(cell + 1) }).collect()
    }

    fn length(&self) -> f64 {
        self.end - self.start
    }

    /// The pixels that it touches, and how much of each it covers, in [0, 1].
    fn pixels(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let pixels = self.start.floor() as usize..self.end.ceil() as usize;
        pixels.map(|at| (at, self.end.min(at as f64 + 1.0) - self.start.max(at as f64)))
    }

    fn weighted_sum(&self, values: &[f32]) -> f64 {
        let (first, end) = (self.start.floor() as usize, self.end.ceil() as usize);
        let Some(covered) = values.get(first..end) else { return 0.0 };
        match covered {
            [] => 0.0,
            [only] => f64::from(*only) * self.length(),
            [head, inner @ .., tail] => {
                // grey values of 8 bits: a sum of single precision is exact up to 65,000 of them
                let inner: f32 = inner.iter().sum();
                f64::from(*head) * (first as f64 + 1.0 - self.start)
                    + f64::from(inner)
                    + f64::from(*tail) * (self.end - (end as f64 - 1.0))
            }
        }
    }
}
