//! What `loralei dataset check` says to people: one screen. Long lists are cut; JSON has all of them.

use std::fmt::Display;
use std::path::Path;

use loralei_trainer::{BucketReport, DataReport, NamedSize};

use crate::report::{RED, YELLOW, gigabytes, painted_if};

/// Width of the words at the left.
const LABEL_CHARS: usize = 12;
/// Longest line of a list of words.
const LINE_CHARS: usize = 110;
/// Most characters of a text that is cut, and of one that is quoted.
const QUOTED_CHARS: usize = 70;
/// Lines of the lists.
const MOST: usize = 4;
const MOST_BUCKETS: usize = 8;
const MOST_WARNINGS: usize = 8;
const MOST_TAGS: usize = 12;

/// A report for people.
pub(crate) struct DatasetText<'a> {
    pub(crate) report: &'a DataReport,
    /// What paths are shown without.
    pub(crate) root: &'a Path,
    pub(crate) has_colors: bool,
}

impl DatasetText<'_> {
    pub(crate) fn to_text(&self) -> String {
        let report = self.report;
        let mut lines = Vec::new();
        self.images(&mut lines);
        self.captions(&mut lines);
        if report.images > 0 {
            self.sizes(&mut lines);
        }
        self.files(&mut lines);
        if report.images > 0 {
            self.run(&mut lines);
        }
        let texts = |texts: &[String], word: &str, color: u8| -> Vec<String> {
            texts
                .iter()
                .map(|text| format!("{} {}", painted_if(self.has_colors, word, color), one_line(text)))
                .collect()
        };
        push_most(&mut lines, texts(&report.warnings, "warning:", YELLOW), MOST_WARNINGS);
        push_most(&mut lines, texts(&report.errors, "error:", RED), MOST_WARNINGS);
        if report.errors.is_empty() && report.warnings.is_empty() {
            lines.push("nothing to complain of".to_owned());
        }
        lines.concat_lines()
    }

    fn images(&self, lines: &mut Vec<String>) {
        let report = self.report;
        let of_class = match report.class_images {
            0 => String::new(),
            count => format!(", {count} of them of the class"),
        };
        let folder = match &report.places[..] {
            [place] => format!("in {}{}", one_line(&place.path), times(place.repeats)),
            _ => format!("in {}", one_line(&self.root.display().to_string())),
        };
        lines.push(line("images", format!("{}{of_class} {folder}", report.images)));
        let places = report.places.iter().filter(|_| report.places.len() > 1).map(|place| {
            let role = if place.role == "subject" { String::new() } else { format!(" ({})", place.role) };
            let count = if place.role == "mask" { place.masks } else { place.images };
            line("", format!("{count:>6} in {}{role}{}", one_line(&place.path), times(place.repeats)))
        });
        push_most(lines, places.collect(), MOST + 2);
    }

    fn captions(&self, lines: &mut Vec<String>) {
        let (report, origins) = (self.report, self.report.caption_origins);
        let missing = report.captions_missing.len();
        let parts: Vec<String> = [
            (origins.files, "in files"),
            (origins.metadata, "in metadata.jsonl"),
            (origins.file_names, "from names of files"),
            (origins.folder_names, "from names of folders"),
            (origins.prompts, "from the prompt"),
            (missing, "missing"),
            (report.captions_varying, "vary"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        let tokens = report.tokens.map(|tokens| {
            let range = if tokens.shortest == tokens.longest {
                tokens.longest.to_string()
            } else {
                format!("{} to {}", tokens.shortest, tokens.longest)
            };
            format!("; {range} tokens of {}", tokens.max)
        });
        if !parts.is_empty() {
            lines.push(line("captions", parts.join(", ") + &tokens.unwrap_or_default()));
        }
        if report.captions_varying > 0 {
            let epochs = report.epochs_checked;
            lines.push(line("", format!("those that vary were looked at as in the first {epochs} epochs")));
        }
        let missing = report.captions_missing.iter().map(|path| self.below(path));
        push_listed(lines, "missing", missing.collect());
        let long = report.captions_too_long.iter().map(|caption| {
            format!("{}: {} tokens, cut: {}", self.below(&caption.path), caption.tokens, quoted(&caption.cut))
        });
        push_listed(lines, "too long", long.collect());
        let tags = report.tags.iter().take(MOST_TAGS).map(|tag| format!("{} {}", tag.count, quoted(&tag.tag)));
        let more = report.tags.len().saturating_sub(MOST_TAGS);
        let more = (more > 0).then(|| format!("and {more} more"));
        for (index, words) in filled(tags.chain(more)).into_iter().enumerate() {
            lines.push(line(if index == 0 { "tags" } else { "" }, words));
        }
    }

    fn sizes(&self, lines: &mut Vec<String>) {
        let report = self.report;
        if let (Some(smallest), Some(largest)) = (&report.smallest, &report.largest) {
            let size = |size: &NamedSize| format!("{} x {} ({})", size.width, size.height, self.below(&size.path));
            let is_same = (smallest.width, smallest.height) == (largest.width, largest.height);
            let range = if is_same { String::new() } else { format!("{} to ", size(smallest)) };
            lines.push(line("sizes", format!("{range}{}", size(largest))));
        }
        let mut by_count: Vec<&BucketReport> = report.buckets.iter().collect();
        by_count.sort_by_key(|bucket| std::cmp::Reverse(bucket.count)); // stable
        let multiple = match &report.base {
            Some(base) => format!("sides are multiples of {} for {}", report.size_multiple_px, one_line(base)),
            None => format!("sides as multiples of {}; --base takes those of a base", report.size_multiple_px),
        };
        lines.push(line("buckets", format!("   width  height  images  showings  cropped  ({multiple})")));
        let rows = by_count.iter().map(|bucket| {
            let BucketReport { width, height, count, showings, cropped_share, .. } = bucket;
            let class = if bucket.role == "class" { "  class" } else { "" };
            let percent = cropped_share * 100.0;
            line("", format!("{width:>8}{height:>8}{count:>8}{showings:>10}{percent:>7.1} %{class}"))
        });
        push_most(lines, rows.collect(), MOST_BUCKETS);
    }

    fn files(&self, lines: &mut Vec<String>) {
        let report = self.report;
        let masks = report.masks;
        if let Some(share) = masks.learned_share {
            let parts = [(masks.files, "in files"), (masks.transparent, "by transparency")];
            let parts =
                parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
            let parts = parts.collect::<Vec<_>>().join(", ");
            lines.push(line("masks", format!("{parts}; they leave {:.0} % of these images", share * 100.0)));
        }
        let groups = report.duplicates.iter().map(|group| {
            let paths: Vec<String> = group.paths.iter().take(MOST).map(|path| self.below(path)).collect();
            let more = group.paths.len().saturating_sub(MOST);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let what = if group.same == "content" { "the same file" } else { "look the same" };
            format!("{}{more} ({what})", paths.join(", "))
        });
        push_listed(lines, "duplicates", groups.collect());
        let unreadable = report.unreadable.iter().map(|file| one_line(&file.reason));
        push_listed(lines, "unreadable", unreadable.collect());
        let skipped = report.skipped.iter().map(|entry| format!("{}: {}", self.below(&entry.path), entry.reason));
        push_listed(lines, "left aside", skipped.collect());
    }

    fn run(&self, lines: &mut Vec<String>) {
        let report = self.report;
        if report.epochs > 0.0 {
            let showings = report.showings_per_epoch;
            let (epochs, per_epoch) = (rounded(report.epochs), rounded(report.steps_per_epoch));
            let steps = report.steps;
            let epochs = if epochs == "1" { "1 epoch".to_owned() } else { format!("{epochs} epochs") };
            lines.push(line("steps", format!("{steps} are {epochs} of {per_epoch} steps, {showings} showings")));
        }
        let place = if report.cache_is_on_disk { "on the disk" } else { "in memory" };
        let megabytes = report.cache_bytes as f64 / 1e6;
        lines.push(line("encoded", format!("{megabytes:.1} MB of images and captions {place}")));
        let memory = match (report.memory_bytes, report.free_memory_bytes) {
            (Some(needed), Some(free)) => {
                format!("about {} for training, {} free", gigabytes(needed), gigabytes(free))
            }
            (Some(needed), None) => format!("about {} for training", gigabytes(needed)),
            (None, _) => "--base says how much a base takes".to_owned(),
        };
        lines.push(line("memory", memory));
    }

    fn below(&self, path: &str) -> String {
        below(self.root, Path::new(path))
    }
}

/// Lines with their ends.
trait ConcatLines {
    fn concat_lines(self) -> String;
}

impl ConcatLines for Vec<String> {
    fn concat_lines(self) -> String {
        self.into_iter().map(|line| line.trim_end().to_owned() + "\n").collect()
    }
}

fn line(label: &str, text: impl Display) -> String {
    format!("{label:<LABEL_CHARS$}{text}")
}

fn times(repeats: u32) -> String {
    if repeats == 1 { String::new() } else { format!(", each {repeats} times an epoch") }
}

/// The entries below each other, the label beside the first.
fn push_listed(lines: &mut Vec<String>, label: &str, entries: Vec<String>) {
    let entries = entries.into_iter().enumerate();
    push_most(lines, entries.map(|(index, text)| line(if index == 0 { label } else { "" }, text)).collect(), MOST);
}

fn push_most(lines: &mut Vec<String>, mut entries: Vec<String>, most: usize) {
    let more = entries.len().saturating_sub(most);
    // One more line says what one more entry would.
    let more = if more == 1 { 0 } else { more };
    entries.truncate(if more == 0 { most + 1 } else { most });
    lines.append(&mut entries);
    if more > 0 {
        lines.push(line("", format!("and {more} more (--json lists all)")));
    }
}

/// Words with commas between in lines that are not too long.
fn filled(words: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 2 + word.chars().count() <= LINE_CHARS => {
                line.push_str(", ");
                line.push_str(&word);
            }
            Some(line) => {
                line.push(',');
                lines.push(word);
            }
            None => lines.push(word),
        }
    }
    lines
}

/// A number with as many digits as matter.
fn rounded(number: f64) -> String {
    if number >= 10.0 || number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
}

/// A text in quotation marks, its middle left out if it is long.
fn quoted(text: &str) -> String {
    let chars: Vec<char> = one_line(text).chars().collect();
    if chars.len() <= QUOTED_CHARS {
        return format!("\"{}\"", String::from_iter(chars));
    }
    let (head, tail) = (&chars[..QUOTED_CHARS - 20], &chars[chars.len() - 15..]);
    format!("\"{} ... {}\"", String::from_iter(head).trim_end(), String::from_iter(tail).trim_start())
}

/// A path without the folder around it.
pub(crate) fn below(root: &Path, path: &Path) -> String {
    one_line(&path.strip_prefix(root).unwrap_or(path).display().to_string())
}

/// Without line breaks and what else would steer a terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_longer_than_its_lines_says_how_much_is_left_out() {
        let pushed = |count: usize| {
            let mut lines = Vec::new();
            push_listed(&mut lines, "too long", (0..count).map(|number| number.to_string()).collect());
            lines
        };
        assert!(pushed(0).is_empty());
        assert_eq!(pushed(5).len(), 5, "one more line would say no less");
        assert_eq!(pushed(6)[..2], ["too long    0".to_owned(), "            1".to_owned()]);
        assert_eq!((pushed(6).len(), pushed(6)[4].trim()), (5, "and 2 more (--json lists all)"));
    }

    #[test]
    fn quotations_keep_both_ends_and_nothing_steers_the_terminal() {
        assert_eq!(quoted("a dog"), "\"a dog\"");
        let long = quoted(&format!("start {} end", "word ".repeat(40)));
        assert!(long.starts_with("\"start word") && long.ends_with("word end\"") && long.contains(" ... "), "{long}");
        assert!(long.chars().count() <= QUOTED_CHARS + 2, "{long}");
        assert_eq!(quoted("\u{1b}[2Jx\n"), "\"\u{fffd}[2Jx\u{fffd}\"");
    }

    #[test]
    fn words_fill_lines() {
        let lines = filled((0..40).map(|number| format!("word {number}")));
        assert!(lines.len() > 1 && lines.iter().all(|line| line.chars().count() <= LINE_CHARS + 1));
        assert_eq!(lines.join(" ").split(", ").count(), 40);
    }
}
