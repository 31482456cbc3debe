//! Model loads: how long, what model, and whether it was a real load or a probe without weights.

use std::ffi::{CStr, CString};

use crate::clock;
use crate::format::Line;
use crate::format::server::ModelLoad;
use crate::format::summary::Condition;
use crate::ggml::api::{self, Ptr};
use crate::ggml::layout;
use crate::journal;

/// A load that has begun.
#[derive(Debug)]
pub struct Loading {
    path: Option<String>,
    t_ns: u64,
}

/// A load begins.
#[must_use]
pub fn begin(path: Option<&CStr>) -> Loading {
    // The host's ggml is certainly there now, and nothing is running yet: the best moment for the probe.
    tell_layout();
    Loading { path: path.map(|p| p.to_string_lossy().into_owned()), t_ns: clock::now_ns() }
}

/// Whether tensors can be read. What cannot is said: a build whose loading was not seen may come to it with
/// its first graph.
pub(super) fn tell_layout() {
    match layout::check() {
        Ok(()) => super::state::tell(
            "layout",
            Condition::Ok,
            "ggml's tensors lie as in the headers this library was made with (probed)",
            None,
        ),
        Err(reason) => super::state::tell(
            "layout",
            Condition::Unavailable,
            reason,
            Some("everything that needs tensors: operations, layers, components, weights"),
        ),
    }
}

/// A load has ended with `model` (null: it failed).
///
/// # Safety
/// `model` is null or a live llama_model.
pub unsafe fn end(loading: Loading, model: Ptr) {
    let t_ns = clock::now_ns();
    let weights = {
        let mut host = super::host();
        host.buffers.settle(false);
        host.buffers.weights_since(loading.t_ns)
    };
    // SAFETY: a live model, as the host has just got it; null is not asked.
    let about = (!model.is_null()).then(|| unsafe { About::of(model) });
    let about = about.unwrap_or_default();
    let outcome = match (model.is_null(), weights) {
        (true, _) => "failed",
        (false, _) if about.vocabulary_only => "vocabulary",
        (false, Some(0)) => "probe",
        (false, _) => "load",
    };
    journal::push_line(Line::ModelLoad(ModelLoad {
        timestamp: String::new(),
        session_id: String::new(),
        t_ns,
        path: loading.path,
        outcome: outcome.to_owned(),
        duration_ms: t_ns.saturating_sub(loading.t_ns) as f64 / 1e6,
        description: about.description,
        name: about.name,
        architecture: about.architecture,
        size_bytes: about.size_bytes,
        n_params: about.n_params,
        n_layer: about.n_layer,
        n_embd: about.n_embd,
        n_head: about.n_head,
        n_head_kv: about.n_head_kv,
        n_ctx_train: about.n_ctx_train,
        n_expert: about.n_expert,
        n_expert_used: about.n_expert_used,
        // SAFETY: no argument.
        ggml_version: unsafe { api::text(api::ggml_version()) },
        // SAFETY: no argument.
        ggml_commit: unsafe { api::text(api::ggml_commit()) },
    }));
}

/// What a model tells of itself.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// One line of llama.cpp's own.
    pub description: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// Bytes of all tensors.
    pub size_bytes: Option<u64>,
    /// Parameters.
    pub n_params: Option<u64>,
    /// It has no layers: it was loaded for its vocabulary.
    pub vocabulary_only: bool,
    /// Blocks.
    pub n_layer: Option<i32>,
    /// Width.
    pub n_embd: Option<i32>,
    /// Attention heads.
    pub n_head: Option<i32>,
    /// Heads of keys and values.
    pub n_head_kv: Option<i32>,
    /// Context that it was trained with.
    pub n_ctx_train: Option<i32>,
    /// Experts.
    pub n_expert: Option<i32>,
    /// Experts of a token.
    pub n_expert_used: Option<i32>,
}

impl About {
    /// Asks the model.
    ///
    /// # Safety
    /// `model` is a live llama_model.
    #[must_use]
    pub unsafe fn of(model: Ptr) -> Self {
        // SAFETY: the caller's promise, for each of the calls below.
        let architecture = unsafe { meta(model, "general.architecture") };
        // SAFETY: the caller's promise.
        let text = |k: &str| unsafe { meta(model, k) };
        let key = |k: &str| architecture.as_ref().and_then(|a| text(&format!("{a}.{k}"))?.parse().ok());
        // A model that was loaded for its vocabulary only has no layers and no width, and llama.cpp aborts where it is
        // asked for the heads of its first layer. SAFETY: the caller's promise.
        let n_layer = unsafe { api::llama_model_n_layer(model) };
        let vocabulary_only = n_layer.is_some_and(|n| n <= 0);
        let n_layer = n_layer.filter(|&n| n > 0);
        let has_layers = n_layer.is_some();
        let mut buf = [0 as std::ffi::c_char; 256];
        // SAFETY: as above; the buffer's length is given.
        let described = unsafe { api::llama_model_desc(model, buf.as_mut_ptr(), buf.len()) }.is_some_and(|n| n > 0);
        Self {
            // SAFETY: llama_model_desc has NUL-terminated it.
            description: if described { unsafe { api::text(Some(buf.as_ptr())) } } else { None },
            name: text("general.name"),
            n_expert: key("expert_count").filter(|&n| n > 0),
            n_expert_used: key("expert_used_count").filter(|&n| n > 0),
            // SAFETY: the caller's promise.
            size_bytes: unsafe { api::llama_model_size(model) }.filter(|&n| n > 0),
            // SAFETY: the caller's promise.
            n_params: unsafe { api::llama_model_n_params(model) }.filter(|&n| n > 0),
            vocabulary_only,
            n_layer,
            // SAFETY: the caller's promise.
            n_embd: has_layers.then(|| unsafe { api::llama_model_n_embd(model) }).flatten(),
            // SAFETY: the caller's promise.
            n_head: has_layers.then(|| unsafe { api::llama_model_n_head(model) }).flatten(),
            // SAFETY: the caller's promise.
            n_head_kv: has_layers.then(|| unsafe { api::llama_model_n_head_kv(model) }).flatten(),
            // SAFETY: the caller's promise.
            n_ctx_train: has_layers.then(|| unsafe { api::llama_model_n_ctx_train(model) }).flatten(),
            architecture,
        }
    }
}

/// # Safety
/// `model` is a live llama_model.
unsafe fn meta(model: Ptr, key: &str) -> Option<String> {
    let key = CString::new(key).ok()?;
    let mut buf = [0 as std::ffi::c_char; 512];
    // SAFETY: the caller's promise; the buffer's length is given and llama.cpp terminates what it writes.
    let n = unsafe { api::llama_model_meta_val_str(model, key.as_ptr(), buf.as_mut_ptr(), buf.len()) }?;
    // SAFETY: NUL-terminated within the buffer.
    if n < 0 { None } else { unsafe { api::text(Some(buf.as_ptr())) } }
}
