//! What the library asks of the process that it lives in: clocks, times, threads, memory, files, loaded objects.
//!
//! Every unsafe call of libc stands here, but for the allocator's (`heap`) and for asking the loader for symbols
//! (`ggml::symbol`, `hook::lookup`). Nothing here keeps state; `session` decides when to call what.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

/// Broken-down local time.
#[derive(Debug, Clone, Copy)]
pub struct LocalTime {
    /// Year, four digits.
    pub year: i32,
    /// 1-12.
    pub month: i32,
    /// 1-31.
    pub day: i32,
    /// 0-23.
    pub hour: i32,
    /// 0-59.
    pub minute: i32,
    /// 0-60.
    pub second: i32,
}

/// CLOCK_MONOTONIC in nanoseconds, from the kernel.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: POSIX: clock_gettime writes one timespec to the valid pointer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Local time of a Unix second.
#[must_use]
pub fn local_time(unix_s: i64) -> LocalTime {
    // SAFETY: an all-zero tm is a valid value of this plain C struct (its one pointer, tm_zone, may be null).
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: POSIX: localtime_r reads one time_t and writes one tm; both pointers are valid for the call.
    unsafe { libc::localtime_r(&raw const unix_s, &raw mut tm) };
    LocalTime {
        year: tm.tm_year + 1900,
        month: tm.tm_mon + 1,
        day: tm.tm_mday,
        hour: tm.tm_hour,
        minute: tm.tm_min,
        second: tm.tm_sec,
    }
}

/// CPU time of the calling thread in nanoseconds.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    cpu_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of all threads of the process in nanoseconds; /proc counts in hundredths of a second.
#[must_use]
pub fn process_cpu_ns() -> u64 {
    cpu_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_ns(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: POSIX: clock_gettime writes one timespec to the valid pointer.
    unsafe { libc::clock_gettime(clock, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Path of the object that holds this library's code: the .so, or the program it is linked into.
#[must_use]
pub fn own_object() -> Option<PathBuf> {
    // A static of ours lies in the same object as our code, and its address needs no cast from a function.
    static HERE: u8 = 0;
    object_of((&raw const HERE) as usize)
}

/// Path of the loaded object that `address` lies in.
#[must_use]
pub fn object_of(address: usize) -> Option<PathBuf> {
    // SAFETY: Dl_info is a plain C struct of pointers; all-zero is valid.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: dladdr only looks the address up; `info` is valid for the call.
    let found = unsafe { libc::dladdr(address as *const libc::c_void, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr: dli_fname is a NUL-terminated string owned by the loader, valid while the object is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsString::from_vec(name.to_bytes().to_vec())))
}

/// A loaded object, or the part of it that an address lies in.
#[derive(Clone, Debug)]
pub(crate) struct LoadedObject {
    /// Where the segment begins that holds the address.
    pub(crate) start: usize,
    /// Its bytes.
    pub(crate) length: usize,
    /// Path as the loader knows it, empty for the program itself.
    pub(crate) path: CString,
    /// How many objects were loaded before it.
    pub(crate) order: usize,
}

impl LoadedObject {
    /// Whether `address` lies in the same segment.
    pub(crate) const fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.start) < self.length
    }
}

/// How many objects are loaded.
#[must_use]
pub(crate) fn loaded_objects() -> usize {
    unsafe extern "C" fn each(_info: *mut libc::dl_phdr_info, _size: usize, data: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `data` is the number below, ours alone during the iteration.
        unsafe { *data.cast::<usize>() += 1 };
        0
    }
    let mut n: usize = 0;
    // SAFETY: `each` matches the callback's type and does not unwind; `n` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut n).cast()) };
    n
}

/// The loaded object that `address` lies in.
#[must_use]
pub(crate) fn object_at(address: usize) -> Option<LoadedObject> {
    struct Search {
        address: usize,
        seen: usize,
        found: Option<LoadedObject>,
    }
    unsafe extern "C" fn each(info: *mut libc::dl_phdr_info, _size: usize, data: *mut libc::c_void) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes a valid info for the length of the call.
        let info = unsafe { &*info };
        // SAFETY: `data` is the search below, ours alone during the iteration.
        let search = unsafe { &mut *data.cast::<Search>() };
        // SAFETY: dlpi_phdr has dlpi_phnum entries.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let order = search.seen;
        search.seen += 1;
        for h in headers.iter().filter(|h| h.p_type == libc::PT_LOAD) {
            let (start, length) = ((info.dlpi_addr + h.p_vaddr) as usize, h.p_memsz as usize);
            if search.address.wrapping_sub(start) < length {
                let path = if info.dlpi_name.is_null() {
                    CString::default()
                } else {
                    // SAFETY: dlpi_name is a NUL-terminated string of the loader.
                    unsafe { CStr::from_ptr(info.dlpi_name) }.to_owned()
                };
                search.found = Some(LoadedObject { start, length, path, order });
                return 1;
            }
        }
        0
    }
    let mut search = Search { address, seen: 0, found: None };
    // SAFETY: `each` matches the callback's type and does not unwind; `search` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut search).cast()) };
    search.found
}

/// Whether this library stands in LD_PRELOAD: that is how we know that we were preloaded.
#[must_use]
pub fn in_ld_preload() -> bool {
    let Some(own) = own_object() else { return false };
    let Some(value) = std::env::var_os("LD_PRELOAD") else { return false };
    entries(value.as_bytes()).any(|e| is_own(e, &own))
}

fn entries(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| matches!(b, b':' | b' ')).filter(|e| !e.is_empty())
}

fn is_own(entry: &[u8], own: &Path) -> bool {
    let entry = Path::new(OsStr::from_bytes(entry));
    entry == own || (entry.file_name() == own.file_name() && same_file(entry, own))
}

fn same_file(a: &Path, b: &Path) -> bool {
    // A bare name was found through the loader's search path; the file name is all there is to compare.
    if a.parent().is_none_or(|p| p.as_os_str().is_empty()) {
        return true;
    }
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

/// Takes this library out of LD_PRELOAD, leaving other entries, so that the host's children are not recorded.
///
/// The variable's bytes are changed in place: the host may have threads by now, and `setenv` could free what another
/// thread reads. A reader in between sees the old value or the new one, which is shorter; no pointer changes.
pub fn leave_ld_preload() {
    let Some(own) = own_object() else { return };
    // SAFETY: getenv only reads; the pointer is into the environment block, which we never free.
    let value = unsafe { libc::getenv(c"LD_PRELOAD".as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv gives a NUL-terminated string.
    let old = unsafe { CStr::from_ptr(value) }.to_bytes().to_vec();
    let rest = entries(&old).filter(|e| !is_own(e, &own)).collect::<Vec<_>>().join(&b':');
    if rest.len() < old.len() {
        // The NUL first: from then on a reader sees a prefix, never a mixture that is longer.
        // SAFETY: within the old string; environment strings are writable memory of the process.
        unsafe { value.add(rest.len()).write(0) };
        // SAFETY: `rest` is shorter than the old string.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr().cast(), value, rest.len()) };
    }
}

/// Whether the running program, or a library in it, carries ggml inside itself: the text of ggml's own assertions is in
/// its constants. Asked at the end of a process in which no call of ggml was seen.
#[must_use]
pub fn carries_ggml() -> bool {
    const MARK: &[u8] = b"ggml_backend_sched_graph_compute";
    const OTHER_MARK: &[u8] = b"GGML_ASSERT(";
    static OURS: u8 = 0;
    unsafe extern "C" fn each(info: *mut libc::dl_phdr_info, _size: usize, data: *mut libc::c_void) -> libc::c_int {
        // SAFETY: dl_iterate_phdr passes a valid info for the length of the call.
        let info = unsafe { &*info };
        // SAFETY: dlpi_phdr has dlpi_phnum entries.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        let ours = (&raw const OURS) as usize;
        let span = |h: &libc::Elf64_Phdr| (info.dlpi_addr as usize + h.p_vaddr as usize, h.p_memsz as usize);
        // This very function holds the marks too.
        if headers.iter().any(|h| h.p_type == libc::PT_LOAD && (span(h).0..span(h).0 + span(h).1).contains(&ours)) {
            return 0;
        }
        for h in
            headers.iter().filter(|h| h.p_type == libc::PT_LOAD && h.p_flags & (libc::PF_R | libc::PF_W) == libc::PF_R)
        {
            let (start, length) = span(h);
            for mark in [MARK, OTHER_MARK] {
                // SAFETY: a loaded, readable, constant segment of this length.
                let hit =
                    unsafe { libc::memmem(start as *const libc::c_void, length, mark.as_ptr().cast(), mark.len()) };
                if !hit.is_null() {
                    // SAFETY: `data` is the flag below.
                    unsafe { *data.cast::<bool>() = true };
                    return 1;
                }
            }
        }
        0
    }
    let mut found = false;
    // SAFETY: `each` matches the callback's type and does not unwind; `found` outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(each), (&raw mut found).cast()) };
    found
}

/// A flag that this process shares with every child that it forks; false at first. `None` without memory.
#[must_use]
pub fn shared_flag() -> Option<&'static AtomicBool> {
    // SAFETY: a shared anonymous mapping at an address of the kernel's choice touches no memory that is in use.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<AtomicBool>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: zeroed memory that is never unmapped; zero is `false`.
    Some(unsafe { &*page.cast::<AtomicBool>() })
}

/// Registers `handler` to run when the process exits in order.
pub fn at_exit(handler: extern "C" fn()) {
    // SAFETY: atexit stores a function pointer that stays valid: we are never unloaded (a preload, or linked in).
    unsafe { libc::atexit(handler) };
}

/// Registers what runs around a fork of the host: `parent` in it afterwards, `child` in the new process.
pub fn at_fork(parent: unsafe extern "C" fn(), child: unsafe extern "C" fn()) {
    // SAFETY: pthread_atfork stores function pointers that stay valid, as above.
    unsafe { libc::pthread_atfork(None, Some(parent), Some(child)) };
}

/// Weight of our threads: a tenth of a host's thread where both want the same core. Less would be nothing at all on a
/// machine whose cores are all spinning at barriers, and events would be lost.
const NICE: libc::c_int = 10;

/// Makes the calling thread ours alone: named, no signal of the host is ever delivered to it, low scheduling weight.
pub fn become_background_thread(name: &CStr) {
    // SAFETY: pthread_setname_np copies the string (at most 15 bytes and NUL) for the calling thread.
    unsafe { libc::pthread_setname_np(libc::pthread_self(), name.as_ptr()) };
    // SAFETY: on Linux, PRIO_PROCESS with the thread's own id sets the nice value of this thread only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, libc::gettid() as libc::id_t, NICE) };
}

/// Blocks all signals in the calling thread and returns the old mask; threads made meanwhile inherit the block.
#[must_use]
pub fn block_signals() -> libc::sigset_t {
    // SAFETY: sigset_t is a plain C type; sigfillset initialises it before use.
    let (mut all, mut old): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
    // SAFETY: valid pointer to a sigset_t.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both pointers are valid for the call; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) };
    old
}

/// Gives the calling thread the mask that [`block_signals`] returned.
pub fn restore_signals(old: &libc::sigset_t) {
    // SAFETY: `old` was filled by pthread_sigmask; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
}

/// Runs `body`, which writes to a file, on a thread of the host. A broken pipe, the limit of file sizes or a terminal
/// in the background give it an error; their signals, whose default is to end or stop the host, never arrive.
pub fn without_write_signals<T>(body: impl FnOnce() -> T) -> T {
    let set_of = |signals: &[libc::c_int]| {
        // SAFETY: sigset_t is a plain C type; sigemptyset initialises it before use.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: valid pointer to a sigset_t.
        unsafe { libc::sigemptyset(&raw mut set) };
        for &s in signals {
            // SAFETY: an initialised set and a signal number.
            unsafe { libc::sigaddset(&raw mut set, s) };
        }
        set
    };
    let pending = |signal| {
        let mut set = set_of(&[]);
        // SAFETY: valid pointers to initialised sets.
        unsafe { libc::sigpending(&raw mut set) == 0 && libc::sigismember(&raw const set, signal) == 1 }
    };
    const RAISED: [libc::c_int; 2] = [libc::SIGPIPE, libc::SIGXFSZ];
    let before = RAISED.map(pending);
    let blocked = set_of(&[libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU]);
    let mut old = set_of(&[]);
    // SAFETY: valid pointers; only this thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut old) };
    let result = body();
    for (signal, was_pending) in RAISED.into_iter().zip(before) {
        if !was_pending && pending(signal) {
            let (own, now) = (set_of(&[signal]), libc::timespec { tv_sec: 0, tv_nsec: 0 });
            // SAFETY: takes the signal that our write has raised; valid pointers, no waiting.
            unsafe { libc::sigtimedwait(&raw const own, std::ptr::null_mut(), &raw const now) };
        }
    }
    restore_signals(&old);
    result
}

/// Bytes of a line on stderr: what a pipe that says that it has room takes in one piece and without waiting.
pub const LONGEST_LINE: usize = libc::PIPE_BUF;

/// Writes a line to stderr in one piece, [`LONGEST_LINE`] at most, so that the host's own output does not tear it. A
/// stderr that is closed, broken or full is ignored: the host must not wait for, or die of, our message.
pub fn write_stderr(line: &[u8]) {
    const CUT: &[u8] = b" [...]\n";
    let mut short = [0; LONGEST_LINE];
    let line = if line.len() > LONGEST_LINE {
        let kept = utf8_prefix(line, LONGEST_LINE - CUT.len());
        short[..kept.len()].copy_from_slice(kept);
        short[kept.len()..kept.len() + CUT.len()].copy_from_slice(CUT);
        &short[..kept.len() + CUT.len()]
    } else {
        line
    };
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid pollfd. 100 ms for what reads the host's output.
    if unsafe { libc::poll(&raw mut stderr, 1, 100) } == 0 {
        return;
    }
    // SAFETY: `line` is valid for its length.
    without_write_signals(|| unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) });
}

/// At most `most` bytes of a text, no character of it cut in two.
fn utf8_prefix(text: &[u8], most: usize) -> &[u8] {
    let mut end = most.min(text.len());
    while end > 0 && text.get(end).is_some_and(|b| b & 0xC0 == 0x80) {
        end -= 1;
    }
    &text[..end]
}

/// Makes writes to `file` wait.
pub fn make_blocking(file: &std::fs::File) {
    let fd = file.as_raw_fd();
    // SAFETY: a descriptor that is open as long as `file`; only its status flags change.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) & !libc::O_NONBLOCK) };
}

/// Reserves `length` bytes of the disk from `offset` on, beyond the file's end, without making the file longer.
pub fn allocate_ahead(file: &std::fs::File, offset: u64, length: u64) -> std::io::Result<()> {
    // SAFETY: a descriptor that is open as long as `file`; no memory is involved.
    match unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset as i64, length as i64) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Lets writes to `file` go through the page cache from here on, where the file system takes no direct ones.
pub fn leave_direct(file: &std::fs::File) {
    let fd = file.as_raw_fd();
    // SAFETY: a descriptor that is open as long as `file`; only its status flags change.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) & !libc::O_DIRECT) };
}

/// Memory straight from the kernel, zero and page-aligned. Dropping it gives it back to the kernel, so that a budget
/// can be kept; an allocator may keep what is freed.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

impl Pages {
    /// `len` bytes (not 0); the kernel provides a page when it is first touched.
    pub fn new(len: usize) -> std::io::Result<Self> {
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no memory that is in use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let Some(start) = NonNull::new(start.cast::<u8>()).filter(|_| start != libc::MAP_FAILED) else {
            return Err(std::io::Error::last_os_error());
        };
        if len >= 2 << 20 {
            // A fault a huge page, not one for each of 512. If the kernel has none, nothing is lost.
            // SAFETY: advice about the mapping just made.
            unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Ok(Self { start, len })
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a mapping of `len` readable, initialised (zero) bytes that lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, writable, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: the mapping belongs to the value alone and to no thread.
unsafe impl Send for Pages {}
// SAFETY: shared access only reads.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once; no borrow of it is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bytes of a page, for /proc.
#[must_use]
pub fn page_bytes() -> u64 {
    // SAFETY: sysconf only reads a constant.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    page.max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::utf8_prefix;

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "aé€𝄞".as_bytes();
        let lengths: Vec<_> = (0..=text.len() + 1).map(|most| utf8_prefix(text, most).len()).collect();
        assert_eq!(lengths, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10]);
    }
}
