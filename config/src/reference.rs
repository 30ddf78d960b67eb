//! The reference page, made from the doc comments of the schema.

use crate::schema::Config;
use std::fmt::Write;

/// The schema's source: its doc comments are the manual.
const SCHEMA: &str = include_str!("schema.rs");

/// docs/config.md, as it should be.
pub fn page() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         One file, `/etc/mareedb/maree-db.toml` unless `--config` names another. `maree-db-server --check` says what is wrong with \
         it, all at once. Every key has a default; units stand in the names. This page is made from the schema \
         (`cargo run -p mareedb-config --example reference`), and a test holds it to that.\n",
    );
    let defaults = toml::Value::try_from(Config::default());
    let defaults = defaults.as_ref().ok().and_then(toml::Value::as_table);
    for (section, keys) in sections() {
        let _ = write!(
            out,
            "\n## `[{section}]`\n\n| key | default | meaning |\n|---|---|---|\n"
        );
        for (key, doc) in keys {
            let value = defaults
                .and_then(|sections| sections.get(&section))
                .and_then(|keys| keys.get(&key))
                .map_or_else(|| "none".to_owned(), |value| format!("`{value}`"));
            let _ = writeln!(out, "| `{key}` | {value} | {doc} |");
        }
    }
    out
}

/// Keys with their text.
type Keys = Vec<(String, String)>;

/// Sections with their keys, in the order of the source.
fn sections() -> Vec<(String, Keys)> {
    let mut sections: Vec<(String, Keys)> = Vec::new();
    let mut doc: Vec<&str> = Vec::new();
    for line in SCHEMA.lines() {
        let line = line.trim();
        if let Some(text) = line.strip_prefix("///") {
            doc.push(text.trim());
            continue;
        }
        if let Some(section) = doc
            .first()
            .and_then(|first| first.strip_prefix("`["))
            .and_then(|rest| rest.split_once("]`"))
            .map(|(section, _)| section.to_owned())
            && line.starts_with("#[derive")
        {
            sections.push((section, Vec::new()));
        } else if let Some((name, _)) = line
            .strip_prefix("pub ")
            .and_then(|rest| rest.split_once(':'))
            && let Some((_, keys)) = sections.last_mut()
        {
            keys.push((name.to_owned(), doc.join(" ")));
        }
        if !line.starts_with("#[") {
            doc.clear();
        }
    }
    sections
}
