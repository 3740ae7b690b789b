//! What a composition of adapters does to a base's predictions and pictures, beside what its members do one by one: whether
//! they add up, and whether pictures burn.
//!
//! Every subject (the base, each member, each candidate) is asked with every prompt: at fixed noisy latents, and for pictures of
//! fixed noise. The noisy latents are made of the base's own pictures. One subject's networks are in memory at a time, and the
//! autoencoder comes after all of them.

use loralei_adapter::Adapter;
use loralei_model::{Base, DrawingSettings};
use loralei_picture::{ColourMeasures, Picture};
use serde::Serialize;

use crate::composition_subject::{Asked, RawMeasures, Subject, decode};
use crate::error::TrainError;
use crate::leak_score::relative_change;

/// Share of colour values that may be clipped though the base has none.
const FREE_CLIPPED: f64 = 1e-3;

/// An adapter that a composition is made of.
pub struct CompositionMember<'a> {
    /// What it is called.
    pub name: String,
    /// Its factors.
    pub adapter: &'a Adapter,
    /// Its strength in the composition.
    pub scale: f32,
    /// What it is meant to answer to: see [`default_prompt`].
    pub prompt: String,
}

/// A way to compose them.
pub struct CompositionCandidate<'a> {
    /// What it is called, as the method.
    pub name: String,
    /// The composed factors, used at strength 1.
    pub adapter: &'a Adapter,
}

/// How they are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct CompositionSettings {
    /// A prompt that calls all members at once; `None`: their prompts with commas between them.
    pub together: Option<String>,
    /// What no picture shall show.
    pub negative: String,
    /// Sampler, steps and guidance of the pictures. The guidance is also that of the predictions' spread.
    pub drawing: DrawingSettings,
    /// Width and height of the pictures.
    pub size_px: (usize, usize),
    /// One picture of each prompt for each, at least one.
    pub seeds: Vec<u64>,
    /// Noisy latents at which predictions are compared, for each prompt; at least one.
    pub num_points: usize,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompositionMeasures {
    /// What was asked: each member's prompt, then all together if there are several.
    pub prompts: Vec<String>,
    /// The base alone: all ratios are 1.
    pub base: SubjectMeasures,
    /// Each member alone at its strength.
    pub members: Vec<SubjectMeasures>,
    /// Each candidate.
    pub candidates: Vec<SubjectMeasures>,
}

/// One row of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SubjectMeasures {
    /// `base`, or the name of the member or candidate.
    pub name: String,
    /// Over all prompts.
    pub mean: BurnMeasures,
    /// For each prompt.
    pub per_prompt: Vec<BurnMeasures>,
    /// For each prompt, one for each seed.
    #[serde(skip)]
    pub pictures: Vec<Vec<Picture>>,
}

/// How far a subject is from the base. A ratio is to the base's number; `None` where that is 0 and the subject's is not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BurnMeasures {
    /// ||e' - e|| / ||e||, with e the base's prediction at the fixed points and e' the subject's.
    pub change: f64,
    /// ||(e' - e) - sum of (e_i - e)|| / ||e' - e|| over the members i: 0 if they do not interact. Of candidates; `None` also if
    /// nothing changes.
    pub additivity_error: Option<f64>,
    /// std(guided prediction) / std(the prompt's prediction), a mean over the points (Lin et al. 2023, arXiv 2305.08891,
    /// section 3.4).
    pub guidance_spread: f64,
    /// Standard deviation of the estimate of x_0 at each step of the drawing.
    pub clean_std: Vec<f64>,
    /// The absolute value that 99.5 % of the estimate's numbers do not exceed, at each step (Saharia et al. 2022, arXiv
    /// 2205.11487, section 2.3).
    pub clean_extreme: Vec<f64>,
    /// Mean over steps of `clean_std`, each to that of the base.
    pub clean_std_ratio: f64,
    /// Mean over steps of `clean_extreme`, each to that of the base.
    pub clean_extreme_ratio: f64,
    /// Of the decoded pictures.
    pub colours: ColourMeasures,
    /// Each number to the base's.
    pub colour_ratios: ColourRatios,
    /// At most twice the base's clipped values (0.1 % are free), and an x_0 whose spread is within 10 % of the base's.
    pub passes: bool,
}

/// [`ColourMeasures`] to those of the base.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ColourRatios {
    /// Clipped values.
    pub clipped: Option<f64>,
    /// Saturation.
    pub saturation: Option<f64>,
    /// Contrast.
    pub contrast: Option<f64>,
    /// Variance of the Laplacian.
    pub laplacian_variance: Option<f64>,
}

/// The prompt of a member that is given none: the trigger of its metadata, or what most of its captions say.
pub fn default_prompt(adapter: &Adapter) -> Option<String> {
    let said = |key: &str| adapter.metadata.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
    said("modelspec.trigger_phrase").map(str::to_owned).or_else(|| {
        let folders: serde_json::Value = serde_json::from_str(said("ss_tag_frequency")?).ok()?;
        let counts = folders.as_object()?.values().filter_map(serde_json::Value::as_object).flatten();
        let counts = counts.filter_map(|(tag, count)| Some((count.as_u64()?, tag.trim())));
        let most = counts.filter(|(_, tag)| !tag.is_empty()).max_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(a.1)));
        most.map(|(_, tag)| tag.to_owned())
    })
}

/// Compares `candidates` with the base and the members. Networks are loaded on the base's device, once for each subject.
/// `progress` is told the predictions that are made, and of how many.
///
/// # Errors
/// Adapters of another base, prompts that cannot be encoded, a size that does not fit, numbers that are not finite.
pub fn measure_composition(
    base: &Base,
    members: &[CompositionMember],
    candidates: &[CompositionCandidate],
    settings: &CompositionSettings,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<CompositionMeasures, TrainError> {
    base.check_size(settings.size_px.0, settings.size_px.1)?;
    let mut prompts: Vec<String> = members.iter().map(|member| member.prompt.clone()).collect();
    if prompts.len() > 1 {
        prompts.push(settings.together.clone().unwrap_or_else(|| prompts.join(", ")));
    }
    let per_prompt = (settings.seeds.len() * settings.drawing.steps + settings.num_points) as u64;
    let total = (1 + members.len() + candidates.len()) as u64 * prompts.len() as u64 * per_prompt;
    let mut done = 0;
    let mut count = |predictions: usize| {
        done += predictions as u64;
        progress(done, total);
    };
    let mut asked = Asked::new(base, &prompts, settings);

    let nothing = Adapter::default();
    let of_base = Subject::measure(&mut asked, "base", &nothing, &mut count)?;
    let mut of_members = Vec::with_capacity(members.len());
    for member in members {
        let scaled = Adapter::sum(&[(member.adapter, member.scale)])?;
        of_members.push(Subject::measure(&mut asked, &member.name, &scaled, &mut count)?);
    }
    let sums = sums_of_changes(&of_base, &of_members);
    let mut of_candidates = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let mut subject = Subject::measure(&mut asked, &candidate.name, candidate.adapter, &mut count)?;
        subject.compare(&of_base, Some(&sums));
        of_candidates.push(subject);
    }
    of_members.iter_mut().for_each(|member| member.compare(&of_base, None));

    let num_members = of_members.len();
    let mut subjects: Vec<Subject> = [of_base].into_iter().chain(of_members).chain(of_candidates).collect();
    decode(base, &mut subjects, settings.size_px, &settings.seeds)?;
    let raw_base = subjects[0].raw.clone();
    let mut rows = subjects.into_iter().map(|subject| row(subject, &raw_base));
    let of_base = rows.next().ok_or_else(|| TrainError::from(candle_core::Error::Msg("no subject".into())))?;
    let members = rows.by_ref().take(num_members).collect();
    Ok(CompositionMeasures { prompts, base: of_base, members, candidates: rows.collect() })
}

/// For each prompt the sum over members of what they change.
fn sums_of_changes(base: &Subject, members: &[Subject]) -> Vec<Vec<f64>> {
    let of_prompt = |(i, base): (usize, &Vec<f32>)| {
        let mut sum = vec![0.0; base.len()];
        for member in members {
            let pairs = member.predictions[i].iter().zip(base);
            sum.iter_mut().zip(pairs).for_each(|(sum, (with, without))| *sum += f64::from(*with) - f64::from(*without));
        }
        sum
    };
    base.predictions.iter().enumerate().map(of_prompt).collect()
}

impl Subject {
    /// Fills in what needs the base's predictions and the members', and lets go of its own.
    fn compare(&mut self, base: &Subject, sums: Option<&[Vec<f64>]>) {
        for (i, (raw, found)) in self.raw.iter_mut().zip(&self.predictions).enumerate() {
            let without = &base.predictions[i];
            raw.change = relative_change(without, found).sqrt();
            raw.additivity_error = sums.and_then(|sums| additivity_error(without, found, &sums[i]));
        }
        self.predictions = Vec::new();
    }
}

/// ||(found - base) - sum|| / ||found - base||.
fn additivity_error(base: &[f32], found: &[f32], sum: &[f64]) -> Option<f64> {
    let (mut error, mut change) = (0.0, 0.0);
    for ((without, with), sum) in base.iter().zip(found).zip(sum) {
        let difference = f64::from(*with) - f64::from(*without);
        error += (difference - sum).powi(2);
        change += difference.powi(2);
    }
    (change > 0.0).then(|| (error / change).sqrt())
}

fn row(subject: Subject, base: &[RawMeasures]) -> SubjectMeasures {
    let per_prompt = subject.raw.iter().zip(base).map(|(raw, base)| against(raw, base)).collect();
    let mean = against(&RawMeasures::mean(&subject.raw), &RawMeasures::mean(base));
    SubjectMeasures { name: subject.name, mean, per_prompt, pictures: subject.pictures }
}

fn against(raw: &RawMeasures, base: &RawMeasures) -> BurnMeasures {
    let over_steps = |of: &[f64], of_base: &[f64]| {
        of.iter().zip(of_base).map(|(value, base)| value / base).sum::<f64>() / of.len().max(1) as f64
    };
    let clean_std_ratio = over_steps(&raw.clean_std, &base.clean_std);
    let (colours, of_base) = (raw.colours, base.colours);
    let is_clean = colours.clipped <= (2.0 * of_base.clipped).max(FREE_CLIPPED);
    BurnMeasures {
        change: raw.change,
        additivity_error: raw.additivity_error,
        guidance_spread: raw.guidance_spread,
        clean_std: raw.clean_std.clone(),
        clean_extreme: raw.clean_extreme.clone(),
        clean_std_ratio,
        clean_extreme_ratio: over_steps(&raw.clean_extreme, &base.clean_extreme),
        colours,
        colour_ratios: ColourRatios {
            clipped: ratio(colours.clipped, of_base.clipped),
            saturation: ratio(colours.saturation, of_base.saturation),
            contrast: ratio(colours.contrast, of_base.contrast),
            laplacian_variance: ratio(colours.laplacian_variance, of_base.laplacian_variance),
        },
        passes: is_clean && (clean_std_ratio - 1.0).abs() <= 0.1,
    }
}

fn ratio(value: f64, base: f64) -> Option<f64> {
    if value == base { Some(1.0) } else { (base != 0.0).then(|| value / base) }
}
