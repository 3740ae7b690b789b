//! A tensor as a view of a block of elements: PyTorch's offset, shape and strides.

use crate::pickle::TensorRecord;

/// A view that has been checked to lie inside its storage and to have no more elements than that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StridedView {
    /// Of the first element, in elements.
    pub(crate) offset: u64,
    /// From the first element to behind the last one, in elements; 0 without elements.
    pub(crate) span: u64,
    pub(crate) shape: Vec<usize>,
    strides: Vec<u64>,
}

impl StridedView {
    /// `None` for a view that reaches out of its storage, or repeats elements (as `expand` does) so that it would be
    /// larger than the file it is read from.
    pub(crate) fn of(tensor: &TensorRecord) -> Option<Self> {
        let shape: Option<Vec<usize>> = tensor.shape.iter().map(|dim| usize::try_from(*dim).ok()).collect();
        let num_elements = tensor.shape.iter().try_fold(1_u64, |product, dim| product.checked_mul(*dim))?;
        let mut span = 0;
        if num_elements > 0 {
            for (dim, stride) in tensor.shape.iter().zip(&tensor.strides) {
                span = (dim - 1).checked_mul(*stride)?.checked_add(span)?;
            }
            span = span.checked_add(1)?;
        }
        let is_inside = tensor.offset.checked_add(span)? <= tensor.storage.num_elements;
        let view = Self { offset: tensor.offset, span, shape: shape?, strides: tensor.strides.clone() };
        (is_inside && num_elements <= tensor.storage.num_elements).then_some(view)
    }

    /// Whether the elements lie one behind the other in row-major order.
    pub(crate) fn is_contiguous(&self) -> bool {
        if self.span == 0 {
            return true;
        }
        let mut due = 1;
        // The stride of a dimension of size 1 is never used.
        for (dim, stride) in self.shape.iter().zip(&self.strides).rev().filter(|(dim, _)| **dim != 1) {
            if *stride != due {
                return false;
            }
            due *= *dim as u64;
        }
        true
    }

    /// Brings the elements into row-major order. `bytes` are those of the span.
    pub(crate) fn gather(&self, bytes: &[u8], element_bytes: usize) -> Vec<u8> {
        let num_elements: usize = self.shape.iter().product();
        let mut gathered = Vec::with_capacity(num_elements * element_bytes);
        let mut index = vec![0_usize; self.shape.len()];
        for _ in 0..num_elements {
            let position: usize = index.iter().zip(&self.strides).map(|(i, stride)| i * *stride as usize).sum();
            let begin = position * element_bytes;
            gathered.extend(bytes.get(begin..begin + element_bytes).unwrap_or_default());
            for (i, dim) in index.iter_mut().zip(&self.shape).rev() {
                *i += 1;
                if *i < *dim {
                    break;
                }
                *i = 0;
            }
        }
        gathered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::pickle::{StorageRecord, ValueId};

    fn view(num_elements: u64, offset: u64, shape: &[u64], strides: &[u64]) -> Option<StridedView> {
        let storage = StorageRecord { dtype: Dtype::U8, key: ValueId(0), num_elements };
        StridedView::of(&TensorRecord { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() })
    }

    #[test]
    fn a_transposed_view_is_gathered_row_by_row() {
        // torch.arange(12).reshape(2, 3, 2).permute(2, 0, 1).flatten() = 0 2 4 6 8 10 1 3 5 7 9 11
        let view = view(12, 0, &[2, 2, 3], &[1, 6, 2]).unwrap();
        assert!(!view.is_contiguous());
        let elements: Vec<u8> = (0..12_u16).flat_map(u16::to_le_bytes).collect();
        let gathered = view.gather(&elements, 2);
        let expected: Vec<u8> =
            [0_u16, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11].into_iter().flat_map(u16::to_le_bytes).collect();
        assert_eq!(gathered, expected);
    }

    #[test]
    fn views_outside_their_storage_or_larger_than_it_are_refused() {
        assert!(view(6, 0, &[2, 3], &[3, 1]).unwrap().is_contiguous());
        assert!(view(7, 1, &[2, 1, 3], &[3, 99, 1]).is_some_and(|view| view.is_contiguous()));
        assert!(view(6, 6, &[0, 3], &[3, 1]).is_some_and(|view| view.is_contiguous() && view.span == 0));
        assert!(view(6, 0, &[0, 1 << 40, 1 << 40], &[1, 1, 1]).is_some_and(|view| view.is_contiguous()));
        assert!(view(6, 0, &[], &[]).is_some_and(|view| view.is_contiguous() && view.span == 1));
        assert_eq!(view(6, 1, &[2, 3], &[3, 1]), None); // one too far
        assert_eq!(view(6, 0, &[2, 3], &[4, 1]), None); // gaps reach too far
        assert_eq!(view(6, 7, &[0], &[1]), None); // nothing, but from outside
        assert_eq!(view(6, 0, &[7], &[0]), None); // one element seven times
        assert_eq!(view(6, 0, &[u64::MAX, 2], &[0, 0]), None);
        assert_eq!(view(u64::MAX, 1, &[2, 2], &[u64::MAX, 1]), None);
        assert_eq!(view(6, u64::MAX, &[1], &[1]), None);
    }
}
