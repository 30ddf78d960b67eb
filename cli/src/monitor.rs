//! cluster monitor: the members in a box, again and again. A look that fails is shown in its place, for it is then that
//! somebody watches.

use crate::client::Connection;
use crate::cluster::{ask, document};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format};
use crate::table::thousands;
use mareedb_api::v1;
use mareedb_api::values::GroupKind;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr;

const COLUMNS: [usize; 5] = [10, 11, 10, 11, 11];

/// Looks every `interval`, `count` times or for ever. It ends as its last look did.
pub async fn run(
    connection: &Connection,
    interval: Duration,
    count: u64,
    format: Format,
) -> Result<Exit, Failure> {
    let mut before = None;
    let mut looks = 0;
    loop {
        let look = look(ask(connection).await, format, |status| {
            let rate = rate(status, &mut before);
            draw(status, interval, rate)
        })?;
        let mut screen = String::new();
        if format == Format::Table && std::io::stdout().is_terminal() {
            screen.push_str("\u{1b}[H\u{1b}[2J");
        }
        screen.push_str(&look.shown);
        output::bytes(screen.as_bytes())?;
        output::aside(&look.aside);
        looks += 1;
        if looks == count {
            return Ok(look.exit);
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = output::closed() => return Err(Failure::Closed),
        }
    }
}

/// What a look comes to, in whole lines.
struct Look {
    /// On standard output.
    shown: String,
    /// On standard error.
    aside: String,
    /// The exit code, if it was the last one.
    exit: Exit,
}

/// People see what a look came to in one place; programs get documents, one a line, and nothing else.
fn look(
    answer: Result<v1::ClusterStatusResponse, Failure>,
    format: Format,
    drawn: impl FnOnce(&v1::ClusterStatusResponse) -> String,
) -> Result<Look, Failure> {
    let (shown, aside, exit) = match (answer, format) {
        (Ok(status), Format::Table) => (drawn(&status), String::new(), Exit::Done),
        (Ok(status), Format::Json) => {
            let line = output::compact(&document(&status)?)? + "\n";
            (line, String::new(), Exit::Done)
        }
        (Err(failure), Format::Table) => (failure.text(), String::new(), failure.exit()),
        (Err(failure), Format::Json) => (String::new(), failure.text(), failure.exit()),
    };
    Ok(Look { shown, aside, exit })
}

/// Writes a second since the last look that was answered.
fn rate(status: &v1::ClusterStatusResponse, before: &mut Option<(Instant, u64)>) -> Option<f64> {
    let now = Instant::now();
    let commits: u64 = status
        .groups
        .iter()
        .filter(|group| group.kind == GroupKind::Data.as_str())
        .filter_map(|group| group.commit_index)
        .sum();
    before.replace((now, commits)).map(|(at, then)| {
        let seconds = now.duration_since(at).as_secs_f64().max(0.001);
        // Entries a second; a float of that size is exact enough to show.
        (commits.saturating_sub(then) as f64 / seconds).round()
    })
}

fn every(interval: Duration) -> String {
    let ms = interval.as_millis();
    if ms.is_multiple_of(1000) {
        format!("{}s", ms / 1000)
    } else {
        format!("{ms}ms")
    }
}

fn draw(status: &v1::ClusterStatusResponse, interval: Duration, rate: Option<f64>) -> String {
    let rule = |left: &str, middle: &str, right: &str| {
        let cells: Vec<String> = COLUMNS.iter().map(|width| "─".repeat(*width)).collect();
        format!("{left}{}{right}\n", cells.join(middle))
    };
    let row = |cells: [String; 5]| {
        let cells: Vec<String> = cells
            .iter()
            .zip(COLUMNS)
            .map(|(cell, width)| {
                let text = format!(" {cell}");
                let room = width.saturating_sub(text.width());
                format!("{text}{}", " ".repeat(room))
            })
            .collect();
        format!("│{}│\n", cells.join("│"))
    };
    let width: usize = COLUMNS.iter().sum::<usize>() + COLUMNS.len() - 1;
    let title = format!(
        " Maree-DB Cluster Monitor — refreshes every {}",
        every(interval)
    );
    let mut out = rule("┌", "─", "┐");
    out.push_str(&format!(
        "│{title}{}│\n",
        " ".repeat(width.saturating_sub(title.width()))
    ));
    out.push_str(&rule("├", "┬", "┤"));
    out.push_str(&row(
        ["Node", "Role", "Lag", "Writes/s", "Status"].map(str::to_owned)
    ));
    out.push_str(&rule("├", "┼", "┤"));
    for member in &status.members {
        let leads = Some(&member.name) == status.leader.as_ref();
        let writes = rate.filter(|_| leads).map(|rate| {
            let rate = format!("{rate:.0}").parse().unwrap_or(0);
            thousands(rate)
        });
        let lag = member
            .lag_ms
            .filter(|_| !leads)
            .map(|lag| format!("{lag}ms"));
        out.push_str(&row([
            format!("{}{}", member.name, if leads { " ★" } else { "" }),
            member.role.clone(),
            lag.unwrap_or_else(|| "—".into()),
            writes.unwrap_or_else(|| "—".into()),
            member.status.clone(),
        ]));
    }
    out.push_str(&rule("└", "┴", "┘"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_is_the_guides() {
        let member = |name: &str, role: &str, lag: u64| v1::Member {
            name: name.into(),
            role: role.into(),
            status: "ok".into(),
            lag_ms: Some(lag),
            ..v1::Member::default()
        };
        let status = v1::ClusterStatusResponse {
            leader: Some("node1".into()),
            members: vec![
                member("node1", "leader", 0),
                member("node2", "follower", 1),
                member("node3", "follower", 2),
            ],
            ..v1::ClusterStatusResponse::default()
        };
        let text = draw(&status, Duration::from_secs(2), Some(14_203.0));
        let expected = "\
┌─────────────────────────────────────────────────────────┐
│ Maree-DB Cluster Monitor — refreshes every 2s           │
├──────────┬───────────┬──────────┬───────────┬───────────┤
│ Node     │ Role      │ Lag      │ Writes/s  │ Status    │
├──────────┼───────────┼──────────┼───────────┼───────────┤
│ node1 ★  │ leader    │ —        │ 14,203    │ ok        │
│ node2    │ follower  │ 1ms      │ —         │ ok        │
│ node3    │ follower  │ 2ms      │ —         │ ok        │
└──────────┴───────────┴──────────┴───────────┴───────────┘
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_look_that_fails_is_shown_in_place_of_the_box_and_kept_from_programs() {
        let lost = || Failure::NoConnection(vec![("n1:7001".into(), "refused".into())]);
        let not_drawn = |_: &v1::ClusterStatusResponse| -> String { panic!("there is no status") };
        let table = look(Err(lost()), Format::Table, not_drawn).unwrap();
        assert!(
            table.shown.contains("n1:7001: refused\n"),
            "{}",
            table.shown
        );
        assert_eq!((&*table.aside, table.exit), ("", Exit::NoConnection));
        let json = look(Err(lost()), Format::Json, not_drawn).unwrap();
        assert_eq!((&*json.shown, json.exit), ("", Exit::NoConnection));
        assert_eq!(json.aside, table.shown);
    }

    #[test]
    fn programs_get_one_document_a_line() {
        let status = v1::ClusterStatusResponse {
            verdict: "degraded".into(),
            ..v1::ClusterStatusResponse::default()
        };
        let table = look(Ok(status.clone()), Format::Table, |_| "box\n".into()).unwrap();
        assert_eq!((&*table.shown, table.exit), ("box\n", Exit::Done));
        let json = look(Ok(status), Format::Json, |_| "box\n".into()).unwrap();
        assert_eq!((&*json.aside, json.exit), ("", Exit::Done));
        assert_eq!(json.shown.find('\n'), Some(json.shown.len() - 1));
        let document: serde_json::Value = serde_json::from_str(&json.shown).unwrap();
        assert_eq!(document["verdict"], "degraded");
    }

    #[test]
    fn writes_are_counted_from_the_last_look_that_was_answered() {
        let status = |commit_index| v1::ClusterStatusResponse {
            groups: vec![v1::Group {
                kind: "data".into(),
                commit_index: Some(commit_index),
                ..v1::Group::default()
            }],
            ..v1::ClusterStatusResponse::default()
        };
        let mut before = None;
        assert_eq!(rate(&status(5), &mut before), None);
        assert!(rate(&status(5_000_000), &mut before).unwrap() > 0.0);
        // A node that is behind the one asked before.
        assert_eq!(rate(&status(4_999_999), &mut before), Some(0.0));
    }
}
