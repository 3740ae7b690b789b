//! Which vector instructions a product uses, found at run time.

/// What the processor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Instructions {
    /// AVX-512 F, BW and BF16, beside everything below.
    Avx512Bf16,
    /// AVX-512 F, beside everything below.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Whatever the compiler makes of plain loops.
    #[default]
    Portable,
}

impl Instructions {
    /// The widest of this processor.
    pub(crate) fn of_this_processor() -> Self {
        Self::all().next().unwrap_or(Self::Portable)
    }

    /// All that this processor has, widest first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Portable].into_iter().filter(|kind| kind.is_here())
    }

    /// Whether there are kernels for products of bf16.
    pub(crate) fn multiply_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }

    fn is_here(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Avx512Bf16 => {
                is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw") && Self::Avx512.is_here()
            }
            Self::Avx512 => is_x86_feature_detected!("avx512f") && Self::Avx2.is_here(),
            Self::Avx2 => has_avx2(),
            Self::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Self::Portable)
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}
