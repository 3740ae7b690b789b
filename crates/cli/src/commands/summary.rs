//! What a run leaves behind, on one screen: what was learned, where it is, what to do with it.

use loralei_trainer::{BeforeAfter, Finished, Plan, WrittenAdapter};

/// A finished run.
pub(crate) struct Summary<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) finished: &'a Finished,
    /// As the user named the base.
    pub(crate) base: &'a str,
}

impl Summary<'_> {
    /// One line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Finished { adapter: WrittenAdapter { path, num_bytes, num_modules, num_parameters }, losses, .. } =
            self.finished;
        let mut lines = vec![
            String::new(),
            line("adapter", &format!("{} ({:.2} MB)", path.display(), *num_bytes as f64 / 1e6)),
            line(
                "",
                &format!(
                    "{num_parameters} numbers in {num_modules} modules; any program that reads kohya's keys loads it"
                ),
            ),
            line("loss", &format!("{:.4} in the first tenth of the steps, {:.4} in the last", losses.0, losses.1)),
        ];
        if let Some(samples) = &self.finished.samples {
            lines.push(line("pictures", &samples.path.display().to_string()));
            lines.extend(self.changes(samples).into_iter().map(|text| line("", &text)));
        }
        lines.push(line("next", &self.command("")));
        lines.push(line("", &self.command(" --grid scale=-1,0,0.5,1")));
        lines
    }

    /// How far the pictures moved, which is what was asked for in some and not in the others.
    fn changes(&self, samples: &BeforeAfter) -> Vec<String> {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let trigger = self.plan.data.trigger.as_deref();
        let asked = samples.changed_with_trigger.map(|share| match trigger {
            Some(trigger) => format!("those that say `{trigger}` changed by {}", percent(share)),
            None => format!("they changed by {}", percent(share)),
        });
        let others = samples.changed_without_trigger.map(|share| format!("the others changed by {}", percent(share)));
        asked.into_iter().chain(others).collect()
    }

    /// A command that draws with the adapter.
    fn command(&self, more: &str) -> String {
        let prompts = self.plan.samples.iter().flat_map(|samples| &samples.prompts);
        let trigger = self.plan.data.trigger.clone().unwrap_or_default();
        let prompt = prompts.into_iter().find(|prompt| prompt.contains(&trigger)).cloned().unwrap_or(trigger);
        let (adapter, base) = (quoted(&self.finished.adapter.path.display().to_string()), quoted(self.base));
        let size = format!("{}x{}", self.plan.data.largest_px().0, self.plan.data.largest_px().1);
        let prompt = quoted(&prompt);
        let guidance = self.plan.samples.as_ref().map(|samples| format!(" --guidance {}", samples.guidance_scale));
        let guidance = guidance.unwrap_or_default();
        format!(
            "loralei generate --base {base} --adapter {adapter} --prompt {prompt} --size {size}{guidance}{more} --output out.png"
        )
    }
}

fn line(name: &str, text: &str) -> String {
    format!("{name:<9} {text}")
}

/// As a shell takes it for one word.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_for_a_shell_where_they_need_it() {
        assert_eq!(
            ["runs/a-1.safetensors", "a dog", "it's", ""].map(quoted),
            ["runs/a-1.safetensors", "'a dog'", r"'it'\''s'", "''"]
        );
    }
}
