//! The rim for whoever looks after a run: one question in, one answer out. A few at a time: more wait for
//! nothing, and are told to come again.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::wire::raw;
use shoal_proto::wire::raw::control_server::Control;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::conductor::Inbound;

/// Questions under way.
const AT_ONCE: usize = 8;

/// The connection has no hello to say and ends after ten seconds anyway: whoever asks hears why before.
const PATIENCE: Duration = Duration::from_secs(8);

pub(super) struct Questions {
    inbox: mpsc::Sender<Inbound>,
    places: Arc<Semaphore>,
}

impl Questions {
    pub(super) fn new(inbox: mpsc::Sender<Inbound>) -> Self {
        Self { inbox, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

#[tonic::async_trait]
impl Control for Questions {
    async fn ask(&self, request: Request<raw::Question>) -> Result<Response<raw::Answer>, Status> {
        let _place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{AT_ONCE} questions are under way: ask again"))
        })?;
        let ask = serde_json::from_str(&request.into_inner().ask_json)
            .map_err(|error| Status::invalid_argument(format!("an unknown question: {error}")))?;
        let (answer, answered) = oneshot::channel();
        let answered = async {
            let asked = self.inbox.send(Inbound::Asked { ask, answer }).await;
            asked.map_err(|_| Status::unavailable("the coordinator ends"))?;
            answered.await.map_err(|_| Status::unavailable("the coordinator ends"))
        };
        let late = |_| Status::unavailable("the coordinator is busy: ask again");
        let answer = tokio::time::timeout(PATIENCE, answered).await.map_err(late)??;
        let answer_json = serde_json::to_string(&answer);
        let answer_json = answer_json.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(raw::Answer { answer_json }))
    }
}
