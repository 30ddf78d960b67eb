//! The depth-first search behind [`linearize`](super::linearize).

use super::{Conflict, Linearization, Model, Timed};
use std::collections::HashMap;

/// How much of an order a conflict tells: its end. A search that turns back often would pay for the whole each time.
const ORDER_MAX: usize = 16;

/// Where the search stands, but for the operations that never return.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Position<State> {
    /// How many operations have returned, in the order of returns.
    returned: u32,
    /// Which of those that return later have their place, sorted.
    placed: Vec<u32>,
    state: State,
    /// The state before the last placed operation, if that one never returns and nothing has told the difference yet.
    unjustified: Option<State>,
}

/// A position and what is still to be tried from it.
struct Frame<State> {
    position: Position<State>,
    /// Which of those that never return have their place, sorted.
    taken: Vec<u32>,
    /// The operations placed between the frame below and this one.
    chosen: Vec<u32>,
    /// What to place next, the most promising one last; `None` before it was looked up.
    options: Option<Vec<u32>>,
}

pub(super) struct Search<'a, M: Model> {
    model: &'a M,
    /// Those that return, ordered by return, then those that never do, ordered by start.
    operations: Vec<&'a Timed<M::Step>>,
    /// The index of each in what was given.
    given: Vec<usize>,
    returning: usize,
    /// For each return: those of the later returns that have begun by then.
    concurrent: Vec<Vec<u32>>,
    /// For each return: how many of those that never return have begun by then.
    open: Vec<usize>,
    /// For each that never returns: the one before it that does the same.
    twins: Vec<Option<u32>>,
    positions_max: usize,
    /// The positions that were visited, each with the smallest sets of operations that never return which were taken on a way there.
    visited: HashMap<Position<M::State>, Vec<Vec<u32>>>,
    count: usize,
}

/// An index as it is kept in a position.
///
/// # Panics
/// A single object has 2^32 operations, which no history that fits in memory has.
fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 operations of one object")
}

impl<'a, M: Model> Search<'a, M> {
    pub(super) fn new(model: &'a M, given: &'a [Timed<M::Step>], positions_max: usize) -> Self {
        let mut order: Vec<usize> = (0..given.len()).collect();
        order.sort_by_key(|&index| {
            let operation = &given[index];
            (
                operation.end.is_none(),
                operation.end.unwrap_or(operation.start),
                operation.start,
            )
        });
        let operations: Vec<&Timed<M::Step>> = order.iter().map(|&index| &given[index]).collect();
        let returning = operations.partition_point(|operation| operation.end.is_some());
        let mut search = Search {
            model,
            operations,
            given: order,
            returning,
            concurrent: Vec::with_capacity(returning),
            open: Vec::with_capacity(returning),
            twins: Vec::new(),
            positions_max,
            visited: HashMap::new(),
            count: 0,
        };
        search.sweep();
        search.pair();
        search
    }

    /// Finds out what has begun by each return. What begins at the very moment of a return counts as concurrent with it: the
    /// clock cannot tell.
    fn sweep(&mut self) {
        let mut by_start: Vec<u32> = (0..narrow(self.returning)).collect();
        by_start.sort_by_key(|&index| self.operations[index as usize].start);
        let mut begun = 0;
        let mut running: Vec<u32> = Vec::new();
        for index in 0..self.returning {
            let now = self.operations[index].end.unwrap_or(u64::MAX);
            while begun < by_start.len() && self.operations[by_start[begun] as usize].start <= now {
                running.push(by_start[begun]);
                begun += 1;
            }
            running.retain(|&other| other as usize > index);
            self.concurrent.push(running.clone());
            let never = &self.operations[self.returning..];
            self.open
                .push(never.partition_point(|operation| operation.start <= now));
        }
    }

    /// Finds out which of those that never return do the same.
    fn pair(&mut self) {
        let mut last: HashMap<&M::Step, u32> = HashMap::new();
        self.twins = self.operations[self.returning..]
            .iter()
            .zip(narrow(self.returning)..)
            .map(|(operation, index)| last.insert(&operation.step, index))
            .collect();
    }

    pub(super) fn run(mut self) -> Linearization<M::State> {
        let start = Position {
            returned: 0,
            placed: Vec::new(),
            state: self.model.initial(),
            unjustified: None,
        };
        let mut stack: Vec<Frame<M::State>> = Vec::new();
        let mut furthest = 0;
        let mut stuck: Option<Conflict<M::State>> = None;
        let mut next = Some(self.settle(start, Vec::new(), Vec::new()));
        loop {
            if let Some(frame) = next.take() {
                let returned = frame.position.returned as usize;
                if returned == self.returning {
                    return Linearization::Exists;
                }
                if self.count >= self.positions_max {
                    return Linearization::GivenUp(self.count);
                }
                if self.visit(&frame) {
                    stack.push(frame);
                    if returned > furthest || stuck.is_none() {
                        furthest = returned;
                        stuck = self.conflict(&stack);
                    }
                }
            }
            let Some(top) = stack.last_mut() else {
                break;
            };
            let choice = match &mut top.options {
                Some(options) => options.pop(),
                None => {
                    let mut options = self.options(top);
                    let choice = options.pop();
                    top.options = Some(options);
                    choice
                }
            };
            match choice {
                Some(choice) => next = self.place(top, choice),
                None => {
                    stack.pop();
                }
            }
        }
        match stuck {
            Some(conflict) => Linearization::Impossible(conflict),
            None => Linearization::Exists,
        }
    }

    /// Whether a position is to be explored: not after one that is the same and allows no less.
    fn visit(&mut self, frame: &Frame<M::State>) -> bool {
        let less = |sets: &Vec<Vec<u32>>| sets.iter().any(|set| is_subset(set, &frame.taken));
        if self.visited.get(&frame.position).is_some_and(less) {
            return false;
        }
        if frame.position.unjustified.is_some() {
            let justified = Position {
                unjustified: None,
                ..frame.position.clone()
            };
            if self.visited.get(&justified).is_some_and(less) {
                return false;
            }
        }
        let sets = self.visited.entry(frame.position.clone()).or_default();
        sets.retain(|set| !is_subset(&frame.taken, set));
        sets.push(frame.taken.clone());
        self.count += 1;
        true
    }

    /// The way to the position on top of the stack, which leads no further.
    fn conflict(&self, stack: &[Frame<M::State>]) -> Option<Conflict<M::State>> {
        let position = &stack.last()?.position;
        let mut order: Vec<usize> = stack
            .iter()
            .rev()
            .flat_map(|frame| frame.chosen.iter().rev())
            .take(ORDER_MAX)
            .map(|&index| self.given[index as usize])
            .collect();
        order.reverse();
        Some(Conflict {
            stuck: self.given[position.returned as usize],
            order,
            state: position.state.clone(),
        })
    }

    /// What could be placed next at a position: whatever may change the state and whose answer fits.
    fn options(&self, frame: &Frame<M::State>) -> Vec<u32> {
        let position = &frame.position;
        let index = position.returned as usize;
        let wanted = &self.operations[index].step;
        let never = narrow(self.returning)..narrow(self.returning + self.open[index]);
        let mut options: Vec<(u8, u32)> = never
            .rev()
            .chain(self.concurrent[index].iter().rev().copied())
            .chain([position.returned])
            .filter(|other| position.placed.binary_search(other).is_err())
            .filter(|other| frame.taken.binary_search(other).is_err())
            .filter(|&other| {
                let twin = (other as usize)
                    .checked_sub(self.returning)
                    .and_then(|never| self.twins[never]);
                twin.is_none_or(|twin| frame.taken.binary_search(&twin).is_ok())
            })
            .filter(|&other| !self.model.is_read(&self.operations[other as usize].step))
            .filter_map(|other| {
                let step = &self.operations[other as usize].step;
                let after = self.model.apply(&position.state, step)?;
                // Rather the one that must return now, then one that makes its answer fit, then one that does return.
                let rank = if other == position.returned {
                    3
                } else if self.model.apply(&after, wanted).is_some() && self.model.is_read(wanted) {
                    2
                } else if (other as usize) < self.returning {
                    1
                } else {
                    0
                };
                Some((rank, other))
            })
            .collect();
        options.sort_by_key(|&(rank, _)| rank);
        options.into_iter().map(|(_, other)| other).collect()
    }

    /// Places one operation, if that may lead anywhere.
    fn place(&self, from: &Frame<M::State>, choice: u32) -> Option<Frame<M::State>> {
        let before = &from.position;
        let step = &self.operations[choice as usize].step;
        let state = self.model.apply(&before.state, step)?;
        if let Some(earlier) = &before.unjustified
            && self.model.apply(earlier, step).as_ref() == Some(&state)
        {
            return None;
        }
        let never_returns = choice as usize >= self.returning;
        let (mut placed, mut taken) = (before.placed.clone(), from.taken.clone());
        insert(
            if never_returns {
                &mut taken
            } else {
                &mut placed
            },
            choice,
        );
        let position = Position {
            returned: before.returned,
            placed,
            state,
            unjustified: never_returns.then(|| before.state.clone()),
        };
        Some(self.settle(position, taken, vec![choice]))
    }

    /// Gives every read whose answer fits its place, and lets return what has one.
    fn settle(
        &self,
        mut position: Position<M::State>,
        taken: Vec<u32>,
        mut chosen: Vec<u32>,
    ) -> Frame<M::State> {
        while (position.returned as usize) < self.returning {
            let index = position.returned as usize;
            for other in [position.returned]
                .into_iter()
                .chain(self.concurrent[index].iter().copied())
            {
                let step = &self.operations[other as usize].step;
                if position.placed.binary_search(&other).is_ok()
                    || self.model.apply(&position.state, step).as_ref() != Some(&position.state)
                    || !self.model.is_read(step)
                {
                    continue;
                }
                insert(&mut position.placed, other);
                chosen.push(other);
                if let Some(before) = &position.unjustified
                    && self.model.apply(before, step).is_none()
                {
                    position.unjustified = None;
                }
            }
            let Ok(found) = position.placed.binary_search(&position.returned) else {
                break;
            };
            position.placed.remove(found);
            position.returned += 1;
        }
        Frame {
            position,
            taken,
            chosen,
            options: None,
        }
    }
}

fn insert(placed: &mut Vec<u32>, index: u32) {
    if let Err(at) = placed.binary_search(&index) {
        placed.insert(at, index);
    }
}

/// Whether one sorted list has nothing that the other lacks.
fn is_subset(of: &[u32], all: &[u32]) -> bool {
    let mut rest = all.iter();
    of.len() <= all.len() && of.iter().all(|index| rest.any(|other| other == index))
}
