//! How memory for tensors is had from the system.
//!
//! Tensors come and go by the megabyte, hundreds a step. By default glibc maps each anew and hands it back
//! to the kernel at once, which costs a page fault for every 4 KiB: a fifth of a small model's step. So
//! it is told to keep them, and the kernel to lay them on huge pages: a fault for 2 MiB, and as many
//! addresses that a processor remembers at once. A model that writes reads each weight for every token, a
//! fifth faster so.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::env;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// The most that glibc keeps; larger tensors are mapped.
    const LARGEST_KEPT: usize = 32 << 20;
    /// How many of those are kept here, and how large they are together at most: a step's logits, and gradients of a
    /// table of embeddings.
    const MAPPED_KEPT: usize = 6;
    const MAPPED_KEPT_BYTES: usize = 256 << 20;
    /// By which the heap grows, so that it seldom does.
    const GROWTH: usize = 64 << 20;
    /// x86-64's, and that of 64-bit Arm with pages of 4 KiB. With other sizes the advice is of no use,
    /// and does no harm.
    const HUGE_PAGE: usize = 2 << 20;
    /// Has libtorch advise the kernel as [`HugePages`] does.
    const OF_LIBTORCH: &str = "THP_MEM_ALLOC_ENABLE";

    #[global_allocator]
    static ALLOCATOR: HugePages = HugePages;

    /// Mapped blocks that nobody has, the latest first.
    static MAPPED: Mutex<[Mapped; MAPPED_KEPT]> =
        Mutex::new([Mapped { block: 0, size: 0 }; MAPPED_KEPT]);

    /// A block of glibc's that is mapped for itself, and how much it has room for; none has no size.
    #[derive(Clone, Copy)]
    struct Mapped {
        block: usize,
        size: usize,
    }

    /// Where the heap ended when huge pages were last asked for.
    static ADVISED: AtomicUsize = AtomicUsize::new(0);

    /// The system's allocator, that asks for huge pages below the heap and below what is mapped.
    struct HugePages;

    // SAFETY: every call goes to the system's allocator, and what it returns is passed on.
    unsafe impl GlobalAlloc for HugePages {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            if let Some(block) = taken(layout) {
                return block;
            }
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
            if layout.size() < LARGEST_KEPT {
                // SAFETY: the caller's promise.
                return unsafe { System.dealloc(block, layout) };
            }
            for block in left_over(block) {
                // SAFETY: the caller's promise, or that of whoever gave it back before.
                unsafe { libc::free(block.cast()) };
            }
        }
    }

    /// A mapped block that is large enough, and not much larger.
    fn taken(layout: Layout) -> Option<*mut u8> {
        let size = layout.size();
        if size < LARGEST_KEPT || layout.align() > align_of::<libc::max_align_t>() {
            return None;
        }
        // Whoever has it is about to be done, but waiting may take longer than to map one.
        let mut mapped = MAPPED.try_lock().ok()?;
        let fits = |it: &Mapped| it.size >= size && it.size <= size + size / 8;
        let at = mapped.iter().position(fits)?;
        let block = mapped[at].block;
        mapped[at..].rotate_left(1);
        mapped[MAPPED_KEPT - 1] = Mapped { block: 0, size: 0 };
        Some(std::ptr::with_exposed_provenance_mut(block))
    }

    /// Keeps a mapped block; what is not kept any more is to be freed.
    fn left_over(block: *mut u8) -> impl Iterator<Item = *mut u8> {
        let mut left = [Mapped { block: 0, size: 0 }; MAPPED_KEPT + 1];
        let new = Mapped {
            block: block.expose_provenance(),
            // SAFETY: it is a block of glibc's that nobody has freed.
            size: unsafe { libc::malloc_usable_size(block.cast()) },
        };
        left[MAPPED_KEPT] = new;
        if let Ok(mut mapped) = MAPPED.try_lock() {
            left[..MAPPED_KEPT].copy_from_slice(&*mapped);
            left.rotate_right(1);
            let mut bytes = 0;
            let mut kept = 0;
            // The latest, as many as there is room for.
            while kept < MAPPED_KEPT && bytes + left[kept].size <= MAPPED_KEPT_BYTES {
                bytes += left[kept].size;
                kept += 1;
            }
            mapped.fill(Mapped { block: 0, size: 0 });
            mapped[..kept].copy_from_slice(&left[..kept]);
            left[..kept].fill(Mapped { block: 0, size: 0 });
        }
        left.into_iter()
            .filter(|it| it.size > 0)
            .map(|it| std::ptr::with_exposed_provenance_mut(it.block))
    }

    /// Asks for huge pages: below a block that is mapped for itself, where it holds whole ones, and below the heap where
    /// that has grown for a block. Returns the block.
    #[inline]
    fn advise(block: *mut u8, size: usize) -> *mut u8 {
        let end = block.addr() + size;
        if block.is_null() {
            return block;
        }
        if size >= LARGEST_KEPT {
            let first = block.addr().next_multiple_of(HUGE_PAGE);
            ask(block, first, end / HUGE_PAGE * HUGE_PAGE);
        } else if end > ADVISED.load(Ordering::Relaxed) {
            advise_heap(block, end);
        }
        block
    }

    /// The same for what the heap has grown by. Only what nobody has touched yet becomes huge pages at once.
    #[cold]
    fn advise_heap(block: *mut u8, end: usize) {
        // SAFETY: it says where the heap ends, and changes nothing.
        let heap_end = unsafe { libc::sbrk(0) }.addr();
        // Where the heap cannot grow, glibc maps a block.
        if end > heap_end {
            return;
        }
        let before = match ADVISED.swap(heap_end, Ordering::Relaxed) {
            0 => block.addr(),
            before => before,
        };
        ask(block, before / HUGE_PAGE * HUGE_PAGE, heap_end);
    }

    /// `block` is of the same memory as the range.
    fn ask(block: *mut u8, from: usize, to: usize) {
        let range = block.with_addr(from).cast();
        // SAFETY: the advice changes no contents, whoever's they are. Where the kernel does not take it, nothing changes.
        unsafe { libc::madvise(range, to.saturating_sub(from), libc::MADV_HUGEPAGE) };
    }

    /// Sets glibc and libtorch up. Nothing else may run yet.
    pub(crate) fn set_up() {
        let bytes = |size: usize| libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX);
        let settings = [
            (libc::M_MMAP_THRESHOLD, bytes(LARGEST_KEPT)),
            (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
            (libc::M_TOP_PAD, bytes(GROWTH)),
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
