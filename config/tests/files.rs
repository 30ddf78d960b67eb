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
fn peers_without_enabled_are_no_node_alone() {
    let peers = "[cluster]\nnode_id = \"node1\"\npeers = [\"192.168.1.11:7001\"]\n";
    for text in [peers.to_owned(), format!("{peers}enabled = false\n")] {
        let told = faults(&text);
        assert!(
            told.contains("cluster.enabled: is not true, and cluster.peers lists nodes"),
            "{told}"
        );
    }
    assert!(parse(&format!("{peers}enabled = true\n"), "x").is_ok());
}

#[test]
fn only_a_cluster_of_one_machine_is_on_loopback() {
    let cluster = |server: &str, peers: &str| {
        format!("[server]\n{server}\n[cluster]\nenabled = true\npeers = [{peers}]\n")
    };
    let (own, far) = ("advertise_addr = \"127.0.0.1\"", "\"192.168.1.11:7001\"");
    for (server, peers) in [
        (own, "\"127.0.0.2:7001\", \"127.0.0.3:7001\""),
        (own, "\"localhost:7002\", \"[::1]:7003\""),
        ("listen_addr = \"127.0.0.1\"", "\"127.0.0.2:7001\""),
        // What a name leads to is looked up at the start.
        (own, "\"db2.example:7001\""),
        ("advertise_addr = \"192.168.1.10\"", far),
        // The others find by its incarnation whom they dial.
        (
            "advertise_addr = \"192.168.1.10\"",
            "\"127.0.0.1:7001\", \"192.168.1.11:7001\"",
        ),
        // Behind a proxy.
        (
            "listen_addr = \"127.0.0.1\"\nadvertise_addr = \"192.168.1.10\"",
            far,
        ),
    ] {
        let text = cluster(server, peers);
        assert!(parse(&text, "x").is_ok(), "{}", faults(&text));
    }
    for (server, peers, wrong) in [
        (
            own,
            far.to_owned(),
            "maree-db.toml:2: server.advertise_addr: is '127.0.0.1'",
        ),
        (
            "listen_addr = \"127.0.0.1\"",
            far.to_owned(),
            "maree-db.toml:2: server.listen_addr: is '127.0.0.1'",
        ),
        (
            "",
            format!("\"localhost:7001\", {far}"),
            "maree-db.toml:5: cluster.peers: 'localhost:7001' is each machine itself",
        ),
        (
            "",
            format!("{far}, \"[::1]:7001\""),
            "maree-db.toml:5: cluster.peers: '[::1]:7001' is each machine itself",
        ),
    ] {
        let told = faults(&cluster(server, &peers));
        assert!(told.starts_with(wrong), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}

#[test]
fn values_that_would_be_found_out_while_the_node_runs_are_refused() {
    for (section, line, why) in [
        (
            "cluster",
            "enabled = true\nconsensus_port = 0",
            "is 0: from 1",
        ),
        (
            "cluster",
            "enabled = true\npeers = [\"192.168.1.1111:7001\"]",
            "is no IPv4 address",
        ),
        (
            "cluster",
            "enabled = true\npeers = [\"0.0.0.0:7001\"]",
            "is no address that others can reach",
        ),
        ("storage", "history_ms = 0", "is 0: at least 1000"),
        (
            "storage",
            "segment_bytes = 4194304",
            "is 4194304: at least 4325376, twice what the largest request or batch needs",
        ),
        // Small requests make no small batches.
        (
            "limits",
            "value_bytes_max = 65536\nrequest_bytes_max = 131072\n[storage]\nsegment_bytes = 2097152",
            "is 2097152: at least 2228224, twice what the largest request or batch needs",
        ),
        (
            "ipc",
            "read_ring_bytes = 4194304",
            "is 4194304: at least 6815744",
        ),
        (
            "ipc",
            "log_ring_bytes = 4194304",
            "is 4194304: at least 6815744, four times what the largest outcome needs",
        ),
        (
            "ipc",
            "client_ring_bytes = 4194304",
            "is 4194304: at least 6815744, four times what the largest outcome needs",
        ),
        (
            "ipc",
            "bulk_ring_bytes = 4194304",
            "is 4194304: at least 6815744, four times what the largest pair needs",
        ),
        (
            "limits",
            "value_bytes_max = 2093056",
            "ipc.bulk_ring_bytes: is 8388608: at least 8650752, four times what the largest pair needs",
        ),
        (
            "ipc",
            "bulk_ring_bytes = 8589934592",
            "is 8589934592: from 1048576 to 4294967296",
        ),
        (
            "limits",
            "timeout_ms_max = 4500",
            "is 4500: from 5000 to 3600000",
        ),
        (
            "limits",
            "idempotency_ttl_ms = 119999",
            "is 119999: at least 120000, twice limits.timeout_ms_max",
        ),
        (
            "limits",
            "session_ttl_ms = 600000\ntimeout_ms_max = 300001\nidempotency_ttl_ms = 900000",
            "is 600000: at least 600002, twice limits.timeout_ms_max",
        ),
        ("log", "level = \"warning\"", "'warning' is no level"),
    ] {
        let smaller = "[limits]\nvalue_bytes_max = 65536\nrequest_bytes_max = 131072\n";
        let limits = if section == "ipc" { smaller } else { "" };
        let told = faults(&format!("{limits}[{section}]\n{line}\n"));
        assert!(told.contains(why), "{line}: {told}");
    }
    for text in [
        "[cluster]\nconsensus_port = 0\n",
        "[limits]\nidempotency_ttl_ms = 120000\n",
        "[limits]\ntimeout_ms_max = 5000\nidempotency_ttl_ms = 10000\n",
        "[storage]\nhistory_ms = 1000\n",
        "[storage]\nsegment_bytes = 4325376\n",
        "[ipc]\nread_ring_bytes = 16777216\n",
    ] {
        assert!(parse(text, "x").is_ok(), "{}", faults(text));
    }
}

#[test]
fn no_number_is_too_large_to_be_judged() {
    let most = i64::MAX;
    let text = format!(
        "[cluster]\nenabled = true\nheartbeat_ms = {most}\n\
         [storage]\nsegment_bytes = {most}\n\
         [limits]\nkey_bytes_max = {most}\nvalue_bytes_max = {most}\nrequest_bytes_max = {most}\ntimeout_ms_max = {most}\n"
    );
    let told = faults(&text);
    for key in [
        "cluster.election_timeout_min_ms",
        "storage.log_retain_bytes",
        "ipc.bulk_ring_bytes",
        "limits.request_bytes_max",
        "limits.session_ttl_ms",
    ] {
        assert!(told.contains(&format!(" {key}: is ")), "{key}: {told}");
    }
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
