//! The two number types that kernels compute in, and the transcendental functions they need.
//!
//! f32 versions are branch-free polynomials, so that the compiler vectorises the loops that call them; f64 versions
//! are the library's and serve the finite-difference checks.

use pulp::Simd;
use rayon::prelude::*;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64.
pub(crate) trait Real:
    Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    const ONE: Self;
    /// What a vector register of `S` holds.
    type Vector<S: Simd>: Copy;
    fn vector_sum<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    fn vector_difference<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    fn vector_product<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>) -> Self::Vector<S>;
    fn vector_of<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    fn real(x: f64) -> Self;
    fn as_f64(self) -> f64;
    /// e^x. f32: relative error below 2e-7 on [-87, 88], clamped outside.
    fn exp(self) -> Self;
    /// (Phi(x), phi(x)): the standard normal distribution function and density. f32: absolute error below 3e-7.
    fn normal(self) -> (Self, Self);
    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
    /// self * a + b, rounded once: the same number on every processor.
    fn times_plus(self, a: Self, b: Self) -> Self;
    #[inline(always)]
    fn largest(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Real for f32 {
    const ONE: Self = 1.0;
    type Vector<S: Simd> = S::f32s;
    #[inline(always)]
    fn vector_sum<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.add_f32s(a, b)
    }
    #[inline(always)]
    fn vector_difference<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.sub_f32s(a, b)
    }
    #[inline(always)]
    fn vector_product<S: Simd>(simd: S, a: S::f32s, b: S::f32s) -> S::f32s {
        simd.mul_f32s(a, b)
    }
    #[inline(always)]
    fn vector_of<S: Simd>(simd: S, x: f32) -> S::f32s {
        simd.splat_f32s(x)
    }
    #[inline(always)]
    fn real(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn as_f64(self) -> f64 {
        self as f64
    }
    /// Range reduction to |r| <= ln(2)/2, the Taylor polynomial of degree 7, and the power of two put into the
    /// exponent bits.
    #[inline(always)]
    fn exp(self) -> Self {
        // 1.5 * 2^23 + 127: adding it rounds to an integer, held in the low bits with the exponent's bias on top.
        const TO_EXPONENT: f32 = 12_583_039.0;
        let x = self.clamp(-87.3, 88.7);
        let shifted = x.mul_add(std::f32::consts::LOG2_E, TO_EXPONENT);
        let n = shifted - TO_EXPONENT;
        let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x)); // ln 2 in two parts
        let mut p = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = r.mul_add(p, c);
        }
        p * f32::from_bits(shifted.to_bits() << 23)
    }
    #[inline(always)]
    fn times_plus(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
    /// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let gaussian = (-0.5 * self * self).exp();
        let t = 1.0 / self.abs().mul_add(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2, 1.0);
        let mut p = 1.061_405_4;
        for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
            p = t.mul_add(p, c);
        }
        let tail = 0.5 * p * t * gaussian; // Phi(-|x|)
        (if self < 0.0 { tail } else { 1.0 - tail }, gaussian * 0.398_942_3)
    }
}

impl Real for f64 {
    const ONE: Self = 1.0;
    type Vector<S: Simd> = S::f64s;
    #[inline(always)]
    fn vector_sum<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.add_f64s(a, b)
    }
    #[inline(always)]
    fn vector_difference<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.sub_f64s(a, b)
    }
    #[inline(always)]
    fn vector_product<S: Simd>(simd: S, a: S::f64s, b: S::f64s) -> S::f64s {
        simd.mul_f64s(a, b)
    }
    #[inline(always)]
    fn vector_of<S: Simd>(simd: S, x: f64) -> S::f64s {
        simd.splat_f64s(x)
    }
    fn real(x: f64) -> Self {
        x
    }
    fn as_f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn times_plus(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
    fn normal(self) -> (Self, Self) {
        let phi = (-0.5 * self * self).exp() / (2.0 * std::f64::consts::PI).sqrt();
        (0.5 * libm::erfc(-self * std::f64::consts::FRAC_1_SQRT_2), phi)
    }
}

/// Runs `f` compiled for the widest vector unit of this processor, chosen at run time.
#[inline(always)]
pub(crate) fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

const LANES: usize = 16;

/// The sum of `f(i)` over `0..n`, in sixteen lanes: the order of additions is fixed and vectorises.
#[inline(always)]
pub(crate) fn sum_by<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::default(); LANES];
    let whole = n / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    for i in whole..n {
        lanes[i - whole] += f(i);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of `xs`, which is not empty.
#[inline(always)]
pub(crate) fn maximum<T: Real>(xs: &[T]) -> T {
    let mut lanes = [xs[0]; LANES];
    for chunk in xs.chunks_exact(LANES) {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.largest(*lane);
        }
    }
    for x in xs.chunks_exact(LANES).remainder() {
        lanes[0] = x.largest(lanes[0]);
    }
    lanes.into_iter().reduce(T::largest).unwrap_or_default()
}

/// Elements per parallel piece of an elementwise loop.
const PIECE: usize = 1 << 14;

/// `y[i] = f(x[i])`, on all cores.
pub(crate) fn map<T: Real>(x: &[T], f: impl Fn(T) -> T + Sync) -> Vec<T> {
    let mut y = vec![T::default(); x.len()];
    y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).for_each(|(y, x)| {
        vectorized(
            #[inline(always)]
            || {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = f(*x);
                }
            },
        );
    });
    y
}

/// `z[i] = f(x[i], y[i])`, on all cores.
pub(crate) fn map2<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    let mut z = vec![T::default(); x.len()];
    z.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).zip(y.par_chunks(PIECE)).for_each(|((z, x), y)| {
        vectorized(
            #[inline(always)]
            || {
                for ((z, x), y) in z.iter_mut().zip(x).zip(y) {
                    *z = f(*x, *y);
                }
            },
        );
    });
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_of_f32_is_within_two_ulps() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let exact = (x as f64).exp();
            assert!(((Real::exp(x) as f64 - exact) / exact).abs() < 2.5e-7, "{x}");
        }
        assert_eq!(Real::exp(0f32), 1.0);
    }

    #[test]
    fn normal_distribution_of_f32_matches_f64() {
        for i in -900..900 {
            let x = i as f32 * 0.01;
            let (cdf, pdf) = Real::normal(x);
            let (cdf64, pdf64) = Real::normal(x as f64);
            assert!((cdf as f64 - cdf64).abs() < 3e-7 && (pdf as f64 - pdf64).abs() < 3e-7, "{x}");
        }
    }

    #[test]
    fn lane_reductions_see_every_element() {
        for n in [1, 15, 16, 17, 100] {
            let xs: Vec<f64> = (0..n).map(|i| ((i * 7) % n) as f64 + 0.5).collect();
            assert!((sum_by(n, |i| xs[i]) - xs.iter().sum::<f64>()).abs() < 1e-9);
            assert_eq!(maximum(&xs), n as f64 - 0.5);
        }
    }
}
