//! A picture that others are laid on. Everything that would lie outside it is left out.

use crate::{Picture, Rect};

impl Picture {
    /// Fills `area` with `colour`.
    pub(crate) fn fill(&mut self, area: Rect, colour: [u8; 3]) {
        for y in area.y_px..area.bottom_px().min(self.height_px()) {
            for x in area.x_px..area.right_px().min(self.width_px()) {
                self.blend(x, y, colour, u8::MAX);
            }
        }
    }

    /// Copies `other` with its top left corner at (`x_px`, `y_px`).
    pub(crate) fn paste(&mut self, other: &Self, x_px: u32, y_px: u32) {
        let row_bytes = other.width_px() as usize * 3;
        let (own_row_bytes, left) = (self.width_px() as usize * 3, x_px as usize * 3);
        let rows = self.rgb_mut().chunks_exact_mut(own_row_bytes).skip(y_px as usize);
        for (own, row) in rows.zip(other.rgb().chunks_exact(row_bytes)) {
            let own = own.get_mut(left..).unwrap_or_default();
            let num_bytes = own.len().min(row.len());
            own[..num_bytes].copy_from_slice(&row[..num_bytes]);
        }
    }

    /// Moves one pixel towards `colour`, by `ink` of 255.
    pub(crate) fn blend(&mut self, x: u32, y: u32, colour: [u8; 3], ink: u8) {
        if x >= self.width_px() || y >= self.height_px() {
            return;
        }
        let at = (y as usize * self.width_px() as usize + x as usize) * 3;
        for (value, target) in self.rgb_mut()[at..at + 3].iter_mut().zip(colour) {
            let (ink, old, new) = (u32::from(ink), u32::from(*value), u32::from(target));
            *value = ((old * (255 - ink) + new * ink + 127) / 255) as u8;
        }
    }
}
