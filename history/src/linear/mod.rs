//! Linearizability: is there an order of all operations that keeps real time and explains every answer?
//!
//! The search goes from return to return, as in Lowe's just-in-time linearization ("Testing for linearizability", 2017): an
//! operation is given its place no sooner than some return demands it. A position of the search is (how many operations have
//! returned, which of the others already have their place, the state); positions that were visited are remembered, so each
//! is explored once. What makes it fast here:
//!
//! - an operation that has its place and has returned is forgotten, so a position is as small as the concurrency at that
//!   moment, however long the history is (a bit set of the whole history would grow with it);
//! - an operation that leaves the state as it is gets its place as soon as its answer fits: that can only help;
//! - an operation of unknown outcome, which stays open for ever and need not have a place at all, gets one only
//!   where the next operation tells the difference: in any other order it may be taken out, and the order stays valid;
//! - of such operations that do the same the earliest is taken first: in any other order they may change places;
//! - a position is not explored after one like it that has taken fewer of them: whatever follows here follows there.
//!   Without these three a violation in a history with `u` such operations would cost 2^u.
//!
//! Depth first, so a history that is right is explained at about one position an operation; only a wrong one is searched
//! through. The search is bounded by its number of positions, and says so when the bound is reached.

mod search;

use std::hash::Hash;

/// What operations do to a state, one at a time.
pub trait Model {
    /// The state.
    type State: Clone + Eq + Hash;
    /// An operation with its answer, or with the remark that the answer is unknown.
    type Step: Eq + Hash;

    /// The state before everything.
    fn initial(&self) -> Self::State;

    /// The state after `step`, or `None` if its answer cannot come from `state`.
    fn apply(&self, state: &Self::State, step: &Self::Step) -> Option<Self::State>;

    /// Whether no state is ever changed by `step`.
    fn is_read(&self, step: &Self::Step) -> bool;
}

/// An operation in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed<S> {
    /// When it began.
    pub start: u64,
    /// When it was done; `None`: it may have its effect at any time after the start, or never.
    pub end: Option<u64>,
    /// What it does.
    pub step: S,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linearization<State> {
    /// There is such an order.
    Exists,
    /// There is none.
    Impossible(Conflict<State>),
    /// The search was given up after this many positions.
    GivenUp(usize),
}

/// Where the search got stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict<State> {
    /// The first operation, by the time of its return, that no order explains; an index into what was searched.
    pub stuck: usize,
    /// The end of one order that explains all operations that returned before it: indexes, first to last.
    pub order: Vec<usize>,
    /// The state that this order leads to.
    pub state: State,
}

/// Looks for an order of `operations`, visiting at most `positions_max` positions.
pub fn linearize<M: Model>(
    model: &M,
    operations: &[Timed<M::Step>],
    positions_max: usize,
) -> Linearization<M::State> {
    search::Search::new(model, operations, positions_max).run()
}
