//! `maree-db.toml`: schema, defaults, validation, and the reference page that is made from them.
//!
//! Every fault of a file is told at once, with its line, its key, and the nearest key that exists.

mod addresses;
pub mod bounds;
mod faults;
mod level;
mod load;
mod nearest;
pub mod reference;
mod schema;
mod validate;

pub use addresses::is_loopback;
pub use faults::{Fault, Faults};
pub use level::LEVEL_BYTES_MAX;
pub use load::{load, load_with, parse};
pub use schema::*;
pub use validate::MESSAGE_EXTRA_BYTES;
