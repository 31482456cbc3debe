//! Results as something to look at: text for a terminal, JSON for programs, one self-contained HTML page.
//!
//! Before it: `analyze`. Everything that came out of the log is foreign text: control characters are taken out for
//! terminals, markup is escaped for HTML.

mod devices;
pub mod gaps;
pub mod html;
pub mod json;
pub mod live;
pub mod perfetto;
pub mod prometheus;
pub mod stream;
pub mod table;
pub mod text;
pub mod units;
