//! docs/CONFIGURATION.md lists exactly the settings of `config::SETTINGS`, with the same default, values and meaning.

use std::{env, fs, path::Path};

use llama_resource_instrumentation::config::SETTINGS;

/// The fields that each section has, in this order.
const FIELDS: [&str; 4] = ["Default", "Values", "Meaning", "Notes"];

/// Sections about a variable: name and the four fields, without the back-quotes that only the page has.
fn sections() -> Vec<(String, Vec<(String, String)>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md");
    let text = fs::read_to_string(&path).expect("docs/CONFIGURATION.md");
    text.split("\n## ")
        .filter(|s| s.starts_with("LLAMA_RESOURCE_"))
        .map(|section| {
            let (name, rest) = section.split_once('\n').expect("a body");
            // A field is a list item; its further lines are indented.
            let joined = rest.replace("\n  ", " ").replace('`', "");
            let fields = joined.lines().filter_map(|l| l.strip_prefix("- **")?.split_once(":** "));
            (name.to_owned(), fields.map(|(f, v)| (f.to_owned(), v.to_owned())).collect())
        })
        .collect()
}

#[test]
fn the_page_lists_the_settings_in_order() {
    let found: Vec<String> = sections().into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, SETTINGS.iter().map(|s| s.name).collect::<Vec<_>>());
}

#[test]
fn every_section_says_what_the_table_says() {
    for (setting, (name, fields)) in SETTINGS.iter().zip(sections()) {
        assert_eq!(fields.iter().map(|(f, _)| f.as_str()).collect::<Vec<_>>(), FIELDS, "{name}");
        let expected = [setting.default, setting.values, setting.help].map(|t| t.replace('`', ""));
        for ((field, found), expected) in fields.iter().zip(expected) {
            assert_eq!(*found, expected, "{name}: {field}");
        }
    }
}
