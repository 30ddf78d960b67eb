//! `log.level`: what can be said of a filter without the library that applies it.
//!
//! To that library a word that is no level is a part of the program, which alone is then heard: a misspelt level would silence the log.

use crate::nearest::nearest;
use crate::validate::{Found, add};

/// The longest `log.level`: what the supervisor hands to the daemons has so much room.
pub const LEVEL_BYTES_MAX: usize = 1024;
const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
const KEY: &str = "log.level";

pub(crate) fn level(text: &str, found: &mut Found) {
    if text.len() > LEVEL_BYTES_MAX {
        let bytes = text.len();
        add(
            found,
            KEY,
            format!("has {bytes} bytes: at most {LEVEL_BYTES_MAX}"),
        );
        return;
    }
    for part in text.split(',') {
        if part.trim() != part || part.contains(char::is_control) {
            add(
                found,
                KEY,
                format!("has {part:?} in it: leave out spaces and control characters"),
            );
        } else if !part.contains(['=', '['])
            && !LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part))
        {
            let meant = nearest(part, &LEVELS)
                .map(|level| format!(" (did you mean '{level}'?)"))
                .unwrap_or_default();
            add(
                found,
                KEY,
                format!(
                    "'{part}' is no level{meant}: {}, or one of them for a part of the node, as in \
                     mareedb_consensusd=debug",
                    LEVELS.join(", ")
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let mut found = Found::new();
        level(text, &mut found);
        assert!(found.iter().all(|(key, _)| key == KEY));
        found.into_iter().map(|(_, message)| message).collect()
    }

    #[test]
    fn levels_and_filters_are_taken() {
        let longest = format!("info,x={}", "y".repeat(LEVEL_BYTES_MAX - 7));
        for good in [
            "info",
            "WARN",
            "off",
            "trace",
            "info,mareedb_consensusd=debug",
            "mareedb_storaged=debug",
            "warn,mareedb_gatewayd[request]=debug",
            "mareedb_gatewayd[request]",
            longest.as_str(),
        ] {
            assert_eq!(told(good), [""; 0], "{good}");
        }
    }

    #[test]
    fn a_misspelt_level_does_not_silence_the_log() {
        for (bad, meant) in [
            ("warning", "'warning' is no level (did you mean 'warn'?)"),
            ("inof", "'inof' is no level (did you mean 'info'?)"),
            ("", "'' is no level: error, warn, info, debug, trace, off,"),
            ("info,", "'' is no level"),
            ("mareedb_storaged=debug,verbose", "'verbose' is no level"),
            (
                "info, mareedb_storaged=debug",
                "\" mareedb_storaged=debug\"",
            ),
            ("info,mareedb\0_storaged=debug", "control characters"),
        ] {
            let told = told(bad);
            assert!(
                matches!(&told[..], [message] if message.contains(meant)),
                "{bad:?}: {told:?}"
            );
        }
        let long = "info,".repeat(LEVEL_BYTES_MAX);
        assert_eq!(told(&long), ["has 5120 bytes: at most 1024"]);
    }
}
