//! How rigs come together, as a cluster's coordinator says it: in the next plan, and through a restart.

use shoal_plan::plan::WorkerId;
use shoal_proto::{Meeting, Way};

use crate::control::{self, DIRECT, MEETINGS_MAX};
use crate::state::fixtures::{connection, hello, settings};
use crate::state::tests::Run;
use crate::state::{Event, Order, State};

fn meeting(a: &str, b: &str, from: &str) -> control::Meeting {
    let rigs = (a.to_owned(), b.to_owned());
    control::Meeting { rigs, way: control::Way::From(from.to_owned()) }
}

fn order(run: &mut Run, meetings: Vec<control::Meeting>) -> String {
    run.apply(Event::Ordered { asked: 7, order: Order::Meet(meetings) })
}

/// Two workers on rigs.
fn join(run: &mut Run) {
    for (worker, rig) in [(0, "zander"), (1, "asp")] {
        let (connection, rig) = (connection(worker), rig.to_owned());
        run.apply(Event::Proven { connection, worker: WorkerId(worker), rig });
        run.say(worker, hello(worker));
    }
}

fn planned(run: &Run) -> Vec<Meeting> {
    run.state.assignment.as_ref().unwrap().meetings.clone()
}

#[test]
fn what_is_said_of_rigs_is_in_the_plan_by_workers_and_in_the_status() {
    let mut run = Run::new(settings());
    // Of a rig that is not here nothing can be said, and what is said last counts.
    order(&mut run, vec![meeting("asp", "zander", "zander")]);
    let said =
        order(&mut run, vec![meeting("asp", "pike", "pike"), meeting("asp", "zander", "asp")]);
    assert!(said.contains("2 pairs of rigs meet otherwise than usual"), "{said}");
    join(&mut run);
    let ends = (WorkerId(0), WorkerId(1));
    assert_eq!(planned(&run), [Meeting { ends, way: Way::From(WorkerId(1)) }]);
    let ways = run.state.status().ways;
    assert_eq!((ways.len(), ways[0].workers, ways[0].way.as_str()), (1, ends, "from asp"));
    // A coordinator that is started anew knows the same.
    let text = serde_json::to_string(&run.state.save()).unwrap();
    let (state, _) = State::restore(settings(), serde_json::from_str(&text).unwrap());
    assert_eq!(state.status().ways, ways);
    assert_eq!(state.assignment.unwrap().meetings, planned(&run));
    let relayed = |way| vec![control::Meeting { way, ..meeting("asp", "zander", "asp") }];
    let (rig, at) = ("pike".to_owned(), "10.0.0.3:7403".parse().unwrap());
    for (way, said) in [
        (control::Way::Through { rig, at }, "through pike"),
        (control::Way::ThroughCoordinator, "through the coordinator"),
    ] {
        order(&mut run, relayed(way));
        assert_eq!(run.state.status().ways[0].way, said);
    }
    assert_eq!(run.state.meetings()[0].way, Way::ThroughDoor);
    order(&mut run, Vec::new());
    assert_eq!(run.state.status().ways[0].way, DIRECT);
    let many = vec![meeting("a", "b", "a"); MEETINGS_MAX + 1];
    assert!(order(&mut run, many).contains("are more than the 500 of one run"));
}

#[test]
fn two_that_stood_apart_are_tried_again_once_they_meet_in_another_way() {
    let mut run = Run::new(settings());
    join(&mut run);
    let (a, b, now_ms) = (WorkerId(0), WorkerId(1), run.state.now_ms);
    run.state.apart.report(a, b, now_ms);
    order(&mut run, Vec::new());
    assert!(run.state.apart.are(a, b, now_ms), "nothing has changed for them");
    order(&mut run, vec![meeting("asp", "zander", "asp")]);
    assert!(!run.state.apart.are(a, b, now_ms));
}
