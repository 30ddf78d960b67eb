//! DUR-2, SM-1, SM-2, SM-7: whatever a crash leaves of the state machine's files, the log brings the state back.

use crate::node::{Met, Node};
use crate::recorder::Skips;
use crate::seeds;
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS: u64 = 200;

/// Some lives.
fn run(seed: u64, skips: Option<Skips>) -> Met {
    let mut node = Node::new(seed, skips);
    for _ in 0..4 {
        node.live();
    }
    node.met
}

/// What a panic said.
fn said(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| {
        payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
    })
    .unwrap_or_default()
}

#[test]
fn the_log_brings_every_state_back() {
    let mut all = Met::default();
    for seed in seeds(SEEDS) {
        let ran = catch_unwind(|| run(seed, None));
        match ran {
            Ok(met) => {
                all.images += met.images;
                all.lost += met.lost;
                all.failed += met.failed;
                all.installed += met.installed;
                all.told += met.told;
                all.harmless += met.harmless;
            }
            Err(payload) => panic!(
                "seed {seed}: {}\nagain: CRASH_SEED={seed} cargo test -p mareedb-storaged --test crash the_log_brings_every_state_back",
                said(&*payload)
            ),
        }
    }
    eprintln!("{all:?}");
    if seeds(SEEDS).count() as u64 >= SEEDS {
        assert!(all.lost > all.images / 3, "the crashes hit little: {all:?}");
        assert!(
            all.installed > 20 && all.failed > 20 && all.told > 20,
            "{all:?}"
        );
    }
}

fn must_find(what: &str, skips: Skips) {
    for seed in 1..=SEEDS {
        let ran = catch_unwind(AssertUnwindSafe(|| run(seed, Some(skips))));
        if let Err(payload) = ran {
            let said = said(&*payload);
            eprintln!(
                "no sync of {what}: found by seed {seed}: {}",
                said.lines().next().unwrap_or("")
            );
            return;
        }
    }
    panic!("no sync of {what}: not found");
}

#[test]
fn a_table_that_is_not_synced_is_found() {
    must_find("tables", |path| path.contains("/tables/"));
}

#[test]
fn a_directory_of_tables_that_is_not_synced_is_found() {
    must_find("the directory of tables", |path| path.ends_with("/tables"));
}

#[test]
fn a_file_list_that_is_not_synced_is_found() {
    must_find("file lists", |path| {
        path.rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with('v'))
    });
}

#[test]
fn a_current_that_is_not_synced_is_found() {
    must_find("current", |path| {
        path.ends_with("/current") || path.contains("/.tmp")
    });
}

#[test]
fn a_tree_directory_that_is_not_synced_is_found() {
    must_find("trees' directories", |path| {
        path.rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with("tree-"))
    });
}

#[test]
fn a_manifest_that_is_not_synced_is_found() {
    must_find("the manifest", |path| path.ends_with("manifest.new"));
}

#[test]
fn a_store_directory_that_is_not_synced_is_found() {
    must_find("the store's directory", |path| path == "state");
}
