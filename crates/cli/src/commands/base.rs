//! What `--base` means: the bundled model, a folder, a checkpoint file, or a model on the hub.

use std::path::Path;

#[cfg(not(feature = "hub"))]
use loralei_model::ModelError;
#[cfg(not(feature = "hub"))]
use loralei_trainer::TrainError;
use loralei_trainer::{BaseChoice, BaseSource};

use crate::report::Reporter;

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
    use loralei_trainer::Event;

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
