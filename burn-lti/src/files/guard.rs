//! Panics of libraries that read files become errors.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Guarded calls under way, on whatever thread.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// A library whose batches run on threads that are not the caller's.
const ON_OTHER_THREADS: &str = "tokenizers";

thread_local! {
    static IS_CALLER: Cell<bool> = const { Cell::new(false) };
}

/// What `call` of a library gives, or what the library said as it panicked. A file that is damaged in some ways
/// makes a library panic, which is an error like any other to who gave the file, and nothing that should be
/// printed beside it.
///
/// Nothing that `call` has changed may be used after an error.
///
/// # Errors
///
/// The words of the panic.
pub fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_elsewhere = info
                .location()
                .is_some_and(|place| place.file().contains(ON_OTHER_THREADS));
            let is_expected = UNDER_WAY.load(Ordering::Relaxed) > 0
                && (is_elsewhere || IS_CALLER.with(Cell::get));
            if !is_expected {
                loud(info);
            }
        }));
    });
    UNDER_WAY.fetch_add(1, Ordering::Relaxed);
    let was_caller = IS_CALLER.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    IS_CALLER.set(was_caller);
    UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    result.map_err(|payload| {
        let said = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        let said = said.or_else(|| payload.downcast_ref::<String>().cloned());
        said.unwrap_or_else(|| "the library panicked".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn a_panic_is_what_it_said() {
        assert_eq!(guarded(|| 3), Ok(3));
        let said = guarded::<()>(|| panic!("no {}", "vocabulary"));
        assert_eq!(said, Err("no vocabulary".to_owned()));
        let inner = guarded(|| guarded::<()>(|| panic!("inner")));
        assert_eq!(inner, Ok(Err("inner".to_owned())));
        let other = guarded::<()>(|| std::panic::panic_any(3));
        assert_eq!(other, Err("the library panicked".to_owned()));
    }
}
