//! The functions of ggml and llama that we call ourselves. Each may be missing: builds differ, and we never
//! link against one.

use std::ffi::{CStr, c_char, c_void};

use super::bindings::{ggml_init_params, ggml_tensor};
use super::copies;

/// A pointer of the host that we only pass around.
pub type Ptr = *mut c_void;

/// What a scheduler calls for each node: asking whether it is wanted, then showing it.
pub type EvalCallback = unsafe extern "C-unwind" fn(t: *mut ggml_tensor, ask: bool, user_data: Ptr) -> bool;

macro_rules! api {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        /// Where each function stands in a copy's table of addresses.
        #[allow(non_camel_case_types, reason = "named as the functions are")]
        enum Index { $($name,)* Count }

        /// Functions that we call.
        pub(crate) const N_FUNCTIONS: usize = Index::Count as usize;

        $(
            $(#[$doc])*
            ///
            /// `None` when the copy of ggml whose call is served has no such function.
            ///
            /// # Safety
            /// The arguments must be what the function of this name in ggml.h / llama.h asks for, of that copy.
            pub unsafe fn $name($($arg: $ty),*) -> Option<api!(@ret $($ret)?)> {
                const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                };
                let address = copies::function(Index::$name as usize, NAME);
                if address.is_null() {
                    return None;
                }
                // SAFETY: the symbol of this name has this C signature in every version of the headers we know.
                let f = unsafe { std::mem::transmute::<Ptr, unsafe extern "C-unwind" fn($($ty),*) $(-> $ret)?>(address) };
                // SAFETY: the caller vouches for the arguments.
                Some(unsafe { f($($arg),*) })
            }
        )*
    };
    (@ret) => { () };
    (@ret $ret:ty) => { $ret };
}

/// Whether the copy of ggml whose call is served is one that llama.cpp's library uses.
#[must_use]
pub fn has_llama() -> bool {
    !copies::function(Index::llama_n_ctx as usize, c"llama_n_ctx").is_null()
}

api! {
    /// Makes a ggml context.
    fn ggml_init(params: ggml_init_params) -> Ptr;
    /// Frees a ggml context.
    fn ggml_free(ctx: Ptr);
    /// Bytes of a tensor with its object header.
    fn ggml_tensor_overhead() -> usize;
    /// A new tensor.
    fn ggml_new_tensor_4d(ctx: Ptr, ty: u32, ne0: i64, ne1: i64, ne2: i64, ne3: i64) -> *mut ggml_tensor;
    /// A node that adds.
    fn ggml_add(ctx: Ptr, a: *mut ggml_tensor, b: *mut ggml_tensor) -> *mut ggml_tensor;
    /// A view.
    fn ggml_view_1d(ctx: Ptr, a: *mut ggml_tensor, ne0: i64, offset: usize) -> *mut ggml_tensor;
    /// First tensor of a ggml context.
    fn ggml_get_first_tensor(ctx: Ptr) -> *mut ggml_tensor;
    /// Name of a tensor.
    fn ggml_get_name(t: *const ggml_tensor) -> *const c_char;
    /// Sets the output flag.
    fn ggml_set_output(t: *mut ggml_tensor);
    /// Names a tensor.
    fn ggml_set_name(t: *mut ggml_tensor, name: *const c_char) -> *mut ggml_tensor;
    /// Data pointer.
    fn ggml_get_data(t: *const ggml_tensor) -> Ptr;
    /// Name of the operation.
    fn ggml_op_desc(t: *const ggml_tensor) -> *const c_char;
    /// Name of a type.
    fn ggml_type_name(ty: u32) -> *const c_char;
    /// Elements of a type's block.
    fn ggml_blck_size(ty: u32) -> i64;
    /// Bytes of a type's block.
    fn ggml_type_size(ty: u32) -> usize;
    /// Bytes that a tensor spans.
    fn ggml_nbytes(t: *const ggml_tensor) -> usize;
    /// Version of ggml.
    fn ggml_version() -> *const c_char;
    /// Commit of ggml.
    fn ggml_commit() -> *const c_char;
    /// Nodes of a graph.
    fn ggml_graph_n_nodes(graph: Ptr) -> i32;
    /// The array of nodes of a graph.
    fn ggml_graph_nodes(graph: Ptr) -> *mut *mut ggml_tensor;

    /// Name of a backend.
    fn ggml_backend_name(backend: Ptr) -> *const c_char;
    /// Device of a backend.
    fn ggml_backend_get_device(backend: Ptr) -> Ptr;
    /// Name of a device.
    fn ggml_backend_dev_name(device: Ptr) -> *const c_char;
    /// Kind of a device: 0 CPU, 1 GPU, 2 integrated GPU, 3 accelerator.
    fn ggml_backend_dev_type(device: Ptr) -> i32;
    /// Backend that a scheduler gave a node to.
    fn ggml_backend_sched_get_tensor_backend(sched: Ptr, node: *mut ggml_tensor) -> Ptr;
    /// Number of a scheduler's backends.
    fn ggml_backend_sched_get_n_backends(sched: Ptr) -> i32;
    /// One of a scheduler's backends.
    fn ggml_backend_sched_get_backend(sched: Ptr, i: i32) -> Ptr;
    /// Waits until a backend has done its work.
    fn ggml_backend_synchronize(backend: Ptr);
    /// Waits until a scheduler's backends have done their work.
    fn ggml_backend_sched_synchronize(sched: Ptr);
    /// Sets the callback that a scheduler calls for each node.
    fn ggml_backend_sched_set_eval_callback(sched: Ptr, callback: Option<EvalCallback>, user_data: Ptr);
    /// Copies a tensor's bytes to the CPU, once its backend has come to it.
    fn ggml_backend_tensor_get_async(backend: Ptr, t: *const ggml_tensor, data: Ptr, offset: usize, size: usize);
    /// Copies a tensor's bytes to the CPU.
    fn ggml_backend_tensor_get(t: *const ggml_tensor, data: Ptr, offset: usize, size: usize);
    /// Type of a buffer.
    fn ggml_backend_buffer_get_type(buffer: Ptr) -> Ptr;
    /// Size of a buffer.
    fn ggml_backend_buffer_get_size(buffer: Ptr) -> usize;
    /// What a buffer is for: 0 anything, 1 weights, 2 compute.
    fn ggml_backend_buffer_get_usage(buffer: Ptr) -> i32;
    /// Whether the CPU can read a buffer directly.
    fn ggml_backend_buffer_is_host(buffer: Ptr) -> bool;
    /// Name of a buffer type.
    fn ggml_backend_buft_name(buft: Ptr) -> *const c_char;
    /// Device of a buffer type.
    fn ggml_backend_buft_get_device(buft: Ptr) -> Ptr;
    /// Where a buffer's memory begins.
    fn ggml_backend_buffer_get_base(buffer: Ptr) -> Ptr;
    /// Wraps memory in a CPU buffer.
    fn ggml_backend_cpu_buffer_from_ptr(ptr: Ptr, size: usize) -> Ptr;
    /// Frees a buffer.
    fn ggml_backend_buffer_free(buffer: Ptr);
    /// Places a tensor in a buffer.
    fn ggml_backend_tensor_alloc(buffer: Ptr, t: *mut ggml_tensor, addr: Ptr) -> i32;

    /// KV cache or recurrent state of a context.
    fn llama_get_memory(ctx: Ptr) -> Ptr;
    /// Model of a context.
    fn llama_get_model(ctx: Ptr) -> Ptr;
    /// Cells of the context.
    fn llama_n_ctx(ctx: Ptr) -> u32;
    /// Threads that compute a batch of one token.
    fn llama_n_threads(ctx: Ptr) -> i32;
    /// Threads that compute a larger one.
    fn llama_n_threads_batch(ctx: Ptr) -> i32;
    /// Cells of the context for one sequence.
    fn llama_n_ctx_seq(ctx: Ptr) -> u32;
    /// Largest number of sequences.
    fn llama_n_seq_max(ctx: Ptr) -> u32;
    /// Smallest position of a sequence in the memory.
    fn llama_memory_seq_pos_min(memory: Ptr, seq: i32) -> i32;
    /// Largest position of a sequence in the memory.
    fn llama_memory_seq_pos_max(memory: Ptr, seq: i32) -> i32;
    /// One-line description of a model.
    fn llama_model_desc(model: Ptr, buf: *mut c_char, size: usize) -> i32;
    /// Value of a key of the model file.
    fn llama_model_meta_val_str(model: Ptr, key: *const c_char, buf: *mut c_char, size: usize) -> i32;
    /// Bytes of all tensors of a model.
    fn llama_model_size(model: Ptr) -> u64;
    /// Parameters of a model.
    fn llama_model_n_params(model: Ptr) -> u64;
    /// Layers of a model.
    fn llama_model_n_layer(model: Ptr) -> i32;
    /// Width of a model.
    fn llama_model_n_embd(model: Ptr) -> i32;
    /// Heads of a model.
    fn llama_model_n_head(model: Ptr) -> i32;
    /// Heads of keys and values of a model.
    fn llama_model_n_head_kv(model: Ptr) -> i32;
    /// Training context of a model.
    fn llama_model_n_ctx_train(model: Ptr) -> i32;
    /// Whether a model keeps a state instead of cells.
    fn llama_model_is_recurrent(model: Ptr) -> bool;
    /// Vocabulary of a model.
    fn llama_model_get_vocab(model: Ptr) -> Ptr;
    /// Kind of a vocabulary: 0 for a model without one.
    fn llama_vocab_type(vocab: Ptr) -> i32;
    /// Tokens of a vocabulary.
    fn llama_vocab_n_tokens(vocab: Ptr) -> i32;
    /// Whether a token ends a generation.
    fn llama_vocab_is_eog(vocab: Ptr, token: i32) -> bool;
    /// Text of a token; its length, negative if the buffer is too small.
    fn llama_token_to_piece(vocab: Ptr, token: i32, buf: *mut c_char, size: i32, lstrip: i32, special: bool) -> i32;
}

/// Copies a C string of the host.
///
/// # Safety
/// `text` is null or a NUL-terminated string that is valid now.
#[must_use]
pub unsafe fn text(text: Option<*const c_char>) -> Option<String> {
    let text = text.filter(|p| !p.is_null())?;
    // SAFETY: the caller's promise.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
