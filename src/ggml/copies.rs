//! Which copy of ggml and llama a call belongs to. A process may hold several (two Python packages, two Node.js
//! addons), and the real function behind a hook is always the caller's own.
//!
//! ```text
//!   a call arrives ──► return address ──► object of the caller ──► definition that this object sees ──► copy of that definition
//!                                         (kept, one entry for each hook and object: [`Hooked::of`])
//! ```
//!
//! What is known of a copy (its functions, how its tensors lie) is kept with it, and [`api`] asks the copy whose call
//! is being served ([`enter`]). Nothing here waits for a lock: the loader's own is held around a library's
//! constructors, which may call us.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use super::api;
use super::layout::Layout;
use super::symbol;
use crate::host::{self, LoadedObject};

/// Copies that are recorded. Calls of any further one are only forwarded, and a message says so.
pub const MOST_COPIES: usize = 4;

/// Counts what makes known addresses doubtful: each time the host closes a library.
static EPOCH: AtomicU64 = AtomicU64::new(1);

/// The address that a call of the host returns to. It travels in a floating-point register, since no function that we
/// hook takes a floating-point argument and every integer register may be one of the host's arguments.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Caller(f64);

impl Caller {
    /// As a number.
    #[inline]
    #[must_use]
    pub const fn address(self) -> usize {
        self.0.to_bits() as usize
    }
}

/// Number of a copy, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyId(u8);

impl CopyId {
    /// The first copy, and what we take for it before any call has arrived.
    const FIRST: Self = Self(0);
    /// A copy beyond those that are recorded.
    const LEFT_ALONE: Self = Self(u8::MAX);

    /// Whether its calls are looked at; otherwise they are only forwarded.
    #[inline]
    #[must_use]
    pub const fn is_observed(self) -> bool {
        (self.0 as usize) < MOST_COPIES
    }
}

/// What is known of a copy.
#[derive(Debug)]
pub(crate) struct OneCopy {
    /// Address of its `ggml_init`, or of what its first call went to where it has none; 0: no copy.
    anchor: AtomicUsize,
    /// Its functions that we call ourselves, null until they are asked for.
    pub(crate) functions: [AtomicPtr<c_void>; api::N_FUNCTIONS],
    /// One definition in each of its libraries, which between them see all its functions; 0: none.
    libraries: [AtomicUsize; MOST_LIBRARIES],
    /// How its tensors lie.
    pub(crate) layout: Layout,
}

/// Libraries of one copy that are remembered: ggml-base, ggml-cpu, ggml, llama, and what else may define one
/// of our functions.
const MOST_LIBRARIES: usize = 8;

static COPIES: [OneCopy; MOST_COPIES] = [const { OneCopy::new() }; MOST_COPIES];

thread_local! {
    /// The copy whose call this thread is in.
    static CURRENT: Cell<CopyId> = const { Cell::new(CopyId::FIRST) };
}

impl OneCopy {
    const fn new() -> Self {
        Self {
            anchor: AtomicUsize::new(0),
            functions: [const { AtomicPtr::new(std::ptr::null_mut()) }; api::N_FUNCTIONS],
            libraries: [const { AtomicUsize::new(0) }; MOST_LIBRARIES],
            layout: Layout::new(),
        }
    }

    fn forget(&self) {
        self.functions.iter().for_each(|f| f.store(std::ptr::null_mut(), Ordering::Relaxed));
        self.libraries.iter().for_each(|l| l.store(0, Ordering::Relaxed));
        self.layout.forget();
    }

    /// Remembers the library that holds `definition`.
    fn add_library(&self, definition: &LoadedObject) {
        for place in &self.libraries {
            let known = place.load(Ordering::Relaxed);
            if definition.contains(known) {
                return;
            }
            let free = place.compare_exchange(0, definition.start, Ordering::Relaxed, Ordering::Relaxed);
            if known == 0 && free.is_ok() {
                return;
            }
        }
    }

    /// Where this copy has the function `name`; null if it has none.
    fn find(&self, name: &CStr) -> *mut c_void {
        let libraries = self.libraries.iter().map(|l| l.load(Ordering::Relaxed)).filter(|&l| l != 0);
        let seen = libraries.filter_map(host::object_at).map(|o| symbol::seen_from(&o, name));
        let found = seen.into_iter().find(|f| !f.is_null());
        // Before the first call of the host, and where its libraries are unknown, whichever there is.
        found.unwrap_or_else(|| if self.is_only() { symbol::anywhere(name) } else { std::ptr::null_mut() })
    }

    /// Whether no other copy is known.
    fn is_only(&self) -> bool {
        COPIES.iter().all(|c| std::ptr::eq(c, self) || c.anchor.load(Ordering::Relaxed) == 0)
    }
}

/// The copy whose call this thread is serving.
#[inline]
pub(crate) fn current() -> &'static OneCopy {
    // A copy that is left alone is never entered, so the index is one of the table.
    COPIES.get(CURRENT.get().0 as usize).unwrap_or(&COPIES[0])
}

/// Address of the current copy's function number `index`, null while it has none. A miss is not kept: the host may
/// load more later.
#[inline]
pub(crate) fn function(index: usize, name: &CStr) -> *mut c_void {
    let copy = current();
    let Some(place) = copy.functions.get(index) else { return std::ptr::null_mut() };
    let known = place.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    let found = copy.find(name);
    place.store(found, Ordering::Relaxed);
    found
}

/// Until it is dropped, also by a C++ exception that passes, this thread serves a call of one copy.
#[derive(Debug)]
pub struct Entered(CopyId);

impl Drop for Entered {
    #[inline]
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// A call of `copy` begins on this thread.
#[inline]
#[must_use]
pub fn enter(copy: CopyId) -> Entered {
    Entered(if copy.is_observed() { CURRENT.replace(copy) } else { CURRENT.get() })
}

/// The real function behind a hook, for one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The function, null if the caller sees none.
    pub address: *mut c_void,
    /// The copy that the function belongs to.
    pub copy: CopyId,
    /// Where the caller's code begins.
    pub start: usize,
    /// Its bytes, 0 if the caller lies in no object: then nothing is kept.
    pub length: usize,
}

/// A target that is kept.
#[derive(Debug)]
struct Known {
    target: Target,
    /// [`EPOCH`] when it was last known to be right.
    epoch: AtomicU64,
    next: *const Known,
}

/// A function that we interpose: where it really is, for each caller.
#[derive(Debug)]
pub struct Hooked {
    name: &'static CStr,
    /// The target found last. Most functions have one caller.
    last: AtomicPtr<Known>,
    /// All of them. One is made for each caller and never freed: a call may be reading it.
    all: AtomicPtr<Known>,
}

impl Hooked {
    /// A function whose callers are unknown yet.
    #[must_use]
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, last: AtomicPtr::new(std::ptr::null_mut()), all: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The real function for `caller`.
    #[inline]
    #[must_use]
    pub fn of(&self, caller: Caller) -> Target {
        // SAFETY: null or a target of ours, which is never freed.
        if let Some(last) = unsafe { self.last.load(Ordering::Acquire).as_ref() }
            && last.serves(caller)
        {
            return last.target;
        }
        self.look_up(caller)
    }

    #[cold]
    fn look_up(&self, caller: Caller) -> Target {
        if let Some(known) = self.find(|k| k.serves(caller)) {
            self.last.store(std::ptr::from_ref(known).cast_mut(), Ordering::Release);
            return known.target;
        }
        let object = host::object_at(caller.address());
        // Before anything is looked up: what is closed meanwhile makes the answer doubtful.
        let epoch = EPOCH.load(Ordering::Acquire);
        let mut address = object.as_ref().map_or(std::ptr::null_mut(), |o| symbol::seen_from(o, self.name));
        if address.is_null() {
            // The caller has its pointer from `dlsym`: Python's ctypes calls through libffi, which sees nothing of
            // ggml, and code that is made at run time (LuaJIT, a Node.js FFI) lies in no object at all.
            address = handed_out(self.name).unwrap_or_else(|| symbol::anywhere(self.name));
        }
        let copy = if address.is_null() { CopyId::LEFT_ALONE } else { copy_of(address) };
        let (start, length) = object.map_or((0, 0), |o| (o.start, o.length));
        let target = Target { address, copy, start, length };
        if length > 0 && !address.is_null() {
            self.keep(target, epoch);
        }
        target
    }

    fn find(&self, wanted: impl Fn(&Known) -> bool) -> Option<&'static Known> {
        let mut next = self.all.load(Ordering::Acquire).cast_const();
        // SAFETY: null or a target of ours, which is never freed.
        while let Some(known) = unsafe { next.as_ref() } {
            if wanted(known) {
                return Some(known);
            }
            next = known.next;
        }
        None
    }

    fn keep(&self, target: Target, epoch: u64) {
        if let Some(old) = self.find(|k| k.target == target) {
            old.epoch.store(epoch, Ordering::Release);
            return;
        }
        let mut next = self.all.load(Ordering::Acquire);
        let new = Box::leak(Box::new(Known { target, epoch: AtomicU64::new(epoch), next }));
        while let Err(now) = self.all.compare_exchange(next, new, Ordering::AcqRel, Ordering::Acquire) {
            next = now;
            new.next = next;
        }
        self.last.store(new, Ordering::Release);
    }
}

impl Known {
    #[inline]
    fn serves(&self, caller: Caller) -> bool {
        caller.address().wrapping_sub(self.target.start) < self.target.length
            && self.epoch.load(Ordering::Relaxed) == EPOCH.load(Ordering::Relaxed)
    }
}

/// The copy that `definition`, a function of llama or ggml, belongs to: that whose `ggml_init` its library sees.
fn copy_of(definition: *mut c_void) -> CopyId {
    let Some(library) = host::object_at(definition as usize) else { return CopyId::LEFT_ALONE };
    let anchor = symbol::seen_from(&library, c"ggml_init");
    let anchor = if anchor.is_null() { symbol::in_object(&library.path, c"ggml_init") } else { anchor };
    let anchor = if anchor.is_null() { library.start } else { anchor as usize };
    for (number, copy) in (0u8..).zip(&COPIES) {
        let mut known = copy.anchor.load(Ordering::Acquire);
        if known == 0 {
            known = match copy.anchor.compare_exchange(0, anchor, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    // What was asked for before its first call may be of any copy.
                    copy.forget();
                    if number > 0 {
                        tell(News::Another, &library);
                    }
                    anchor
                }
                Err(theirs) => theirs,
            };
        }
        if known == anchor {
            copy.add_library(&library);
            return CopyId(number);
        }
    }
    tell(News::OneTooMany, &library);
    CopyId::LEFT_ALONE
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Another copy has made its first call and is recorded too.
    Another,
    /// A copy beyond the recorded ones has made its first call; its calls are only forwarded.
    OneTooMany,
}

/// The function that writes news down, with the path of the library; registered by `session`, which this room
/// must not know.
static ON_NEWS: OnceLock<fn(News, &str)> = OnceLock::new();

/// From now on, `listener` is called for every further copy.
pub fn on_news(listener: fn(News, &str)) {
    let _ = ON_NEWS.set(listener);
}

fn tell(news: News, library: &LoadedObject) {
    if let Some(listener) = ON_NEWS.get() {
        listener(news, &library.path.to_string_lossy());
    }
}

/// A definition that `dlsym` was asked for and that we gave our hook for.
#[derive(Debug)]
struct HandedOut {
    name: CString,
    address: AtomicUsize,
}

/// More than the functions that we hook.
const MOST_HANDED_OUT: usize = 256;
static HANDED_OUT: [AtomicPtr<HandedOut>; MOST_HANDED_OUT] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; MOST_HANDED_OUT];

fn handed_out(name: &CStr) -> Option<*mut c_void> {
    for place in &HANDED_OUT {
        // SAFETY: null or an entry of ours, which is never freed.
        let entry = unsafe { place.load(Ordering::Acquire).as_ref() }?;
        if entry.name.as_c_str() == name {
            let address = entry.address.load(Ordering::Relaxed);
            return (address != 0).then_some(address as *mut c_void);
        }
    }
    None
}

/// Whether `dlsym` may answer with our hook where it has found `definition`. The address that such a call comes from
/// does not say which copy is meant. So this is allowed for one definition of each name, and for none that hides
/// another one in the global scope.
#[must_use]
pub fn may_stand_for(name: &CStr, definition: *mut c_void) -> bool {
    let global = symbol::dlsym(libc::RTLD_NEXT, name.as_ptr());
    if !global.is_null() {
        return global == definition;
    }
    for place in &HANDED_OUT {
        let mut known = place.load(Ordering::Acquire);
        if known.is_null() {
            let new = Box::new(HandedOut { name: name.to_owned(), address: AtomicUsize::new(definition as usize) });
            let new = Box::into_raw(new);
            match place.compare_exchange(std::ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(theirs) => {
                    // SAFETY: made above, not shared with another thread yet.
                    drop(unsafe { Box::from_raw(new) });
                    known = theirs;
                }
            }
        }
        // SAFETY: an entry of ours, which is never freed.
        let Some(entry) = (unsafe { known.as_ref() }) else { return false };
        if entry.name.as_c_str() == name {
            let first = entry.address.compare_exchange(0, definition as usize, Ordering::Relaxed, Ordering::Relaxed);
            return first.is_ok() || first == Err(definition as usize);
        }
    }
    false
}

/// The host has closed a library: what was known of addresses holds no more, and a copy that has gone is forgotten.
pub fn a_library_was_closed() {
    for copy in &COPIES {
        let anchor = copy.anchor.load(Ordering::Relaxed);
        if anchor != 0 && host::object_at(anchor).is_none() {
            copy.forget();
            copy.anchor.store(0, Ordering::Release);
        }
    }
    for place in &HANDED_OUT {
        // SAFETY: null or an entry of ours, which is never freed.
        let Some(entry) = (unsafe { place.load(Ordering::Acquire).as_ref() }) else { break };
        let address = entry.address.load(Ordering::Relaxed);
        if address != 0 && host::object_at(address).is_none() {
            entry.address.store(0, Ordering::Relaxed);
        }
    }
    EPOCH.fetch_add(1, Ordering::Release);
}
