//! Who waits for whom.

use super::*;

/// One stream makes numbers, another uses them; whether the result is right.
fn two_streams(bench: &mut Bench, waits: bool) -> bool {
    let (maker, user) = (bench.stream(), bench.stream());
    let (a, b) = (bench.floats(N), bench.floats(N));
    bench.fill(maker, a, 3.0);
    if waits {
        let made = bench.driver.create_event(bench.context, 2).unwrap();
        bench.driver.record(bench.context, made, maker).unwrap();
        bench.driver.wait_event(bench.context, user, made).unwrap();
    }
    bench.scale(user, b, a, 2.0);
    is_all(&bench.download(user, b), 6.0)
}

#[test]
fn with_a_wait_every_order_is_right_and_without_some_are_wrong() {
    let mut wrong = 0;
    for (seed, temper) in draws(20) {
        assert!(two_streams(&mut Bench::seeded(seed, temper), true), "{seed} {temper:?}");
        let is_right = two_streams(&mut Bench::seeded(seed, temper), false);
        // A card that is always on time hides the mistake, one that is always late shows it.
        assert!(temper != Temper::Eager || is_right);
        assert!(temper != Temper::Lazy || !is_right);
        wrong += usize::from(temper == Temper::Mixed && !is_right);
    }
    assert!((1..20).contains(&wrong), "{wrong} of 20 orders were wrong");
}

#[test]
fn a_later_record_does_not_move_an_earlier_wait() {
    for (seed, temper) in draws(20) {
        let mut bench = Bench::seeded(seed, temper);
        let context = bench.context;
        let (maker, user) = (bench.stream(), bench.stream());
        let (a, b) = (bench.floats(N), bench.floats(N));
        let event = bench.driver.create_event(context, 2).unwrap();
        bench.fill(maker, a, 1.0);
        bench.driver.record(context, event, maker).unwrap();
        bench.driver.wait_event(context, user, event).unwrap();
        bench.scale(user, b, a, 1.0);
        let used = bench.driver.create_event(context, 2).unwrap();
        bench.driver.record(context, used, user).unwrap();
        bench.driver.wait_event(context, maker, used).unwrap();
        bench.fill(maker, a, 2.0);
        bench.driver.record(context, event, maker).unwrap();
        assert!(is_all(&bench.download(user, b), 1.0), "{seed} {temper:?}");
        let goals = bench.driver.event_goals(context, event).unwrap();
        bench.wait(&goals).unwrap();
        assert!(is_all(&bench.download(maker, a), 2.0));
    }
}

#[test]
fn the_default_stream_waits_for_blocking_streams_and_they_for_it() {
    for (seed, temper) in draws(20) {
        let mut bench = Bench::seeded(seed, temper);
        let (first, last) = (
            bench.driver.create_stream(bench.context, 0).unwrap(),
            bench.driver.create_stream(bench.context, 0).unwrap(),
        );
        let (a, b, c) = (bench.floats(N), bench.floats(N), bench.floats(N));
        bench.fill(first, a, 1.0);
        bench.scale(0, b, a, 2.0);
        bench.scale(last, c, b, 2.0);
        assert!(is_all(&bench.download(last, c), 4.0), "{seed} {temper:?}");
    }
}

#[test]
fn the_default_stream_does_not_wait_for_the_others() {
    let wrong = draws(20).filter(|(seed, temper)| {
        let mut bench = Bench::seeded(*seed, *temper);
        let maker = bench.stream();
        let (a, b) = (bench.floats(N), bench.floats(N));
        bench.fill(maker, a, 1.0);
        bench.scale(0, b, a, 2.0);
        !is_all(&bench.download(0, b), 2.0)
    });
    assert!(wrong.count() > 0);
}

#[test]
fn who_asks_again_and_again_gets_there() {
    for (seed, temper) in draws(5) {
        let mut bench = Bench::seeded(seed, temper);
        let stream = bench.stream();
        let a = bench.floats(N);
        (0..10).for_each(|_| bench.fill(stream, a, 1.0));
        let goals = bench.driver.stream_goals(bench.context, stream).unwrap();
        let asked = (0..20).position(|_| bench.driver.poll(&goals) == Ok(()));
        assert!(asked.is_some(), "{seed} {temper:?}");
        if temper == Temper::Lazy {
            assert!(asked > Some(0), "work is queued: the first answer is not yet");
        }
    }
}

#[test]
fn a_stream_that_is_too_deep_makes_the_host_wait() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let stream = bench.stream();
    let a = bench.floats(N);
    for _ in 0..1100 {
        bench.driver.fill(bench.context, stream, a, Pattern::Byte(0), 4).unwrap();
    }
    assert_eq!(bench.driver.order.depth(stream), 1024);
}

#[test]
fn times_go_forward_and_need_an_event_that_keeps_them() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let context = bench.context;
    let stream = bench.stream();
    let a = bench.floats(N);
    let [start, end] = [(); 2].map(|()| bench.driver.create_event(context, 0).unwrap());
    assert_eq!(bench.driver.elapsed(context, start, end), Err(Status::InvalidHandle));
    bench.driver.record(context, start, stream).unwrap();
    bench.fill(stream, a, 1.0);
    bench.driver.record(context, end, stream).unwrap();
    assert_eq!(bench.driver.elapsed(context, start, end), Err(Status::NotReady));
    bench.synchronize(stream).unwrap();
    let millis = bench.driver.elapsed(context, start, end).unwrap();
    assert!(millis > 0.0 && millis < 1.0, "{millis}");
    let untimed = bench.driver.create_event(context, 2).unwrap();
    bench.driver.record(context, untimed, stream).unwrap();
    bench.synchronize(stream).unwrap();
    assert_eq!(bench.driver.elapsed(context, start, untimed), Err(Status::InvalidHandle));
}

#[test]
fn a_handle_of_another_kind_or_of_before_is_refused() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let context = bench.context;
    let stream = bench.stream();
    let event = bench.driver.create_event(context, 2).unwrap();
    let refused = Err(Status::InvalidHandle);
    assert_eq!(bench.driver.record(context, stream, event), refused);
    assert_eq!(bench.driver.destroy_event(context, stream), refused);
    assert_eq!(bench.driver.destroy_stream(context, event), refused);
    bench.driver.destroy_stream(context, stream).unwrap();
    assert_eq!(bench.driver.destroy_stream(context, stream), refused);
    assert_eq!(bench.driver.record(context, event, stream), refused);
    let module = bench.module;
    bench.driver.unload_module(context, module).unwrap();
    assert_eq!(bench.driver.function(context, module, "fill").map(|_| ()), refused);
    assert_eq!(bench.found(Check::BadHandle), 6);
}

#[test]
fn work_of_a_destroyed_stream_still_runs() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let stream = bench.stream();
    let a = bench.floats(N);
    bench.fill(stream, a, 5.0);
    bench.driver.destroy_stream(bench.context, stream).unwrap();
    let goals = bench.driver.context_goals(bench.context).unwrap();
    bench.wait(&goals).unwrap();
    assert!(is_all(&bench.download(0, a), 5.0));
}

#[test]
fn a_card_that_failed_stays_failed_and_the_other_does_not() {
    let mut bench = Bench::new(&[("CARDS", "4090,5090"), ("ORDER", "lazy")]);
    let other = bench.driver.retain(1).unwrap();
    let context = bench.context;
    let stream = bench.stream();
    let small = bench.floats(N / 2);
    bench.fill(stream, small, 1.0);
    let event = bench.driver.create_event(context, 2).unwrap();
    bench.driver.record(context, event, stream).unwrap();
    assert_eq!(bench.synchronize(stream), Err(Status::IllegalAddress));
    for _ in 0..2 {
        assert_eq!(bench.driver.allocate(context, 64), Err(Status::IllegalAddress));
        assert_eq!(bench.driver.create_stream(context, 1), Err(Status::IllegalAddress));
        assert_eq!(bench.driver.event_goals(context, event), Err(Status::IllegalAddress));
    }
    // What is given back is given back, whatever the answer.
    assert_eq!(bench.driver.free(context, small), Err(Status::IllegalAddress));
    assert_eq!(bench.driver.destroy_event(context, event), Err(Status::IllegalAddress));
    assert_eq!(bench.driver.destroy_stream(context, stream), Err(Status::IllegalAddress));
    assert_eq!(bench.driver.unload_module(context, bench.module), Err(Status::IllegalAddress));
    assert_eq!(bench.driver.release(0), Ok(Progress::Done));
    assert!(bench.driver.report().leaks.is_empty());
    bench.driver.allocate(other, 64).unwrap();
}
