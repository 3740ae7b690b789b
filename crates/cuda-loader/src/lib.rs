//! NVIDIA's CUDA libraries loaded at their first call instead of when the program starts.
//!
//! candle links the driver (`libcuda.so.1`), cuBLAS and the rest by name, and a program so linked does not start at all
//! on a machine without an NVIDIA driver. Linked together with this crate it does: every CUDA function that candle calls
//! is defined here as a few instructions that look the real one up and go on to it. Where the library is missing, the
//! function returns its library's own error code.
//!
//! Only Linux on x86-64 needs and has this; elsewhere [`load`] does nothing and the libraries are linked as usual.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(unsafe_code, reason = "machine code, for functions of the C ABI")]
mod functions;
mod library;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[allow(unsafe_code, reason = "machine code, for functions of the C ABI")]
mod trampoline;

pub use library::{Library, MissingLibrary};

/// Loads a library, which its functions would otherwise do when first called.
///
/// # Errors
/// The library, or one that it needs, is not on this machine.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub fn load(library: Library) -> Result<(), MissingLibrary> {
    functions::keep();
    library.handle().map(|_| ())
}

/// Loads a library, which its functions would otherwise do when first called.
///
/// # Errors
/// None on this system, where the libraries are linked.
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub fn load(_: Library) -> Result<(), MissingLibrary> {
    Ok(())
}
