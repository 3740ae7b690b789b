//! Kernels of convolutions that the factors do not tell.
//!
//! `LyCORIS` flattens a convolution's kernel into the columns of LoHa and LoKr, and takes the shape from the network when it
//! loads them. In a file alone, only the name of the layer tells.

/// How names of 3x3 convolutions of Stable Diffusion end: those of diffusers, and those of the first publication.
const ENDINGS: [&str; 8] =
    ["_conv1", "_conv2", "_conv", "_conv_in", "_conv_out", "_in_layers_2", "_out_layers_3", "_op"];

/// The kernel of `module` by its name, if `columns` = in * kh * kw allows it. A 1x1 convolution is a linear layer.
pub(super) fn kernel_of(module: &str, columns: usize) -> Option<[usize; 2]> {
    let is_convolution = ENDINGS.iter().any(|ending| module.ends_with(ending));
    (is_convolution && columns > 0 && columns.is_multiple_of(9)).then_some([3, 3])
}

/// (out, in) or (out, in, kh, kw), of columns that may hold a kernel.
pub(super) fn weight_shape(out: usize, columns: usize, kernel: Option<[usize; 2]>) -> Vec<usize> {
    match kernel {
        Some([height, width]) => vec![out, columns / (height * width).max(1), height, width],
        None => vec![out, columns],
    }
}

/// Whether two shapes are of one weight: a 1x1 convolution is a linear layer, and a kernel may be flattened into the columns.
pub(crate) fn is_same_weight(a: &[usize], b: &[usize]) -> bool {
    let columns = |shape: &[usize]| shape.iter().skip(1).product::<usize>();
    a == b || (a.first() == b.first() && (a.len() == 2 || b.len() == 2) && columns(a) == columns(b))
}
