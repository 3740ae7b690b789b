//! Data sets: kohya's `[general]`, `[[datasets]]`, `[[datasets.subsets]]`, or its folders of `N_name` folders
//! (sd-scripts `library/config_util.py`). What a subset does not set is as in its data set, then as in `general`, then as in the
//! options of the command line.

use toml::{Table, Value};

use super::arguments::{Arguments, flag, is_off, number};
use super::{Carried, Import, outside};

/// Options of data sets and subsets, by the name that they have in both files.
const OPTIONS: [&str; 21] = [
    "batch_size",
    "bucket_no_upscale",
    "bucket_reso_steps",
    "caption_dropout_rate",
    "caption_extension",
    "caption_prefix",
    "caption_separator",
    "caption_suffix",
    "caption_tag_dropout_rate",
    "class_tokens",
    "enable_bucket",
    "enable_wildcard",
    "flip_aug",
    "keep_tokens",
    "keep_tokens_separator",
    "max_bucket_reso",
    "min_bucket_reso",
    "num_repeats",
    "resolution",
    "shuffle_caption",
    "alpha_mask",
];
/// What else a subset has.
const OF_SUBSET: [&str; 3] = ["image_dir", "is_reg", "conditioning_data_dir"];
/// Command-line options that are called otherwise in a file of data sets.
const OTHER_NAMES: [(&str, &str); 2] = [("train_batch_size", "batch_size"), ("dataset_repeats", "num_repeats")];

/// A folder of images with all its options.
struct Subset {
    /// From the strongest level to the weakest.
    levels: Vec<Table>,
    is_folder_of_folders: bool,
}

/// The data of a run.
pub(super) struct Datasets {
    subsets: Vec<Subset>,
    /// What the files hold besides.
    others: Vec<(String, Value)>,
    is_masked: bool,
    mask_folder: Option<String>,
    prior_weight: Option<f64>,
    has_file: bool,
}

impl Datasets {
    pub(super) fn new(file: Option<Table>, arguments: &mut Arguments) -> Self {
        let mut options = Table::new();
        for key in OPTIONS {
            let other = OTHER_NAMES.iter().find(|(_, ours)| *ours == key).map(|(theirs, _)| *theirs);
            let value = other.and_then(|other| arguments.raw(other)).or_else(|| arguments.raw(key));
            if let Some(value) = value.filter(|value| value.as_str().is_none_or(|text| !text.is_empty())) {
                options.insert(key.to_owned(), value);
            }
        }
        let wrong = without_wrong(&mut options);
        let mut datasets = Self {
            subsets: Vec::new(),
            others: wrong,
            is_masked: arguments.flag("masked_loss"),
            mask_folder: arguments.text("conditioning_data_dir"),
            prior_weight: arguments.number("prior_loss_weight"),
            has_file: file.is_some(),
        };
        let folders = [("train_data_dir", false), ("reg_data_dir", true)];
        let folders = folders.map(|(key, is_reg)| (key, arguments.text(key), is_reg));
        for (key, folder, is_reg) in folders {
            match folder {
                Some(folder) if file.is_some() => datasets.others.push((key.to_owned(), folder.into())),
                Some(folder) => {
                    let own = Table::from_iter([
                        ("image_dir".to_owned(), folder.into()),
                        ("is_reg".to_owned(), is_reg.into()),
                    ]);
                    datasets.subsets.push(Subset { levels: vec![own, options.clone()], is_folder_of_folders: true });
                }
                None => {}
            }
        }
        if let Some(file) = file {
            datasets.read(file, &options);
        }
        if datasets.subsets.is_empty() {
            // The folder is missing, but not how its images are treated.
            datasets.subsets.push(Subset { levels: vec![options], is_folder_of_folders: true });
        }
        datasets
    }

    fn read(&mut self, mut file: Table, options: &Table) {
        let tables = |table: &mut Table, key: &str| match table.remove(key) {
            Some(Value::Array(list)) => list.into_iter().filter_map(|value| value.try_into::<Table>().ok()).collect(),
            _ => Vec::new(),
        };
        let general = file.remove("general").and_then(|general| general.try_into::<Table>().ok());
        let mut general = general.unwrap_or_default();
        self.note("general", &mut general);
        for (i, mut dataset) in tables(&mut file, "datasets").into_iter().enumerate() {
            let subsets: Vec<Table> = tables(&mut dataset, "subsets");
            self.note(&format!("datasets[{i}]"), &mut dataset);
            for (j, mut own) in subsets.into_iter().enumerate() {
                self.note(&format!("datasets[{i}].subsets[{j}]"), &mut own);
                let levels = vec![own, dataset.clone(), general.clone(), options.clone()];
                self.subsets.push(Subset { levels, is_folder_of_folders: false });
            }
        }
        self.others.extend(file);
    }

    /// Remembers what is no option of these, or no value for one.
    fn note(&mut self, place: &str, table: &mut Table) {
        let wrong = without_wrong(table);
        let is_known = |key: &str| OPTIONS.contains(&key) || OF_SUBSET.contains(&key);
        let others = table.iter().filter(|(key, _)| !is_known(key)).map(|(key, value)| (key.clone(), value.clone()));
        self.others.extend(others.chain(wrong).map(|(key, value)| (format!("{place}.{key}"), value)));
    }
}

/// Takes out of `table` options whose value has the wrong type.
fn without_wrong(table: &mut Table) -> Vec<(String, Value)> {
    let is_wrong = |key: &str, value: &Value| match key {
        "caption_extension"
        | "caption_prefix"
        | "caption_separator"
        | "caption_suffix"
        | "class_tokens"
        | "keep_tokens_separator"
        | "image_dir"
        | "conditioning_data_dir" => !value.is_str(),
        "bucket_no_upscale" | "enable_bucket" | "enable_wildcard" | "flip_aug" | "shuffle_caption" | "alpha_mask"
        | "is_reg" => flag(value).is_none(),
        "resolution" => size_px(value).is_none(),
        _ => OPTIONS.contains(&key) && number(value).is_none_or(|number| number < 0.0),
    };
    let keys: Vec<String> = table.iter().filter(|(key, v)| is_wrong(key, v)).map(|(key, _)| key.clone()).collect();
    keys.into_iter().filter_map(|key| table.remove(&key).map(|value| (key, value))).collect()
}

/// Width and height: `512`, `[512, 768]`, or text such as `512,768`.
fn size_px(resolution: &Value) -> Option<(i64, i64)> {
    let sides: Vec<f64> = match resolution {
        Value::Array(sides) => sides.iter().map(number).collect::<Option<_>>()?,
        Value::String(text) => super::arguments::numbers(text)?,
        other => vec![number(other)?],
    };
    match sides[..] {
        [side] => Some((side as i64, side as i64)),
        [width, height] => Some((width as i64, height as i64)),
        _ => None,
    }
}

impl Subset {
    fn value(&self, key: &str) -> Option<&Value> {
        self.levels.iter().find_map(|level| level.get(key))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key).and_then(Value::as_str)
    }

    fn flag(&self, key: &str) -> bool {
        self.value(key).and_then(flag).unwrap_or(false)
    }

    fn count(&self, key: &str) -> Option<i64> {
        self.value(key).and_then(number).filter(|number| *number >= 0.0).map(|number| number as i64)
    }

    fn is_class(&self) -> bool {
        self.flag("is_reg")
    }

    /// Our settings of a source, all of them, so that none depends on another source.
    fn settings(&self) -> Vec<Carried> {
        let mut found = Vec::new();
        let mut add = |key: &'static str, value: Value, theirs: &str| {
            let is_given = self.value(theirs).is_some();
            let from = if is_given { format!("kohya: {theirs}") } else { "kohya's default".to_owned() };
            found.push(Carried { key, value, from });
        };
        let text = |key: &str| Value::from(self.text(key).unwrap_or_default());
        let share = |key: &str| Value::from(self.value(key).and_then(number).unwrap_or(0.0));
        if let Some((width_px, height_px)) = self.value("resolution").and_then(size_px) {
            add("size_px", width_px.into(), "resolution");
            if width_px != height_px {
                add("height_px", height_px.into(), "resolution");
            }
        }
        let has_buckets = self.flag("enable_bucket");
        add("buckets", has_buckets.into(), "enable_bucket");
        if has_buckets {
            add("bucket_min_px", self.count("min_bucket_reso").unwrap_or(256).into(), "min_bucket_reso");
            add("bucket_max_px", self.count("max_bucket_reso").unwrap_or(1024).into(), "max_bucket_reso");
            add("bucket_step_px", self.count("bucket_reso_steps").unwrap_or(64).into(), "bucket_reso_steps");
            add("no_upscale", self.flag("bucket_no_upscale").into(), "bucket_no_upscale");
        }
        if !self.is_folder_of_folders {
            // The name of a folder says nothing in a file of data sets.
            add("repeats", self.count("num_repeats").unwrap_or(1).max(1).into(), "num_repeats");
        }
        add("prompt", text("class_tokens"), "class_tokens");
        add("captions.prefix", text("caption_prefix"), "caption_prefix");
        add("captions.suffix", text("caption_suffix"), "caption_suffix");
        add("captions.shuffle", self.flag("shuffle_caption").into(), "shuffle_caption");
        add("captions.keep_tokens", self.count("keep_tokens").unwrap_or(0).into(), "keep_tokens");
        add("captions.keep_tokens_separator", text("keep_tokens_separator"), "keep_tokens_separator");
        let separator = self.text("caption_separator").filter(|text| !text.is_empty()).unwrap_or(",");
        add("captions.separator", separator.into(), "caption_separator");
        add("captions.dropout", share("caption_dropout_rate"), "caption_dropout_rate");
        add("captions.tag_dropout", share("caption_tag_dropout_rate"), "caption_tag_dropout_rate");
        let has_choices = self.flag("enable_wildcard");
        add("captions.wildcards", has_choices.into(), "enable_wildcard");
        add("captions.line", if has_choices { "random" } else { "first" }.into(), "enable_wildcard");
        add("flip", self.flag("flip_aug").into(), "flip_aug");
        add("alpha", if self.flag("alpha_mask") { "mask" } else { "white" }.into(), "alpha_mask");
        found
    }
}

impl Import {
    pub(super) fn data(&mut self, datasets: &Datasets) {
        let (subjects, classes): (Vec<&Subset>, Vec<&Subset>) = datasets
            .subsets
            .iter()
            .filter(|subset| subset.text("image_dir").is_some())
            .partition(|subset| !subset.is_class());
        if subjects.is_empty() {
            self.warn("no folder of images is named: set `data.images`");
        }
        self.batch_size(datasets);
        let nameless: Vec<&Subset> = datasets.subsets.iter().collect();
        let is_nameless = subjects.is_empty() && classes.is_empty();
        let shared = self.shared(if is_nameless { &nameless } else { &subjects });
        if let [only] = subjects[..] {
            self.set("data.images", only.text("image_dir").unwrap_or_default(), folder_comment(only));
        } else {
            subjects.iter().for_each(|subset| self.source(subset, &shared));
        }
        classes.iter().for_each(|subset| self.source(subset, &shared));
        self.name_after_images(&subjects);
        self.prior(datasets, !classes.is_empty());
        self.masks(datasets);
        self.narrow_buckets(datasets);
        self.left_of(datasets);
    }

    /// kohya's usual longest side is 1024 px, whatever the resolution.
    fn narrow_buckets(&mut self, datasets: &Datasets) {
        let is_narrow = |subset: &Subset| {
            let size_px =
                subset.value("resolution").and_then(size_px).map(|(width_px, height_px)| width_px.max(height_px));
            let longest_px = subset.count("max_bucket_reso").unwrap_or(1024);
            let size_px = size_px.filter(|size_px| subset.flag("enable_bucket") && longest_px <= *size_px)?;
            Some((size_px, longest_px))
        };
        if let Some((size_px, longest_px)) = datasets.subsets.iter().find_map(is_narrow) {
            self.warn(format!(
                "max_bucket_reso is {longest_px} at a resolution of {size_px}: images that are not square get fewer pixels than \
                 square ones; set `data.bucket_max_px` to {} to keep them",
                2 * size_px
            ));
        }
    }

    /// A folder of Windows has no last part on other systems, and a run is named after that.
    fn name_after_images(&mut self, subjects: &[&Subset]) {
        let folder = subjects.first().and_then(|subset| subset.text("image_dir")).unwrap_or_default();
        let last = folder.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or_default();
        if folder.contains('\\') && !last.is_empty() {
            self.set("output.folder", format!("runs/{last}"), "after the images");
        }
    }

    /// What all subjects have alike goes into `[data]`; given back with what `[data]` has by default.
    fn shared(&mut self, subjects: &[&Subset]) -> Vec<Carried> {
        let Some((first, others)) = subjects.split_first() else { return Vec::new() };
        let others: Vec<Vec<Carried>> = others.iter().map(|subset| subset.settings()).collect();
        let is_in = |settings: &Vec<Carried>, wanted: &Carried| {
            settings.iter().any(|carried| carried.key == wanted.key && carried.value == wanted.value)
        };
        let mut shared = first.settings();
        shared.retain(|carried| others.iter().all(|other| is_in(other, carried)));
        for carried in &shared {
            let key = data_key(carried.key);
            let is_said = carried.from != "kohya's default" && !is_off(&carried.value);
            if is_said || !is_usual(carried) {
                self.set(key, carried.value.clone(), carried.from.clone());
            }
        }
        shared
    }

    /// An entry of `[[data.sources]]`: what differs from what it would have from `[data]`.
    fn source(&mut self, subset: &Subset, shared: &[Carried]) {
        let folder = subset.text("image_dir").unwrap_or_default();
        let mut table = vec![Carried { key: "images", value: folder.into(), from: folder_comment(subset) }];
        if subset.is_class() {
            table.push(Carried { key: "role", value: "class".into(), from: "kohya: is_reg".to_owned() });
        }
        for carried in subset.settings() {
            // The caption of class images is not that of the subject.
            let has_no_heir = subset.is_class() && carried.key == "prompt";
            let inherited = shared.iter().find(|other| other.key == carried.key).filter(|_| !has_no_heir);
            let is_same = inherited.map_or_else(|| is_usual(&carried), |other| other.value == carried.value);
            if !is_same {
                table.push(carried);
            }
        }
        self.sources.push(table);
    }

    fn batch_size(&mut self, datasets: &Datasets) {
        let sizes: Vec<i64> = datasets.subsets.iter().filter_map(|subset| subset.count("batch_size")).collect();
        let first = sizes.iter().copied().find(|size| *size > 0).unwrap_or(1);
        let from = if sizes.is_empty() { "kohya's default" } else { "kohya: train_batch_size or batch_size" };
        self.set("train.batch_size", first, from);
        if sizes.iter().any(|size| *size != first) {
            self.warn(format!("data sets have batch sizes {sizes:?} there; a run has one here, the first"));
        }
    }

    fn prior(&mut self, datasets: &Datasets, has_class: bool) {
        let weight = datasets.prior_weight;
        if !has_class {
            if let Some(weight) = weight.filter(|weight| *weight != 1.0) {
                self.leave("prior_loss_weight", &weight.into(), "there are no regularization images to weigh");
            }
            return;
        }
        self.set("prior.kind", "images", "kohya: is_reg");
        self.set(
            "prior.weight",
            weight.unwrap_or(1.0),
            weight.map_or("kohya's default", |_| "kohya: prior_loss_weight"),
        );
        self.set("prior.every_steps", 1, "kohya shows one of them for each other image");
        self.set("prior.num_images", 1, "kohya draws none: those that are there are enough");
        self.warn(
            "regularization images fill half of kohya's batches; here each step has its images of the subject and class images \
             beside them, so the same number of steps shows the subject twice as often, and the class counts with \
             `prior.weight` beside the subject instead of sharing a mean",
        );
    }

    fn masks(&mut self, datasets: &Datasets) {
        let of_subsets = datasets.subsets.iter().filter_map(|subset| subset.text("conditioning_data_dir"));
        let mut folders: Vec<&str> = datasets.mask_folder.as_deref().into_iter().chain(of_subsets).collect();
        folders.dedup();
        if !datasets.is_masked {
            for folder in folders {
                self.leave("conditioning_data_dir", &folder.into(), "masks are used with masked_loss = true only");
            }
            return;
        }
        for folder in folders {
            self.sources.push(vec![
                Carried { key: "images", value: folder.into(), from: "kohya: conditioning_data_dir".to_owned() },
                Carried { key: "role", value: "mask".into(), from: "kohya: masked_loss".to_owned() },
            ]);
        }
        self.warn("a masked loss is divided by the area that it counts here, and not there: small masks learn faster");
    }

    fn left_of(&mut self, datasets: &Datasets) {
        for (place, value) in &datasets.others {
            let key = place.rsplit('.').next().unwrap_or_default();
            if is_off(value) {
                // It says nothing.
            } else if ["train_data_dir", "reg_data_dir"].contains(&place.as_str()) {
                self.leave(place, value, "the file of data sets goes before it");
            } else {
                let is_option = OPTIONS.contains(&key) || OF_SUBSET.contains(&key);
                let unknown = if is_option { "no value for it" } else { "no option of a data set that is known here" };
                self.leave(place, value, outside::reason(key).filter(|_| !is_option).unwrap_or(unknown));
            }
        }
        let extension = datasets.subsets.iter().find_map(|subset| subset.value("caption_extension"));
        match extension.and_then(Value::as_str) {
            Some(".txt" | ".caption" | "txt" | "caption") => {}
            Some(other) => {
                self.leave("caption_extension", &other.into(), "captions are read from `.txt` and `.caption` files");
                self.warn(format!("captions in `{other}` files are not read: call them `.txt`"));
            }
            None if !datasets.subsets.is_empty() => self.warn(
                "caption_extension is not set: kohya reads `.caption` files alone, and here `.txt` files go before them",
            ),
            None => {}
        }
        if datasets.has_file {
            self.warn("folders within a folder of images are searched too, which kohya leaves aside");
        } else if !datasets.subsets.is_empty() {
            self.warn("folders without a number in front of their name are used too, which kohya leaves aside");
        }
    }
}

fn folder_comment(subset: &Subset) -> String {
    let theirs = match (subset.is_folder_of_folders, subset.is_class()) {
        (true, false) => "train_data_dir",
        (true, true) => "reg_data_dir",
        _ => "image_dir",
    };
    format!("kohya: {theirs}")
}

/// Whether a setting of a source is what it would be without it.
fn is_usual(carried: &Carried) -> bool {
    match carried.key {
        "buckets" => carried.value.as_bool() == Some(true),
        "captions.separator" => carried.value.as_str() == Some(","),
        "captions.line" => carried.value.as_str() == Some("first"),
        "alpha" => carried.value.as_str() == Some("white"),
        "repeats" | "size_px" | "bucket_min_px" | "bucket_max_px" => false,
        "bucket_step_px" => carried.from == "kohya's default",
        _ => is_off(&carried.value),
    }
}

/// A key of a source as one of `[data]`.
fn data_key(key: &'static str) -> &'static str {
    crate::config::full_key("data", key)
}
