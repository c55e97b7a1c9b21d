//! The source side of the stream: where it may start, and how its messages are numbered.

mod generation;
mod reached;
mod sequence;
mod start;
pub(crate) mod waiting;

pub(crate) use generation::{Places, drop_slot, exists_foreign, prepare};
pub(crate) use reached::Reached;
pub use sequence::SequenceError;
pub(crate) use sequence::{OpenTransaction, Place, Sequencer};
pub use start::Refusal;
