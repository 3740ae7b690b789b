//! What `loralei dataset check` found, in figures, lists and sentences. Other programs read it as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loralei_data::{
    Alpha, CaptionCounts, CaptionOrigin, DataError, Inspection, Order, Role, Size, Source, Surveyed, find_duplicates,
    tag_counts,
};
use loralei_model::{Base, BaseDescription};
use serde::Serialize;

use crate::checked_captions::EPOCHS_CHECKED;
use crate::config::CacheChoice;
use crate::data_check::{CheckedPicture, DataCheck};
use crate::data_warnings::{counted, data_warnings};
use crate::error::TrainError;

/// Width of the text where no base says otherwise: that of Stable Diffusion 1.
const USUAL_TEXT_WIDTH: usize = 768;
const USUAL_TEXT_POSITIONS: usize = 77;
const LATENT_CHANNELS: u64 = 4;
const BYTES_PER_NUMBER: u64 = 4;

/// The data of a run.
#[derive(Debug, Clone, Serialize)]
pub struct DataReport {
    /// Images that can be trained on: of the subject and of the class.
    pub images: usize,
    /// Those of the class.
    pub class_images: usize,
    /// Images that have a text of their own: a file, `metadata.jsonl` or the image's name.
    pub captions: usize,
    /// Where the captions come from.
    pub caption_origins: CaptionOrigins,
    /// Images without any caption.
    pub captions_missing: Vec<String>,
    /// Captions of which something is cut.
    pub captions_too_long: Vec<LongCaption>,
    /// Tokens of the captions.
    pub tokens: Option<TokenRange>,
    /// Captions that differ from showing to showing.
    pub captions_varying: usize,
    /// Of captions that vary, the first so many epochs were looked at.
    pub epochs_checked: u64,
    /// What stands between commas in the captions, the most common first.
    pub tags: Vec<TagCount>,
    /// The folders.
    pub places: Vec<PlaceReport>,
    /// The smallest image by its number of pixels.
    pub smallest: Option<NamedSize>,
    /// The largest.
    pub largest: Option<NamedSize>,
    /// Sides of buckets are multiples of it, unless `data.bucket_step_px` is set.
    pub size_multiple_px: usize,
    /// The sizes in use, by role, width and height.
    pub buckets: Vec<BucketReport>,
    /// Images that are there more than once.
    pub duplicates: Vec<DuplicateGroup>,
    /// Masks.
    pub masks: MaskReport,
    /// Images, and masks, that cannot be read or do not fit. A run leaves them out, unless `data.strict` is set.
    pub unreadable: Vec<UnreadableFile>,
    /// What is in the folders and not used.
    pub skipped: Vec<SkippedFile>,
    /// Optimizer steps of the run.
    pub steps: u64,
    /// Showings of subject images in an epoch.
    pub showings_per_epoch: usize,
    /// Optimizer steps of an epoch.
    pub steps_per_epoch: f64,
    /// Epochs of the run.
    pub epochs: f64,
    /// Size of the encoded images and captions that are kept, at most.
    pub cache_bytes: u64,
    /// Whether they are kept on the disk for the next run, rather than in memory.
    pub cache_is_on_disk: bool,
    /// The base that the data were checked against.
    pub base: Option<String>,
    /// Memory that training takes, about; unknown without a base.
    pub memory_bytes: Option<u64>,
    /// Memory that is free now.
    pub free_memory_bytes: Option<u64>,
    /// All images that can be trained on, in the order of the sources.
    pub pictures: Vec<PictureReport>,
    /// What may not be as it was meant.
    pub warnings: Vec<String>,
    /// What would stop the run.
    pub errors: Vec<String>,
    /// What can be done about it.
    pub hints: Vec<String>,
}

/// How many captions come from where.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct CaptionOrigins {
    /// Files beside the images.
    pub files: usize,
    /// `metadata.jsonl`.
    pub metadata: usize,
    /// The images' own names.
    pub file_names: usize,
    /// The name of a `N_name` folder.
    pub folder_names: usize,
    /// `data.prompt`.
    pub prompts: usize,
}

/// A caption that is too long.
#[derive(Debug, Clone, Serialize)]
pub struct LongCaption {
    /// The image.
    pub path: String,
    /// Tokens of the longest text that was looked at.
    pub tokens: usize,
    /// What of it is cut.
    pub cut: String,
}

/// Lengths of captions.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TokenRange {
    /// The shortest has so many.
    pub shortest: usize,
    /// The longest.
    pub longest: usize,
    /// More are cut.
    pub max: usize,
}

/// A tag and how many captions hold it.
#[derive(Debug, Clone, Serialize)]
pub struct TagCount {
    /// The tag.
    pub tag: String,
    /// Captions.
    pub count: usize,
}

/// A folder.
#[derive(Debug, Clone, Serialize)]
pub struct PlaceReport {
    /// Its path.
    pub path: String,
    /// `subject`, `class` or `mask`.
    pub role: &'static str,
    /// Images with a caption, readable or not.
    pub images: usize,
    /// How often each is shown an epoch.
    pub repeats: u32,
    /// Texts of their own among these.
    pub captions: usize,
    /// Masks among these.
    pub masks: usize,
}

/// An image and its size.
#[derive(Debug, Clone, Serialize)]
pub struct NamedSize {
    /// The image.
    pub path: String,
    /// Its width, upright, in pixels.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

/// A size that images are trained at.
#[derive(Debug, Clone, Serialize)]
pub struct BucketReport {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `subject` or `class`.
    pub role: &'static str,
    /// Images.
    pub count: usize,
    /// Showings an epoch.
    pub showings: usize,
    /// The share of an image that is cropped away, 0 to 1: the mean of its images.
    pub cropped_share: f64,
}

/// Images that are the same.
#[derive(Debug, Clone, Serialize)]
pub struct DuplicateGroup {
    /// `content`: to the byte; `look`: to the eye.
    pub same: &'static str,
    /// At least two.
    pub paths: Vec<String>,
}

/// Masks in figures.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct MaskReport {
    /// Images with a mask file.
    pub files: usize,
    /// Images whose transparency is the mask.
    pub transparent: usize,
    /// The mean share of these images that is learned in full, 0 to 1.
    pub learned_share: Option<f64>,
}

/// A file that cannot be used.
#[derive(Debug, Clone, Serialize)]
pub struct UnreadableFile {
    /// The image.
    pub path: String,
    /// Why, one line.
    pub reason: String,
    /// What can be done.
    pub hint: Option<String>,
}

/// Something in a folder that is not used.
#[derive(Debug, Clone, Serialize)]
pub struct SkippedFile {
    /// Its path.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// An image that can be trained on.
#[derive(Debug, Clone, Serialize)]
pub struct PictureReport {
    /// Its path.
    pub path: String,
    /// `subject` or `class`.
    pub role: &'static str,
    /// Width, upright, in pixels.
    pub width: u32,
    /// Height.
    pub height: u32,
    /// Width that it is trained at.
    pub bucket_width: u32,
    /// Height that it is trained at.
    pub bucket_height: u32,
    /// The share of it that is cropped away, 0 to 1.
    pub cropped_share: f64,
    /// How often it is shown an epoch.
    pub repeats: u32,
    /// Its caption in the first epoch; `null` if it has none.
    pub caption: Option<String>,
    /// Tokens of the longest that was looked at.
    pub tokens: Option<usize>,
    /// Whether the caption differs from showing to showing.
    pub caption_varies: bool,
    /// Its mask's file.
    pub mask: Option<String>,
    /// The share of it that the loss counts, 0 to 1; `null` without a mask.
    pub learned_share: Option<f32>,
}

/// What a report is made of.
pub(crate) struct Found<'a> {
    pub(crate) check: &'a DataCheck<'a>,
    pub(crate) sources: &'a [Source],
    /// Without its pictures.
    pub(crate) inspection: &'a Inspection,
    pub(crate) pictures: &'a [CheckedPicture],
    pub(crate) max_tokens: usize,
}

impl DataReport {
    /// Puts together what was found.
    ///
    /// # Errors
    /// Weight files of the base that cannot be read.
    pub(crate) fn of(found: &Found<'_>) -> Result<Self, TrainError> {
        let Found { check, sources, inspection, pictures, .. } = *found;
        let plan = check.plan;
        let captions = || pictures.iter().filter_map(|checked| checked.caption.as_ref());
        let origins = origins(pictures);
        let (order, accumulate) = (found.order(), plan.accumulate as f64);
        let batches = order.batches_per_epoch() as f64;
        let memory_bytes = found.memory_bytes()?;
        let mut report = Self {
            images: pictures.len(),
            class_images: pictures.iter().filter(|checked| checked.picture.sample.role == Role::Class).count(),
            captions: origins.files + origins.metadata + origins.file_names,
            caption_origins: origins,
            captions_missing: found.missing().map(shown).collect(),
            captions_too_long: pictures.iter().filter_map(long_caption).collect(),
            tokens: captions().map(|caption| caption.longest().1.num_tokens).fold(None, |range, tokens| {
                let TokenRange { shortest, longest, max } =
                    range.unwrap_or(TokenRange { shortest: tokens, longest: tokens, max: found.max_tokens });
                Some(TokenRange { shortest: shortest.min(tokens), longest: longest.max(tokens), max })
            }),
            captions_varying: captions().filter(|caption| caption.varies).count(),
            epochs_checked: EPOCHS_CHECKED,
            tags: found.tags(),
            places: inspection
                .found
                .places
                .iter()
                .map(|place| {
                    let CaptionCounts { files, metadata, file_names, .. } = place.captions;
                    PlaceReport {
                        path: shown(&place.path),
                        role: role_name(sources[place.source].role),
                        images: place.num_images,
                        repeats: place.repeats,
                        captions: files + metadata + file_names,
                        masks: place.num_masks,
                    }
                })
                .collect(),
            smallest: pictures.iter().min_by_key(|checked| checked.picture.surveyed.size.area()).map(named_size),
            largest: pictures.iter().max_by_key(|checked| checked.picture.surveyed.size.area()).map(named_size),
            size_multiple_px: check.size_multiple_px,
            buckets: buckets(pictures),
            duplicates: duplicates(pictures),
            masks: masks(pictures),
            unreadable: inspection
                .unreadable
                .iter()
                .map(|file| UnreadableFile {
                    path: shown(&file.path),
                    reason: file.error.to_string(),
                    hint: file.error.hint(),
                })
                .collect(),
            skipped: inspection
                .found
                .skipped
                .iter()
                .map(|entry| SkippedFile { path: shown(&entry.path), reason: entry.reason.to_string() })
                .collect(),
            steps: plan.steps,
            showings_per_epoch: order.showings_per_epoch(),
            steps_per_epoch: batches / accumulate,
            epochs: if batches > 0.0 { plan.steps as f64 * accumulate / batches } else { 0.0 },
            cache_bytes: found.cache_bytes(),
            cache_is_on_disk: plan.data.cache != CacheChoice::Off,
            base: check.base.map(Base::name),
            memory_bytes,
            free_memory_bytes: plan.device.free_bytes(),
            pictures: pictures.iter().map(picture_report).collect(),
            warnings: Vec::new(),
            errors: Vec::new(),
            hints: Vec::new(),
        };
        report.warn(found);
        report.refuse(found);
        Ok(report)
    }

    fn warn(&mut self, found: &Found<'_>) {
        let plan = found.check.plan;
        self.warnings.clone_from(&plan.warnings);
        self.warnings.extend(found.inspection.found.warnings.iter().map(ToString::to_string));
        let num_unreadable = self.unreadable.len();
        if num_unreadable > 0 && !plan.data.strict {
            let are = if num_unreadable == 1 { "is" } else { "are" };
            self.warnings.push(format!("{} {are} unreadable and will be left out", counted(num_unreadable, "image")));
        }
        self.warnings.extend(data_warnings(plan, found.pictures, found.max_tokens));
        let num_groups = self.duplicates.len();
        if num_groups > 0 {
            let (groups, are) = if num_groups == 1 { ("1 group", "is") } else { ("groups", "are") };
            let count = if num_groups == 1 { String::new() } else { format!("{num_groups} ") };
            self.warnings.push(format!("{count}{groups} of the same image {are} learned several times as hard"));
        }
        if self.epochs > 0.0 && self.epochs < 1.0 {
            let percent = self.epochs * 100.0;
            self.warnings.push(format!("{} show {percent:.0} % of an epoch", counted(self.steps as usize, "step")));
        }
        if let (Some(needed), Some(free)) = (self.memory_bytes, self.free_memory_bytes)
            && free < needed
        {
            let gigabytes = |bytes: u64| bytes as f64 / 1e9;
            let (needed, free) = (gigabytes(needed), gigabytes(free));
            self.warnings.push(format!("training takes about {needed:.2} GB of memory, {free:.2} GB are free"));
        }
    }

    fn refuse(&mut self, found: &Found<'_>) {
        let DataCheck { plan, base, size_multiple_px, .. } = *found.check;
        let mut hints: Vec<Option<String>> = Vec::new();
        let problems = &found.inspection.found.problems;
        for problem in problems.iter().filter(|problem| !matches!(problem, DataError::CaptionMissing { .. })) {
            self.errors.push(problem.to_string());
            hints.push(problem.hint());
        }
        if let Some(first) = found.missing().next() {
            let (count, first) = (found.missing().count(), first.display());
            let such_as = if count == 1 { first.to_string() } else { format!("{count} images, such as {first}") };
            self.errors.push(format!("no caption for {such_as}"));
            let hint = "write a text file of the same name beside each, or set `data.prompt`: --set data.prompt=\"photo of ...\"";
            hints.push(Some(hint.to_owned()));
        }
        if plan.data.strict {
            self.errors.extend(self.unreadable.iter().map(|file| file.reason.clone()));
            hints.extend(self.unreadable.iter().map(|file| file.hint.clone()));
        }
        let has_subject = self.images > self.class_images;
        if !has_subject && self.errors.is_empty() {
            let (path, num_skipped) = (plan.data.first_folder().to_owned(), self.skipped.len() + self.unreadable.len());
            let error = DataError::NoImages { path, num_skipped };
            self.errors.push(error.to_string());
            hints.extend(self.unreadable.first().map(|file| file.hint.clone()));
        }
        let (width_px, height_px) = plan.data.largest_px();
        if let Some(error) = base.and_then(|base| base.check_size(width_px, height_px).err()) {
            self.errors.push(error.to_string());
            hints.push(error.hint());
        }
        let multiple = size_multiple_px as u32;
        let fits =
            |bucket: &&BucketReport| bucket.width.is_multiple_of(multiple) && bucket.height.is_multiple_of(multiple);
        if let Some(bucket) =
            self.buckets.iter().find(|bucket| base.is_some() && self.errors.is_empty() && !fits(bucket))
        {
            let BucketReport { width, height, .. } = bucket;
            self.errors.push(format!(
                "images of {width} x {height} do not fit the base: sides must be multiples of {multiple}"
            ));
            hints.push(Some(format!(
                "leave out `data.bucket_step_px`, or choose sizes that are multiples of {multiple}"
            )));
        }
        let mut seen = BTreeSet::new();
        self.hints = hints.into_iter().flatten().filter(|hint| seen.insert(hint.clone())).collect();
    }
}

impl Found<'_> {
    /// Images without a caption.
    fn missing(&self) -> impl Iterator<Item = &Path> {
        let problems = self.inspection.found.problems.iter();
        problems.filter_map(|problem| match problem {
            DataError::CaptionMissing { image } => Some(image.as_path()),
            _ => None,
        })
    }

    /// The order of the subject's images in a run.
    fn order(&self) -> Order {
        let subject = self.pictures.iter().filter(|checked| checked.picture.sample.role == Role::Subject);
        let samples = subject.map(|checked| (checked.picture.assigned.bucket, checked.picture.sample.repeats));
        Order::new(self.check.plan.seed, self.check.plan.batch_size, samples)
    }

    /// Tags as they are written, before any is dropped, but without texts that only stand in.
    fn tags(&self) -> Vec<TagCount> {
        let captioned = self.pictures.iter().filter(|checked| checked.caption.is_some());
        let lines = captioned.filter_map(|checked| checked.picture.sample.caption.lines.first());
        tag_counts(lines.map(String::as_str)).into_iter().map(|(tag, count)| TagCount { tag, count }).collect()
    }

    /// Memory for a batch of the largest size.
    fn memory_bytes(&self) -> Result<Option<u64>, TrainError> {
        let sizes = self.pictures.iter().map(|checked| checked.picture.assigned.bucket);
        let (Some(base), Some(largest)) = (self.check.base, sizes.max_by_key(|size| size.area())) else {
            return Ok(None);
        };
        let size = self.check.plan.training_size(largest.width_px as usize, largest.height_px as usize);
        Ok(Some(BaseDescription::of(base)?.training_bytes(size)))
    }

    /// Mean and standard deviation of the latents of each image, its mask, both mirrored too where that happens, and what a
    /// frozen text encoder makes of the captions, unless they are made anew each time.
    fn cache_bytes(&self) -> u64 {
        let (plan, base) = (self.check.plan, self.check.base);
        let downsampling = self.check.downsampling() as u64;
        // As a run finds them: by content, mask and crop.
        let mut of_pictures = BTreeMap::new();
        for CheckedPicture { picture, learned_share, .. } in self.pictures {
            let Size { width_px, height_px } = picture.assigned.bucket;
            let area = u64::from(width_px) / downsampling * (u64::from(height_px) / downsampling);
            let num_sides = if picture.sample.flip { 2 } else { 1 };
            let num_planes = 2 * LATENT_CHANNELS + u64::from(learned_share.is_some());
            let made_from = (picture.surveyed.content, picture.sample.mask.as_deref());
            let key = (made_from, picture.assigned.bucket, picture.assigned.resized);
            of_pictures.insert(key, num_planes * area * num_sides * BYTES_PER_NUMBER);
        }
        let captions = || self.pictures.iter().filter_map(|checked| checked.caption.as_ref());
        let num_captions = if plan.learns_text() || captions().any(|caption| caption.varies) {
            0
        } else {
            captions().map(|caption| &caption.text).collect::<BTreeSet<_>>().len()
        };
        let width = base.map_or(USUAL_TEXT_WIDTH, |base| base.text_widths().iter().sum());
        let positions = base.map_or(USUAL_TEXT_POSITIONS, Base::text_encoder_positions);
        let of_caption = (plan.data.num_chunks * positions * width
            + base.and_then(Base::pooled_width).unwrap_or_default()) as u64
            * BYTES_PER_NUMBER;
        of_pictures.values().sum::<u64>() + num_captions as u64 * of_caption
    }
}

fn origins(pictures: &[CheckedPicture]) -> CaptionOrigins {
    let mut origins = CaptionOrigins::default();
    for checked in pictures {
        *match &checked.picture.sample.caption.origin {
            CaptionOrigin::File(_) => &mut origins.files,
            CaptionOrigin::Metadata => &mut origins.metadata,
            CaptionOrigin::FileName => &mut origins.file_names,
            CaptionOrigin::FolderName => &mut origins.folder_names,
            CaptionOrigin::Prompt => &mut origins.prompts,
            CaptionOrigin::Nowhere => continue,
        } += 1;
    }
    origins
}

fn long_caption(checked: &CheckedPicture) -> Option<LongCaption> {
    let caption = checked.caption.as_ref()?;
    let (path, tokens) = (shown(&checked.picture.sample.path), caption.longest().1.num_tokens);
    Some(LongCaption { path, tokens, cut: caption.cut()?.to_owned() })
}

fn named_size(checked: &CheckedPicture) -> NamedSize {
    let Size { width_px: width, height_px: height } = checked.picture.surveyed.size;
    NamedSize { path: shown(&checked.picture.sample.path), width, height }
}

fn buckets(pictures: &[CheckedPicture]) -> Vec<BucketReport> {
    let mut buckets: BTreeMap<(bool, Size), BucketReport> = BTreeMap::new();
    for CheckedPicture { picture, .. } in pictures {
        let (Size { width_px: width, height_px: height }, role) = (picture.assigned.bucket, picture.sample.role);
        let new = || BucketReport { width, height, role: role_name(role), count: 0, showings: 0, cropped_share: 0.0 };
        let bucket = buckets.entry((role == Role::Class, picture.assigned.bucket)).or_insert_with(new);
        bucket.count += 1;
        bucket.showings += picture.sample.repeats as usize;
        bucket.cropped_share += picture.assigned.cropped_share();
    }
    let mean = |mut bucket: BucketReport| {
        bucket.cropped_share /= bucket.count as f64;
        bucket
    };
    buckets.into_values().map(mean).collect()
}

fn duplicates(pictures: &[CheckedPicture]) -> Vec<DuplicateGroup> {
    let surveyed: Vec<Result<Surveyed, DataError>> =
        pictures.iter().map(|checked| Ok(checked.picture.surveyed.clone())).collect();
    let found = find_duplicates(&surveyed);
    let group = |same, group: Vec<usize>| {
        let paths = group.into_iter().map(|index| shown(&pictures[index].picture.sample.path)).collect();
        DuplicateGroup { same, paths }
    };
    let same_content = found.same_content.into_iter().map(|indices| group("content", indices));
    same_content.chain(found.same_look.into_iter().map(|indices| group("look", indices))).collect()
}

fn masks(pictures: &[CheckedPicture]) -> MaskReport {
    let (mut report, mut sum) = (MaskReport::default(), 0.0);
    for checked in pictures {
        let Some(share) = checked.learned_share else { continue };
        let is_file = checked.picture.sample.mask.is_some() || checked.picture.alpha != Alpha::Mask;
        *(if is_file { &mut report.files } else { &mut report.transparent }) += 1;
        sum += f64::from(share);
    }
    let count = report.files + report.transparent;
    report.learned_share = (count > 0).then(|| sum / count as f64);
    report
}

fn picture_report(checked: &CheckedPicture) -> PictureReport {
    let (picture, caption) = (&checked.picture, checked.caption.as_ref());
    PictureReport {
        path: shown(&picture.sample.path),
        role: role_name(picture.sample.role),
        width: picture.surveyed.size.width_px,
        height: picture.surveyed.size.height_px,
        bucket_width: picture.assigned.bucket.width_px,
        bucket_height: picture.assigned.bucket.height_px,
        cropped_share: picture.assigned.cropped_share(),
        repeats: picture.sample.repeats,
        caption: caption.map(|caption| caption.text.clone()),
        tokens: caption.map(|caption| caption.longest().1.num_tokens),
        caption_varies: caption.is_some_and(|caption| caption.varies),
        mask: picture.sample.mask.as_deref().map(shown),
        learned_share: checked.learned_share,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Subject => "subject",
        Role::Class => "class",
        Role::Mask => "mask",
    }
}

/// A path as text; what is not Unicode in it is replaced.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
