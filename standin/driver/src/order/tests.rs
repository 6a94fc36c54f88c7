//! Orders are legal for every seed, and differ between seeds.

use super::*;

const TEMPERS: [Temper; 3] = [Temper::Lazy, Temper::Eager, Temper::Mixed];

/// Runs everything up to `goal`; the names of the work in the order it ran.
fn run(order: &mut Order<&'static str>, goal: Goal) -> Vec<&'static str> {
    let mut ran = Vec::new();
    let is_open = |order: &Order<_>| match goal {
        Goal::Work(id) => order.is_pending(id),
        Goal::Background => true,
    };
    while is_open(order)
        && let Some(picked) = order.pick(goal)
    {
        ran.push(picked.work);
        order.finish(picked.id, picked.start + 1.0);
    }
    ran
}

fn place(ran: &[&str], name: &str) -> usize {
    ran.iter().position(|other| *other == name).unwrap_or_else(|| panic!("{name} in {ran:?}"))
}

#[test]
fn a_lane_is_in_order_and_after_means_after_for_every_seed() {
    for (seed, temper) in (0..200).flat_map(|seed| TEMPERS.map(|temper| (seed, temper))) {
        let mut order = Order::new(seed, temper);
        (1..=3).for_each(|lane| order.add_lane(lane));
        order.push(1, [], 0.0, "a1");
        let a2 = order.push(1, [], 0.0, "a2");
        order.push(2, [], 0.0, "b1");
        let b2 = order.push(2, [a2], 0.0, "b2");
        order.push(3, [b2], 0.0, "c1");
        let ran = run(&mut order, Goal::Background);
        assert_eq!(ran.len(), 5, "{ran:?}");
        for (first, second) in [("a1", "a2"), ("b1", "b2"), ("a2", "b2"), ("b2", "c1")] {
            assert!(place(&ran, first) < place(&ran, second), "seed {seed}: {ran:?}");
        }
    }
}

#[test]
fn lanes_that_do_not_wait_run_in_either_order() {
    let mut orders = BTreeSet::new();
    for seed in 0..64 {
        let mut order = Order::new(seed, Temper::Eager);
        (1..=3).for_each(|lane| order.add_lane(lane));
        order.push(1, [], 0.0, "a1");
        order.push(1, [], 0.0, "a2");
        order.push(2, [], 0.0, "b");
        order.push(3, [], 0.0, "c");
        orders.insert(run(&mut order, Goal::Background));
    }
    // Four pieces in three lanes have twelve orders; priorities alone give six.
    assert!(orders.len() >= 6, "{orders:?}");
}

#[test]
fn a_lazy_card_does_only_what_somebody_waits_for() {
    for seed in 0..50 {
        let mut order = Order::new(seed, Temper::Lazy);
        (1..=2).for_each(|lane| order.add_lane(lane));
        order.push(1, [], 0.0, "a1");
        let a2 = order.push(1, [], 0.0, "a2");
        order.push(1, [], 0.0, "a3");
        order.push(2, [], 0.0, "b");
        assert!(!order.wants_background());
        assert_eq!(run(&mut order, Goal::Work(a2)), ["a1", "a2"]);
        assert_eq!(order.pending().count(), 2);
    }
}

#[test]
fn the_same_seed_gives_the_same_order() {
    let run_once = |seed| {
        let mut order = Order::new(seed, Temper::Mixed);
        (1..=4).for_each(|lane| order.add_lane(lane));
        for name in ["p", "q", "r", "s", "t", "u", "v", "w"] {
            order.push(1 + u64::from(name.as_bytes()[0]) % 4, [], 0.0, name);
        }
        run(&mut order, Goal::Background)
    };
    for seed in 0..20 {
        assert_eq!(run_once(seed), run_once(seed));
    }
}

#[test]
fn running_work_holds_back_its_lane_and_its_waiters() {
    let mut order = Order::new(1, Temper::Eager);
    (1..=2).for_each(|lane| order.add_lane(lane));
    let a = order.push(1, [], 0.0, "a");
    order.push(1, [], 0.0, "a behind");
    order.push(2, [a], 0.0, "b");
    let picked = order.pick(Goal::Background).unwrap();
    assert_eq!(picked.work, "a");
    assert!(order.pick(Goal::Background).is_none(), "all that is left waits for a");
    order.finish(picked.id, 5.0);
    assert_eq!(run(&mut order, Goal::Background).len(), 2);
}

#[test]
fn work_starts_when_what_it_waited_for_has_ended() {
    let mut order = Order::new(1, Temper::Eager);
    (1..=2).for_each(|lane| order.add_lane(lane));
    let a = order.push(1, [], 10.0, "a");
    order.push(2, [a], 0.0, "b");
    let picked = order.pick(Goal::Background).unwrap();
    assert!((picked.start - 10.0).abs() < 1e-9);
    order.finish(picked.id, 17.0);
    assert!((order.pick(Goal::Background).unwrap().start - 17.0).abs() < 1e-9);
}

#[test]
fn abandoned_work_counts_as_finished() {
    let mut order = Order::new(1, Temper::Lazy);
    (1..=2).for_each(|lane| order.add_lane(lane));
    let a = order.push(1, [], 0.0, "a");
    order.push(1, [], 0.0, "a2");
    let b = order.push(2, [a], 0.0, "b");
    assert_eq!(order.abandon(|lane| lane == 1), ["a", "a2"]);
    assert!(!order.is_pending(a));
    assert_eq!(run(&mut order, Goal::Work(b)), ["b"]);
}
