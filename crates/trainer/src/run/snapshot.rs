//! The state of a run in one file: factors, the optimizer's tensors, the step, and what the run is.
//!
//! Order of images, noise, timesteps, dropout and learning rate are functions of (seed, step), so nothing else has to be kept.
//! The file is a tensor file like an adapter: `factor.KEY` and `SLOT.KEY` in f32, and in the metadata what is not a tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use loralei_adapter::{TensorFile, TensorView, write_tensors};
use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use crate::error::TrainError;
use crate::optimizer::OptimizerState;

/// Changes whenever an older program could not go on from the file as this one does.
const FORMAT: u32 = 1;
const METADATA_KEY: &str = "loralei.snapshot";
const FACTOR: &str = "factor";

/// Everything that the next step depends on, and nothing else.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// Steps made.
    pub(crate) step: u64,
    /// By key of the adapter's file; f32, on the processor.
    pub(crate) factors: BTreeMap<String, Tensor>,
    /// Of the optimizer and what belongs to it.
    pub(crate) optimizer: OptimizerState,
    /// What the run is.
    pub(crate) fingerprint: Fingerprint,
}

/// What is not a tensor.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    program: String,
    step: u64,
    optimizer_steps: u64,
    /// Bits of f64 in hexadecimal digits: decimal digits may be read as a neighbour.
    scalars: BTreeMap<String, String>,
    fingerprint: BTreeMap<String, String>,
}

impl Snapshot {
    /// Writes the file, whole or not at all, and reads it back.
    ///
    /// # Errors
    /// A disk that cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), TrainError> {
        let header = Header {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            step: self.step,
            optimizer_steps: self.optimizer.num_steps,
            scalars: self.optimizer.scalars.iter().map(|(name, x)| (name.clone(), hex(*x))).collect(),
            fingerprint: self.fingerprint.0.clone(),
        };
        let header = serde_json::to_string(&header)
            .map_err(|error| TrainError::Disk { path: path.to_owned(), source: error.into() })?;
        let slots = std::iter::once((FACTOR, &self.factors))
            .chain(self.optimizer.tensors.iter().map(|(slot, tensors)| (slot.as_str(), tensors)));
        let mut values = BTreeMap::new();
        for (slot, tensors) in slots {
            for (key, tensor) in tensors {
                let numbers = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
                values.insert(format!("{slot}.{key}"), (tensor.dims().to_vec(), numbers));
            }
        }
        let views = values.iter().map(|(name, (shape, numbers))| (name.clone(), TensorView::f32(shape, numbers)));
        Ok(write_tensors(path, &views.collect(), &[(METADATA_KEY.to_owned(), header)].into())?)
    }

    /// Reads a file that [`Snapshot::write`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Adapter`] for what is no tensor file, [`TrainError::Snapshot`] for what is no snapshot of this program.
    pub(crate) fn read(path: &Path) -> Result<Self, TrainError> {
        let file = TensorFile::open(path)?;
        let wrong = |reason: String| TrainError::Snapshot { path: path.to_owned(), reason };
        let header = file.metadata().get(METADATA_KEY).ok_or_else(|| wrong("it says nothing of a run".to_owned()))?;
        let header: Header = serde_json::from_str(header).map_err(|error| wrong(error.to_string()))?;
        if header.format != FORMAT {
            let Header { format, program, .. } = header;
            return Err(wrong(format!(
                "it is of format {format}, written by version {program}; this one has {FORMAT}"
            )));
        }
        let mut slots: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for name in file.names() {
            let (slot, key) = name.split_once('.').ok_or_else(|| wrong(format!("a tensor is called `{name}`")))?;
            let shape = file.info(name).map(|info| info.shape.clone()).unwrap_or_default();
            let tensor = Tensor::from_vec(file.read_f32(name)?, shape, &Device::Cpu)?;
            slots.entry(slot.to_owned()).or_default().insert(key.to_owned(), tensor);
        }
        let scalars = header.scalars.into_iter().map(|(name, digits)| {
            let bits = u64::from_str_radix(&digits, 16).map_err(|error| wrong(format!("`{name}`: {error}")))?;
            Ok((name, f64::from_bits(bits)))
        });
        let scalars = scalars.collect::<Result<BTreeMap<_, _>, TrainError>>()?;
        Ok(Self {
            step: header.step,
            factors: slots.remove(FACTOR).unwrap_or_default(),
            optimizer: OptimizerState { num_steps: header.optimizer_steps, scalars, tensors: slots },
            fingerprint: Fingerprint(header.fingerprint),
        })
    }

    /// The newest of `states` that can be read, and what is wrong with those after it.
    ///
    /// # Errors
    /// The reason of the newest, if none can be read.
    pub(crate) fn newest(states: &[(u64, PathBuf)]) -> Result<(Option<Self>, Vec<String>), TrainError> {
        let (mut damaged, mut first) = (Vec::new(), None);
        for (_, path) in states.iter().rev() {
            match Self::read(path) {
                Ok(snapshot) => return Ok((Some(snapshot), damaged)),
                Err(error) => {
                    damaged.push(format!("passed over `{}`: {error}", path.display()));
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok((None, damaged)), Err)
    }
}

fn hex(x: f64) -> String {
    format!("{:016x}", x.to_bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn snapshot(step: u64) -> Snapshot {
        let named = |x: f32| {
            BTreeMap::from([
                ("lora_unet_a.lora_down.weight".to_owned(), tensor(&[x, -0.0, 1e-42, 3.5, 2.0, 1.0], &[2, 3, 1, 1])),
                ("lora_unet_a.lora_up.weight".to_owned(), tensor(&[x / 3.0, 4.0], &[1, 2])),
            ])
        };
        Snapshot {
            step,
            factors: named(0.1),
            optimizer: OptimizerState {
                num_steps: step + 2,
                scalars: [("d".to_owned(), 0.1 + 0.2), ("tiny".to_owned(), f64::from_bits(1))].into(),
                tensors: [("first".to_owned(), named(7.0)), ("second".to_owned(), named(f32::MIN_POSITIVE))].into(),
            },
            fingerprint: Fingerprint([("lora.rank".to_owned(), "8".to_owned())].into()),
        }
    }

    fn bits(tensors: &BTreeMap<String, Tensor>) -> Vec<(String, Vec<usize>, Vec<u32>)> {
        let flat =
            |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
        tensors.iter().map(|(key, t)| (key.clone(), t.dims().to_vec(), flat(t))).collect()
    }

    #[test]
    fn a_snapshot_reads_back_to_the_bit() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("step-000003.state");
        let written = snapshot(3);
        written.write(&path).unwrap();
        let read = Snapshot::read(&path).unwrap();
        assert_eq!((read.step, read.optimizer.num_steps), (3, 5));
        assert_eq!(bits(&read.factors), bits(&written.factors));
        for (slot, tensors) in &written.optimizer.tensors {
            assert_eq!(bits(&read.optimizer.tensors[slot]), bits(tensors), "{slot}");
        }
        let exact = |scalars: &BTreeMap<String, f64>| scalars.values().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(exact(&read.optimizer.scalars), exact(&written.optimizer.scalars));
        assert_eq!(read.fingerprint, written.fingerprint);
        written.write(&place.path().join("again")).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), std::fs::read(place.path().join("again")).unwrap());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test damages a file on purpose")]
    fn a_damaged_state_is_passed_over_for_the_one_before_it() {
        let place = tempfile::tempdir().unwrap();
        let path = |step: u64| place.path().join(format!("step-{step}"));
        snapshot(1).write(&path(1)).unwrap();
        let whole = std::fs::read(path(1)).unwrap();
        std::fs::write(path(2), &whole[..whole.len() - 5]).unwrap();
        let states = [(1, path(1)), (2, path(2))];
        let (found, said) = Snapshot::newest(&states).unwrap();
        assert_eq!((found.unwrap().step, said.len()), (1, 1));
        assert!(Snapshot::newest(&states[1..]).is_err());
        assert!(Snapshot::newest(&[]).unwrap().0.is_none());
    }
}
