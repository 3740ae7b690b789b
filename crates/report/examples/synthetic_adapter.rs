//! The pages of adapters without adapters: to look at them, and to check them in a browser.
//!
//! `cargo run --release -p loralei-report --example synthetic_adapter -- FOLDER`
//!
//! Writes `inspection.html` (as large as an adapter of Stable Diffusion 1.5 at rank 16 against one of rank 32) and
//! `composition.html`. The figures are made up; they have the sizes and shapes of real ones.

use std::error::Error;
use std::io::Cursor;
use std::path::Path;

use loralei_adapter::{BaseMeasures, Comparison, Inspection, ModuleMeasures, SubspaceSimilarity};
use loralei_report::{
    ComposedMember, ComposedMethod, CompositionPage, PairOverlap, PictureGrid, PictureRow, write_composition_page,
    write_inspection_page,
};

const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\"' <!-- ]]> \u{202e}";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: synthetic_adapter FOLDER")?;
    let folder = Path::new(&folder);
    std::fs::create_dir_all(folder)?;
    write_inspection_page(&inspection(), &folder.join("inspection.html"))?;
    write_composition_page(&composition()?, &folder.join("composition.html"))?;
    Ok(())
}

/// Names and widths (out, in) of an SD 1.5 adapter's layers.
fn layers() -> Vec<(String, [usize; 2])> {
    let mut layers = Vec::new();
    let blocks =
        [("down_blocks_0", 2, 320), ("down_blocks_1", 2, 640), ("down_blocks_2", 2, 1280), ("mid_block", 1, 1280)];
    let up = [("up_blocks_1", 3, 1280), ("up_blocks_2", 3, 640), ("up_blocks_3", 3, 320)];
    for (block, num_attentions, width) in blocks.into_iter().chain(up) {
        for attention in 0..num_attentions {
            let place = format!("lora_unet_{block}_attentions_{attention}");
            layers.push((format!("{place}_proj_in"), [width, width]));
            layers.push((format!("{place}_proj_out"), [width, width]));
            for (kind, shape) in [
                ("attn1_to_q", [width, width]),
                ("attn1_to_k", [width, width]),
                ("attn1_to_v", [width, width]),
                ("attn1_to_out_0", [width, width]),
                ("attn2_to_q", [width, width]),
                ("attn2_to_k", [width, 768]),
                ("attn2_to_v", [width, 768]),
                ("attn2_to_out_0", [width, width]),
                ("ff_net_0_proj", [8 * width, width]),
                ("ff_net_2", [width, 4 * width]),
            ] {
                layers.push((format!("{place}_transformer_blocks_0_{kind}"), shape));
            }
        }
        layers.push((format!("lora_unet_{block}_resnets_0_conv1"), [width, width]));
    }
    for layer in 0..12 {
        for kind in
            ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2"]
        {
            layers.push((format!("lora_te_text_model_encoder_layers_{layer}_{kind}"), [768, 768]));
        }
    }
    layers
}

/// Something between 0 and 1 that looks drawn and is not.
fn varied(index: usize) -> f64 {
    (0.5 + 0.5 * (index as f64 * 12.9898).sin()) * (0.6 + 0.4 * (index as f64 * 0.11).cos())
}

fn inspection() -> Inspection {
    let layers = layers();
    let module = |(index, (module, shape)): (usize, &(String, [usize; 2]))| {
        let spectral = 0.2 + 3.0 * varied(index);
        let singular_values: Vec<f64> =
            (0..16).map(|k| spectral * (-0.25 * k as f64 * (0.4 + varied(index + k))).exp()).collect();
        let squares: f64 = singular_values.iter().map(|value| value * value).sum();
        ModuleMeasures {
            module: module.clone(),
            kind: "LoRA".to_owned(),
            weight_shape: shape.to_vec(),
            rank: Some(16),
            alpha: Some(8.0),
            frobenius: squares.sqrt(),
            spectral,
            stable_rank: squares / (spectral * spectral),
            effective_rank: 3.0 + 9.0 * varied(index + 7),
            singular_values,
            base: Some(BaseMeasures {
                weight_frobenius: 40.0,
                share: squares.sqrt() / 40.0,
                projected: 0.2,
                amplification: squares.sqrt() / 0.2,
            }),
        }
    };
    let similarity = |(index, (module, [rows, columns])): (usize, &(String, [usize; 2]))| {
        let phi = |shift: usize| -> Vec<Vec<f64>> {
            let value = |i: usize, j: usize| (varied(index + shift) / (0.3 * (i.max(j) as f64)) + 0.05).min(1.0);
            (1..=16).map(|i| (1..=32).map(|j| value(i, j)).collect()).collect()
        };
        SubspaceSimilarity {
            module: module.clone(),
            input: phi(0),
            output: phi(3),
            random_input: 32.0 / *columns as f64,
            random_output: 32.0 / *rows as f64,
            cosine: 0.4 * varied(index),
        }
    };
    let modules: Vec<_> = layers.iter().enumerate().map(module).collect();
    Inspection {
        file: "dog.safetensors".to_owned(),
        num_bytes: 18_900_000,
        format: "kohya".to_owned(),
        family: "Stable Diffusion 1.x".to_owned(),
        dtypes: vec!["F16".to_owned()],
        num_parameters: 9_437_184,
        ranks: [(16, layers.len())].into(),
        alphas: [("8".to_owned(), layers.len() - 3), ("none".to_owned(), 3)].into(),
        kinds: [("LoRA".to_owned(), layers.len())].into(),
        targets: [("U-Net attn1.to_q".to_owned(), 16), ("text encoder mlp.fc1".to_owned(), 12)].into(),
        trigger_words: vec!["sks dog".to_owned(), HOSTILE.to_owned()],
        embeddings: [("<sks>".to_owned(), vec![2, 768])].into(),
        hashes: [("sha256".to_owned(), "9f".repeat(32)), ("autov2".to_owned(), "9f9f9f9f9f".to_owned())].into(),
        hashes_match: Some(false),
        metadata: [("ss_network_dim".to_owned(), "16".to_owned()), (HOSTILE.to_owned(), HOSTILE.repeat(20))].into(),
        against: Some(Comparison {
            file: "dog-r32.safetensors".to_owned(),
            modules: layers.iter().enumerate().filter(|(index, _)| index % 17 != 5).map(similarity).collect(),
            only_here: layers.iter().skip(5).step_by(17).map(|(module, _)| module.clone()).collect(),
            only_there: Vec::new(),
        }),
        modules,
    }
}

fn composition() -> Result<CompositionPage, Box<dyn Error>> {
    let layers: Vec<String> = layers().into_iter().map(|(module, _)| module).collect();
    let picture = |index: usize| -> Result<Option<Vec<u8>>, Box<dyn Error>> {
        let mut png = Vec::new();
        let colour = |x: u32, y: u32| [(x * 3) as u8, (y * 3) as u8, (40 * index) as u8].into();
        image::RgbImage::from_fn(64, 64, colour).write_to(&mut Cursor::new(&mut png), image::ImageFormat::Png)?;
        Ok(Some(png))
    };
    let rows = ["base", "octopus", "sticker", "sum", "budget"];
    let rows = rows.iter().enumerate().map(|(index, name)| -> Result<PictureRow, Box<dyn Error>> {
        let pictures = (0..3).map(|column| if (index, column) == (1, 2) { Ok(None) } else { picture(index + column) });
        Ok(PictureRow { name: (*name).to_owned(), pictures: pictures.collect::<Result<_, _>>()? })
    });
    let method = |(index, name): (usize, &str)| ComposedMethod {
        name: name.to_owned(),
        rho_max: Some(1.9 - 0.2 * index as f64),
        rho_mean: Some(1.3 - 0.1 * index as f64),
        worst_layer: Some(layers[index * 7].clone()),
        norm_ratio: Some(1.02),
        difference_from_sum: Some(0.1 * index as f64),
        rank: Some(16),
        num_bytes: Some(18_900_000),
        additivity_error: Some(0.21),
        x0_std_ratio: Some(1.2 - 0.05 * index as f64),
        clipped_share: Some(0.05 / (1.0 + index as f64)),
        clipped_ratio: Some(3.1 / (1.0 + index as f64)),
        is_within_rule: (index != 3).then_some(index > 1),
        layer_rho: (0..layers.len())
            .map(|layer| (layer % 50 != 9).then(|| 0.9 + varied(layer + index) / (1.0 + index as f64)))
            .collect(),
    };
    Ok(CompositionPage {
        title: "octopus + sticker".to_owned(),
        base: Some("emoji".to_owned()),
        members: ["octopus", HOSTILE]
            .map(|name| ComposedMember {
                name: name.to_owned(),
                scale: 1.0,
                rank: Some("8".to_owned()),
                prompt: Some(format!("a {name} on green")),
                x0_std_ratio: Some(1.04),
                clipped_share: Some(0.02),
            })
            .to_vec(),
        methods: ["sum", "svd", "ties", "dare", "knots", "budget"].into_iter().enumerate().map(method).collect(),
        pairs: vec![PairOverlap {
            first: "octopus".to_owned(),
            second: HOSTILE.to_owned(),
            input: 0.21,
            output: 0.17,
            random_input: Some(0.05),
            random_output: Some(0.04),
            cosine: -0.02,
            num_layers: layers.len(),
        }],
        rule: Some("clipped pixels at most 2 times the base's, and the spread of x₀ within 10 %.".to_owned()),
        base_clipped_share: Some(0.016),
        notes: vec![format!("A note: {HOSTILE}")],
        pictures: Some(PictureGrid {
            prompts: vec!["a octopus on green".to_owned(), HOSTILE.to_owned(), "a pear on blue".to_owned()],
            rows: rows.collect::<Result<_, _>>()?,
        }),
        layers,
    })
}
