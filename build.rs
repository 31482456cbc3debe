//! The soname of the shared library, and where its calls of the allocator go (src/heap.rs): the header is committed and compared by a test.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libllama_resource_instrumentation.so.1");
        for name in ["malloc", "calloc", "realloc", "posix_memalign", "free"] {
            println!("cargo::rustc-cdylib-link-arg=-Wl,--wrap={name}");
        }
    }
}
