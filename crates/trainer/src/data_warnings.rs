//! What may not be as it was meant in data that a run could be made with. Each is one line, with the worst example.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loralei_data::{CaptionOrigin, Role, Size, without_trigger};

use crate::data_check::CheckedPicture;
use crate::plan::DataPlan;
use crate::plan::Plan;

/// Images that are enlarged more than so many times are blurred.
const MAX_ENLARGEMENT: f64 = 1.5;
/// More than this share of an image is much to lose.
const MAX_CROPPED_SHARE: f64 = 0.2;
/// With fewer images an adapter mostly learns these images.
const FEWEST_IMAGES: usize = 5;

/// All of them.
pub(crate) fn data_warnings(plan: &Plan, pictures: &[CheckedPicture], max_tokens: usize) -> Vec<String> {
    let of_role = |role: Role| pictures.iter().filter(move |picture| picture.picture.sample.role == role);
    let subject: Vec<&CheckedPicture> = of_role(Role::Subject).collect();
    let has_class = of_role(Role::Class).next().is_some();
    let all = [few_images(&subject), enlarged(pictures), cropped(pictures), too_long(pictures, max_tokens)];
    let mut warnings: Vec<String> = all.into_iter().flatten().collect();
    warnings.extend(same_captions(&subject));
    warnings.extend(no_trigger(&plan.data, &subject));
    warnings.extend(idle_class_images(plan, has_class));
    warnings.extend(notes(pictures));
    warnings
}

/// That class images are there and not used.
pub(crate) fn idle_class_images(plan: &Plan, has_class: bool) -> Option<String> {
    let is_idle = has_class && !plan.learns_class();
    is_idle.then(|| "class images are not learned from without `prior.kind` = \"images\"".to_owned())
}

fn few_images(subject: &[&CheckedPicture]) -> Option<String> {
    let few = (1..FEWEST_IMAGES).contains(&subject.len());
    few.then(|| format!("{} are few: 5 to 50 are usual", counted(subject.len(), "image")))
}

fn enlarged(pictures: &[CheckedPicture]) -> Option<String> {
    let factor = |checked: &CheckedPicture| {
        let (from, to) = (checked.picture.surveyed.size, checked.picture.assigned.resized);
        f64::from(to.width_px) / f64::from(from.width_px.max(1))
    };
    let (count, worst, factor) = worst(pictures, factor, MAX_ENLARGEMENT)?;
    let (path, Size { width_px, height_px }) = (worst.picture.sample.path.display(), worst.picture.surveyed.size);
    let (are, most) = (if count == 1 { "is" } else { "are" }, if count == 1 { "" } else { "most " });
    Some(format!(
        "{} {are} enlarged more than {MAX_ENLARGEMENT} times, {most}{path} of {width_px} x {height_px} ({factor:.1} times)",
        counted(count, "image")
    ))
}

fn cropped(pictures: &[CheckedPicture]) -> Option<String> {
    let share = |checked: &CheckedPicture| checked.picture.assigned.cropped_share();
    let (count, worst, share) = worst(pictures, share, MAX_CROPPED_SHARE)?;
    let (lose, most) = if count == 1 { ("loses", "") } else { ("lose", "most ") };
    Some(format!(
        "{} {lose} more than {:.0} % to cropping, {most}{} ({:.0} %)",
        counted(count, "image"),
        MAX_CROPPED_SHARE * 100.0,
        worst.picture.sample.path.display(),
        share * 100.0
    ))
}

fn too_long(pictures: &[CheckedPicture], max_tokens: usize) -> Option<String> {
    let is_long = |checked: &&CheckedPicture| checked.caption.as_ref().is_some_and(|caption| caption.cut().is_some());
    let count = pictures.iter().filter(is_long).count();
    let (have, remedy) =
        (if count == 1 { "has" } else { "have" }, if max_tokens < 225 { " or raise `data.max_tokens`" } else { "" });
    (count > 0).then(|| {
        let captions = counted(count, "caption");
        format!("{captions} {have} more than {max_tokens} tokens and what is cut is not learned: shorten{remedy}")
    })
}

fn same_captions(subject: &[&CheckedPicture]) -> Option<String> {
    let captions: Option<BTreeSet<&str>> = subject
        .iter()
        .map(|checked| checked.caption.as_ref().filter(|caption| !caption.varies).map(|caption| caption.text.as_str()))
        .collect();
    // One prompt for all is meant; texts of their own that say the same are not.
    let have_own = subject.iter().any(|checked| !is_stand_in(&checked.picture.sample.caption.origin));
    let captions = captions.filter(|captions| captions.len() == 1 && subject.len() > 1 && have_own)?;
    Some(format!("all {} captions are the same: {:?}", subject.len(), captions.first()?))
}

fn is_stand_in(origin: &CaptionOrigin) -> bool {
    matches!(origin, CaptionOrigin::Prompt | CaptionOrigin::FolderName)
}

fn no_trigger(plan: &DataPlan, subject: &[&CheckedPicture]) -> Option<String> {
    let trigger = plan.trigger.as_deref()?;
    let captions: Vec<&CheckedPicture> = subject.iter().filter(|checked| checked.caption.is_some()).copied().collect();
    let holds = |text: &str| without_trigger(text, trigger).is_some();
    let is_there = |checked: &&CheckedPicture| {
        checked.caption.as_ref().is_some_and(|caption| holds(&caption.text) || holds(caption.longest().0))
    };
    let is_lost = !captions.is_empty() && !captions.iter().any(is_there);
    is_lost.then(|| format!("the trigger {trigger:?} is in no caption: nothing will call what is learned"))
}

/// What decoding does to images beyond reading them.
fn notes(pictures: &[CheckedPicture]) -> Vec<String> {
    let mut by_note: BTreeMap<_, Vec<&Path>> = BTreeMap::new();
    for checked in pictures {
        for note in &checked.picture.surveyed.notes {
            // Transparency that is the mask is not laid over a colour for nothing.
            if checked.learned_share.is_none() || *note != loralei_data::Note::Flattened {
                by_note.entry(*note).or_default().push(&checked.picture.sample.path);
            }
        }
    }
    let line = |(note, paths): (loralei_data::Note, Vec<&Path>)| match paths[..] {
        [path] => format!("{}: {note}", path.display()),
        _ => format!("{} images, such as {}: {note}", paths.len(), paths[0].display()),
    };
    by_note.into_iter().map(line).collect()
}

/// How many are above `limit`, and which most.
fn worst(
    pictures: &[CheckedPicture],
    measure: impl Fn(&CheckedPicture) -> f64,
    limit: f64,
) -> Option<(usize, &CheckedPicture, f64)> {
    let above = || pictures.iter().map(|checked| (checked, measure(checked))).filter(|(_, value)| *value > limit);
    let (worst, value) = above().reduce(|most, next| if next.1 > most.1 { next } else { most })?;
    Some((above().count(), worst, value))
}

/// `1 image`, `2 images`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
