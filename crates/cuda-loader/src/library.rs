//! Which libraries there are, what their files are called and where they are looked for.

/// One of NVIDIA's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The driver, installed with the card.
    Driver,
    /// The CUDA runtime.
    Runtime,
    /// cuBLAS: matrix products.
    Blas,
    /// cuBLASLt, which cuBLAS needs.
    BlasLt,
    /// cuRAND: random numbers.
    Random,
    /// NVRTC: compiles kernels while the program runs.
    Compiler,
    /// cuDNN: convolutions.
    Dnn,
    /// The C library's mathematics: there on every Linux.
    #[cfg(test)]
    Mathematics,
    /// A library that no machine has.
    #[cfg(test)]
    Absent,
}

/// A library that is not on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{file}` cannot be loaded")]
pub struct MissingLibrary {
    /// The file's name, such as `libcuda.so.1`.
    pub file: &'static str,
    /// What the system says.
    pub reason: String,
}

impl Library {
    /// The names of the library's file, the newest first: what candle needs of them is the same in both.
    pub const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &["libcuda.so.1"],
            Self::Runtime => &["libcudart.so.13", "libcudart.so.12"],
            Self::Blas => &["libcublas.so.13", "libcublas.so.12"],
            Self::BlasLt => &["libcublasLt.so.13", "libcublasLt.so.12"],
            Self::Random => &["libcurand.so.10"],
            Self::Compiler => &["libnvrtc.so.13", "libnvrtc.so.12"],
            Self::Dnn => &["libcudnn.so.9"],
            #[cfg(test)]
            Self::Mathematics => &["libm.so.6"],
            #[cfg(test)]
            Self::Absent => &["libloralei-absent.so.1", "libloralei-absent.so"],
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod loading {
    use std::error::Error;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;

    use libloading::os::unix::{Library as Handle, RTLD_LAZY, RTLD_LOCAL};

    use super::{Library, MissingLibrary};

    impl Library {
        /// In the order of their declaration.
        pub(crate) const ALL: &[Self] = &[
            Self::Driver,
            Self::Runtime,
            Self::Blas,
            Self::BlasLt,
            Self::Random,
            Self::Compiler,
            Self::Dnn,
            #[cfg(test)]
            Self::Mathematics,
            #[cfg(test)]
            Self::Absent,
        ];

        /// The library, opened once for the whole program and never closed.
        pub(crate) fn handle(self) -> Result<&'static Handle, MissingLibrary> {
            static HANDLES: [OnceLock<Result<Handle, MissingLibrary>>; Library::ALL.len()] =
                [const { OnceLock::new() }; Library::ALL.len()];
            HANDLES[self as usize].get_or_init(|| self.open()).as_ref().map_err(Clone::clone)
        }

        fn open(self) -> Result<Handle, MissingLibrary> {
            // cuBLAS asks for cuBLASLt by name, and finds it in a folder unknown to the system only if it is loaded.
            if self == Self::Blas {
                Self::BlasLt.handle()?;
            }
            let mut reason = None;
            for file in self.files() {
                let toolkit =
                    toolkit_folders().into_iter().map(|folder| folder.join(file)).filter(|path| path.exists());
                for path in std::iter::once(PathBuf::from(file)).chain(toolkit) {
                    match open(&path) {
                        Ok(handle) => return Ok(handle),
                        // libloading's error has the system's own words one level down.
                        Err(error) => reason.get_or_insert(error.source().unwrap_or(&error).to_string()),
                    };
                }
            }
            Err(MissingLibrary { file: self.files()[0], reason: reason.unwrap_or_default() })
        }
    }

    #[allow(
        unsafe_code,
        reason = "opening a library runs its initialisers; these are the ones the program is made for"
    )]
    fn open(path: &Path) -> Result<Handle, libloading::Error> {
        // As cudarc opens them where it is not linked: the libraries find each other on their own.
        unsafe { Handle::open(Some(path), RTLD_LAZY | RTLD_LOCAL) }
    }

    /// Where an installed CUDA toolkit keeps its libraries, for systems whose loader was not told.
    fn toolkit_folders() -> Vec<PathBuf> {
        let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
        named.chain([PathBuf::from("/usr/local/cuda")]).map(|root| root.join("lib64")).collect()
    }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn libraries_stand_at_their_own_places() {
        assert!(Library::ALL.iter().enumerate().all(|(place, library)| *library as usize == place));
    }

    #[test]
    fn a_missing_library_is_told_by_its_first_name() {
        let error = Library::Absent.handle().unwrap_err();
        assert_eq!(error.file, "libloralei-absent.so.1");
        assert_eq!(error.to_string(), "`libloralei-absent.so.1` cannot be loaded");
        assert!(error.reason.contains("No such file"), "{}", error.reason);
    }
}
