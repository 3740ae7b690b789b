//! The configuration as text.

use toml::Value;

use super::{Choice, Goal};
use crate::config::{Checkpointing, one_line};

/// Where comments stand.
const COLUMN: usize = 32;

impl Choice<'_> {
    pub(super) fn text(&self) -> String {
        let folder = self.request.folder.display().to_string();
        let mut lines = vec![
            format!("# {} images of a {}, `{}`.", self.num_images, self.goal.name(), one_line(&folder)),
            format!(
                "# loralei train {}.toml --print-config shows every setting; docs/reference/config.md says what it means.",
                self.name
            ),
            String::new(),
            setting("preset", self.preset, "what is not set here"),
            String::new(),
            "[model]".to_owned(),
            setting("base", self.request.base, ""),
            String::new(),
            "[data]".to_owned(),
            setting("images", folder, "relative to the current directory"),
            setting("size_px", self.size_px as i64, "what the base was trained on"),
        ];
        if let Some(trigger) = &self.trigger {
            lines.push(setting("trigger", trigger.as_str(), "calls it; put in front of captions that lack it"));
        }
        match &self.class {
            Some(class) => lines.push(setting("class", class.as_str(), "what it is a kind of")),
            None if self.goal == Goal::Subject => {
                lines.push(commented(
                    "# class = \"dog\"",
                    "say what it is a kind of: it spares the others of that kind",
                ));
            }
            None => {}
        }
        if let Some(prompt) = &self.prompt {
            lines.push(setting("prompt", prompt.as_str(), "caption of images without one"));
        }
        let each = self.steps * self.batch_size / self.num_images.max(1);
        lines.extend([
            String::new(),
            "[train]".to_owned(),
            setting("steps", self.steps as i64, &format!("shows each image about {each} times; 100 is usual")),
            setting("batch_size", self.batch_size as i64, ""),
        ]);
        let usual = super::preset_config(self.preset).train.checkpointing == Checkpointing::Block;
        if self.recompute && !usual {
            lines.push(setting("checkpointing", "block", "less memory, more time, the same result"));
        }
        let samples: Vec<Value> = self.samples.iter().map(|prompt| Value::from(prompt.as_str())).collect();
        lines.extend([String::new(), "[samples]".to_owned(), "prompts = [".to_owned()]);
        lines.extend(samples.into_iter().map(|prompt| format!("    {prompt},")));
        lines.extend([
            commented("]", "what is learned, and what must stay as it was"),
            setting("every_steps", (self.steps / 5) as i64, ""),
            String::new(),
            "[output]".to_owned(),
            setting("folder", format!("runs/{}", self.name), ""),
        ]);
        lines.join("\n") + "\n"
    }
}

fn setting(key: &str, value: impl Into<Value>, comment: &str) -> String {
    let line = format!("{key} = {}", value.into());
    if comment.is_empty() { line } else { commented(&line, comment) }
}

fn commented(line: &str, comment: &str) -> String {
    format!("{line:COLUMN$}# {comment}")
}
