//! The settings of `[data]` and `[prior]`: pictures, their captions and masks, and what must stay as it was. The comment of
//! each field is its reference documentation, as in [`crate::config`].

use std::fmt;
use std::path::PathBuf;

use loralei_data::{Alpha, CaptionLine, CaptionSource, Role};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use toml::{Table, Value};

/// `[data]`: the images and what they show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Folder of images (jpg, png, webp, bmp, gif, tiff), with the folders inside it, each image with its caption in a
    /// `.txt` or `.caption` file of the same name. Required, unless `sources` has some.
    pub images: Option<PathBuf>,
    /// Width and height of the training images in pixels. With buckets, images of another shape get the size of their
    /// shape with about as many pixels.
    pub size_px: usize,
    /// Width in pixels where it differs from `size_px`.
    pub width_px: Option<usize>,
    /// Height in pixels where it differs from `size_px`.
    pub height_px: Option<usize>,
    /// Whether images are sorted by shape into sizes (aspect-ratio buckets) and lose little at the edges; otherwise all are
    /// cropped to one size.
    pub buckets: bool,
    /// Shortest side of a bucket in pixels. Unset: half of `size_px`.
    pub bucket_min_px: Option<usize>,
    /// Longest side of a bucket in pixels. Unset: twice `size_px`.
    pub bucket_max_px: Option<usize>,
    /// Sides of buckets are multiples of it. Unset: what the base divides by: 64 for Stable Diffusion 1 and 2, 32 for XL,
    /// which has seen multiples of 64.
    pub bucket_step_px: Option<usize>,
    /// Never enlarge: images smaller than `size_px` are trained in their own size.
    pub no_upscale: bool,
    /// Caption of every image that has none of its own.
    pub prompt: Option<String>,
    /// Words that shall call the subject, put in front of captions that lack them: `ohwx cat`. Written into the adapter.
    pub trigger: Option<String>,
    /// Word for what the subject is a kind of: `cat`. The prior and class images use it.
    pub class: Option<String>,
    /// How often each image is shown in an epoch. Unset: the number in front of a folder's name (`10_cat`), else 1.
    pub repeats: Option<u32>,
    /// What transparent parts are: a colour that lies under them, `white`, `black` or `#rrggbb`, or `mask`: not learned.
    pub alpha: AlphaChoice,
    /// Weight in the loss of what a mask leaves out, 0 to 1. A mask is a file `NAME-masklabel.png` beside the image, a source
    /// of `role = "mask"`, or transparency; white is learned in full. The loss is divided by the area that it counts.
    pub outside_mask_weight: f64,
    /// Whether each showing of an image is mirrored with probability 1/2. Not for faces, writing, or anything with a side.
    pub flip: bool,
    /// More folders, each a table `[[data.sources]]` with `images` and whatever differs from `[data]`: `role` (`subject`;
    /// `class`, images of the class word for `prior.kind = "images"`; `mask`, masks for images of the same names), `weight` in
    /// the loss, sizes, `prompt`, `trigger`, `captions`, `repeats`, `alpha`, `flip`.
    pub sources: Vec<Table>,
    /// Whether an image that cannot be read stops the run, instead of being left out and listed.
    pub strict: bool,
    /// Longest caption in tokens: 75, 150 or 225. What is longer is cut, with a warning.
    pub max_tokens: usize,
    /// Folder that keeps encoded images and captions for the next run; `auto`: `loralei/encoded` in the user's folder for
    /// caches; `off`: they are kept in memory. Entries are found by the content of what they were made from.
    pub cache: CacheChoice,
    /// How captions are made.
    pub captions: CaptionConfig,
}

/// `[data.captions]`: how captions are made, in kohya's order: line, trigger, prefix and suffix, dropout, wildcards, tags.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionConfig {
    /// Where they are looked for: `beside` the image and in `metadata.jsonl`, or `file-name`: the image's own name.
    pub from: CaptionFrom,
    /// Which line of several: the `first`, or a `random` one each time.
    pub line: LineChoice,
    /// Put in front of every caption, with a space between.
    pub prefix: Option<String>,
    /// Put behind every caption, with a space between.
    pub suffix: Option<String>,
    /// Probability that a showing has the empty caption, 0 to 1.
    pub dropout: f64,
    /// Whether `{a|b}` is a choice, drawn each time.
    pub wildcards: bool,
    /// Whether tags, separated by commas, are put in random order.
    pub shuffle: bool,
    /// How many tags from the first keep their place. The trigger does anyway.
    pub keep_tokens: usize,
    /// What separates tags.
    pub separator: String,
    /// Text such as `|||` that separates tags that keep their place from the others.
    pub keep_tokens_separator: Option<String>,
    /// Probability that a tag is left out, for each that does not keep its place, 0 to 1.
    pub tag_dropout: f64,
}

/// `[prior]`: what must stay as it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriorConfig {
    /// `none`; `base`: on some steps the adapted network must also predict, for other captions, what the frozen base
    /// predicts, which costs one pass more without and one with gradients; or `images`: it also learns from images of the
    /// class word, as DreamBooth does, which costs one pass with gradients.
    pub kind: PriorKind,
    /// Weight of this loss beside that of the images.
    pub weight: f64,
    /// The prior is part of every so-manieth step: 1 for all, 2 for every second.
    pub every_steps: u64,
    /// For `base`, the other captions: `own`, the run's captions without the trigger (with the class word in its place);
    /// `class`, the class word; `mixed`, both with some unrelated ones and the empty one; a list of captions; or a text file
    /// with one a line.
    pub captions: PriorCaptions,
    /// For `images`, how many class images there shall be. Those missing are drawn by the base before the run, into
    /// `class-images/` in the run's folder.
    pub num_images: usize,
    /// For `images`, prompt of those that are drawn. Unset: the class word.
    pub prompt: Option<String>,
}

/// One source with everything that it takes from `[data]`, which has all but the first three.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceConfig {
    #[serde(default)]
    pub(crate) images: PathBuf,
    #[serde(default)]
    pub(crate) role: RoleName,
    #[serde(default = "ordinary_weight")]
    pub(crate) weight: f64,
    pub(crate) size_px: usize,
    pub(crate) width_px: Option<usize>,
    pub(crate) height_px: Option<usize>,
    pub(crate) buckets: bool,
    pub(crate) bucket_min_px: Option<usize>,
    pub(crate) bucket_max_px: Option<usize>,
    pub(crate) bucket_step_px: Option<usize>,
    pub(crate) no_upscale: bool,
    pub(crate) prompt: Option<String>,
    pub(crate) trigger: Option<String>,
    pub(crate) class: Option<String>,
    pub(crate) captions: CaptionConfig,
    pub(crate) repeats: Option<u32>,
    pub(crate) alpha: AlphaChoice,
    pub(crate) flip: bool,
}

fn ordinary_weight() -> f64 {
    1.0
}

/// Keys of `[data]` that concern all sources together.
const OF_ALL: [&str; 5] = ["sources", "outside_mask_weight", "strict", "max_tokens", "cache"];
/// Keys that a class source does not take from `[data]`: they speak of the subject.
const OF_SUBJECT: [&str; 2] = ["prompt", "trigger"];

impl DataConfig {
    /// The sources, each completed; or which of `sources` is wrong and how.
    pub(crate) fn all_sources(&self) -> Result<Vec<SourceConfig>, (usize, String)> {
        let mut shared = Table::try_from(self).unwrap_or_default();
        for key in OF_ALL {
            shared.remove(key);
        }
        let mut first = None;
        if self.images.as_ref().is_some_and(|images| !images.as_os_str().is_empty()) {
            first = Some(completed(&shared, &Table::new()).map_err(|message| (0, message))?);
        }
        shared.remove("images");
        let others = self.sources.iter().enumerate().map(|(index, own)| {
            let source = completed(&shared, own).map_err(|message| (index, message))?;
            let is_named = !source.images.as_os_str().is_empty();
            is_named.then_some(source).ok_or_else(|| (index, "`images` is not set".to_owned()))
        });
        first.into_iter().map(Ok).chain(others).collect()
    }
}

fn completed(shared: &Table, own: &Table) -> Result<SourceConfig, String> {
    let mut table = shared.clone();
    let is_class = own.get("role").and_then(Value::as_str) == Some("class");
    let other_size = own.contains_key("size_px").then_some(["width_px", "height_px"]).into_iter().flatten();
    for key in OF_SUBJECT.into_iter().filter(|_| is_class).chain(other_size) {
        table.remove(key);
    }
    lay_over(&mut table, own);
    table.try_into::<SourceConfig>().map_err(|error| error.message().replace(['\n', '\r'], " "))
}

/// Puts the values of `own` over those of `table`, section by section.
fn lay_over(table: &mut Table, own: &Table) {
    for (key, value) in own {
        match (table.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay_over(below, above),
            _ => drop(table.insert(key.clone(), value.clone())),
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            images: None,
            size_px: 512,
            width_px: None,
            height_px: None,
            buckets: true,
            bucket_min_px: None,
            bucket_max_px: None,
            bucket_step_px: None,
            no_upscale: false,
            prompt: None,
            trigger: None,
            class: None,
            captions: CaptionConfig::default(),
            repeats: None,
            alpha: AlphaChoice::default(),
            outside_mask_weight: 0.0,
            flip: false,
            sources: Vec::new(),
            strict: false,
            max_tokens: 75,
            cache: CacheChoice::Auto,
        }
    }
}

impl Default for CaptionConfig {
    fn default() -> Self {
        Self {
            from: CaptionFrom::Beside,
            line: LineChoice::First,
            prefix: None,
            suffix: None,
            dropout: 0.0,
            wildcards: false,
            shuffle: false,
            keep_tokens: 0,
            separator: ",".to_owned(),
            keep_tokens_separator: None,
            tag_dropout: 0.0,
        }
    }
}

impl Default for PriorConfig {
    fn default() -> Self {
        let captions = PriorCaptions::Mixed;
        Self { kind: PriorKind::None, weight: 1.0, every_steps: 2, captions, num_images: 100, prompt: None }
    }
}

/// What holds the adapter back from changing more than it is asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PriorKind {
    /// Nothing.
    None,
    /// The frozen base's own prediction for other captions.
    Base,
    /// Images of the class word.
    Images,
}

/// What the images of a source are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleName {
    /// What is learned.
    #[default]
    Subject,
    /// Images of the class word.
    Class,
    /// Masks.
    Mask,
}

impl From<RoleName> for Role {
    fn from(role: RoleName) -> Self {
        match role {
            RoleName::Subject => Self::Subject,
            RoleName::Class => Self::Class,
            RoleName::Mask => Self::Mask,
        }
    }
}

/// Where captions are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptionFrom {
    /// Beside the image, and in `metadata.jsonl`.
    Beside,
    /// In the image's own name.
    FileName,
}

impl From<CaptionFrom> for CaptionSource {
    fn from(from: CaptionFrom) -> Self {
        match from {
            CaptionFrom::Beside => Self::Beside,
            CaptionFrom::FileName => Self::FileName,
        }
    }
}

/// Which line of a caption of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineChoice {
    /// The first that is not empty.
    First,
    /// Any, drawn each time.
    Random,
}

impl From<LineChoice> for CaptionLine {
    fn from(line: LineChoice) -> Self {
        match line {
            LineChoice::First => Self::First,
            LineChoice::Random => Self::Random,
        }
    }
}

/// What transparent parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlphaChoice(pub Alpha);

impl AlphaChoice {
    const NAMES: [(&'static str, Alpha); 3] =
        [("white", Alpha::Over([255; 3])), ("black", Alpha::Over([0; 3])), ("mask", Alpha::Mask)];
}

impl Default for AlphaChoice {
    fn default() -> Self {
        Self(Alpha::Over([255; 3]))
    }
}

impl Serialize for AlphaChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = Self::NAMES.iter().find(|(_, alpha)| *alpha == self.0).map(|(name, _)| (*name).to_owned());
        let hex = || match self.0 {
            Alpha::Over([r, g, b]) => format!("#{r:02x}{g:02x}{b:02x}"),
            Alpha::Mask => "mask".to_owned(),
        };
        serializer.serialize_str(&name.unwrap_or_else(hex))
    }
}

impl<'de> Deserialize<'de> for AlphaChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if let Some((_, alpha)) = Self::NAMES.into_iter().find(|(name, _)| *name == text) {
            return Ok(Self(alpha));
        }
        let hex = text.strip_prefix('#').filter(|hex| hex.len() == 6 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let colour = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let wrong =
            || de::Error::custom(format!("{text:?} is not \"white\", \"black\", \"mask\" or a colour \"#rrggbb\""));
        let [_, r, g, b] = colour.ok_or_else(wrong)?.to_be_bytes();
        Ok(Self(Alpha::Over([r, g, b])))
    }
}

/// Where encoded images and captions are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheChoice {
    /// In the user's folder for caches.
    Auto,
    /// In memory.
    Off,
    /// Here.
    Folder(PathBuf),
}

impl Serialize for CacheChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Folder(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for CacheChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "auto" => Self::Auto,
            "off" => Self::Off,
            _ => Self::Folder(text.into()),
        })
    }
}

/// Captions of the prior.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PriorCaptions {
    /// The run's own without the trigger, the class word, some unrelated ones, and the empty one.
    Mixed,
    /// The run's own without the trigger.
    Own,
    /// The class word.
    Class,
    /// These.
    List(Vec<String>),
    /// Those of a file, one a line.
    File(PathBuf),
}

impl Serialize for PriorCaptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Mixed => serializer.serialize_str("mixed"),
            Self::Own => serializer.serialize_str("own"),
            Self::Class => serializer.serialize_str("class"),
            Self::List(captions) => captions.serialize(serializer),
            Self::File(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PriorCaptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PriorCaptionsVisitor)
    }
}

struct PriorCaptionsVisitor;

impl<'de> de::Visitor<'de> for PriorCaptionsVisitor {
    type Value = PriorCaptions;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("\"mixed\", \"own\", \"class\", a list of captions or a text file")
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<PriorCaptions, E> {
        Ok(match value {
            "mixed" => PriorCaptions::Mixed,
            "own" => PriorCaptions::Own,
            "class" => PriorCaptions::Class,
            path => PriorCaptions::File(path.into()),
        })
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<PriorCaptions, A::Error> {
        let mut captions = Vec::new();
        while let Some(caption) = sequence.next_element()? {
            captions.push(caption);
        }
        Ok(PriorCaptions::List(captions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(text: &str) -> Result<Vec<SourceConfig>, (usize, String)> {
        toml::from_str::<DataConfig>(text).unwrap().all_sources()
    }

    #[test]
    fn a_source_has_what_it_sets_and_the_rest_of_data() {
        let found = sources(
            "images = \"a\"\nsize_px = 256\nwidth_px = 320\nprompt = \"p\"\ntrigger = \"t\"\nflip = true\n\
             captions = { shuffle = true, keep_tokens = 2 }\n\
             [[sources]]\nimages = \"b\"\nrepeats = 3\ncaptions = { keep_tokens = 1 }\n\
             [[sources]]\nimages = \"c\"\nrole = \"class\"\nsize_px = 128\nalpha = \"#0a0B0c\"\n",
        )
        .unwrap();
        let paths: Vec<_> = found.iter().map(|source| source.images.display().to_string()).collect();
        assert_eq!(paths, ["a", "b", "c"]);
        let (b, c) = (&found[1], &found[2]);
        assert_eq!((b.size_px, b.width_px, b.repeats, b.flip), (256, Some(320), Some(3), true));
        assert_eq!((b.captions.shuffle, b.captions.keep_tokens, b.trigger.as_deref()), (true, 1, Some("t")));
        assert_eq!((c.size_px, c.width_px, c.role), (128, None, RoleName::Class));
        assert_eq!((c.prompt.as_deref(), c.trigger.as_deref()), (None, None), "they speak of the subject");
        assert_eq!(c.alpha.0, Alpha::Over([10, 11, 12]));
    }

    #[test]
    fn a_wrong_source_is_named_by_its_number() {
        let (index, message) =
            sources("[[sources]]\nimages = \"a\"\n[[sources]]\nimages = \"b\"\nrepeat = 2\n").unwrap_err();
        assert!(index == 1 && message.contains("`repeat`") && message.contains("`repeats`"), "{message}");
        assert_eq!(sources("[[sources]]\nrepeats = 2\n").unwrap_err(), (0, "`images` is not set".to_owned()));
        assert_eq!(sources("").unwrap(), []);
    }

    #[test]
    fn choices_are_written_as_they_are_read() {
        for (alpha, cache, captions) in [
            ("\"white\"", "\"auto\"", "\"own\""),
            ("\"mask\"", "\"off\"", "[\"a\", \"b, c\"]"),
            ("\"#ff8000\"", "\"some/where\"", "\"file.txt\""),
        ] {
            let data: DataConfig = toml::from_str(&format!("alpha = {alpha}\ncache = {cache}\n")).unwrap();
            let table = Table::try_from(&data).unwrap();
            assert_eq!((table["alpha"].to_string(), table["cache"].to_string()), (alpha.to_owned(), cache.to_owned()));
            let prior: PriorConfig = toml::from_str(&format!("captions = {captions}\n")).unwrap();
            assert_eq!(Table::try_from(&prior).unwrap()["captions"].to_string(), captions);
        }
        assert!(toml::from_str::<DataConfig>("alpha = \"#12345\"").is_err());
    }
}
