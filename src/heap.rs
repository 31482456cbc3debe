//! The memory of the library: the process's own allocator, and a reserve of our own for the moment when that
//! has nothing left.
//!
//! Rust ends the process when it cannot allocate, and the process is the host's. What is large is therefore asked for
//! by [`reserve`], which may fail, and whose failure ends the part that asked. What is small cannot fail in Rust: it
//! comes out of the reserve then, the library only forwards from there on, and one line says why. What a thread of ours
//! or an observer still needs until it has noticed is a few kilobytes.
//!
//! build.rs has the linker send every call of `malloc` and its kin within the shared library here (`--wrap`): those of
//! std that pass a Rust allocator by, and those of the codecs in C, too. The host's calls, and those of programs that
//! are linked with the rlib, never come here.
//!
//! The reserve is zero pages of the library's own image: address space, and no memory until it is needed.

use std::arch::global_asm;
use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_void};
use std::fmt::Write;
use std::hint;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::{boundary, host};

/// Bytes of the reserve: some of the largest tables that we make in one piece (plans of graphs of thousands of nodes),
/// and all that is small.
const RESERVE: usize = 4 << 20;

/// Everything in the reserve is a multiple of this, and lies at one. Before each piece stands a unit that
/// holds its size.
const UNIT: usize = 64;

/// What `malloc` aligns to.
const MALLOC_ALIGN: usize = 16;

/// When the reserve is used up as well, memory may come back: so often and so long apart it is looked for, before Rust
/// ends the process.
const LAST_LOOKS: u32 = 100;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

static HEAP: Heap<RESERVE> = Heap::new();

thread_local! {
    /// The caller can do without: its failure is no failure of the library.
    static FALLIBLE: Cell<bool> = const { Cell::new(false) };
}

/// Room for `more` elements in `list`. False, and nothing is changed, where there is no memory for it: the
/// caller goes without.
#[must_use]
pub fn reserve<T>(list: &mut Vec<T>, more: usize) -> bool {
    fallibly(|| list.try_reserve_exact(more).is_ok())
}

/// Whether `bytes` can be had in one piece at this moment.
#[must_use]
pub fn has(bytes: usize) -> bool {
    reserve(&mut Vec::<u8>::new(), bytes)
}

/// What `body` asks for by functions that may fail (`try_reserve`) does not come out of the reserve.
pub fn fallibly<T>(body: impl FnOnce() -> T) -> T {
    let before = FALLIBLE.replace(true);
    let result = body();
    FALLIBLE.set(before);
    result
}

struct Heap<const SIZE: usize> {
    /// A thread is in the reserve.
    locked: AtomicBool,
    told: AtomicBool,
    reserve: UnsafeCell<Reserve<SIZE>>,
}

/// Memory that is handed out from its beginning, and what has come back.
#[repr(C, align(4096))]
struct Reserve<const SIZE: usize> {
    bytes: [u8; SIZE],
    used: usize,
    free: *mut Free,
}

/// A piece that has come back, in itself.
struct Free {
    size: usize,
    next: *mut Free,
}

// SAFETY: the reserve is only touched under the lock; what is handed out is the caller's alone.
unsafe impl<const SIZE: usize> Sync for Heap<SIZE> {}

impl<const SIZE: usize> Heap<SIZE> {
    const fn new() -> Self {
        let reserve = Reserve { bytes: [0; SIZE], used: 0, free: ptr::null_mut() };
        Self { locked: AtomicBool::new(false), told: AtomicBool::new(false), reserve: UnsafeCell::new(reserve) }
    }

    fn is_own(&self, p: *mut c_void) -> bool {
        (p as usize).wrapping_sub(self.reserve.get() as usize) < SIZE
    }

    fn with_reserve<T>(&self, body: impl FnOnce(&mut Reserve<SIZE>) -> T) -> T {
        while self.locked.swap(true, Ordering::Acquire) {
            hint::spin_loop();
        }
        // SAFETY: the lock makes this the only reference.
        let result = body(unsafe { &mut *self.reserve.get() });
        self.locked.store(false, Ordering::Release);
        result
    }

    /// The process has no memory for `size` bytes; `again` asks it once more.
    #[cold]
    fn without_memory(&self, size: usize, align: usize, again: impl Fn() -> *mut c_void) -> *mut c_void {
        if FALLIBLE.try_with(Cell::get).unwrap_or(false) {
            return ptr::null_mut();
        }
        if boundary::end_for_want_of_memory() && !self.told.swap(true, Ordering::Relaxed) {
            tell(size);
        }
        let p = self.with_reserve(|r| r.take(size, align));
        if !p.is_null() {
            return p.cast();
        }
        for _ in 0..LAST_LOOKS {
            std::thread::sleep(BETWEEN_LOOKS);
            let p = again();
            if !p.is_null() {
                return p;
            }
        }
        ptr::null_mut()
    }

    /// Bytes that the piece at `p` has.
    ///
    /// # Safety
    /// [`Reserve::take`] has given it, and it has not been put back.
    unsafe fn size_of(p: *mut c_void) -> usize {
        // SAFETY: the unit before a piece holds its size.
        unsafe { p.cast::<u8>().sub(UNIT).cast::<usize>().read() }
    }
}

impl<const SIZE: usize> Reserve<SIZE> {
    /// `size` bytes at a multiple of `align`, behind a unit that says how many they are.
    fn take(&mut self, size: usize, align: usize) -> *mut u8 {
        let Some(size) = size.max(1).checked_next_multiple_of(UNIT).filter(|&s| s < SIZE) else {
            return ptr::null_mut();
        };
        let whole = size + UNIT;
        let fits = |at: usize| (at + UNIT).is_multiple_of(align);
        let mut link = &raw mut self.free;
        loop {
            // SAFETY: `link` is the head or the `next` of a piece that is in the list, and the list is ours
            // under the lock.
            let piece = unsafe { *link };
            if piece.is_null() {
                break;
            }
            // SAFETY: pieces in the list hold a `Free`, written by `put`.
            let Free { size: has, next } = unsafe { piece.read() };
            if has >= whole && fits(piece as usize) {
                // SAFETY: as above.
                unsafe { *link = next };
                if has > whole {
                    // SAFETY: the rest of the piece is free.
                    unsafe { self.put(piece.cast::<u8>().add(whole), has - whole) };
                }
                // SAFETY: the piece is ours, and large enough.
                return unsafe { begin(piece.cast(), size) };
            }
            // SAFETY: the field of a piece in the list.
            link = unsafe { &raw mut (*piece).next };
        }
        let start = self.bytes.as_mut_ptr();
        let first = self.used;
        let Some(at) = (first..SIZE).step_by(UNIT).find(|&at| fits(start as usize + at)) else {
            return ptr::null_mut();
        };
        let Some(end) = at.checked_add(whole).filter(|&end| end <= SIZE) else { return ptr::null_mut() };
        self.used = end;
        if at > first {
            // SAFETY: nothing is handed out between the last piece and this one; both ends are multiples of UNIT.
            unsafe { self.put(start.add(first), at - first) };
        }
        // SAFETY: within the reserve, and free.
        unsafe { begin(start.add(at), size) }
    }

    /// Puts a piece into the list, which is in the order of addresses, and joins it with what is free beside it.
    ///
    /// # Safety
    /// `size` bytes at `p` (multiples of UNIT) are in the reserve, and free.
    unsafe fn put(&mut self, p: *mut u8, size: usize) {
        let (mut before, mut after) = (ptr::null_mut::<Free>(), self.free);
        while !after.is_null() && (after as usize) < p as usize {
            before = after;
            // SAFETY: pieces in the list hold a `Free`.
            after = unsafe { (*after).next };
        }
        let mut piece = Free { size, next: after };
        if !after.is_null() && p as usize + size == after as usize {
            // SAFETY: as above; it is a part of this piece now.
            let joined = unsafe { after.read() };
            piece = Free { size: size + joined.size, next: joined.next };
        }
        // SAFETY: the piece before holds a `Free`; UNIT has room for one at `p`, which is aligned for it, and the
        // caller says that it is free.
        unsafe {
            if before.is_null() {
                p.cast::<Free>().write(piece);
                self.free = p.cast();
            } else if before as usize + (*before).size == p as usize {
                (*before).size += piece.size;
                (*before).next = piece.next;
            } else {
                p.cast::<Free>().write(piece);
                (*before).next = p.cast();
            }
        }
    }

    /// # Safety
    /// [`Self::take`] has given the piece at `p`, and it is put back once.
    unsafe fn put_back(&mut self, p: *mut u8) {
        // SAFETY: the unit before a piece is its own, and holds its size.
        unsafe {
            let whole = p.sub(UNIT);
            self.put(whole, whole.cast::<usize>().read() + UNIT);
        }
    }
}

/// The piece of `size` bytes behind the unit at `whole`.
///
/// # Safety
/// The unit and the bytes are free.
unsafe fn begin(whole: *mut u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        whole.cast::<usize>().write(size);
        whole.add(UNIT)
    }
}

/// One line on stderr, without any memory.
fn tell(bytes: usize) {
    struct Line {
        text: [u8; 200],
        len: usize,
    }
    impl Write for Line {
        fn write_str(&mut self, s: &str) -> std::fmt::Result {
            let room = self.text.get_mut(self.len..self.len + s.len()).ok_or(std::fmt::Error)?;
            room.copy_from_slice(s.as_bytes());
            self.len += s.len();
            Ok(())
        }
    }
    let mut line = Line { text: [0; 200], len: 0 };
    let result = writeln!(
        line,
        "llama-resource: error: the process has no memory left: {bytes} bytes were asked for. Recording has ended; the host goes on"
    );
    if result.is_ok() {
        host::write_stderr(line.text.get(..line.len).unwrap_or_default());
    }
}

// The linker's names for both sides of `--wrap`. Where it was not asked to wrap (programs, tests), the real functions
// have none: weak.
macro_rules! wrap {
    ($($name:literal $wrapped:ident $jump:literal;)*) => {
        $(global_asm!(
            concat!(".globl __wrap_", $name),
            concat!(".hidden __wrap_", $name),
            concat!(".type __wrap_", $name, ", @function"),
            concat!("__wrap_", $name, ":"),
            concat!($jump, " {}"),
            concat!(".weak __real_", $name),
            concat!(".globl lri_real_", $name),
            concat!(".hidden lri_real_", $name),
            concat!(".type lri_real_", $name, ", @function"),
            concat!("lri_real_", $name, ":"),
            concat!($jump, " __real_", $name, if_plt!()),
            sym $wrapped,
        );)*
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! if_plt {
    () => {
        "@PLT"
    };
}
#[cfg(not(target_arch = "x86_64"))]
macro_rules! if_plt {
    () => {
        ""
    };
}

#[cfg(target_arch = "x86_64")]
wrap! {
    "malloc" malloc "jmp";
    "calloc" calloc "jmp";
    "realloc" realloc "jmp";
    "posix_memalign" posix_memalign "jmp";
    "free" free "jmp";
}
#[cfg(target_arch = "aarch64")]
wrap! {
    "malloc" malloc "b";
    "calloc" calloc "b";
    "realloc" realloc "b";
    "posix_memalign" posix_memalign "b";
    "free" free "b";
}

unsafe extern "C" {
    fn lri_real_malloc(size: usize) -> *mut c_void;
    fn lri_real_calloc(n: usize, size: usize) -> *mut c_void;
    fn lri_real_realloc(p: *mut c_void, size: usize) -> *mut c_void;
    fn lri_real_posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int;
    fn lri_real_free(p: *mut c_void);
}

unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    // SAFETY: C's malloc takes any size.
    let real = || unsafe { lri_real_malloc(size) };
    let p = real();
    if p.is_null() { HEAP.without_memory(size, MALLOC_ALIGN, real) } else { p }
}

unsafe extern "C" fn calloc(n: usize, size: usize) -> *mut c_void {
    // SAFETY: C's calloc takes any sizes.
    let real = || unsafe { lri_real_calloc(n, size) };
    let p = real();
    let Some(bytes) = n.checked_mul(size).filter(|_| p.is_null()) else { return p };
    let p = HEAP.without_memory(bytes, MALLOC_ALIGN, real);
    if HEAP.is_own(p) {
        // SAFETY: a piece of the reserve of so many bytes, which may have been in use before.
        unsafe { p.cast::<u8>().write_bytes(0, bytes) };
    }
    p
}

unsafe extern "C" fn realloc(old: *mut c_void, size: usize) -> *mut c_void {
    if old.is_null() {
        // SAFETY: as C has it.
        return unsafe { malloc(size) };
    }
    if HEAP.is_own(old) {
        // SAFETY: a piece of the reserve that its owner gives.
        let had = unsafe { Heap::<RESERVE>::size_of(old) };
        // SAFETY: any size.
        let new = unsafe { malloc(size) };
        if !new.is_null() {
            // SAFETY: two different pieces, each of at least so many bytes; the old one is given back once.
            unsafe {
                ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast(), had.min(size));
                free(old);
            }
        }
        return new;
    }
    // SAFETY: the caller's own piece, which the process's allocator has given.
    let real = || unsafe { lri_real_realloc(old, size) };
    let p = real();
    if !p.is_null() || size == 0 {
        return p;
    }
    let p = HEAP.without_memory(size, MALLOC_ALIGN, real);
    if HEAP.is_own(p) {
        // SAFETY: the old piece is still there, and has so many bytes that may be read; it is given back once.
        unsafe {
            let had = libc::malloc_usable_size(old);
            ptr::copy_nonoverlapping(old.cast::<u8>(), p.cast(), had.min(size));
            lri_real_free(old);
        }
    }
    p
}

unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    // SAFETY: the caller's own arguments.
    let real = || unsafe { lri_real_posix_memalign(out, align, size) };
    let failed = real();
    if failed != libc::ENOMEM {
        return failed;
    }
    // SAFETY: it has filled `out` if it says so.
    let p = HEAP.without_memory(size, align, || if real() == 0 { unsafe { *out } } else { ptr::null_mut() });
    if p.is_null() {
        return failed;
    }
    // SAFETY: the caller's place for it.
    unsafe { *out = p };
    0
}

unsafe extern "C" fn free(p: *mut c_void) {
    if HEAP.is_own(p) {
        // SAFETY: the caller gives its piece back.
        HEAP.with_reserve(|r| unsafe { r.put_back(p.cast()) });
    } else {
        // SAFETY: the process's allocator has given it.
        unsafe { lri_real_free(p) };
    }
}

#[cfg(test)]
mod tests {
    use super::{Heap, UNIT, has, reserve};

    #[test]
    fn the_reserve_hands_out_pieces_that_do_not_overlap_and_takes_them_back() {
        static HEAP: Heap<{ 64 << 10 }> = Heap::new();
        let mut random = 7u64;
        let mut next = |most: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % most
        };
        let mut held: Vec<(usize, usize)> = Vec::new();
        let (mut refused, mut given) = (0, 0);
        for _ in 0..20_000 {
            if next(2) == 0 && !held.is_empty() {
                let (at, size) = held.swap_remove(next(held.len()));
                // SAFETY: taken below, and put back once.
                assert!(unsafe { Heap::<0>::size_of(at as *mut _) } >= size);
                // SAFETY: as above.
                HEAP.with_reserve(|r| unsafe { r.put_back(at as *mut u8) });
                continue;
            }
            let (size, align) = (1 + next(3000), 1 << next(9));
            let at = HEAP.with_reserve(|r| r.take(size, align)) as usize;
            if at == 0 {
                refused += 1;
                continue;
            }
            given += 1;
            assert!(HEAP.is_own(at as *mut _) && at.is_multiple_of(align.max(UNIT)));
            for (other, its) in &held {
                assert!(at + size <= *other || other + its <= at, "two pieces overlap");
            }
            // SAFETY: the piece is ours: writing over it is found by the check of the list.
            unsafe { (at as *mut u8).write_bytes(0xAA, size) };
            held.push((at, size));
        }
        assert!(given > 3_000 && refused > 0, "{given} given, {refused} refused");
        for (at, _) in held.drain(..) {
            // SAFETY: as above.
            HEAP.with_reserve(|r| unsafe { r.put_back(at as *mut u8) });
        }
        assert!(!HEAP.with_reserve(|r| r.take(60 << 10, 1)).is_null(), "all of it is one piece again");
        assert!(HEAP.with_reserve(|r| r.take(65 << 10, 1)).is_null());
        assert!(HEAP.with_reserve(|r| r.take(usize::MAX, 1)).is_null());
    }

    #[test]
    fn what_can_never_be_had_is_refused_and_harms_nobody() {
        let mut list = vec![1u8];
        assert!(!reserve(&mut list, isize::MAX as usize / 2) && !has(usize::MAX / 4) && has(1 << 20));
        assert_eq!(list, [1]);
    }
}
