//! THE CONDUCTOR: who takes part, what the plan is, which steps and checkpoints are committed, and
//! how a run ends. It never sees a tensor.
//!
//! Reading order: `news` (what the launcher hears), `state` (every decision, pure), `durable` (nothing is
//! said before it is written down), `control` (what people ask and order), `conductor` (the one task that owns them), `server` (gRPC), `door`
//! (who may connect), `deposits` (files of checkpoints that come in), `following` (the launcher's end), `asking` (another terminal's),
//! `journal`, `checkpoints` and `ledger` (what is
//! written down).

pub mod appended;
mod asking;
pub mod checkpoints;
mod conductor;
pub mod control;
mod deposits;
mod door;
pub mod durable;
mod error;
mod following;
pub mod journal;
mod ledger;
mod metrics;
mod news;
mod server;
mod settings;
pub mod state;
pub mod timed;
mod traces;

pub use asking::{AskError, ask};
pub use error::Error;
pub use following::{Following, follow};
pub use ledger::{LedgerRow, Rollback, StepLine};
pub use metrics::{Book, Metrics};
pub use news::{Cause, Command, Failure, News, Restored};
pub use server::{Running, serve};
pub use settings::{MakePlan, Settings};
