//! The threads that a loop over a CPU's memory runs on.

use std::any::Any;

use rayon::prelude::*;

/// Elements that a thread takes at a time: three tensors' worth is in its second cache.
pub(crate) const PIECE: usize = 1 << 13;

/// Elements that a thread takes at a time where they come in rows of `width`.
pub(crate) fn whole_rows(width: usize) -> usize {
    (PIECE / width.max(1)).max(1) * width.max(1)
}

/// Those that the other operations of a device run on. Threads of another kind would share the cores with
/// them: OpenMP's spin until their next loop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ThreadPool {
    Rayon,
    /// libtorch's.
    #[cfg(all(feature = "tch", target_os = "linux"))]
    OpenMp(openmp::Parallel),
}

impl ThreadPool {
    pub(crate) fn of(device: &dyn Any) -> Self {
        #[cfg(all(feature = "tch", target_os = "linux"))]
        if device.is::<burn::backend::libtorch::LibTorchDevice>()
            && let Some(parallel) = openmp::Parallel::loaded()
        {
            return Self::OpenMp(parallel);
        }
        let _ = device; // a build may have no libtorch
        Self::Rayon
    }

    /// How many threads there are.
    pub(crate) fn threads(self) -> usize {
        match self {
            Self::Rayon => rayon::current_num_threads(),
            #[cfg(all(feature = "tch", target_os = "linux"))]
            Self::OpenMp(parallel) => parallel.threads(),
        }
    }

    /// Does `work` on each item, with a state that is used again for the next item of the same thread.
    pub(crate) fn for_each<T: Send, S>(
        self,
        items: Vec<T>,
        state: impl Fn() -> S + Send + Sync,
        work: impl Fn(&mut S, T) + Send + Sync,
    ) {
        match self {
            Self::Rayon => items.into_par_iter().for_each_init(state, work),
            #[cfg(all(feature = "tch", target_os = "linux"))]
            Self::OpenMp(parallel) => parallel.for_each(items, state, work),
        }
    }
}

#[cfg(all(feature = "tch", target_os = "linux"))]
mod openmp {
    use std::ffi::{c_int, c_uint, c_void};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::{LazyLock, Mutex, PoisonError};

    use libloading::os::unix::{Library, RTLD_LAZY};

    /// Do not load what is not there (`dlfcn.h` of Linux).
    const RTLD_NOLOAD: i32 = 4;

    /// `GOMP_parallel(function, data, num_threads, flags)` of GCC's OpenMP, which LLVM's and Intel's have too:
    /// what the compiler makes of a parallel region. Each thread of the team calls the function. With 0 threads
    /// the team is as large as libtorch has set it for the thread that asks.
    type GompParallel =
        unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

    /// `omp_get_max_threads()`: the threads of the next team.
    type MaxThreads = unsafe extern "C" fn() -> c_int;

    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Parallel {
        parallel: GompParallel,
        max_threads: MaxThreads,
    }

    impl Parallel {
        /// That of libtorch. None where it was built without.
        pub(super) fn loaded() -> Option<Self> {
            static LOADED: LazyLock<Option<Parallel>> = LazyLock::new(|| {
                // The symbol that libtorch itself uses: a process may have more than one OpenMP.
                // SAFETY: the library is there already, so that nothing of it is run by opening it.
                let libtorch =
                    unsafe { Library::open(Some("libtorch_cpu.so"), RTLD_NOLOAD | RTLD_LAZY) };
                let libtorch = libtorch.ok()?;
                // SAFETY: the symbol's type is the one that GCC has documented since 4.9, and the library is
                // never unloaded, since this program is linked to it.
                let parallel = unsafe { libtorch.get::<GompParallel>("GOMP_parallel") };
                // SAFETY: as above, and the type is that of OpenMP's own documents.
                let max_threads = unsafe { libtorch.get::<MaxThreads>("omp_get_max_threads") };
                Some(Parallel {
                    parallel: *parallel.ok()?,
                    max_threads: *max_threads.ok()?,
                })
            });
            *LOADED
        }

        pub(super) fn threads(self) -> usize {
            // SAFETY: it may be called at any time.
            let threads = unsafe { (self.max_threads)() };
            usize::try_from(threads).unwrap_or(1).max(1)
        }

        pub(super) fn for_each<T: Send, S>(
            self,
            items: Vec<T>,
            state: impl Fn() -> S + Sync,
            work: impl Fn(&mut S, T) + Sync,
        ) {
            let items = Mutex::new(items.into_iter());
            let panicked = Mutex::new(None);
            self.on_all(&|| {
                let shared = catch_unwind(AssertUnwindSafe(|| {
                    let mut state = state();
                    loop {
                        let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
                        match item {
                            Some(item) => work(&mut state, item),
                            None => break,
                        }
                    }
                }));
                if let Err(panic) = shared {
                    *panicked.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            });
            let panicked = panicked.into_inner();
            if let Some(panic) = panicked.unwrap_or_else(PoisonError::into_inner) {
                resume_unwind(panic);
            }
        }

        /// `work` must not panic.
        fn on_all<F: Fn() + Sync>(self, work: &F) {
            unsafe extern "C" fn enter<F: Fn()>(work: *mut c_void) {
                // SAFETY: it is the reference that `on_all` has.
                unsafe { (*work.cast::<F>().cast_const())() }
            }
            // SAFETY: all threads are back from `enter` when the function returns, so that what `work`
            // borrows is still there, and it may be called by several of them.
            unsafe { (self.parallel)(enter::<F>, std::ptr::from_ref(work).cast_mut().cast(), 0, 0) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::ThreadPool;

    fn pools() -> Vec<ThreadPool> {
        vec![
            ThreadPool::Rayon,
            #[cfg(all(feature = "tch", target_os = "linux"))]
            ThreadPool::of(&burn::backend::libtorch::LibTorchDevice::Cpu),
        ]
    }

    #[cfg(all(feature = "tch", target_os = "linux"))]
    #[test]
    fn libtorch_has_a_pool_of_its_own() {
        assert!(matches!(pools()[1], ThreadPool::OpenMp(_)));
    }

    #[test]
    fn a_pool_has_a_thread() {
        for pool in pools() {
            assert!((1..=1024).contains(&pool.threads()), "{pool:?}");
        }
    }

    #[test]
    fn each_item_is_done_once() {
        for pool in pools() {
            let mut numbers = vec![0; 1000];
            let items = numbers.iter_mut().enumerate().collect();
            pool.for_each(items, || 1, |one, (index, number)| *number += index + *one);
            assert!(
                numbers
                    .iter()
                    .enumerate()
                    .all(|(index, number)| *number == index + 1)
            );
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for pool in pools() {
            let work = |_: &mut (), item: usize| assert_ne!(item, 7, "seven");
            let shared = || pool.for_each((0..10).collect(), || (), work);
            let panic = catch_unwind(AssertUnwindSafe(shared)).expect_err("it panicked");
            let message = panic.downcast_ref::<String>().expect("a message");
            assert!(message.contains("seven"), "{message}");
        }
    }
}
