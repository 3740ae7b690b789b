//! What `--base` means: the bundled model, or a folder.

use loralei_trainer::{BaseChoice, BaseSource};

/// Where the files of a base are.
#[cfg_attr(feature = "emoji", expect(clippy::unnecessary_wraps, reason = "without the feature it can fail"))]
pub(crate) fn source(choice: &BaseChoice) -> anyhow::Result<BaseSource> {
    match choice {
        #[cfg(feature = "emoji")]
        BaseChoice::Emoji => Ok(BaseSource::Bundled(loralei_emoji::NAME, loralei_emoji::FILES)),
        #[cfg(not(feature = "emoji"))]
        BaseChoice::Emoji => anyhow::bail!("this build is without the emoji base: build it with `--features emoji`"),
        BaseChoice::Folder(folder) => Ok(BaseSource::Folder(folder.clone())),
    }
}
