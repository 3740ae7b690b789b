//! A contact sheet: many small pictures in rows, each with a few lines below it.

use crate::lettering::{LetterSize, wrap};
use crate::{Picture, PictureError, Rect};

/// No side of a sheet is longer, if its pictures can be made small enough.
pub const MAX_SHEET_SIDE_PX: u32 = 4000;
/// Sides of the squares that the pictures fit into, from the largest; the first is taken that lets the sheet stay small.
const CELL_SIDES_PX: [u32; 6] = [512, 384, 320, 256, 208, 160];
/// Lines of text below a picture, for the first of these sides and for the last.
const MAX_LINES: (usize, usize) = (14, 5);

const BACKGROUND: [u8; 3] = [255, 255, 255];
const INK: [u8; 3] = [31, 35, 40];
const LABEL_INK: [u8; 3] = [66, 74, 83];
/// Text that does not count: 2.4 to 1 on white.
const FADED_INK: [u8; 3] = [160, 166, 173];
const RULE: [u8; 3] = [208, 215, 222];
const MARGIN_PX: u32 = 16;
const GAP_PX: u32 = 16;
const SIZE: LetterSize = LetterSize::Small;

/// What stands below a picture.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SheetText {
    /// One line in dark ink, cut to the width.
    pub heading: String,
    /// One line, cut to the width.
    pub details: String,
    /// Broken into lines.
    pub text: String,
    /// Bytes of `text` that count; what follows is faded.
    pub counted_bytes: usize,
}

/// Where the pictures of a sheet lie, known before there is any, so that each can be drawn and dropped.
#[derive(Debug)]
pub struct ContactSheet {
    sheet: Picture,
    cells: Vec<Rect>,
}

/// The sizes of one attempt.
struct Attempt {
    side_px: u32,
    num_columns: usize,
    /// Of each row.
    num_lines: Vec<usize>,
    max_lines: usize,
}

impl ContactSheet {
    /// A sheet of `texts.len()` cells in rows, the texts drawn and the cells empty, below `title`.
    ///
    /// # Errors
    /// Without a cell, or with so many that there is no such picture.
    pub fn new(title: &str, texts: &[SheetText]) -> Result<Self, PictureError> {
        if texts.is_empty() {
            return Err(PictureError::GridEmpty);
        }
        let mut attempts = CELL_SIDES_PX.iter().enumerate().map(|(index, side_px)| {
            let (most, least) = MAX_LINES;
            Attempt::new(*side_px, most - (most - least) * index / (CELL_SIDES_PX.len() - 1), texts)
        });
        let fits = |attempt: &Attempt| attempt.width_px().max(attempt.height_px()) <= MAX_SHEET_SIDE_PX;
        let last = CELL_SIDES_PX[CELL_SIDES_PX.len() - 1];
        let attempt = attempts.find(fits).unwrap_or_else(|| Attempt::new(last, MAX_LINES.1, texts));
        let mut sheet = Picture::of_colour(attempt.width_px(), attempt.height_px(), BACKGROUND)?;
        let title_chars = (attempt.width_px() - 2 * MARGIN_PX) / SIZE.char_px();
        if let Some(line) = wrap(title, title_chars as usize, 1).first() {
            sheet.letter(line, MARGIN_PX, MARGIN_PX, SIZE, INK);
        }
        let cells: Vec<Rect> = (0..texts.len()).map(|index| attempt.cell(index)).collect();
        for (cell, text) in cells.iter().zip(texts) {
            attempt.draw_text(&mut sheet, *cell, text);
        }
        Ok(Self { sheet, cells })
    }

    /// The square that picture `index` is drawn into, none if there is no such cell. A picture whose longer side is not
    /// longer is drawn as it is.
    pub fn cell(&self, index: usize) -> Option<Rect> {
        self.cells.get(index).copied()
    }

    /// Draws a picture in the middle of its cell, with an edge around it. Small ones are enlarged by a whole factor;
    /// what is larger than the cell is cut off.
    ///
    /// # Errors
    /// None that could be met.
    pub fn draw(&mut self, index: usize, picture: &Picture) -> Result<(), PictureError> {
        let Some(cell) = self.cell(index) else { return Ok(()) };
        let factor = (cell.width_px / picture.width_px().max(picture.height_px())).max(1);
        let picture = picture.enlarged(factor)?;
        let (width_px, height_px) = (picture.width_px().min(cell.width_px), picture.height_px().min(cell.height_px));
        let (x_px, y_px) = (cell.x_px + (cell.width_px - width_px) / 2, cell.y_px + (cell.height_px - height_px) / 2);
        let edge = Rect { x_px: x_px - 1, y_px: y_px - 1, width_px: width_px + 2, height_px: height_px + 2 };
        self.sheet.fill(edge, RULE);
        self.sheet.paste(&picture, x_px, y_px);
        Ok(())
    }

    /// The sheet as it is now.
    pub fn finish(self) -> Picture {
        self.sheet
    }
}

impl Attempt {
    fn new(side_px: u32, max_lines: usize, texts: &[SheetText]) -> Self {
        let most_columns = (MAX_SHEET_SIDE_PX - 2 * MARGIN_PX + GAP_PX) / (side_px + GAP_PX);
        // About as wide as high, if every cell has half of its lines.
        let cell_height_px = side_px + (2 + max_lines as u32 / 2) * SIZE.line_px();
        let ideal = (texts.len() as f64 * f64::from(cell_height_px) / f64::from(side_px)).sqrt().ceil();
        let num_columns = (ideal as usize).clamp(1, (most_columns as usize).min(texts.len()).max(1));
        let width_chars = (side_px / SIZE.char_px()) as usize;
        let lines_of = |text: &SheetText| wrap(&text.text, width_chars, max_lines).len();
        let rows = texts.chunks(num_columns);
        let num_lines = rows.map(|row| row.iter().map(lines_of).max().unwrap_or(0)).collect();
        Self { side_px, num_columns, num_lines, max_lines }
    }

    fn width_px(&self) -> u32 {
        2 * MARGIN_PX + self.num_columns as u32 * (self.side_px + GAP_PX) - GAP_PX
    }

    fn row_px(&self, row: usize) -> u32 {
        self.side_px + (2 + self.num_lines.get(row).copied().unwrap_or(0) as u32) * SIZE.line_px() + GAP_PX + GAP_PX / 2
    }

    fn top_px(&self, row: usize) -> u32 {
        MARGIN_PX + SIZE.line_px() + GAP_PX / 2 + (0..row).map(|above| self.row_px(above)).sum::<u32>()
    }

    fn height_px(&self) -> u32 {
        self.top_px(self.num_lines.len()) + MARGIN_PX - GAP_PX
    }

    fn cell(&self, index: usize) -> Rect {
        let (row, column) = (index / self.num_columns, (index % self.num_columns) as u32);
        let (x_px, y_px) = (MARGIN_PX + column * (self.side_px + GAP_PX), self.top_px(row));
        Rect { x_px, y_px, width_px: self.side_px, height_px: self.side_px }
    }

    fn draw_text(&self, sheet: &mut Picture, cell: Rect, text: &SheetText) {
        let width_chars = (self.side_px / SIZE.char_px()) as usize;
        let mut y_px = cell.bottom_px() + GAP_PX / 4;
        for (line, ink) in [(&text.heading, INK), (&text.details, LABEL_INK)] {
            if let Some(line) = wrap(line, width_chars, 1).first() {
                sheet.letter(line, cell.x_px, y_px, SIZE, ink);
            }
            y_px += SIZE.line_px();
        }
        // Broken lines keep every character but white space.
        let counted = text.text.get(..text.counted_bytes).unwrap_or(&text.text);
        let mut num_counted = counted.chars().filter(|char| !char.is_whitespace()).count();
        for line in wrap(&text.text, width_chars, self.max_lines) {
            let chars = line.chars().filter(|char| !char.is_whitespace());
            let num_here = num_counted.min(chars.count());
            num_counted -= num_here;
            let split = line.char_indices().filter(|(_, char)| !char.is_whitespace()).nth(num_here);
            let (head, tail) = line.split_at(split.map_or(line.len(), |(at, _)| at));
            sheet.letter(head, cell.x_px, y_px, SIZE, LABEL_INK);
            sheet.letter(tail, cell.x_px + head.chars().count() as u32 * SIZE.char_px(), y_px, SIZE, FADED_INK);
            y_px += SIZE.line_px();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(count: usize, words: usize) -> Vec<SheetText> {
        let text = SheetText { heading: "a.png".into(), text: "word ".repeat(words), ..SheetText::default() };
        vec![text; count]
    }

    #[test]
    fn two_hundred_pictures_with_long_captions_stay_within_the_largest_side() {
        for (count, words) in [(1, 0), (1, 400), (5, 20), (20, 75), (21, 300), (60, 75), (200, 0), (200, 300)] {
            let sheet = ContactSheet::new("title", &texts(count, words)).unwrap();
            let cells: Vec<Rect> = (0..count).filter_map(|index| sheet.cell(index)).collect();
            assert_eq!(cells.len(), count);
            let picture = sheet.finish();
            let side_px = picture.width_px().max(picture.height_px());
            assert!(side_px <= MAX_SHEET_SIDE_PX, "{count} x {words}: {picture:?}");
            assert!(cells.iter().all(|c| c.right_px() < picture.width_px() && c.bottom_px() < picture.height_px()));
        }
        assert!(ContactSheet::new("title", &[]).is_err());
    }

    #[test]
    fn a_picture_is_drawn_whole_in_the_middle_of_its_cell_and_small_ones_are_enlarged() {
        let mut sheet = ContactSheet::new("", &texts(2, 1)).unwrap();
        let cell = sheet.cell(1).unwrap();
        let mut rgb = [255, 0, 0].repeat(100 * 50);
        rgb[..3].copy_from_slice(&[0, 0, 255]);
        sheet.draw(1, &Picture::from_rgb(100, 50, rgb).unwrap()).unwrap();
        let factor = cell.width_px / 100;
        let (x, y) = (cell.x_px + (cell.width_px - 100 * factor) / 2, cell.y_px + (cell.height_px - 50 * factor) / 2);
        let picture = sheet.finish();
        assert_eq!(picture.pixel(x, y), Some([0, 0, 255]));
        assert_eq!(picture.pixel(x + factor - 1, y + factor - 1), Some([0, 0, 255]));
        assert_eq!(picture.pixel(x + factor, y), Some([255, 0, 0]));
        assert_eq!(picture.pixel(x + 100 * factor - 1, y + 50 * factor - 1), Some([255, 0, 0]));
        assert_eq!(picture.pixel(x - 1, y), Some(RULE));
        assert_eq!(picture.pixel(x - 2, y), Some(BACKGROUND));
    }

    #[test]
    fn text_that_does_not_count_is_faded_from_its_first_character_on() {
        let mut text = SheetText { text: "kept MMMM".into(), counted_bytes: 5, ..SheetText::default() };
        let darkest = |text: &SheetText| {
            let sheet = ContactSheet::new("", std::slice::from_ref(text)).unwrap();
            let cell = sheet.cell(0).unwrap();
            let (y_px, x_px) = (cell.bottom_px() + GAP_PX / 4 + 2 * SIZE.line_px(), cell.x_px + 5 * SIZE.char_px());
            let picture = sheet.finish();
            let darkest_in = |from: u32, to: u32| {
                let columns = (from..to).flat_map(|x| (y_px..y_px + SIZE.line_px()).map(move |y| (x, y)));
                columns.filter_map(|(x, y)| picture.pixel(x, y)).map(|[red, _, _]| red).min().unwrap()
            };
            (darkest_in(cell.x_px, x_px), darkest_in(x_px, x_px + 4 * SIZE.char_px()))
        };
        let (kept, cut) = darkest(&text);
        assert!(kept < 100 && cut >= FADED_INK[0], "{kept} {cut}");
        text.counted_bytes = text.text.len();
        assert!(darkest(&text).1 < 100);
    }
}
