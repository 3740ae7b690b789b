//! Lists the factors that a set of targets would give to a base's U-Net, at rank 1.
//!
//! ```text
//! cargo run --release -p loralei-model --example list_targets -- BASE_FOLDER attention|cross-attention|full|PATTERN
//! ```

use candle_core::{DType, Device};
use loralei_model::{AdapterSet, Base, BaseSource, FactorValues, Injection, LayerShape, Targets};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(targets)) = (arguments.next(), arguments.next()) else {
        return Err("usage: list_targets BASE_FOLDER attention|cross-attention|full|PATTERN".into());
    };
    let targets = match targets.as_str() {
        "attention" => Targets::Attention,
        "cross-attention" => Targets::CrossAttention,
        "full" => Targets::Full,
        pattern => Targets::Patterns(vec![pattern.to_owned()]),
    };
    let base = Base::open(BaseSource::Folder(folder.into()), None, DType::F32, &Device::Cpu)?;
    let rank_1 = |_: &str, shape: LayerShape| {
        let (down, up) = shape.factor_shapes(1);
        FactorValues { down: vec![0.0; down.iter().product()], up: vec![0.0; up.iter().product()], alpha: 1.0, rank: 1 }
    };
    let injection = Injection::new(base.unet_prefix(), targets, Box::new(rank_1));
    base.load_unet(Some(&injection))?;
    let factors = AdapterSet::new(injection.finish("U-Net")?);
    let mut out = std::io::stdout();
    for (key, var) in factors.vars() {
        writeln!(out, "{key} {:?}", var.dims())?;
    }
    Ok(())
}
