//! `lora.start_from`: a run that begins with the factors of an adapter's file instead of new ones.

use std::collections::BTreeMap;
use std::path::Path;

use loralei_adapter::{Adapter, AdapterFile, LoraModule};
use loralei_model::{Base, LoraFactors};

use crate::error::TrainError;
use crate::network::Network;

impl Network {
    /// Gives the factors the values of the adapter at `path`, so that the network, which is of `base`, predicts what it does with
    /// that adapter. Returns what is to be said: what of the file does nothing and is left out, and alphas of the file that are
    /// not those of the run, for which B is multiplied.
    ///
    /// # Errors
    /// A file that cannot be read; [`TrainError::StartDiffers`] if its layers, ranks or shapes are not those of the run.
    pub fn start_from(&self, base: &Base, path: &Path) -> Result<Vec<String>, TrainError> {
        let file = AdapterFile::read(path)?;
        let (mut said, mut adapter) = (file.remarks(), file.to_adapter()?);
        said.extend(base.note_on_unread(&adapter));
        adapter.modules.retain(|module, _| !base.leaves_out(module));
        let trained: BTreeMap<&str, &LoraFactors> =
            self.factors().modules().map(|factors| (factors.module(), factors)).collect();
        let only_in_file = adapter.modules.keys().filter(|module| !trained.contains_key(module.as_str()));
        let mut differences: Vec<String> =
            only_in_file.map(|module| format!("`{module}` is in the file and not trained")).collect();
        for (module, factors) in &trained {
            differences.extend(difference(module, factors, adapter.modules.get(*module)));
        }
        if !differences.is_empty() {
            differences.sort_unstable();
            return Err(TrainError::StartDiffers { path: path.to_path_buf(), differences });
        }
        self.factors().set_values(&adapter)?;
        said.extend(other_alphas(path, &adapter, &trained));
        Ok(said)
    }
}

/// How the factors of one module differ from the file's.
fn difference(module: &str, factors: &LoraFactors, given: Option<&LoraModule>) -> Option<String> {
    let Some(given) = given else { return Some(format!("`{module}` is trained and not in the file")) };
    let (rank, in_file) = (factors.rank(), given.rank());
    if rank != in_file {
        return Some(format!("`{module}` has rank {in_file} in the file and {rank} in the run"));
    }
    let (down, up) = factors.shapes();
    let has_shape =
        |shape: &[usize], found: &[usize]| shape.iter().product::<usize>() == found.iter().product::<usize>();
    let fits = has_shape(&down, &given.down.shape) && has_shape(&up, &given.up.shape);
    (!fits).then(|| format!("`{module}` is {:?} by {:?} in the file", given.up.shape, given.down.shape))
}

/// A line about modules whose alpha in the file is not that of the run.
fn other_alphas(path: &Path, adapter: &Adapter, trained: &BTreeMap<&str, &LoraFactors>) -> Option<String> {
    let of_file = |module: &LoraModule| module.alpha.unwrap_or(module.rank() as f32);
    let pairs = trained.iter().filter_map(|(name, factors)| {
        Some((of_file(adapter.modules.get(*name)?), factors.alpha()))
            .filter(|(file, run)| file.to_bits() != run.to_bits())
    });
    let pairs: Vec<(f32, f32)> = pairs.collect();
    let (file, run) = pairs.first()?;
    Some(format!(
        "alpha of {} modules is not that of `{}`, first {run} instead of {file}: their B begins multiplied by {}, so that \
         the run begins as the adapter is",
        pairs.len(),
        path.display(),
        file / run
    ))
}
