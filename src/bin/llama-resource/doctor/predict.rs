//! What a recording of this host will hold: one line for each thing that can be compared with what a log then says. The
//! keys are stable.

use serde::Serialize;

use super::elf::Object;
use super::feature::{Feature, OP_TIMES, Rule, Works, judge};

/// Bytes of `struct ggml_tensor` in the builds that the library reads tensors of, and of the header that ggml
/// counts with it.
const TENSOR_BYTES: u64 = 336;
const OBJECT_BYTES: u64 = 32;

/// What is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// The log will hold it, whole.
    Yes,
    /// It will not, or only a part of it.
    No,
    /// These files do not tell.
    Unknown,
}

/// A prediction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Prediction {
    /// What.
    pub value: Value,
    /// Why, in one sentence.
    pub reason: String,
}

/// Everything that is predicted, by its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Predictions {
    /// `request_start` to `request_end`, with the tokens that were generated.
    pub requests: Prediction,
    /// `kv_cache_operation`.
    pub kv_operations: Prediction,
    /// Every backend buffer: `buffer_allocation`, and a peak that is the process's.
    pub memory: Prediction,
    /// Times of single operations on the CPU: `timed_us` in `step_summary`.
    pub operation_times: Prediction,
    /// `model_load`.
    pub models: Prediction,
    /// ggml's tensors can be read: `instrumentation_state` of `layout` is `ok`.
    pub layout: Prediction,
    /// Activations can be captured, with an account that adds up.
    pub capture: Prediction,
    /// Graphs and their tensors: components, layers, FLOPs.
    pub tensors: Prediction,
}

impl Predictions {
    /// The same of everything.
    pub fn all(value: Value, reason: &str) -> Self {
        let one = || Prediction { value, reason: reason.to_owned() };
        Self {
            requests: one(),
            kv_operations: one(),
            memory: one(),
            operation_times: one(),
            models: one(),
            layout: one(),
            capture: one(),
            tensors: one(),
        }
    }

    /// What these files say.
    pub fn of(objects: &[Object], features: &[Feature], for_host: bool) -> Self {
        let feature = |name: &str| match features.iter().find(|f| f.feature == name) {
            Some(found) => prediction(found),
            None => Prediction { value: Value::Unknown, reason: String::new() },
        };
        let rule = |name, rule| prediction(&judge(name, rule, objects, for_host));
        let layout = layout(objects);
        let graphs = feature("graphs");
        let tensors = both(&graphs, &layout);
        Self {
            requests: rule("requests", Rule::AnyOf(&["llama_process", "llama_decode"])),
            kv_operations: feature("KV operations"),
            memory: feature("memory"),
            operation_times: both(&feature(OP_TIMES), &layout),
            models: rule("models", Rule::AnyOf(&["llama_model_load_from_file", "llama_model_load_from_splits"])),
            capture: capture(objects, &tensors, &feature("decode")),
            layout,
            tensors,
        }
    }

    /// Lines for the table, of what no other line says.
    pub fn lines(&self) -> [Feature; 2] {
        let line = |feature, p: &Prediction| {
            let works = match p.value {
                Value::Yes => Works::Yes,
                Value::No => Works::No,
                Value::Unknown => Works::Depends,
            };
            Feature { feature, works, why: p.reason.clone() }
        };
        [line("layout", &self.layout), line("capture", &self.capture)]
    }
}

fn prediction(feature: &Feature) -> Prediction {
    let value = match feature.works {
        Works::Yes => Value::Yes,
        Works::Depends => Value::Unknown,
        Works::Partly | Works::No => Value::No,
    };
    let part = if feature.works == Works::Partly { "only in part: " } else { "" };
    Prediction { value, reason: format!("{part}{}", feature.why) }
}

/// What needs two things: the worse of them.
fn both(a: &Prediction, b: &Prediction) -> Prediction {
    let rank = |p: &Prediction| match p.value {
        Value::No => 0,
        Value::Unknown => 1,
        Value::Yes => 2,
    };
    if rank(b) < rank(a) { b.clone() } else { a.clone() }
}

fn layout(objects: &[Object]) -> Prediction {
    let say = |value, reason: String| Prediction { value, reason };
    let Some(base) = objects.iter().find(|o| o.defines.contains("ggml_tensor_overhead")) else {
        return say(Value::No, "ggml_tensor_overhead is not exported, so that tensors cannot be probed".to_owned());
    };
    match base.tensor_overhead {
        Some(bytes) if bytes == TENSOR_BYTES + OBJECT_BYTES => say(
            Value::Yes,
            format!("a tensor has {TENSOR_BYTES} bytes in {}; its fields are probed at the start", base.name()),
        ),
        Some(bytes) => say(
            Value::No,
            format!(
                "a tensor has {} bytes in {}, expected {TENSOR_BYTES}",
                bytes.saturating_sub(OBJECT_BYTES),
                base.name()
            ),
        ),
        None => say(Value::Unknown, format!("how large a tensor is in {} is found out at the start", base.name())),
    }
}

fn capture(objects: &[Object], tensors: &Prediction, decode: &Prediction) -> Prediction {
    let needed = both(tensors, decode);
    if needed.value != Value::Yes {
        return needed;
    }
    let own = |name: &str| objects.iter().any(|o| o.own_calls.contains(name) && !o.is_symbolic);
    let defined = |name: &str| objects.iter().any(|o| o.defines.contains(name));
    let (value, reason) = if own("ggml_gallocr_alloc_graph") {
        (Value::Yes, "the allocator's calls are seen: tensors are kept until the graph has run")
    } else if defined("ggml_backend_sched_set_eval_callback") {
        (Value::Yes, "by the eval callback, which cuts the graph: the allocator's own calls are not seen")
    } else {
        (Value::No, "neither the allocator's calls nor the eval callback can be reached")
    };
    Prediction { value, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::feature;
    use super::{Object, Predictions, Value};

    fn object(name: &str, defines: &[&str], imports: &[&str]) -> Object {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Object {
            path: name.into(),
            defines: set(defines),
            imports: set(imports),
            own_calls: set(defines),
            ..Object::default()
        }
    }

    /// A build that is as it should be.
    fn build() -> Vec<Object> {
        let server = object("server", &[], &["llama_decode", "llama_model_load_from_file"]);
        let llama = object(
            "libllama.so",
            &["llama_decode", "llama_model_load_from_file"],
            &["ggml_backend_sched_alloc_graph", "ggml_backend_sched_graph_compute_async"],
        );
        let mut base = object(
            "libggml-base.so",
            &[
                "ggml_tensor_overhead",
                "ggml_gallocr_alloc_graph",
                "ggml_backend_sched_alloc_graph",
                "ggml_backend_sched_graph_compute_async",
            ],
            &[],
        );
        base.tensor_overhead = Some(368);
        let cpu = object("libggml-cpu.so", &["ggml_barrier", "ggml_cpu_extra_compute_forward"], &[]);
        vec![server, llama, base, cpu]
    }

    fn predicted(objects: &[Object]) -> Predictions {
        Predictions::of(objects, &feature::features(objects, false), false)
    }

    #[test]
    fn a_build_with_open_calls_gives_everything() {
        let p = predicted(&build());
        let values = [&p.requests, &p.models, &p.layout, &p.tensors, &p.capture, &p.operation_times].map(|p| p.value);
        assert_eq!(values, [Value::Yes; 6], "{p:?}");
        assert!(p.capture.reason.contains("kept until the graph has run"), "{}", p.capture.reason);
    }

    #[test]
    fn another_tensor_costs_what_needs_tensors() {
        let mut objects = build();
        objects[2].tensor_overhead = Some(384);
        let p = predicted(&objects);
        assert_eq!([&p.layout, &p.tensors, &p.capture, &p.operation_times].map(|p| p.value), [Value::No; 4]);
        assert_eq!(p.capture.reason, "a tensor has 352 bytes in libggml-base.so, expected 336");
        assert_eq!([&p.requests, &p.models].map(|p| p.value), [Value::Yes; 2]);
        objects[2].tensor_overhead = None;
        assert_eq!(predicted(&objects).capture.value, Value::Unknown);
    }

    #[test]
    fn a_backend_that_was_not_found_is_not_known_and_a_closed_one_is() {
        let mut objects = build();
        objects[3].own_calls.clear();
        assert_eq!(predicted(&objects).operation_times.value, Value::No);
        objects.pop();
        assert_eq!(predicted(&objects).operation_times.value, Value::Unknown);
    }

    #[test]
    fn a_bound_allocator_leaves_the_callback() {
        let mut objects = build();
        objects[2].own_calls.clear();
        assert_eq!(predicted(&objects).capture.value, Value::No);
        objects[2].defines.insert("ggml_backend_sched_set_eval_callback".to_owned());
        let p = predicted(&objects);
        assert!(p.capture.value == Value::Yes && p.capture.reason.contains("cuts the graph"), "{p:?}");
    }
}
