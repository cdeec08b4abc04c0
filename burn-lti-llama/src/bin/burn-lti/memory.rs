//! How the system's allocator treats tensors.

/// Lets the allocator keep what tensors give back.
///
/// Tensors come and go by the megabyte, hundreds a step. By default glibc maps each anew and hands it
/// back to the kernel at once, which costs a page fault for every 4 KiB: a fifth of a small model's
/// step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_freed() {
    // The most that glibc accepts; larger tensors are still mapped.
    const LARGEST_KEPT: libc::c_int = 32 << 20;
    let settings = [
        (libc::M_MMAP_THRESHOLD, LARGEST_KEPT),
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        (libc::M_ARENA_MAX, 1),
    ];
    for (setting, value) in settings {
        // SAFETY: `mallopt` takes two integers and is called before any other thread exists. If it
        // refuses a value, it changes nothing.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_freed() {}
