//! Panics of the `tokenizers` library become errors.

use burn_lti::files;

/// What `call` of the library gives.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    files::guarded(call).unwrap_or_else(|said| Err(said.into()))
}
