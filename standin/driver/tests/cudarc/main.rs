//! Unmodified cudarc code in a process of its own that finds the stand-in as its `libcuda`: what
//! works on a card works, for several cards and seeds, and each mistake and each mishap has its
//! name.
//!
//! A test starts this executable again with the name of a scenario; [`scenario`] runs it there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Output;

use shoal_standin_driver::report::{Check, Report};
use shoal_standin_driver::testing::StandIn;

mod scenarios;

/// Tells the child what to do.
const SCENARIO: &str = "SHOAL_TEST_SCENARIO";

/// The child's side: runs the scenario that it was started for. In the parent there is none.
#[test]
fn scenario() {
    if let Ok(name) = std::env::var(SCENARIO) {
        scenarios::run(&name);
    }
}

/// Runs a scenario in a child; its output and what the stand-in says.
#[track_caller]
fn play(standin: &StandIn, name: &str) -> (Output, Report) {
    let executable = std::env::current_exe().unwrap();
    let mut command = standin.command(executable);
    command.args(["scenario", "--exact", "--nocapture", "--test-threads=1"]);
    let output = command.env(SCENARIO, name).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let reports = standin.reports();
    assert_eq!(reports.len(), 1, "{name}: no report; standard error was:\n{errors}");
    (output, reports.into_iter().next().unwrap())
}

/// Runs a scenario that must succeed.
#[track_caller]
fn succeed(standin: StandIn, name: &str) -> Report {
    let (output, report) = play(&standin, name);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} failed:\n{errors}");
    report
}

/// Runs a scenario that must succeed, and must have been noticed by `check`.
#[track_caller]
fn noticed(standin: StandIn, name: &str, check: Check) -> Report {
    let report = succeed(standin, name);
    assert!(!report.found(check).is_empty(), "{name}: no {check:?} in {:#?}", report.faults);
    report
}

#[test]
fn a_kernel_runs_on_every_card_and_for_every_seed() {
    for cards in ["3090", "4090", "5090", "h100"] {
        let report = succeed(StandIn::new().cards(cards), "properties_and_scale");
        report.assert_clean();
        assert_eq!(report.launches["scale"].count, 1);
    }
    for seed in 0..6 {
        succeed(StandIn::new().seed(seed), "properties_and_scale").assert_clean();
        succeed(StandIn::new().seed(seed), "two_streams_with_wait").assert_clean();
    }
}

#[test]
fn a_missing_wait_for_an_event_shows_for_some_seeds() {
    let outcome = |seed| {
        let standin = StandIn::new().seed(seed);
        play(&standin, "two_streams_without_wait").0.status.success()
    };
    let right = (0..20).filter(|seed| outcome(*seed)).count();
    assert!(right < 20, "no seed showed the missing wait");
    assert!(right > 0, "no seed hid the missing wait: the order is not free");
}

#[test]
fn several_cards_have_memories_of_their_own() {
    succeed(StandIn::new().cards("4090,5090"), "two_cards").assert_clean();
    noticed(StandIn::new().cards("4090,5090"), "memory_of_the_other_card", Check::Argument);
}

#[test]
fn without_stream_ordered_allocation_cudarc_takes_the_other_way() {
    let report = succeed(StandIn::new().set("SHOAL_STANDIN_POOLS", "off"), "properties_and_scale");
    report.assert_clean();
    assert!(report.calls.contains_key("cuMemAlloc_v2"));
    assert!(!report.calls.contains_key("cuMemAllocAsync"));
}

#[test]
fn faults_of_kernels_have_their_status_and_stick() {
    noticed(StandIn::new(), "store_past_the_end", Check::IllegalAddress);
    noticed(StandIn::new(), "store_misaligned", Check::Misaligned);
    noticed(StandIn::new(), "trap", Check::KernelFault);
}

#[test]
fn launches_that_cannot_be_are_refused() {
    noticed(StandIn::new(), "too_many_threads", Check::LaunchShape);
    noticed(StandIn::new(), "no_shared_opt_in", Check::SharedOptIn);
    succeed(StandIn::new(), "shared_opt_in").assert_clean();
    noticed(StandIn::new(), "unknown_kernel", Check::Module);
    noticed(StandIn::new(), "arguments_swapped", Check::IllegalAddress);
    noticed(StandIn::new(), "argument_missing", Check::Argument);
}

#[test]
fn memory_is_not_used_after_it_was_freed() {
    for seed in 0..6 {
        noticed(StandIn::new().seed(seed), "use_after_free", Check::UseAfterFree);
    }
    let lazy = || StandIn::new().set("SHOAL_STANDIN_ORDER", "lazy");
    noticed(lazy(), "freed_while_queued", Check::FreedInUse);
    noticed(StandIn::new(), "freed_twice", Check::DoubleFree);
}

#[test]
fn a_pinned_buffer_is_left_alone_until_its_copy_is_done() {
    let lazy = || StandIn::new().set("SHOAL_STANDIN_ORDER", "lazy");
    noticed(lazy(), "pinned_source_reused", Check::HostBufferReused);
    noticed(lazy(), "pinned_target_read_early", Check::HostBufferReused);
    noticed(lazy(), "pinned_freed_while_queued", Check::HostBufferFreedInUse);
    for seed in 0..6 {
        succeed(StandIn::new().seed(seed), "pinned_with_waits").assert_clean();
    }
}

#[test]
fn what_is_not_given_back_is_named() {
    let report = succeed(StandIn::new(), "leak");
    let mut kinds: Vec<(&str, usize)> =
        report.leaks.iter().map(|leak| (leak.kind.as_str(), leak.bytes)).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [("event", 0), ("memory", 4096), ("module", 0), ("pinned memory", 64), ("stream", 0)]
    );
    assert_eq!(report.memory[0].high_water, 4096);
}

#[test]
fn mishaps_come_when_they_were_asked_for() {
    succeed(StandIn::new().fail("alloc:2"), "second_allocation_fails");
    succeed(StandIn::new().set("SHOAL_STANDIN_MEMORY", "300MiB"), "allocation_too_large");
    noticed(StandIn::new().fail("launch:2"), "second_launch_fails", Check::Injected);
    noticed(StandIn::new().fail("launch:scale"), "launch_of_scale_fails", Check::Injected);
    succeed(StandIn::new().fail("lost:12"), "card_is_lost");
    succeed(StandIn::new().fail("lost:12:ecc_uncorrectable"), "card_has_bad_memory");
    succeed(StandIn::new().cards("none"), "no_cards");
    succeed(StandIn::new().fail("init:999"), "init_fails");
    let retain = "cuDevicePrimaryCtxRetain:device_unavailable";
    succeed(StandIn::new().fail(retain), "retain_fails");
    let prohibited = StandIn::new().set("SHOAL_STANDIN_COMPUTE_MODE", "prohibited");
    succeed(prohibited, "retain_fails");
}

#[test]
fn what_the_documentation_denies_does_not_exist() {
    succeed(StandIn::new(), "symbols").assert_clean();
}

#[test]
fn ptx_that_is_too_new_is_refused() {
    succeed(StandIn::new().set("SHOAL_STANDIN_DRIVER", "11.4"), "driver_too_old_for_ptx");
    succeed(StandIn::new().cards("3090"), "card_too_old_for_ptx");
    succeed(StandIn::new().cards("h100"), "not_ptx");
}

#[test]
fn functions_of_the_host_run_in_their_place() {
    for seed in 0..6 {
        succeed(StandIn::new().seed(seed), "host_function").assert_clean();
    }
}

#[test]
fn a_choice_that_makes_no_sense_is_an_error_of_every_call() {
    let standin = StandIn::new().cards("9999");
    let executable = std::env::current_exe().unwrap();
    let mut command = standin.command(executable);
    command.args(["scenario", "--exact", "--nocapture"]).env(SCENARIO, "init_fails");
    let output = command.output().unwrap();
    assert!(output.status.success());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("SHOAL_STANDIN_CARDS is `9999`"), "{errors}");
}
