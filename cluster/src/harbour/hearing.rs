//! What comes to the loop, and whose it is: each word leads to one call.

use super::{Harbour, Inbound};

impl Harbour {
    pub(super) fn hear(&mut self, message: Inbound) {
        self.count(&message);
        match message {
            Inbound::RigCame { session, rig, first, outbox } => {
                self.rig_came(session, &rig, first, outbox);
            }
            Inbound::RigSays { session, message } => {
                self.pass_by(session, &message);
                self.state.rig_says(session, message);
            }
            Inbound::RigGone { session, why } => {
                self.rigs.remove(&session);
                self.metrics_never_come(session);
                self.state.rig_gone(session, &why);
            }
            Inbound::Enrol { stranger, reply } => {
                let enrolled = self.enrol(stranger);
                let _ = reply.send(self.once_written(enrolled));
            }
            Inbound::Renew { identity, request_pem, reply } => {
                let signed = self.sign(&identity, &request_pem);
                let _ = reply.send(self.once_written(signed));
            }
            Inbound::File { rig, run, name, reply } => {
                let _ = reply.send(self.file(&rig, &run, &name));
            }
            Inbound::Neighbours { rig, reply } => {
                let _ = reply.send(self.state.neighbours(&rig));
            }
            Inbound::Member { rig, run, reply } => {
                let _ = reply.send(self.member(&rig, &run));
            }
            Inbound::Ask { ask, reply } => self.ask(ask, reply),
            Inbound::Apply { applied, job, reply } => self.applied(applied, *job, reply),
            Inbound::Log { job, log, reply } => {
                let _ = reply.send(self.log_of(&job, &log));
            }
            Inbound::LauncherHere { name, line, nth, outbox } => {
                self.launcher_here(name, line, nth, outbox);
            }
            Inbound::LauncherSays { name, line, message } => {
                if self.lines.speaks(&name, line) {
                    self.state.launcher_says(&name, message);
                }
            }
            Inbound::LauncherGone { name, line } => {
                if self.lines.gone(&name, line) {
                    self.state.launcher_lost(&name, "its line ended");
                }
            }
            Inbound::LauncherAway { name, line } => {
                if self.lines.away(&name, line) {
                    self.state.launcher_away(&name);
                }
            }
            Inbound::ProcessEnded { name, launch, how } => self.process_ended(&name, launch, &how),
            Inbound::Look(look) => self.look(look),
            Inbound::Met { name, run, meetings, taken } => {
                self.state.met(&name, run, meetings, taken);
            }
            Inbound::Alive { reply } => {
                let _ = reply.send(());
            }
            Inbound::Rest { reply } => {
                self.state.rest();
                self.resting.push(reply);
            }
        }
    }

    fn process_ended(&mut self, name: &str, launch: u64, how: &str) {
        if self.lines.ended(name, launch) {
            self.state.launcher_lost(name, how);
        }
    }
}
