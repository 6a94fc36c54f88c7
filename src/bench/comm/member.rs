//! One process of `shoal bench comm`. The first one starts the others, tells each what all need to know of each
//! other, and decides how many rounds there are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use shoal_plan::grid::CellId;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_worker::Secret;
use shoal_worker::comm::{Comm, Endpoint, Membership, Mesh, Sum, Timeouts, Ways};

use super::plain::{self, Plain};
use crate::clock::Stopwatch;
use crate::terminal::{data, note};

/// Before anything counts: connections open their windows, buffers are made.
const WARM_UP: usize = 3;
const ROUNDS_MIN: usize = 5;
const ROUNDS_MAX: usize = 1000;
/// Messages of 64 bytes there and back.
const WORDS: usize = 1000;
const WORD_BYTES: usize = 64;

/// What all members do.
pub(super) struct Program {
    pub workers: u32,
    pub mib: Vec<u32>,
    /// Of each row.
    pub seconds: f64,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    AllToAll,
    AllReduce,
    ReduceScatter,
    AllGather,
}

impl Kind {
    const ALL: [Self; 4] = [Self::AllToAll, Self::AllReduce, Self::ReduceScatter, Self::AllGather];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AllToAll => "all-to-all",
            Self::AllReduce => "all-reduce",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllGather => "all-gather",
        }
    }

    /// How much of its tensor leaves a member, at least: that of an all-gather is the gathered one.
    pub(super) fn leaves(self, workers: u32) -> f64 {
        let others = f64::from(workers - 1) / f64::from(workers);
        match self {
            Self::AllToAll | Self::ReduceScatter | Self::AllGather => others,
            Self::AllReduce => 2.0 * others,
        }
    }
}

/// One end of the mesh.
pub(super) struct Member {
    mesh: Mesh,
    me: u32,
}

/// Seconds of the median's material: round trips, and each collective at each size.
type Measured = (Vec<f64>, Vec<(Kind, u32, Vec<f64>)>);

impl Member {
    /// Starts the others, which end up in `others`, measures TCP with the second, and opens the mesh.
    pub(super) fn gather(program: &Program, others: &mut Vec<Child>) -> Result<(Self, Plain)> {
        let secret = Secret::random().context("making a secret")?;
        let listener = listen()?;
        let mut ports = vec![port(&listener)?];
        for member in 1..program.workers {
            let mut child = start(member, program)?;
            let said = child.stdout.take().context("a member's output")?;
            others.push(child);
            let mut line = String::new();
            BufReader::new(said).read_line(&mut line).context("reading a member's port")?;
            ports.push(
                line.trim().parse().with_context(|| format!("member {member} said {line:?}"))?,
            );
        }
        let ports: String = ports.iter().fold(String::new(), |mut all, port| {
            let _ = write!(all, " {port}");
            all
        });
        let plain = listen()?;
        for child in others.iter_mut() {
            let mut told = child.stdin.take().context("a member's input")?;
            writeln!(told, "{} {}{ports}", secret.to_hex(), port(&plain)?)?;
        }
        let (stream, _) = plain.accept().context("waiting for the second member")?;
        let tcp = plain::measure(&stream, true).context("measuring plain TCP")?;
        Ok((Self::open(0, *secret.bytes(), &ports, listener)?, tcp))
    }

    fn open(me: u32, secret: [u8; 32], ports: &str, listener: TcpListener) -> Result<Self> {
        let ports = ports.split_whitespace().map(str::parse::<u16>);
        let ports: Vec<u16> = ports.collect::<Result<_, _>>().context("reading ports")?;
        let address = |port: &u16| SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let peers: BTreeMap<_, _> = (0..).map(WorkerId).zip(ports.iter().map(address)).collect();
        let membership = Membership {
            run: RunId("bench".to_owned()),
            secret,
            generation: Generation(1),
            me: WorkerId(me),
            hosts: peers.keys().copied().collect(),
            peers,
            trust: None,
            ways: Ways::default(),
        };
        Ok(Self { mesh: Mesh::open(membership, listener, Timeouts::default())?, me })
    }

    /// Everything, in the same order as every other member.
    pub(super) fn run(self, program: &Program) -> Result<Measured> {
        let mut end = self.mesh.endpoint(CellId(self.me));
        let group: Vec<CellId> = (0..program.workers).map(CellId).collect();
        let words = round_trips(&mut end)?;
        let mut rows = Vec::new();
        for mib in &program.mib {
            for kind in Kind::ALL {
                let rounds = rounds(&mut end, &group, (kind, *mib), program.seconds)?;
                if self.me == 0 {
                    note(&format!("{} of {mib} MiB: {} rounds", kind.name(), rounds.len()));
                }
                rows.push((kind, *mib, rounds));
            }
        }
        Ok((words, rows))
    }
}

/// What another member is: it says where it listens, is told of the others, and does as the first does.
pub(super) fn serve(me: u32, program: &Program) -> Result<()> {
    let listener = listen()?;
    data(&port(&listener)?.to_string());
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("reading what the first member says")?;
    let (secret, rest) = line.trim().split_once(' ').context("no word of the first member")?;
    let (plain, ports) = rest.split_once(' ').context("no port of the first member")?;
    if me == 1 {
        let port: u16 = plain.parse().context("reading the first member's port")?;
        let stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("dialing the first member")?;
        plain::measure(&stream, false).context("measuring plain TCP")?;
    }
    let secret = Secret::from_hex(secret)?;
    Member::open(me, *secret.bytes(), ports, listener)?.run(program)?;
    Ok(())
}

fn start(member: u32, program: &Program) -> Result<Child> {
    let mib: Vec<String> = program.mib.iter().map(u32::to_string).collect();
    let shoal = std::env::current_exe().context("the path of shoal")?;
    Command::new(shoal)
        .args(["bench", "comm", "--workers", &program.workers.to_string(), "--mib", &mib.join(",")])
        .args(["--seconds", &program.seconds.to_string(), "--member", &member.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting member {member}"))
}

fn listen() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on loopback")
}

fn port(listener: &TcpListener) -> Result<u16> {
    Ok(listener.local_addr().context("the address of a listener")?.port())
}

/// Between the first two members.
fn round_trips(end: &mut Endpoint) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    let other = match end.cell() {
        CellId(0) => CellId(1),
        CellId(1) => CellId(0),
        CellId(_) => return Ok(all),
    };
    for _ in 0..WORDS {
        let watch = Stopwatch::start();
        if other == CellId(1) {
            end.send(other, vec![7; WORD_BYTES])?;
            end.recv(other)?;
        } else {
            let word = end.recv(other)?;
            end.send(other, word)?;
        }
        all.push(watch.seconds());
    }
    Ok(all)
}

/// Seconds of every round after the warm-up. The first member's clock decides how many there are.
fn rounds(
    end: &mut Endpoint,
    group: &[CellId],
    (kind, mib): (Kind, u32),
    seconds: f64,
) -> Result<Vec<f64>> {
    let bytes = (mib as usize) << 20;
    let mut tensor = vec![1.0_f32; bytes / size_of::<f32>()];
    let mut parts = vec![vec![7; bytes / group.len()]; group.len()];
    let mut once = |end: &mut Endpoint| -> Result<f64> {
        // Sums that are known, and a common start; outside of what is measured.
        tensor.fill(1.0);
        end.all_gather(group, Vec::new())?;
        let watch = Stopwatch::start();
        match kind {
            // What came in goes out again, as between layers.
            Kind::AllToAll => parts = end.all_to_all(group, std::mem::take(&mut parts))?,
            Kind::AllReduce => end.all_reduce(group, Sum::F32(&mut tensor))?,
            Kind::ReduceScatter => {
                end.reduce_scatter(group, Sum::F32(&mut tensor))?;
            }
            Kind::AllGather => {
                let place = end.cell().0 as usize;
                let all = end.all_gather(group, std::mem::take(&mut parts[place]))?;
                parts = all;
            }
        }
        let taken = watch.seconds();
        if matches!(kind, Kind::AllReduce) {
            let want = group.len() as f32;
            ensure!(
                tensor.iter().all(|sum| sum.to_bits() == want.to_bits()),
                "a sum is not {want}"
            );
        }
        Ok(taken)
    };
    let mut warm = f64::INFINITY;
    for _ in 0..WARM_UP {
        warm = warm.min(once(end)?);
    }
    let count = ((seconds / warm) as usize).clamp(ROUNDS_MIN, ROUNDS_MAX);
    let count = end.broadcast(group, group[0], count.to_le_bytes().to_vec())?;
    let count = usize::from_le_bytes(count[..].try_into().context("a number of rounds")?);
    (0..count).map(|_| once(end)).collect()
}
