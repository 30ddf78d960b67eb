//! What each target does with its bytes, and where the fuzzer starts from. It can be included as a module: nothing here needs
//! the fuzzer.
//!
//! Bytes in front of which a checksum stands are built from the input and sealed here, or the decoder behind the checksum
//! would never be reached.

pub mod command;
pub mod config;
pub mod formation;
pub mod grpc;
pub mod log_segments;
pub mod log_unit;
pub mod peer_frame;
pub mod peer_stream;
pub mod records;
pub mod rest;
pub mod ring;
pub mod snapshot;
pub mod wire;

use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;

/// A target.
pub struct Target {
    /// Its name, and its corpus'.
    pub name: &'static str,
    /// Takes any bytes; panics when a rule is broken.
    pub run: fn(&[u8]),
    /// Inputs by the project's own encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! targets {
    ($($name:ident)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), run: $name::run, seeds: $name::seeds }),*];
    };
}
targets! { command config grpc log_segments log_unit peer_frame peer_stream records rest ring snapshot wire }

/// With `MAREE_SEEDS=DIR` a target writes its seeds there and ends.
pub fn start(name: &str) {
    let Some(dir) = std::env::var_os("MAREE_SEEDS").map(PathBuf::from) else {
        return;
    };
    for target in TARGETS.iter().filter(|target| target.name == name) {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{number:02}")), seed).expect("a seed");
        }
    }
    std::process::exit(0);
}

/// The next value of a stream of postcard values.
pub(crate) fn next<T: DeserializeOwned>(bytes: &mut &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    *bytes = rest;
    Some(value)
}

/// Such a stream.
pub(crate) fn stream<T: Serialize>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        mareedb_ipc::wire::encode_into(value, &mut out);
    }
    out
}
