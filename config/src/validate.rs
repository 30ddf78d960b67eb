//! What types cannot say: ranges, forms, and how values fit together.

use crate::addresses::{loopback, peer_fault};
use crate::bounds;
use crate::level::level;
use crate::schema::{Cluster, Config, Ipc, Limits, Server, Storage};
use std::net::IpAddr;

/// Room that a message needs beyond the request that it carries.
pub const MESSAGE_EXTRA_BYTES: u64 = 64 << 10;
const OUTCOME_BYTES_MAX: u64 = bounds::OUTCOME_BYTES_MAX as u64;
const NAME_BYTES_MAX: usize = 63;
/// What clients ask for when nobody tells them otherwise: 5,000 by the API, a little less by the command line client.
const TIMEOUT_MS_LEAST: u64 = 5_000;
/// Pages of a scan are read at one revision, which a write must not end between two of them.
const HISTORY_MS_LEAST: u64 = 1_000;

/// A fault: `section.key`, and what is wrong with the way out.
pub(crate) type Found = Vec<(String, String)>;

/// Everything that is wrong.
pub(crate) fn validate(config: &Config) -> Found {
    let mut found = Found::new();
    server(&config.server, &mut found);
    cluster(config, &mut found);
    storage(&config.storage, &config.limits, &mut found);
    ipc(&config.ipc, &config.limits, &mut found);
    limits(&config.limits, &mut found);
    level(&config.log.level, &mut found);
    if !["text", "json"].contains(&config.log.format.as_str()) {
        add(
            &mut found,
            "log.format",
            format!("is '{}': text or json", config.log.format),
        );
    }
    found
}

pub(crate) fn add(found: &mut Found, key: &str, message: impl Into<String>) {
    found.push((key.to_owned(), message.into()));
}

fn within(found: &mut Found, key: &str, value: u64, from: u64, to: u64) {
    if value < from || value > to {
        add(found, key, format!("is {value}: from {from} to {to}"));
    }
}

fn server(server: &Server, found: &mut Found) {
    if !server.data_dir.starts_with('/') {
        add(
            found,
            "server.data_dir",
            format!("is '{}': an absolute path is wanted", server.data_dir),
        );
    }
    if server.listen_addr.parse::<IpAddr>().is_err() {
        add(
            found,
            "server.listen_addr",
            format!(
                "is '{}': an IP address is wanted; 0.0.0.0 listens on all of this machine",
                server.listen_addr
            ),
        );
    }
    if let Some(addr) = &server.advertise_addr {
        match addr.parse::<IpAddr>() {
            Err(_) => add(
                found,
                "server.advertise_addr",
                format!("is '{addr}': an IP address without a port is wanted"),
            ),
            Ok(addr) if addr.is_unspecified() => add(
                found,
                "server.advertise_addr",
                "is no address that others can reach: name one of this machine's",
            ),
            Ok(_) => {}
        }
    }
    within(
        found,
        "server.hang_limit_ms",
        server.hang_limit_ms,
        200,
        600_000,
    );
    within(
        found,
        "server.stop_limit_ms",
        server.stop_limit_ms,
        100,
        600_000,
    );
}

fn cluster(config: &Config, found: &mut Found) {
    let cluster = &config.cluster;
    if cluster.bft_mode {
        add(
            found,
            "cluster.bft_mode",
            "UNSUPPORTED: this version has no Byzantine fault tolerance; leave the key out",
        );
    }
    if cluster.auto_discover {
        add(
            found,
            "cluster.auto_discover",
            "UNSUPPORTED: this version does not discover peers; list them in cluster.peers and leave this key out",
        );
    }
    if let Some(name) = &cluster.node_id {
        let valid = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !valid {
            add(
                found,
                "cluster.node_id",
                format!("is '{name}': 1 to {NAME_BYTES_MAX} letters, digits, - _ . are wanted"),
            );
        }
    }
    if config.server.rest_port == cluster.consensus_port && cluster.consensus_port != 0 {
        add(
            found,
            "cluster.consensus_port",
            format!(
                "is {}, as server.rest_port: two ports are wanted",
                cluster.consensus_port
            ),
        );
    }
    if cluster.enabled && cluster.consensus_port == 0 {
        add(
            found,
            "cluster.consensus_port",
            "is 0: from 1 to 65535, since the other nodes dial it; 0 is only for a node alone",
        );
    }
    peers(cluster, found);
    if cluster.enabled {
        loopback(config, found);
    }
    timing(cluster, found);
}

fn peers(cluster: &Cluster, found: &mut Found) {
    let mut seen = Vec::new();
    for peer in &cluster.peers {
        if let Some(why) = peer_fault(peer) {
            add(
                found,
                "cluster.peers",
                format!("'{peer}' {why}; HOST:PORT is wanted, for example 192.168.1.11:7001"),
            );
        } else if seen.contains(&peer) {
            add(
                found,
                "cluster.peers",
                format!("'{peer}' stands there twice"),
            );
        }
        seen.push(peer);
    }
    if !cluster.enabled {
        if !cluster.peers.is_empty() {
            add(
                found,
                "cluster.enabled",
                "is not true, and cluster.peers lists nodes: set it to true, or this node makes a cluster of itself alone for ever; \
                 for that, leave out peers",
            );
        }
        return;
    }
    // Peers may list this node itself or leave it out; they may be incomplete, as long as somebody is listed.
    if cluster.peers.is_empty() && cluster.replication_factor > 1 && !cluster.auto_discover {
        add(
            found,
            "cluster.peers",
            "is empty: list the other nodes as \"HOST:7001\", or leave out enabled for a node alone",
        );
    }
    if cluster.replication_factor == 0
        || cluster.replication_factor > 7
        || cluster.replication_factor.is_multiple_of(2)
    {
        add(
            found,
            "cluster.replication_factor",
            format!(
                "is {}: 1, 3, 5 or 7; an even number bears no more failures than the one below",
                cluster.replication_factor
            ),
        );
    }
}

fn timing(cluster: &Cluster, found: &mut Found) {
    within(
        found,
        "cluster.heartbeat_ms",
        cluster.heartbeat_ms,
        10,
        10_000,
    );
    within(
        found,
        "cluster.election_timeout_max_ms",
        cluster.election_timeout_max_ms,
        50,
        60_000,
    );
    if cluster.election_timeout_min_ms < cluster.heartbeat_ms.saturating_mul(2) {
        add(
            found,
            "cluster.election_timeout_min_ms",
            format!(
                "is {}: at least twice heartbeat_ms ({}), or a late heartbeat is an election",
                cluster.election_timeout_min_ms, cluster.heartbeat_ms
            ),
        );
    }
    if cluster.election_timeout_max_ms <= cluster.election_timeout_min_ms {
        add(
            found,
            "cluster.election_timeout_max_ms",
            format!(
                "is {}: above election_timeout_min_ms ({}), or two nodes campaign at once again and again",
                cluster.election_timeout_max_ms, cluster.election_timeout_min_ms
            ),
        );
    }
    within(
        found,
        "cluster.max_clock_offset_ms",
        cluster.max_clock_offset_ms,
        1,
        3_600_000,
    );
}

fn storage(storage: &Storage, limits: &Limits, found: &mut Found) {
    within(found, "storage.shards", u64::from(storage.shards), 0, 1);
    within(found, "storage.readers", u64::from(storage.readers), 1, 64);
    within(
        found,
        "storage.segment_bytes",
        storage.segment_bytes,
        1 << 20,
        256 << 20,
    );
    if !storage.segment_bytes.is_multiple_of(4096) {
        add(found, "storage.segment_bytes", "is no multiple of 4096");
    }
    let batch = bounds::BATCH_BYTES_MAX as u64;
    let least = times(2, limits.request_bytes_max.max(batch));
    if storage.segment_bytes < least {
        add(
            found,
            "storage.segment_bytes",
            format!(
                "is {}: at least {least}, twice what the largest request or batch needs",
                storage.segment_bytes
            ),
        );
    }
    let least = storage.segment_bytes.saturating_mul(2);
    if storage.log_retain_bytes < least {
        add(
            found,
            "storage.log_retain_bytes",
            format!(
                "is {}: at least two segments ({least})",
                storage.log_retain_bytes
            ),
        );
    }
    within(
        found,
        "storage.log_cache_bytes",
        storage.log_cache_bytes,
        64 << 10,
        64 << 30,
    );
    within(
        found,
        "storage.unflushed_bytes_max",
        storage.unflushed_bytes_max,
        64 << 10,
        1 << 30,
    );
    within(
        found,
        "storage.cache_bytes",
        storage.cache_bytes,
        1 << 20,
        1 << 40,
    );
    if storage.history_ms < HISTORY_MS_LEAST {
        add(
            found,
            "storage.history_ms",
            format!(
                "is {}: at least {HISTORY_MS_LEAST}, or a write between two pages ends a scan (REVISION_COMPACTED)",
                storage.history_ms
            ),
        );
    }
    within(
        found,
        "storage.stall_limit_ms",
        storage.stall_limit_ms,
        10,
        600_000,
    );
}

/// Room for so many messages that carry so many bytes.
fn times(count: u64, bytes: u64) -> u64 {
    bytes
        .saturating_add(MESSAGE_EXTRA_BYTES)
        .saturating_mul(count)
}

fn ipc(ipc: &Ipc, limits: &Limits, found: &mut Found) {
    let request = (
        times(4, limits.request_bytes_max),
        "the largest request needs",
    );
    let outcome = (times(4, OUTCOME_BYTES_MAX), "the largest outcome needs");
    // Smaller values may be allowed now than when the store was filled.
    let stored = (outcome.0, "a value needs that may be in the store");
    // Snapshots travel in small parts, but a pair travels whole.
    let pair = (
        times(4, pair(limits).max(OUTCOME_BYTES_MAX)),
        "the largest pair needs",
    );
    for (key, bytes, (least, what)) in [
        (
            "ipc.log_ring_bytes",
            ipc.log_ring_bytes,
            outcome.max(request),
        ),
        (
            "ipc.client_ring_bytes",
            ipc.client_ring_bytes,
            outcome.max(request),
        ),
        ("ipc.peer_ring_bytes", ipc.peer_ring_bytes, request),
        ("ipc.bulk_ring_bytes", ipc.bulk_ring_bytes, pair),
        (
            "ipc.read_ring_bytes",
            ipc.read_ring_bytes,
            stored.max(request),
        ),
    ] {
        if !bytes.is_power_of_two() {
            add(found, key, format!("is {bytes}: a power of two is wanted"));
        } else if bytes < least {
            let why = format!("is {bytes}: at least {least}, four times what {what}");
            add(found, key, why);
        } else {
            within(
                found,
                key,
                bytes,
                bounds::RING_BYTES_MIN,
                bounds::RING_BYTES_MAX,
            );
        }
    }
}

/// The largest key with the largest value.
fn pair(limits: &Limits) -> u64 {
    limits.key_bytes_max.saturating_add(limits.value_bytes_max)
}

fn limits(limits: &Limits, found: &mut Found) {
    within(
        found,
        "limits.key_bytes_max",
        limits.key_bytes_max,
        1,
        bounds::KEY_BYTES_MAX as u64,
    );
    within(
        found,
        "limits.value_bytes_max",
        limits.value_bytes_max,
        1,
        bounds::VALUE_BYTES_MAX as u64,
    );
    within(
        found,
        "limits.request_bytes_max",
        limits.request_bytes_max,
        1,
        bounds::REQUEST_BYTES_MAX as u64,
    );
    let least = pair(limits);
    if limits.request_bytes_max < least {
        add(
            found,
            "limits.request_bytes_max",
            format!(
                "is {}: at least key_bytes_max and value_bytes_max together ({least})",
                limits.request_bytes_max
            ),
        );
    }
    within(
        found,
        "limits.txn_operations_max",
        limits.txn_operations_max,
        1,
        4096,
    );
    within(
        found,
        "limits.page_items_max",
        limits.page_items_max,
        1,
        1_000_000,
    );
    within(
        found,
        "limits.page_bytes_max",
        limits.page_bytes_max,
        1 << 10,
        2 << 20,
    );
    within(
        found,
        "limits.requests_in_flight_max",
        limits.requests_in_flight_max,
        1,
        1 << 20,
    );
    within(
        found,
        "limits.queueing_target_ms",
        limits.queueing_target_ms,
        0,
        60_000,
    );
    within(
        found,
        "limits.connections_max",
        limits.connections_max,
        1,
        1 << 20,
    );
    within(
        found,
        "limits.timeout_ms_max",
        limits.timeout_ms_max,
        TIMEOUT_MS_LEAST,
        3_600_000,
    );
    within(
        found,
        "limits.idempotency_keys_max",
        limits.idempotency_keys_max,
        1,
        1 << 32,
    );
    within(
        found,
        "limits.idempotency_ttl_ms",
        limits.idempotency_ttl_ms,
        1_000,
        86_400_000,
    );
    within(
        found,
        "limits.session_ttl_ms",
        limits.session_ttl_ms,
        120_000,
        86_400_000,
    );
    // Both are kept for longer than any request waits. A session that expires before has forgotten what it answered; and what is sent again
    // under a key that has expired meanwhile takes effect twice.
    let least = limits.timeout_ms_max.saturating_mul(2);
    for (key, kept_ms) in [
        ("limits.idempotency_ttl_ms", limits.idempotency_ttl_ms),
        ("limits.session_ttl_ms", limits.session_ttl_ms),
    ] {
        if kept_ms < least {
            add(
                found,
                key,
                format!("is {kept_ms}: at least {least}, twice limits.timeout_ms_max"),
            );
        }
    }
}
