//! Terminal section about the devices that share a model; none where everything runs on one.

use super::super::devices::{ASIDE, COPIES, DEVICE, copies, device};
use super::super::table::{Style, Table};
use super::heading;
use crate::analyze::Session;

pub(super) fn devices(session: &Session, style: Style) -> String {
    let found = &session.devices;
    if found.devices.len() < 2 {
        return String::new();
    }
    let mut table = Table::new(&DEVICE);
    found.devices.iter().for_each(|d| table.row(device(d)));
    let mut out = heading("DEVICES", ASIDE, style) + &table.render(style);
    if !found.copies.is_empty() {
        let mut table = Table::new(&COPIES);
        found.copies.iter().for_each(|c| table.row(copies(c)));
        out.push('\n');
        out += &table.render(style);
    }
    out
}
