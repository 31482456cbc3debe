//! Settings: the selection language, and values of every variable.

use llama_resource_instrumentation::config::{self, Config, SETTINGS};
use llama_resource_instrumentation::graph::component::Component;
use llama_resource_instrumentation::select::{Candidate, Selection};

use super::random::Random;

/// A text that is nearly a selection.
pub fn make_selection(random: &mut Random, corpus: &[&str]) -> String {
    let mut text = (*random.of(corpus)).to_owned();
    for _ in 0..random.below(4) {
        let between = *random.of::<&str>(&[",", " ", "-", "@", "+", ""]);
        text += between;
        let further = *random.of::<&str>(corpus);
        text += further;
    }
    random.damage_text(&text, corpus)
}

/// A selection is read or refused in one line, and says the same of a name each time it is asked.
pub fn check_selection(text: &str) {
    let selection = match Selection::parse(text) {
        Ok(selection) => selection,
        Err(why) => {
            assert!(!why.is_empty());
            return;
        }
    };
    assert_eq!(Selection::parse(selection.text()).as_ref(), Ok(&selection), "its own text is the same selection");
    for (name, layer) in [
        ("l_out-3", Some(3)),
        ("ffn_out-2147483647", Some(i32::MAX)),
        ("*", None),
        ("", None),
        ("Qcur-0 (view)", Some(0)),
    ] {
        for component in [Component::from_u8(0), Component::from_u8(1), Component::from_u8(2)] {
            let base = name.split('-').next().unwrap_or_default();
            let node = Candidate { name, base, layer, component, op: "MUL_MAT", n_layer: Some(i32::MAX), twin: false };
            let wanted = selection.wants(&node);
            assert_eq!(wanted, selection.chosen(selection.matches(&node)));
            assert!(wanted.is_none_or(|term| selection.term(term).is_some()));
        }
    }
}

/// Some variables, known, nearly known, and with values of others.
pub fn make_variables(random: &mut Random, corpus: &[&str]) -> Vec<(String, String)> {
    let names: Vec<&str> = SETTINGS.iter().map(|s| s.name).collect();
    (0..=random.below(4))
        .map(|_| {
            let name = *random.of(&names);
            let name =
                if random.once_in(10) { random.damage_text(name, &["_", "LLAMA_RESOURCE_"]) } else { name.to_owned() };
            let value = *random.of(corpus);
            (name, if random.once_in(2) { value.to_owned() } else { random.damage_text(value, corpus) })
        })
        .collect()
}

/// A value is taken or warned of, as `check` says; one that is not taken changes nothing.
pub fn check_variables(variables: &[(String, String)]) {
    for (name, value) in variables {
        let (config, warnings) = Config::parse([(name.clone(), value.clone())]);
        if !SETTINGS.iter().any(|s| s.name == name) || value.is_empty() {
            assert_eq!(config, Config::default(), "{name}={value:?}");
            continue;
        }
        match config::check(name, value) {
            Ok(()) => assert!(warnings.is_empty(), "{warnings:?}"),
            Err(why) => {
                assert!(!why.is_empty() && warnings.len() == 1, "{name}={value:?}: {why}: {warnings:?}");
                assert_eq!(config, Config::default(), "{name}={value:?}");
            }
        }
        let path = config.resolved_log_path(7, 8, "srv");
        let name = config.log_path.file_name();
        if let (Some(pattern), Some(name)) = (name, path.file_name())
            && pattern.len() < 64
        {
            assert!(config::fits(pattern, name), "{pattern:?} {name:?}");
        }
        let _ = (config.bytes_per_second(), config::apart(&config.log_path));
    }
    let _ = Config::parse(variables.iter().cloned());
}
