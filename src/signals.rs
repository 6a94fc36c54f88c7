//! The signals that stop a run, an order that does the same, and what they mean for the exit code.

use std::fmt;

use anyhow::Context;
use tokio::signal::unix::{self, SignalKind};

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
    /// The terminal was closed.
    HangUp,
    /// `shoal stop`, which is no signal but ends the run as Ctrl-C does.
    Ordered,
}

/// The signals from now on. Once made, the default actions are off for good.
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let on = |kind| unix::signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: on(SignalKind::interrupt())?,
            terminate: on(SignalKind::terminate())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// The next one. Loses none when dropped half-way.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _seen = self.interrupt.recv() => Signal::Interrupt,
            _seen = self.terminate.recv() => Signal::Terminate,
            _seen = self.hang_up.recv() => Signal::HangUp,
        }
    }
}

impl Signal {
    /// 128 + the signal's number, as shells report it.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt | Self::Ordered => 130,
            Self::Terminate => 143,
            Self::HangUp => 129,
        }
    }

    /// Whether a second signal of this kind means "now". A closing terminal may hang up twice.
    pub(crate) fn is_insistent(self) -> bool {
        self != Self::HangUp
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "Ctrl-C",
            Self::Terminate => "SIGTERM",
            Self::HangUp => "SIGHUP",
            Self::Ordered => "`shoal stop`",
        })
    }
}
