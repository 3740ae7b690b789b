//! The `README.md` beside an adapter: what the hub reads from it, and what people want to know.
//!
//! Fields and tags are those of the cards that diffusers' `train_dreambooth_lora.py` and
//! `train_dreambooth_lora_sd15_advanced.py` write.

use std::fmt::Write as _;

use crate::number_text::{count, significant};
use crate::yaml_text::quoted;

/// What a card says. Everything that is not known is left out of it.
#[derive(Debug, Clone, Default)]
pub struct ModelCard {
    /// Name of the adapter: its file without `.safetensors`.
    pub name: String,
    /// File of the adapter, relative to the card: `octopus.safetensors`.
    pub adapter_file: String,
    /// What it is, in the author's words.
    pub description: Option<String>,
    /// The base as the user named it. Only an id of the hub (`owner/name`) becomes `base_model`; a path of this machine or
    /// `emoji` never reaches the card's fields.
    pub base: String,
    /// Which family the base is of, as readers say it: `Stable Diffusion 1.5`.
    pub base_family: Option<String>,
    /// The hub's tag of that family: `stable-diffusion`.
    pub family_tag: &'static str,
    /// diffusers' class that draws with the base: `StableDiffusionPipeline`.
    pub pipeline: &'static str,
    /// Licence as the hub names it. Unset: none is claimed.
    pub license: Option<String>,
    /// The word that calls the subject.
    pub trigger: Option<String>,
    /// Images of the subject.
    pub num_images: Option<u64>,
    /// Optimizer steps.
    pub num_steps: u64,
    /// Images a step.
    pub batch_size: Option<u64>,
    /// Rank of the adapter.
    pub rank: Option<u64>,
    /// Size of the training images: width, height, in pixels.
    pub resolution_px: Option<(u32, u32)>,
    /// Mean training loss of the run's last tenth, as it was logged.
    pub loss: Option<f64>,
    /// Best validation loss and the step of it.
    pub validation: Option<(f64, u64)>,
    /// How far predictions change with the trigger, and without it, both relative to the base.
    pub leak: Option<(f64, f64)>,
    /// Pictures to show, in their order.
    pub samples: Vec<CardSample>,
    /// What the base predicts the noise's velocity for (`v`): the programs have to be told.
    pub predicts_v: bool,
}

/// One picture of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardSample {
    /// What was asked for.
    pub prompt: String,
    /// The picture, relative to the card: `samples/000500-1.png`.
    pub file: String,
}

impl ModelCard {
    /// The whole file: YAML between `---`, then Markdown.
    pub fn to_markdown(&self) -> String {
        let mut card = self.front_matter();
        let name = inline(&self.name);
        push(&mut card, format_args!("\n# {name}\n\n"));
        if !self.samples.is_empty() {
            card.push_str("<Gallery />\n\n");
        }
        if let Some(description) = &self.description {
            push(&mut card, format_args!("{}\n\n", inline(description)));
        }
        push(&mut card, format_args!("{}\n", self.what_it_is()));
        if let Some(trigger) = &self.trigger {
            push(&mut card, format_args!("\n## Trigger\n\nUse {} in the prompt.\n", code(trigger)));
        }
        card.push_str(&self.training());
        card.push_str(&self.use_lines());
        card.push_str(&self.notes());
        card
    }

    fn front_matter(&self) -> String {
        let mut yaml = String::from("---\n");
        if let Some(license) = &self.license {
            push(&mut yaml, format_args!("license: {}\n", quoted(license)));
        }
        if let Some(id) = self.base_id() {
            push(&mut yaml, format_args!("base_model: {}\nbase_model_relation: adapter\n", quoted(id)));
        }
        yaml.push_str("library_name: diffusers\npipeline_tag: text-to-image\n");
        if let Some(trigger) = &self.trigger {
            push(&mut yaml, format_args!("instance_prompt: {}\n", quoted(trigger)));
        }
        yaml.push_str("tags:\n");
        let (family, of_diffusers) = (self.family_tag, format!("{}-diffusers", self.family_tag));
        let tags = ["text-to-image", "diffusers", "lora", family, &of_diffusers, "template:sd-lora"];
        tags.iter().for_each(|tag| push(&mut yaml, format_args!("- {}\n", quoted(tag))));
        if !self.samples.is_empty() {
            yaml.push_str("widget:\n");
        }
        for sample in &self.samples {
            let url = sample.file.replace('\\', "/");
            push(&mut yaml, format_args!("- text: {}\n  output:\n    url: {}\n", quoted(&sample.prompt), quoted(&url)));
        }
        yaml.push_str("---\n");
        yaml
    }

    /// The base's id on the hub, without revision or file; `None` for everything else.
    fn base_id(&self) -> Option<&str> {
        let id = self.base.split('@').next().unwrap_or_default();
        let parts: Vec<&str> = id.split('/').collect();
        let is_part = |part: &&str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.chars().all(|char| char.is_ascii_alphanumeric() || "-_.".contains(char))
        };
        // Two parts may still be a folder below the current one.
        let is_id = parts.len() == 2 && parts.iter().all(is_part) && !std::path::Path::new(id).exists();
        is_id.then_some(id)
    }

    fn what_it_is(&self) -> String {
        let base = match (self.base_id(), &self.base_family) {
            (Some(id), _) => format!("[{id}](https://huggingface.co/{id})"),
            (None, Some(family)) => inline(family),
            (None, None) => "a Stable Diffusion base".to_owned(),
        };
        let rank = self.rank.map(|rank| format!(" of rank {rank}")).unwrap_or_default();
        format!("A LoRA{rank} for {base}, trained with loralei {}.", env!("CARGO_PKG_VERSION"))
    }

    fn training(&self) -> String {
        let rows = [
            ("Images", self.num_images.map(count)),
            ("Steps", Some(count(self.num_steps))),
            ("Images a step", self.batch_size.map(count)),
            ("Resolution", self.resolution_px.map(|(width, height)| format!("{width} x {height} px"))),
            ("Rank", self.rank.map(count)),
        ];
        let mut text = String::from("\n## Training\n\n| | |\n|---|---|\n");
        for (name, value) in rows {
            if let Some(value) = value {
                push(&mut text, format_args!("| {name} | {value} |\n"));
            }
        }
        text
    }

    fn use_lines(&self) -> String {
        let file = &self.adapter_file;
        let mut text = String::from("\n## Use\n\n");
        push(&mut text, format_args!("- AUTOMATIC1111: put {} into `models/Lora`, ", code(file)));
        push(&mut text, format_args!("write {} into the prompt.\n", code(&format!("<lora:{}:1>", self.name))));
        push(&mut text, format_args!("- ComfyUI: put it into `models/loras`, add the node `Load LoRA`.\n"));
        text.push_str("- diffusers:\n\n```python\n");
        let base = self.base_id().unwrap_or("BASE");
        let class = self.pipeline;
        push(&mut text, format_args!("from diffusers import {class}\n\n"));
        push(&mut text, format_args!("pipeline = {class}.from_pretrained({})\n", python(base)));
        push(&mut text, format_args!("pipeline.load_lora_weights(\".\", weight_name={})\n", python(file)));
        let prompt = self.samples.first().map(|sample| sample.prompt.as_str()).or(self.trigger.as_deref());
        push(&mut text, format_args!("image = pipeline({}).images[0]\n```\n", python(prompt.unwrap_or("PROMPT"))));
        if self.predicts_v {
            text.push_str(
                "\nThe base predicts velocity (v): a program that cannot tell from the checkpoint has to be told.\n",
            );
        }
        text
    }

    fn notes(&self) -> String {
        let mut text = String::new();
        if let Some(loss) = self.loss.filter(|loss| loss.is_finite()) {
            push(&mut text, format_args!("- Training loss at the end: {}. ", significant(loss)));
            text.push_str("It says little about the pictures: look at the samples.\n");
        }
        if let Some((loss, step)) = self.validation.filter(|(loss, _)| loss.is_finite()) {
            push(&mut text, format_args!("- Best validation loss: {} at step {}.\n", significant(loss), count(step)));
        }
        if let Some((with, without)) = self.leak.filter(|(with, without)| *with > 0.0 && without.is_finite()) {
            push(
                &mut text,
                format_args!("- Leak: without the trigger, predictions change {} ", significant(without / with)),
            );
            text.push_str("times as much as with it (0: not at all, 1: it does not listen for its trigger).\n");
        }
        if self.trigger.is_none() {
            text.push_str("- There is no trigger: it acts on every prompt.\n");
        }
        if text.is_empty() { text } else { format!("\n## Notes\n\n{text}") }
    }
}

/// Adds formatted text.
fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(arguments);
}

/// Text within a line of Markdown: one line, and nothing in it is markup.
fn inline(text: &str) -> String {
    let mut line = String::new();
    for char in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        if "\\`*_{}[]<>#|!~&$".contains(char) {
            line.push('\\');
        }
        line.push(char);
    }
    line
}

/// Text as code within a line: fenced by more backticks than it has in a row (CommonMark 6.1).
fn code(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let longest = text.split(|char| char != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

/// Text as a string of Python, which knows the escapes of JSON. A backtick cannot end the fence around it.
fn python(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('`', "\\x60")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn octopus() -> ModelCard {
        ModelCard {
            name: "octo_v1".to_owned(),
            adapter_file: "octo_v1.safetensors".to_owned(),
            base: "stable-diffusion-v1-5/stable-diffusion-v1-5@main".to_owned(),
            family_tag: "stable-diffusion",
            pipeline: "StableDiffusionPipeline",
            license: Some("creativeml-openrail-m".to_owned()),
            trigger: Some("ohwx: \"octopus\"".to_owned()),
            num_images: Some(8),
            num_steps: 1500,
            batch_size: Some(4),
            rank: Some(16),
            resolution_px: Some((512, 768)),
            loss: Some(0.08125),
            validation: Some((0.0912, 1200)),
            leak: Some((0.4, 0.02)),
            samples: vec![CardSample {
                prompt: "ohwx: \"octopus\"\n# 🐙".to_owned(),
                file: "samples/001500-1.png".to_owned(),
            }],
            ..ModelCard::default()
        }
    }

    #[test]
    fn a_card_has_the_hub_s_fields_and_the_use_lines() {
        let expected = r#"---
license: "creativeml-openrail-m"
base_model: "stable-diffusion-v1-5/stable-diffusion-v1-5"
base_model_relation: adapter
library_name: diffusers
pipeline_tag: text-to-image
instance_prompt: "ohwx: \"octopus\""
tags:
- "text-to-image"
- "diffusers"
- "lora"
- "stable-diffusion"
- "stable-diffusion-diffusers"
- "template:sd-lora"
widget:
- text: "ohwx: \"octopus\"\n# 🐙"
  output:
    url: "samples/001500-1.png"
---

# octo\_v1

<Gallery />

A LoRA of rank 16 for [stable-diffusion-v1-5/stable-diffusion-v1-5](https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5), trained with loralei VERSION.

## Trigger

Use `ohwx: "octopus"` in the prompt.

## Training

| | |
|---|---|
| Images | 8 |
| Steps | 1,500 |
| Images a step | 4 |
| Resolution | 512 x 768 px |
| Rank | 16 |

## Use

- AUTOMATIC1111: put `octo_v1.safetensors` into `models/Lora`, write `<lora:octo_v1:1>` into the prompt.
- ComfyUI: put it into `models/loras`, add the node `Load LoRA`.
- diffusers:

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
pipeline.load_lora_weights(".", weight_name="octo_v1.safetensors")
image = pipeline("ohwx: \"octopus\"\n# 🐙").images[0]
```

## Notes

- Training loss at the end: 0.0813. It says little about the pictures: look at the samples.
- Best validation loss: 0.0912 at step 1,200.
- Leak: without the trigger, predictions change 0.05 times as much as with it (0: not at all, 1: it does not listen for its trigger).
"#;
        assert_eq!(octopus().to_markdown(), expected.replace("VERSION", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_path_of_this_machine_never_gets_into_the_card() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        for base in
            ["/models/sd15", "models/sd15/v1.safetensors", "emoji", "./a/b", "C:\\models\\sd", "~/sd", "a/b.c d", &path]
        {
            let card = ModelCard { base: base.to_owned(), ..octopus() }.to_markdown();
            assert!(!card.contains("base_model"), "{base}: {card}");
            assert!(!card.contains(base), "{base}: {card}");
        }
    }

    #[test]
    fn text_of_a_card_is_no_markup() {
        let card = ModelCard {
            name: "a".to_owned(),
            description: Some("# <img src=x onerror=alert(1)>\n---\n[x](javascript:y) `z`".to_owned()),
            trigger: Some("`` tick".to_owned()),
            samples: Vec::new(),
            ..octopus()
        };
        let card = card.to_markdown();
        let body = card.split("---\n").nth(2).unwrap();
        assert!(body.contains(r"\# \<img src=x onerror=alert(1)\> --- \[x\](javascript:y) \`z\`"), "{body}");
        assert!(body.contains("Use ``` `` tick ``` in the prompt."), "{body}");
        assert!(!card.contains("<Gallery />") && !card.contains("widget"));
    }
}
