//! The results as they are, as JSON.

use crate::analyze::Report;

/// One JSON object, indented, with a final line break.
///
/// # Errors
/// Never for a report that `analyze` made; the serializer's own type says it could.
pub fn render(report: &Report) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}
