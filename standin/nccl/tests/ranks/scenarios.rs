//! What a rank does.
#![expect(unsafe_code, reason = "calls the driver")]

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use cudarc::driver::{result, sys};

use super::nccl::{Comm, IN_PROGRESS, Id, Nccl};

/// Memory of the stand-in's card and a stream, in this thread's context.
struct Card {
    memory: sys::CUdeviceptr,
    stream: sys::CUstream,
}

const BYTES: usize = 4096;

impl Card {
    fn new() -> Self {
        result::init().unwrap();
        let device = result::device::get(0).unwrap();
        // SAFETY: the device is there; the context is given back when the process ends.
        let context = unsafe { result::primary_ctx::retain(device) }.unwrap();
        // SAFETY: the context is live.
        unsafe { result::ctx::set_current(context) }.unwrap();
        // SAFETY: freed in `drop`.
        let memory = unsafe { result::malloc_sync(BYTES) }.unwrap();
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
        Self { memory, stream }
    }

    fn fill(&self, at: usize, bytes: usize, value: u8) {
        // SAFETY: the range is inside.
        unsafe { result::memset_d8_async(self.memory + at as u64, value, bytes, self.stream) }
            .unwrap();
    }

    fn at(&self, at: usize) -> u64 {
        self.memory + at as u64
    }

    /// After all that was queued.
    fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        self.wait();
        let mut got = vec![0; bytes];
        // SAFETY: the range is inside.
        unsafe { result::memcpy_dtoh_sync(&mut got, self.at(at)) }.unwrap();
        got
    }

    fn wait(&self) {
        // SAFETY: the stream is live.
        unsafe { result::stream::synchronize(self.stream) }.unwrap();
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // SAFETY: both are live and used no more.
        unsafe { result::stream::destroy(self.stream) }.unwrap();
        // SAFETY: as above.
        unsafe { result::free_sync(self.memory) }.unwrap();
        let device = result::device::get(0).unwrap();
        // SAFETY: retained once in `new`.
        unsafe { result::primary_ctx::release(device) }.unwrap();
    }
}

/// Rank 0's id, by way of a file.
fn id(nccl: &Nccl, rank: usize, folder: &Path) -> Id {
    let path = folder.join("id");
    if rank == 0 {
        std::fs::write(folder.join("new"), nccl.id().0).unwrap();
        std::fs::rename(folder.join("new"), &path).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(10);
    while !path.exists() {
        assert!(Instant::now() < until, "no id");
        sleep(Duration::from_millis(5));
    }
    Id(std::fs::read(path).unwrap().try_into().unwrap())
}

pub(crate) fn rank(scenario: &str, (rank, size): (usize, usize), folder: &Path) {
    let nccl = Nccl::open();
    assert_eq!(nccl.version(), 22803);
    if scenario == "threads" {
        let id = nccl.id();
        std::thread::scope(|scope| {
            for rank in 0..3 {
                let nccl = &nccl;
                scope.spawn(move || trade(nccl, &Card::new(), (rank, 3), id));
            }
        });
        return;
    }
    let (card, id) = (Card::new(), id(&nccl, rank, folder));
    match scenario {
        "trade" => trade(&nccl, &card, (rank, size), id),
        "hasty" => hasty(&nccl, &card, (rank, size), id),
        "die" | "alone" => waits_in_vain(&nccl, &card, (rank, size), id, scenario == "die"),
        other => panic!("no scenario {other}"),
    }
}

/// Until a call is no longer in progress.
fn settled(nccl: &Nccl, comm: Comm) {
    let until = Instant::now() + Duration::from_secs(10);
    while nccl.state(comm).0 == IN_PROGRESS {
        assert!(Instant::now() < until, "still in progress");
        sleep(Duration::from_millis(2));
    }
    assert_eq!(nccl.state(comm).0, 0, "{}", nccl.last());
}

/// Rank r sends r + 1 bytes of r + 1 to everybody; what is queued before and after is before and after. Then a sum.
fn trade(nccl: &Nccl, card: &Card, (rank, size): (usize, usize), id: Id) {
    let comm = nccl.join((rank, size), id, card.stream as u64, false);
    settled(nccl, comm);
    let mine = rank + 1;
    card.fill(0, BYTES, 0);
    card.fill(0, mine, mine as u8);
    assert_eq!(nccl.group("Start"), 0);
    let mut at = 100;
    for peer in 0..size {
        assert_eq!(nccl.point("Send", card.at(0), mine, peer, comm), 0);
        assert_eq!(nccl.point("Recv", card.at(at), peer + 1, peer, comm), 0);
        at += peer + 1;
    }
    assert_eq!(nccl.group("End"), IN_PROGRESS);
    settled(nccl, comm);
    card.fill(0, mine, 99);
    let want: Vec<u8> = (1..=size).flat_map(|n| vec![n as u8; n]).collect();
    assert_eq!(card.read(100, want.len()), want);
    assert_eq!(card.read(100 + want.len(), 1), [0], "no byte behind");

    // Twice 1.0 in bytes of one kind: 0x3f3f3f3f.
    card.fill(0, 4, 0x3f);
    assert_eq!(nccl.all_reduce(card.at(0), card.at(0), 1, comm), IN_PROGRESS);
    settled(nccl, comm);
    let one = f32::from_bits(0x3f3f_3f3f);
    let sum = (1..size).fold(one, |sum, _| sum + one);
    assert_eq!(card.read(0, 4), sum.to_le_bytes());
    settled(nccl, comm);
    assert_eq!(nccl.comm("Destroy", comm), 0, "{}", nccl.last());
    assert_eq!(nccl.comm("Destroy", comm), 4, "it is none any more");
}

fn hasty(nccl: &Nccl, card: &Card, (rank, size): (usize, usize), id: Id) {
    let comm = nccl.join((rank, size), id, card.stream as u64, false);
    assert_eq!(nccl.all_reduce(card.at(0), card.at(0), 1, comm), 5);
    assert!(nccl.last().contains("ask ncclCommGetAsyncError"), "{}", nccl.last());
    settled(nccl, comm);
    assert_eq!(nccl.point("Send", card.at(0), 1, size, comm), 4, "there is no such rank");
    assert_eq!(nccl.group("End"), 5);
    assert_eq!(nccl.comm("Destroy", comm), 0);
}

/// Rank 0 waits for rank 1, which dies, or does nothing.
fn waits_in_vain(nccl: &Nccl, card: &Card, (rank, size): (usize, usize), id: Id, dies: bool) {
    let comm = nccl.join((rank, size), id, card.stream as u64, true);
    if rank == 1 {
        sleep(Duration::from_millis(300));
        if dies {
            std::process::abort();
        }
        sleep(Duration::from_secs(4));
        assert_eq!(nccl.comm("Destroy", comm), 0);
        return;
    }
    assert_eq!(nccl.point("Recv", card.at(0), 8, 1, comm), 0);
    card.wait();
    let (code, said) = nccl.state(comm);
    assert_eq!(code, if dies { 6 } else { 3 }, "{said}");
    assert!(said.contains("rank 0 of 2 in Recv { from: 1 }"), "{said}");
    assert_eq!(nccl.comm("Abort", comm), 0);
}
