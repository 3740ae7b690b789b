//! Numbers as people read them.

/// Seconds: `12 s`, `3 min 05 s`, `2 h 40 min`, `3 d 4 h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Bytes: `512 B`, `3.4 MB`, `1.20 GB`.
pub(crate) fn bytes(num_bytes: u64) -> String {
    let value = num_bytes as f64;
    match num_bytes {
        0..1000 => format!("{num_bytes} B"),
        1000..1_000_000 => format!("{:.0} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

/// A count with its thousands apart: `12,345`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits: `0.0523`, `12.3`, `1.2e-5`.
pub(crate) fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let rounded = to_digits(value, 3);
    if (1e-4..1e6).contains(&rounded.abs()) { rounded.to_string() } else { format!("{rounded:e}") }
}

/// A number for a script that shows four digits.
pub(crate) fn rounded(value: f64) -> f64 {
    to_digits(value, 4)
}

fn to_digits(value: f64, num_digits: usize) -> f64 {
    format!("{value:.0$e}", num_digits - 1).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([4.4, 185.0, 9_599.6, 273_600.0].map(duration), ["4 s", "3 min 05 s", "2 h 40 min", "3 d 4 h"]);
        assert_eq!([999, 12_345, 3_400_000, 1_204_000_000].map(bytes), ["999 B", "12 kB", "3.4 MB", "1.20 GB"]);
        assert_eq!([7, 123, 1_000, 12_345_678].map(count), ["7", "123", "1,000", "12,345,678"]);
        assert_eq!([0.052345, 12.34, 0.00001234, 0.0001].map(significant), ["0.0523", "12.3", "1.23e-5", "0.0001"]);
    }
}
