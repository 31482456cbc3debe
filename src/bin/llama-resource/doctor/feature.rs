//! Which features work: each is a set of symbols, and each symbol is reached or not.

use serde::Serialize;

use super::elf::Object;

/// Whether a feature works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Works {
    /// No call can be seen.
    No,
    /// It depends on how the host calls the library.
    Depends,
    /// Some calls can be seen.
    Partly,
    /// Every call can be seen.
    Yes,
}

/// A line of the verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it is.
    pub feature: &'static str,
    /// Whether it works.
    pub works: Works,
    /// Why, in one sentence.
    pub why: String,
}

/// How a set of symbols makes a feature.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    /// One of these is enough: the API changed over time, and each build calls one of them.
    AnyOf(&'static [&'static str]),
    /// All of these, each called from one library into another.
    AllOf(&'static [&'static str]),
    /// All of these, called within the library that defines them too.
    AllInside(&'static [&'static str]),
    /// Whatever of these prefixes there is; what it means if there is nothing.
    Prefix(&'static [&'static str], Works, &'static str),
}

/// The functions of the KV cache, by the names that they have had: since June 2025, for some months before,
/// and until then.
const KV: [&str; 3] = ["llama_memory_seq_", "llama_kv_self_seq_", "llama_kv_cache_seq_"];

const FEATURES: [(&str, Rule); 8] = [
    ("model", Rule::AllOf(&["llama_model_load_from_file", "llama_init_from_model"])),
    ("decode", Rule::AnyOf(&["llama_process", "llama_decode"])),
    (
        "batches",
        Rule::Prefix(
            &["llama_batch_ext_"],
            Works::Yes,
            "this build passes the batch to llama_decode itself, which is seen",
        ),
    ),
    ("requests", Rule::AllOf(&["llama_set_sampler", "llama_sampler_accept", "llama_get_logits_ith"])),
    (
        "KV operations",
        Rule::Prefix(
            &KV,
            Works::No,
            "this build has none of the functions that are known; a prompt is known by its positions alone",
        ),
    ),
    (
        "memory",
        Rule::AllInside(&[
            "ggml_backend_buft_alloc_buffer",
            "ggml_backend_buffer_set_usage",
            "ggml_backend_tensor_alloc",
        ]),
    ),
    ("graphs", Rule::AllOf(&["ggml_backend_sched_graph_compute_async", "ggml_backend_sched_alloc_graph"])),
    (OP_TIMES, Rule::AllInside(&["ggml_barrier", "ggml_cpu_extra_compute_forward"])),
];

/// Whether calls of a host are seen that may look functions up by handle: `dlsym` is answered on x86-64 alone.
const BY_HANDLE: Works = if cfg!(target_arch = "x86_64") { Works::Yes } else { Works::Depends };

/// How one symbol is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    /// No file defines it.
    Absent,
    /// A library calls into another one: from, to.
    Across(String, String),
    /// The library calls itself through its PLT, so that a preloaded definition comes first.
    Own(String),
    /// Defined, but none of these files calls it where it could be seen.
    Unseen(String),
}

fn reach(symbol: &str, objects: &[Object], inside: bool) -> Reach {
    let Some(definer) = objects.iter().find(|o| o.defines.contains(symbol)) else { return Reach::Absent };
    let own = objects.iter().find(|o| o.own_calls.contains(symbol) && !o.is_symbolic);
    let caller = objects.iter().find(|o| o.imports.contains(symbol));
    match (own, caller) {
        (Some(own), _) if inside => Reach::Own(own.name()),
        (_, Some(caller)) => Reach::Across(caller.name(), definer.name()),
        (Some(own), None) => Reach::Own(own.name()),
        (None, None) => Reach::Unseen(definer.name()),
    }
}

impl Reach {
    /// `for_host`: the binary is a library, so its host may call what nobody here calls.
    fn works(&self, inside: bool, for_host: bool) -> Works {
        match self {
            Self::Absent => Works::No,
            Self::Across(..) if inside => Works::Partly,
            Self::Across(..) | Self::Own(_) => Works::Yes,
            Self::Unseen(_) if for_host && !inside => BY_HANDLE,
            Self::Unseen(_) => Works::No,
        }
    }

    fn why(&self, symbol: &str, inside: bool, for_host: bool) -> String {
        match self {
            Self::Absent => format!("{symbol} is not exported"),
            Self::Across(from, to) if inside => {
                format!("{symbol}: calls from {from} are seen, calls within {to} are bound inside it")
            }
            Self::Across(from, to) => format!("{symbol}: {from} calls {to}"),
            Self::Own(library) => format!("{symbol}: {library} calls it through its PLT"),
            Self::Unseen(library) if inside => {
                format!(
                    "{symbol}: calls within {library} are bound inside it (-Bsymbolic, LTO or -fno-semantic-interposition)"
                )
            }
            Self::Unseen(library) if for_host && BY_HANDLE == Works::Yes => {
                format!("{symbol}: in {library}; seen in a host that links it and in one that looks it up (dlsym)")
            }
            Self::Unseen(library) if for_host => {
                format!(
                    "{symbol}: in {library}; a host that links it is seen, one that uses dlsym (Python's ctypes) is not"
                )
            }
            Self::Unseen(library) => format!("{symbol}: in {library}, but nothing here calls it"),
        }
    }
}

/// Name of the feature that needs the CPU backend.
pub(super) const OP_TIMES: &str = "op times (CPU)";

/// The verdict on every feature.
pub fn features(objects: &[Object], for_host: bool) -> Vec<Feature> {
    const CPU: [&str; 2] = ["ggml_barrier", "ggml_backend_cpu_init"];
    let is_cpu = |o: &Object| o.name().starts_with("libggml-cpu") || CPU.iter().any(|name| o.defines.contains(*name));
    let has_cpu = objects.iter().any(is_cpu);
    let of = |&(feature, rule): &(&'static str, Rule)| match feature {
        OP_TIMES if !has_cpu => Feature {
            feature,
            works: Works::Depends,
            why: "no CPU backend was found where ggml looks for one: the host may load it from elsewhere".to_owned(),
        },
        _ => judge(feature, rule, objects, for_host),
    };
    FEATURES.iter().map(of).collect()
}

/// The same verdict on every feature, where nothing of the binary can tell them apart.
pub fn all(works: Works, why: &str) -> Vec<Feature> {
    FEATURES.iter().map(|&(feature, _)| Feature { feature, works, why: why.to_owned() }).collect()
}

pub(super) fn judge(feature: &'static str, rule: Rule, objects: &[Object], for_host: bool) -> Feature {
    let (symbols, inside, any): (Vec<&str>, bool, bool) = match rule {
        Rule::AnyOf(symbols) => (symbols.to_vec(), false, true),
        Rule::AllOf(symbols) => (symbols.to_vec(), false, false),
        Rule::AllInside(symbols) => (symbols.to_vec(), true, false),
        Rule::Prefix(prefixes, works, why) => {
            let has_one = |n: &&str| prefixes.iter().any(|p| n.starts_with(p));
            let mut names: Vec<&str> = objects.iter().flat_map(|o| &o.imports).map(String::as_str).collect();
            names.retain(has_one);
            names.sort_unstable();
            names.dedup();
            if names.is_empty() {
                names = objects.iter().flat_map(|o| &o.defines).map(String::as_str).collect();
                names.retain(has_one);
            }
            if names.is_empty() {
                return Feature { feature, works, why: why.to_owned() };
            }
            (names, false, true)
        }
    };
    let reaches: Vec<(&str, Reach)> = symbols.iter().map(|&s| (s, reach(s, objects, inside))).collect();
    let works_of = |r: &Reach| r.works(inside, for_host);
    let works = if any {
        reaches.iter().map(|(_, r)| works_of(r)).max()
    } else {
        let (least, most) =
            (reaches.iter().map(|(_, r)| works_of(r)).min(), reaches.iter().map(|(_, r)| works_of(r)).max());
        // One missing symbol of several leaves the others.
        if least == Some(Works::No) && most > Some(Works::No) { Some(Works::Partly) } else { least }
    }
    .unwrap_or(Works::No);
    // The symbol that decides: the best of alternatives, the worst of parts.
    let deciding = if any {
        reaches.iter().find(|(_, r)| works_of(r) == works)
    } else {
        reaches.iter().min_by_key(|(_, r)| works_of(r))
    };
    // Good news are told once for all symbols of the feature, bad news for the one that causes them.
    let more = symbols.len().saturating_sub(1);
    let alike = if !any && more > 0 && works == Works::Yes { format!(" and {more} more") } else { String::new() };
    let why = deciding.map_or_else(String::new, |(s, r)| r.why(&format!("{s}{alike}"), inside, for_host));
    Feature { feature, works, why }
}

#[cfg(test)]
mod tests {
    use super::{Object, Works, features};

    fn object(name: &str, defines: &[&str], imports: &[&str], own: &[&str]) -> Object {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Object {
            path: name.into(),
            defines: set(defines),
            imports: set(imports),
            own_calls: set(own),
            ..Object::default()
        }
    }

    fn works(objects: &[Object], name: &str, for_host: bool) -> Works {
        features(objects, for_host).into_iter().find(|f| f.feature == name).unwrap().works
    }

    #[test]
    fn either_decode_call_is_enough() {
        let server = object("server", &[], &["llama_decode"], &[]);
        let llama = object("libllama.so", &["llama_decode"], &[], &[]);
        assert_eq!(works(&[server, llama.clone()], "decode", false), Works::Yes);
        assert_eq!(works(std::slice::from_ref(&llama), "decode", false), Works::No);
        // Python's ctypes looks it up by handle, which is answered here.
        assert_eq!(works(&[llama], "decode", true), super::BY_HANDLE);
    }

    #[test]
    fn op_times_need_the_plt_of_the_cpu_library() {
        let names = ["ggml_barrier", "ggml_cpu_extra_compute_forward"];
        assert_eq!(works(&[object("cpu", &names, &[], &names)], "op times (CPU)", false), Works::Yes);
        assert_eq!(works(&[object("cpu", &names, &[], &[])], "op times (CPU)", false), Works::No);
        assert_eq!(works(&[object("cpu", &names, &[], &names[..1])], "op times (CPU)", false), Works::Partly);
        let symbolic = Object { is_symbolic: true, ..object("cpu", &names, &[], &names) };
        assert_eq!(works(&[symbolic], "op times (CPU)", false), Works::No);
    }

    #[test]
    fn kv_operations_have_had_three_names_and_are_not_seen_by_a_fourth() {
        for name in ["llama_memory_seq_rm", "llama_kv_self_seq_rm", "llama_kv_cache_seq_rm"] {
            let objects = [object("server", &[], &[name], &[]), object("libllama.so", &[name], &[], &[])];
            assert_eq!(works(&objects, "KV operations", false), Works::Yes, "{name}");
        }
        let other = ["llama_kv_other_rm"];
        let objects = [object("server", &[], &other, &[]), object("libllama.so", &other, &[], &[])];
        assert_eq!(works(&objects, "KV operations", false), Works::No);
    }

    #[test]
    fn an_older_build_without_batch_builders_is_complete() {
        assert_eq!(works(&[], "batches", false), Works::Yes);
    }
}
