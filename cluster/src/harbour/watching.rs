//! Answers for `crate::watching`: figures of now, and rigs that are asked for theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Harbour, Inbound, Outgoing};
use crate::clock::unix;
use crate::exposition;
use crate::metrics::Figures;
use crate::state::SessionId;
use crate::watching::{PATIENCE, TEXT_BYTES_MAX, Unwatched, Watched};
use crate::words::{Answer, FromRig, ToRig};

/// Questions of those who look on.
#[derive(Debug)]
pub(crate) enum Look {
    /// Metrics of this process.
    Own(oneshot::Sender<String>),
    /// Runs under way and their rigs.
    Runs(oneshot::Sender<Vec<Watched>>),
    /// Metrics of a rig's worker.
    Rig(String, MetricsReply),
}

type MetricsReply = oneshot::Sender<Result<String, Unwatched>>;

/// So many may wait for one answer.
const WAITERS_MAX: usize = 16;

/// Who waits for which rig: one question of each session, so that what is kept has an end.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    next: u64,
    asked: BTreeMap<SessionId, Asked>,
}

#[derive(Debug)]
struct Asked {
    number: u64,
    rig: String,
    /// Since this process began.
    at: Duration,
    replies: Vec<MetricsReply>,
}

impl Harbour {
    /// Whoever asked may have gone.
    pub(super) fn look(&mut self, look: Look) {
        match look {
            Look::Own(reply) => drop(reply.send(self.metrics_text())),
            Look::Runs(reply) => drop(reply.send(self.state.watched())),
            Look::Rig(rig, reply) => self.ask_for_metrics(rig, reply),
        }
    }

    fn metrics_text(&self) -> String {
        let now = unix();
        let (strangers, members) = self.places.counts();
        self.metrics.text(&Figures {
            unix: now,
            rigs: self.state.rig_figures().collect(),
            jobs: self.state.jobs().map(|(_, job)| job.phase).collect(),
            tokens: self.state.good_tokens(now),
            denied: self.state.denied().len(),
            strangers,
            members,
            unwritten: self.unwritten.len(),
        })
    }

    /// Asks a rig for what its worker tells Prometheus. Whoever asks while a question is under way gets its answer.
    fn ask_for_metrics(&mut self, rig: String, reply: MetricsReply) {
        let session = self.state.session_of(&rig);
        let outbox = session.and_then(|session| Some((session, self.rigs.get(&session)?)));
        // Whoever asked may have gone, here and below.
        let Some((session, outbox)) = outbox else {
            let _ = reply.send(Err(Unwatched::Nobody(rig)));
            return;
        };
        let now = self.started.elapsed();
        if let Some(asked) = self.waiting_for.asked.get_mut(&session)
            && now.saturating_sub(asked.at) < PATIENCE
        {
            asked.replies.retain(|waiting| !waiting.is_closed());
            if asked.replies.len() < WAITERS_MAX {
                asked.replies.push(reply);
            } else {
                let why = "too many ask at once".to_owned();
                let _ = reply.send(Err(Unwatched::Silent { rig, why }));
            }
            return;
        }
        self.waiting_for.next += 1;
        let number = self.waiting_for.next;
        match outbox.try_send(Outgoing::Tell(ToRig::Metrics { ask: number })) {
            Ok(()) => {
                let asked = Asked { number, rig, at: now, replies: vec![reply] };
                self.waiting_for.asked.insert(session, asked);
            }
            // It need not be taken for gone for this: orders are what it must read.
            Err(mpsc::error::TrySendError::Full(_) | mpsc::error::TrySendError::Closed(_)) => {
                let why = "it does not read what it is told".to_owned();
                let _ = reply.send(Err(Unwatched::Silent { rig, why }));
            }
        }
    }

    /// A rig has answered. What it says is passed on only if it is what was asked for, bounded, and metrics.
    fn metrics_came(&mut self, session: SessionId, ask: u64, text: Result<&str, &str>) {
        let is_it = |asked: &Asked| asked.number == ask;
        if !self.waiting_for.asked.get(&session).is_some_and(is_it) {
            return;
        }
        let Some(Asked { rig, replies, .. }) = self.waiting_for.asked.remove(&session) else {
            return;
        };
        let answer = match text {
            Ok(text) if text.len() > TEXT_BYTES_MAX => Err(format!(
                "{} bytes of metrics, and at most {TEXT_BYTES_MAX} are taken",
                text.len()
            )),
            Ok(text) => exposition::check(text)
                .map(|()| text.to_owned())
                .map_err(|what| format!("what it says is no metric: {what}")),
            // Its own words end up in answers and logs.
            Err(why) => Err(why.chars().filter(|c| !c.is_control()).take(200).collect()),
        };
        let answer = answer.map_err(|why| Unwatched::Silent { rig, why });
        for reply in replies {
            let _ = reply.send(answer.clone());
        }
    }

    /// Counts what the loop hears.
    pub(super) fn count(&self, message: &Inbound) {
        let from = match message {
            Inbound::RigSays { message: FromRig::Heartbeat { .. }, .. } => {
                self.metrics.heartbeats.inc();
                "rig"
            }
            Inbound::RigCame { .. } | Inbound::RigSays { .. } | Inbound::RigGone { .. } => "rig",
            Inbound::LauncherHere { .. }
            | Inbound::LauncherSays { .. }
            | Inbound::LauncherGone { .. }
            | Inbound::LauncherAway { .. }
            | Inbound::ProcessEnded { .. } => "launcher",
            Inbound::Ask { .. } | Inbound::Log { .. } => "person",
            Inbound::Enrol { .. }
            | Inbound::Apply { .. }
            | Inbound::Renew { .. }
            | Inbound::File { .. }
            | Inbound::Neighbours { .. }
            | Inbound::Member { .. }
            | Inbound::Look(_)
            | Inbound::Alive { .. }
            | Inbound::Met { .. }
            | Inbound::Rest { .. } => return,
        };
        self.metrics.messages.with_label_values(&[from]).inc();
    }

    /// What of a rig's words is kept or passed on, and leads to nothing here.
    pub(super) fn pass_by(&mut self, session: SessionId, message: &FromRig) {
        match message {
            FromRig::Log { post, text } => self.keep_log(session, post, text),
            FromRig::Metrics { ask, text } => {
                let text = text.as_ref().map(String::as_str).map_err(String::as_str);
                self.metrics_came(session, *ask, text);
            }
            FromRig::Hello { .. }
            | FromRig::Heartbeat { .. }
            | FromRig::Started { .. }
            | FromRig::Exited { .. }
            | FromRig::NotStarted { .. }
            | FromRig::Tried { .. }
            | FromRig::Leaving { .. } => {}
        }
    }

    pub(super) fn metrics_never_come(&mut self, session: SessionId) {
        // Whoever waits hears that nobody answers.
        self.waiting_for.asked.remove(&session);
    }

    /// For a person, who is asked to look elsewhere where there are none.
    pub(super) fn metrics_for_a_person(&mut self, rig: String, reply: oneshot::Sender<Answer>) {
        let (answers, answer) = oneshot::channel();
        self.ask_for_metrics(rig, answers);
        tokio::spawn(async move {
            let answer = match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(Ok(text))) => Answer::Metrics(text),
                Ok(Ok(Err(error))) => Answer::Refused(error.to_string()),
                Ok(Err(_)) => Answer::Refused("the rig has gone".to_owned()),
                Err(_) => Answer::Refused("the rig does not answer in time".to_owned()),
            };
            let _ = reply.send(answer);
        });
    }
}
