//! The same prompts and seeds drawn by the base and by the base with what was learned, side by side.

use std::path::PathBuf;

use loralei_model::{Base, TextEncoder, without_factors};
use loralei_picture::Grid;

use crate::config::SamplesConfig;
use crate::drawer::Drawer;
use crate::error::TrainError;
use crate::event::Event;
use crate::network::Network;
use crate::plan::Plan;

/// How much the pictures changed.
#[derive(Debug, Clone, PartialEq)]
pub struct BeforeAfter {
    /// The grid.
    pub path: PathBuf,
    /// Mean absolute difference of the pictures whose prompt has the trigger, of the range from black to white; `None`
    /// if there are none.
    pub changed_with_trigger: Option<f64>,
    /// The same of the other pictures.
    pub changed_without_trigger: Option<f64>,
}

/// What is needed to draw.
pub(crate) struct SampleRun<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) samples: &'a SamplesConfig,
    pub(crate) base: &'a Base,
    pub(crate) network: &'a Network,
}

impl SampleRun<'_> {
    /// Draws every prompt twice and writes `before-after.png`.
    ///
    /// # Errors
    /// Networks that cannot be loaded, a disk that cannot be written.
    pub(crate) fn draw(&self, events: &mut dyn FnMut(Event)) -> Result<BeforeAfter, TrainError> {
        let steps = 2 * self.samples.steps * self.samples.prompts.len();
        events(Event::PhaseStarted { name: "drawing before and after".into(), total: Some(steps as u64) });
        let vae = self.base.load_vae()?;
        // Text encoders that are not trained were dropped once the captions were encoded.
        let num_loaded = self.network.text_encoders().len();
        let more = (num_loaded..self.base.num_text_encoders()).map(|i| self.base.load_text_encoder(i, None));
        let more = more.collect::<Result<Vec<_>, _>>()?;
        let encoders: Vec<&TextEncoder> = self.network.text_encoders().iter().chain(&more).collect();
        let plan = self.plan;
        let drawer = Drawer {
            base: self.base,
            unet: self.network.unet(),
            schedule: self.network.schedule(),
            vae: &vae,
            size_px: plan.data.largest_px(),
            settings: self.samples,
        };
        let seeds: Vec<u64> =
            (0..self.samples.prompts.len() as u64).map(|i| self.samples.seed.wrapping_add(i)).collect();
        let mut done = 0;
        let mut progress = |steps: usize| {
            done += steps as u64;
            events(Event::PhaseProgress { done });
        };
        let mut pictures = || {
            let encoded = drawer.encode(&encoders, &self.samples.prompts)?;
            drawer.pictures(&encoded, seeds.clone(), &mut progress)
        };
        let (before, after) = (without_factors(&mut pictures)?, pictures()?);
        let path = self.plan.output_folder.join("before-after.png");
        let prompts = &self.samples.prompts;
        let rows = prompts.iter().zip(before.iter().zip(&after));
        let grid = Grid::before_after(rows.map(|(prompt, (b, a))| (prompt.clone(), vec![b.clone()], vec![a.clone()])))?;
        let bytes = grid.render()?.to_png(None)?;
        loralei_adapter::atomic_write_bytes(&path, &bytes)?;
        events(Event::Saved { path: path.clone(), num_bytes: bytes.len() as u64 });
        let change = |has_trigger: bool| -> Result<Option<f64>, TrainError> {
            let wanted = (0..prompts.len()).filter(|i| self.has_trigger(&prompts[*i]) == has_trigger);
            let changes = wanted.map(|i| before[i].mean_abs_difference(&after[i])).collect::<Result<Vec<_>, _>>()?;
            Ok((!changes.is_empty()).then(|| changes.iter().sum::<f64>() / changes.len() as f64))
        };
        Ok(BeforeAfter { path, changed_with_trigger: change(true)?, changed_without_trigger: change(false)? })
    }

    fn has_trigger(&self, prompt: &str) -> bool {
        self.plan.data.trigger.as_deref().is_none_or(|trigger| prompt.contains(trigger))
    }
}
