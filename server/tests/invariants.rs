//! Holds docs/invariants.md, and the lists that it points to, to the code: each id stands at its rule and in a test, and none stands
//! there that is no promise.

use std::collections::BTreeSet;
use std::path::Path;

const PAGE: &str = "docs/invariants.md";
/// Where the page's ranges have a row for each.
const LISTS: [&str; 3] = [
    "docs/formats/ring.md",
    "docs/formats/log.md",
    "docs/formats/state.md",
];
/// Folders whose code judges that of the others.
const JUDGES: [&str; 5] = ["bench", "fuzz", "history", "sim", "tests"];
/// Files and folders that only tests have.
const OF_TESTS: [&str; 5] = ["hostile", "model", "random", "testing", "tests"];
/// What names rules to break them.
const FAULTS: [&str; 2] = ["planted", "world"];

/// A row whose first cell names promises.
struct Row {
    ids: Vec<String>,
    /// The cell that says where they are kept.
    kept: String,
    line: String,
}

/// The ids in a cell: `A-1 to A-3, B-X` are four. `None`: it names something else.
fn named(cell: &str) -> Option<Vec<String>> {
    let mut ids = Vec::new();
    for part in cell.split(", ") {
        let (first, last) = part.split_once(" to ").unwrap_or((part, part));
        let (family, from) = first.split_once('-')?;
        if family.is_empty() || !family.chars().all(|c| c.is_ascii_uppercase()) {
            return None;
        }
        if first == last {
            ids.push(first.to_owned());
            continue;
        }
        let (_, to) = last.split_once('-')?;
        let (from, to) = (from.parse::<u32>().ok()?, to.parse::<u32>().ok()?);
        ids.extend((from..=to).map(|number| format!("{family}-{number}")));
    }
    Some(ids)
}

fn rows(page: &str) -> Vec<Row> {
    page.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            Some(Row {
                ids: named(cells.next()?)?,
                kept: cells.nth(1)?.to_owned(),
                line: line.to_owned(),
            })
        })
        .collect()
}

/// A file of code.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn is(&self, name: &str) -> bool {
        self.path == name || self.path.ends_with(&format!("/{name}"))
    }

    /// Its rules, and its tests.
    fn parts(&self) -> (&str, &str) {
        let text = self.text.as_str();
        let names: Vec<&str> = self
            .path
            .split('/')
            .map(|name| name.trim_end_matches(".rs"))
            .collect();
        let any = |of: &[&str]| names.iter().any(|name| of.contains(name));
        if JUDGES.contains(&names[0]) || any(&OF_TESTS) {
            return ("", text);
        }
        if any(&FAULTS) {
            return ("", "");
        }
        let tests = "#[cfg(test)]\nmod tests {";
        text.split_once(tests).unwrap_or((text, ""))
    }
}

fn sources(dir: &Path, root: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, root, found);
        } else if name.ends_with(".rs") {
            found.push(Source {
                text: std::fs::read_to_string(&path).unwrap(),
                path: path.strip_prefix(root).unwrap().to_string_lossy().into(),
            });
        }
    }
}

/// The ids of these families in a text.
fn ids<'a>(text: &'a str, families: &BTreeSet<&str>) -> BTreeSet<&'a str> {
    text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '-')
        .filter(|word| {
            word.split_once('-')
                .is_some_and(|(family, number)| families.contains(family) && !number.is_empty())
        })
        .collect()
}

#[test]
fn each_id_stands_at_its_rule_and_in_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = |page: &str| rows(&std::fs::read_to_string(root.join(page)).unwrap());
    let page = table(PAGE);
    let lists: Vec<Row> = LISTS.into_iter().flat_map(table).collect();
    let all = |rows: &[Row]| -> BTreeSet<String> {
        rows.iter().flat_map(|row| row.ids.clone()).collect()
    };
    let (promised, listed) = (all(&page), all(&lists));
    let families: BTreeSet<&str> = promised
        .iter()
        .filter_map(|id| id.split('-').next())
        .collect();
    let mut files = Vec::new();
    sources(&root, &root, &mut files);
    let mut faults = Vec::new();
    let (mut ruled, mut tested) = (BTreeSet::<&str>::new(), BTreeSet::<&str>::new());
    for file in &files {
        let (rules, tests) = file.parts();
        ruled.extend(ids(rules, &families));
        tested.extend(ids(tests, &families));
        for id in &promised {
            // A test may have it in its name.
            let name = format!("fn {}_", id.to_lowercase().replace('-', "_"));
            if tests.contains(&name) {
                tested.insert(id.as_str());
            }
        }
        for id in ids(&file.text, &families) {
            if !promised.contains(id) {
                faults.push(format!("{}: {id} is no promise", file.path));
            }
        }
    }
    for id in &promised {
        // That a cluster lives nobody can assert.
        if !id.starts_with("LIVE-") && !ruled.contains(id.as_str()) {
            faults.push(format!("{id} stands at no rule"));
        }
        if !tested.contains(id.as_str()) {
            faults.push(format!("{id} stands in no test"));
        }
    }
    for row in page.iter().chain(&lists) {
        for id in &row.ids {
            if !promised.contains(id) || (row.ids.len() > 1 && !listed.contains(id)) {
                faults.push(format!("{id} stands on one page and not on the other"));
            }
        }
        for name in row.line.split('`').filter(|word| word.ends_with(".rs")) {
            let of: Vec<&Source> = files.iter().filter(|file| file.is(name)).collect();
            let stands = |id: &str| {
                of.iter()
                    .any(|file| ids(&file.text, &families).contains(id))
            };
            for id in &row.ids {
                if of.is_empty() || (row.kept.contains(name) && !stands(id)) {
                    faults.push(format!("{id} does not stand in {name}, or there is none"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
