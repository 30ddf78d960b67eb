//! Holds docs/cli.md to the commands that there are.

use std::collections::BTreeSet;
use std::process::{Command, Output};

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_maree-db-cli"))
        .args(arguments)
        .arg("--help")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names under `Commands:`.
fn commands(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        // Deeper lines go on with the text of the one above.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

/// The long options that a help text lists.
fn options(help: &str) -> BTreeSet<String> {
    help.lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")))
        .map(|word| word.trim_end_matches(',').to_owned())
        .collect()
}

/// The long options that a text names.
fn named(text: &str) -> BTreeSet<String> {
    let part_of_one = |c: char| c == '-' || c.is_ascii_alphanumeric();
    text.split(|c| !part_of_one(c))
        .filter(|word| word.starts_with("--") && word.len() > 3)
        .map(str::to_owned)
        .collect()
}

/// docs/cli.md lists exactly the commands and options that there are, each option in the row of its command.
#[test]
fn every_command_and_option_stands_on_the_page() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    let rows: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let top = help(&[]);
    let everywhere = options(&top);
    assert!(everywhere.len() >= 5, "{top}");
    for option in &everywhere {
        let listed = rows.iter().any(|row| named(row).contains(option));
        assert!(listed, "docs/cli.md lacks {option}");
    }
    assert!(top.contains("MAREEDB_ENDPOINT") && page.contains("MAREEDB_ENDPOINT"));

    let names = commands(&top);
    assert!(names.len() >= 7, "{top}");
    let mut of_rows: Vec<Option<BTreeSet<String>>> = vec![None; rows.len()];
    let mut look = |command: &[&str], starts: &[String]| {
        let at = rows.iter().position(|row| {
            let cell = row.trim_start_matches("| ").split(" | ").next();
            starts
                .iter()
                .any(|start| cell.is_some_and(|cell| cell.contains(start)))
        });
        let at = at.unwrap_or_else(|| panic!("docs/cli.md lacks {command:?}"));
        let own: BTreeSet<_> = &options(&help(command)) - &everywhere;
        let missing = &own - &named(rows[at]);
        assert!(missing.is_empty(), "docs/cli.md, {command:?}: {missing:?}");
        of_rows[at].get_or_insert_default().extend(own);
    };
    for name in &names {
        let of_group = commands(&help(&[name]));
        if of_group.is_empty() {
            look(&[name], &[format!("`{name} ")]);
        }
        for sub in &of_group {
            let starts = ["`", " "].map(|end| format!("`{name} {sub}{end}"));
            look(&[name, sub], &[&starts[..], &[format!("`{sub}`")]].concat());
        }
    }
    let of_commands = rows.iter().zip(of_rows);
    for (row, own) in of_commands.filter_map(|(row, own)| Some((row, own?))) {
        let unknown = &(&named(row) - &own) - &everywhere;
        assert!(unknown.is_empty(), "no such option: {unknown:?} in {row}");
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_maree-db-cli"))
        .args(arguments)
        .env_remove("MAREEDB_ENDPOINT")
        .output()
        .unwrap()
}

#[test]
fn wrong_usage_ends_with_64_and_a_node_that_is_not_there_with_2() {
    for wrong in [
        &["paint"][..],
        &["put"],
        &["--timeout", "soon", "get", "k"],
        &["--endpoint", "a b", "get", "k"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(64), "{wrong:?}");
    }
    // Nobody listens on port 1.
    let output = run(&["--endpoint", "127.0.0.1:1", "get", "k"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("127.0.0.1:1") && text.contains("--endpoint"),
        "{text}"
    );
}

#[test]
fn a_configuration_that_names_no_node_ends_with_64_unless_an_endpoint_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("maree-db.toml");
    std::fs::write(&file, "[server]\nlisten_addr = 1\n").unwrap();
    let missing = dir.path().join("missing.toml");
    for config in [&file, &missing].map(|path| path.to_str().unwrap()) {
        let get = ["--config", config, "get", "k"];
        let output = run(&get);
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains(config) && text.contains("--endpoint"),
            "{text}"
        );
        let output = run(&[&["--endpoint", "127.0.0.1:1"], &get[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
