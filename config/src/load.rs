//! Reads a file, and says everything that is wrong with it.

use crate::faults::{Fault, Faults};
use crate::nearest::nearest;
use crate::schema::Config;
use crate::validate::{Found, validate};
use serde::Deserialize;
use std::path::Path;
use toml_edit::{Document, Item, Value};

/// Reads and checks a file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Faults> {
    load_with(path, |_| Vec::new())
}

/// The same for one who can tell more: `more` gives `section.key` and message of each fault that it finds, which are told with the
/// others and with their lines.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_with(
    path: &Path,
    more: impl FnOnce(&Config) -> Vec<(String, String)>,
) -> Result<Config, Faults> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse_with(&text, &file, more),
        Err(error) => Err(Faults {
            file,
            faults: vec![Fault {
                line: None,
                key: String::new(),
                message: format!("cannot be read: {error}"),
            }],
        }),
    }
}

/// Checks a text; `file` is what faults call it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, file: &str) -> Result<Config, Faults> {
    parse_with(text, file, |_| Vec::new())
}

fn parse_with(
    text: &str,
    file: &str,
    more: impl FnOnce(&Config) -> Found,
) -> Result<Config, Faults> {
    let mut faults = Vec::new();
    let config = read(text, &mut faults);
    if let Some((config, lines)) = &config {
        for (key, message) in validate(config).into_iter().chain(more(config)) {
            faults.push(Fault {
                line: lines.of(&key),
                key,
                message,
            });
        }
    }
    match config {
        Some((config, _)) if faults.is_empty() => Ok(config),
        _ => {
            faults.sort_by_key(|fault| fault.line.unwrap_or(usize::MAX));
            Err(Faults {
                file: file.to_owned(),
                faults,
            })
        }
    }
}

/// Lines of keys.
struct Lines(Vec<(String, usize)>);
impl Lines {
    fn of(&self, key: &str) -> Option<usize> {
        self.0
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, line)| *line)
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())]
        .iter()
        .filter(|byte| **byte == b'\n')
        .count()
        + 1
}

/// The keys of each section, from the schema itself.
pub(crate) fn known() -> Vec<(String, Vec<String>)> {
    // Options are given a value, or they would not be written.
    let mut full = Config::default();
    full.server.advertise_addr = Some(String::new());
    full.cluster.node_id = Some(String::new());
    let Ok(toml::Value::Table(sections)) = toml::Value::try_from(&full) else {
        return Vec::new();
    };
    sections
        .into_iter()
        .map(|(section, keys)| {
            let keys = keys.as_table().map(|keys| keys.keys().cloned().collect());
            (section, keys.unwrap_or_default())
        })
        .collect()
}

fn read(text: &str, faults: &mut Vec<Fault>) -> Option<(Config, Lines)> {
    let document = match Document::parse(text.to_owned()) {
        Ok(document) => document,
        Err(error) => {
            faults.push(Fault {
                line: error.span().map(|span| line_at(text, span.start)),
                key: String::new(),
                message: error.message().trim().replace('\n', ", "),
            });
            return None;
        }
    };
    let known = known();
    let mut lines = Lines(Vec::new());
    let mut good = toml::Table::new();
    for (section, item) in document.iter() {
        let line = document
            .key(section)
            .and_then(|key| key.span())
            .or_else(|| item.span())
            .map(|span| line_at(text, span.start));
        let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        let Some((_, keys)) = known.iter().find(|(name, _)| name == section) else {
            let elsewhere = known
                .iter()
                .find(|(_, keys)| keys.iter().any(|key| key == section))
                .map(|(name, _)| format!("it belongs into [{name}]"));
            let hint = elsewhere.unwrap_or_else(|| suggestion(section, &names));
            let message = format!("there is no such section; {hint}");
            faults.push(Fault {
                line,
                key: section.to_owned(),
                message,
            });
            continue;
        };
        let Some(table) = item.as_table_like() else {
            let message = "is a section: write [".to_owned() + section + "]";
            faults.push(Fault {
                line,
                key: section.to_owned(),
                message,
            });
            continue;
        };
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut values = toml::Table::new();
        for (key, value) in table.iter() {
            let name = format!("{section}.{key}");
            let line = table
                .key(key)
                .and_then(|key| key.span())
                .or_else(|| value.span())
                .map(|span| line_at(text, span.start));
            if let Some(line) = line {
                lines.0.push((name.clone(), line));
            }
            if !keys.contains(&key) {
                let elsewhere = known
                    .iter()
                    .find(|(_, keys)| keys.iter().any(|known| known == key))
                    .map(|(name, _)| format!("it belongs into [{name}]"));
                let hint = elsewhere.unwrap_or_else(|| suggestion(key, &keys));
                faults.push(Fault {
                    line,
                    key: name,
                    message: format!("there is no such key; {hint}"),
                });
                continue;
            }
            match one(section, key, value) {
                Ok(value) => {
                    values.insert(key.to_owned(), value);
                }
                Err(message) => faults.push(Fault {
                    line,
                    key: name,
                    message,
                }),
            }
        }
        good.insert(section.to_owned(), toml::Value::Table(values));
    }
    match Config::deserialize(toml::Value::Table(good)) {
        Ok(config) => Some((config, lines)),
        Err(error) => {
            faults.push(Fault {
                line: None,
                key: String::new(),
                message: error.to_string(),
            });
            None
        }
    }
}

fn suggestion(wrong: &str, known: &[&str]) -> String {
    match nearest(wrong, known) {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("known are: {}", known.join(", ")),
    }
}

/// Checks the type of one value by reading a configuration that has nothing else.
fn one(section: &str, key: &str, item: &Item) -> Result<toml::Value, String> {
    let value = plain(item).ok_or_else(|| "is a table where a value is wanted".to_owned())?;
    let mut keys = toml::Table::new();
    keys.insert(key.to_owned(), value.clone());
    let mut sections = toml::Table::new();
    sections.insert(section.to_owned(), toml::Value::Table(keys));
    match Config::deserialize(toml::Value::Table(sections)) {
        Ok(_) => Ok(value),
        Err(error) => Err(error.message().trim().replace('\n', ", ")),
    }
}

fn plain(item: &Item) -> Option<toml::Value> {
    match item {
        Item::Value(value) => plain_value(value),
        _ => None,
    }
}

fn plain_value(value: &Value) -> Option<toml::Value> {
    Some(match value {
        Value::String(text) => toml::Value::String(text.value().clone()),
        Value::Integer(number) => toml::Value::Integer(*number.value()),
        Value::Float(number) => toml::Value::Float(*number.value()),
        Value::Boolean(flag) => toml::Value::Boolean(*flag.value()),
        Value::Datetime(_) | Value::InlineTable(_) => return None,
        Value::Array(values) => {
            toml::Value::Array(values.iter().map(plain_value).collect::<Option<_>>()?)
        }
    })
}
