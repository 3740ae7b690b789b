//! Settings that would lower the memory of a run, by the estimate of the base.

use loralei_model::{BaseDescription, TrainingSize, WeightBytes};
use serde::Serialize;

/// A setting that helps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemorySwitch {
    /// As a configuration has it: `train.checkpointing = "block"`.
    pub setting: String,
    /// What the run would then take.
    pub bytes: u64,
}

impl MemorySwitch {
    /// Those that help a run of `size`: first what does not change what is learned. On a card frozen weights have the type in
    /// which the base computes.
    pub fn of(base: &BaseDescription, size: TrainingSize) -> Vec<Self> {
        let is_cpu = size.is_cpu;
        let narrow = |bytes: u64| bytes.min(2);
        let WeightBytes { matrices, kernels } = size.bytes_per_weight;
        let in_16_bits = WeightBytes { matrices: narrow(matrices), kernels: narrow(kernels) };
        let in_8_bits = WeightBytes { matrices: 1, ..in_16_bits };
        let weights = |bytes_per_weight| TrainingSize { bytes_per_weight, ..size };
        let of_dtype = if is_cpu { size.bytes_per_weight } else { in_16_bits };
        let dtype = TrainingSize { bytes_per_number: narrow(size.bytes_per_number), ..weights(of_dtype) };
        let all = [
            is_cpu.then(|| ("model.weights = \"f16\"".to_owned(), weights(in_16_bits))),
            Some(("train.checkpointing = \"block\"".to_owned(), TrainingSize { recompute: true, ..size })),
            Some((
                format!("train.batch_size = 1 with train.accumulate = {}", size.batch_size),
                TrainingSize { batch_size: 1, ..size },
            )),
            Some(("model.dtype = \"bf16\"".to_owned(), dtype)),
            Some(("model.weights = \"int8\"".to_owned(), weights(in_8_bits))),
            smaller_pictures(size, base.size_multiple_px),
        ];
        let taken = base.training_bytes(size);
        let all = all.into_iter().flatten();
        let all = all.map(|(setting, size)| Self { setting, bytes: base.training_bytes(size) });
        all.filter(|switch| switch.bytes < taken).collect()
    }

    /// `SETTING (1.23 GB), SETTING (2.34 GB)`.
    pub fn list(switches: &[Self]) -> String {
        let each = switches.iter().map(|Self { setting, bytes }| format!("{setting} ({:.2} GB)", *bytes as f64 / 1e9));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Three quarters of the sides, or a little less.
fn smaller_pictures(size: TrainingSize, multiple_px: usize) -> Option<(String, TrainingSize)> {
    let smaller = |px: usize| px * 3 / 4 / multiple_px * multiple_px;
    let (width_px, height_px) = (smaller(size.width_px), smaller(size.height_px));
    let setting = if width_px == height_px {
        format!("data.size_px = {width_px}")
    } else {
        format!("data.width_px = {width_px} with data.height_px = {height_px}")
    };
    (width_px > 0 && height_px > 0).then_some((setting, TrainingSize { width_px, height_px, ..size }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use loralei_model::{Base, BaseSource};

    fn base() -> BaseDescription {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/sd1/base");
        let base = Base::open(BaseSource::Folder(folder.into()), None, DType::F32, &Device::Cpu).unwrap();
        BaseDescription::of(&base).unwrap()
    }

    const LARGE: TrainingSize = TrainingSize {
        width_px: 64,
        height_px: 96,
        batch_size: 3,
        text_encoders: [true; 2],
        rank: 4,
        recompute: false,
        is_cpu: true,
        bytes_per_weight: WeightBytes { matrices: 4, kernels: 4 },
        bytes_per_number: 4,
    };

    #[test]
    fn narrow_weights_save_bytes_of_each_number_in_a_layer_and_of_no_other() {
        let base = base();
        let taken = |matrices, kernels| {
            base.training_bytes(TrainingSize { bytes_per_weight: WeightBytes { matrices, kernels }, ..LARGE })
        };
        let (unet, text) = (&base.parts[0], &base.parts[1]);
        let matrices = unet.num_in_matrices + text.num_in_matrices;
        assert_eq!(taken(4, 4) - taken(2, 2), 2 * (matrices + unet.num_in_kernels));
        assert_eq!(taken(2, 2) - taken(1, 2), matrices);
        assert!(matrices > 0 && unet.num_in_kernels > 0 && text.num_in_kernels == 0);
        // tests/golden/sd1: embeddings of (529, 24) and (77, 24), and norms and biases, are not narrowed.
        let others = text.num_parameters - text.num_in_matrices;
        assert!(others > (529 + 77) * 24 && others < (529 + 77 + 100) * 24, "{others}");
    }

    #[test]
    fn every_switch_that_helps_is_named_and_no_other() {
        let base = base();
        let keys = |size, is_cpu| {
            let size = TrainingSize { is_cpu, ..size };
            let switches = MemorySwitch::of(&base, size);
            assert!(switches.iter().all(|switch| switch.bytes < base.training_bytes(size)));
            switches.into_iter().map(|switch| switch.setting).collect::<Vec<_>>()
        };
        let all = [
            "model.weights = \"f16\"",
            "train.checkpointing = \"block\"",
            "train.batch_size = 1 with train.accumulate = 3",
            "model.dtype = \"bf16\"",
            "model.weights = \"int8\"",
            "data.width_px = 48 with data.height_px = 64",
        ];
        assert_eq!(keys(LARGE, true), all);
        assert_eq!(keys(LARGE, false), all[1..]);
        let smallest = TrainingSize {
            width_px: base.size_multiple_px,
            height_px: base.size_multiple_px,
            batch_size: 1,
            recompute: true,
            bytes_per_weight: WeightBytes { matrices: 1, kernels: 2 },
            bytes_per_number: 2,
            ..LARGE
        };
        assert!(keys(smallest, true).is_empty());
        let square = TrainingSize { width_px: 64, height_px: 64, ..smallest };
        assert_eq!(keys(square, true), ["data.size_px = 48"]);
    }
}
