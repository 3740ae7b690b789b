//! The pictures of a run as a table: a row for each step, a column for each prompt with its seed.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::html::relative_address;
use crate::run_folder::Sample;
use crate::thumbnail::Thumbnails;

/// Most pictures that stand in the page itself, about 6 MB of it. The others are fetched from their files when they come
/// into sight.
const MAX_INLINE: usize = 400;

/// The table.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct SampleTable {
    pub columns: Vec<Column>,
    /// Ascending by step.
    pub rows: Vec<Row>,
}

/// What a column draws again and again.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Column {
    pub prompt: String,
    /// As text, because a script's numbers end at 2^53.
    pub seed: String,
    pub width_px: u32,
    pub height_px: u32,
}

/// The pictures of one step; as many cells as the table has columns.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Steps made.
    pub step: u64,
    pub cells: Vec<Option<Cell>>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Cell {
    /// Address of the full picture, relative to the page.
    pub file: String,
    /// A `data:` address; absent beyond [`MAX_INLINE`], or if the picture cannot be read.
    pub thumbnail: Option<String>,
}

impl SampleTable {
    /// Puts pictures where they belong. The n-th picture of a step with some prompt, seed and size stands in the n-th
    /// column of these. Of several pictures in one place the last counts.
    pub(crate) fn of(samples: &[Sample], thumbnails: &mut Thumbnails<'_>) -> Self {
        let mut columns: Vec<Column> = Vec::new();
        let mut places: BTreeMap<u64, Vec<(usize, &Sample)>> = BTreeMap::new();
        for sample in samples {
            if relative_address(&sample.file).is_none() {
                tracing::warn!(file = sample.file, "a sample outside of the run's folder is left out");
                continue;
            }
            let row = places.entry(sample.step).or_default();
            if let Some(place) = row.iter_mut().find(|(_, other)| other.file == sample.file) {
                if is_like(&column_of(place.1), sample) {
                    place.1 = sample; // drawn again after a resume
                    continue;
                }
                let stale = place.0;
                row.retain(|(column, _)| *column != stale);
            }
            let taken: Vec<usize> = row.iter().map(|(column, _)| *column).collect();
            let free =
                columns.iter().enumerate().position(|(i, column)| is_like(column, sample) && !taken.contains(&i));
            let column = free.unwrap_or_else(|| {
                columns.push(column_of(sample));
                columns.len() - 1
            });
            row.push((column, sample));
        }
        let mut table = Self { rows: Vec::with_capacity(places.len()), columns };
        for (step, row) in &places {
            let mut cells = vec![None; table.columns.len()];
            for (column, sample) in row {
                let file = relative_address(&sample.file).unwrap_or_default();
                cells[*column] = Some(Cell { file, thumbnail: None });
            }
            table.rows.push(Row { step: *step, cells });
        }
        table.fill_thumbnails(&places, thumbnails);
        table
    }

    /// The first row, then from the newest backwards, until [`MAX_INLINE`].
    fn fill_thumbnails(&mut self, places: &BTreeMap<u64, Vec<(usize, &Sample)>>, thumbnails: &mut Thumbnails<'_>) {
        let num_rows = self.rows.len();
        let order = (0..num_rows.min(1)).chain((1..num_rows).rev());
        let mut num_inline = 0;
        for index in order {
            let row = &mut self.rows[index];
            for (column, sample) in &places[&row.step] {
                let Some(cell) = &mut row.cells[*column] else { continue };
                if num_inline == MAX_INLINE {
                    return;
                }
                cell.thumbnail = thumbnails.data_uri(&sample.file);
                num_inline += usize::from(cell.thumbnail.is_some());
            }
        }
    }
}

fn column_of(sample: &Sample) -> Column {
    let Sample { prompt, seed, width_px, height_px, .. } = sample;
    Column { prompt: prompt.clone(), seed: seed.to_string(), width_px: *width_px, height_px: *height_px }
}

fn is_like(column: &Column, sample: &Sample) -> bool {
    *column == column_of(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(step: u64, number: usize, prompt: &str, seed: u64) -> Sample {
        let file = format!("samples/{step:06}-{number}.png");
        Sample { step, file, prompt: prompt.to_owned(), seed, width_px: 64, height_px: 96 }
    }

    fn table(samples: &[Sample]) -> SampleTable {
        let folder = tempfile::tempdir().unwrap();
        SampleTable::of(samples, &mut Thumbnails::of(folder.path()))
    }

    fn files(table: &SampleTable) -> Vec<(u64, Vec<Option<&str>>)> {
        let files = |row: &'_ Row| row.step;
        table
            .rows
            .iter()
            .map(|row| (files(row), row.cells.iter().map(|cell| cell.as_ref().map(|c| c.file.as_str())).collect()))
            .collect()
    }

    #[test]
    fn equal_prompts_share_columns_and_new_prompts_get_their_own() {
        let samples = [
            sample(0, 1, "a dog", 1),
            sample(0, 2, "a dog", 1), // the same twice
            sample(0, 3, "a dog", 2),
            sample(50, 1, "a dog", 1),
            sample(50, 2, "a cat", 1), // the prompts were edited
        ];
        let table = table(&samples);
        assert_eq!(
            table.columns.iter().map(|c| (c.prompt.as_str(), c.seed.as_str())).collect::<Vec<_>>(),
            [("a dog", "1"), ("a dog", "1"), ("a dog", "2"), ("a cat", "1")]
        );
        assert_eq!(
            files(&table),
            [
                (
                    0,
                    vec![
                        Some("./samples/000000-1.png"),
                        Some("./samples/000000-2.png"),
                        Some("./samples/000000-3.png"),
                        None
                    ]
                ),
                (50, vec![Some("./samples/000050-1.png"), None, None, Some("./samples/000050-2.png")]),
            ]
        );
    }

    #[test]
    fn a_step_that_was_drawn_again_after_a_resume_stands_there_once() {
        let samples = [
            sample(0, 1, "a dog", 1),
            sample(100, 1, "a dog", 1),
            sample(50, 1, "a dog", 1),
            sample(100, 1, "a dog", 1),
        ];
        let table = table(&samples);
        assert_eq!(table.columns.len(), 1);
        assert_eq!(table.rows.iter().map(|row| row.step).collect::<Vec<_>>(), [0, 50, 100]);
    }

    #[test]
    fn a_file_outside_of_the_folder_is_never_opened() {
        let mut outside = sample(0, 1, "a dog", 1);
        outside.file = "../../secret.png".to_owned();
        assert_eq!(table(&[outside]), SampleTable::default());
    }
}
