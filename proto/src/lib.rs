//! THE WORDS: what coordinator and workers say to each other, and the only door between the wire
//! and our types.
//!
//! One meaning each: *run* (one launch), *plan* (who hosts which cell), *generation* (the number
//! of the plan, which fences stale members), *session* (one worker's stream), *lease* (how long a
//! silent worker counts as alive), *step* (one optimizer update), *part* (one cell's files of a
//! checkpoint), *deposit* and *withdrawal* (a file of a part on its way to the coordinator, and one on its
//! way back), *vault* (the snapshots in a worker's memory), *edge* (the end of a step, where a plan may
//! change), *secret* (what only members of the run know).

mod files;
mod message;
pub mod relay;
mod secret;
pub mod wire;

pub use files::{Deposit, DepositPiece, Withdrawal};
pub use message::{
    Assign, FailureKind, FromWorker, Hello, Meeting, Resuming, Source, ToWorker, Way,
};
pub use secret::{Secret, SecretError};
pub use shoal_trust::Name;
pub use wire::WireError;
