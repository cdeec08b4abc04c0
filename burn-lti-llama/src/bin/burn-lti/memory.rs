//! How memory for tensors is had from the system.
//!
//! Tensors come and go by the megabyte, hundreds a step. By default glibc maps each anew and hands it back
//! to the kernel at once, which costs a page fault for every 4 KiB: a fifth of a small model's step. So
//! it is told to keep them. What is larger than it ever keeps lies on huge pages: a fault for 2 MiB.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::env;

    /// The most that glibc keeps; larger tensors are mapped.
    const LARGEST_KEPT: usize = 32 << 20;
    /// x86-64's, and that of 64-bit Arm with pages of 4 KiB. With other sizes the advice is of no use,
    /// and does no harm.
    const HUGE_PAGE: usize = 2 << 20;
    /// Has libtorch advise the kernel as [`HugePages`] does.
    const OF_LIBTORCH: &str = "THP_MEM_ALLOC_ENABLE";

    #[global_allocator]
    static ALLOCATOR: HugePages = HugePages;

    /// The system's allocator, that asks for huge pages for what is mapped.
    struct HugePages;

    // SAFETY: every call goes to the system's allocator, and what it returns is passed on.
    unsafe impl GlobalAlloc for HugePages {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise.
            advise(unsafe { System.alloc(layout) }, layout.size())
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's promise.
            advise(unsafe { System.alloc_zeroed(layout) }, layout.size())
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: the caller's promise.
            advise(unsafe { System.realloc(block, layout, size) }, size)
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(block, layout) };
        }
    }

    /// Asks for huge pages below a large block, where it holds whole ones. Returns the block.
    #[inline]
    fn advise(block: *mut u8, size: usize) -> *mut u8 {
        if size < LARGEST_KEPT || block.is_null() {
            return block;
        }
        let to_first = block.addr().next_multiple_of(HUGE_PAGE) - block.addr();
        let length = (size - to_first) / HUGE_PAGE * HUGE_PAGE;
        // SAFETY: the range lies in the block, which is larger than a page. The advice changes no
        // contents; where the kernel does not take it, nothing changes.
        unsafe { libc::madvise(block.add(to_first).cast(), length, libc::MADV_HUGEPAGE) };
        block
    }

    /// Sets glibc and libtorch up. Nothing else may run yet.
    pub(crate) fn set_up() {
        let largest = libc::c_int::try_from(LARGEST_KEPT).unwrap_or(libc::c_int::MAX);
        let settings = [
            (libc::M_MMAP_THRESHOLD, largest),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_ARENA_MAX, 1),
        ];
        for (setting, value) in settings {
            // SAFETY: `mallopt` takes two integers and is called before any other thread exists. If
            // it refuses a value, it changes nothing.
            unsafe { libc::mallopt(setting, value) };
        }
        if env::var_os(OF_LIBTORCH).is_none() {
            // SAFETY: no other thread exists yet.
            unsafe { env::set_var(OF_LIBTORCH, "1") };
        }
    }
}

/// Has tensors kept by the allocator, and large ones lie on huge pages. Call it first in `main`.
pub(crate) fn set_up() {
    // Other allocators are left as they are.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set_up();
}
