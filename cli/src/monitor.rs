//! cluster monitor: the members in a box, again and again.

use crate::client::Connection;
use crate::cluster::ask;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::table::thousands;
use mareedb_api::v1;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use unicode_width::UnicodeWidthStr;

const COLUMNS: [usize; 5] = [10, 11, 10, 11, 11];

/// Looks every `interval`, `count` times or for ever.
pub async fn run(connection: &Connection, interval: Duration, count: u64) -> Result<Exit, Failure> {
    let mut before: Option<(Instant, u64)> = None;
    let mut looks = 0;
    loop {
        let status = ask(connection).await?;
        let now = Instant::now();
        let commits: u64 = status
            .groups
            .iter()
            .filter(|group| group.kind == "data")
            .filter_map(|group| group.commit_index)
            .sum();
        let rate = before.map(|(at, then)| {
            let seconds = now.duration_since(at).as_secs_f64().max(0.001);
            // Entries a second; a float of that size is exact enough to show.
            (commits.saturating_sub(then) as f64 / seconds).round()
        });
        before = Some((now, commits));
        let mut screen = String::new();
        if std::io::stdout().is_terminal() {
            screen.push_str("\u{1b}[H\u{1b}[2J");
        }
        screen.push_str(&draw(&status, interval, rate));
        output::bytes(screen.as_bytes())?;
        looks += 1;
        if looks == count {
            return Ok(Exit::Done);
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = output::closed() => return Err(Failure::Closed),
        }
    }
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
}
