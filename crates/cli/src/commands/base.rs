//! What `--base` means: the bundled model, a folder, a checkpoint file, or a model on the hub; and what is said of a base
//! when it is opened.

use std::path::Path;

use candle_core::{DType, Device};
#[cfg(not(feature = "hub"))]
use loralei_model::ModelError;
use loralei_model::{Base, NumberTypes, Prediction, ScheduleOverride};
#[cfg(not(feature = "hub"))]
use loralei_trainer::TrainError;
use loralei_trainer::{BaseChoice, BaseSource, Event};

use crate::report::Reporter;

/// Opens the base of this name, and says what its user should know: warnings, and what it predicts where that is not noise, or
/// not what its files say.
pub(crate) fn open(
    name: &str,
    schedule: impl Into<ScheduleOverride>,
    types: impl Into<NumberTypes>,
    device: &Device,
    reporter: &mut Reporter,
) -> anyhow::Result<Base> {
    let schedule = schedule.into();
    let source = source(&BaseChoice::from(name), reporter)?;
    let base = Base::open(source, schedule, types, device).map_err(model)?;
    warn(&base, reporter);
    if let Some(message) = noising(&base, schedule) {
        reporter.show(&Event::Note { message });
    }
    Ok(base)
}

/// The same for its weights alone: what it predicts does not matter, and is not asked where it does not say.
pub(crate) fn open_for_weights(name: &str, reporter: &mut Reporter) -> anyhow::Result<Base> {
    let schedule = ScheduleOverride { prediction: Some(Prediction::Epsilon), zero_terminal_snr: Some(false) };
    let source = source(&BaseChoice::from(name), reporter)?;
    let base = Base::open(source, schedule, DType::F32, &Device::Cpu).map_err(model)?;
    warn(&base, reporter);
    Ok(base)
}

pub(crate) fn warn(base: &Base, reporter: &mut Reporter) {
    for message in base.warnings() {
        reporter.show(&Event::Warning { message: message.clone() });
    }
}

/// What the base predicts, if that is worth a line.
fn noising(base: &Base, told: ScheduleOverride) -> Option<String> {
    let schedule = base.noise_schedule();
    let predicts_noise = schedule.prediction() == Prediction::Epsilon && !schedule.config().rescale_betas_zero_snr;
    let is_usual = predicts_noise && told == ScheduleOverride::default();
    (!is_usual).then(|| format!("the base predicts {}", base.predicts()))
}

/// Where the files of a base are. A model on the hub is downloaded first, if it is not there yet.
pub(crate) fn source(choice: &BaseChoice, reporter: &mut Reporter) -> anyhow::Result<BaseSource> {
    match choice {
        #[cfg(feature = "emoji")]
        BaseChoice::Emoji => Ok(BaseSource::Bundled(loralei_emoji::NAME, loralei_emoji::FILES)),
        #[cfg(not(feature = "emoji"))]
        BaseChoice::Emoji => anyhow::bail!("this build is without the emoji base: build it with `--features emoji`"),
        BaseChoice::Named(name) if is_hub_id(name) => download(name, reporter),
        BaseChoice::Named(name) => Ok(BaseSource::at_path(Path::new(name))),
    }
}

/// As [`source`], but nothing is downloaded: a model on the hub that is not there yet is an error.
pub(crate) fn source_on_disk(choice: &BaseChoice, reporter: &mut Reporter) -> anyhow::Result<BaseSource> {
    match choice {
        #[cfg(feature = "hub")]
        BaseChoice::Named(name) if is_hub_id(name) => {
            use loralei_hub::{BaseOptions, Hub, HubSettings};

            let hub = Hub::new(HubSettings { is_offline: true, ..HubSettings::from_env()? })?;
            Ok(BaseSource::at_path(&hub.fetch_base(&name.parse()?, &BaseOptions::default(), &mut |_| ())?))
        }
        _ => source(choice, reporter),
    }
}

/// `owner/name`, with a file or a revision behind it; what is on the disk is never one, nor what looks like a path.
fn is_hub_id(name: &str) -> bool {
    let looks_like_a_path = name.starts_with(['.', '/', '~']) || name.contains('\\') || name.ends_with('/');
    let has_owner = name.split('/').count() >= 2;
    !Path::new(name).exists() && has_owner && !looks_like_a_path && !first_part_exists(name)
}

/// Whether the name begins with a folder of the current directory: then the rest is probably mistyped.
fn first_part_exists(name: &str) -> bool {
    name.split('/').next().is_some_and(|first| Path::new(first).is_dir())
}

#[cfg(feature = "hub")]
fn download(name: &str, reporter: &mut Reporter) -> anyhow::Result<BaseSource> {
    use loralei_hub::{BaseOptions, Hub, HubEvent, HubId, HubSettings};

    let id: HubId = name.parse()?;
    let hub = Hub::new(HubSettings::from_env()?)?;
    let mut current = String::new();
    let mut start = |reporter: &mut Reporter, file: String, total: Option<u64>, verb: &str| {
        let phase = format!("{verb} {file} (MB)");
        if current != phase {
            reporter
                .show(&Event::PhaseStarted { name: phase.clone(), total: total.map(|bytes| bytes.div_ceil(1 << 20)) });
            current = phase;
        }
    };
    let path = hub.fetch_base(&id, &BaseOptions::default(), &mut |event| match event {
        HubEvent::Progress { file, done_bytes, total_bytes } => {
            start(reporter, file.to_string(), total_bytes, "downloading");
            reporter.show(&Event::PhaseProgress { done: done_bytes.div_ceil(1 << 20) });
        }
        HubEvent::Verifying { file } => start(reporter, file.to_string(), None, "checking"),
        HubEvent::WaitingForLock { file } => {
            reporter.show(&Event::Note { message: format!("another process downloads `{file}`: waiting") });
        }
        HubEvent::Retry { reason, .. } | HubEvent::CacheInstead { reason } => {
            reporter.show(&Event::Warning { message: reason });
        }
        HubEvent::Unverified { file } => {
            reporter.show(&Event::Warning { message: format!("the hub gives no checksum of `{file}`") });
        }
        _ => {}
    })?;
    reporter.finish();
    Ok(BaseSource::at_path(&path))
}

#[cfg(not(feature = "hub"))]
fn download(name: &str, _: &mut Reporter) -> anyhow::Result<BaseSource> {
    Err(TrainError::from(ModelError::NoSuchBase { name: name.to_owned() }).into())
}

/// An error of the model as the program reports it: with its exit code and hint.
pub(crate) fn model(error: loralei_model::ModelError) -> anyhow::Error {
    loralei_trainer::TrainError::from(error).into()
}

#[cfg(test)]
mod tests {
    use super::is_hub_id;

    #[test]
    fn a_hub_id_is_no_path() {
        assert!(is_hub_id("owner/name") && is_hub_id("owner/name@v1") && is_hub_id("owner/name/model.safetensors"));
        for path in ["emoji2", "./owner/name", "/models/sd15", "src/nothing", "owner/name/", r"C:\models\sd15"] {
            assert!(!is_hub_id(path), "{path}");
        }
    }
}
