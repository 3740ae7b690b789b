//! Pictures side by side, so that they can be compared: rows and columns with labels, dark on white.

use crate::{Layout, Picture, PictureError, Rect, TextBlock};

const BACKGROUND: [u8; 3] = [255, 255, 255];
/// Titles and headings: 15.8 to 1 on white.
const INK: [u8; 3] = [31, 35, 40];
/// Labels: 9.0 to 1 on white.
const LABEL_INK: [u8; 3] = [66, 74, 83];
/// Lines, and the edge around each cell, without which a white picture would have none.
const RULE: [u8; 3] = [208, 215, 222];

/// Pictures in rows and columns, with a title and labels; built step by step, then rendered.
///
/// Every row needs as many pictures as the first; everything else may be left out. Small pictures are enlarged by a
/// whole factor, so that a cell has about 128 to 192 pixels a side; the others are copied as they are. Labels are
/// broken into lines, and what still does not fit ends in dots. The font knows Latin-1; other characters become `?`.
#[derive(Debug, Clone, Default)]
pub struct Grid {
    pub(crate) title: String,
    /// Heading and number of columns.
    pub(crate) groups: Vec<(String, usize)>,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Row>,
    /// Heading for the next row.
    section: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Heading above the row; mostly empty.
    pub(crate) section: String,
    pub(crate) label: String,
    pub(crate) pictures: Vec<Picture>,
}

impl Grid {
    /// A grid without rows.
    pub fn new() -> Self {
        Self::default()
    }

    /// Two halves, `before` and `after`: each row is (label, pictures before, pictures after).
    ///
    /// # Errors
    /// If a row has another number of pictures before or after than the first row.
    pub fn before_after<L: Into<String>>(
        rows: impl IntoIterator<Item = (L, Vec<Picture>, Vec<Picture>)>,
    ) -> Result<Self, PictureError> {
        let mut grid = Self::new();
        let mut counts = None;
        for (row, (label, before, after)) in rows.into_iter().enumerate() {
            let label = label.into();
            let (num_before, num_after) = *counts.get_or_insert((before.len(), after.len()));
            for (expected, found) in [(num_before, before.len()), (num_after, after.len())] {
                if expected != found {
                    return Err(PictureError::GridRow { row, label, expected, found });
                }
            }
            grid = grid.row(label, before.into_iter().chain(after).collect());
        }
        let (num_before, num_after) = counts.ok_or(PictureError::GridEmpty)?;
        Ok(grid.groups([("before", num_before), ("after", num_after)]))
    }

    /// A line over everything.
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = title.into();
        self
    }

    /// A label over each column.
    #[must_use]
    pub fn columns<L: Into<String>>(mut self, labels: impl IntoIterator<Item = L>) -> Self {
        self.columns = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Parts the columns into groups, from the left: the heading of each and how many columns it has.
    #[must_use]
    pub fn groups<L: Into<String>>(mut self, groups: impl IntoIterator<Item = (L, usize)>) -> Self {
        self.groups = groups.into_iter().map(|(heading, num_columns)| (heading.into(), num_columns)).collect();
        self
    }

    /// Adds a row below the others, with a label at its left (which may be empty).
    #[must_use]
    pub fn row(mut self, label: impl Into<String>, pictures: Vec<Picture>) -> Self {
        self.rows.push(Row { section: std::mem::take(&mut self.section), label: label.into(), pictures });
        self
    }

    /// A heading above the row that is added next.
    #[must_use]
    pub fn section(mut self, heading: impl Into<String>) -> Self {
        self.section = heading.into();
        self
    }

    /// Where everything will lie.
    ///
    /// # Errors
    /// If there is no picture, if rows differ in length, if labels or groups do not match the columns, or if the whole
    /// has more than [`MAX_PIXELS`](crate::picture::MAX_PIXELS).
    pub fn layout(&self) -> Result<Layout, PictureError> {
        let expected = self.rows.first().map_or(0, |row| row.pictures.len());
        if expected == 0 {
            return Err(PictureError::GridEmpty);
        }
        for (index, row) in self.rows.iter().enumerate() {
            let found = row.pictures.len();
            if found != expected {
                return Err(PictureError::GridRow { row: index, label: row.label.clone(), expected, found });
            }
        }
        if !self.columns.is_empty() && self.columns.len() != expected {
            return Err(PictureError::GridColumns { expected, found: self.columns.len() });
        }
        let counts = || self.groups.iter().map(|(_, num_columns)| *num_columns);
        let total = counts().fold(0, usize::saturating_add);
        if !self.groups.is_empty() && (total != expected || counts().any(|num_columns| num_columns == 0)) {
            return Err(PictureError::GridGroups { expected, found: counts().collect() });
        }
        Layout::of(self, expected)
    }

    /// The whole as one picture.
    ///
    /// # Errors
    /// As [`Grid::layout`].
    pub fn render(&self) -> Result<Picture, PictureError> {
        let layout = self.layout()?;
        let mut sheet = Picture::of_colour(layout.width_px, layout.height_px, BACKGROUND)?;
        layout.rules.iter().for_each(|rule| sheet.fill(*rule, RULE));
        for (row, cells) in self.rows.iter().zip(&layout.cells) {
            for (picture, cell) in row.pictures.iter().zip(cells) {
                let edge = Rect {
                    x_px: cell.x_px - 1,
                    y_px: cell.y_px - 1,
                    width_px: cell.width_px + 2,
                    height_px: cell.height_px + 2,
                };
                sheet.fill(edge, RULE);
                sheet.paste(&picture.enlarged(layout.scale)?, cell.x_px, cell.y_px);
            }
        }
        for block in layout.title.iter().chain(&layout.groups).chain(&layout.sections) {
            draw(&mut sheet, block, INK);
        }
        for block in layout.columns.iter().chain(&layout.rows) {
            draw(&mut sheet, block, LABEL_INK);
        }
        Ok(sheet)
    }
}

/// Draws a block's lines, each at the left or in the middle of its area.
fn draw(sheet: &mut Picture, block: &TextBlock, colour: [u8; 3]) {
    let mut y_px = block.area.y_px;
    for line in &block.lines {
        let width_px = line.chars().count() as u32 * block.size.char_px();
        let spare_px = if block.is_centred { block.area.width_px.saturating_sub(width_px) / 2 } else { 0 };
        sheet.letter(line, block.area.x_px + spare_px, y_px, block.size, colour);
        y_px += block.size.line_px();
    }
}
