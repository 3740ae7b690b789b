//! Values as Python prints them, because that is how the metadata of existing adapters is spelled.

/// The text that Python's `str` gives for a value.
pub(crate) trait PythonText {
    fn python_text(&self) -> String;
}

impl PythonText for String {
    fn python_text(&self) -> String {
        self.clone()
    }
}

impl PythonText for u64 {
    fn python_text(&self) -> String {
        self.to_string()
    }
}

impl PythonText for bool {
    fn python_text(&self) -> String {
        if *self { "True" } else { "False" }.to_owned()
    }
}

impl<T: PythonText> PythonText for Option<T> {
    fn python_text(&self) -> String {
        self.as_ref().map_or_else(|| "None".to_owned(), T::python_text)
    }
}

/// None of nothing, one as itself, several as a list.
impl PythonText for Vec<f64> {
    fn python_text(&self) -> String {
        match self.as_slice() {
            [] => None::<f64>.python_text(),
            [one] => one.python_text(),
            several => format!("[{}]", several.iter().map(f64::python_text).collect::<Vec<_>>().join(", ")),
        }
    }
}

impl PythonText for f64 {
    /// The shortest digits that give the same number, as both languages print; Python has an exponent of at least two
    /// digits below 0.0001 and from 1e16 on, and otherwise always a decimal point.
    fn python_text(&self) -> String {
        if !self.is_finite() {
            return if self.is_nan() {
                "nan"
            } else if *self > 0.0 {
                "inf"
            } else {
                "-inf"
            }
            .to_owned();
        }
        let scientific = format!("{self:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        match exponent.parse::<i32>() {
            Ok(exponent) if !(-4..16).contains(&exponent) => {
                let sign = if exponent < 0 { '-' } else { '+' };
                format!("{digits}e{sign}{:02}", exponent.abs())
            }
            _ if self.fract() == 0.0 => format!("{self:.1}"),
            _ => self.to_string(),
        }
    }
}

/// Seconds since 1970 as UTC in ISO 8601: `2024-02-29T23:59:59Z`.
pub(crate) fn iso_8601(unix_s: u64) -> String {
    let (days, second_of_day) = (unix_s / 86_400, unix_s % 86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    // Counted from 1 March of year 0, so that the leap day is the last of its year; eras of 400 years have 146,097
    // days.
    let day = days + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153; // 153 days are five months from March or August on
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_spelled_as_python_does() {
        // for x in [1.0, 0.0, 1e-4, 1e-5, 1.5e-7, 0.1, -2.5, 1e15, 1e16, 1.25e22, 123456.75, 1700000000.0]:
        // print(str(x))
        let expected = [
            (1.0, "1.0"),
            (0.0, "0.0"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e22, "1.25e+22"),
            (123_456.75, "123456.75"),
            (1.7e9, "1700000000.0"),
        ];
        for (value, text) in expected {
            assert_eq!(value.python_text(), text);
        }
        assert_eq!([true, false].map(|value| value.python_text()), ["True", "False"]);
        assert_eq!(None::<u64>.python_text(), "None");
        assert_eq!(Some(7_u64).python_text(), "7");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // from datetime import datetime, UTC
        // for s in [0, 951782399, 951868800, 1709251199, 1735689600, 4107542400]: print(datetime.fromtimestamp(s,
        // UTC).isoformat())
        let expected = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (unix_s, text) in expected {
            assert_eq!(iso_8601(unix_s), text);
        }
    }
}
