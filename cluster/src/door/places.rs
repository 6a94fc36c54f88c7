//! How many may be here: strangers in all and of one address, members in all, connections and calls of one member.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_coordinator::timed::Pass;
use shoal_trust::{Identity, Role};

use crate::clock;
use crate::quota::Bucket;

/// Places, and patience.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub strangers_max: usize,
    pub strangers_of_an_address: usize,
    pub members_max: usize,
    /// Connections of one member.
    pub of_a_member: usize,
    /// Calls of one member a second, and saved up; beyond, they wait.
    pub calls_a_second: f64,
    pub calls_saved: f64,
    /// From the connection to a call that is let through.
    pub patience: Duration,
}

impl Limits {
    /// A rig has two connections, and one for each file on its way.
    pub const USUAL: Self = Self {
        strangers_max: 256,
        strangers_of_an_address: 64,
        members_max: 30_000,
        of_a_member: 64,
        calls_a_second: 100.0,
        calls_saved: 400.0,
        patience: Duration::from_secs(10),
    };
}

/// A connection costs its member as much as so many calls.
const CALLS_OF_A_CONNECTION: f64 = 10.0;

/// Who is in. Shared by the door, the calls, and whoever expels.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limits: Limits,
    strangers: BTreeMap<IpAddr, usize>,
    members: usize,
    /// By identity. One without connections is forgotten once its calls are.
    residents: BTreeMap<String, Resident>,
    next: u64,
}

#[derive(Debug)]
struct Resident {
    calls: Bucket,
    /// By number: what ends each.
    connections: BTreeMap<u64, Pass>,
}

/// One connection's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
    /// Who it is, and the connection's number, once it is a member's.
    member: Option<(String, u64)>,
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Self {
        let (strangers, residents) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { limits, strangers, members: 0, residents, next: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        let mut state = self.lock();
        let all: usize = state.strangers.values().sum();
        let here = state.strangers.get(&address).copied().unwrap_or(0);
        if all >= state.limits.strangers_max || here >= state.limits.strangers_of_an_address {
            return None;
        }
        state.strangers.insert(address, here + 1);
        drop(state);
        Some(Place { places: self.clone(), address, member: None })
    }

    /// Connections of strangers, and of members.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        (state.strangers.values().sum(), state.members)
    }

    /// What ends each connection that a member has now.
    pub(crate) fn passes_of(&self, who: &Identity) -> Vec<Pass> {
        let state = self.lock();
        let resident = state.residents.get(&who.to_string());
        resident.map_or_else(Vec::new, |resident| resident.connections.values().cloned().collect())
    }
}

impl Place {
    /// A call of a member: how long it waits for its turn. The first makes room among the strangers.
    ///
    /// # Errors
    /// There is no place for one more connection.
    pub(super) fn call(&mut self, who: &Identity, pass: &Pass) -> Result<Duration, &'static str> {
        let now = clock::running();
        let places = self.places.clone();
        let mut state = places.lock();
        let limits = state.limits;
        if let Some((name, _)) = &self.member {
            let resident = state.residents.get_mut(name);
            return Ok(resident.map_or(Duration::ZERO, |resident| resident.calls.take(1.0, now)));
        }
        if state.members >= limits.members_max {
            return Err("there are too many members: raise the limit");
        }
        let (name, number) = (who.to_string(), state.next);
        if !state.residents.contains_key(&name) {
            state
                .residents
                .retain(|_, member| !member.connections.is_empty() || !member.calls.is_full(now));
        }
        let resident = state.residents.entry(name.clone()).or_insert_with(|| Resident {
            calls: Bucket::new(limits.calls_a_second, limits.calls_saved),
            connections: BTreeMap::new(),
        });
        // Launchers call for each worker of theirs.
        let is_launcher = who.role == Role::Coordinator;
        if !is_launcher && resident.connections.len() >= limits.of_a_member {
            return Err("this member has as many connections as one may have: close some");
        }
        resident.connections.insert(number, pass.clone());
        let wait = resident.calls.take(CALLS_OF_A_CONNECTION, now);
        state.next += 1;
        state.members += 1;
        state.stranger_goes(self.address);
        self.member = Some((name, number));
        pass.admit();
        Ok(wait)
    }
}

impl State {
    fn stranger_goes(&mut self, address: IpAddr) {
        if let Some(count) = self.strangers.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.strangers.remove(&address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let Some((name, number)) = &self.member else {
            state.stranger_goes(self.address);
            return;
        };
        state.members -= 1;
        if let Some(resident) = state.residents.get_mut(name) {
            resident.connections.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            strangers_max: 3,
            strangers_of_an_address: 2,
            members_max: 2,
            of_a_member: 1,
            ..Limits::USUAL
        }
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn worker(name: &str) -> Identity {
        Identity { name: name.parse().unwrap(), role: Role::Worker }
    }

    fn call(place: &mut Place, who: &str) -> Result<Duration, &'static str> {
        place.call(&worker(who), &Pass::default())
    }

    #[test]
    fn strangers_have_few_places_and_members_make_room_for_them() {
        let places = Places::new(limits());
        let mut first = places.take(address(1)).unwrap();
        let mut second = places.take(address(1)).unwrap();
        assert!(places.take(address(1)).is_none(), "one address has two");
        let mut third = places.take(address(2)).unwrap();
        assert!(places.take(address(3)).is_none(), "all have three");
        assert!(call(&mut first, "a").is_ok());
        let fourth = places.take(address(1)).unwrap();
        assert!(call(&mut second, "a").is_err(), "a has a connection already");
        assert!(call(&mut second, "b").is_ok());
        assert!(call(&mut third, "c").is_err(), "there are two members already");
        assert!(call(&mut first, "a").is_ok(), "it stays");
        drop((first, second, third, fourth));
        let state = places.lock();
        assert!(state.strangers.is_empty() && state.members == 0);
        assert!(state.residents.values().all(|resident| resident.connections.is_empty()));
    }

    #[test]
    fn a_member_that_comes_again_has_not_forgotten_its_calls_and_is_forgotten_in_time() {
        let places = Places::new(Limits { calls_a_second: 1e-3, calls_saved: 25.0, ..limits() });
        let mut waits = Vec::new();
        for _ in 0..3 {
            let mut place = places.take(address(1)).unwrap();
            waits.push(call(&mut place, "a").unwrap());
        }
        assert!(waits[1] == Duration::ZERO && waits[2] > Duration::from_secs(1), "{waits:?}");
        let quick = Places::new(Limits { calls_a_second: 1e9, ..limits() });
        for who in ["a", "b"] {
            let mut place = quick.take(address(1)).unwrap();
            call(&mut place, who).unwrap();
        }
        assert_eq!(quick.lock().residents.len(), 1, "a owes nothing any more");
    }

    #[test]
    fn a_member_s_connections_are_found_by_who_it_is() {
        let places = Places::new(Limits { of_a_member: 2, members_max: 9, ..limits() });
        let pass = Pass::default();
        let mut bad = places.take(address(1)).unwrap();
        let mut good = places.take(address(2)).unwrap();
        bad.call(&worker("bad"), &pass).unwrap();
        call(&mut good, "good").unwrap();
        let found = places.passes_of(&worker("bad"));
        assert_eq!(found.len(), 1);
        found[0].cut();
        assert!(pass.is_cut());
        drop(bad);
        assert!(places.passes_of(&worker("bad")).is_empty());
    }
}
