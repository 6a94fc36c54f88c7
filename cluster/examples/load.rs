//! How many rigs one coordinator can bear: real streams over mutual TLS, each with a heartbeat a second, from a
//! process of their own. Says what the coordinator's process takes, and how long a small call of one rig waits
//! while all others are there.
//!
//! `cargo run --release -p shoal-cluster --example load -- 2000 60`: so many rigs, for so many seconds.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]
#![expect(clippy::disallowed_methods, reason = "time is what it measures")]

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use shoal_cluster::probing::words::Look;
use shoal_cluster::store::Embedded;
use shoal_cluster::words::{Answer, Ask, Facts, FromRig, RigIs, VERSION};
use shoal_cluster::{Attending, Client, Ended, Launch, Launchers, Limits, STORE, Settings, serve};
use shoal_trust::{Authority, Credentials, Identity, Name, Request, Role};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Rigs that connect at a time.
const TOGETHER: usize = 32;

/// Of one clock tick of the system, as `/proc` counts.
const TICKS_A_SECOND: f64 = 100.0;

struct Nobody;

impl Launchers for Nobody {
    fn launch(&mut self, _: Launch) -> Result<Ended, String> {
        Err("no job is applied here".to_owned())
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, usual: u64| words.get(at).map_or(Ok(usual), |word| word.parse());
    if words.first().is_some_and(|word| word == "rigs") {
        return rigs(number(1, 1)?, number(2, 1)?, &words[3], Path::new(&words[4])).await;
    }
    let (rigs, seconds) = (number(0, 2_000)?, number(1, 60)?);
    let scratch = tempfile::tempdir()?;
    let authority = Authority::create(&"load".parse()?, SystemTime::now())?;
    authority.save(&scratch.path().join("authority"))?;
    let settings = Settings {
        cluster: "load".parse()?,
        authority,
        directory: scratch.path().to_path_buf(),
        life: Duration::from_hours(24),
        limits: Limits::USUAL,
        standing: None,
        home: String::new(),
    };
    let store = Box::new(Embedded::open(&scratch.path().join(STORE))?);
    let port = TcpListener::bind("127.0.0.1:0")?;
    let running = serve(settings, port, store, Box::new(Nobody))?;
    let before = memory_bytes()?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["rigs", &rigs.to_string(), &seconds.to_string(), &running.address.to_string()])
        .arg(scratch.path())
        .stdout(Stdio::inherit())
        .spawn()?;
    // They say on standard output when all are there; this looks at the load in the second half.
    sleep(Duration::from_secs(seconds / 2)).await;
    while std::fs::metadata(scratch.path().join("all-here")).is_err() && child.try_wait()?.is_none()
    {
        sleep(Duration::from_millis(100)).await;
    }
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    sleep(Duration::from_secs(seconds / 2)).await;
    let cpu = (cpu_seconds()? - cpu) / start.elapsed().as_secs_f64();
    let memory = memory_bytes()? - before;
    println!(
        "coordinator: {:.1} % of a core, {:.1} MB for {rigs} rigs, {:.1} kB each",
        100.0 * cpu,
        memory as f64 / 1e6,
        memory as f64 / 1e3 / rigs as f64
    );
    let asks = member(&Authority::open(&scratch.path().join("authority"))?, "asks", Role::Admin)?;
    let client = Client::connect(&running.address.to_string(), &asks).await?;
    let Answer::Overview(overview) = client.ask(&Ask::Overview).await? else {
        return Err("an answer to another question".into());
    };
    let here = overview.rigs.iter().filter(|rig| rig.is != RigIs::Away).count();
    let heard = overview.rigs.iter().filter_map(|rig| rig.heard_seconds_ago);
    let fresh = heard.filter(|seconds| *seconds < 2.0).count();
    println!("{here} rigs are there, {fresh} were heard within the last 2 s");
    let ended = child.wait()?;
    if ended.success() { Ok(()) } else { Err(format!("the rigs ended with {ended}").into()) }
}

/// The other process: all rigs, and one that asks.
async fn rigs(count: u64, seconds: u64, address: &str, scratch: &Path) -> Outcome<()> {
    let authority = Authority::open(&scratch.join("authority"))?;
    let start = Instant::now();
    for first in (0..count).step_by(TOGETHER) {
        let mut coming = JoinSet::new();
        for rig in first..(first + TOGETHER as u64).min(count) {
            let credentials = certificate(&authority, &format!("rig-{rig}"))?;
            let address = address.to_owned();
            coming.spawn(async move { attend(&address, &credentials).await });
        }
        while let Some(came) = coming.join_next().await {
            let (client, attending) = came??;
            tokio::spawn(live(client, attending));
        }
    }
    println!("{count} rigs came in {:.1} s", start.elapsed().as_secs_f64());
    std::fs::write(scratch.join("all-here"), "")?;
    let client = Client::connect(address, &certificate(&authority, "asks")?).await?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let unix_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis() as u64;
    let look = Look { words: VERSION, version, unix_ms };
    let mut waits = Vec::new();
    let mut beat = interval(Duration::from_millis(50));
    while start.elapsed() < Duration::from_secs(2 * seconds) {
        beat.tick().await;
        let asked = Instant::now();
        client.look(&look).await?;
        waits.push(asked.elapsed().as_secs_f64());
    }
    waits.sort_by(f64::total_cmp);
    let at = |share: f64| 1e3 * waits[((waits.len() - 1) as f64 * share) as usize];
    println!(
        "a call of one more rig, {} times: {:.1} ms in the median, {:.1} ms at the 99th percentile, {:.1} ms at most",
        waits.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}

/// A heartbeat a second, until the coordinator wants no more.
async fn live(_client: Client, mut attending: Attending) {
    let mut beat = interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _at = beat.tick() => {
                let heartbeat = FromRig::Heartbeat { disk_free_mb: 1 };
                if attending.outbox.send(heartbeat).await.is_err() {
                    return;
                }
            }
            word = attending.next() => if word.is_err() { return },
        }
    }
}

async fn attend(address: &str, credentials: &Credentials) -> Outcome<(Client, Attending)> {
    let client = Client::connect(address, credentials).await?;
    let facts = Facts { cores: 8, memory_mb: 32_000, ..Facts::default() };
    let hello = FromRig::Hello { version: VERSION, facts, running: Vec::new(), unix_ms: None };
    let attending = client.attend(hello).await?;
    Ok((client, attending))
}

fn certificate(authority: &Authority, name: &str) -> Outcome<Credentials> {
    member(authority, name, Role::Worker)
}

fn member(authority: &Authority, name: &str, role: Role) -> Outcome<Credentials> {
    let name: Name = name.parse()?;
    let request = Request::new(&name)?;
    let identity = Identity { name, role };
    let life = Duration::from_hours(24);
    let signed = authority.sign(request.pem(), &identity, life, SystemTime::now())?;
    Ok(Credentials::new(authority.certificate_pem(), &signed.certificate_pem, request)?)
}

/// Of this process, as it is resident.
fn memory_bytes() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next());
    Ok(kilobytes.ok_or("no VmRSS in /proc/self/status")?.parse::<u64>()? * 1024)
}

/// Of this process, its threads together.
fn cpu_seconds() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(") ").next().ok_or("no fields in /proc/self/stat")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / TICKS_A_SECOND)
}
