//! The configuration file, as this executable wants it: checked as a whole, the log filter included.

use crate::logging;
use mareedb_config::Config;
use std::path::Path;

/// Reads and checks the file; the error lists what is wrong with it.
pub fn load(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let config: Config =
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    logging::filter(&config.log.level)
        .map_err(|error| format!("{}: log.level: {error}", path.display()))?;
    Ok(config)
}
