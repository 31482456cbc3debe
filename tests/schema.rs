//! x
use llama_resource_instrumentation::format::Line;
#[test]
fn show() {
    let s = schemars::generate::SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<Line>();
    println!("{}", serde_json::to_string_pretty(&s).unwrap());
}
