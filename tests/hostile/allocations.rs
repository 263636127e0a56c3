//! Counts what is allocated: of one thread for decoders that run on it, of the whole process for servers.
//!
//! Counted are bytes asked for, touched or not, in Rust; what zstd's C code takes for its tables (a bounded workspace) is not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, Ordering};

/// The system's allocator, with a count.
pub struct Counting;

thread_local! {
    /// Bytes that this thread holds beyond what it gave back, and the most of it since the last look.
    static HERE: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

static EVERYWHERE: AtomicI64 = AtomicI64::new(0);
static EVERYWHERE_MOST: AtomicI64 = AtomicI64::new(0);

fn count(bytes: i64) {
    // A thread that is ending has nothing to count any more.
    let _ = HERE.try_with(|here| {
        let (now, most) = here.get();
        let now = now + bytes;
        here.set((now, most.max(now)));
    });
    let now = EVERYWHERE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    if bytes > 0 {
        EVERYWHERE_MOST.fetch_max(now, Ordering::Relaxed);
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[allow(unsafe_code, reason = "an allocator cannot be written without; every call is handed on unchanged")]
// SAFETY: every method hands its arguments to the system's allocator unchanged, and counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both are there at the same time while the bytes move.
        count(signed(new_size));
        // SAFETY: as the caller promised.
        let moved = unsafe { System.realloc(pointer, layout, new_size) };
        count(-signed(layout.size()));
        moved
    }
}

/// Whose allocations count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of the thread that runs the body.
    Thread,
    /// Those of all threads; nothing else may run meanwhile.
    Process,
}

/// Runs `work` and returns how many bytes more than before were held at the worst moment.
pub fn most_during<T>(scope: Scope, work: impl FnOnce() -> T) -> (T, u64) {
    let before = match scope {
        Scope::Thread => HERE.with(|here| {
            let (now, _) = here.get();
            here.set((now, now));
            now
        }),
        Scope::Process => {
            let now = EVERYWHERE.load(Ordering::Relaxed);
            EVERYWHERE_MOST.store(now, Ordering::Relaxed);
            now
        }
    };
    let done = work();
    let most = match scope {
        Scope::Thread => HERE.with(|here| here.get().1),
        Scope::Process => EVERYWHERE_MOST.load(Ordering::Relaxed),
    };
    (done, u64::try_from(most - before).unwrap_or(0))
}
