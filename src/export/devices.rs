//! Rows of the tables about the devices that share a model; the same on the terminal and on a page.

use super::units::{UNKNOWN, bytes, count, count_short, known, milliseconds, number};
use crate::analyze::devices::{Copies, Device};

/// What stands above both.
pub(super) const ASIDE: &str = "a split's time ends when the host knows it is done: no kernel time";

/// Columns of the table of devices.
pub(super) const DEVICE: [&str; 8] =
    ["<device", "<in", "operations", "FLOP", "splits", "timed", "serialized", "split time"];

/// Columns of the table of copies between two devices.
pub(super) const COPIES: [&str; 7] = ["<copied from", "<to", "tensors", "bytes", "timed", "time", "GB/s"];

fn name(name: Option<&String>) -> String {
    name.cloned().unwrap_or_else(|| UNKNOWN.to_owned())
}

pub(super) fn device(d: &Device) -> [String; 8] {
    [
        d.device.clone(),
        name(d.memory_type.as_ref()),
        count(d.operations),
        count_short(d.flops),
        count(d.splits),
        count(d.timed_splits),
        count(d.serialized_splits),
        known(d.split_us, |us| milliseconds(us / 1e3)),
    ]
}

pub(super) fn copies(c: &Copies) -> [String; 7] {
    [
        name(c.from_device.as_ref()),
        name(c.to_device.as_ref()),
        count(c.count),
        bytes(c.bytes),
        count(c.timed_count),
        known(c.timed_us, |us| milliseconds(us / 1e3)),
        known(c.gbps, number),
    ]
}
