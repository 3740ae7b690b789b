//! Pictures of the same prompts and seeds as the run goes on, in `samples/` of its folder.
//!
//! They take nothing from the run's streams of random numbers and leave its factors alone. The autoencoder and a frozen text
//! encoder are loaded for each drawing and dropped after it: what they take, a step can use, and loading them is short against
//! drawing. What a frozen text encoder makes of a prompt is kept, so it is loaded for new prompts only.

use std::collections::BTreeMap;
use std::path::Path;

use loralei_model::{Base, DrawingSettings, EncodedPrompts, PictureSizes, TextEncoder};
use loralei_picture::{AdapterUse, GenerationParameters, Grid, Picture};
use serde::{Deserialize, Serialize};

use crate::config::SamplesConfig;
use crate::drawer::{Drawer, PictureRequest, encode};
use crate::error::TrainError;
use crate::event::Event;
use crate::network::Network;
use crate::plan::Plan;
use crate::sample_prompt::SamplePrompt;

/// The folder in that of the run.
const FOLDER: &str = "samples";

/// One picture: a line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleLine {
    /// Number of steps made; 0 is before the first.
    pub step: u64,
    /// The file, relative to the run's folder.
    pub file: String,
    /// The prompt without flags.
    pub prompt: String,
    /// Seed of the picture's noise.
    pub seed: u64,
    /// Its width.
    pub width_px: usize,
    /// Its height.
    pub height_px: usize,
}

/// What a run draws.
pub struct Samples<'a> {
    plan: &'a Plan,
    base: &'a Base,
    settings: &'a SamplesConfig,
    of_settings: Vec<SamplePrompt>,
    of_file: PromptsFile,
    /// Of a frozen text encoder, by prompt and negative prompt.
    encoded: BTreeMap<(String, String), EncodedPrompts>,
}

/// The prompts of `samples.prompts_file`, as they were when it could last be read.
#[derive(Default)]
struct PromptsFile {
    text: String,
    prompts: Vec<SamplePrompt>,
}

/// A prompt with everything that it does not set itself.
struct Request {
    prompt: String,
    negative: String,
    seed: u64,
    size_px: (usize, usize),
    settings: DrawingSettings,
}

impl<'a> Samples<'a> {
    /// Reads the prompts; `None` if the plan asks for no pictures.
    ///
    /// # Errors
    /// Prompts that cannot be read.
    pub fn prepare(plan: &'a Plan, base: &'a Base, events: &mut dyn FnMut(Event)) -> Result<Option<Self>, TrainError> {
        let Some(settings) = &plan.samples else { return Ok(None) };
        let parse = |prompt: &String| SamplePrompt::parse(prompt);
        let of_settings = settings.prompts.iter().map(parse).collect::<Result<Vec<_>, _>>();
        let of_settings =
            of_settings.map_err(|message| TrainError::ConfigValue { place: "samples.prompts".to_owned(), message })?;
        let of_file = settings.prompts_file.as_deref().map(PromptsFile::read).transpose()?.unwrap_or_default();
        let samples = Self { plan, base, settings, of_settings, of_file, encoded: BTreeMap::new() };
        samples.warn(events);
        Ok(Some(samples))
    }

    /// Whether pictures are drawn when `step` steps are made.
    pub fn is_due(&self, step: u64) -> bool {
        self.settings.is_due(step, self.plan.steps)
    }

    /// Draws every prompt by `network` after `step` steps: a file each and one of all side by side. The factors must be those
    /// that a file would have, without dropout. A prompts file that cannot be read any more is a warning: its prompts stay.
    ///
    /// # Errors
    /// Networks that cannot be loaded, pictures whose numbers are not finite, a disk that cannot be written.
    pub fn draw(
        &mut self,
        network: &Network,
        step: u64,
        events: &mut dyn FnMut(Event),
    ) -> Result<Vec<SampleLine>, TrainError> {
        self.read_again(events);
        let requests = self.requests();
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let total = requests.iter().map(|request| request.settings.steps as u64).sum();
        events(Event::PhaseStarted { name: "drawing pictures".into(), total: Some(total) });
        let encoded = self.encode(network, &requests)?;
        let vae = self.base.load_vae()?;
        let drawer = Drawer { base: self.base, unet: network.unet(), schedule: network.schedule(), vae: &vae };
        let of_request = |(request, prompts): (&Request, EncodedPrompts)| {
            let Request { seed, size_px, settings, .. } = *request;
            PictureRequest { prompts, seed, size_px, settings }
        };
        let wanted: Vec<PictureRequest> = requests.iter().zip(encoded).map(of_request).collect();
        let mut done = 0;
        let pictures = drawer.pictures(&wanted, &mut |steps| {
            done += steps as u64;
            events(Event::PhaseProgress { done });
        })?;
        self.write(step, &requests, &pictures, events)
    }

    fn read_again(&mut self, events: &mut dyn FnMut(Event)) {
        let Some(path) = self.settings.prompts_file.as_deref() else { return };
        match PromptsFile::read(path) {
            Ok(file) if file.text == self.of_file.text => {}
            Ok(file) => {
                self.of_file = file;
                self.warn(events);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
                let message = format!("the prompts stay as they were: {error}{cause}");
                events(Event::Warning { message });
            }
        }
    }

    fn prompts(&self) -> impl Iterator<Item = &SamplePrompt> {
        self.of_settings.iter().chain(&self.of_file.prompts)
    }

    fn warn(&self, events: &mut dyn FnMut(Event)) {
        for (prompt, request) in self.prompts().zip(self.requests()) {
            let (width_px, height_px) = request.size_px;
            let is_other = |wanted: Option<usize>, px: usize| wanted.is_some_and(|wanted| wanted != px);
            if is_other(prompt.width_px, width_px) || is_other(prompt.height_px, height_px) {
                let multiple_px = self.base.size_multiple_px();
                let message = format!(
                    "{:?} is drawn at {width_px} x {height_px}: the base's sides are multiples of {multiple_px}",
                    prompt.prompt
                );
                events(Event::Warning { message });
            }
            if prompt.has_idle_guidance {
                let message = format!("`--g` has no effect, `--l` is the guidance scale: {:?}", prompt.prompt);
                events(Event::Warning { message });
            }
        }
    }

    fn requests(&self) -> Vec<Request> {
        let (native_width_px, native_height_px) = self.plan.data.largest_px();
        let multiple_px = self.base.size_multiple_px();
        let rounded = |px: usize| ((px + multiple_px / 2) / multiple_px).max(1) * multiple_px;
        let request = |(prompt, number): (&SamplePrompt, u64)| {
            let size_px =
                (prompt.width_px.map_or(native_width_px, rounded), prompt.height_px.map_or(native_height_px, rounded));
            Request {
                prompt: prompt.prompt.clone(),
                negative: prompt.negative.clone().unwrap_or_else(|| self.settings.negative.clone()),
                seed: prompt.seed.unwrap_or_else(|| self.settings.seed.wrapping_add(number)),
                size_px,
                settings: DrawingSettings {
                    sampler: prompt.sampler.unwrap_or(self.settings.sampler.0),
                    steps: prompt.steps.unwrap_or(self.settings.steps),
                    guidance_scale: prompt.guidance_scale.unwrap_or(self.settings.guidance_scale),
                    sizes: PictureSizes::whole(size_px),
                },
            }
        };
        self.prompts().zip(0..).map(request).collect()
    }

    /// By the network's text encoders with what they learned, or by the frozen ones.
    fn encode(&mut self, network: &Network, requests: &[Request]) -> Result<Vec<EncodedPrompts>, TrainError> {
        let texts: Vec<(&str, &str)> =
            requests.iter().map(|request| (request.prompt.as_str(), request.negative.as_str())).collect();
        if !network.text_encoders().is_empty() {
            return encode(self.base, &network.text_encoders().iter().collect::<Vec<_>>(), &texts);
        }
        let key = |(prompt, negative): &(&str, &str)| ((*prompt).to_owned(), (*negative).to_owned());
        self.encoded.retain(|(prompt, negative), _| texts.contains(&(prompt.as_str(), negative.as_str())));
        let new: Vec<(&str, &str)> =
            texts.iter().filter(|text| !self.encoded.contains_key(&key(text))).copied().collect();
        if !new.is_empty() {
            let load = |i| self.base.load_text_encoder(i, None);
            let encoders = (0..self.base.num_text_encoders()).map(load).collect::<Result<Vec<TextEncoder>, _>>()?;
            let encoded = encode(self.base, &encoders.iter().collect::<Vec<_>>(), &new)?;
            self.encoded.extend(new.iter().map(key).zip(encoded));
        }
        Ok(texts.iter().filter_map(|text| self.encoded.get(&key(text)).cloned()).collect())
    }

    fn write(
        &self,
        step: u64,
        requests: &[Request],
        pictures: &[Picture],
        events: &mut dyn FnMut(Event),
    ) -> Result<Vec<SampleLine>, TrainError> {
        let run = &self.plan.output_folder;
        let folder = run.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(|source| TrainError::Disk { path: folder.clone(), source })?;
        let mut lines = Vec::with_capacity(requests.len());
        for ((request, picture), number) in requests.iter().zip(pictures).zip(1..) {
            let file = format!("{FOLDER}/{step:06}-{number}.png");
            let bytes = picture.to_png(Some(&self.parameters(request, step).to_string()))?;
            loralei_adapter::atomic_write_bytes(&run.join(&file), &bytes)?;
            let (prompt, seed, (width_px, height_px)) = (request.prompt.clone(), request.seed, request.size_px);
            lines.push(SampleLine { step, file, prompt, seed, width_px, height_px });
        }
        let labels = requests.iter().map(|request| request.prompt.clone());
        let sheet = Grid::new().columns(labels).row("", pictures.to_vec()).render()?.to_png(None)?;
        let path = folder.join(format!("{step:06}.png"));
        loralei_adapter::atomic_write_bytes(&path, &sheet)?;
        events(Event::Saved { path, num_bytes: sheet.len() as u64 });
        Ok(lines)
    }

    /// As `loralei generate` would write them with the adapter's file.
    fn parameters(&self, request: &Request, step: u64) -> GenerationParameters {
        let adapter = AdapterUse { name: self.plan.output_name.clone(), scale: 1.0, hash: None };
        let (base, settings) = (self.base.name(), request.settings);
        let name = Path::new(&base).file_name().map(|name| name.to_string_lossy().into_owned());
        GenerationParameters {
            prompt: request.prompt.clone(),
            negative_prompt: request.negative.clone(),
            // Before the first step there is no adapter that one could use.
            adapters: if step == 0 { Vec::new() } else { vec![adapter] },
            steps: Some(settings.steps as u32),
            sampler: Some(settings.sampler.title().to_owned()),
            guidance: Some(settings.guidance_scale),
            seed: Some(request.seed),
            size_px: Some((request.size_px.0 as u32, request.size_px.1 as u32)),
            model: Some(name.unwrap_or(base)),
            ..GenerationParameters::default()
        }
    }
}

impl PromptsFile {
    fn read(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TrainError::ConfigRead { path: path.to_path_buf(), source })?;
        let prompts = SamplePrompt::parse_lines(&text).map_err(|(line, message)| TrainError::ConfigValue {
            place: format!("{}, line {line}", path.display()),
            message,
        })?;
        Ok(Self { text, prompts })
    }
}
