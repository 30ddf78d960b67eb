//! A configuration file of any text is a configuration or faults with lines.

pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match mareedb_config::parse(text, "maree-db.toml") {
        Err(faults) => assert!(!faults.to_string().is_empty()),
        Ok(config) => {
            let json = serde_json::to_string(&config).expect("it goes to the daemons so");
            assert_eq!(
                serde_json::from_str::<mareedb_config::Config>(&json).ok(),
                Some(config)
            );
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        include_str!("../../packaging/maree-db.toml"),
        "[server]\ndata_dir = \"/d\"\nlisten_addr = \"::\"\nrest_port = 1\nadvertise_addr = \"10.0.0.1\"\nhang_limit_ms = 200\n",
        "[cluster]\nenabled = true\nnode_id = \"n-1\"\npeers = [\"a:1\", '[::1]:7001']\nreplication_factor = 3\nheartbeat_ms = 10\nelection_timeout_min_ms = 50\n",
        "[storage]\nshards = 1\nreaders = 2\nsegment_bytes = 67108864\nhistory_ms = 0x10\n[ipc]\nlog_ring_bytes = 1_048_576\n[limits]\nkey_bytes_max = 9\n",
        "[log]\nformat = \"json\"\nlevel = \"debug\"\nserver = { rest_port = 1979-05-27 }\n\"a\\u00e9\".b = [{}]\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
