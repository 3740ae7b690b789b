//! A first configuration for a folder of images: what the folder and the base say, and what follows from it.

mod found;
mod text;

use std::path::Path;

use loralei_data::DataError;
use loralei_model::{BaseDescription, TrainingSize, WeightBytes};

use crate::config::{Checkpointing, PRESETS, Targets, TrainConfig};
use crate::error::TrainError;
use found::Found;

/// Showings of each image in a run, about: what presets and guides of other trainers have for a subject.
const SHOWINGS_PER_IMAGE: usize = 100;
/// Fewest and most steps that follow from the number of images.
const STEPS: (usize, usize) = (500, 2000);
/// More images than this with one word in all captions are a concept, not one subject.
const MOST_IMAGES_OF_A_SUBJECT: usize = 40;
/// The part of the free memory that a run may be expected to take.
const MEMORY_PART: f64 = 0.8;
/// A word that means nothing to a base yet.
const RARE_WORD: &str = "ohwx";

/// What is to be learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// One person, animal or thing.
    Subject,
    /// The manner of all pictures.
    Style,
    /// What different pictures share: a pose, a garment, a kind of thing.
    Concept,
}

impl Goal {
    /// Its name, with which the names of presets begin.
    pub fn name(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Style => "style",
            Self::Concept => "concept",
        }
    }
}

/// What is known before the folder is looked at.
#[derive(Debug, Clone, Copy)]
pub struct FirstConfigRequest<'a> {
    /// The images, as the configuration will name them.
    pub folder: &'a Path,
    /// What they show; guessed if it is not said.
    pub goal: Option<Goal>,
    /// The base, as the configuration will name it.
    pub base: &'a str,
    /// What the base is, if its files are there.
    pub description: Option<&'a BaseDescription>,
    /// Memory that is free, in bytes.
    pub free_bytes: Option<u64>,
    /// Words that shall call the subject; guessed if they are not said.
    pub trigger: Option<&'a str>,
    /// What the subject is a kind of.
    pub class: Option<&'a str>,
}

/// A configuration that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstConfig {
    /// A name for its file and the run, of `[A-Za-z0-9_.-]` alone.
    pub name: String,
    /// TOML with comments.
    pub text: String,
    /// What was found, a line each.
    pub found: Vec<String>,
    /// What was chosen and why, a line each.
    pub chosen: Vec<String>,
}

/// What a first configuration sets.
struct Choice<'a> {
    request: &'a FirstConfigRequest<'a>,
    name: String,
    num_images: usize,
    goal: Goal,
    preset: &'static str,
    size_px: usize,
    trigger: Option<String>,
    class: Option<String>,
    /// Caption of images without one.
    prompt: Option<String>,
    steps: usize,
    batch_size: usize,
    /// Whether the preset's choice must be changed for the memory.
    recompute: bool,
    samples: Vec<String>,
    chosen: Vec<String>,
}

impl FirstConfigRequest<'_> {
    /// Looks at the headers of the images, and at the captions.
    ///
    /// # Errors
    /// A folder that cannot be read, or holds no image that can.
    pub fn choose(&self) -> Result<FirstConfig, TrainError> {
        let found = Found::of(self.folder)?;
        if found.num_images == 0 {
            let (path, num_skipped) = (self.folder.to_owned(), found.num_skipped);
            return Err(DataError::NoImages { path, num_skipped }.into());
        }
        let choice = Choice::new(self, &found);
        Ok(FirstConfig { name: choice.name.clone(), text: choice.text(), found: found.lines(), chosen: choice.chosen })
    }
}

impl<'a> Choice<'a> {
    fn new(request: &'a FirstConfigRequest<'a>, found: &Found) -> Self {
        let (goal, why_goal) = match request.goal {
            Some(goal) => (goal, "as you said".to_owned()),
            None => guess(found),
        };
        let (preset, size_px, why_size) = preset_and_size(request, goal);
        let mut choice = Self {
            request,
            name: found.name.clone(),
            num_images: found.num_images,
            goal,
            preset,
            size_px,
            trigger: None,
            class: None,
            prompt: None,
            steps: 0,
            batch_size: 1,
            recompute: false,
            samples: Vec::new(),
            chosen: vec![format!("goal {}: {why_goal}", goal.name())],
        };
        choice.chosen.push(format!("preset {preset}, {size_px} px: {why_size}"));
        choice.words(found);
        choice.memory();
        choice.length();
        choice.samples(found);
        choice
    }

    fn words(&mut self, found: &Found) {
        let given = |words: Option<&str>| words.map(str::trim).filter(|words| !words.is_empty()).map(str::to_owned);
        let (of_folder, class_of_folder) = found.trigger_and_class();
        self.class = given(self.request.class).or(class_of_folder);
        let common = found.common_words();
        let (trigger, why) = if let Some(trigger) = given(self.request.trigger) {
            (Some(trigger), "as you said")
        } else if let Some(trigger) = of_folder {
            (Some(trigger), "the folder's name has it")
        } else if self.goal == Goal::Style {
            (None, "a style goes into everything")
        } else if let Some(common) = common {
            (Some(common), "what all captions have in common")
        } else {
            (Some(RARE_WORD.to_owned()), "a word that means nothing yet; --trigger takes yours")
        };
        let said = trigger.as_ref().map_or("no trigger".to_owned(), |trigger| format!("trigger {trigger:?}"));
        self.chosen.push(format!("{said}: {why}"));
        if let Some(class) = &self.class {
            self.chosen.push(format!("class {class:?}: what must stay as it was is asked with this word too"));
        }
        self.trigger = trigger;
        if found.num_without_caption > 0 {
            let words: Vec<&str> = [&self.trigger, &self.class].into_iter().filter_map(Option::as_deref).collect();
            let prompt =
                if words.is_empty() { "a picture".to_owned() } else { format!("a photo of {}", words.join(" ")) };
            self.chosen.push(format!("prompt {prompt:?}: {} images have no caption", found.num_without_caption));
            self.prompt = Some(prompt);
        }
    }

    /// The largest batch that fits and leaves enough steps, and recompute if none fits.
    fn memory(&mut self) {
        let config = preset_config(self.preset);
        self.recompute = config.train.checkpointing == Checkpointing::Block;
        let usual = config.train.batch_size.min(self.num_images.max(1));
        self.batch_size = usual;
        let (Some(base), Some(free_bytes)) = (self.request.description, self.request.free_bytes) else {
            self.chosen.push(format!("batch {usual}: how much memory this base takes is not known"));
            return;
        };
        let bytes = |batch_size: usize, recompute: bool| {
            base.training_bytes(TrainingSize {
                width_px: self.size_px,
                height_px: self.size_px,
                batch_size,
                text_encoders: config.lora.text_encoders().map(|(_, text)| text.targets != Targets::None),
                rank: config.lora.rank,
                recompute,
                is_cpu: true,
                bytes_per_weight: WeightBytes::alike(2),
                bytes_per_number: 4,
            })
        };
        let room = (free_bytes as f64 * MEMORY_PART) as u64;
        let fits = |batch_size: usize, recompute| bytes(batch_size, recompute) <= room;
        if !fits(1, self.recompute) {
            self.recompute = true;
        }
        // More in a batch, only where enough steps are left for the learning rate to rise and fall.
        let leaves_steps = |batch: usize| batch * STEPS.0 <= SHOWINGS_PER_IMAGE * self.num_images;
        let batches = [usual, 4, 2, 1].into_iter().filter(|batch| *batch <= usual || leaves_steps(*batch));
        self.batch_size = batches.filter(|batch| fits(*batch, self.recompute)).max().unwrap_or(1);
        let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
        let taken = bytes(self.batch_size, self.recompute);
        let problem = if taken > room {
            "; it may not fit: a smaller size, `model.weights = \"int8\"` or `model.dtype = \"bf16\"`"
        } else {
            ""
        };
        let recompute = if self.recompute { ", with checkpointing" } else { "" };
        self.chosen.push(format!(
            "batch {}{recompute}: about {} of {} that are free{problem}",
            self.batch_size,
            gigabytes(taken),
            gigabytes(free_bytes)
        ));
    }

    fn length(&mut self) {
        let showings = SHOWINGS_PER_IMAGE * self.num_images;
        self.steps = (showings / self.batch_size).clamp(STEPS.0, STEPS.1);
        let (num_images, batch_size) = (self.num_images, self.batch_size);
        let each = self.steps * batch_size / num_images;
        self.chosen.push(format!(
            "{} steps: each of {num_images} images about {each} times; {SHOWINGS_PER_IMAGE} is usual, within {} to {} steps",
            self.steps, STEPS.0, STEPS.1
        ));
    }

    /// Some that show what was learned, and some that must stay as they were.
    fn samples(&mut self, found: &Found) {
        let with_trigger = |caption: &str| {
            let trigger = self.trigger.as_deref().unwrap_or_default();
            loralei_data::with_trigger(caption, trigger)
        };
        let mut samples: Vec<String> = found.captions.iter().take(2).map(|caption| with_trigger(caption)).collect();
        if samples.is_empty() {
            samples.extend(self.prompt.as_deref().map(with_trigger));
        }
        if samples.is_empty() {
            let class = self.class.as_deref().unwrap_or_default();
            samples.extend(
                self.trigger.iter().map(|trigger| format!("a photo of {trigger} {class}").trim_end().to_owned()),
            );
        }
        samples.extend(self.class.as_ref().map(|class| format!("a photo of a {class}")));
        let others = if self.preset.ends_with("-emoji") {
            ["a pear on blue", "a bicycle on yellow"]
        } else {
            ["a mountain landscape", "a photo of a person"]
        };
        samples.extend(others.map(str::to_owned));
        samples.dedup();
        self.samples = samples;
    }
}

fn guess(found: &Found) -> (Goal, String) {
    let common = found.trigger_and_class().0.or_else(|| found.common_words());
    let num_images = found.num_images;
    match (common, found.captions.is_empty()) {
        (Some(word), _) if num_images > MOST_IMAGES_OF_A_SUBJECT => {
            (Goal::Concept, format!("a guess: {num_images} images have {word:?} in common, many for one subject"))
        }
        (Some(word), _) => (Goal::Subject, format!("a guess: all images have {word:?} in common")),
        (None, true) => (Goal::Subject, "a guess: there are no captions that say otherwise; --goal says it".to_owned()),
        (None, false) => (Goal::Style, "a guess: the captions have no word in common".to_owned()),
    }
}

/// The preset, the size, and why.
fn preset_and_size(request: &FirstConfigRequest<'_>, goal: Goal) -> (&'static str, usize, String) {
    let (family, size_px, why) = match request.description {
        _ if request.base == "emoji" => ("emoji", 64, "the bundled base draws 64 px".to_owned()),
        Some(base) => {
            let family = match base.family {
                "Stable Diffusion XL" => "sdxl",
                "Stable Diffusion 2.x" => "sd21",
                _ => "sd15",
            };
            (family, base.native_size_px, format!("the base is {}", base.family))
        }
        None => {
            let name = request.base.to_lowercase();
            let has = |marks: &[&str]| marks.iter().any(|mark| name.contains(mark));
            let is_second = has(&["stable-diffusion-2", "sd2", "v2-1", "v2.1"]);
            match (is_second, has(&["base", "512"])) {
                _ if is_named_xl(request.base) => {
                    ("sdxl", 1024, "by the name of the base, which is not here".to_owned())
                }
                (true, false) => ("sd21", 768, "by the name of the base, which is not here".to_owned()),
                (true, true) => ("sd21", 512, "by the name of the base, which is not here".to_owned()),
                _ => ("sd15", 512, "the base is not here: taken for Stable Diffusion 1.x".to_owned()),
            }
        }
    };
    // A concept on the small base is learned as a subject is.
    let goal = if family == "emoji" && goal == Goal::Concept { Goal::Subject } else { goal };
    let wanted = format!("{}-{family}", goal.name());
    let preset = PRESETS.iter().map(|(name, _)| *name).find(|name| *name == wanted);
    (preset.unwrap_or("subject-sd15"), size_px, why)
}

/// Whether a base that nothing else is known of is probably SDXL: the last part of its name says XL.
pub(crate) fn is_named_xl(base: &str) -> bool {
    base.rsplit(['/', '\\']).next().is_some_and(|name| name.to_lowercase().contains("xl"))
}

fn preset_config(name: &str) -> TrainConfig {
    let text = PRESETS.iter().find(|(known, _)| *known == name).map_or("", |(_, text)| *text);
    toml::from_str(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use candle_core::{DType, Device};
    use loralei_model::{Base, BaseSource};

    use super::*;
    use crate::config::{ConfigLayers, PresetNames};
    use crate::plan::Plan;

    /// `count` pictures with the caption that `caption` makes of their number.
    fn pictures(count: usize, caption: impl Fn(usize) -> String) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let octopus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/octopus/01-red.png");
        for i in 0..count {
            std::fs::copy(&octopus, folder.path().join(format!("{i}.png"))).unwrap();
            let path = folder.path().join(format!("{i}.txt"));
            loralei_adapter::atomic_write_bytes(&path, caption(i).as_bytes()).unwrap();
        }
        folder
    }

    fn request(folder: &Path) -> FirstConfigRequest<'_> {
        let (base, free_bytes) = ("models/sd15", Some(64_000_000_000));
        FirstConfigRequest { folder, goal: None, base, description: None, free_bytes, trigger: None, class: None }
    }

    fn config(request: &FirstConfigRequest<'_>) -> TrainConfig {
        let text = request.choose().unwrap().text;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        loralei_adapter::atomic_write_bytes(&path, text.as_bytes()).unwrap();
        let mut layers = ConfigLayers::new();
        layers.file(&path).unwrap();
        let config = layers.resolve().unwrap().config;
        let plan = Plan::new(&config).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
        assert!((14..=42).contains(&text.lines().count()), "{text}");
        config
    }

    #[test]
    fn a_subject_that_only_its_folder_names_is_drawn_by_its_trigger_and_its_class() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("10_ohwx dog");
        std::fs::create_dir(&folder).unwrap();
        let octopus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/octopus/01-red.png");
        std::fs::copy(octopus, folder.join("1.png")).unwrap();
        let prompts = config(&request(&folder)).samples.prompts;
        assert_eq!(prompts[..2], ["a photo of ohwx dog", "a photo of a dog"]);
    }

    #[test]
    fn the_goal_follows_from_what_the_captions_have_in_common() {
        let colours = ["red", "green", "teal", "pink"];
        let one = |i: usize| format!("zwx standing, {}", colours[i % 4]);
        let preset = |folder: &tempfile::TempDir| config(&request(folder.path())).preset.unwrap();
        let named = |name: &str| PresetNames::One(name.to_owned());
        assert_eq!(preset(&pictures(5, one)), named("subject-sd15"));
        assert_eq!(preset(&pictures(41, one)), named("concept-sd15"));
        assert_eq!(preset(&pictures(5, |i| format!("thing{i}"))), named("style-sd15"));
        let folder = pictures(5, one);
        let said = FirstConfigRequest { goal: Some(Goal::Style), ..request(folder.path()) };
        assert_eq!(config(&said).preset, Some(named("style-sd15")));
    }

    #[test]
    fn a_base_of_sdxl_gets_its_preset_and_its_size_whether_it_is_here_or_only_named() {
        let folder = pictures(5, |i| format!("zwx standing, thing{i}"));
        let named = FirstConfigRequest { base: "stabilityai/stable-diffusion-xl-base-1.0", ..request(folder.path()) };
        let found = config(&named);
        assert_eq!(found.preset, Some(PresetNames::One("subject-sdxl".to_owned())));
        assert_eq!((found.data.size_px, found.train.checkpointing), (1024, Checkpointing::Block));

        let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sdxl/base"));
        let base = Base::open(BaseSource::Folder(golden), None, DType::F32, &Device::Cpu).unwrap();
        let description = BaseDescription::of(&base).unwrap();
        let here = FirstConfigRequest { description: Some(&description), goal: Some(Goal::Style), ..named };
        let found = config(&here);
        assert_eq!(found.preset, Some(PresetNames::One("style-sdxl".to_owned())));
        assert_eq!(found.data.size_px, base.native_size_px());
    }

    #[test]
    fn steps_follow_the_number_of_images_within_500_to_2000() {
        for (count, steps) in [(3, 500), (7, 700), (30, 2000)] {
            let folder = pictures(count, |i| format!("thing{i}"));
            assert_eq!(config(&request(folder.path())).train.steps, steps, "{count}");
        }
    }

    #[test]
    fn batch_and_recompute_follow_from_what_the_base_takes_of_the_free_memory() {
        let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sd1/base"));
        let base = Base::open(BaseSource::Folder(golden), None, DType::F32, &Device::Cpu).unwrap();
        let description = BaseDescription::of(&base).unwrap();
        let folder = pictures(20, |i| format!("thing{i}"));
        let size_px = description.native_size_px;
        let rank = preset_config("style-sd15").lora.rank;
        let taken = |batch_size: usize, recompute: bool| {
            let (width_px, height_px) = (size_px, size_px);
            let (bytes_per_weight, bytes_per_number, text_encoders) = (WeightBytes::alike(2), 4, [false; 2]);
            let size = TrainingSize {
                width_px,
                height_px,
                batch_size,
                text_encoders,
                rank,
                recompute,
                is_cpu: true,
                bytes_per_weight,
                bytes_per_number,
            };
            (description.training_bytes(size) as f64 / MEMORY_PART) as u64 + 2
        };
        let found = |free_bytes: u64| {
            let free_bytes = Some(free_bytes);
            let request = FirstConfigRequest { description: Some(&description), free_bytes, ..request(folder.path()) };
            let config = config(&request);
            assert_eq!(config.data.size_px, size_px);
            (config.train.batch_size, config.train.checkpointing, config.train.steps)
        };
        assert_eq!(found(taken(4, false)), (4, Checkpointing::None, 500));
        assert_eq!(found(taken(4, false) - 1000), (2, Checkpointing::None, 1000));
        assert_eq!(found(taken(1, false)), (1, Checkpointing::None, 2000));
        assert_eq!(found(taken(1, true)), (1, Checkpointing::Block, 2000));
    }
}
