//! The verb `coordinator`: a cluster's, with its authority, its store, its queue, and a launcher for each run.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use shoal_cluster::store::remote::{Candidate, Remote, Standing};
use shoal_cluster::store::{Embedded, Store};
use shoal_cluster::{
    ClientError, Ended, JOBS, Launch, Launchers, Limits, Pulse, ReadConfig, Running, SOCKET, STORE,
    Settings,
};
use shoal_trust::{Authority, Credentials, Identity, Name, Request, Role};
use tokio::process::Command;
use tokio::sync::watch;

use crate::clock::calendar;
use crate::exit::Stopped;
use crate::notify::{self, Watchdog};
use crate::people;
use crate::signals::Signals;
use crate::terminal::note;
use crate::{cli, launch, logging, manifest, run_dir, scrape, settings};

mod standing;

/// In the state directory: the authority, and what it is called.
const AUTHORITY: &str = "authority";
const NAME: &str = "name";

/// There, too: by what launchers are known to the coordinators of a cluster that has several.
const LAUNCHERS: &str = "launchers";

/// The certificate of whoever made the cluster.
const ADMIN_LIFE: Duration = Duration::from_hours(365 * 24);

/// A socket's path may have this many bytes.
const SOCKET_PATH_MAX: usize = 100;

/// Runs that do not end within this, when the coordinator is asked to go, are left to the next one.
const REST: Duration = Duration::from_mins(2);

pub(crate) fn stand(args: &cli::Stand) -> Result<(), Stopped> {
    let directory = settings::state(args.state.as_deref(), "cluster")?;
    let directory = std::path::absolute(&directory).context("finding the state directory")?;
    private(&directory)?;
    let _lock = lock(&directory)?;
    logging::to_standard_error(args.log_format, (&directory, None), || (0, 0));
    let remote = standing::remote(&args.store)?;
    let (cluster, authority, is_new) = authority(&directory, &args.name)?;
    let port = TcpListener::bind(args.listen).map_err(|error| {
        Stopped::Input(format!("cannot listen on {}: {error}; --listen names another", args.listen))
    })?;
    let address = port.local_addr().context("asking for the port")?;
    fs::create_dir_all(directory.join(JOBS)).context("making the directory of jobs")?;
    let runtime = launch::event_loop()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut standing = None;
        let own = args.advertise.clone().unwrap_or_else(|| reached(address).to_string());
        let store: Box<dyn Store> = match &remote {
            None => Box::new(in_file(&directory.join(STORE))?),
            Some(remote) => {
                let candidate = Candidate {
                    address: own.clone(),
                    cluster: (cluster.to_string(), authority.pin().to_string()),
                    directory: directory.clone(),
                };
                let candidacy = standing::candidacy(remote, &candidate, &mut signals).await?;
                standing = Some(candidacy.standing);
                candidacy.store
            }
        };
        if is_new {
            keep(&directory, &cluster, &authority)?;
        }
        let home = standing.as_ref().map(|_| own.clone()).unwrap_or_default();
        let known =
            standing.as_ref().map(|_| launchers_papers(&directory, &authority)).transpose()?;
        let admin = known_as_admin(args, &authority, address)?;
        note(&told(&cluster, address, (&directory, remote.as_ref()), admin.as_deref()));
        notify::ready(&format!("cluster {cluster} at {address}"));
        let program = std::env::current_exe().context("finding this program's own file")?;
        let launchers = Launching {
            program,
            directory: directory.clone(),
            log_format: args.log_format,
            shared: known.zip(standing.clone()),
        };
        let settings = Settings {
            cluster: cluster.clone(),
            authority,
            directory: directory.clone(),
            life: args.certificate_life,
            limits: Limits::USUAL,
            standing: standing.clone(),
            home,
        };
        if let Some(standing) = &mut standing {
            stand_by(standing, &settings, &port, &mut signals).await?;
        }
        let running = shoal_cluster::serve(settings, port, store, Box::new(launchers));
        let running = running.context("starting the cluster's coordinator")?;
        if let Some(port) = args.metrics_port {
            watched(port, cluster.to_string(), &running, &directory).await?;
        }
        work(running, standing, (&directory, args.stop_runs), &mut signals).await
    })
}

/// Answers at the door who is active, until that is this coordinator.
async fn stand_by(
    standing: &mut watch::Receiver<Standing>,
    settings: &Settings,
    port: &TcpListener,
    signals: &mut Signals,
) -> Result<(), Stopped> {
    let mut watchdog = Watchdog::new(&settings.directory);
    let door = port.try_clone().context("sharing the port")?;
    let door = shoal_cluster::stand_by(settings, door).context("standing by")?;
    let term = standing::elected(standing, &mut watchdog, signals).await?;
    drop(door);
    note(&format!("active, in term {term}"));
    let address = port.local_addr().context("asking for the port")?;
    notify::status(&format!("active at {address}, in term {term}"));
    Ok(())
}

/// Until somebody wants it to go, or another coordinator is active.
async fn work(
    mut running: Running,
    mut standing: Option<watch::Receiver<Standing>>,
    (directory, stop_runs): (&Path, bool),
    signals: &mut Signals,
) -> Result<(), Stopped> {
    let pulse = running.pulse();
    let others = standing.clone().filter(|_| !stop_runs);
    tokio::select! {
        _ = &mut running.ended => {
            Err(anyhow::anyhow!("the coordinator has ended by itself: its log says why").into())
        }
        () = fed(&pulse, directory) => Ok(()),
        why = standing::deposed(standing.as_mut()) => Err(standing::begin_anew(&why)),
        signal = signals.next() => {
            if others.as_ref().is_some_and(|others| others.borrow().coordinators.len() > 1) {
                note(&format!("{signal}: runs go on, and another coordinator takes over"));
                notify::stopping("another coordinator takes over");
                return Ok(());
            }
            note(&format!("{signal}: runs write a checkpoint and end; once more ends at once"));
            notify::stopping("runs write checkpoints");
            tokio::select! {
                () = fed(&pulse, directory) => {}
                () = running.rest() => note("all runs have stopped: they go on with the next coordinator"),
                () = tokio::time::sleep(REST) => note("some run goes on by itself: the next coordinator finds it"),
                again = signals.next() => note(&format!("{again}: runs go on by themselves for a while")),
            }
            Ok(())
        }
    }
}

fn in_file(path: &Path) -> Result<Embedded, Stopped> {
    Embedded::open(path).map_err(|error| Stopped::Input(error.to_string()))
}

/// Serves the metrics of the cluster and of all that is in it.
async fn watched(
    port: u16,
    name: String,
    running: &Running,
    directory: &Path,
) -> Result<(), Stopped> {
    let directory = directory.to_path_buf();
    let served = scrape::cluster::Cluster { name, watch: running.watch(), directory };
    let address = scrape::cluster::serve(port, served).await?;
    note(&format!("  metrics: http://{address}/metrics; all that there are: http://{address}/sd"));
    Ok(())
}

/// Feeds the service manager's watchdog by turns of the cluster's loop, and does not end.
async fn fed(pulse: &Pulse, directory: &Path) {
    let mut watchdog = Watchdog::new(directory);
    loop {
        pulse.beat().await;
        watchdog.feed();
        tokio::time::sleep(watchdog.every()).await;
    }
}

fn told(
    cluster: &Name,
    address: SocketAddr,
    (directory, remote): (&Path, Option<&Remote>),
    admin: Option<&Path>,
) -> String {
    let mut lines = vec![format!("cluster {cluster}: rigs and people reach it at {address}")];
    if address.ip().is_loopback() {
        lines.push("  only from this machine: --listen ADDRESS:PORT lets others in".to_owned());
    }
    lines.push(format!("  state: {}", directory.display()));
    lines.extend(remote.map(|remote| format!("  store: {remote}")));
    lines.extend(admin.map(|admin| format!("  you are its admin: {}", admin.display())));
    let how = "shoal token create; shoal worker --join HOST:PORT --token-file FILE";
    lines.push(format!("  a rig joins with: {how}"));
    lines.join("\n")
}

/// Makes a directory for this user alone, or makes sure that it is one.
pub(crate) fn private(directory: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("making {}", directory.display()))?;
    let mode =
        fs::metadata(directory).with_context(|| format!("looking at {}", directory.display()))?;
    let mode = mode.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        anyhow::bail!(
            "{} may be written to by others (mode {mode:03o}): chmod 700 {}",
            directory.display(),
            directory.display()
        );
    }
    Ok(())
}

pub(crate) fn lock(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "{} is in use by another process of shoal: stop it, or choose another --state",
            directory.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("locking {}", path.display()))
        }
    }
}

/// The cluster's authority; whether it was made just now, and is not on the disk yet.
fn authority(directory: &Path, wanted: &str) -> Result<(Name, Authority, bool), Stopped> {
    let wrong = |error: shoal_trust::TrustError| Stopped::Input(error.to_string());
    let socket = directory.join(SOCKET);
    if socket.as_os_str().len() > SOCKET_PATH_MAX {
        return Err(Stopped::Input(format!(
            "{} is too long for the path of a socket (at most {SOCKET_PATH_MAX} bytes): choose a shorter --state",
            socket.display()
        )));
    }
    let (place, name) = (directory.join(AUTHORITY), directory.join(NAME));
    if place.exists() {
        let known =
            fs::read_to_string(&name).with_context(|| format!("reading {}", name.display()))?;
        let cluster: Name = known.trim().parse().map_err(wrong)?;
        return Ok((cluster, Authority::open(&place).map_err(wrong)?, false));
    }
    let cluster: Name = wanted.parse().map_err(wrong)?;
    let made = Authority::create(&cluster, calendar()).map_err(wrong)?;
    Ok((cluster, made, true))
}

/// The first start makes it.
fn keep(directory: &Path, cluster: &Name, made: &Authority) -> Result<(), Stopped> {
    let name = directory.join(NAME);
    run_dir::write_atomically(&name, format!("{cluster}\n").as_bytes())?;
    made.save(&directory.join(AUTHORITY)).map_err(|error| Stopped::Input(error.to_string()))
}

/// From this machine.
fn reached(address: SocketAddr) -> SocketAddr {
    let (here, port) = ([127, 0, 0, 1], address.port());
    if address.ip().is_unspecified() { SocketAddr::from((here, port)) } else { address }
}

/// Whoever has the authority's key may be anybody: the user of this process is made known as admin, unless that
/// was done before.
fn known_as_admin(
    args: &cli::Stand,
    authority: &Authority,
    address: SocketAddr,
) -> Result<Option<PathBuf>, Stopped> {
    let directory = people::directory(&args.home)?;
    let is_ours = |known: &Credentials| known.pin() == authority.pin() && !known.is_due(calendar());
    let there = directory.join("key.pem").exists();
    if there {
        match Credentials::open(&directory) {
            Ok(known) if is_ours(&known) => {}
            Ok(known) if known.pin() != authority.pin() => {
                note(&format!(
                    "{} is of another cluster and stays: --cluster names another place for this one",
                    directory.display()
                ));
                return Ok(None);
            }
            Ok(_) | Err(_) => sign_in(&directory, authority)?,
        }
    } else {
        sign_in(&directory, authority)?;
    }
    people::remember(&directory, &reached(address).to_string())?;
    Ok(Some(directory))
}

/// Launchers call other coordinators when this one is gone: with a certificate of its authority's.
fn launchers_papers(directory: &Path, authority: &Authority) -> Result<PathBuf, Stopped> {
    let place = directory.join(LAUNCHERS);
    let is_good = |known: &Credentials| known.pin() == authority.pin() && !known.is_due(calendar());
    if !Credentials::open(&place).is_ok_and(|known| is_good(&known)) {
        sign_for(&place, authority, "launcher", Role::Coordinator)?;
    }
    Ok(place)
}

fn sign_in(directory: &Path, authority: &Authority) -> Result<(), Stopped> {
    sign_for(directory, authority, "admin", Role::Admin)
}

fn sign_for(
    directory: &Path,
    authority: &Authority,
    name: &str,
    role: Role,
) -> Result<(), Stopped> {
    let signed = || -> Result<(), ClientError> {
        let name: Name = name.parse()?;
        let request = Request::new(&name)?;
        let identity = Identity { name, role };
        let signed = authority.sign(request.pem(), &identity, ADMIN_LIFE, calendar())?;
        let credentials =
            Credentials::new(authority.certificate_pem(), &signed.certificate_pem, request)?;
        Ok(credentials.save(directory)?)
    };
    Ok(signed()?)
}

/// Starts launchers: processes that outlive this one.
struct Launching {
    program: PathBuf,
    directory: PathBuf,
    log_format: cli::LogFormat,
    /// By what launchers are known to other coordinators, and where those are.
    shared: Option<(PathBuf, watch::Receiver<Standing>)>,
}

impl Launchers for Launching {
    fn launch(&mut self, launch: Launch) -> Result<Ended, String> {
        self.start(&launch).map_err(|error| format!("{error:#}"))
    }

    fn config_reader(&self) -> ReadConfig {
        manifest::read_config
    }
}

impl Launching {
    fn start(&self, launch: &Launch) -> anyhow::Result<Ended> {
        let Launch { name, manifest, first, nth, .. } = launch;
        let run_dir = self.directory.join(JOBS).join(name);
        let logs = run_dir.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let text = self.directory.join(JOBS).join(format!("{name}.yaml"));
        run_dir::write_atomically(&text, manifest.text.as_bytes())?;
        let log = logs.join("out.log");
        let out = File::create(&log).with_context(|| format!("opening {}", log.display()))?;
        let directory = Path::new(&manifest.directory);
        if !directory.is_dir() {
            anyhow::bail!(
                "the job was applied from {}, which is no directory of the coordinator's machine: apply it from one \
                 that is, or give whole paths and apply it from /",
                directory.display()
            );
        }
        let mut command = std::process::Command::new(&self.program);
        command.current_dir(directory);
        command.arg("launch").arg(&manifest.file).arg("--text").arg(&text);
        for change in &manifest.overrides {
            command.args(["--set", change]);
        }
        command.arg("--run-dir").arg(&run_dir);
        match &self.shared {
            None => command.arg("--cluster").arg(self.directory.join(SOCKET)),
            Some((credentials, standing)) => {
                let coordinators = standing.borrow().coordinators.join(",");
                command.args(["--coordinators", &coordinators, "--nth", &nth.to_string()]);
                command.arg("--credentials").arg(credentials)
            }
        };
        command
            .args(["--first", &first.to_string()])
            .args(["--log-format", self.log_format.name()])
            .stdin(Stdio::null())
            .stdout(out.try_clone().context("sharing the log")?)
            .stderr(out)
            // Ctrl-C here asks launchers over their lines; and what kills this process leaves them be.
            .process_group(0);
        let mut child = Command::from(command).spawn().context("starting a launcher")?;
        Ok(Box::pin(async move {
            match child.wait().await {
                Ok(status) => format!("{status}"),
                Err(error) => format!("it cannot be waited for: {error}"),
            }
        }))
    }
}
