//! Every setting of a run with its value and where it came from, for people (`--print-config`) and programs.

use std::fmt::Write as _;

use loralei_model::{DeviceChoice, WeightType};
use serde::Serialize;
use toml::{Table, Value};

use super::layers::{Origin, ResolvedConfig, leaves, one_line, value_text};
use super::{Dtype, EmptyCaptions, OptimizerKind, Targets, WeightDtype, keys::KEYS};
use crate::plan::{Plan, usual_snapshot_steps, usual_validation_steps};

/// A setting: its value, or what stands in for one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ListedSetting {
    /// The dotted key, `train.steps`.
    pub key: &'static str,
    /// Its value; `None` if it is unset.
    pub value: Option<Value>,
    /// `default`, `preset NAME`, a file, or `--set`; `None` if it is unset.
    pub origin: Option<String>,
    /// What an unset value, or `auto`, amounts to in this run.
    pub meaning: Option<String>,
}

impl ResolvedConfig {
    /// Every key in the order of the reference. With a `plan`, what it settles is said too.
    pub fn listing(&self, plan: Option<&Plan>) -> Vec<ListedSetting> {
        let table = Table::try_from(&self.config).unwrap_or_default();
        let mut values: std::collections::BTreeMap<String, Value> = leaves(&table).into_iter().collect();
        let listed = KEYS.into_iter().map(|key| {
            let value = values.remove(key);
            let origin = value.as_ref().map(|_| self.origins.get(key).unwrap_or(&Origin::Default).to_string());
            let meaning = if value.is_some() { self.of_auto(key, plan) } else { Some(self.of_unset(key, plan)) };
            ListedSetting { key, value, origin, meaning }
        });
        listed.collect()
    }

    /// The listing as TOML that reads back as the same settings: values with their origin behind them, unset keys as
    /// comments.
    pub fn to_listed_toml(&self, plan: Option<&Plan>) -> String {
        let (mut text, mut section) = (String::new(), "");
        for ListedSetting { key, value, origin, meaning } in self.listing(plan) {
            let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
            if parent != section {
                let _ = writeln!(text, "\n[{parent}]");
                section = parent;
            }
            let meaning = meaning.unwrap_or_default();
            let line = match (value, origin) {
                (Some(value), Some(origin)) => {
                    let meaning = if meaning.is_empty() { meaning } else { format!(": {meaning}") };
                    format!("{name} = {}  # {}", value_text(&value), one_line(&format!("{origin}{meaning}")))
                }
                _ => format!("# {name} =   unset: {}", one_line(&meaning)),
            };
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// What `auto` amounts to.
    fn of_auto(&self, key: &str, plan: Option<&Plan>) -> Option<String> {
        let model = &self.config.model;
        match key {
            "model.weights" if model.weights == WeightDtype::Auto => Some(match plan?.number_types.weights {
                WeightType::Half => "the 16 bits of the file, or f16".to_owned(),
                WeightType::Exactly(kept) => kept.as_str().to_owned(),
                WeightType::Int8 => "int8".to_owned(),
            }),
            "lora.text_encoder.targets" if self.config.lora.text_encoder.targets == Targets::None => {
                Some("the text encoder stays as it is".to_owned())
            }
            "lora.text_encoder_2.targets" if self.config.lora.text_encoder_2.targets == Targets::None => {
                Some("a second text encoder stays as it is".to_owned())
            }
            "model.empty_captions" if model.empty_captions == EmptyCaptions::Auto => {
                Some("zeros where the base asks for them, otherwise encoded".to_owned())
            }
            "lora.unet.targets" if self.config.lora.unet.targets == Targets::None => {
                Some("the U-Net stays as it is".to_owned())
            }
            "train.steps" => self.config.train.epochs.map(|_| "`train.epochs` is set instead".to_owned()),
            _ => None,
        }
    }

    /// What a key without a value amounts to.
    fn of_unset(&self, key: &str, plan: Option<&Plan>) -> String {
        let config = &self.config;
        match key.split_once('.').map_or(key, |(section, _)| section) {
            "preset" => "the built-in defaults".to_owned(),
            "model" => match key {
                "model.dtype" => {
                    let device = match config.model.device {
                        DeviceChoice::Cpu => "the processor",
                        _ => "the card",
                    };
                    format!("{}, as suits {device}", dtype_name(Dtype::usual(config.model.device)))
                }
                _ => "what the base says".to_owned(),
            },
            "data" => self.of_unset_data(key),
            "lora" => self.of_unset_factors(key),
            "optimizer" => self.of_unset_optimizer(key),
            "validation" if key == "validation.every_steps" => {
                format!("{}, a fifth of the run and at least 100", usual_validation_steps(config.train.steps))
            }
            "output" => self.of_unset_output(key, plan),
            _ => match key {
                "train.epochs" => "`train.steps` says how long".to_owned(),
                "noise.max_timestep" => "the end of the base's schedule, 1000".to_owned(),
                "prior.prompt" => config.data.class.clone().unwrap_or_else(|| "the class word".to_owned()),
                "validation.images" => "images of the run".to_owned(),
                _ => "none".to_owned(),
            },
        }
    }

    fn of_unset_data(&self, key: &str) -> String {
        let data = &self.config.data;
        let (width_px, height_px) = (data.width_px.unwrap_or(data.size_px), data.height_px.unwrap_or(data.size_px));
        let side_px = width_px.saturating_mul(height_px).isqrt();
        match key {
            "data.width_px" | "data.height_px" => format!("{}, `data.size_px`", data.size_px),
            "data.bucket_min_px" => format!("{}, half of the size", side_px / 2),
            "data.bucket_max_px" => format!("{}, twice the size", side_px * 2),
            "data.bucket_step_px" => "what the base divides by".to_owned(),
            "data.repeats" => "the number in front of a folder's name (`10_cat`), else 1".to_owned(),
            _ => "none".to_owned(),
        }
    }

    fn of_unset_factors(&self, key: &str) -> String {
        let lora = &self.config.lora;
        let rate = || format!("{:e}, `optimizer.learning_rate`", self.config.optimizer.full_learning_rate());
        let alpha = |rank: Option<usize>| match lora.alpha {
            Some(alpha) => format!("{alpha}, `lora.alpha`"),
            None => format!("{}, its rank", rank.unwrap_or(lora.rank)),
        };
        match key {
            "lora.alpha" => format!(
                "the rank of each component, {} and {}",
                lora.unet.rank.unwrap_or(lora.rank),
                lora.text_encoder.rank.unwrap_or(lora.rank)
            ),
            "lora.max_norm" => "no limit".to_owned(),
            "lora.orthogonal" => "A learns".to_owned(),
            "lora.start_from" => "new factors".to_owned(),
            "lora.unet.rank" | "lora.text_encoder.rank" | "lora.text_encoder_2.rank" => {
                format!("{}, `lora.rank`", lora.rank)
            }
            "lora.unet.alpha" => alpha(lora.unet.rank),
            "lora.text_encoder.alpha" => alpha(lora.text_encoder.rank),
            "lora.text_encoder_2.alpha" => alpha(lora.text_encoder_2.rank),
            key if key.ends_with(".learning_rate") => rate(),
            _ => "none".to_owned(),
        }
    }

    fn of_unset_optimizer(&self, key: &str) -> String {
        let optimizer = &self.config.optimizer;
        let is_lion = optimizer.kind == OptimizerKind::Lion;
        match key {
            "optimizer.learning_rate" => format!("{:e}, as suits this kind", optimizer.full_learning_rate()),
            "optimizer.beta1" | "optimizer.beta2" if optimizer.kind == OptimizerKind::Adafactor => {
                "this kind has none".to_owned()
            }
            "optimizer.beta1" => "0.9".to_owned(),
            "optimizer.beta2" => if is_lion { "0.99" } else { "0.999" }.to_owned(),
            "optimizer.ema_decay" => "the factors themselves".to_owned(),
            "optimizer.prodigy.max_d" => "no limit".to_owned(),
            _ => "none".to_owned(),
        }
    }

    fn of_unset_output(&self, key: &str, plan: Option<&Plan>) -> String {
        match (key, plan) {
            ("output.folder", Some(plan)) => format!("{}, after the images", plan.output_folder.display()),
            ("output.folder", None) => "`runs/` and the name of the images' folder".to_owned(),
            ("output.name", Some(plan)) => format!("{}, after the folder", plan.output_name),
            ("output.name", None) => "the name of the folder".to_owned(),
            ("output.save_every_steps", _) => {
                format!("{}, a tenth of the run", usual_snapshot_steps(self.config.train.steps))
            }
            _ => "none".to_owned(),
        }
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigLayers, TrainConfig};

    fn resolved(sets: &[&str]) -> ResolvedConfig {
        let mut layers = ConfigLayers::new();
        sets.iter().for_each(|set| layers.set(set).unwrap());
        layers.resolve().unwrap()
    }

    fn line<'a>(text: &'a str, section: &str, name: &str) -> &'a str {
        let (_, rest) = text.split_once(&format!("[{section}]\n")).unwrap();
        let body = rest.split("\n[").next().unwrap();
        body.lines().find(|line| line.trim_start_matches("# ").split(' ').next() == Some(name)).unwrap()
    }

    #[test]
    fn the_listing_holds_every_key_and_reads_back_as_the_same_settings() {
        let resolved = resolved(&[
            "preset=concept-sd21",
            "data.images=a \"b\" # c\nd",
            "data.sources=[{ images = \"x\", role = \"class\", captions = { dropout = 0.5 } }]",
            "lora.unet.blocks=[{ layers = \"mid_block.*\", rank = 2 }]",
            "lora.alpha=3",
        ]);
        let text = resolved.to_listed_toml(None);
        assert_eq!(toml::from_str::<TrainConfig>(&text).unwrap(), resolved.config, "{text}");
        let listing = resolved.listing(None);
        assert_eq!(listing.iter().map(|setting| setting.key).collect::<Vec<_>>(), KEYS);
        for setting in listing {
            let name = setting.key.rsplit('.').next().unwrap();
            assert!(
                text.contains(&format!("\n{name} = ")) || text.contains(&format!("# {name} = ")) || name == "preset"
            );
            assert_eq!(setting.value.is_some(), setting.origin.is_some());
            assert!(setting.value.is_some() || setting.meaning.is_some_and(|meaning| !meaning.is_empty()));
        }
    }

    #[test]
    fn each_value_says_where_it_came_from() {
        let text = resolved(&["preset=subject-sd15", "train.seed=4", "data.images=p"]).to_listed_toml(None);
        assert!(text.starts_with("preset = \"subject-sd15\"  # --set\n"), "{text}");
        assert_eq!(line(&text, "lora", "rank"), "rank = 8  # preset subject-sd15");
        assert_eq!(line(&text, "train", "seed"), "seed = 4  # --set");
        assert_eq!(line(&text, "optimizer", "weight_decay"), "weight_decay = 0.01  # default");
    }

    #[test]
    fn what_is_unset_says_what_it_amounts_to_in_this_run() {
        let settings = resolved(&[
            "data.images=photos/cat",
            "data.width_px=256",
            "data.height_px=1024",
            "lora.rank=6",
            "lora.unet.rank=12",
            "optimizer.kind=lion",
            "train.steps=1000",
        ]);
        let plan = Plan::new(&settings.config).unwrap();
        let text = settings.to_listed_toml(Some(&plan));
        assert_eq!(line(&text, "lora", "alpha"), "# alpha =   unset: the rank of each component, 12 and 6");
        assert_eq!(line(&text, "lora.unet", "alpha"), "# alpha =   unset: 12, its rank");
        assert_eq!(line(&text, "lora.text_encoder", "rank"), "# rank =   unset: 6, `lora.rank`");
        let rate = "# learning_rate =   unset: 2e-5, `optimizer.learning_rate`";
        assert_eq!(line(&text, "lora.unet", "learning_rate"), rate);
        assert_eq!(line(&text, "optimizer", "beta2"), "# beta2 =   unset: 0.99");
        assert_eq!(line(&text, "data", "bucket_min_px"), "# bucket_min_px =   unset: 256, half of the size");
        assert_eq!(line(&text, "output", "folder"), "# folder =   unset: runs/cat, after the images");
        assert_eq!(line(&text, "output", "save_every_steps"), "# save_every_steps =   unset: 100, a tenth of the run");
        let every = "# every_steps =   unset: 200, a fifth of the run and at least 100";
        assert_eq!(line(&text, "validation", "every_steps"), every);
        assert!(line(&text, "model", "weights").ends_with("# default: the 16 bits of the file, or f16"));
    }

    #[test]
    fn what_unset_means_is_what_the_plan_makes_of_it() {
        let settings = resolved(&["data.images=p", "lora.rank=6", "lora.text_encoder.targets=full", "lora.alpha=2"]);
        let plan = Plan::new(&settings.config).unwrap();
        let meaning = |key: &str| {
            let found = settings.listing(Some(&plan)).into_iter().find(|setting| setting.key == key);
            found.unwrap().meaning.unwrap().split(',').next().unwrap().to_owned()
        };
        let text = plan.text_encoders[0].as_ref().unwrap();
        assert_eq!(meaning("lora.text_encoder.alpha"), text.alpha.to_string());
        assert_eq!(meaning("lora.text_encoder.rank"), text.rank.to_string());
        assert_eq!(meaning("lora.text_encoder.learning_rate"), format!("{:e}", text.learning_rate));
        assert_eq!(meaning("model.dtype"), candle_core::DType::from(plan.dtype).as_str());
    }
}
