//! The transformations of Winograd's minimal filtering (Lavin and Gray 2015, arXiv 1509.09308) in one dimension, for a
//! kernel of three taps, on as many channels at a time as a vector register holds; in two dimensions they are applied
//! along both axes.

use crate::ops::real::Real;
use pulp::Simd;
use std::ops::{Add, Mul, Sub};

/// A register: one number of each of some channels.
#[derive(Clone, Copy)]
pub(super) struct Lanes<T: Real, S: Simd> {
    simd: S,
    numbers: T::Vector<S>,
}

impl<T: Real, S: Simd> Lanes<T, S> {
    /// How many channels.
    pub(super) const COUNT: usize = size_of::<T::Vector<S>>() / size_of::<T>();

    #[inline(always)]
    pub(super) fn zeros(simd: S) -> Self {
        Self { simd, numbers: T::vector_of(simd, T::default()) }
    }

    /// # Safety
    /// [`Self::COUNT`] numbers lie at `from`.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) unsafe fn load(simd: S, from: *const T) -> Self {
        // SAFETY: as this function's; a vector is plain numbers.
        Self { simd, numbers: unsafe { from.cast::<T::Vector<S>>().read_unaligned() } }
    }

    /// # Safety
    /// [`Self::COUNT`] numbers may be written at `to`.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub(super) unsafe fn store(self, to: *mut T) {
        // SAFETY: as this function's; a vector is plain numbers.
        unsafe { to.cast::<T::Vector<S>>().write_unaligned(self.numbers) }
    }
}

impl<T: Real, S: Simd> Add for Lanes<T, S> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self { numbers: T::vector_sum(self.simd, self.numbers, other.numbers), ..self }
    }
}

impl<T: Real, S: Simd> Sub for Lanes<T, S> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self { numbers: T::vector_difference(self.simd, self.numbers, other.numbers), ..self }
    }
}

impl<T: Real, S: Simd> Mul<f64> for Lanes<T, S> {
    type Output = Self;
    #[inline(always)]
    fn mul(self, factor: f64) -> Self {
        let factor = T::vector_of(self.simd, T::real(factor));
        Self { numbers: T::vector_product(self.simd, self.numbers, factor), ..self }
    }
}

/// A transformation along one axis.
pub(super) trait Axis<const FROM: usize, const TO: usize> {
    fn apply<T: Real, S: Simd>(x: [Lanes<T, S>; FROM]) -> [Lanes<T, S>; TO];
}

/// F(`OUT`, 3): `OUT` outputs from `SPAN` = `OUT` + 2 inputs with `SPAN` multiplications.
pub(super) trait Points<const OUT: usize, const SPAN: usize> {
    /// G
    type Kernel: Axis<3, SPAN>;
    /// B^T
    type Input: Axis<SPAN, SPAN>;
    /// A^T
    type Output: Axis<SPAN, OUT>;
}

/// F(2, 3): points 0, 1, -1 and infinity.
pub(super) struct Two;

impl Points<2, 4> for Two {
    type Kernel = Self;
    type Input = Self;
    type Output = Self;
}

impl Axis<3, 4> for Two {
    #[inline(always)]
    fn apply<T: Real, S: Simd>([a, b, c]: [Lanes<T, S>; 3]) -> [Lanes<T, S>; 4] {
        let (even, odd) = ((a + c) * 0.5, b * 0.5);
        [a, even + odd, even - odd, c]
    }
}

impl Axis<4, 4> for Two {
    #[inline(always)]
    fn apply<T: Real, S: Simd>([a, b, c, d]: [Lanes<T, S>; 4]) -> [Lanes<T, S>; 4] {
        [a - c, b + c, c - b, b - d]
    }
}

impl Axis<4, 2> for Two {
    #[inline(always)]
    fn apply<T: Real, S: Simd>([a, b, c, d]: [Lanes<T, S>; 4]) -> [Lanes<T, S>; 2] {
        [a + b + c, b - c - d]
    }
}

/// F(4, 3): points 0, 1, -1, 2, -2 and infinity.
pub(super) struct Four;

impl Points<4, 6> for Four {
    type Kernel = Self;
    type Input = Self;
    type Output = Self;
}

impl Axis<3, 6> for Four {
    #[inline(always)]
    fn apply<T: Real, S: Simd>([a, b, c]: [Lanes<T, S>; 3]) -> [Lanes<T, S>; 6] {
        let (even, odd) = ((a + c) * (-1.0 / 6.0), b * (1.0 / 6.0));
        let (even2, odd2) = (a * (1.0 / 24.0) + c * (1.0 / 6.0), b * (1.0 / 12.0));
        [a * 0.25, even - odd, even + odd, even2 + odd2, even2 - odd2, c]
    }
}

impl Axis<6, 6> for Four {
    #[inline(always)]
    fn apply<T: Real, S: Simd>([a, b, c, d, e, f]: [Lanes<T, S>; 6]) -> [Lanes<T, S>; 6] {
        let (even, odd) = (e - c * 4.0, d - b * 4.0);
        let (even2, odd2) = (e - c, (d - b) * 2.0);
        [a * 4.0 - c * 5.0 + e, even + odd, even - odd, even2 + odd2, even2 - odd2, b * 4.0 - d * 5.0 + f]
    }
}

impl Axis<6, 4> for Four {
    #[inline(always)]
    fn apply<T: Real, S: Simd>([a, b, c, d, e, f]: [Lanes<T, S>; 6]) -> [Lanes<T, S>; 4] {
        let (even, odd, even2, odd2) = (b + c, b - c, d + e, d - e);
        [a + even + even2, odd + odd2 * 2.0, even + even2 * 4.0, odd + odd2 * 8.0 + f]
    }
}
