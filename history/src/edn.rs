//! Histories as Jepsen's EDN, for outside checkers such as knossos and elle.
//!
//! One map a line, in the order of time: `:invoke` when an operation begins, then `:ok`, `:fail` or `:info` (unknown). After
//! `:info` a client goes on under a new process number, since a process in Jepsen never asks again after that. A
//! compare-and-swap whose condition did not hold is a `:fail`, as there.
//!
//! | call | `:f` | `:value` |
//! |---|---|---|
//! | get, put, delete, compare-and-swap | `:read`, `:write`, `:write`, `:cas` | the value or `nil`; for a cas `[expected new]` |
//! | lists | `:txn` | `[[:append "x" 1] [:r "x" [1]]]` |
//! | set | `:add`, `:read` | the element; `#{1 2}` |
//! | counter | `:add`, `:read` | the number |
//! | bank | `:transfer`, `:read` | `{:from "a" :to "b" :amount 1}`; `{"a" 1 "b" 2}` |
//!
//! [`Scope::All`] writes everything, and values of anything but lists in a pair with the object's name (`["x" value]`), as
//! Jepsen does with independent keys. [`Scope::One`] writes one object alone in the plain form that the checkers read. Stale
//! reads have the `:f` `:stale-read`, reads of the past `:past-read`, and are left out of [`Scope::One`], for no outside model knows them.

use crate::{Answer, Call, Consistency, History, Micro, Object, Operation, Outcome};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write};

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Everything.
    All,
    /// One object.
    One(Object<'a>),
}

/// Half of an operation: it begins, or its outcome is known.
struct Event<'a> {
    at_ns: u64,
    /// Its place among the events of one moment.
    place: u64,
    begins: bool,
    process: u64,
    operation: &'a Operation,
}

/// Writes a history.
///
/// # Errors
/// Those of the writer.
pub fn write(to: &mut impl Write, history: &History, scope: Scope<'_>) -> io::Result<()> {
    for (index, event) in events(history, scope).iter().enumerate() {
        let kind = if event.begins {
            "invoke"
        } else {
            outcome(event.operation)
        };
        let mut value = String::new();
        let known = !event.begins && kind == "ok";
        render(&mut value, event.operation, known);
        if let (Scope::All, Some(name)) = (scope, name(&event.operation.call)) {
            value = format!("[{} {value}]", quoted(name));
        }
        writeln!(
            to,
            "{{:index {index}, :type :{kind}, :process {}, :f :{}, :value {value}, :time {}, :node {}}}",
            event.process,
            function(&event.operation.call),
            event.at_ns,
            quoted(&event.operation.node),
        )?;
    }
    Ok(())
}

fn events<'a>(history: &'a History, scope: Scope<'_>) -> Vec<Event<'a>> {
    let operations = || {
        history.operations().iter().filter(|operation| match scope {
            Scope::All => true,
            Scope::One(object) => {
                operation.call.object() == object && function_is_plain(&operation.call)
            }
        })
    };
    let stride = operations()
        .map(|operation| operation.process + 1)
        .max()
        .unwrap_or(1);
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut events = Vec::new();
    for operation in operations() {
        let client = clients.entry(operation.process).or_insert(Client {
            number: operation.process,
            last: None,
        });
        let start = (operation.start_ns, client.begins(operation.start_ns));
        let end_ns = operation.end_ns.unwrap_or(operation.start_ns);
        let end = (end_ns, if end_ns == start.0 { start.1 + 1 } else { 1 });
        for ((at_ns, place), begins) in [(start, true), (end, false)] {
            events.push(Event {
                at_ns,
                place,
                begins,
                process: client.number,
                operation,
            });
        }
        client.last = Some(end);
        if outcome(operation) == "info" {
            client.number += stride;
        }
    }
    events.sort_by_key(|event| (event.at_ns, event.place));
    events
}

/// A client on its way through the history.
struct Client {
    /// Its process number at this time.
    number: u64,
    /// When its last operation ended, and at which place of that moment.
    last: Option<(u64, u64)>,
}

impl Client {
    /// The place at which its next operation begins. Of the events of one moment questions come first, so that what may be
    /// concurrent is; only a client that asks at the very moment of its last answer asks after that.
    fn begins(&self, at_ns: u64) -> u64 {
        match self.last {
            Some((last_ns, place)) if last_ns == at_ns => place + 1,
            _ => 0,
        }
    }
}

fn outcome(operation: &Operation) -> &'static str {
    match &operation.outcome {
        Outcome::Ok(Answer::Swapped {
            succeeded: false, ..
        })
        | Outcome::Failed(_) => "fail",
        Outcome::Ok(_) => "ok",
        Outcome::Unknown(_) => "info",
    }
}

fn name(call: &Call) -> Option<&str> {
    match call.object() {
        Object::Register(name) | Object::Set(name) | Object::Counter(name) | Object::Bank(name) => {
            Some(name)
        }
        Object::Lists => None,
    }
}

fn function(call: &Call) -> &'static str {
    match call {
        Call::Get { consistency, .. }
        | Call::SetRead { consistency, .. }
        | Call::CounterRead { consistency, .. }
        | Call::BankRead { consistency, .. } => match consistency {
            Consistency::Linearizable => "read",
            Consistency::Stale => "stale-read",
            Consistency::At(_) => "past-read",
        },
        Call::Put { .. } | Call::Delete { .. } => "write",
        Call::CompareAndSwap { .. } => "cas",
        Call::Lists(_) => "txn",
        Call::SetAdd { .. } | Call::Increment { .. } => "add",
        Call::BankOpen { .. } => "open",
        Call::Transfer { .. } => "transfer",
    }
}

/// Whether the models of outside checkers know the operation.
fn function_is_plain(call: &Call) -> bool {
    !matches!(function(call), "stale-read" | "past-read" | "open")
}

fn render(to: &mut String, operation: &Operation, known: bool) {
    let answer = match &operation.outcome {
        Outcome::Ok(answer) if known => Some(answer),
        _ => None,
    };
    // Writing into a String cannot fail.
    let _ = match (&operation.call, answer) {
        (Call::Put { value, .. }, _) => write!(to, "{}", quoted(value)),
        (Call::CompareAndSwap { expected, new, .. }, _) => {
            let expected = expected.as_deref().map_or("nil".to_owned(), quoted);
            write!(to, "[{expected} {}]", quoted(new))
        }
        (Call::SetAdd { element, .. }, _) => write!(to, "{element}"),
        (Call::Increment { amount, .. }, _) => write!(to, "{amount}"),
        (
            Call::Transfer {
                from,
                to: payee,
                amount,
                ..
            },
            _,
        ) => write!(
            to,
            "{{:from {}, :to {}, :amount {amount}}}",
            quoted(from),
            quoted(payee)
        ),
        (Call::BankOpen { accounts, .. }, _) => balances(to, accounts),
        (Call::Lists(steps), answer) => {
            let results = match answer {
                Some(Answer::Lists { results, .. }) => Some(results),
                _ => None,
            };
            transaction(to, steps, results.map(Vec::as_slice))
        }
        (
            _,
            Some(Answer::Value {
                value: Some(value), ..
            }),
        ) => write!(to, "{}", quoted(value)),
        (_, Some(Answer::Set { elements })) => write!(to, "#{{{}}}", joined(elements)),
        (_, Some(Answer::Count { value })) => write!(to, "{value}"),
        (_, Some(Answer::Accounts { balances: shown })) => balances(to, shown),
        _ => write!(to, "nil"),
    };
}

fn transaction(
    to: &mut String,
    steps: &[Micro],
    results: Option<&[Option<Vec<u64>>]>,
) -> std::fmt::Result {
    to.push('[');
    for (at, step) in steps.iter().enumerate() {
        if at > 0 {
            to.push(' ');
        }
        match step {
            Micro::Append { key, element } => write!(to, "[:append {} {element}]", quoted(key))?,
            Micro::Read { key } => {
                let read = results
                    .and_then(|results| results.get(at))
                    .and_then(Option::as_ref);
                match read {
                    Some(elements) => write!(to, "[:r {} [{}]]", quoted(key), joined(elements))?,
                    None => write!(to, "[:r {} nil]", quoted(key))?,
                }
            }
        }
    }
    to.push(']');
    Ok(())
}

fn balances(
    to: &mut String,
    accounts: &std::collections::BTreeMap<String, i64>,
) -> std::fmt::Result {
    to.push('{');
    for (at, (name, balance)) in accounts.iter().enumerate() {
        let comma = if at > 0 { ", " } else { "" };
        write!(to, "{comma}{} {balance}", quoted(name))?;
    }
    to.push('}');
    Ok(())
}

fn joined(elements: &[u64]) -> String {
    let texts: Vec<String> = elements.iter().map(u64::to_string).collect();
    texts.join(" ")
}

/// A string as EDN writes it.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(
        process: u64,
        start_ns: u64,
        end_ns: Option<u64>,
        call: Call,
        outcome: Outcome,
    ) -> Operation {
        Operation {
            process,
            node: "a".to_owned(),
            start_ns,
            end_ns,
            call,
            outcome,
        }
    }

    fn text(operations: Vec<Operation>, scope: Scope<'_>) -> String {
        let history = History::new(operations).expect("a history");
        let mut bytes = Vec::new();
        write(&mut bytes, &history, scope).expect("written");
        String::from_utf8(bytes).expect("text")
    }

    fn sample() -> Vec<Operation> {
        let key = || "x".to_owned();
        vec![
            at(
                0,
                10,
                Some(30),
                Call::Put {
                    key: key(),
                    value: "a\"b".to_owned(),
                },
                Outcome::Unknown("OUTCOME_UNKNOWN".to_owned()),
            ),
            at(
                0,
                40,
                Some(50),
                Call::Get {
                    key: key(),
                    consistency: Consistency::Linearizable,
                },
                Outcome::Ok(Answer::Value {
                    value: Some("a\"b".to_owned()),
                    revision: Some(7),
                }),
            ),
            at(
                1,
                20,
                Some(45),
                Call::CompareAndSwap {
                    key: key(),
                    expected: None,
                    new: "c".to_owned(),
                },
                Outcome::Ok(Answer::Swapped {
                    succeeded: false,
                    revision: None,
                }),
            ),
            at(
                1,
                60,
                Some(70),
                Call::Get {
                    key: key(),
                    consistency: Consistency::Stale,
                },
                Outcome::Ok(Answer::Value {
                    value: None,
                    revision: None,
                }),
            ),
        ]
    }

    #[test]
    fn one_register_in_the_form_of_knossos() {
        let expected = r#"{:index 0, :type :invoke, :process 0, :f :write, :value "a\"b", :time 10, :node "a"}
{:index 1, :type :invoke, :process 1, :f :cas, :value [nil "c"], :time 20, :node "a"}
{:index 2, :type :info, :process 0, :f :write, :value "a\"b", :time 30, :node "a"}
{:index 3, :type :invoke, :process 2, :f :read, :value nil, :time 40, :node "a"}
{:index 4, :type :fail, :process 1, :f :cas, :value [nil "c"], :time 45, :node "a"}
{:index 5, :type :ok, :process 2, :f :read, :value "a\"b", :time 50, :node "a"}
"#;
        assert_eq!(text(sample(), Scope::One(Object::Register("x"))), expected);
    }

    #[test]
    fn everything_has_the_names_of_its_objects() {
        let all = text(sample(), Scope::All);
        assert!(
            all.contains(r#":f :stale-read, :value ["x" nil], :time 70"#),
            "{all}"
        );
        assert_eq!(all.lines().count(), 8);
    }

    #[test]
    fn transactions_in_the_form_of_elle() {
        let call = Call::Lists(vec![
            Micro::Append {
                key: "x".to_owned(),
                element: 2,
            },
            Micro::Read {
                key: "x".to_owned(),
            },
        ]);
        let outcome = Outcome::Ok(Answer::Lists {
            results: vec![None, Some(vec![1, 2])],
            revision: None,
        });
        let text = text(
            vec![at(3, 0, Some(5), call, outcome)],
            Scope::One(Object::Lists),
        );
        let expected = r#"{:index 0, :type :invoke, :process 3, :f :txn, :value [[:append "x" 2] [:r "x" nil]], :time 0, :node "a"}
{:index 1, :type :ok, :process 3, :f :txn, :value [[:append "x" 2] [:r "x" [1 2]]], :time 5, :node "a"}
"#;
        assert_eq!(text, expected);
    }
}
