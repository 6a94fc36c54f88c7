//! For those who look on from this process: its own metrics, which rigs are at which run, and what a rig's worker
//! tells Prometheus, asked for over the rig's own stream, because nobody may reach a rig from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_plan::plan::WorkerId;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::harbour::{Inbound, Look};

/// A rig has so long for its answer. Prometheus gives up after ten seconds.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// The most text of one worker: some times what it is for a network of 61 layers. As JSON it still fits a message.
pub const TEXT_BYTES_MAX: usize = 160 << 10;

/// A handle on the loop.
#[derive(Clone, Debug)]
pub struct Watch(pub(crate) mpsc::Sender<Inbound>);

/// A run that is under way, and the rigs of its workers that are here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub job: String,
    pub rigs: BTreeMap<WorkerId, String>,
}

/// Why a rig's metrics are not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwatched {
    #[error("there is no rig {0} here")]
    Nobody(String),
    #[error("rig {rig}: {why}")]
    Silent { rig: String, why: String },
}

impl Watch {
    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Look) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Inbound::Look(make(reply))).await.ok()?;
        answer.await.ok()
    }

    /// Of this process; none: it ends.
    pub async fn metrics(&self) -> Option<String> {
        self.ask(Look::Own).await
    }

    pub async fn runs(&self) -> Vec<Watched> {
        self.ask(Look::Runs).await.unwrap_or_default()
    }

    /// What the worker of a rig tells Prometheus, held against the format.
    ///
    /// # Errors
    /// The rig is not here, does not answer in time, has no worker, or says what is no metric.
    pub async fn of_rig(&self, rig: &str) -> Result<String, Unwatched> {
        let rig = rig.to_owned();
        let silent = |why: &str| Unwatched::Silent { rig: rig.clone(), why: why.to_owned() };
        let asked = self.ask(|reply| Look::Rig(rig.clone(), reply));
        match timeout(PATIENCE, asked).await {
            Err(_) => Err(silent(&format!("no answer within {} s", PATIENCE.as_secs()))),
            Ok(None) => Err(silent("it went, or was asked again")),
            Ok(Some(answer)) => answer,
        }
    }
}
