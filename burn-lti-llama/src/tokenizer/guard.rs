//! Panics of the `tokenizers` library become errors.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Calls of the library under way, on whatever thread; its batches run on several.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_CALLER: Cell<bool> = const { Cell::new(false) };
}

/// What `call` of the library gives. A file that is damaged in some ways makes the library panic, which is an
/// error like any other to who gave the file, and nothing that should be printed beside it.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let of_library = info
                .location()
                .is_some_and(|place| place.file().contains("tokenizers"));
            let is_expected =
                UNDER_WAY.load(Ordering::Relaxed) > 0 && (of_library || IS_CALLER.with(Cell::get));
            if !is_expected {
                loud(info);
            }
        }));
    });
    UNDER_WAY.fetch_add(1, Ordering::Relaxed);
    IS_CALLER.with(|is_caller| is_caller.set(true));
    // Nothing of the library is used after a call that panicked.
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    IS_CALLER.with(|is_caller| is_caller.set(false));
    UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    result.unwrap_or_else(|payload| {
        let said = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let said = said.or_else(|| payload.downcast_ref::<String>().cloned());
        Err(said
            .unwrap_or_else(|| "the library panicked".to_owned())
            .into())
    })
}
