//! The start-up constructor: runs before the host's `main`, and does nothing unless this library is in LD_PRELOAD.

/// ELF calls what stands in `.init_array` when the object is loaded, before any other thread exists.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = {
    extern "C" fn start() {
        crate::ggml::symbol::note_start();
        crate::boundary::catching((), crate::session::start_preloaded);
    }
    start
};
