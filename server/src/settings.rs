//! The configuration file, as this executable wants it: checked as a whole, the log filter included.

use super::logging;
use mareedb_config::Config;
use std::path::Path;

/// Reads and checks the file; the error lists what is wrong with it.
pub fn load(path: &Path) -> Result<Config, String> {
    mareedb_config::load_with(path, |config| {
        let fault = logging::filter(&config.log.level).err();
        fault
            .map(|message| ("log.level".to_owned(), message))
            .into_iter()
            .collect()
    })
    .map_err(|faults| faults.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maree-db.toml");
        std::fs::write(&path, text).unwrap();
        load(&path).map_err(|faults| faults.replace(&path.display().to_string(), "x"))
    }

    #[test]
    fn a_wrong_filter_is_told_with_its_line_among_the_others() {
        let told = loaded("[server]\nrest_prt = 1\n[log]\nlevel = \"loud=very\"\n").unwrap_err();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 2, "{told}");
        assert!(lines[0].starts_with("x:2: server.rest_prt: "), "{told}");
        assert!(
            lines[1].starts_with("x:4: log.level: \"loud=very\" is no filter"),
            "{told}"
        );
        let told = loaded("[log]\nlevel = \"warning\"\n").unwrap_err();
        assert!(told.starts_with("x:2: log.level: 'warning' is"), "{told}");
    }

    #[test]
    fn every_level_is_a_filter() {
        for level in ["error", "warn", "info", "debug", "trace", "off"] {
            let config = loaded(&format!("[log]\nlevel = \"{level}\"\n")).unwrap();
            assert_eq!(config.log.level, level);
        }
    }
}
