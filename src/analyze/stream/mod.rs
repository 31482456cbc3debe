//! What an activation stream says: what it holds, statistics of its values, the place of every row.
//!
//! Before it: `read::stream` (packets), `codec` (their values). After it: `export::stream`. Pure, in one pass, in
//! memory that does not grow with the file.

pub mod glob;
pub mod inventory;
pub mod labels;
pub mod ledger;
pub mod moments;
pub mod steps;
pub mod survey;
pub mod values;

pub use glob::Globs;
pub use inventory::{Inventory, Tensor};
pub use labels::Label;
pub use ledger::{Amount, Ledger};
pub use moments::{Figures, Moments};
pub use survey::{Problem, Survey};
