//! An activation stream back into packets: everything that is whole, in order, and an account of everything
//! that is not.
//!
//! Before it: `format::stream` (what a packet is). After it: `analyze`, `export`. A packet is given only after its
//! CRC was checked; behind damage the next whole packet is searched. One packet is in memory at a time, and no bytes
//! make this panic.

mod account;
mod catalog;
mod legacy;
mod reader;
mod resume;
mod values;
mod walk;
mod window;

pub use account::{Damage, Gap, Location, StreamAccount};
pub use catalog::{Catalog, Tensor};
pub use legacy::{LegacyCodec, LegacyPacket};
pub use reader::{Form, Item, StreamReader};
pub use resume::ResumePoint;
pub use values::{decode, to_f32, to_f64};
