//! Which of several coordinators is the active one: each holds a lease in etcd, and whoever has the leader's key under
//! its lease decides. Pure: the driver (`store/etcd/driver.rs`) asks what is next, and says what came of it.
//!
//! The active one counts its lease by its own clock, from before the beat was sent: it stops to decide before etcd can
//! have ended the lease, whatever it cannot hear. The *term* is the revision at which the leader's key was made: higher
//! for each that comes after. Whoever was deposed does not come back by itself: its process begins anew.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What etcd is asked for, in seconds.
pub const TTL_SECONDS: i64 = 5;

const TTL: Duration = Duration::from_secs(TTL_SECONDS as u64);

/// Clocks run unevenly, and what was decided takes a moment to be sent.
const MARGIN: Duration = Duration::from_millis(500);

/// Between two beats: three may be lost.
pub const BEAT: Duration = Duration::from_millis(1_200);

/// Who has the leader's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Where rigs and people reach it.
    pub address: String,
    /// Revision at which the key was made. Not part of what is written there.
    #[serde(skip)]
    pub term: u64,
    /// Under which the key stands. Not part of what is written there, either.
    #[serde(skip)]
    pub lease: i64,
}

/// How a coordinator stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Another one is active, as far as is known.
    Standby { active: Option<Holder> },
    /// It may decide until then, on the clock that the driver uses.
    Active { term: u64, until: Duration },
    /// It was active, and is so no more; or must not be.
    Deposed { why: String },
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask for a lease.
    Grant,
    /// Keep it.
    Beat { lease: i64 },
    /// See who has the leader's key.
    Look,
    /// Make the leader's key, if nobody has.
    Campaign { lease: i64 },
    /// Until the key changes or so long.
    Wait(Duration),
    /// Nothing more.
    Over,
}

/// What came of it. `sent`: when it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Granted {
        lease: i64,
        sent: Duration,
    },
    /// The lease goes on; or is over.
    Beaten {
        sent: Duration,
        lives: bool,
    },
    /// Nobody: nothing.
    Seen(Option<Holder>),
    Won {
        term: u64,
    },
    /// Somebody else was faster.
    Lost,
    /// etcd did not answer: it may have been done, or not.
    Unanswered,
    /// The wait is over.
    Woken,
    /// A write was refused, since the leader's key is another one's; or etcd is not the one that was known.
    Fenced(String),
}

#[derive(Clone, Debug)]
struct Lease {
    id: i64,
    until: Duration,
    /// When etcd said so: where answers are slow there is time for something else, too.
    beaten: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Vacant,
    Held,
}

#[derive(Clone, Debug)]
enum Role {
    Standby { seen: Seen },
    Active { term: u64 },
    Deposed { why: String },
}

/// One candidate.
#[derive(Clone, Debug)]
pub struct Election {
    lease: Option<Lease>,
    role: Role,
    /// The last that was seen.
    holder: Option<Holder>,
}

impl Default for Election {
    fn default() -> Self {
        Self { lease: None, role: Role::Standby { seen: Seen::Nothing }, holder: None }
    }
}

impl Election {
    pub fn next(&self, now: Duration) -> Next {
        if matches!(self.role, Role::Deposed { .. }) {
            return Next::Over;
        }
        let Some(lease) = &self.lease else { return Next::Grant };
        if now >= lease.beaten + BEAT {
            return Next::Beat { lease: lease.id };
        }
        let until_beat = (lease.beaten + BEAT).saturating_sub(now);
        match &self.role {
            Role::Standby { seen: Seen::Nothing } => Next::Look,
            Role::Standby { seen: Seen::Vacant } => Next::Campaign { lease: lease.id },
            Role::Standby { seen: Seen::Held } | Role::Active { .. } => Next::Wait(until_beat),
            Role::Deposed { .. } => Next::Over,
        }
    }

    pub fn apply(&mut self, now: Duration, event: Event) {
        match event {
            Event::Granted { lease, sent } => {
                self.lease = Some(Lease { id: lease, until: until(sent), beaten: now });
            }
            Event::Beaten { sent, lives: true } => {
                if let Some(lease) = &mut self.lease {
                    (lease.until, lease.beaten) = (until(sent), now);
                }
            }
            Event::Beaten { lives: false, .. } => {
                self.lease = None;
                self.no_more("its lease has ended in etcd");
            }
            Event::Seen(holder) => self.seen(holder),
            Event::Won { term } => {
                if !matches!(self.role, Role::Deposed { .. }) {
                    self.role = Role::Active { term };
                }
            }
            Event::Lost | Event::Woken => self.look_again(),
            Event::Unanswered => {
                self.look_again();
                let is_active = matches!(self.role, Role::Active { .. });
                // One that decides nothing asks for another; the active one's may live on in etcd.
                if !is_active && self.lease.as_ref().is_some_and(|lease| lease.until <= now) {
                    self.lease = None;
                }
            }
            Event::Fenced(why) => self.role = Role::Deposed { why },
        }
    }

    fn seen(&mut self, holder: Option<Holder>) {
        let own = self.lease.as_ref().map(|lease| lease.id);
        match (&mut self.role, &holder) {
            // The answer to the campaign was lost: it was won.
            (Role::Standby { .. }, Some(known)) if Some(known.lease) == own => {
                self.role = Role::Active { term: known.term };
            }
            (Role::Standby { seen }, Some(_)) => *seen = Seen::Held,
            (Role::Standby { seen }, None) => *seen = Seen::Vacant,
            (Role::Active { .. } | Role::Deposed { .. }, _) => {}
        }
        self.holder = holder;
    }

    fn look_again(&mut self) {
        if let Role::Standby { seen } = &mut self.role {
            *seen = Seen::Nothing;
        }
    }

    fn no_more(&mut self, why: &str) {
        match &mut self.role {
            Role::Standby { seen } => *seen = Seen::Nothing,
            Role::Active { .. } => self.role = Role::Deposed { why: why.to_owned() },
            Role::Deposed { .. } => {}
        }
    }

    pub fn stand(&self) -> Stand {
        match &self.role {
            Role::Standby { .. } => Stand::Standby { active: self.holder.clone() },
            Role::Active { term } => {
                let until = self.lease.as_ref().map_or(Duration::ZERO, |lease| lease.until);
                Stand::Active { term: *term, until }
            }
            Role::Deposed { why } => Stand::Deposed { why: why.clone() },
        }
    }
}

impl Stand {
    /// Whether it may decide now.
    pub fn may_decide(&self, now: Duration) -> bool {
        match self {
            Self::Active { until, .. } => now < *until,
            Self::Standby { .. } | Self::Deposed { .. } => false,
        }
    }

    /// Of whoever is active, as far as is known; 0 where nobody is.
    pub fn term(&self) -> u64 {
        match self {
            Self::Active { term, .. } => *term,
            Self::Standby { active } => active.as_ref().map_or(0, |holder| holder.term),
            Self::Deposed { .. } => 0,
        }
    }
}

fn until(sent: Duration) -> Duration {
    (sent + TTL).saturating_sub(MARGIN)
}

#[cfg(test)]
mod tests;
