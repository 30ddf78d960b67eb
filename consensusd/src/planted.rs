//! Faults that are planted to show that tests find them: the model's in this crate's tests, the simulation's in its own.
//! Otherwise there are none.

pub(crate) use mareedb_ipc::world::Fault;
#[cfg(not(test))]
pub(crate) use mareedb_ipc::world::planted;

#[cfg(test)]
pub(crate) use crate::model::planted;
