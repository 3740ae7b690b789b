//! What `--base` means: the bundled model, or a folder.

use loralei_trainer::{BaseChoice, BaseSource};

/// Where the files of a base are.
#[cfg(feature = "emoji")]
pub(crate) fn source(choice: &BaseChoice) -> anyhow::Result<BaseSource> {
    Ok(match choice {
        BaseChoice::Emoji => BaseSource::Bundled(loralei_emoji::NAME, loralei_emoji::FILES),
        BaseChoice::Folder(folder) => BaseSource::Folder(folder.clone()),
    })
}

/// Where the files of a base are.
#[cfg(not(feature = "emoji"))]
pub(crate) fn source(choice: &BaseChoice) -> anyhow::Result<BaseSource> {
    match choice {
        BaseChoice::Emoji => anyhow::bail!("this build is without the emoji base: build it with `--features emoji`"),
        BaseChoice::Folder(folder) => Ok(BaseSource::Folder(folder.clone())),
    }
}
