//! HTML card about the devices that share a model; none where everything runs on one.

use super::super::devices::{ASIDE, COPIES, DEVICE, copies, device};
use super::{card, html_table};
use crate::analyze::Session;

pub(super) fn devices(session: &Session) -> String {
    let found = &session.devices;
    if found.devices.len() < 2 {
        return String::new();
    }
    let rows: Vec<Vec<String>> = found.devices.iter().map(|d| device(d).to_vec()).collect();
    let mut content = html_table(&DEVICE, &rows);
    if !found.copies.is_empty() {
        let rows: Vec<Vec<String>> = found.copies.iter().map(|c| copies(c).to_vec()).collect();
        content += &html_table(&COPIES, &rows);
    }
    card("Devices", ASIDE, &content)
}
