//! What a finished run left behind, in figures: `summary.json` of its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loralei_adapter::keys::Component;
use loralei_adapter::{Adapter, atomic_write_bytes};
use serde::{Deserialize, Serialize};

use crate::advice::Evidence;
use crate::error::TrainError;
use crate::plan::Plan;
use crate::result::WrittenAdapter;
use crate::sample_prompt::SamplePrompt;
use crate::validation_history::{BestTracker, LeakChange, ValidationPoint};

/// What a run made, and what to do with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Name of the adapter's file.
    pub adapter: String,
    /// Its size on the disk.
    pub num_bytes: u64,
    /// Numbers that were trained.
    pub num_parameters: usize,
    /// Its modules.
    pub num_modules: usize,
    /// Those of them that change nothing.
    pub num_unmoved: usize,
    /// Largest rank of the modules.
    pub rank: usize,
    /// Mean loss of the first tenth of the steps.
    pub loss_first: f64,
    /// Mean loss of the last tenth.
    pub loss_last: f64,
    /// Steps after which validation was best; `None` if it was not measured, or never better than before the first step.
    pub best_step: Option<u64>,
    /// How far predictions are from the base's at the end, where that was measured.
    pub leak: Option<LeakChange>,
    /// How far each part of the network moved, in the order in which data goes through it.
    pub blocks: Vec<BlockNorm>,
    /// What to try next, one sentence or two each.
    pub advice: Vec<String>,
    /// A command that draws with the adapter.
    pub command: String,
}

/// How far one part of the network moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockNorm {
    /// `text_encoder`, `down_blocks.0`, `mid_block`, `up_blocks.3`, or `other`.
    pub block: String,
    /// Frobenius norm of the change of all its weights together.
    pub frobenius: f64,
    /// Its modules.
    pub num_modules: usize,
    /// Those of them that change nothing.
    pub num_unmoved: usize,
}

/// A run at its end.
#[derive(Debug, Clone, Copy)]
pub struct RunRecord<'a> {
    /// What it was to do.
    pub plan: &'a Plan,
    /// Images of the subject that it learned from.
    pub num_images: usize,
    /// The loss of each step.
    pub losses: &'a [f64],
    /// Its measurements, in order.
    pub validation: &'a [ValidationPoint],
    /// The file that it wrote.
    pub written: &'a WrittenAdapter,
    /// What is in it.
    pub adapter: &'a Adapter,
}

impl RunSummary {
    /// The summary of a run.
    pub fn of(run: &RunRecord<'_>) -> Self {
        let blocks = block_norms(run.adapter);
        let (loss_first, loss_last) = first_and_last(run.losses);
        let history = BestTracker::from_history(run.validation.to_vec());
        let evidence = Evidence {
            plan: run.plan,
            num_images: run.num_images,
            losses: run.losses,
            history: &history,
            blocks: &blocks,
        };
        let advice = evidence.advice();
        Self {
            adapter: run.written.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            num_bytes: run.written.num_bytes,
            num_parameters: run.written.num_parameters,
            num_modules: run.written.num_modules,
            num_unmoved: blocks.iter().map(|block| block.num_unmoved).sum(),
            rank: run.adapter.modules.values().map(loralei_adapter::LoraModule::rank).max().unwrap_or_default(),
            loss_first,
            loss_last,
            best_step: history.best().map(|point| point.step),
            leak: run.validation.last().and_then(|point| point.leak),
            blocks,
            advice,
            command: generate_command(run.plan, ""),
        }
    }

    /// Writes `summary.json` into the run's folder.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub fn write(&self, run_folder: &Path) -> Result<PathBuf, TrainError> {
        let path = run_folder.join("summary.json");
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| TrainError::Disk { path: path.clone(), source: error.into() })?;
        atomic_write_bytes(&path, text.as_bytes())?;
        Ok(path)
    }
}

/// Means over the first and the last tenth, each at least one step long; 0 without steps.
pub(crate) fn first_and_last(losses: &[f64]) -> (f64, f64) {
    let tenth = losses.len().div_ceil(10);
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    (mean(&losses[..tenth]), mean(&losses[losses.len() - tenth..]))
}

/// How far each part of the network moved.
fn block_norms(adapter: &Adapter) -> Vec<BlockNorm> {
    let mut blocks: BTreeMap<(usize, String), (f64, usize, usize)> = BTreeMap::new();
    for (name, module) in &adapter.modules {
        let (squares, num_modules, num_unmoved) = blocks.entry(block_of(name)).or_default();
        *squares += module.delta_norm().powi(2);
        *num_modules += 1;
        *num_unmoved += usize::from(!module.has_moved());
    }
    let norm = |((_, block), (squares, num_modules, num_unmoved)): (_, (f64, _, _))| BlockNorm {
        block,
        frobenius: squares.sqrt(),
        num_modules,
        num_unmoved,
    };
    blocks.into_iter().map(norm).collect()
}

/// The part of the network that a module belongs to, behind a number for its place.
fn block_of(module: &str) -> (usize, String) {
    let component = Component::of_module(module);
    match component {
        Some(Component::TextEncoder) => return (0, "text_encoder".to_owned()),
        Some(Component::TextEncoder1) => return (0, "text_encoder_1".to_owned()),
        Some(Component::TextEncoder2) => return (0, "text_encoder_2".to_owned()),
        Some(Component::Unet) | None => {}
    }
    let path = component.map_or(module, |component| &module[component.prefix().len()..]);
    for (level, place) in [("down_blocks_", 1), ("up_blocks_", 3)] {
        let number: Option<usize> = path.strip_prefix(level).and_then(|rest| rest.split('_').next()?.parse().ok());
        if let Some(number) = number {
            return (place, format!("{}.{number}", level.trim_end_matches('_')));
        }
    }
    if path.starts_with("mid_block_") { (2, "mid_block".to_owned()) } else { (4, "other".to_owned()) }
}

/// A command that draws with the adapter of `plan`, with ` more` arguments.
pub fn generate_command(plan: &Plan, more: &str) -> String {
    let trigger = plan.data.trigger.clone().unwrap_or_default();
    let prompts = plan.samples.iter().flat_map(|samples| &samples.prompts);
    let prompts = prompts.filter_map(|prompt| Some(SamplePrompt::parse(prompt).ok()?.prompt));
    let prompt = prompts.into_iter().find(|prompt| prompt.contains(&trigger));
    let prompt = prompt.or_else(|| plan.data.prompt().filter(|prompt| prompt.contains(&trigger)).map(str::to_owned));
    let prompt = prompt.unwrap_or(trigger);
    let adapter = plan.output_folder.join(format!("{}.safetensors", plan.output_name));
    let (adapter, base) = (quoted(&adapter.display().to_string()), quoted(plan.base.name()));
    let (width_px, height_px) = plan.data.largest_px();
    let prompt = quoted(&prompt);
    let guidance = plan.samples.as_ref().map(|samples| format!(" --guidance {}", samples.guidance_scale));
    let guidance = guidance.unwrap_or_default();
    format!(
        "loralei generate --base {base} --adapter {adapter} --prompt {prompt} --size {width_px}x{height_px}{guidance}{more} \
         --output out.png"
    )
}

/// As a shell takes it for one word.
pub fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLayers;
    use loralei_adapter::{Array, LoraModule};

    fn module(scale: f32) -> LoraModule {
        let down = Array { shape: vec![2, 3], data: vec![1.0, 2.0, 3.0, -1.0, 0.5, 4.0] };
        let up = [1.0, 0.0, 0.0, 2.0, -1.0, 1.0, 3.0, -2.0].map(|value: f32| value * scale);
        LoraModule { down, up: Array { shape: vec![4, 2], data: up.to_vec() }, alpha: Some(3.0) }
    }

    const NAMES: [&str; 7] = [
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_attentions_1_proj_in",
        "lora_unet_down_blocks_1_attentions_0_proj_in",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_unet_up_blocks_1_attentions_0_proj_in",
        "lora_unet_conv_in",
    ];

    fn adapter() -> Adapter {
        let scales = [1.0, 2.0, 0.5, 0.0, 1.0, 1.0, 1.0];
        let modules = NAMES.iter().zip(scales).map(|(name, scale)| ((*name).to_owned(), module(scale)));
        Adapter { modules: modules.collect(), metadata: BTreeMap::new() }
    }

    #[test]
    fn a_block_s_norm_is_that_of_all_its_changes_together() {
        let adapter = adapter();
        let blocks = block_norms(&adapter);
        let names: Vec<&str> = blocks.iter().map(|block| block.block.as_str()).collect();
        assert_eq!(names, ["text_encoder", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.1", "other"]);
        let dense = |name: &str| adapter.modules[name].delta().data;
        let both = [dense(NAMES[1]), dense(NAMES[2])].concat();
        let expected = both.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        assert!((blocks[1].frobenius / expected - 1.0).abs() < 1e-6, "{} {expected}", blocks[1].frobenius);
        assert_eq!((blocks[1].num_modules, blocks[1].num_unmoved), (2, 0));
        assert_eq!((blocks[2].frobenius, blocks[2].num_unmoved), (0.0, 1));
    }

    fn plan(sets: &[&str]) -> Plan {
        let mut layers = ConfigLayers::new();
        for set in ["data.images=photos/cat"].iter().chain(sets) {
            layers.set(set).unwrap();
        }
        Plan::new(&layers.resolve().unwrap().config).unwrap()
    }

    #[test]
    fn the_command_has_the_first_prompt_with_the_trigger_and_no_flags() {
        let prompts = r#"samples.prompts=["a dog", "it's a sks --w 64 --s 2"]"#;
        let command = generate_command(&plan(&["data.trigger=sks", prompts, "data.height_px=768"]), " --count 2");
        let expected = r"loralei generate --base emoji --adapter runs/cat/cat.safetensors --prompt 'it'\''s a sks' --size 512x768 --guidance 7.5 --count 2 --output out.png";
        assert_eq!(command, expected);
        assert!(generate_command(&plan(&["data.trigger=my cat"]), "").contains("--prompt 'my cat' --size"));
        let of_images = generate_command(&plan(&["data.prompt=photo of the cat"]), "");
        assert!(of_images.contains("--prompt 'photo of the cat' --size"), "{of_images}");
    }

    #[test]
    fn words_are_quoted_for_a_shell_where_they_need_it() {
        assert_eq!(
            ["runs/a-1.safetensors", "a dog", "it's", ""].map(quoted),
            ["runs/a-1.safetensors", "'a dog'", r"'it'\''s'", "''"]
        );
    }

    #[test]
    fn the_summary_is_read_back_as_it_was_written() {
        let place = tempfile::tempdir().unwrap();
        let (plan, adapter) = (plan(&["data.trigger=sks"]), adapter());
        let path = place.path().join("cat.safetensors");
        let written = WrittenAdapter { path, num_bytes: 5, num_modules: 7, num_parameters: 98 };
        let losses: Vec<f64> = (0..25).map(f64::from).collect();
        let run = RunRecord {
            plan: &plan,
            num_images: 4,
            losses: &losses,
            validation: &[],
            written: &written,
            adapter: &adapter,
        };
        let summary = RunSummary::of(&run);
        assert_eq!((summary.loss_first, summary.loss_last), (1.0, 23.0));
        assert_eq!((summary.adapter.as_str(), summary.rank, summary.num_unmoved), ("cat.safetensors", 2, 1));
        let path = summary.write(place.path()).unwrap();
        let read: RunSummary = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read, summary);
        assert_eq!(first_and_last(&[]), (0.0, 0.0));
        assert_eq!(first_and_last(&[2.0]), (2.0, 2.0));
    }
}
