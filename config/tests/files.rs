//! Configurations as people write them.

use mareedb_config::{Config, parse, reference};
use proptest::prelude::*;

fn faults(text: &str) -> String {
    parse(text, "maree-db.toml").unwrap_err().to_string()
}

#[test]
fn the_guides_snippets_parse_as_they_stand() {
    for (node, peers) in [
        ("node1", "\"192.168.1.11:7001\", \"192.168.1.12:7001\""),
        ("node2", "\"192.168.1.10:7001\", \"192.168.1.12:7001\""),
    ] {
        let text = format!(
            "[cluster]\nenabled = true\nnode_id = \"{node}\"\npeers = [{peers}]\nconsensus_port = 7001\nreplication_factor = 3\n"
        );
        let config = parse(&text, "x").unwrap();
        assert_eq!(config.cluster.node_id.as_deref(), Some(node));
        assert_eq!(config.cluster.peers.len(), 2);
    }
    let bft = "[cluster]\nenabled = true\nbft_mode = true\npeers = [\n\"192.168.1.11:7001\", \"192.168.1.12:7001\"\n]\n";
    assert!(
        faults(bft).contains("cluster.bft_mode: UNSUPPORTED"),
        "{}",
        faults(bft)
    );
    let discover = "[cluster]\nenabled = true\nauto_discover = true\n# peers = []\n";
    assert!(
        faults(discover).contains("cluster.auto_discover: UNSUPPORTED"),
        "{}",
        faults(discover)
    );
}

#[test]
fn an_empty_file_is_a_node_alone() {
    assert_eq!(parse("", "x").unwrap(), Config::default());
}

#[test]
fn every_fault_is_told_at_once_with_its_line_and_what_was_meant() {
    let text = "\
[server]
data_dir = \"relative\"
rest_prot = 8080

[cluster]
enabled = true
peers = [\"192.168.1.11\", \"b:7001\", \"b:7001\"]
consensus_port = \"7001\"
election_timeout_min_ms = 100

[storrage]
shards = 1

[ipc]
log_ring_bytes = 1000000
node_id = \"x\"
";
    assert_eq!(
        faults(text),
        "maree-db.toml:2: server.data_dir: is 'relative': an absolute path is wanted\n\
         maree-db.toml:3: server.rest_prot: there is no such key; did you mean 'rest_port'?\n\
         maree-db.toml:7: cluster.peers: '192.168.1.11' has no port; HOST:PORT is wanted, for example 192.168.1.11:7001\n\
         maree-db.toml:7: cluster.peers: 'b:7001' stands there twice\n\
         maree-db.toml:8: cluster.consensus_port: invalid type: string \"7001\", expected u16\n\
         maree-db.toml:9: cluster.election_timeout_min_ms: is 100: at least twice heartbeat_ms (100), or a late heartbeat is an election\n\
         maree-db.toml:11: storrage: there is no such section; did you mean 'storage'?\n\
         maree-db.toml:15: ipc.log_ring_bytes: is 1000000: a power of two is wanted\n\
         maree-db.toml:16: ipc.node_id: there is no such key; it belongs into [cluster]"
    );
}

#[test]
fn syntax_has_a_line_too() {
    let text = faults("[server]\nrest_port = = 1\n");
    assert!(text.starts_with("maree-db.toml:2: "), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let error = mareedb_config::load(std::path::Path::new("/nowhere/maree-db.toml")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("/nowhere/maree-db.toml: cannot be read"),
        "{error}"
    );
}

#[test]
fn the_reference_page_is_what_the_schema_says() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.md"))
        .unwrap_or_default();
    assert!(
        page == reference::page(),
        "docs/config.md is out of date: cargo run -p mareedb-config --example reference > docs/config.md"
    );
    for key in [
        "data_dir",
        "advertise_addr",
        "peers",
        "segment_bytes",
        "log_ring_bytes",
        "key_bytes_max",
        "format",
    ] {
        assert!(page.contains(&format!("| `{key}` |")), "{key}");
    }
}

proptest! {
    #[test]
    fn hostile_texts_never_panic(text in ".{0,200}") {
        let _ = parse(&text, "x");
    }

    #[test]
    fn hostile_values_never_panic(
        key in "(peers|node_id|enabled|heartbeat_ms|replication_factor)",
        value in "(-?[0-9]{1,20}|\"[a-z:\\[\\]0-9]{0,20}\"|\\[\"[^\"\\\\]{0,10}\"\\]|true|1.5|\\{a=1\\})",
    ) {
        let _ = parse(&format!("[cluster]\nenabled = true\n{key} = {value}\n"), "x");
    }
}
