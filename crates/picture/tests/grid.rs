//! Grids: where things lie, and what is drawn there.
#![allow(clippy::unwrap_used)]

use loralei_picture::{Grid, Layout, Picture, PictureError, Rect, TextBlock};

const WHITE: [u8; 3] = [255; 3];

/// No two pictures and no two pixels of one alike, nor near the colours of text and rules.
fn picture(width_px: u32, height_px: u32, tint: u8) -> Picture {
    let pixel = |at: u32| [(at % 251) as u8, tint, (at / 251 % 251) as u8 | 1];
    Picture::from_rgb(width_px, height_px, (0..width_px * height_px).flat_map(pixel).collect()).unwrap()
}

fn pictures(num: u8, side_px: u32) -> Vec<Picture> {
    (0..num).map(|index| picture(side_px, side_px, 90 + index)).collect()
}

/// Everything a grid can have, with texts far too long for their places.
fn full(side_px: u32) -> Grid {
    let long = "a very long prompt that needs several lines and then some more ".repeat(8);
    Grid::new()
        .title("What it learned: ".to_owned() + &long)
        .groups([("before", 2), ("after \u{732b}", 1)])
        .columns(["seed 1", &long, ""])
        .section("the subject")
        .row(&long, pictures(3, side_px))
        .row("short", pictures(3, side_px))
        .section(&long)
        .row("", pictures(3, side_px))
}

fn blocks(layout: &Layout) -> Vec<&TextBlock> {
    let headings = layout.title.iter().chain(&layout.groups).chain(&layout.sections);
    headings.chain(&layout.columns).chain(&layout.rows).filter(|block| !block.lines.is_empty()).collect()
}

fn contains(area: &Rect, x: u32, y: u32) -> bool {
    (area.x_px..area.right_px()).contains(&x) && (area.y_px..area.bottom_px()).contains(&y)
}

fn overlap(a: &Rect, b: &Rect) -> bool {
    a.x_px < b.right_px() && b.x_px < a.right_px() && a.y_px < b.bottom_px() && b.y_px < a.bottom_px()
}

fn with_edge(cell: &Rect) -> Rect {
    Rect { x_px: cell.x_px - 1, y_px: cell.y_px - 1, width_px: cell.width_px + 2, height_px: cell.height_px + 2 }
}

#[test]
fn nothing_is_drawn_outside_its_area_and_no_areas_overlap() {
    for side_px in [16, 64, 200, 400] {
        let (layout, sheet) = (full(side_px).layout().unwrap(), full(side_px).render().unwrap());
        let cells: Vec<Rect> = layout.cells.iter().flatten().map(with_edge).collect();
        let texts = blocks(&layout).into_iter().map(|block| block.area);
        let areas: Vec<Rect> = cells.into_iter().chain(texts).collect();
        for (index, area) in areas.iter().enumerate() {
            assert!(area.right_px() <= layout.width_px && area.bottom_px() <= layout.height_px, "{area:?}");
            let hit = areas[index + 1..].iter().chain(&layout.rules).find(|other| overlap(area, other));
            assert_eq!(hit, None, "{area:?} at {side_px} px");
        }
        for (x, y) in (0..sheet.width_px()).flat_map(|x| (0..sheet.height_px()).map(move |y| (x, y))) {
            let is_inside = areas.iter().chain(&layout.rules).any(|area| contains(area, x, y));
            assert!(is_inside || sheet.pixel(x, y) == Some(WHITE), "at {x}, {y} of {side_px} px");
        }
    }
}

#[test]
fn every_line_of_every_label_has_dark_pixels() {
    let (layout, sheet) = (full(64).layout().unwrap(), full(64).render().unwrap());
    let blocks = blocks(&layout);
    assert_eq!(blocks.len(), 1 + 2 + 2 + 2 + 2);
    for block in blocks {
        let line_px = block.area.height_px / block.lines.len() as u32;
        for (line, index) in block.lines.iter().zip(0..) {
            let rows = block.area.y_px + index * line_px..block.area.y_px + (index + 1) * line_px;
            let columns = block.area.x_px..block.area.right_px();
            let points = rows.flat_map(|y| columns.clone().map(move |x| (x, y)));
            let num_dark = points.filter(|&(x, y)| sheet.pixel(x, y).is_some_and(|pixel| pixel[0] < 100)).count();
            assert!(num_dark > 10 * line.split(' ').count(), "{num_dark} dark pixels in {line:?}");
        }
    }
}

#[test]
fn cells_are_exact_copies_of_their_pictures() {
    for (side_px, scale) in [(16, 12), (64, 3), (96, 2), (100, 2), (128, 1), (400, 1)] {
        let (layout, sheet) = (full(side_px).layout().unwrap(), full(side_px).render().unwrap());
        assert_eq!(layout.scale, scale, "{side_px} px");
        for cells in &layout.cells {
            for (cell, picture) in cells.iter().zip(pictures(3, side_px)) {
                assert_eq!((cell.width_px, cell.height_px), (side_px * scale, side_px * scale));
                for (x, y) in (0..cell.width_px).flat_map(|x| (0..cell.height_px).map(move |y| (x, y))) {
                    let found = sheet.pixel(cell.x_px + x, cell.y_px + y);
                    assert_eq!(found, picture.pixel(x / scale, y / scale), "at {x}, {y}");
                }
            }
        }
    }
}

#[test]
fn pictures_of_other_sizes_are_centred_in_cells_of_the_largest() {
    let grid = Grid::new().row("", vec![picture(64, 32, 90), picture(48, 64, 91)]);
    let layout = grid.layout().unwrap();
    let (wide, high) = (layout.cells[0][0], layout.cells[0][1]);
    assert_eq!((wide.width_px, wide.height_px, high.width_px, high.height_px), (192, 96, 144, 192));
    assert_eq!((wide.y_px - high.y_px, high.x_px - wide.right_px()), (48, 24 + 8));
    let sheet = grid.render().unwrap();
    assert_eq!(sheet.pixel(wide.x_px, wide.y_px), Some([0, 90, 1]));
    assert_eq!(sheet.pixel(wide.x_px, wide.y_px - 2), Some(WHITE));
}

#[test]
fn long_labels_end_in_dots_and_short_ones_are_whole() {
    let layout = full(64).layout().unwrap();
    for block in [layout.title.as_ref().unwrap(), &layout.columns[1], &layout.rows[0], &layout.sections[1]] {
        assert!(block.lines.len() > 1 && block.lines.last().unwrap().ends_with("..."), "{:?}", block.lines);
    }
    assert_eq!(
        (&layout.rows[1].lines, &layout.columns[0].lines),
        (&vec!["short".to_owned()], &vec!["seed 1".to_owned()])
    );
}

#[test]
fn a_character_the_font_lacks_is_drawn_as_a_question_mark() {
    let titled = |title: &str| Grid::new().title(title).row("", pictures(2, 64)).render().unwrap();
    assert_eq!(titled("a \u{732b}\u{1f419}!"), titled("a ??!"));
    assert_ne!(titled("caf\u{e9}"), titled("caf?"));
    assert_ne!(titled("caf\u{e9}"), titled("cafe"));
}

#[test]
fn halves_have_headings_over_their_columns_and_a_line_between() {
    let rows = [("a cat", 0), ("a dog", 1)].map(|(label, _)| (label, pictures(2, 64), pictures(3, 64)));
    let layout = Grid::before_after(rows).unwrap().layout().unwrap();
    let headings: Vec<&str> = layout.groups.iter().map(|block| block.lines[0].as_str()).collect();
    assert_eq!(headings, ["before", "after"]);
    let row = &layout.cells[1];
    for (block, first, last) in [(&layout.groups[0], 0, 1), (&layout.groups[1], 2, 4)] {
        assert_eq!((block.area.x_px, block.area.right_px()), (row[first].x_px, row[last].right_px()));
    }
    let between = row[1].right_px()..row[2].x_px;
    let divider = layout.rules.iter().find(|rule| rule.height_px > 192 * 2).unwrap();
    assert!(between.contains(&divider.x_px) && between.len() > 2 * (row[1].x_px - row[0].right_px()) as usize);
}

#[test]
fn grids_that_do_not_add_up_are_errors() {
    let row = |num| Grid::new().row("a", pictures(num, 8));
    assert!(matches!(Grid::new().title("no rows").render(), Err(PictureError::GridEmpty)));
    assert!(matches!(row(0).render(), Err(PictureError::GridEmpty)));
    assert!(matches!(Grid::before_after::<&str>([]), Err(PictureError::GridEmpty)));
    let ragged = row(2).row("b", pictures(3, 8)).render().unwrap_err();
    assert_eq!(ragged.to_string(), "row 1 of the grid (\"b\") holds 3 pictures, the first row holds 2");
    let halves = [("a", pictures(1, 8), pictures(2, 8)), ("b", pictures(2, 8), pictures(1, 8))];
    assert!(matches!(Grid::before_after(halves), Err(PictureError::GridRow { row: 1, .. })));
    assert!(matches!(row(2).columns(["x"]).render(), Err(PictureError::GridColumns { expected: 2, found: 1 })));
    for groups in [[("x", 1), ("y", 2)], [("x", 2), ("y", 0)], [("x", usize::MAX), ("y", 2)]] {
        assert!(matches!(row(2).groups(groups).render(), Err(PictureError::GridGroups { .. })));
    }
    let strip = Picture::of_colour(1 << 24, 1, [0; 3]).unwrap();
    assert!(matches!(Grid::new().row("", vec![strip]).render(), Err(PictureError::TooLarge { .. })));
}

#[test]
fn the_same_grid_gives_the_same_bytes() {
    let bytes = || full(64).render().unwrap().to_png(Some("a grid")).unwrap();
    assert_eq!(bytes(), bytes());
}
