//! A transformation in two dimensions, over all channels, in the widest registers of the processor.

use super::points::{Axis, Lanes};
use crate::ops::real::Real;
use pulp::{Arch, Simd, WithSimd};
use std::marker::PhantomData;

/// Channels come in multiples of this: as many f32 as the widest register holds.
pub(super) const CHANNELS: usize = 16;

/// From a grid of FROM x FROM places to one of TO x TO: at each place, where the first channel is; none is zeros on the way
/// in, and dropped on the way out.
pub(super) struct Transform<T, A, const FROM: usize, const TO: usize> {
    pub(super) from: [[Option<*const T>; FROM]; FROM],
    pub(super) to: [[Option<*mut T>; TO]; TO],
    /// A multiple of [`CHANNELS`].
    pub(super) channels: usize,
    /// Added to every result: one number for each channel.
    pub(super) addend: Option<*const T>,
    pub(super) axis: PhantomData<A>,
}

impl<T: Real, A: Axis<FROM, TO>, const FROM: usize, const TO: usize> Transform<T, A, FROM, TO> {
    /// Runs it.
    ///
    /// # Safety
    /// At every place and at the addend, `channels` numbers may be read or written, and nobody else writes them.
    #[allow(unsafe_code)]
    pub(super) unsafe fn run(self) {
        assert!(self.channels.is_multiple_of(CHANNELS), "{} channels", self.channels);
        Arch::new().dispatch(self);
    }
}

impl<T: Real, A: Axis<FROM, TO>, const FROM: usize, const TO: usize> WithSimd for Transform<T, A, FROM, TO> {
    type Output = ();

    /// Plain loops, because closures of the library's are not inlined into vector code.
    #[inline(always)]
    #[allow(unsafe_code, clippy::needless_range_loop)]
    fn with_simd<S: Simd>(self, simd: S) {
        for at in (0..self.channels).step_by(Lanes::<T, S>::COUNT) {
            // SAFETY: `run`, which alone makes this, asks for it.
            unsafe {
                let addend = self.addend.map_or(Lanes::zeros(simd), |addend| Lanes::load(simd, addend.add(at)));
                let mut grid = [[Lanes::zeros(simd); FROM]; FROM];
                for i in 0..FROM {
                    for j in 0..FROM {
                        if let Some(from) = self.from[i][j] {
                            grid[i][j] = Lanes::load(simd, from.add(at));
                        }
                    }
                }
                // Along the rows, then along the columns.
                let mut half = [[Lanes::zeros(simd); TO]; FROM];
                for i in 0..FROM {
                    half[i] = A::apply(grid[i]);
                }
                for j in 0..TO {
                    let mut column = [Lanes::zeros(simd); FROM];
                    for i in 0..FROM {
                        column[i] = half[i][j];
                    }
                    let column = A::apply(column);
                    for i in 0..TO {
                        if let Some(to) = self.to[i][j] {
                            (column[i] + addend).store(to.add(at));
                        }
                    }
                }
            }
        }
    }
}
