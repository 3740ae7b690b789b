//! Files of one JSON object a line, as they are while somebody appends to them.

use std::io::{self, BufRead};

use serde::de::DeserializeOwned;

/// Gives the objects of `lines` to `take` in their order, one at a time, and returns the number of lines that are none.
///
/// A last line without its line feed is still being written: it is neither an object nor counted.
pub(crate) fn read<T: DeserializeOwned>(mut lines: impl BufRead, mut take: impl FnMut(T)) -> io::Result<usize> {
    let (mut line, mut num_unreadable) = (Vec::new(), 0);
    loop {
        line.clear();
        lines.read_until(b'\n', &mut line)?;
        let Some(line) = line.strip_suffix(b"\n") else { return Ok(num_unreadable) };
        match serde_json::from_slice(line) {
            Ok(object) => take(object),
            Err(_) => num_unreadable += usize::from(!line.trim_ascii().is_empty()),
        }
    }
}

/// Adds what was read of a run that may have been resumed: where steps were made again, only the last time counts.
pub(crate) fn add_step<T>(kept: &mut Vec<T>, object: T, step: impl Fn(&T) -> u64) {
    while kept.last().is_some_and(|last| step(last) >= step(&object)) {
        kept.pop();
    }
    kept.push(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_last_line_is_ignored_and_a_damaged_line_is_counted() {
        let read_all = |text: &str| {
            let mut all: Vec<u64> = Vec::new();
            let num_unreadable = read(text.as_bytes(), |object| all.push(object)).unwrap();
            (all, num_unreadable)
        };
        assert_eq!(read_all("1\n\n2\n\u{0}\u{0}\n3\n4"), (vec![1, 2, 3], 1));
        assert_eq!(read_all("12"), (vec![], 0));
    }

    #[test]
    fn steps_that_were_made_again_count_once_and_as_they_were_the_last_time() {
        let steps = [(0, 'a'), (1, 'a'), (2, 'a'), (3, 'a'), (2, 'b'), (3, 'b'), (4, 'b')];
        let mut kept = Vec::new();
        steps.into_iter().for_each(|line| add_step(&mut kept, line, |(step, _)| *step));
        assert_eq!(kept, [(0, 'a'), (1, 'a'), (2, 'b'), (3, 'b'), (4, 'b')]);
    }
}
