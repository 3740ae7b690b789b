//! A prompt with flags, as sd-scripts takes them: `a dog --n blurry --w 512 --h 768 --d 1 --l 7.5 --s 28 --ss euler_a`.
//!
//! A flag begins at ` --` and ends at the next one; its name is not case sensitive, and of two of a name the last counts. Lines of
//! a file that are empty or begin with `#` are no prompts. `--g`, the guidance of another family of models, is let through and
//! has no effect. Unlike there, a flag that is not known and a value that is none are errors, and ` -- ` is text.

use loralei_model::SamplerKind;

/// Largest side of a picture in pixels.
const MOST_PX: usize = 8192;

/// A prompt and what it sets itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplePrompt {
    /// The text without flags.
    pub prompt: String,
    /// What the picture is not to show: `--n`.
    pub negative: Option<String>,
    /// Width in pixels, 8 to 8192: `--w`.
    pub width_px: Option<usize>,
    /// Height in pixels, likewise: `--h`.
    pub height_px: Option<usize>,
    /// Seed of the picture's noise: `--d`.
    pub seed: Option<u64>,
    /// How strictly it follows its prompt, 0 or more: `--l`.
    pub guidance_scale: Option<f64>,
    /// Steps of the sampler, 1 to 1000: `--s`.
    pub steps: Option<usize>,
    /// `--ss`.
    pub sampler: Option<SamplerKind>,
    /// Whether it has `--g`, which has no effect.
    pub has_idle_guidance: bool,
}

impl SamplePrompt {
    /// Takes a prompt apart.
    ///
    /// # Errors
    /// A flag that is not known, or a value that it does not take: one line that names it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut parts = split_at_flags(line.trim());
        let mut found = Self { prompt: parts.next().unwrap_or_default().trim().to_owned(), ..Self::default() };
        for flag in parts {
            let (name, value) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
            found.set(&name.to_lowercase(), value.trim())?;
        }
        Ok(found)
    }

    /// The prompts of a file's text.
    ///
    /// # Errors
    /// The number of the first wrong line, from 1, and what is wrong with it.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, (usize, String)> {
        let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim).zip(1..);
        let prompts = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        prompts.map(|(line, number)| Self::parse(line).map_err(|problem| (number, problem))).collect()
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "n" => self.negative = Some(value.to_owned()),
            "w" => self.width_px = Some(number(name, value, "8 to 8192", |px| (8..=MOST_PX).contains(px))?),
            "h" => self.height_px = Some(number(name, value, "8 to 8192", |px| (8..=MOST_PX).contains(px))?),
            "d" => self.seed = Some(number(name, value, "a whole number", |_| true)?),
            "l" => self.guidance_scale = Some(number(name, value, "0 or more", |l: &f64| l.is_finite() && *l >= 0.0)?),
            "s" => self.steps = Some(number(name, value, "1 to 1000", |steps| (1..=1000).contains(steps))?),
            "ss" => self.sampler = Some(sampler(value)?),
            "g" => self.has_idle_guidance = true,
            _ => return Err(format!("unknown flag `--{name}`")),
        }
        Ok(())
    }
}

/// The text before the first flag, then each flag without its dashes.
fn split_at_flags(line: &str) -> impl Iterator<Item = &str> {
    let is_flag = |at: usize| {
        let (before, after) = (line[..at].chars().next_back(), line[at + 2..].chars().next());
        before.is_none_or(char::is_whitespace) && after.is_some_and(char::is_alphabetic)
    };
    let mut ends: Vec<usize> = line.match_indices("--").map(|(at, _)| at).filter(|at| is_flag(*at)).collect();
    ends.push(line.len());
    let mut begin = 0;
    ends.into_iter().map(move |end| {
        let part = &line[begin..end];
        begin = (end + 2).min(line.len());
        part
    })
}

fn number<T: std::str::FromStr>(
    name: &str,
    value: &str,
    range: &str,
    is_allowed: impl Fn(&T) -> bool,
) -> Result<T, String> {
    let parsed = value.parse().ok().filter(is_allowed);
    parsed.ok_or_else(|| format!("`--{name} {value}` is not {range}"))
}

/// By our name or by that of sd-scripts.
fn sampler(value: &str) -> Result<SamplerKind, String> {
    let name = value.to_lowercase();
    let kind = match name.as_str() {
        "euler_a" | "k_euler_a" => Some(SamplerKind::EulerAncestral),
        "k_euler" => Some(SamplerKind::Euler),
        "dpmsolver++" => Some(SamplerKind::DpmPp2m),
        _ => SamplerKind::from_name(&name),
    };
    kind.ok_or_else(|| format!("`--ss {value}` is not ddim, euler-a (euler_a), dpmpp-2m (dpmsolver++), unipc or euler"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> SamplePrompt {
        SamplePrompt::parse(line).unwrap()
    }

    #[test]
    fn flags_mean_what_they_mean_in_sd_scripts() {
        let line = "a photo of sks dog --n bad, blurry --w 512 --h 768 --d 1 --l 7.5 --s 28 --ss euler_a";
        let expected = SamplePrompt {
            prompt: "a photo of sks dog".to_owned(),
            negative: Some("bad, blurry".to_owned()),
            width_px: Some(512),
            height_px: Some(768),
            seed: Some(1),
            guidance_scale: Some(7.5),
            steps: Some(28),
            sampler: Some(SamplerKind::EulerAncestral),
            has_idle_guidance: false,
        };
        assert_eq!(parse(line), expected);
        assert_eq!(
            parse("  a dog\t--W 64   --N  "),
            SamplePrompt {
                prompt: "a dog".to_owned(),
                width_px: Some(64),
                negative: Some(String::new()),
                ..SamplePrompt::default()
            }
        );
        assert_eq!(parse("--d 3 --d 4"), SamplePrompt { seed: Some(4), ..SamplePrompt::default() });
        let names = ["ddim", "k_euler_a", "euler-a", "DPMSolver++", "dpmpp-2m", "unipc", "euler", "k_euler"];
        let kinds = names.map(|name| parse(&format!("a --ss {name}")).sampler.unwrap().name());
        assert_eq!(kinds, ["ddim", "euler-a", "euler-a", "dpmpp-2m", "dpmpp-2m", "unipc", "euler", "euler"]);
        assert!(parse("a --g 3.5").has_idle_guidance);
    }

    #[test]
    fn dashes_that_begin_no_flag_are_text() {
        for text in ["a well--known dog", "a dog -- on grass", "a dog --", "a - b", "", "20--30 dogs", "a --1 b"] {
            assert_eq!(parse(text), SamplePrompt { prompt: text.to_owned(), ..SamplePrompt::default() }, "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, named) in [
            ("a --cn x.png", "`--cn`"),
            ("a --steps 30", "`--steps`"),
            ("a --w big", "`--w big`"),
            ("a --w 4", "`--w 4`"),
            ("a --h 512 768", "`--h 512 768`"),
            ("a --s 0", "`--s 0`"),
            ("a --d -1", "`--d -1`"),
            ("a --l nan", "`--l nan`"),
            ("a --ss heun", "`--ss heun`"),
        ] {
            let problem = SamplePrompt::parse(line).unwrap_err();
            assert!(problem.contains(named), "{line}: {problem}");
        }
    }

    #[test]
    fn a_file_has_a_prompt_a_line_with_comments_and_empty_lines_between() {
        let prompts = SamplePrompt::parse_lines("\u{feff}# mine\r\na dog --d 7\r\n\r\n  # --w x\n  a cat\n").unwrap();
        assert_eq!(
            prompts.iter().map(|p| (p.prompt.as_str(), p.seed)).collect::<Vec<_>>(),
            [("a dog", Some(7)), ("a cat", None)]
        );
        let (line, problem) = SamplePrompt::parse_lines("a\n\n# b\nc --x\n").unwrap_err();
        assert!(line == 4 && problem.contains("--x"), "{line} {problem}");
    }
}
