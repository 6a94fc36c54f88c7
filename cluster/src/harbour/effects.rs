//! What is to be done is done here, once what has changed is written down.

use super::{Harbour, Inbound, Outgoing};
use crate::launchers::Launch;
use crate::state::Effect;

impl Harbour {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Tell { session, message } => {
                let full = self
                    .rigs
                    .get(&session)
                    .is_some_and(|outbox| outbox.try_send(Outgoing::Tell(message)).is_err());
                if full {
                    self.rigs.remove(&session);
                    self.state.rig_gone(session, "it does not read what it is told");
                }
            }
            Effect::Close { session, reason } => {
                if let Some(outbox) = self.rigs.remove(&session) {
                    // One that does not read is dropped all the same.
                    let _ = outbox.try_send(Outgoing::Close(reason));
                }
            }
            Effect::Cut { rig } => self.cut(&rig),
            Effect::Launch { job, most, first, nth } => self.launch(&job, most, first, nth),
            Effect::TellLauncher { job, message } => {
                self.lines.tell(&job, message);
            }
            Effect::Meet { job, run, meetings } => self.tell_meetings(job, run, meetings),
            Effect::Relay(served) => self.relay.serve(served),
            Effect::Note(text) => tracing::info!("{text}"),
        }
    }

    fn launch(&mut self, job: &str, most: u32, first: u32, nth: u64) {
        let Some(record) = self.state.job(job) else { return };
        let launch =
            Launch { name: job.to_owned(), manifest: record.manifest.clone(), most, first, nth };
        self.metrics.launches.inc();
        match self.launchers.launch(launch) {
            Ok(ended) => {
                let (inbox, name) = (self.inbox.clone(), job.to_owned());
                let launch = self.lines.launched(job);
                tokio::spawn(async move {
                    let how = ended.await;
                    let _ = inbox.send(Inbound::ProcessEnded { name, launch, how }).await;
                });
            }
            Err(why) => self.state.launcher_lost(job, &why),
        }
    }
}
