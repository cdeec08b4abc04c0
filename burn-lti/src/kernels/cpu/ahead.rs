//! Memory that is fetched before it is read.

/// Has these numbers come to the second cache meanwhile, where the processor can be asked to.
#[inline(always)]
pub(crate) fn fetch<T>(numbers: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

        const LINE: usize = 64;
        for line in numbers.chunks((LINE / size_of::<T>()).max(1)) {
            // SAFETY: it reads nothing, and every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}
