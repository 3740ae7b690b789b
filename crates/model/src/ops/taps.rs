//! Which pixel each tap of a kernel reads, and which pixels read a given one: what makes a convolution a sum of products.

use super::product::PADDING;

/// Sizes of one convolution over channels-last maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    pub(crate) batch: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Rows and columns of zeros before the first pixel.
    pub(crate) pad: usize,
    pub(crate) out_height: usize,
    pub(crate) out_width: usize,
}

impl Taps {
    /// Taps of the kernel.
    pub(crate) fn count(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Pixels of the input, over the batch.
    pub(crate) fn input_pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// Pixels of the output, over the batch.
    pub(crate) fn output_pixels(&self) -> usize {
        self.batch * self.out_height * self.out_width
    }

    /// For each output pixel, where the input pixel starts that `tap` reads.
    pub(crate) fn read_by(&self, tap: usize) -> Vec<u32> {
        let (ky, kx) = (tap / self.kernel, tap % self.kernel);
        let source = |o: usize, k: usize, size| (o * self.stride + k).checked_sub(self.pad).filter(|i| *i < size);
        pixels(self.batch, self.out_height, self.out_width)
            .map(|(b, y, x)| match (source(y, ky, self.height), source(x, kx, self.width)) {
                (Some(y), Some(x)) => (((b * self.height + y) * self.width + x) * self.channels) as u32,
                _ => PADDING,
            })
            .collect()
    }

    /// The input pixels in an order in which pixels that the same taps read stand together: with stride 2, the even
    /// columns of the even rows, and so on.
    pub(crate) fn inputs_by_taps(&self) -> Vec<(usize, usize, usize)> {
        let mut inputs: Vec<_> = pixels(self.batch, self.height, self.width).collect();
        inputs.sort_by_key(|(_, y, x)| ((y + self.pad) % self.stride, (x + self.pad) % self.stride));
        inputs
    }

    /// Where each of `inputs` starts.
    pub(crate) fn starts(&self, inputs: &[(usize, usize, usize)]) -> Vec<u32> {
        inputs.iter().map(|(b, y, x)| (((b * self.height + y) * self.width + x) * self.channels) as u32).collect()
    }

    /// For each of `inputs`, where the output pixel of `num_out` channels starts whose `tap` reads it.
    pub(crate) fn readers(&self, inputs: &[(usize, usize, usize)], tap: usize, num_out: usize) -> Vec<u32> {
        let (ky, kx) = (tap / self.kernel, tap % self.kernel);
        let target = |i: usize, k: usize, size| {
            let o = (i + self.pad).checked_sub(k).filter(|o| o % self.stride == 0)? / self.stride;
            (o < size).then_some(o)
        };
        let of = |&(b, y, x): &(usize, usize, usize)| {
            let (y, x) = (target(y, ky, self.out_height)?, target(x, kx, self.out_width)?);
            Some((((b * self.out_height + y) * self.out_width + x) * num_out) as u32)
        };
        inputs.iter().map(|input| of(input).unwrap_or(PADDING)).collect()
    }
}

fn pixels(batch: usize, height: usize, width: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..batch).flat_map(move |b| (0..height).flat_map(move |y| (0..width).map(move |x| (b, y, x))))
}
