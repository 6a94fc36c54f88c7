//! What several workers are told at once.

use shoal_proto::ToWorker;

use super::{Effect, Member, State};

impl State {
    pub(super) fn send_to_all(&mut self, message: &ToWorker) {
        self.send_to(message, |_| true);
    }

    pub(super) fn send_to_hosts(&mut self, message: &ToWorker) {
        self.send_to(message, |member| member.hosts);
    }

    fn send_to(&mut self, message: &ToWorker, whom: impl Fn(&Member) -> bool) {
        let connected = self.members.values().filter(|member| member.connected && whom(member));
        self.effects.extend(connected.map(|member| {
            let connection = member.connection;
            Effect::Send { connection, message: message.clone() }
        }));
    }
}
