//! The adapter's file: the factors in kohya's keys, and in its metadata what they are and how they were made.

use loralei_adapter::{Adapter, CheckpointHashes, DatasetFolder, SaveDtype, TrainingFacts, session_id};
use loralei_data::{Role, tag_counts};
use loralei_model::{AdapterSet, Base, Prediction};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{Checkpointing, Dtype, ScheduleKind};
use crate::encoded::EncodedImages;
use crate::error::TrainError;
use crate::event::Event;
use crate::plan::Plan;
use crate::training_images::TrainingImages;

/// The file that a run left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenAdapter {
    /// Where it is.
    pub path: PathBuf,
    /// Its size on the disk.
    pub num_bytes: u64,
    /// Its modules.
    pub num_modules: usize,
    /// Numbers that were trained.
    pub num_parameters: usize,
}

/// What the file says about its making.
pub(crate) struct AdapterFile<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) base: &'a Base,
    pub(crate) images: &'a TrainingImages,
    pub(crate) encoded: &'a EncodedImages,
    /// All settings, for the id of the training session.
    pub(crate) settings: &'a str,
}

impl WrittenAdapter {
    /// The file, read back: it is said where a module learned nothing, and where other programs will not load all of it.
    ///
    /// # Errors
    /// A file that cannot be read any more.
    pub(crate) fn checked(&self, events: &mut dyn FnMut(Event)) -> Result<Adapter, TrainError> {
        let adapter = Adapter::read(&self.path)?;
        for issue in adapter.portability_issues() {
            events(Event::Warning { message: issue.to_string() });
        }
        let idle = adapter.modules_that_never_moved();
        if let Some(first) = idle.first() {
            let message =
                format!("{} of {} modules learned nothing, first `{first}`", idle.len(), adapter.modules.len());
            events(Event::Warning { message });
        }
        Ok(adapter)
    }
}

impl AdapterFile<'_> {
    /// Writes the factors after `step` steps to `path` and reads the file back.
    ///
    /// # Errors
    /// A disk that cannot be written, numbers that the file's type cannot hold.
    pub(crate) fn write(
        &self,
        factors: &AdapterSet,
        step: u64,
        path: PathBuf,
        events: &mut dyn FnMut(Event),
    ) -> Result<WrittenAdapter, TrainError> {
        let mut adapter = factors.to_adapter()?;
        adapter.metadata = self.facts(step, &path).to_metadata();
        adapter.write(
            &path,
            match self.plan.precision {
                Dtype::F16 => SaveDtype::F16,
                Dtype::Bf16 => SaveDtype::Bf16,
                Dtype::F32 => SaveDtype::F32,
            },
        )?;
        let num_bytes = std::fs::metadata(&path).map(|data| data.len());
        let num_bytes = num_bytes.map_err(|source| TrainError::Disk { path: path.clone(), source })?;
        let num_parameters = adapter.modules.values().map(|m| m.down.data.len() + m.up.data.len()).sum();
        events(Event::Saved { path: path.clone(), num_bytes });
        let num_modules = adapter.modules.len();
        Ok(WrittenAdapter { path, num_bytes, num_modules, num_parameters })
    }

    fn facts(&self, step: u64, path: &Path) -> TrainingFacts {
        let Plan { seed, steps, batch_size, accumulate, .. } = *self.plan;
        let plan = self.plan;
        let sizes: Vec<((u64, u64), u64)> = self.encoded.sizes().into_iter().map(size_and_count).collect();
        let num_images = sizes.iter().map(|(_, count)| count).sum();
        let batches_per_epoch = self.encoded.batches_per_epoch().max(1);
        let epochs = |steps: u64| (steps * accumulate as u64).div_ceil(batches_per_epoch);
        let (width_px, height_px) = plan.data.largest_px();
        let lora = plan.components().next();
        let hashes = self.base.unet_file().and_then(|path| CheckpointHashes::of_file(&path).ok());
        let folder_name = last_name(plan.data.first_folder());
        TrainingFacts {
            // The stem of the file is what people write in a prompt.
            output_name: path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            session_id: Some(session_id(self.settings.as_bytes())),
            seed,
            steps: step,
            max_train_steps: steps,
            epoch: epochs(step),
            num_epochs: epochs(steps),
            num_batches_per_epoch: batches_per_epoch,
            gradient_accumulation_steps: accumulate as u64,
            gradient_checkpointing: plan.checkpointing == Checkpointing::Block,
            mixed_precision: Some(match plan.dtype {
                Dtype::F32 => "no".into(),
                Dtype::Bf16 => "bf16".into(),
                Dtype::F16 => "fp16".into(),
            }),
            num_train_images: num_images,
            num_validation_images: Some(self.images.validation.len() as u64).filter(|count| *count > 0),
            batch_size_per_device: batch_size as u64,
            total_batch_size: batch_size as u64,
            resolution_px: (width_px as u64, height_px as u64),
            buckets: Some(sizes),
            cache_latents: true,
            dataset_dirs: self.folders(),
            tag_frequency: [(folder_name, self.tag_frequency())].into(),
            base: self.base.version(),
            v_prediction: self.predicts_v(),
            zero_terminal_snr: self.base.noise_schedule().config().rescale_betas_zero_snr,
            sd_model_name: Some(last_name(Path::new(&self.base.name()))),
            sd_model_hash: hashes.as_ref().map(|hashes| hashes.legacy.clone()),
            new_sd_model_hash: hashes.map(|hashes| hashes.sha256),
            network_dim: lora.map_or(0, |lora| lora.rank as u64),
            network_alpha: lora.map_or(0.0, |lora| lora.alpha),
            learning_rate: plan.learning_rate(),
            unet_lr: plan.unet.as_ref().map(|unet| unet.learning_rate),
            text_encoder_lr: plan.text_encoders.iter().flatten().map(|text| text.learning_rate).collect(),
            lr_scheduler: match plan.schedule.kind {
                ScheduleKind::Constant => "constant".into(),
                ScheduleKind::Cosine => "cosine".into(),
                ScheduleKind::Linear => "linear".into(),
                ScheduleKind::Restarts => "cosine_with_restarts".into(),
                ScheduleKind::Polynomial => "polynomial".into(),
            },
            lr_warmup_steps: plan.schedule.warmup_steps,
            optimizer: plan.optimizer.settings.to_string(),
            max_grad_norm: plan.optimizer.max_grad_norm.unwrap_or(0.0),
            scale_weight_norms: plan.optimizer.max_norm,
            prior_loss_weight: plan.prior.as_ref().map_or(1.0, |prior| prior.weight),
            trigger_phrase: plan.data.trigger.clone(),
            author: plan.card.author.clone(),
            description: plan.card.description.clone(),
            license: plan.card.license.clone(),
            ..plan.objective_facts()
        }
    }

    /// The folders of the subject's images.
    fn folders(&self) -> BTreeMap<String, DatasetFolder> {
        let of_subject = |source: usize| self.images.sources[source].role == Role::Subject;
        let places = self.images.places.iter().filter(|place| of_subject(place.source) && place.num_images > 0);
        places
            .map(|place| {
                let (n_repeats, img_count) = (u64::from(place.repeats), place.num_images as u64);
                (last_name(&place.path), DatasetFolder { n_repeats, img_count })
            })
            .collect()
    }

    /// Captions cut at commas, as A1111 shows them, with the number of images that have each.
    fn tag_frequency(&self) -> BTreeMap<String, u64> {
        let captions: Vec<String> = self.encoded.first_captions().collect();
        tag_counts(captions.iter().map(String::as_str)).into_iter().map(|(tag, count)| (tag, count as u64)).collect()
    }

    fn predicts_v(&self) -> bool {
        self.base.noise_schedule().prediction() == Prediction::VPrediction
    }
}

fn size_and_count((size, count): (loralei_data::Size, u64)) -> ((u64, u64), u64) {
    ((u64::from(size.width_px), u64::from(size.height_px)), count)
}

fn last_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "base".to_owned(), |name| name.to_string_lossy().into_owned())
}

impl Plan {
    /// The full learning rate that progress shows: the U-Net's, or a text encoder's if they train alone.
    pub(crate) fn learning_rate(&self) -> f64 {
        self.components().next().map_or(0.0, |component| component.learning_rate)
    }
}
