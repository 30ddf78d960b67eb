//! The configuration file, as this executable wants it: checked as a whole, the log filter included.

use super::logging;
use mareedb_config::Config;
use std::path::Path;

/// Reads and checks the file; the error lists what is wrong with it.
pub fn load(path: &Path) -> Result<Config, String> {
    let config = mareedb_config::load(path).map_err(|faults| faults.to_string())?;
    logging::filter(&config.log.level)
        .map_err(|error| format!("{}: log.level: {error}", path.display()))?;
    Ok(config)
}
