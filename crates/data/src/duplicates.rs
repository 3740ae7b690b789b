//! Pictures that are there twice: the same file, or another file of the same picture.
//!
//! A picture that is there five times is learnt five times as hard, which is rarely meant.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::DataError;
use crate::look::Look;
use crate::survey::Surveyed;

/// Looks that differ in at most this many of 64 bits are the same picture.
///
/// Measured on 20 photographs and drawings: copies at JPEG quality 30 to 90, at a quarter to 1.6 times the size, 20 %
/// darker or 25 % brighter differ in at most 8 bits, different pictures of the same dog, toy or drawing in at least 18.
pub const MAX_LOOK_DISTANCE: u32 = 10;

/// Groups of pictures, as indices into what was given, sorted; each group has at least two.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Duplicates {
    /// The same bytes.
    pub same_content: Vec<Vec<usize>>,
    /// The same look. A group may hold files of the same bytes too, but not only such.
    pub same_look: Vec<Vec<usize>>,
}

/// Finds pictures that are there more than once in what a [`survey`](crate::survey()) returned. What could not be read
/// is like nothing, and pictures of one colour or surveyed by their header alone have no look.
///
/// Every pair of looks is compared: 10,000 pictures take a tenth of a second, 100,000 about five.
pub fn find_duplicates(surveyed: &[Result<Surveyed, DataError>]) -> Duplicates {
    let seen = || surveyed.iter().enumerate().filter_map(|(index, result)| Some((index, result.as_ref().ok()?)));
    let mut by_content = BTreeMap::<_, Vec<usize>>::new();
    for (index, picture) in seen() {
        by_content.entry(picture.content).or_default().push(index);
    }
    // One of each content: copies of a file are not compared with each other again.
    let mut looks: Vec<(usize, Look)> =
        by_content.values().filter_map(|group| Some((group[0], surveyed[group[0]].as_ref().ok()?.look?))).collect();
    looks.sort_unstable_by_key(|&(index, _)| index);

    let mut same_look: Vec<Vec<usize>> = groups(&looks)
        .into_iter()
        .map(|group| {
            let contents = group.iter().filter_map(|&index| surveyed[index].as_ref().ok().map(|seen| seen.content));
            let mut all: Vec<usize> =
                contents.filter_map(|content| by_content.get(&content)).flatten().copied().collect();
            all.sort_unstable();
            all
        })
        .collect();
    same_look.sort_unstable();
    let mut same_content: Vec<Vec<usize>> = by_content.into_values().filter(|group| group.len() > 1).collect();
    same_content.sort_unstable();
    Duplicates { same_content, same_look }
}

/// Joins what is alike, directly or through others, and returns the groups of at least two.
fn groups(looks: &[(usize, Look)]) -> Vec<Vec<usize>> {
    /// Rows of pairs that are compared before those alike are joined: even if all were, they would take little memory.
    const ROWS: usize = 64;
    // each points at an earlier one of its group, or at itself
    let mut earlier: Vec<usize> = (0..looks.len()).collect();
    for start in (0..looks.len()).step_by(ROWS) {
        let rows = start..looks.len().min(start + ROWS);
        let pairs: Vec<(usize, usize)> = rows
            .into_par_iter()
            .flat_map_iter(|first| {
                let alike = move |&second: &usize| looks[first].1.distance(looks[second].1) <= MAX_LOOK_DISTANCE;
                (first + 1..looks.len()).filter(alike).map(move |second| (first, second))
            })
            .collect();
        for (first, second) in pairs {
            let (first, second) = (root(&mut earlier, first), root(&mut earlier, second));
            earlier[first.max(second)] = first.min(second);
        }
    }
    let mut groups = BTreeMap::<usize, Vec<usize>>::new();
    for (at, &(index, _)) in looks.iter().enumerate() {
        groups.entry(root(&mut earlier, at)).or_default().push(index);
    }
    groups.into_values().filter(|group| group.len() > 1).collect()
}

fn root(earlier: &mut [usize], mut at: usize) -> usize {
    while earlier[at] != at {
        earlier[at] = earlier[earlier[at]];
        at = earlier[at];
    }
    at
}
