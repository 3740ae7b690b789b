//! `[samples]`, `[validation]` and `[output]`, checked.

use std::path::{Path, PathBuf};

use super::checks::Checks;
use crate::config::{OutputConfig, SamplesConfig, TrainConfig, ValidationConfig};
use crate::sample_prompt::SamplePrompt;

/// Parts of a run after each of which it is measured, where the settings do not say.
const USUAL_PARTS: u64 = 5;
/// Steps between measurements at least, likewise.
const LEAST_STEPS: u64 = 100;

/// Snapshots of a run, likewise.
const USUAL_SNAPSHOTS: u64 = 10;

/// Steps between measurements of a run of `num_steps` steps, where the settings do not say.
pub(crate) fn usual_validation_steps(num_steps: u64) -> u64 {
    num_steps.div_ceil(USUAL_PARTS).max(LEAST_STEPS)
}

/// Steps between its snapshots, likewise.
pub(crate) fn usual_snapshot_steps(num_steps: u64) -> u64 {
    num_steps.div_ceil(USUAL_SNAPSHOTS).max(1)
}

/// What a run is measured on, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidationPlan {
    /// Steps between measurements, 1 or more; `None`: a fifth of the run, at least 100.
    pub every_steps: Option<u64>,
    /// Which images.
    pub measured_on: MeasuredOn,
    /// Images at most, 1 or more.
    pub max_images: usize,
    /// Timesteps at which each is measured, 1 to 1000.
    pub num_timesteps: usize,
    /// Measurements without a better one after which the run ends; `None`: it does not.
    pub patience: Option<u64>,
    /// Whether the leak is measured. Only where there is a trigger.
    pub leak: bool,
}

/// Which images a run is measured on.
#[derive(Debug, Clone, PartialEq)]
pub enum MeasuredOn {
    /// Those that it learns from.
    Training,
    /// This part of the subject's images, above 0 and below 1, which it does not learn from.
    HeldOut(f64),
    /// Those of a folder.
    Folder(PathBuf),
}

impl ValidationPlan {
    /// Whether a run of `num_steps` steps is measured when `step` of them are made: before the first, at intervals, after the
    /// last.
    pub fn is_due(&self, step: u64, num_steps: u64) -> bool {
        let every_steps = self.every_steps.unwrap_or_else(|| usual_validation_steps(num_steps));
        step == 0 || step == num_steps || step.is_multiple_of(every_steps)
    }
}

impl SamplesConfig {
    /// Whether pictures are drawn when `step` of `num_steps` steps are made: before the first, at intervals, after the last.
    pub fn is_due(&self, step: u64, num_steps: u64) -> bool {
        let is_interval = self.every_steps > 0 && step.is_multiple_of(self.every_steps);
        step == 0 || step == num_steps || is_interval
    }
}

/// What its user says of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardPlan {
    /// Who made it.
    pub author: Option<String>,
    /// What it is.
    pub description: Option<String>,
    /// Under which licence it is given away.
    pub license: Option<String>,
}

impl CardPlan {
    pub(super) fn of(output: &OutputConfig) -> Self {
        let OutputConfig { author, description, license, .. } = output.clone();
        Self { author, description, license }
    }
}

impl Checks {
    pub(super) fn samples(&mut self, samples: &SamplesConfig) -> Option<SamplesConfig> {
        if !(1..=1000).contains(&samples.steps) {
            self.refuse("samples.steps", format!("{} is not between 1 and 1000", samples.steps), "25 to 30 are usual");
        }
        self.within("samples.guidance_scale", samples.guidance_scale, |g| g >= 0.0, "of 0 or more", 7.5);
        for error in samples.prompts.iter().filter_map(|prompt| SamplePrompt::parse(prompt).err()) {
            self.refuse("samples.prompts", error, "flags of a prompt: --n --w --h --d --l --s --ss");
        }
        if samples.prompts_file.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            self.refuse("samples.prompts_file", "is empty", "name a text file with a prompt a line, or leave it out");
        }
        let are_wanted = !samples.prompts.is_empty() || samples.prompts_file.is_some();
        if !are_wanted && samples.every_steps > 0 {
            self.warnings.push("`samples.every_steps` has no effect: there are no `samples.prompts`".to_owned());
        }
        are_wanted.then(|| samples.clone())
    }

    pub(super) fn validation(&mut self, validation: &ValidationConfig, has_trigger: bool) -> Option<ValidationPlan> {
        let ValidationConfig { every_steps, hold_out, images, max_images, num_timesteps, patience, leak } = validation;
        self.within("validation.hold_out", *hold_out, |part| (0.0..1.0).contains(&part), "from 0 to below 1", 0.1);
        self.at_least_one("validation.max_images", *max_images as u64, "4 is usual");
        if !(1..=1000).contains(num_timesteps) {
            let problem = format!("{num_timesteps} is not between 1 and 1000");
            self.refuse("validation.num_timesteps", problem, "4 tell early from late ones");
        }
        if images.as_ref().is_some_and(|folder| folder.as_os_str().is_empty()) {
            self.refuse("validation.images", "is empty", "name a folder of images, or leave it out");
        }
        let has_own = *hold_out > 0.0 || images.is_some();
        if *every_steps == Some(0) {
            if has_own || *patience > 0 {
                let message = "`validation.every_steps` is 0: nothing else of `validation` has an effect";
                self.warnings.push(message.to_owned());
            }
            return None;
        }
        if images.is_some() && *hold_out > 0.0 {
            self.warnings.push("`validation.hold_out` has no effect beside `validation.images`".to_owned());
        }
        if *patience > 0 && !has_own {
            let message = "`validation.patience` waits for images that are learned from to get worse: set \
                 `validation.hold_out` or `validation.images`";
            self.warnings.push(message.to_owned());
        }
        let measured_on = match images {
            Some(folder) => MeasuredOn::Folder(folder.clone()),
            None if *hold_out > 0.0 => MeasuredOn::HeldOut(*hold_out),
            None => MeasuredOn::Training,
        };
        Some(ValidationPlan {
            every_steps: *every_steps,
            measured_on,
            max_images: *max_images,
            num_timesteps: *num_timesteps,
            patience: (*patience > 0).then_some(*patience),
            leak: *leak && has_trigger,
        })
    }

    pub(super) fn output(&mut self, config: &TrainConfig, images: &Path) -> (PathBuf, String) {
        let last_name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let folder = config
            .output
            .folder
            .clone()
            .unwrap_or_else(|| Path::new("runs").join(last_name(images).unwrap_or_else(|| "lora".to_string())));
        if folder.as_os_str().is_empty() {
            self.refuse("output.folder", "is empty", "name a folder, such as runs/my-cat");
        }
        self.at_least_one("output.keep_snapshots", config.output.keep_snapshots as u64, "2 is safe");
        let found = || readable_name(&last_name(&folder).unwrap_or_default());
        let name = config.output.name.clone().unwrap_or_else(found);
        if name.trim().is_empty() || name.contains(['/', '\\', '\0']) || name == "." || name == ".." {
            let hint = "give a plain file name without folder and ending, such as my-cat";
            self.refuse("output.name", format!("{name:?} is not a file name"), hint);
        } else if name != readable_name(&name) {
            let message =
                format!("programs that look for `{name}` in a picture's parameters find only A-Z a-z 0-9 _ . -");
            self.warnings.push(message);
        }
        (folder, name)
    }
}

/// A name that every program finds in a picture's parameters: `<lora:NAME:1>`.
fn readable_name(name: &str) -> String {
    let readable = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    let name: String = name.chars().map(readable).collect();
    let name = name.trim_matches('.');
    if name.is_empty() { "lora".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(every_steps: Option<u64>, num_steps: u64) -> Vec<u64> {
        let (measured_on, max_images, num_timesteps) = (MeasuredOn::Training, 4, 4);
        let plan = ValidationPlan { every_steps, measured_on, max_images, num_timesteps, patience: None, leak: false };
        (0..=num_steps).filter(|step| plan.is_due(*step, num_steps)).collect()
    }

    #[test]
    fn a_run_is_measured_before_at_intervals_and_after() {
        assert_eq!(due(Some(40), 100), [0, 40, 80, 100]);
        assert_eq!(due(Some(500), 100), [0, 100]);
        // A fifth of the run, at least 100.
        assert_eq!(due(None, 1001), [0, 201, 402, 603, 804, 1001]);
        assert_eq!(due(None, 150), [0, 100, 150]);
    }

    #[test]
    fn pictures_are_drawn_before_at_intervals_and_after() {
        let due = |every_steps: u64| {
            let samples = SamplesConfig { every_steps, ..SamplesConfig::default() };
            (0..=10).filter(|step| samples.is_due(*step, 10)).collect::<Vec<_>>()
        };
        assert_eq!(due(0), [0, 10]);
        assert_eq!(due(4), [0, 4, 8, 10]);
    }
}
