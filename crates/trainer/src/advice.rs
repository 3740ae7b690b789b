//! What to try next, each with the figures that it rests on. A rule says nothing where it has none.

use crate::plan::{MeasuredOn, Plan, PriorPlan, PriorTerm};
use crate::run_summary::BlockNorm;
use crate::validation_history::{BestTracker, LeakChange, ValidationPoint};

/// A loss that is this part higher than the best one has risen. Measurements have no noise of their own.
const RISE: f64 = 0.01;
/// Change without the trigger, over that with it, from which on it is said.
const MUCH_LEAK: f64 = 0.5;
/// Squared relative change of predictions below which nobody sees a difference.
const NO_CHANGE: f64 = 1e-3;
/// How many times as far as the U-Net's a text encoder's module may move.
const TEXT_OVER_UNET: f64 = 3.0;
/// Showings of an image that are few.
const FEW_SHOWINGS: u64 = 30;
/// Images up to which a run is of a subject, whose images are shown often.
const FEW_IMAGES: usize = 50;
/// Steps below which the training loss tells nothing.
const FEW_LOSSES: usize = 100;

/// What is known about a run at its end.
pub(crate) struct Evidence<'a> {
    pub(crate) plan: &'a Plan,
    /// Images of the subject that it learned from.
    pub(crate) num_images: usize,
    /// Of each step.
    pub(crate) losses: &'a [f64],
    pub(crate) history: &'a BestTracker,
    pub(crate) blocks: &'a [BlockNorm],
}

impl Evidence<'_> {
    /// A sentence or two for each thing that stands out.
    pub(crate) fn advice(&self) -> Vec<String> {
        let went_too_far = self.learns_by_heart().or_else(|| self.got_worse());
        let goes_too_far = went_too_far.is_some();
        let has_moved = self.moved_nothing().is_none();
        let rules = [
            went_too_far,
            self.moved_nothing(),
            self.leaks().filter(|_| has_moved),
            self.text_moved_far(),
            self.showed_little().filter(|_| !goes_too_far),
            self.still_falls().filter(|_| !goes_too_far && has_moved),
        ];
        rules.into_iter().flatten().collect()
    }

    /// First and last measurement, if there are two on images that are not learned from.
    fn on_others(&self) -> Option<(&ValidationPoint, &ValidationPoint)> {
        let is_on_others =
            self.plan.validation.as_ref().is_some_and(|validation| validation.measured_on != MeasuredOn::Training);
        let (first, last) = (self.history.points().first()?, self.history.points().last()?);
        (is_on_others && first.step < last.step).then_some((first, last))
    }

    fn learns_by_heart(&self) -> Option<String> {
        let (_, last) = self.on_others()?;
        let best = self.history.best()?;
        let (of_best, of_last) = (best.train_loss?, last.train_loss?);
        let has_risen = last.loss > best.loss * (1.0 + RISE) && of_last < of_best;
        has_risen.then(|| {
            format!(
                "The images that were not learned from were predicted best after {} steps (loss {}, at the end {}), those \
                 that were got better still ({}, at the end {}): it learns them by heart. Take `{}-best.safetensors`, or \
                 train for about {0} steps.",
                best.step,
                figure(best.loss),
                figure(last.loss),
                figure(of_best),
                figure(of_last),
                self.plan.output_name,
            )
        })
    }

    fn got_worse(&self) -> Option<String> {
        let (first, last) = self.on_others()?;
        (last.loss > first.loss * (1.0 + RISE)).then(|| {
            format!(
                "The images that were not learned from are predicted worse than before the first step (loss {}, then {}): \
                 lower `optimizer.learning_rate`, or look whether they show the same subject under captions of the same kind.",
                figure(last.loss),
                figure(first.loss),
            )
        })
    }

    fn last_leak(&self) -> Option<LeakChange> {
        self.history.points().last()?.leak
    }

    fn leaks(&self) -> Option<String> {
        let LeakChange { with_trigger, without_trigger } = self.last_leak()?;
        let remedy = match &self.plan.prior {
            Some(PriorPlan { kind: PriorTerm::Base(_), every_steps: 1, weight }) => {
                format!("Raise `prior.weight`, which is {weight}")
            }
            Some(PriorPlan { kind: PriorTerm::Base(_), .. }) => "Set `prior.every_steps` to 1".to_owned(),
            _ => "Set `prior.kind` to \"base\"".to_owned(),
        };
        (without_trigger > MUCH_LEAK * with_trigger).then(|| {
            format!(
                "Without the trigger predictions change by {}, with it by {} (squared, of what the base predicts): what was \
                 learned does not wait for its trigger. {remedy}; masks keep what is around the subject from being learned.",
                figure(without_trigger),
                figure(with_trigger),
            )
        })
    }

    fn moved_nothing(&self) -> Option<String> {
        let LeakChange { with_trigger, .. } = self.last_leak()?;
        (with_trigger < NO_CHANGE).then(|| {
            format!(
                "Predictions for its own captions change by {} (squared, of what the base predicts), which is hard to see: \
                 raise `optimizer.learning_rate`, which is {:e}, three to ten times.",
                figure(with_trigger),
                self.plan.learning_rate(),
            )
        })
    }

    fn text_moved_far(&self) -> Option<String> {
        let is_text = |block: &BlockNorm| block.block.starts_with("text_encoder");
        let unet = typical_norm(self.blocks.iter().filter(|block| !is_text(block)))?;
        let typical = |(section, is_second): (&'static str, bool)| {
            let is_of_it = |block: &&BlockNorm| is_text(block) && block.block.ends_with("_2") == is_second;
            Some((section, typical_norm(self.blocks.iter().filter(is_of_it))?))
        };
        let texts = [("lora.text_encoder", false), ("lora.text_encoder_2", true)].into_iter().filter_map(typical);
        let (section, text) = texts.max_by(|a, b| a.1.total_cmp(&b.1))?;
        (text > TEXT_OVER_UNET * unet).then(|| {
            format!(
                "A layer of the text encoder moved by {}, one of the U-Net by {} (norm, typical): words may lose their \
                 meaning. Lower `{section}.learning_rate`, or end its training earlier with \
                 `{section}.stop_after`.",
                figure(text),
                figure(unet),
            )
        })
    }

    fn showed_little(&self) -> Option<String> {
        let num_samples = self.plan.steps.saturating_mul(self.plan.samples_per_step() as u64);
        let num_showings = num_samples.checked_div(self.num_images as u64)?;
        (self.num_images <= FEW_IMAGES && num_showings < FEW_SHOWINGS).then(|| {
            format!("Each image was shown {num_showings} times; about 100 times are usual for so few images: raise `train.steps`.")
        })
    }

    fn still_falls(&self) -> Option<String> {
        let more = "`--resume` with a larger `train.steps` goes on.";
        if let Some((first, last)) = self.on_others() {
            let before = self.history.points().iter().rev().nth(1)?;
            // Of an even fall, this is what the last of the parts would have at least half of.
            let even = (first.loss - last.loss) / (self.history.points().len() - 1) as f64;
            let fell = before.loss - last.loss;
            return (fell > 0.5 * even && fell > RISE * last.loss && last.best).then(|| {
                format!(
                    "The loss of images that were not learned from still fell at the end ({} after {} steps, {} after {}): \
                     {more}",
                    figure(before.loss),
                    before.step,
                    figure(last.loss),
                    last.step,
                )
            });
        }
        if self.losses.len() < FEW_LOSSES {
            return None;
        }
        let quarter = self.losses.len() / 4;
        let end = self.losses.len();
        let (third, fourth) =
            (Spread::of(&self.losses[end - 2 * quarter..end - quarter]), Spread::of(&self.losses[end - quarter..]));
        let noise = third.error.hypot(fourth.error);
        let fell = third.mean - fourth.mean;
        (fell > 3.0 * noise && fell > RISE * fourth.mean).then(|| {
            format!(
                "The training loss still fell at the end ({} in the third quarter, {} in the last), if the pictures get better \
                 too, {more}",
                figure(third.mean),
                figure(fourth.mean),
            )
        })
    }
}

/// Root mean square norm of a module; `None` without modules.
fn typical_norm<'a>(blocks: impl Iterator<Item = &'a BlockNorm>) -> Option<f64> {
    let (squares, count) =
        blocks.fold((0.0, 0), |(squares, count), block| (squares + block.frobenius.powi(2), count + block.num_modules));
    (count > 0).then(|| (squares / count as f64).sqrt())
}

/// Mean of noisy values, and its standard error.
struct Spread {
    mean: f64,
    error: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        Self { mean, error: (variance / count).sqrt() }
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    format!("{value:.*}", digits.clamp(0, 12) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigLayers;

    const OTHERS: &str = "validation.hold_out=0.2";

    /// A run with nothing that stands out, changed here and there.
    struct Run {
        sets: Vec<&'static str>,
        num_images: usize,
        losses: Vec<f64>,
        /// Step, loss, loss of images that are learned from.
        points: Vec<(u64, f64, f64)>,
        leak: Option<LeakChange>,
        text_norm: f64,
        /// Of a second text encoder.
        second_text_norm: Option<f64>,
    }

    fn run() -> Run {
        let wave = |i: u32| 0.1 + 0.05 * f64::from(i * 7919 % 100) / 100.0;
        Run {
            sets: vec!["data.images=cats", "data.trigger=sks", "train.steps=1000", OTHERS],
            num_images: 10,
            losses: (0..1000).map(wave).collect(),
            points: vec![(0, 0.2, 0.2), (200, 0.15, 0.14), (400, 0.14, 0.12), (600, 0.1395, 0.11)],
            leak: Some(LeakChange { with_trigger: 0.3, without_trigger: 0.1 }),
            text_norm: 1.0,
            second_text_norm: None,
        }
    }

    impl Run {
        fn advice(&self) -> Vec<String> {
            let mut layers = ConfigLayers::new();
            self.sets.iter().for_each(|set| layers.set(set).unwrap());
            let plan = Plan::new(&layers.resolve().unwrap().config).unwrap();
            let point = |(step, loss, train): &(u64, f64, f64)| ValidationPoint {
                step: *step,
                loss: *loss,
                bins: Vec::new(),
                train_loss: self.sets.contains(&OTHERS).then_some(*train),
                leak: self.leak,
                best: false,
            };
            let history = BestTracker::from_history(self.points.iter().map(point).collect());
            let block = |block: &str, frobenius, num_modules| BlockNorm {
                block: block.to_owned(),
                frobenius,
                num_modules,
                num_unmoved: 0,
            };
            let first = if self.second_text_norm.is_some() { "text_encoder_1" } else { "text_encoder" };
            let mut blocks = vec![block(first, self.text_norm, 4), block("mid_block", 2.0, 16)];
            blocks.extend(self.second_text_norm.map(|norm| block("text_encoder_2", norm, 9)));
            let (num_images, losses) = (self.num_images, self.losses.as_slice());
            Evidence { plan: &plan, num_images, losses, history: &history, blocks: &blocks }.advice()
        }

        /// The only advice, which has these words.
        fn says(&self, words: &[&str]) {
            let advice = self.advice();
            assert_eq!(advice.len(), 1, "{advice:?}");
            assert!(words.iter().all(|word| advice[0].contains(word)), "{advice:?}");
        }

        fn says_nothing(&self) {
            assert_eq!(self.advice(), Vec::<String>::new());
        }
    }

    #[test]
    fn nothing_is_said_where_nothing_stands_out() {
        run().says_nothing();
        Run { points: Vec::new(), leak: None, ..run() }.says_nothing();
    }

    #[test]
    fn images_learned_by_heart_are_told_by_both_curves() {
        let points = vec![(0, 0.2, 0.2), (200, 0.15, 0.14), (400, 0.16, 0.11)];
        Run { points, ..run() }.says(&["after 200 steps", "0.150", "0.160", "0.140", "0.110", "-best.safetensors"]);
        // Where both rise it is something else, and below the threshold nothing.
        Run { points: vec![(0, 0.2, 0.2), (200, 0.15, 0.1), (400, 0.16, 0.11)], ..run() }.says_nothing();
        Run { points: vec![(0, 0.2, 0.2), (200, 0.15, 0.14), (400, 0.151, 0.11)], ..run() }.says_nothing();
    }

    #[test]
    fn what_is_worse_than_the_base_is_said() {
        let points = vec![(0, 0.2, 0.2), (200, 0.21, 0.2), (400, 0.25, 0.21)];
        Run { points, ..run() }.says(&["0.250", "0.200", "optimizer.learning_rate"]);
    }

    #[test]
    fn a_leak_of_more_than_half_asks_for_a_prior_or_for_more_of_it() {
        let leak = Some(LeakChange { with_trigger: 0.3, without_trigger: 0.2 });
        let with = |more: &[&'static str]| Run { leak, sets: [&run().sets[..], more].concat(), ..run() };
        with(&[]).says(&["0.200", "0.300", "`prior.kind` to \"base\"", "masks"]);
        with(&["prior.kind=base", "prior.every_steps=2"]).says(&["`prior.every_steps` to 1"]);
        with(&["prior.kind=base", "prior.every_steps=1", "prior.weight=0.5"]).says(&["`prior.weight`, which is 0.5"]);
        Run { leak: Some(LeakChange { with_trigger: 0.3, without_trigger: 0.14 }), ..run() }.says_nothing();
    }

    #[test]
    fn where_nothing_moved_only_that_is_said() {
        let leak = Some(LeakChange { with_trigger: 0.0004, without_trigger: 0.0004 });
        let points = vec![(0, 0.2, 0.2), (200, 0.19, 0.19), (400, 0.18, 0.18)];
        Run { points, leak, ..run() }.says(&["0.000400", "optimizer.learning_rate", "1e-4"]);
    }

    #[test]
    fn a_text_encoder_that_moved_far_is_told_by_its_typical_layer() {
        // 2 / sqrt(16) = 0.5 in the U-Net; 3.2 / sqrt(4) = 1.6 in the text encoder.
        Run { text_norm: 3.2, ..run() }.says(&["1.60", "0.500", "lora.text_encoder.learning_rate", "stop_after"]);
        // 5.4 / sqrt(9) = 1.8 in the second one.
        let both = Run { text_norm: 3.2, second_text_norm: Some(5.4), ..run() };
        both.says(&["1.80", "lora.text_encoder_2.learning_rate"]);
        Run { text_norm: 2.8, ..run() }.says_nothing();
    }

    #[test]
    fn few_images_shown_seldom_are_told_and_many_are_not() {
        Run { num_images: 40, ..run() }.says(&["25 times", "train.steps"]);
        Run { num_images: 1000, ..run() }.says_nothing();
    }

    #[test]
    fn a_loss_that_still_falls_is_told_on_other_images_or_beyond_its_noise() {
        let points = vec![(0, 0.2, 0.2), (200, 0.18, 0.17), (400, 0.16, 0.15)];
        Run { points, ..run() }.says(&["0.180 after 200", "0.160 after 400", "--resume"]);
        let mut training = run();
        training.sets.retain(|set| *set != OTHERS);
        training.says_nothing();
        training.losses.iter_mut().zip(0..).for_each(|(loss, i)| *loss += 0.1 * (1.0 - f64::from(i) / 1000.0));
        training.says(&["training loss", "--resume"]);
    }

    #[test]
    fn figures_have_three_digits_that_count() {
        assert_eq!([0.081_234, 12.345, 1234.5, 0.000_4, 0.0].map(figure), ["0.0812", "12.3", "1234", "0.000400", "0"]);
    }
}
