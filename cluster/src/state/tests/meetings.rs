//! Which rigs reach each other is found out before they train together, and told to the run before they start.

use shoal_coordinator::control::{Meeting, Way};

use super::*;
use crate::probing::words::Trial;

/// A rig that can be tried.
fn comes(harbour: &mut Harbour, rig: &str) -> SessionId {
    harbour.sessions += 1;
    let session = SessionId(harbour.sessions);
    let address = Some([10, 0, 0, harbour.sessions as u8].into());
    let facts = Facts { address, probe_port: Some(7403), ..facts() };
    harbour.cluster.rig_came(session, rig, facts, Vec::new());
    session
}

/// Whom each session is to try.
fn tries(effects: &[Effect]) -> Vec<(u64, Vec<String>)> {
    let tried = |effect: &Effect| {
        let Effect::Tell { session, message: ToRig::Try { neighbours } } = effect else {
            return None;
        };
        Some((session.0, neighbours.iter().map(|neighbour| neighbour.name.clone()).collect()))
    };
    effects.iter().filter_map(tried).collect()
}

fn says(harbour: &mut Harbour, session: SessionId, found: &[(&str, bool)]) {
    let trial = |(rig, reached): &(&str, bool)| Trial { rig: (*rig).to_owned(), reached: *reached };
    let trials = found.iter().map(trial).collect();
    harbour.cluster.rig_says(session, FromRig::Tried { trials });
}

fn meets(effects: &[Effect]) -> Vec<Vec<Meeting>> {
    let met = |effect: &Effect| {
        let Effect::Meet { meetings, .. } = effect else { return None };
        Some(meetings.clone())
    };
    effects.iter().filter_map(met).collect()
}

fn from(a: &str, b: &str, who: &str) -> Meeting {
    Meeting { rigs: (a.to_owned(), b.to_owned()), way: Way::From(who.to_owned()) }
}

/// The run's coordinator has taken it.
fn takes(harbour: &mut Harbour, meetings: &[Meeting]) {
    let run = RunId("run-j".into());
    harbour.cluster.met("j", run, meetings.to_vec(), true);
}

#[test]
fn a_newcomer_and_those_that_are_here_try_each_other() {
    let mut harbour = Harbour::new();
    let a = comes(&mut harbour, "a");
    assert!(tries(&harbour.take()).is_empty());
    let b = comes(&mut harbour, "b");
    let all = tries(&harbour.take());
    assert_eq!(all, [(b.0, vec!["a".to_owned()]), (a.0, vec!["b".to_owned()])]);
    // One that cannot be tried is not, and tries the others all the same.
    let c = harbour.comes("c");
    let all = tries(&harbour.take());
    assert_eq!(all, [(c.0, vec!["a".to_owned(), "b".to_owned()])]);
}

#[test]
fn a_run_is_told_before_its_workers_start_and_again_until_it_has_taken_it() {
    let mut harbour = Harbour::new();
    let (a, b) = (comes(&mut harbour, "a"), comes(&mut harbour, "b"));
    harbour.apply(job("j", 2, 2));
    harbour.live(4, &[a, b]);
    assert_eq!(harbour.phase("j"), JobPhase::Queued, "it is not known yet who reaches whom");
    says(&mut harbour, a, &[("b", false), ("x", false)]);
    says(&mut harbour, b, &[("a", true)]);
    assert_eq!(harbour.phase("j"), JobPhase::Starting);
    harbour.opens("j");
    let effects = harbour.take();
    assert_eq!((meets(&effects), starts(&effects)), (vec![vec![from("a", "b", "b")]], vec![]));
    // Nothing came of it: it is said again, and only then is anything started.
    harbour.cluster.met("j", RunId("run-j".into()), vec![from("a", "b", "b")], false);
    harbour.live(2, &[a, b]);
    let effects = harbour.take();
    assert_eq!((meets(&effects).len(), starts(&effects).len()), (1, 0));
    takes(&mut harbour, &[from("a", "b", "b")]);
    assert_eq!(starts(&harbour.take()), [(a, 0), (b, 1)]);
    harbour.live(3, &[a, b]);
    assert!(meets(&harbour.take()).is_empty());
}

#[test]
fn a_run_over_rigs_that_reach_each_other_is_told_nothing() {
    let mut harbour = Harbour::new();
    let (a, b) = (comes(&mut harbour, "a"), comes(&mut harbour, "b"));
    says(&mut harbour, a, &[("b", true)]);
    says(&mut harbour, b, &[("a", true)]);
    harbour.apply(job("j", 2, 2));
    harbour.opens("j");
    let effects = harbour.take();
    assert!(meets(&effects).is_empty() && starts(&effects).len() == 2, "{effects:?}");
}

#[test]
fn whoever_does_not_answer_holds_nobody_up_for_long() {
    let mut harbour = Harbour::new();
    let (a, b) = (comes(&mut harbour, "a"), comes(&mut harbour, "b"));
    harbour.apply(job("j", 2, 2));
    says(&mut harbour, a, &[("b", false)]);
    harbour.live(16, &[a, b]);
    harbour.opens("j");
    assert_eq!(meets(&harbour.take()), [[from("a", "b", "b")]], "b can, as far as is known");
}

#[test]
fn ways_change_while_a_run_goes_on_and_a_newcomer_waits_until_they_are_told() {
    let mut harbour = Harbour::new();
    let (a, b) = (comes(&mut harbour, "a"), comes(&mut harbour, "b"));
    says(&mut harbour, a, &[("b", true)]);
    says(&mut harbour, b, &[("a", true)]);
    harbour.apply(job("j", 3, 2));
    harbour.live(4, &[a, b]);
    harbour.opens("j");
    harbour.take();
    let c = comes(&mut harbour, "c");
    assert!(starts(&harbour.take()).is_empty(), "it has its seat, and is tried");
    says(&mut harbour, a, &[("c", false)]);
    says(&mut harbour, b, &[("c", true)]);
    says(&mut harbour, c, &[("a", true), ("b", true)]);
    let effects = harbour.take();
    assert_eq!((meets(&effects), starts(&effects)), (vec![vec![from("a", "c", "c")]], vec![]));
    takes(&mut harbour, &[from("a", "c", "c")]);
    assert_eq!(starts(&harbour.take()), [(c, 2)]);
    // Five minutes later the way is tried again, and is open.
    harbour.live(340, &[a, b, c]);
    assert_eq!(tries(&harbour.take()), [(a.0, vec!["c".to_owned()])]);
    says(&mut harbour, a, &[("c", true)]);
    assert_eq!(meets(&harbour.take()), [Vec::new()]);
}

/// What each session is told to relay, by how many pairs of how many runs.
fn relays(effects: &[Effect]) -> Vec<(u64, usize, usize)> {
    let told = |effect: &Effect| {
        let Effect::Tell { session, message: ToRig::Relay { served } } = effect else {
            return None;
        };
        Some((session.0, served.len(), served.values().map(BTreeSet::len).sum()))
    };
    effects.iter().filter_map(told).collect()
}

fn door(effects: &[Effect]) -> Vec<usize> {
    let told = |effect: &Effect| {
        let Effect::Relay(served) = effect else { return None };
        Some(served.values().map(BTreeSet::len).sum())
    };
    effects.iter().filter_map(told).collect()
}

/// `a` and `b` are reached by nobody, and reach all others.
fn found(harbour: &mut Harbour, rigs: &[(&str, SessionId)]) {
    for (rig, session) in rigs {
        let others = rigs.iter().filter(|(other, _)| other != rig);
        let all: Vec<_> = others.map(|(other, _)| (*other, !matches!(*other, "a" | "b"))).collect();
        says(harbour, *session, &all);
    }
}

fn through(rig: &str, n: u8) -> Meeting {
    let way = Way::Through { rig: rig.to_owned(), at: ([10, 0, 0, n], 7403).into() };
    Meeting { way, ..from("a", "b", "a") }
}

fn through_the_door() -> Meeting {
    Meeting { way: Way::ThroughCoordinator, ..from("a", "b", "a") }
}

#[test]
fn two_that_cannot_dial_each_other_get_a_relay_and_another_when_it_goes() {
    let mut harbour = Harbour::new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|rig| comes(&mut harbour, rig));
    found(&mut harbour, &[("a", a), ("b", b), ("c", c), ("d", d)]);
    harbour.apply(job("j", 2, 2));
    harbour.take();
    harbour.opens("j");
    let effects = harbour.take();
    assert_eq!(meets(&effects), [[through("c", 3)]]);
    // It knows whom it serves before the workers start, and all others that they serve nobody.
    assert_eq!(relays(&effects), [(c.0, 1, 1)]);
    takes(&mut harbour, &[through("c", 3)]);
    assert_eq!(starts(&harbour.take()).len(), 2);
    // A better one does not take its place; the next one does when it goes.
    harbour.cluster.rig_gone(c, "it hung up");
    let effects = harbour.take();
    assert_eq!(
        (meets(&effects), relays(&effects)),
        (vec![vec![through("d", 4)]], vec![(d.0, 1, 1)])
    );
    takes(&mut harbour, &[through("d", 4)]);
    // Back again, it serves no pair any more, and does not end what goes on: the run is not over.
    let c = comes(&mut harbour, "c");
    found(&mut harbour, &[("a", a), ("b", b), ("c", c), ("d", d)]);
    let effects = harbour.take();
    assert_eq!((meets(&effects), relays(&effects)), (vec![], vec![(c.0, 1, 0)]));
    assert_eq!(harbour.cluster.relayed_runs("c"), [RunId("run-j".into())]);
    // Nobody else: the door.
    harbour.cluster.rig_gone(c, "it hung up");
    harbour.cluster.rig_gone(d, "it hung up");
    let effects = harbour.take();
    assert_eq!((meets(&effects), door(&effects)), (vec![vec![through_the_door()]], vec![1]));
    harbour.cluster.launcher_says("j", FromLauncher::Ended(LaunchEnd::Finished));
    harbour.live(1, &[a, b]);
    assert_eq!(door(&harbour.take()), [0], "with the run it is over");
}

#[test]
fn a_rig_that_only_relays_takes_no_seat_and_is_the_first_choice() {
    let mut harbour = Harbour::new();
    let [a, b, c] = ["a", "b", "c"].map(|rig| comes(&mut harbour, rig));
    harbour.sessions += 1;
    let z = SessionId(harbour.sessions);
    let address = Some([10, 0, 0, 4].into());
    let facts = Facts { address, probe_port: Some(7403), relay_only: true, ..facts() };
    harbour.cluster.rig_came(z, "z", facts, Vec::new());
    found(&mut harbour, &[("a", a), ("b", b), ("c", c), ("z", z)]);
    harbour.apply(job("j", 4, 2));
    harbour.live(5, &[a, b, c, z]);
    harbour.opens("j");
    assert_eq!(harbour.seats("j").len(), 3, "all but the relay");
    let met = meets(&harbour.take()).remove(0);
    assert!(met.contains(&through("z", 4)), "{met:?}");
    assert!(met.contains(&from("a", "c", "a")) && met.contains(&from("b", "c", "b")), "{met:?}");
    let Answer::Overview(overview) = harbour.cluster.ask(&Ask::Overview, 0) else { panic!() };
    let of = |name: &str| overview.rigs.iter().find(|rig| rig.name == name).unwrap();
    assert_eq!((of("z").relays, of("z").is, of("c").relays), (1, RigIs::Free, 0));
}

#[test]
fn after_a_restart_what_was_so_is_so_until_it_is_tried_anew() {
    let mut harbour = Harbour::new();
    let (a, b) = (comes(&mut harbour, "a"), comes(&mut harbour, "b"));
    says(&mut harbour, a, &[("b", false)]);
    says(&mut harbour, b, &[("a", true)]);
    harbour.apply(job("j", 2, 2));
    harbour.opens("j");
    takes(&mut harbour, &[from("a", "b", "b")]);
    let job = harbour.cluster.job("j").unwrap().clone();
    let known = Known { jobs: BTreeMap::from([("j".to_owned(), job)]), ..Known::default() };
    harbour.cluster = Cluster::new(known);
    harbour.take();
    harbour.opens("j");
    assert_eq!(meets(&harbour.take()), [[from("a", "b", "b")]]);
}
