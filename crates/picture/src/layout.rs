//! Where everything of a grid lies, in pixels from the top left: pure arithmetic, nothing is drawn here.
//!
//! From the top: title, headings of the column groups, column labels, then the rows, each with its label at its left
//! and perhaps the heading of a section above it. All cells have the same size, that of the largest picture.

use std::ops::Range;

use crate::grid::{Grid, Row};
use crate::lettering::{LetterSize, wrap};
use crate::picture::MAX_PIXELS;
use crate::{Picture, PictureError};

/// Small pictures are enlarged up to this side, if a whole factor allows it.
const ENLARGED_SIDE_PX: u32 = 192;
/// No cell's longer side stays below this.
const MIN_CELL_SIDE_PX: u32 = 128;
/// From this side on, everything around the cells is larger too.
const LARGE_CELL_SIDE_PX: u32 = 320;
/// Columns are at least this wide, so that their labels stay words.
const MIN_COLUMN_PX: u32 = 64;
/// Longest line of a row's label.
const ROW_LABEL_CHARS: usize = 24;

/// A rectangle of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Its left column.
    pub x_px: u32,
    /// Its top row.
    pub y_px: u32,
    /// Its width.
    pub width_px: u32,
    /// Its height.
    pub height_px: u32,
}

impl Rect {
    /// First column to the right of it.
    pub fn right_px(&self) -> u32 {
        self.x_px.saturating_add(self.width_px)
    }

    /// First row below it.
    pub fn bottom_px(&self) -> u32 {
        self.y_px.saturating_add(self.height_px)
    }
}

/// Lines of text and the rectangle they are drawn in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextBlock {
    /// What the lines may fill.
    pub area: Rect,
    /// The lines, as they were broken and cut.
    pub lines: Vec<String>,
    /// Whether the lines are centred in the area, rather than at its left.
    pub is_centred: bool,
    pub(crate) size: LetterSize,
}

/// Where everything of a grid lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Width of the whole.
    pub width_px: u32,
    /// Height of the whole.
    pub height_px: u32,
    /// By which whole factor the pictures are enlarged.
    pub scale: u32,
    /// The title, if there is one.
    pub title: Option<TextBlock>,
    /// Headings over groups of columns.
    pub groups: Vec<TextBlock>,
    /// Labels over the columns; none, or one each.
    pub columns: Vec<TextBlock>,
    /// Headings over rows, where sections start.
    pub sections: Vec<TextBlock>,
    /// Labels at the left of the rows, one each.
    pub rows: Vec<TextBlock>,
    /// The pixels of each picture, by row and column.
    pub cells: Vec<Vec<Rect>>,
    /// Lines below headings and between groups.
    pub rules: Vec<Rect>,
}

/// Sizes that are the same all over a grid.
struct Spacing {
    cell_width_px: u32,
    cell_height_px: u32,
    gap_px: u32,
    margin_px: u32,
    group_gap_px: u32,
    label: LetterSize,
    scale: u32,
}

impl Spacing {
    fn of(rows: &[Row]) -> Self {
        let pictures = || rows.iter().flat_map(|row| &row.pictures);
        let width_px = pictures().map(Picture::width_px).max().unwrap_or(1);
        let height_px = pictures().map(Picture::height_px).max().unwrap_or(1);
        let side_px = width_px.max(height_px);
        let scale = (ENLARGED_SIDE_PX / side_px).max(MIN_CELL_SIDE_PX.div_ceil(side_px)).max(1);
        let is_large = side_px >= LARGE_CELL_SIDE_PX;
        let label = if is_large { LetterSize::Large } else { LetterSize::Small };
        Self {
            cell_width_px: (width_px * scale).max(MIN_COLUMN_PX),
            cell_height_px: (height_px * scale).max(label.line_px()),
            gap_px: if is_large { 12 } else { 8 },
            margin_px: if is_large { 24 } else { 16 },
            group_gap_px: if is_large { 48 } else { 32 },
            label,
            scale,
        }
    }

    /// Whether so many cells are a picture at all; below this bound no position overflows.
    fn check(&self, num_columns: usize, num_rows: usize) -> Result<(), PictureError> {
        let width_px = u64::from(self.cell_width_px).saturating_mul(num_columns as u64);
        let height_px = u64::from(self.cell_height_px).saturating_mul(num_rows as u64);
        match width_px.checked_mul(height_px) {
            Some(num_pixels) if num_pixels <= MAX_PIXELS => Ok(()),
            _ => Err(PictureError::TooLarge { width_px, height_px }),
        }
    }

    /// A block of `text` at (`x_px`, `y_px`), as high as its lines.
    fn block(&self, text: &str, x_px: u32, y_px: u32, width_px: u32, max_lines: usize) -> TextBlock {
        block_of(text, self.label, (x_px, y_px), width_px, max_lines)
    }
}

impl Layout {
    /// Lays out `grid`, which has been checked.
    pub(crate) fn of(grid: &Grid, num_columns: usize) -> Result<Self, PictureError> {
        let spacing = Spacing::of(&grid.rows);
        spacing.check(num_columns, grid.rows.len())?;
        let gutter_px = gutter_px(&grid.rows, &spacing);
        let lefts_px = column_lefts_px(grid, num_columns, &spacing, gutter_px);
        let right_px = lefts_px.last().copied().unwrap_or(0) + spacing.cell_width_px;
        let mut layout = Self {
            width_px: right_px + spacing.margin_px,
            height_px: spacing.margin_px,
            scale: spacing.scale,
            title: None,
            groups: Vec::new(),
            columns: Vec::new(),
            sections: Vec::new(),
            rows: Vec::new(),
            cells: Vec::new(),
            rules: Vec::new(),
        };
        layout.add_title(&grid.title, &spacing);
        let head_px = layout.height_px;
        layout.add_groups(&grid.groups, &lefts_px, &spacing);
        layout.add_column_labels(&grid.columns, &lefts_px, &spacing);
        // What the dividers pass, from section to section.
        let mut spans_px = Vec::new();
        spans_px.push(head_px..layout.height_px);
        for row in &grid.rows {
            if layout.add_section(row, &spacing) {
                spans_px.push(layout.height_px..layout.height_px);
            }
            layout.add_row(row, &lefts_px, gutter_px, &spacing);
            if let Some(span_px) = spans_px.last_mut() {
                span_px.end = layout.height_px - spacing.gap_px;
            }
        }
        layout.height_px = layout.height_px - spacing.gap_px + spacing.margin_px;
        layout.add_dividers(&grid.groups, &lefts_px, &spans_px, &spacing);
        Ok(layout)
    }

    /// The title in large letters; where those would take more than two lines, in small ones.
    fn add_title(&mut self, title: &str, spacing: &Spacing) {
        let width_px = self.width_px - 2 * spacing.margin_px;
        let fits = wrap(title, chars(width_px, LetterSize::Large), 3).len() <= 2;
        let (size, max_lines) = if fits { (LetterSize::Large, 2) } else { (LetterSize::Small, 4) };
        let block = block_of(title, size, (spacing.margin_px, self.height_px), width_px, max_lines);
        if !block.lines.is_empty() {
            self.height_px = block.area.bottom_px() + spacing.gap_px * 2;
            self.title = Some(block);
        }
    }

    /// A heading with a line below it over each group of columns.
    fn add_groups(&mut self, groups: &[(String, usize)], lefts_px: &[u32], spacing: &Spacing) {
        let mut bounds_px = Vec::new();
        let mut first = 0;
        for (_, num_columns) in groups {
            let (left_px, last_px) = (lefts_px[first], lefts_px[first + num_columns - 1]);
            bounds_px.push((left_px, last_px + spacing.cell_width_px - left_px));
            first += num_columns;
        }
        let fits = |(text, width_px): (&str, u32)| wrap(text, chars(width_px, LetterSize::Large), 2).len() <= 1;
        let is_large = groups.iter().zip(&bounds_px).all(|((text, _), &(_, width_px))| fits((text, width_px)));
        let (size, max_lines) = if is_large { (LetterSize::Large, 1) } else { (spacing.label, 2) };

        let top_px = self.height_px;
        for ((heading, _), (left_px, width_px)) in groups.iter().zip(&bounds_px) {
            let mut block = block_of(heading, size, (*left_px, top_px), *width_px, max_lines);
            block.is_centred = true;
            self.height_px = self.height_px.max(block.area.bottom_px());
            self.groups.push(block);
        }
        if !groups.is_empty() {
            let y_px = self.height_px + spacing.gap_px / 2;
            let rule = |&(x_px, width_px): &(u32, u32)| Rect { x_px, y_px, width_px, height_px: 2 };
            self.rules.extend(bounds_px.iter().map(rule));
            self.height_px = y_px + 2 + spacing.gap_px;
        }
    }

    /// Labels centred over the columns, standing on the first row.
    fn add_column_labels(&mut self, labels: &[String], lefts_px: &[u32], spacing: &Spacing) {
        let top_px = self.height_px;
        for (label, left_px) in labels.iter().zip(lefts_px) {
            let mut block = spacing.block(label, *left_px, top_px, spacing.cell_width_px, 3);
            block.is_centred = true;
            self.height_px = self.height_px.max(block.area.bottom_px());
            self.columns.push(block);
        }
        for block in &mut self.columns {
            block.area.y_px = self.height_px - block.area.height_px;
        }
        if self.height_px > top_px {
            self.height_px += spacing.gap_px / 2;
        }
    }

    /// The heading of the section that starts with `row`, with a line below it; whether one does.
    fn add_section(&mut self, row: &Row, spacing: &Spacing) -> bool {
        let top_px = self.height_px + if self.rows.is_empty() && self.columns.is_empty() { 0 } else { spacing.gap_px };
        let width_px = self.width_px - 2 * spacing.margin_px;
        let block = spacing.block(&row.section, spacing.margin_px, top_px, width_px, 2);
        let is_start = !block.lines.is_empty();
        if is_start {
            let y_px = block.area.bottom_px() + spacing.gap_px / 4;
            self.rules.push(Rect { x_px: spacing.margin_px, y_px, width_px, height_px: 1 });
            self.height_px = y_px + 1 + spacing.gap_px;
            self.sections.push(block);
        }
        is_start
    }

    /// The label and the pictures of one row, and the gap below.
    fn add_row(&mut self, row: &Row, lefts_px: &[u32], gutter_px: u32, spacing: &Spacing) {
        let top_px = self.height_px;
        let max_lines = spacing.cell_height_px / spacing.label.line_px();
        let mut block = spacing.block(&row.label, spacing.margin_px, top_px, gutter_px, max_lines as usize);
        block.area.y_px += (spacing.cell_height_px - block.area.height_px) / 2;
        self.rows.push(block);

        let cell = |(picture, left_px): (&Picture, &u32)| {
            let (width_px, height_px) = (picture.width_px() * spacing.scale, picture.height_px() * spacing.scale);
            Rect {
                x_px: left_px + (spacing.cell_width_px - width_px) / 2,
                y_px: top_px + (spacing.cell_height_px - height_px) / 2,
                width_px,
                height_px,
            }
        };
        self.cells.push(row.pictures.iter().zip(lefts_px).map(cell).collect());
        self.height_px = top_px + spacing.cell_height_px + spacing.gap_px;
    }

    /// Upright lines between the groups of columns.
    fn add_dividers(
        &mut self,
        groups: &[(String, usize)],
        lefts_px: &[u32],
        spans_px: &[Range<u32>],
        spacing: &Spacing,
    ) {
        let mut first = 0;
        for (_, num_columns) in groups.iter().take(groups.len().saturating_sub(1)) {
            first += num_columns;
            let x_px = lefts_px[first] - spacing.group_gap_px / 2;
            let divider = |span_px: &Range<u32>| Rect {
                x_px,
                y_px: span_px.start,
                width_px: 1,
                height_px: span_px.end - span_px.start,
            };
            self.rules.extend(spans_px.iter().map(divider));
        }
    }
}

/// Width of the row labels: that of the longest line, 0 where no row has a label.
fn gutter_px(rows: &[Row], spacing: &Spacing) -> u32 {
    let max_lines = (spacing.cell_height_px / spacing.label.line_px()) as usize;
    let lines = rows.iter().flat_map(|row| wrap(&row.label, ROW_LABEL_CHARS, max_lines));
    lines.map(|line| line.chars().count()).max().unwrap_or(0) as u32 * spacing.label.char_px()
}

/// Left side of every column.
fn column_lefts_px(grid: &Grid, num_columns: usize, spacing: &Spacing, gutter_px: u32) -> Vec<u32> {
    let mut starts = vec![false; num_columns];
    let mut first = 0;
    for (_, num_columns) in &grid.groups {
        starts[first] = first > 0;
        first += num_columns;
    }
    let mut left_px = spacing.margin_px + if gutter_px > 0 { gutter_px + spacing.margin_px } else { 0 };
    let mut lefts_px = Vec::with_capacity(num_columns);
    for is_start in starts {
        if is_start {
            left_px += spacing.group_gap_px - spacing.gap_px;
        }
        lefts_px.push(left_px);
        left_px += spacing.cell_width_px + spacing.gap_px;
    }
    lefts_px
}

fn block_of(text: &str, size: LetterSize, at_px: (u32, u32), width_px: u32, max_lines: usize) -> TextBlock {
    let lines = wrap(text, chars(width_px, size), max_lines);
    let height_px = lines.len() as u32 * size.line_px();
    TextBlock { area: Rect { x_px: at_px.0, y_px: at_px.1, width_px, height_px }, lines, is_centred: false, size }
}

/// Characters that fit.
fn chars(width_px: u32, size: LetterSize) -> usize {
    (width_px / size.char_px()) as usize
}
