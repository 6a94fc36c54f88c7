//! The verb `worker`: this machine as a rig of a cluster. It attends the coordinator, fetches the text of runs,
//! and keeps a process for the run it has a seat in. What it decides is only how to stay in touch.

pub(crate) mod facts;
mod posts;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use shoal_cluster::probing::neighbour;
use shoal_cluster::probing::words::Neighbour;
use shoal_cluster::relaying::Relay;
use shoal_cluster::words::{Facts, FromRig, ToRig, VERSION};
use shoal_cluster::{Attending, Client, ClientError};
use shoal_plan::device::DeviceChoice;
use shoal_trust::{Credentials, Name};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::clock::{Stopwatch, calendar, unix_time};
use crate::exit::Stopped;
use crate::notify::{self, Watchdog};
use crate::people::read_token;
use crate::signals::Signals;
use crate::terminal::note;
use crate::{cli, harbour, launch, logging, run_dir, settings};
use posts::{Posts, Told};

/// In the rig's state directory.
pub(crate) const CERTIFICATE: &str = "certificate";
const REMEMBERED: &str = "rig.json";

const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often processes are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Between two attempts to reach the coordinator: longer each time.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// How often it is looked whether another coordinator is the active one, where there are several.
const ELSEWHERE: Duration = Duration::from_secs(4);

/// How often it is looked whether the certificate is to be renewed.
const RENEW_LOOK: Duration = Duration::from_secs(2);

/// Processes that were asked to hand over get so long.
const HAND_OVER_SECONDS: f64 = 60.0;

/// What need not be said again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remembered {
    /// Of each coordinator, with commas between them.
    pub(crate) address: String,
    /// The highest that was seen: nobody of a lower one is believed, not after a restart either.
    #[serde(default)]
    pub(crate) term: u64,
}

/// One rig.
pub(crate) struct Rig {
    pub(crate) address: String,
    pub(crate) name: Name,
    pub(crate) directory: PathBuf,
    pub(crate) certificate: PathBuf,
    advertise: Option<IpAddr>,
    pub(crate) first_port: u16,
    pub(crate) threads: u32,
    pub(crate) devices: DeviceChoice,
    pub(crate) yield_to: Vec<String>,
    relay: Relay,
    relay_only: bool,
    pub(crate) log_format: cli::LogFormat,
}

/// Why a rig stops to attend.
enum Ended {
    /// Somebody wants the machine back.
    Asked,
    Broken(ClientError),
}

pub(crate) fn work(args: &cli::Join) -> Result<(), Stopped> {
    let directory = settings::state(args.state.as_deref(), "rig")?;
    let directory = std::path::absolute(&directory).context("finding the state directory")?;
    harbour::private(&directory)?;
    let _lock = harbour::lock(&directory)?;
    logging::to_standard_error(args.log_format, (&directory, None), || (0, 0));
    let runtime = launch::event_loop()?;
    let rig = runtime.block_on(joined(args, directory))?;
    note(&format!("rig {} of the cluster at {}", rig.name, rig.address));
    runtime.block_on(rig.attend())
}

/// Joins, unless that was done before.
async fn joined(args: &cli::Join, directory: PathBuf) -> Result<Rig, Stopped> {
    let certificate = directory.join(CERTIFICATE);
    let remembered = remembered(&directory)?;
    let term = remembered.as_ref().map_or(0, |known| known.term);
    let address = args.coordinator.clone().or(remembered.map(|known| known.address));
    let address = address.ok_or_else(|| {
        Stopped::Input(
            "this machine has joined no cluster yet: --join HOST:PORT and --token-file FILE".into(),
        )
    })?;
    let credentials = if certificate.join("key.pem").exists() {
        Credentials::open(&certificate).map_err(ClientError::from)?
    } else {
        let token = read_token(args.token_file.as_deref())?;
        let wanted = args.name.clone().unwrap_or_else(facts::host);
        let name = wanted.parse().map_err(ClientError::from)?;
        shoal_cluster::join(&address, &token, &name, &certificate).await?
    };
    let name = credentials.identity().name.clone();
    if let Some(wanted) = args.name.as_ref().filter(|wanted| **wanted != name.to_string()) {
        return Err(Stopped::Input(format!(
            "this rig is called {name} in its certificate, and --name says {wanted}: to join anew under another name, \
             remove {}",
            certificate.display()
        )));
    }
    remember(&directory, &Remembered { address: address.clone(), term })?;
    Ok(Rig {
        address,
        name,
        directory,
        certificate,
        advertise: args.advertise,
        first_port: args.first_port,
        threads: args.threads,
        devices: args.devices.clone(),
        yield_to: args.yield_to.clone(),
        relay: Relay::default(),
        relay_only: args.relay_only,
        log_format: args.log_format,
    })
}

fn remember(directory: &Path, what: &Remembered) -> anyhow::Result<()> {
    let text = serde_json::to_string(what).context("writing what is to be remembered")?;
    run_dir::write_atomically(&directory.join(REMEMBERED), text.as_bytes())
}

pub(crate) fn remembered(directory: &Path) -> Result<Option<Remembered>, Stopped> {
    let path = directory.join(REMEMBERED);
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| {
            Stopped::Input(format!(
                "{} is damaged ({error}): remove it and say --join",
                path.display()
            ))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Stopped::Input(format!("{}: {error}", path.display()))),
    }
}

fn program() -> Result<PathBuf, Stopped> {
    Ok(std::env::current_exe().context("finding this program's own file")?)
}

/// Whether another coordinator is the active one, once somebody who looks knows.
async fn found(looking: &mut Option<JoinHandle<bool>>) -> bool {
    let Some(looks) = looking else { return std::future::pending().await };
    let found = looks.await.unwrap_or(false);
    *looking = None;
    found
}

impl Rig {
    /// Until somebody wants the machine back. A coordinator that is away is waited for: what runs here goes on.
    async fn attend(&self) -> Result<(), Stopped> {
        let mut signals = Signals::listen()?;
        let (mut posts, mut told) = Posts::new(program()?);
        let mut watchdog = Watchdog::new(&self.directory);
        notify::ready(&format!("looking for {}", self.address));
        let mut pause = RETRY;
        let probes = self.probes();
        let port = probes.as_ref().map(|probes| probes.port);
        let mut leaving = None;
        loop {
            watchdog.feed();
            let ended = match self.session(&mut posts, port).await {
                Ok((client, attending)) => {
                    pause = RETRY;
                    note(&format!("attending {}", self.address));
                    notify::status(&format!("attending {}", self.address));
                    let here = (&mut posts, &mut told, &mut watchdog);
                    self.serve(client, attending, here, (&mut signals, &mut leaving)).await
                }
                Err(error) => Ended::Broken(error),
            };
            match ended {
                Ended::Asked => return Ok(()),
                Ended::Broken(error @ ClientError::Refused { .. }) => {
                    posts.kill_all();
                    return Err(error.into());
                }
                Ended::Broken(error) if leaving.is_some() => {
                    note(&format!("{error}: nothing is handed over any more"));
                    posts.kill_all();
                    return Ok(());
                }
                Ended::Broken(error) => {
                    note(&format!("{error}; trying again"));
                    notify::status(&format!("{error}; trying again"));
                }
            }
            let watch = Stopwatch::start();
            while watch.seconds() < pause.as_secs_f64() {
                tokio::select! {
                    () = sleep(LOOK) => {}
                    signal = signals.next() => {
                        note(&format!("{signal}: the coordinator is away, so nothing is handed over"));
                        return Ok(());
                    }
                }
                posts.look();
                watchdog.feed();
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Where other rigs may measure the way to this one. Without it, it trains all the same.
    fn probes(&self) -> Option<neighbour::Listening> {
        let port = if self.first_port == 0 { 0 } else { self.first_port.saturating_add(2) };
        let opened =
            neighbour::listen(self.reached_at(), port, &self.certificate, self.relay.clone());
        opened.inspect_err(|error| tracing::warn!(%error, "no port can be opened for probes")).ok()
    }

    async fn session(
        &self,
        posts: &mut Posts,
        probe_port: Option<u16>,
    ) -> Result<(Client, Attending), ClientError> {
        let credentials = Credentials::open(&self.certificate)?;
        let known = remembered(&self.directory).ok().flatten();
        let (addresses, seen) = known.map_or((self.address.clone(), 0), |k| (k.address, k.term));
        let client = Client::connect_after(&addresses, &credentials, seen).await?;
        self.learn(client.coordinators(), client.term());
        let hello = FromRig::Hello {
            version: VERSION,
            facts: Facts {
                probe_port,
                relay_only: self.relay_only,
                ..facts::here((&self.directory, &self.devices), Some(self.reached_at()))
            },
            running: posts.running(),
            unix_ms: Some((unix_time() * 1e3) as u64),
        };
        let attending = client.attend(hello).await?;
        Ok((client, attending))
    }

    /// Where other rigs reach this one: as the person says, else from where packets to the coordinator leave.
    pub(crate) fn reached_at(&self) -> IpAddr {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        if let Some(advertise) = self.advertise {
            return advertise;
        }
        let route = || -> std::io::Result<IpAddr> {
            let first = self.address.split(',').next().unwrap_or_default();
            let mut found = first.to_socket_addrs()?;
            let to = found.next().ok_or(std::io::ErrorKind::NotFound)?;
            let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
            // No packet is sent: the system only says which address it would use.
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(to)?;
            Ok(socket.local_addr()?.ip())
        };
        route().unwrap_or(loopback)
    }

    async fn serve(
        &self,
        client: Client,
        mut attending: Attending,
        (posts, told, watchdog): (&mut Posts, &mut Receiver<Told>, &mut Watchdog),
        (signals, leaving): (&mut Signals, &mut Option<Stopwatch>),
    ) -> Ended {
        let mut heartbeat = interval(HEARTBEAT);
        let mut look = interval(LOOK);
        let mut renew = interval(RENEW_LOOK);
        let mut elsewhere = interval(ELSEWHERE);
        let mut looking: Option<JoinHandle<bool>> = None;
        for ticks in [&mut heartbeat, &mut look, &mut renew, &mut elsewhere] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        let mut renewing = None;
        loop {
            let word = tokio::select! {
                next = attending.next() => match next {
                    Ok(word) => {
                        self.hear(word, posts, &client);
                        continue;
                    }
                    Err(error) => return Ended::Broken(error),
                },
                Some(told) = told.recv() => posts.told(told),
                _at = look.tick() => {
                    if let Some(since) = *leaving
                        && (posts.is_empty() || since.seconds() > HAND_OVER_SECONDS)
                    {
                        posts.kill_all();
                        return Ended::Asked;
                    }
                    posts.look();
                    watchdog.feed();
                    continue;
                }
                _at = heartbeat.tick() => {
                    Some(FromRig::Heartbeat { disk_free_mb: facts::disk_free_mb(&self.directory) })
                }
                // Beside everything else: heartbeats wait for nothing.
                _at = renew.tick(), if renewing.as_ref().is_none_or(JoinHandle::is_finished) => {
                    renewing = self.renew(&client);
                    continue;
                }
                _at = elsewhere.tick(), if looking.is_none() => {
                    looking = self.look_elsewhere(client.term());
                    continue;
                }
                found = found(&mut looking) => {
                    if !found {
                        continue;
                    }
                    let (address, why) = (self.address.clone(), "another one is active".to_owned());
                    return Ended::Broken(ClientError::Unreachable { address, why });
                }
                signal = signals.next() => {
                    if leaving.replace(Stopwatch::start()).is_some() {
                        posts.kill_all();
                        return Ended::Asked;
                    }
                    note(&format!("{signal}: handing over; once more ends at once"));
                    notify::stopping("handing over");
                    Some(FromRig::Leaving { reason: signal.to_string() })
                }
            };
            if let Some(word) = word
                && attending.outbox.send(word).await.is_err()
            {
                let (address, why) = (self.address.clone(), "the stream has ended".to_owned());
                return Ended::Broken(ClientError::Unreachable { address, why });
            }
        }
    }

    /// Where coordinators are, as far as is known by now, with commas between.
    pub(crate) fn addresses(&self) -> String {
        let known = remembered(&self.directory).ok().flatten();
        known.map_or_else(|| self.address.clone(), |known| known.address)
    }

    /// Keeps where coordinators are, and the highest term that was seen.
    fn learn(&self, coordinators: &[String], term: u64) {
        let Ok(Some(known)) = remembered(&self.directory) else { return };
        let mut addresses: Vec<&str> = known.address.split(',').collect();
        let new = coordinators.iter().map(String::as_str);
        addresses.extend(new.filter(|new| !known.address.split(',').any(|old| old == *new)));
        let now = Remembered { address: addresses.join(","), term: known.term.max(term) };
        if (&now.address, now.term) != (&known.address, known.term)
            && let Err(error) = remember(&self.directory, &now)
        {
            tracing::warn!(%error, "where coordinators are cannot be remembered");
        }
    }

    /// Looks whether another coordinator has become the active one, while this one does not know of it.
    fn look_elsewhere(&self, term: u64) -> Option<JoinHandle<bool>> {
        // Where there is only one coordinator there are no terms.
        let known = (term > 0).then(|| remembered(&self.directory).ok().flatten())??;
        if !known.address.contains(',') {
            return None;
        }
        let credentials = Credentials::open(&self.certificate).ok()?;
        Some(tokio::spawn(async move {
            let found = Client::connect_after(&known.address, &credentials, term + 1).await;
            found.is_ok_and(|client| client.term() > term)
        }))
    }

    fn hear(&self, word: ToRig, posts: &mut Posts, client: &Client) {
        match word {
            ToRig::Coordinators(coordinators) => self.learn(&coordinators, client.term()),
            ToRig::Start(order) => posts.start(self, *order, client),
            ToRig::Leave { post } => posts.ask_to_leave(&post),
            ToRig::Kill { post } => posts.kill(&post),
            ToRig::Over { run } => posts.over(&run),
            ToRig::Metrics { ask } => posts.tell_metrics(ask),
            ToRig::Try { neighbours } => self.try_all(neighbours, posts),
            ToRig::Relay { served } => {
                let pairs: usize = served.values().map(BTreeSet::len).sum();
                if pairs > 0 {
                    note(&format!("relaying between {pairs} pairs of rigs"));
                }
                self.relay.serve(served);
            }
        }
    }

    /// Beside everything else; what comes of it is told.
    fn try_all(&self, neighbours: Vec<Neighbour>, posts: &Posts) {
        let (certificate, tell) = (self.certificate.clone(), posts.teller());
        tokio::spawn(async move {
            let trials = neighbour::try_all(neighbours, &certificate).await;
            // Fails when this rig ends.
            let _ = tell.send(Told::Word(FromRig::Tried { trials })).await;
        });
    }

    /// Gets a new certificate, if it is time.
    fn renew(&self, client: &Client) -> Option<JoinHandle<()>> {
        let known = Credentials::open(&self.certificate).ok()?;
        if !known.is_due(calendar()) {
            return None;
        }
        let (client, name, place) = (client.clone(), self.name.clone(), self.certificate.clone());
        Some(tokio::spawn(async move {
            match client.renew(&name, &place).await {
                Ok(_) => tracing::info!("the certificate was renewed"),
                Err(error) => tracing::warn!(%error, "the certificate cannot be renewed yet"),
            }
        }))
    }
}
