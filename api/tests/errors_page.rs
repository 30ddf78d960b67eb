//! Holds docs/errors.md to the codes.

use mareedb_api::ErrorCode;

fn row(code: ErrorCode) -> String {
    let retry = if code.retryable() { "yes" } else { "no" };
    format!(
        "| `{code}` | {} | {:?} | {retry} | {} |",
        code.http_status(),
        code.grpc_code(),
        code.remedy()
    )
}

#[test]
fn every_code_stands_on_the_page_as_it_is() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md")).unwrap();
    for code in ErrorCode::ALL {
        assert!(
            page.contains(&row(code)),
            "docs/errors.md lacks this line:\n{}",
            row(code)
        );
    }
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    let reasons = page.split("## Reasons").nth(1).unwrap_or_default();
    let reasons = reasons
        .lines()
        .filter(|line| line.starts_with("| `"))
        .count();
    assert_eq!(
        rows - reasons,
        ErrorCode::ALL.len(),
        "a line for a code that is none"
    );
}
