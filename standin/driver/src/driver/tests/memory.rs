//! Accounting, and who may touch what when.

use super::*;

#[test]
fn memory_is_accounted_and_given_back() {
    let mut bench = Bench::new(&[("MEMORY", "512MiB"), ("ORDER", "lazy")]);
    let context = bench.context;
    let (free, total) = bench.driver.memory_info(context).unwrap();
    assert_eq!((free, total), (256 << 20, 512 << 20));
    let a = bench.driver.allocate(context, 1000).unwrap();
    assert_eq!(bench.driver.memory_info(context).unwrap().0, free - 1024);
    assert_eq!(bench.driver.allocate(context, free), Err(Status::OutOfMemory));
    assert_eq!(bench.driver.allocate(context, 0), Err(Status::InvalidValue));
    assert_eq!(bench.driver.allocate(context, usize::MAX), Err(Status::OutOfMemory));
    assert_eq!(bench.driver.address_range(context, a + 999), Ok((a, 1000)));
    assert_eq!(bench.driver.address_range(context, a + 1000), Err(Status::NotFound));
    bench.driver.free(context, a).unwrap();
    assert_eq!(bench.driver.memory_info(context).unwrap().0, free);
    let used = &bench.driver.report().memory[0];
    assert_eq!((used.high_water, used.now), (1024, 0));
}

#[test]
fn fresh_memory_is_no_number() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let a = bench.floats(N);
    assert!(bench.download(0, a).iter().all(|value| value.is_nan()));
}

#[test]
fn pageable_memory_is_read_at_the_call_and_pinned_memory_later() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let context = bench.context;
    let stream = bench.stream();
    let (a, b) = (bench.floats(N), bench.floats(N));
    let pageable = bench.host.floats(1.0, N);
    let pinned = bench.driver.allocate_host(context, N * 4).unwrap();
    bench.host.set(pinned, 1.0, N);
    bench.driver.upload(context, stream, a, pageable, N * 4).unwrap();
    bench.driver.upload(context, stream, b, pinned, N * 4).unwrap();
    bench.host.set(pageable, 2.0, N);
    bench.host.set(pinned, 2.0, N);
    assert!(is_all(&bench.download(stream, a), 1.0));
    assert!(is_all(&bench.download(stream, b), 2.0));
    assert_eq!(bench.found(Check::HostBufferReused), 1);
}

#[test]
fn a_function_of_the_host_may_write_what_a_copy_behind_it_reads() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let context = bench.context;
    let (stream, a) = (bench.stream(), bench.floats(N));
    let pinned = bench.driver.allocate_host(context, N * 4).unwrap();
    bench.host.set(pinned, 1.0, N);
    let call = HostCall { run: Box::new(|_| ()), even_if_failed: false };
    bench.driver.call_host(context, stream, call).unwrap();
    let copy = bench.driver.upload(context, stream, a, pinned, N * 4).unwrap();
    while bench.driver.advance(&copy.work) != Progress::HostFunction {}
    for (id, host) in bench.driver.take_due() {
        (host.run)(Ok(()));
        bench.host.set(pinned, 2.0, N);
        bench.driver.returned(id);
    }
    assert!(is_all(&bench.download(stream, a), 2.0));
    assert_eq!(bench.found(Check::HostBufferReused), 0);
}

#[test]
fn registered_memory_is_pinned_until_it_is_not() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let context = bench.context;
    let buffer = bench.host.floats(1.0, N);
    bench.driver.register_host(context, buffer, N * 4).unwrap();
    let again = bench.driver.register_host(context, buffer + 8, 8);
    assert_eq!(again, Err(Status::HostMemoryAlreadyRegistered));
    assert!(bench.driver.is_pinned(buffer + 16, N * 4 - 16));
    assert!(!bench.driver.is_pinned(buffer + 16, N * 4));
    assert!(bench.driver.unregister_host(context, buffer).unwrap().work.is_empty());
    bench.driver.drop_host(buffer);
    assert!(!bench.driver.is_pinned(buffer, 4));
    assert_eq!(bench.driver.unregister_host(context, buffer), Err(Status::HostMemoryNotRegistered));
}

/// Frees in one stream what another uses; whether that was noticed.
fn freed_beside_use(bench: &mut Bench, waits: bool) -> bool {
    let context = bench.context;
    let (home, other) = (bench.stream(), bench.stream());
    let a = bench.driver.allocate_in(context, home, N * 4).unwrap();
    let event = bench.driver.create_event(context, 2).unwrap();
    bench.driver.record(context, event, home).unwrap();
    bench.driver.wait_event(context, other, event).unwrap();
    bench.fill(other, a, 1.0);
    if waits {
        bench.driver.record(context, event, other).unwrap();
        bench.driver.wait_event(context, home, event).unwrap();
    }
    bench.driver.free_in(context, home, a).unwrap();
    let goals = bench.driver.context_goals(context).unwrap();
    let outcome = bench.wait(&goals);
    assert!(!waits || outcome == Ok(()));
    bench.found(Check::FreedInUse) > 0
}

#[test]
fn a_free_in_a_stream_waits_for_that_stream_only() {
    for (seed, temper) in draws(10) {
        assert!(!freed_beside_use(&mut Bench::seeded(seed, temper), true), "{seed} {temper:?}");
    }
    assert!(freed_beside_use(&mut Bench::seeded(0, Temper::Lazy), false));
}

#[test]
fn memory_of_a_stream_is_used_by_another_only_after_it_was_allocated() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let (home, other) = (bench.stream(), bench.stream());
    let a = bench.driver.allocate_in(bench.context, home, N * 4).unwrap();
    bench.fill(home, a, 1.0);
    assert_eq!(bench.found(Check::UsedBeforeAllocated), 0);
    bench.fill(other, a, 1.0);
    assert_eq!(bench.found(Check::UsedBeforeAllocated), 1);
}

#[test]
fn copies_and_fills_stay_inside_one_allocation() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let context = bench.context;
    let (a, b) = (bench.floats(N), bench.floats(N));
    let refused = Err(Status::InvalidValue);
    assert_eq!(bench.driver.copy(context, 0, b, a + 4, N * 4), refused);
    assert_eq!(bench.driver.copy(context, 0, b - 4, a, 4), refused);
    assert_eq!(bench.driver.fill(context, 0, a + 2, Pattern::Word(0), 1), refused);
    assert_eq!(bench.driver.fill(context, 0, a, Pattern::Word(0), N + 1), refused);
    bench.driver.fill(context, 0, a, Pattern::Word(1.5f32.to_bits()), N).unwrap();
    bench.driver.copy(context, 0, b, a, N * 4).unwrap();
    assert!(is_all(&bench.download(0, b), 1.5));
    assert_eq!(bench.found(Check::IllegalAddress), 3);
    bench.driver.free(context, a).unwrap();
    assert_eq!(bench.driver.copy(context, 0, b, a, 4), refused);
    assert_eq!(bench.found(Check::UseAfterFree), 1);
}

#[test]
fn what_is_left_at_a_reset_is_a_leak_and_gone() {
    let mut bench = Bench::seeded(0, Temper::Lazy);
    let stream = bench.stream();
    let a = bench.floats(N);
    bench.fill(stream, a, 1.0);
    while bench.driver.release(0).unwrap() != Progress::Done {}
    let report = bench.driver.report();
    let kinds: Vec<&str> = report.leaks.iter().map(|leak| leak.kind.as_str()).collect();
    assert_eq!(kinds, ["memory", "stream", "module"]);
    assert_eq!(report.launches["fill"].count, 1, "queued work runs before the reset");
    assert_eq!(report.memory[0].now, 0);
    assert_eq!(bench.driver.allocate(bench.context, 64), Err(Status::ContextIsDestroyed));
    assert_eq!(bench.driver.release(0), Err(Status::InvalidContext));
}

#[test]
fn occupancy_follows_threads_registers_and_shared_memory() {
    let mut bench = Bench::new(&[("CARDS", "4090")]);
    let function = bench.driver.function(bench.context, bench.module, "fill").unwrap();
    let mut blocks = |threads, shared| bench.driver.occupancy(function, threads, shared).unwrap();
    // 64 registers a thread are assumed: 1024 threads of 1536.
    assert_eq!(blocks(128, 0), 8);
    assert_eq!(blocks(32, 0), 24, "no more blocks than a multiprocessor holds");
    // 100 KiB in all, of which each block takes one more than it asked for.
    assert_eq!(blocks(128, 32 << 10), 3);
    assert_eq!(blocks(128, 99 << 10), 1);
    assert_eq!(blocks(128, 100 << 10), 0);
    assert_eq!(bench.driver.shared_room(function, 2, 128), Ok(49 << 10));
    let (grid, threads) = bench.driver.best_block(function, |_| 0, 0).unwrap();
    assert_eq!((grid, threads), (128, 1024));
    let bounded = bench.driver.function(bench.context, bench.module, "bounded").unwrap();
    assert_eq!(bench.driver.function_attribute(0, bounded), Ok(64));
    assert_eq!(bench.driver.occupancy(bounded, 65, 0), Ok(0));
}
