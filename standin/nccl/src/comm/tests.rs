//! Ranks as threads, without a device.

use super::*;

fn process(change: impl Fn(&mut Settings)) -> &'static Process {
    let mut settings = Settings::read(|_| None).unwrap();
    settings.patience = Duration::from_millis(400);
    change(&mut settings);
    Box::leak(Box::new(Process::new(settings)))
}

fn group(process: &'static Process, size: usize) -> Vec<Arc<Rank>> {
    let id = Id::new(process.settings.patience).unwrap();
    assert_eq!(Id::of_bytes(&id.to_bytes()).unwrap(), id);
    (0..size).map(|rank| Rank::join(process, id, (rank, size))).collect()
}

/// Carries out one group of calls on each rank, and returns what came and what went wrong.
fn run(
    ranks: &[Arc<Rank>],
    calls: impl Fn(usize) -> Vec<Call> + Sync,
) -> Vec<(Vec<u8>, Option<Fault>)> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks
            .iter()
            .map(|rank| {
                let calls = calls(rank.rank);
                scope.spawn(move || {
                    let bytes = calls.iter().map(|call| call.bytes(rank.rank, rank.size));
                    let (out, into): (Vec<usize>, Vec<usize>) = bytes.unzip();
                    let out: Vec<u8> =
                        (0..out.iter().sum()).map(|i| (i + 10 * rank.rank) as u8).collect();
                    let mut into = vec![0; into.iter().sum()];
                    rank.carry_out(&calls, &out, &mut into);
                    (into, rank.fault())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn call(what: Move, count: usize) -> Call {
    Call { what, count, kind: Type::U8 }
}

fn all_to_all(rank: usize, size: usize) -> Vec<Call> {
    // Rank r sends r + 1 bytes to everybody, itself included.
    (0..size)
        .flat_map(|peer| {
            [call(Move::Send { to: peer }, rank + 1), call(Move::Recv { from: peer }, peer + 1)]
        })
        .collect()
}

#[test]
fn every_operation_moves_what_it_is_for() {
    let ranks = group(process(|_| {}), 3);
    let ends = run(&ranks, |rank| all_to_all(rank, 3));
    assert_eq!(ends[1], (vec![1, 12, 13, 23, 24, 25], None));
    let of = |what, count| run(&ranks, |_| vec![call(what, count)]);
    assert_eq!(of(Move::AllReduce, 2)[2], (vec![30, 33], None));
    assert_eq!(of(Move::ReduceScatter, 1)[2], (vec![36], None));
    assert_eq!(of(Move::AllGather, 2)[0], (vec![0, 1, 10, 11, 20, 21], None));
    assert_eq!(of(Move::Broadcast { root: 1 }, 2)[2], (vec![10, 11], None));
    for rank in &ranks {
        rank.leave();
    }
}

#[test]
fn what_does_not_belong_together_is_named() {
    let fails = |calls: &(dyn Fn(usize) -> Vec<Call> + Sync)| {
        let ranks = group(process(|_| {}), 2);
        run(&ranks, calls).remove(1).1.unwrap()
    };
    let recv = |count| vec![call(Move::Recv { from: 0 }, count)];
    let send = || vec![call(Move::Send { to: 1 }, 3)];
    let fault = fails(&|rank| if rank == 0 { send() } else { recv(4) });
    assert_eq!(fault.code, Code::InvalidUsage);
    let want = "mismatch: rank 1 of 2 in Recv { from: 0 } with rank 0: wants 4 bytes of U8, and rank 0 \
                sent 3 of U8 in Send";
    assert_eq!(fault.text, want);
    let fault = fails(&|rank| if rank == 0 { send() } else { vec![call(Move::AllReduce, 3)] });
    assert!(fault.text.contains("sent 3 of U8 in Send"), "{fault:?}");
    let fault = fails(&|rank| if rank == 0 { Vec::new() } else { recv(4) });
    assert_eq!(fault.code, Code::InternalError);
    assert!(fault.text.starts_with("deadlock: rank 1 of 2 in Recv { from: 0 }"), "{fault:?}");
}

#[test]
fn a_rank_that_goes_and_one_that_aborts_end_the_waits_of_others() {
    let ranks = group(process(|settings| settings.patience = Duration::from_mins(1)), 2);
    let recv = || vec![call(Move::Recv { from: 0 }, 4)];
    ranks[1].wait_until_ready().unwrap();
    let ends = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&ranks[1..], |_| recv()));
        std::thread::sleep(Duration::from_millis(50));
        ranks[0].wait_until_ready().unwrap();
        ranks[0].abort();
        waiting.join().unwrap()
    });
    let fault = ends[0].1.clone().unwrap();
    assert_eq!(fault.code, Code::RemoteError);
    assert!(fault.text.contains("rank 0 was lost"), "{fault:?}");
    let ends = run(&ranks[..1], |_| recv());
    assert!(ends[0].1.as_ref().unwrap().text.contains("was aborted"), "{ends:?}");
}

#[test]
fn what_is_asked_to_go_wrong_does() {
    let lossy = group(process(|settings| settings.failures = vec![Failure::Lose(1)]), 1);
    let itself = || vec![call(Move::Send { to: 0 }, 1), call(Move::Recv { from: 0 }, 1)];
    let ends = run(&lossy, |_| itself());
    assert!(ends[0].1.as_ref().unwrap().text.starts_with("deadlock: "), "{ends:?}");
    let late = group(process(|settings| settings.failures = vec![Failure::Async(2)]), 1);
    assert_eq!(run(&late, |_| itself())[0].1, None);
    let ends = run(&late, |_| itself());
    assert!(ends[0].1.as_ref().unwrap().text.contains("group 2"), "{ends:?}");
    let none = group(process(|settings| settings.failures = vec![Failure::Init]), 1);
    assert_eq!(none[0].wait_until_ready().unwrap_err().code, Code::SystemError);
}

#[test]
fn a_rank_without_the_others_says_so() {
    let process = process(|_| {});
    let id = Id::new(process.settings.patience).unwrap();
    let error = Rank::join(process, id, (0, 2)).wait_until_ready().unwrap_err();
    assert!(error.text.starts_with("rank 0 of 2 did not find the others: "), "{error:?}");
}
