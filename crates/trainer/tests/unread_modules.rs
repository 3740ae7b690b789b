//! A run that starts from an adapter with modules for a layer that nothing reads, as kohya's files of SDXL have them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use loralei_adapter::{Adapter, SaveDtype};
use loralei_model::{Base, BaseSource, Checkpointing};
use loralei_trainer::{ConfigLayers, Network, Plan};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The adapter with modules for the first text encoder's last layer.
fn with_unread_layer(adapter: &Adapter, is_zero: bool) -> Adapter {
    let mut all = adapter.clone();
    for (name, module) in adapter.modules.iter().filter(|(name, _)| name.contains("te1_text_model_encoder_layers_1_")) {
        let mut module = module.clone();
        if is_zero {
            module.up.data.fill(0.0);
        }
        all.modules.insert(name.replace("layers_1_", "layers_2_"), module);
    }
    assert!(all.modules.len() >= adapter.modules.len() + 4);
    all
}

/// The layers of the adapter, with its ranks and alphas.
fn plan(network: &Network) -> Plan {
    let mut layers = ConfigLayers::new();
    layers.set("data.images=photos").unwrap();
    for (section, prefix) in [("unet", "lora_unet_"), ("text_encoder", "lora_te1_"), ("text_encoder_2", "lora_te2_")] {
        let of_part: Vec<_> =
            network.factors().modules().filter(|factors| factors.module().starts_with(prefix)).collect();
        let paths: Vec<String> = of_part.iter().map(|factors| format!("{:?}", factors.path())).collect();
        layers.set(&format!("lora.{section}.targets=[{}]", paths.join(", "))).unwrap();
        layers.set(&format!("lora.{section}.rank={}", of_part[0].rank())).unwrap();
        layers.set(&format!("lora.{section}.alpha={}", of_part[0].alpha())).unwrap();
    }
    Plan::new(&layers.resolve().unwrap().config).unwrap()
}

#[test]
fn a_run_starts_from_a_file_with_an_unread_layer_and_says_so_if_it_is_not_zero() {
    let base = Base::open(BaseSource::Folder(golden("sdxl/base")), None, DType::F32, &Device::Cpu).unwrap();
    let adapter = Adapter::read(&golden("sdxl/adapter.safetensors")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("a.safetensors");
    let with_adapter = |adapter: &Adapter| Network::with_adapter(&base, adapter, Checkpointing::None).unwrap();
    let plan = plan(&with_adapter(&adapter));
    for (is_zero, num_said) in [(true, 0), (false, 1)] {
        let more = with_unread_layer(&adapter, is_zero);
        assert_eq!(with_adapter(&more).factors().len(), adapter.modules.len(), "nothing is made of them");
        more.write(&path, SaveDtype::F32).unwrap();
        let network =
            Network::load(&base, plan.unet.as_ref(), &plan.text_encoders, plan.seed, plan.checkpointing).unwrap();
        let said = network.start_from(&base, &path).unwrap();
        assert_eq!(said.len(), num_said, "{said:?}");
        assert!(said.iter().all(|line| line.contains("do nothing") && line.contains("lora_te1_")), "{said:?}");
        assert_eq!(network.factors().to_adapter().unwrap().modules, adapter.modules);
    }
}
