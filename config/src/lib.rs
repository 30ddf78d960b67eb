//! `maree-db.toml`: schema, defaults, validation.
mod schema;
pub use schema::*;
