//! The adapter's file: the factors in kohya's keys, and in its metadata what they are and how they were made.

use loralei_adapter::keys::Component;
use loralei_adapter::{Adapter, BaseVersion, CheckpointHashes, DatasetFolder, SaveDtype, TrainingFacts, session_id};
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

/// Where the adapter of a run goes.
pub(crate) fn adapter_path(plan: &Plan) -> PathBuf {
    plan.output_folder.join(format!("{}.safetensors", plan.output_name))
}

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
    pub(crate) resolved_toml: &'a str,
}

impl AdapterFile<'_> {
    /// Writes the file, reads it back and checks that something was learned.
    pub(crate) fn write(
        &self,
        factors: &AdapterSet,
        events: &mut dyn FnMut(Event),
    ) -> Result<WrittenAdapter, TrainError> {
        let mut adapter = factors.to_adapter()?;
        adapter.metadata = self.facts().to_metadata();
        for issue in adapter.portability_issues() {
            events(Event::Warning { message: issue.to_string() });
        }
        let path = adapter_path(self.plan);
        adapter.write(
            &path,
            match self.plan.precision {
                Dtype::F16 => SaveDtype::F16,
                Dtype::Bf16 => SaveDtype::Bf16,
                Dtype::F32 => SaveDtype::F32,
            },
        )?;
        let written = Adapter::read(&path)?;
        let idle = written.modules_that_never_moved();
        if let Some(first) = idle.first() {
            let message =
                format!("{} of {} modules learned nothing, first `{first}`", idle.len(), written.modules.len());
            events(Event::Warning { message });
        }
        let num_bytes = std::fs::metadata(&path).map(|data| data.len());
        let num_bytes = num_bytes.map_err(|source| TrainError::Disk { path: path.clone(), source })?;
        let num_parameters = adapter.modules.values().map(|m| m.down.data.len() + m.up.data.len()).sum();
        events(Event::Saved { path: path.clone(), num_bytes });
        let num_modules = adapter.modules.len();
        Ok(WrittenAdapter { path, num_bytes, num_modules, num_parameters })
    }

    fn facts(&self) -> TrainingFacts {
        let Plan { seed, steps, batch_size, accumulate, .. } = *self.plan;
        let plan = self.plan;
        let sizes: Vec<((u64, u64), u64)> = self.encoded.sizes().into_iter().map(size_and_count).collect();
        let num_images = sizes.iter().map(|(_, count)| count).sum();
        let batches_per_epoch = self.encoded.batches_per_epoch().max(1);
        let epochs = (steps * accumulate as u64).div_ceil(batches_per_epoch);
        let (width_px, height_px) = plan.data.largest_px();
        let lora = plan.unet.as_ref().or(plan.text_encoder.as_ref());
        let hashes = self.base.unet_file().and_then(|path| CheckpointHashes::of_file(&path).ok());
        let folder_name = last_name(plan.data.first_folder());
        let adamw = plan.adamw;
        TrainingFacts {
            output_name: plan.output_name.clone(),
            session_id: Some(session_id(self.resolved_toml.as_bytes())),
            seed,
            steps,
            max_train_steps: steps,
            epoch: epochs,
            num_epochs: epochs,
            num_batches_per_epoch: batches_per_epoch,
            gradient_accumulation_steps: accumulate as u64,
            gradient_checkpointing: plan.checkpointing == Checkpointing::Block,
            mixed_precision: Some(match plan.dtype {
                Dtype::F32 => "no".into(),
                Dtype::Bf16 => "bf16".into(),
                Dtype::F16 => "fp16".into(),
            }),
            num_train_images: num_images,
            batch_size_per_device: batch_size as u64,
            total_batch_size: batch_size as u64,
            resolution_px: (width_px as u64, height_px as u64),
            buckets: Some(sizes),
            cache_latents: true,
            dataset_dirs: self.folders(),
            tag_frequency: [(folder_name, self.tag_frequency())].into(),
            base: self.base_version(),
            v_prediction: self.predicts_v(),
            sd_model_name: Some(last_name(Path::new(&self.base.name()))),
            sd_model_hash: hashes.as_ref().map(|hashes| hashes.legacy.clone()),
            new_sd_model_hash: hashes.map(|hashes| hashes.sha256),
            network_dim: lora.map_or(0, |lora| lora.rank as u64),
            network_alpha: lora.map_or(0.0, |lora| lora.alpha),
            learning_rate: plan.learning_rate(),
            unet_lr: plan.unet.as_ref().map(|unet| unet.learning_rate),
            text_encoder_lr: plan.text_encoder.as_ref().map(|text| text.learning_rate),
            lr_scheduler: match plan.schedule.kind {
                ScheduleKind::Constant => "constant".into(),
                ScheduleKind::Cosine => "cosine".into(),
                ScheduleKind::Linear => "linear".into(),
            },
            lr_warmup_steps: plan.schedule.warmup_steps,
            optimizer: format!(
                "AdamW(betas=({}, {}),eps={},weight_decay={})",
                adamw.beta1, adamw.beta2, adamw.eps, adamw.weight_decay
            ),
            max_grad_norm: plan.max_grad_norm.unwrap_or(0.0),
            prior_loss_weight: plan.prior.as_ref().map_or(1.0, |prior| prior.weight),
            loss_type: "l2".into(),
            trigger_phrase: plan.data.trigger.clone(),
            ..TrainingFacts::default()
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

    /// SD 2.x has a text encoder 1024 wide; every other width is named after SD 1.x, whose layout of keys it shares.
    fn base_version(&self) -> BaseVersion {
        match (self.base.text_widths().as_slice(), self.predicts_v()) {
            ([1024], true) => BaseVersion::SdV2V,
            ([1024], false) => BaseVersion::SdV2,
            _ => BaseVersion::SdV1,
        }
    }
}

fn size_and_count((size, count): (loralei_data::Size, u64)) -> ((u64, u64), u64) {
    ((u64::from(size.width_px), u64::from(size.height_px)), count)
}

fn last_name(path: &Path) -> String {
    path.file_name().map_or_else(|| "base".to_owned(), |name| name.to_string_lossy().into_owned())
}

impl Plan {
    /// The full learning rate of the factor under `key`, before the schedule.
    pub(crate) fn learning_rate_of(&self, key: &str) -> f64 {
        let is_text = Component::of_module(key).is_some_and(Component::is_text_encoder);
        let component = if is_text { &self.text_encoder } else { &self.unet };
        component.as_ref().map_or(0.0, |component| component.learning_rate)
    }

    /// The full learning rate that progress shows: the U-Net's, or the text encoder's if it trains alone.
    pub(crate) fn learning_rate(&self) -> f64 {
        self.unet.as_ref().or(self.text_encoder.as_ref()).map_or(0.0, |component| component.learning_rate)
    }
}
