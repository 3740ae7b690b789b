//! The functions' machine code, and the lookup behind their first call.

use std::ffi::{CStr, c_char};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::library::Library;

/// What the code of a function jumps through, laid out by the assembler macro below.
#[repr(C)]
pub(crate) struct Slot {
    /// Where the function's jump goes: to the lookup at first, then to the library's function.
    target: AtomicPtr<u8>,
    /// The function's name in its library.
    name: *const c_char,
    /// The library's place in [`Library::ALL`].
    library: usize,
}

/// Defines functions that pass their call on to a library's function of the same name, or of the name after `as`.
///
/// The first call goes by way of the lookup, its slot in a register that holds no argument.
macro_rules! define_functions {
    ($($library:ident: [$($function:ident $(as $name:ident)?),* $(,)?])*) => {
        std::arch::global_asm!(
            ".macro loralei_cuda_function library, symbol, name",
            ".section .rodata.loralei_cuda, \"a\", @progbits",
            ".Lloralei_name\\@:",
            ".ifb \\name",
            ".asciz \"\\symbol\"",
            ".else",
            ".asciz \"\\name\"",
            ".endif",
            ".section .data.loralei_cuda, \"aw\", @progbits",
            ".p2align 3",
            ".Lloralei_slot\\@:",
            ".quad .Lloralei_first\\@, .Lloralei_name\\@, \\library",
            ".text",
            ".p2align 4",
            ".globl \\symbol",
            ".hidden \\symbol", // the libraries must go on to find each other's functions, not these
            ".type \\symbol, @function",
            "\\symbol:",
            "jmp qword ptr [rip + .Lloralei_slot\\@]",
            ".Lloralei_first\\@:",
            "lea r11, [rip + .Lloralei_slot\\@]",
            "jmp {first_call}",
            ".size \\symbol, . - \\symbol",
            ".endm",
            $($(concat!(
                "loralei_cuda_function {", stringify!($library), "}, ", stringify!($function) $(, ", ", stringify!($name))?
            ),)*)*
            ".purgem loralei_cuda_function",
            ".text",
            first_call = sym $crate::trampoline::first_call,
            $($library = const $crate::library::Library::$library as usize,)*
        );
    };
}
pub(crate) use define_functions;

/// Looks up the function whose slot is in `r11` and goes on to it, all registers and the stack as the caller left them.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn first_call() {
    std::arch::naked_asm!(
        "push rax", // how many vector registers hold arguments, where their number varies
        "push rdi",
        "push rsi",
        "push rdx",
        "push rcx",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "sub rsp, 128", // ten words and this since the caller's call: a multiple of 16, as calls need
        "movups [rsp], xmm0",
        "movups [rsp + 16], xmm1",
        "movups [rsp + 32], xmm2",
        "movups [rsp + 48], xmm3",
        "movups [rsp + 64], xmm4",
        "movups [rsp + 80], xmm5",
        "movups [rsp + 96], xmm6",
        "movups [rsp + 112], xmm7",
        "mov rdi, r11",
        "call {look_up}",
        "mov [rsp + 128], rax", // popped into r11 below
        "movups xmm0, [rsp]",
        "movups xmm1, [rsp + 16]",
        "movups xmm2, [rsp + 32]",
        "movups xmm3, [rsp + 48]",
        "movups xmm4, [rsp + 64]",
        "movups xmm5, [rsp + 80]",
        "movups xmm6, [rsp + 96]",
        "movups xmm7, [rsp + 112]",
        "add rsp, 128",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rcx",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "pop rax",
        "jmp r11",
        look_up = sym look_up,
    )
}

/// Where a slot's calls go from now on.
extern "C" fn look_up(slot: &'static Slot) -> *mut u8 {
    let library = Library::ALL[slot.library];
    // The name is a string of the program, written beside the slot.
    let name = unsafe { CStr::from_ptr(slot.name) };
    let found = library.handle().ok().and_then(|handle| {
        // Only the address is taken here; its type is what candle declares.
        unsafe { handle.get::<*mut u8>(name.to_bytes_with_nul()) }.ok().map(|symbol| symbol.as_raw_ptr().cast())
    });
    let target = found.unwrap_or(failure(library));
    slot.target.store(target, Ordering::Release);
    target
}

/// A function of any arguments that fails as the library's own do.
fn failure(library: Library) -> *mut u8 {
    extern "C" fn fail<const STATUS: i32>() -> i32 {
        STATUS
    }
    let fail: extern "C" fn() -> i32 = match library {
        Library::Driver | Library::Runtime => fail::<34>, // CUDA_ERROR_STUB_LIBRARY, cudaErrorStubLibrary
        Library::Blas | Library::BlasLt => fail::<1>,     // CUBLAS_STATUS_NOT_INITIALIZED
        Library::Random => fail::<101>,                   // CURAND_STATUS_NOT_INITIALIZED
        Library::Compiler => fail::<11>,                  // NVRTC_ERROR_INTERNAL_ERROR
        Library::Dnn => fail::<1001>,                     // CUDNN_STATUS_NOT_INITIALIZED
        #[cfg(test)]
        Library::Mathematics | Library::Absent => fail::<34>,
    };
    fail as *mut u8
}

#[cfg(test)]
mod tests {
    // Functions of a library that every Linux has, under names of their own, and two of a library that none has.
    define_functions! {
        Mathematics: [loralei_test_fma as fma, loralei_test_ldexp as ldexp, loralei_test_absent as no_such_function]
        Absent: [loralei_test_init as init]
    }

    unsafe extern "C" {
        fn loralei_test_fma(x: f64, y: f64, z: f64) -> f64;
        fn loralei_test_ldexp(x: f64, exponent: i32) -> f64;
        fn loralei_test_absent() -> i32;
        fn loralei_test_init(flags: u32) -> i32;
    }

    #[test]
    fn the_first_call_and_later_ones_reach_the_library_with_their_arguments() {
        for _ in 0..2 {
            assert_eq!(unsafe { loralei_test_fma(2.0, 3.0, 0.5) }, 6.5);
            assert_eq!(unsafe { loralei_test_ldexp(0.75, 4) }, 12.0);
        }
    }

    #[test]
    fn what_is_missing_returns_an_error() {
        for _ in 0..2 {
            assert_eq!(unsafe { loralei_test_absent() }, 34);
            assert_eq!(unsafe { loralei_test_init(0) }, 34);
        }
    }
}
