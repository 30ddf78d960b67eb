//! Holds docs/cli.md to the commands that there are.

use std::process::Command;

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

#[test]
fn every_command_and_option_stands_on_the_page() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md")).unwrap();
    let top = help(&[]);
    let names = commands(&top);
    assert!(names.len() >= 7, "{top}");
    for name in &names {
        let of_group = commands(&help(&[name]));
        if of_group.is_empty() {
            assert!(
                page.contains(&format!("`{name} ")),
                "docs/cli.md lacks {name}"
            );
        }
        for sub in of_group {
            let named =
                page.contains(&format!("`{name} {sub}")) || page.contains(&format!("`{sub}`"));
            assert!(named, "docs/cli.md lacks {name} {sub}");
        }
    }
    for option in ["--endpoint", "--output", "--timeout", "MAREEDB_ENDPOINT"] {
        assert!(top.contains(option) && page.contains(option), "{option}");
    }
}

#[test]
fn wrong_usage_ends_with_64_and_a_node_that_is_not_there_with_2() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_maree-db-cli"))
            .args(arguments)
            .env_remove("MAREEDB_ENDPOINT")
            .output()
            .unwrap()
    };
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
