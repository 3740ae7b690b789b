//! The gradient of a step as the sum of its micro-batches' gradients, in a fixed order.
//!
//! Addition of f32 is not associative, so the order is part of the result. It is a binary tree over the micro-batch
//! index: 2i with 2i + 1, then those pairs pairwise, and so on, the lower index on the left; what has no partner passes
//! through. Any split of the micro-batches over devices can follow the same tree and get the same bits.
//!
//! One device walks it with a binary counter: after k micro-batches it holds one partial sum for each 1 in k's binary
//! form, at most log2(M) + 1 of them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::error::TrainError;

/// Gradients by factor name.
pub type Gradients = BTreeMap<String, Tensor>;

/// Sums leaves pairwise over their index, each with the `add` given: `add(left, right)`.
#[derive(Debug)]
pub struct PairwiseSum<T> {
    /// Partial sums of 2^level leaves, levels strictly falling.
    partial: Vec<(u32, T)>,
}

impl<T> PairwiseSum<T> {
    /// The sum of no leaves.
    pub fn new() -> Self {
        Self { partial: Vec::new() }
    }

    /// Adds the next leaf.
    ///
    /// # Errors
    /// What `add` returns.
    pub fn push<E>(&mut self, leaf: T, mut add: impl FnMut(T, T) -> Result<T, E>) -> Result<(), E> {
        let (mut level, mut sum) = (0, leaf);
        while let Some((_, left)) = self.partial.pop_if(|(top, _)| *top == level) {
            sum = add(left, sum)?;
            level += 1;
        }
        self.partial.push((level, sum));
        Ok(())
    }

    /// Closes the open subtrees from the smallest up; `None` without leaves.
    ///
    /// # Errors
    /// What `add` returns.
    pub fn finish<E>(mut self, mut add: impl FnMut(T, T) -> Result<T, E>) -> Result<Option<T>, E> {
        let Some((_, mut sum)) = self.partial.pop() else { return Ok(None) };
        while let Some((_, left)) = self.partial.pop() {
            sum = add(left, sum)?;
        }
        Ok(Some(sum))
    }
}

impl<T> Default for PairwiseSum<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The mean gradient and loss of a step.
#[derive(Debug, Clone)]
pub struct StepGradient {
    /// Gradient of each factor: the tree's sum / `weight`.
    pub gradients: Gradients,
    /// The tree's sum of losses: a scalar, on the device.
    pub loss_sum: Tensor,
    /// The whole step's weight W: number of samples where every sample weighs 1.
    pub weight: f64,
}

impl StepGradient {
    /// Loss of the step: the sum of losses / `weight`. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn loss(&self) -> Result<f64, TrainError> {
        Ok(self.loss_sum.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar::<f64>()? / self.weight)
    }
}

/// Collects the micro-batches of one step.
///
/// Every leaf brings *sums* over its samples, not means; only the whole step's weight divides. A mean of means would
/// give the samples of a small micro-batch more weight than those of a large one.
#[derive(Debug, Default)]
pub struct GradientTree {
    sum: PairwiseSum<StepGradient>,
}

impl GradientTree {
    /// A step without micro-batches.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next micro-batch: the gradients of its loss, that loss as a sum over its samples, and its summed sample weight.
    ///
    /// # Errors
    /// [`TrainError::GradientNames`] if the factors are not those of the micro-batches before, [`TrainError::Tensor`].
    pub fn push(&mut self, gradients: Gradients, loss_sum: Tensor, weight: f64) -> Result<(), TrainError> {
        self.sum.push(StepGradient { gradients, loss_sum, weight }, add)
    }

    /// The step's gradient and loss, divided by its whole weight; `None` without micro-batches.
    ///
    /// # Errors
    /// [`TrainError::StepWeight`] if the weights do not sum to a positive finite number, [`TrainError::Tensor`].
    pub fn finish(self) -> Result<Option<StepGradient>, TrainError> {
        let Some(mut step) = self.sum.finish(add)? else { return Ok(None) };
        if !(step.weight > 0.0 && step.weight.is_finite()) {
            return Err(TrainError::StepWeight { weight: step.weight });
        }
        for gradient in step.gradients.values_mut() {
            *gradient = (&*gradient / step.weight)?;
        }
        Ok(Some(step))
    }
}

fn add(left: StepGradient, mut right: StepGradient) -> Result<StepGradient, TrainError> {
    let mut gradients = Gradients::new();
    for (name, gradient) in left.gradients {
        let Some(other) = right.gradients.remove(&name) else { return Err(TrainError::GradientNames { name }) };
        let sum = (gradient + other)?;
        gradients.insert(name, sum);
    }
    if let Some((name, _)) = right.gradients.pop_first() {
        return Err(TrainError::GradientNames { name });
    }
    Ok(StepGradient { gradients, loss_sum: (left.loss_sum + right.loss_sum)?, weight: left.weight + right.weight })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn loss(value: f64) -> Tensor {
        Tensor::new(value, &Device::Cpu).unwrap()
    }

    /// The definition, level by level over the whole list.
    fn level_by_level<T: Clone>(mut level: Vec<T>, add: impl Fn(&T, &T) -> T) -> Option<T> {
        while level.len() > 1 {
            level = level.chunks(2).map(|pair| pair.get(1).map_or(pair[0].clone(), |r| add(&pair[0], r))).collect();
        }
        level.pop()
    }

    #[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "the shape that the tree asks for")]
    fn bracket(left: String, right: String) -> Result<String, Infallible> {
        Ok(format!("({left} {right})"))
    }

    fn brackets(num_leaves: usize) -> String {
        let mut sum = PairwiseSum::new();
        for i in 0..num_leaves {
            sum.push(i.to_string(), bracket).unwrap();
        }
        sum.finish(bracket).unwrap().unwrap()
    }

    #[test]
    fn six_leaves_are_bracketed_by_index() {
        assert_eq!(brackets(6), "(((0 1) (2 3)) (4 5))");
        assert_eq!(brackets(7), "(((0 1) (2 3)) ((4 5) 6))");
    }

    #[test]
    fn any_number_of_leaves_is_bracketed_as_defined() {
        for n in 1..=130 {
            let leaves = (0..n).map(|i| i.to_string()).collect();
            let defined = level_by_level(leaves, |l: &String, r: &String| format!("({l} {r})"));
            assert_eq!(brackets(n), defined.unwrap());
        }
    }

    #[test]
    fn no_more_partial_sums_are_held_than_the_number_of_leaves_has_binary_digits() {
        let mut sum = PairwiseSum::new();
        for i in 0..1000u32 {
            sum.push(i, |a, b| Ok::<_, Infallible>(a + b)).unwrap();
            assert_eq!(sum.partial.len(), (i + 1).count_ones() as usize);
        }
    }

    proptest! {
        #[test]
        fn f32_sums_have_the_bits_of_the_definition(leaves in prop::collection::vec(-1e6f32..1e6, 1..70)) {
            let mut sum = PairwiseSum::new();
            for leaf in &leaves {
                sum.push(*leaf, |a, b| Ok::<_, Infallible>(a + b)).unwrap();
            }
            let sum = sum.finish(|a, b| Ok::<_, Infallible>(a + b)).unwrap().unwrap();
            let exact: f64 = leaves.iter().map(|x| f64::from(*x)).sum();
            prop_assert!((f64::from(sum) - exact).abs() < 1e6 * 70.0 * 1e-6);
            prop_assert_eq!(sum.to_bits(), level_by_level(leaves, |a, b| a + b).unwrap().to_bits());
        }
    }

    fn gradients(values: &[(&str, [f32; 2])]) -> Gradients {
        let tensor = |v: &[f32; 2]| Tensor::new(v, &Device::Cpu).unwrap();
        values.iter().map(|(name, v)| ((*name).to_string(), tensor(v))).collect()
    }

    #[test]
    fn a_step_is_divided_by_its_whole_weight_not_by_each_micro_batchs() {
        let mut tree = GradientTree::new();
        // Three samples in the first micro-batch, one in the second: sums, not means.
        tree.push(gradients(&[("a", [3.0, 6.0]), ("b", [1.5, 0.0])]), loss(6.0), 3.0).unwrap();
        tree.push(gradients(&[("a", [5.0, -2.0]), ("b", [0.5, 8.0])]), loss(4.0), 1.0).unwrap();
        let step = tree.finish().unwrap().unwrap();
        assert_eq!(step.gradients["a"].to_vec1::<f32>().unwrap(), [2.0, 1.0]);
        assert_eq!(step.gradients["b"].to_vec1::<f32>().unwrap(), [0.5, 2.0]);
        assert!((step.loss().unwrap() - 2.5).abs() < 1e-12 && (step.weight - 4.0).abs() < 1e-12);
    }

    #[test]
    fn the_order_of_the_sum_shows_in_f32_and_is_the_trees() {
        // Left to right: ((1e8 + 1) - 1e8) + 1 = 1. The tree: (1e8 + 1) + (-1e8 + 1) = 0.
        let mut tree = GradientTree::new();
        for value in [1e8, 1.0, -1e8, 1.0] {
            tree.push(gradients(&[("a", [value, 1.0])]), loss(0.0), 1.0).unwrap();
        }
        let step = tree.finish().unwrap().unwrap();
        assert_eq!(step.gradients["a"].to_vec1::<f32>().unwrap(), [0.0, 1.0]);
    }

    #[test]
    fn a_micro_batch_with_other_factors_is_refused_by_name() {
        let two = || gradients(&[("a", [1.0, 2.0]), ("b", [1.0, 2.0])]);
        for (first, second, name) in
            [(two(), gradients(&[("a", [1.0, 1.0])]), "b"), (gradients(&[("b", [1.0, 1.0])]), two(), "a")]
        {
            let mut tree = GradientTree::new();
            tree.push(first, loss(1.0), 1.0).unwrap();
            let error = tree.push(second, loss(1.0), 1.0).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
        }
    }

    #[test]
    fn a_step_whose_samples_all_weigh_nothing_is_refused() {
        let mut tree = GradientTree::new();
        tree.push(gradients(&[("a", [1.0, 2.0])]), loss(0.0), 0.0).unwrap();
        assert!(matches!(tree.finish(), Err(TrainError::StepWeight { .. })));
        assert!(GradientTree::new().finish().unwrap().is_none());
    }
}
