//! The settings of the data, checked: which sources, how their captions and sizes are made, and what all of them share.

use std::path::{Path, PathBuf};

use loralei_data::{BucketRules, CaptionRules, Role, Source};

use crate::config::{
    CacheChoice, CaptionConfig, DataConfig, PriorCaptions, PriorConfig, PriorKind, RoleName, SourceConfig,
};
use crate::plan::Checks;

/// Tokens of a caption that one chunk of a text encoder's input holds.
const TOKENS_PER_CHUNK: usize = 75;
/// Most tokens that a caption may have, after kohya.
const MAX_TOKENS: usize = 225;

/// The data of a run, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct DataPlan {
    /// The sources but for the step of their buckets; at least one of subjects.
    pub sources: Vec<SourcePlan>,
    /// Words put in front of the subject's captions; not empty.
    pub trigger: Option<String>,
    /// What the subject is a kind of; not empty.
    pub class: Option<String>,
    /// Weight of what masks leave out, 0 to 1.
    pub outside_mask_weight: f32,
    /// Whether an unreadable image stops the run.
    pub strict: bool,
    /// Chunks of tokens of each caption, 1 to 3.
    pub num_chunks: usize,
    /// Where encoded images and captions are kept.
    pub cache: CacheChoice,
}

/// A source whose buckets may still wait for what the base divides by.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcePlan {
    source: Source,
    has_own_step: bool,
}

/// The term that holds the adapter to the base.
#[derive(Debug, Clone, PartialEq)]
pub struct PriorPlan {
    /// Beside the loss of the images; finite, above 0.
    pub weight: f64,
    /// The term is part of steps 0, n, 2n, ...; 1 or more.
    pub every_steps: u64,
    /// What it compares.
    pub kind: PriorTerm,
}

/// What the prior compares.
#[derive(Debug, Clone, PartialEq)]
pub enum PriorTerm {
    /// The adapted network with the base, under these captions.
    Base(PriorCaptions),
    /// The adapted network with the noise on images of the class.
    Images {
        /// How many there shall be.
        num_images: usize,
        /// What those that are missing are drawn from; not empty.
        prompt: String,
    },
}

impl DataPlan {
    /// The sources for a base whose pictures' sides are multiples of `size_multiple_px`.
    pub fn sources(&self, size_multiple_px: usize) -> Vec<Source> {
        let complete = |plan: &SourcePlan| {
            let mut source = plan.source.clone();
            if !plan.has_own_step {
                source.buckets.step_px = size_multiple_px as u32;
            }
            source
        };
        self.sources.iter().map(complete).collect()
    }

    /// Width and height of the source with most pixels, which no bucket exceeds.
    pub fn largest_px(&self) -> (usize, usize) {
        let sizes =
            self.of_images().map(|source| (source.buckets.width_px as usize, source.buckets.height_px as usize));
        sizes.max_by_key(|(width, height)| width * height).unwrap_or_default()
    }

    /// The caption of images without one, of the first source that has such a caption.
    pub(crate) fn prompt(&self) -> Option<&str> {
        self.of_images().find_map(|source| source.captions.prompt.as_deref())
    }

    /// The folder of the first source, after which a run is named.
    pub fn first_folder(&self) -> &Path {
        self.sources.first().map_or(Path::new(""), |plan| &plan.source.path)
    }

    fn of_images(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().map(|plan| &plan.source).filter(|source| source.role != Role::Mask)
    }
}

impl Checks {
    pub(crate) fn data(&mut self, data: &DataConfig) -> DataPlan {
        let found = data.all_sources().unwrap_or_else(|(index, message)| {
            let hint = "a source is a table `[[data.sources]]` with `images` and what differs from `[data]`";
            self.refuse(&format!("data.sources[{index}]"), message, hint);
            Vec::new()
        });
        let is_wrong = self.has_violations();
        let num_shared = usize::from(found.len() > data.sources.len());
        let sources: Vec<SourcePlan> = found
            .iter()
            .enumerate()
            .map(|(i, source)| {
                let section =
                    if i < num_shared { "data".to_owned() } else { format!("data.sources[{}]", i - num_shared) };
                self.source(&section, source)
            })
            .collect();
        if !is_wrong && !sources.iter().any(|plan| plan.source.role == Role::Subject) {
            self.refuse("data.images", "is not set", "name the folder of images with --images or `data.images`");
        }
        self.within("data.outside_mask_weight", data.outside_mask_weight, is_share, "from 0 to 1", 0.1);
        let (max_tokens, is_whole) = (data.max_tokens, data.max_tokens.is_multiple_of(TOKENS_PER_CHUNK));
        if !is_whole || !(TOKENS_PER_CHUNK..=MAX_TOKENS).contains(&max_tokens) {
            self.refuse("data.max_tokens", format!("{max_tokens} is not 75, 150 or 225"), "75 is one sentence or two");
        }
        if data.cache == CacheChoice::Folder(PathBuf::new()) {
            self.refuse("data.cache", "is empty", "name a folder, or use \"auto\" or \"off\"");
        }
        DataPlan {
            sources,
            trigger: filled(data.trigger.as_deref()),
            class: filled(data.class.as_deref()),
            outside_mask_weight: data.outside_mask_weight as f32,
            strict: data.strict,
            num_chunks: (max_tokens / TOKENS_PER_CHUNK).max(1),
            cache: data.cache.clone(),
        }
    }

    fn source(&mut self, section: &str, source: &SourceConfig) -> SourcePlan {
        let key = |name: &str| format!("{section}.{name}");
        let width_px = self.side(section, "width_px", source.width_px, source.size_px);
        let height_px = self.side(section, "height_px", source.height_px, source.size_px);
        let side_px = (width_px * height_px).isqrt();
        let (min_px, max_px) =
            (source.bucket_min_px.unwrap_or(side_px / 2), source.bucket_max_px.unwrap_or(2 * side_px));
        for (name, side_px) in [("bucket_min_px", source.bucket_min_px), ("bucket_max_px", source.bucket_max_px)] {
            if let Some(side_px) = side_px.filter(|side_px| !(1..=8192).contains(side_px)) {
                self.refuse(&key(name), format!("{side_px} is not within 1 to 8192"), "leave it out for the usual");
            }
        }
        if min_px > max_px {
            let problem = format!("{min_px} is above the longest side, {max_px}");
            self.refuse(&key("bucket_min_px"), problem, "half of `size_px` is usual");
        }
        if let Some(step_px) = source.bucket_step_px {
            self.at_least_one(&key("bucket_step_px"), step_px as u64, "64 suits Stable Diffusion 1 and 2");
        }
        if let Some(repeats) = source.repeats {
            self.at_least_one(&key("repeats"), u64::from(repeats), "1 shows every image once an epoch");
        }
        self.within(&key("weight"), source.weight, |weight| weight > 0.0, "above 0", 1.0);
        let captions = &source.captions;
        self.within(&key("captions.dropout"), captions.dropout, is_share, "from 0 to 1", 0.05);
        self.within(&key("captions.tag_dropout"), captions.tag_dropout, is_share, "from 0 to 1", 0.1);
        if captions.separator.is_empty() {
            self.refuse(&key("captions.separator"), "is empty", "\",\" separates tags");
        }
        let is_class = source.role == RoleName::Class;
        // Class images without captions of their own are of the class word.
        let fallback = source.prompt.as_deref().or(source.class.as_deref().filter(|_| is_class));
        let buckets = BucketRules {
            width_px: width_px as u32,
            height_px: height_px as u32,
            enabled: source.buckets,
            min_px: min_px as u32,
            max_px: max_px as u32,
            step_px: source.bucket_step_px.unwrap_or(1) as u32,
            no_upscale: source.no_upscale,
        };
        let source_rules = Source {
            path: source.images.clone(),
            role: source.role.into(),
            repeats: source.repeats,
            captions: rules(captions, fallback, source.trigger.as_deref()),
            buckets,
            alpha: source.alpha.0,
            flip: source.flip,
            weight: source.weight as f32,
        };
        SourcePlan { source: source_rules, has_own_step: source.bucket_step_px.is_some() }
    }

    fn side(&mut self, section: &str, name: &str, own: Option<usize>, size_px: usize) -> usize {
        let (name, size_px) = own.map_or(("size_px", size_px), |own| (name, own));
        let key = format!("{section}.{name}");
        if !(8..=8192).contains(&size_px) {
            let hint = "512 suits Stable Diffusion 1, 768 its version 2";
            self.refuse_once(&key, format!("{size_px} is not within 8 to 8192"), hint);
        }
        size_px
    }

    pub(crate) fn prior(&mut self, prior: &PriorConfig, data: &DataPlan) -> Option<PriorPlan> {
        self.within("prior.weight", prior.weight, |weight| weight > 0.0, "above 0", 1.0);
        self.at_least_one("prior.every_steps", prior.every_steps, "2 is every second step");
        let kind = match prior.kind {
            PriorKind::None => return None,
            PriorKind::Base => {
                match &prior.captions {
                    PriorCaptions::Class if data.class.is_none() => {
                        self.refuse("prior.captions", "`data.class` is not set", "say what the subject is a kind of");
                    }
                    PriorCaptions::List(captions) if captions.is_empty() => {
                        self.refuse("prior.captions", "is an empty list", "[\"\"] is the empty caption");
                    }
                    _ => {}
                }
                PriorTerm::Base(prior.captions.clone())
            }
            PriorKind::Images => {
                self.at_least_one("prior.num_images", prior.num_images as u64, "100 is usual");
                let prompt = filled(prior.prompt.as_deref()).or_else(|| data.class.clone());
                let has_images = data.sources.iter().any(|plan| plan.source.role == Role::Class);
                if prompt.is_none() && !has_images {
                    let problem = "there are no class images, and nothing says what to draw";
                    self.refuse(
                        "prior.prompt",
                        problem,
                        "set `data.class` or `prior.prompt`, or a source of role \"class\"",
                    );
                }
                PriorTerm::Images { num_images: prior.num_images, prompt: prompt.unwrap_or_default() }
            }
        };
        Some(PriorPlan { weight: prior.weight, every_steps: prior.every_steps, kind })
    }
}

fn rules(captions: &CaptionConfig, prompt: Option<&str>, trigger: Option<&str>) -> CaptionRules {
    CaptionRules {
        from: captions.from.into(),
        line: captions.line.into(),
        prompt: filled(prompt),
        trigger: filled(trigger),
        prefix: filled(captions.prefix.as_deref()),
        suffix: filled(captions.suffix.as_deref()),
        dropout: captions.dropout,
        wildcards: captions.wildcards,
        shuffle: captions.shuffle,
        keep_tokens: captions.keep_tokens,
        separator: captions.separator.clone(),
        keep_tokens_separator: captions.keep_tokens_separator.clone(),
        tag_dropout: captions.tag_dropout,
    }
}

fn is_share(share: f64) -> bool {
    (0.0..=1.0).contains(&share)
}

fn filled(text: Option<&str>) -> Option<String> {
    text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
}
