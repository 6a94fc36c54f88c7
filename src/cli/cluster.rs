//! Verbs of a cluster: the coordinator's, a rig's, and those of the people who look after it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use shoal_cluster::store::remote::Remote;
use shoal_plan::device::DeviceChoice;

use super::steering::Form;
use super::{LogFormat, Manifest};

pub(super) const STAND_EXAMPLES: &str = "\
Examples:
  shoal coordinator
  shoal coordinator --listen 10.0.0.1:7400
  shoal token create
  shoal coordinator --listen 10.0.0.1:7400 --store etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379

Without --listen only this machine is served. Everything lies in --state: the authority's key, the store, and a
directory for each job's run. With --store etcd://... a second coordinator may stand by.";

pub(super) const JOIN_EXAMPLES: &str = "\
Examples:
  shoal worker --join 10.0.0.1:7400 --token-file token
  SHOAL_TOKEN=shoal1... shoal worker --join 10.0.0.1:7400 --name attic
  shoal worker

Later starts need neither address nor token: both are in --state. SIGTERM and Ctrl-C hand over what the rig does, and go.";

pub(super) const DOCTOR_EXAMPLES: &str = "\
Examples:
  shoal doctor
  shoal doctor --join 10.0.0.1:7400 --token-file token
  shoal doctor -o json | jq '.[] | select(.level == \"problem\")'

Exit codes: 0 no problem (there may be warnings), 1 a problem, 2 wrong usage.";

pub(super) const APPLY_EXAMPLES: &str = "\
Examples:
  shoal apply job.yaml
  shoal apply job.yaml --dry-run
  shoal apply job.yaml --set training.steps=2000

Paths in the manifest are paths of the coordinator's machine. Exit codes: 0 applied, 2 wrong manifest, 3 the
coordinator cannot be reached, 4 refused, 6 with --dry-run: something would change.";

pub(super) const OVERVIEW_EXAMPLES: &str = "\
Examples:
  shoal ps
  shoal ps -o json | jq '.rigs[] | select(.is == \"away\")'";

pub(super) const LOGS_EXAMPLES: &str = "\
Examples:
  shoal logs small
  shoal logs small -f --log worker-2
  shoal logs small --log coordinator --tail 100000";

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct Home {
    /// Which cluster: a name below ~/.config/shoal/clusters, or a directory
    #[arg(
        id = "cluster",
        long = "cluster",
        default_value = Home::DEFAULT,
        value_name = "NAME|DIRECTORY"
    )]
    pub place: PathBuf,
}

impl Home {
    /// Where nobody says which.
    pub(crate) const DEFAULT: &'static str = "default";
}

#[derive(Debug, Args)]
pub(crate) struct Stand {
    /// Where rigs and people reach it
    #[arg(long, default_value = "127.0.0.1:7400", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Everything of the cluster [default: ~/.local/state/shoal/cluster]
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
    /// What the cluster is called, in certificates; of the first start
    #[arg(long, default_value = "shoal", value_name = "NAME")]
    pub name: String,
    /// How long rigs' certificates are good; they are renewed when two thirds are over
    #[arg(long, default_value = "24h", value_parser = life, value_name = "TIME")]
    pub certificate_life: Duration,
    /// Where rigs, people and other coordinators are told to reach it [default: as --listen says]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    #[command(flatten)]
    pub store: StoreAt,
    /// SIGTERM lets runs end with a checkpoint, though another coordinator is there: in a container, which takes them
    /// with it
    #[arg(long)]
    pub stop_runs: bool,
    #[command(flatten)]
    pub home: Home,
    /// Serve metrics of the cluster, its runs and its rigs on this port of loopback, with a list of them at /sd; 0: any
    /// free one [default: none]
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
    /// Form of the log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Where a cluster's state is kept.
#[derive(Debug, Args)]
pub(crate) struct StoreAt {
    /// Where the state is kept: `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]` [default: a file in --state]
    #[arg(long = "store", value_name = "ETCD")]
    pub at: Option<Remote>,
    /// etcd is spoken to by TLS, and its certificate is of this authority (PEM)
    #[arg(long = "store-ca", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// What is shown to etcd (PEM)
    #[arg(long = "store-cert", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its key (PEM), for its user alone
    #[arg(long = "store-key", value_name = "FILE")]
    pub key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The cluster's coordinator, or each of several with commas between; needed once
    #[arg(long = "join", value_name = "HOST:PORT,...")]
    pub coordinator: Option<String>,
    /// A file that holds the token; needed once. Or the variable `SHOAL_TOKEN`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// What the rig is called [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where other rigs reach this one [default: the address from which it reaches the coordinator]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<IpAddr>,
    /// The first of three ports on which other rigs reach this one (data, snapshots, probes); 0: any free ones
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub first_port: u16,
    /// Take no seat in a job: only pass bytes on between rigs that cannot reach each other
    #[arg(long)]
    pub relay_only: bool,
    /// Everything of the rig [default: ~/.local/state/shoal/rig]
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
    /// Compute threads, whatever the job says; 0: as the job says
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: u32,
    /// What jobs may compute on here: auto, cpu, cuda (every GPU), or some, such as cuda:0,2
    #[arg(long, default_value = "auto", value_name = "DEVICES")]
    pub devices: DeviceChoice,
    /// Give way while a program of this name runs, or a file is there (anything with a slash); may be repeated
    #[arg(long, value_name = "PROGRAM|FILE")]
    pub yield_to: Vec<String>,
    /// Form of the log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The cluster's coordinator [default: the one that this machine has joined]
    #[arg(long, value_name = "HOST:PORT")]
    pub join: Option<String>,
    /// A file that holds a token, before this machine has joined: the coordinator is held against it, and it is not
    /// used. Or the variable `SHOAL_TOKEN`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// What the rig would be called [default: the machine's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where other rigs would reach this one [default: the address from which it reaches the coordinator]
    #[arg(long, value_name = "ADDRESS")]
    pub advertise: Option<IpAddr>,
    /// The first of three ports on which other rigs reach this one (data, snapshots, probes); 0: any free ones
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    pub first_port: u16,
    /// Everything of the rig [default: ~/.local/state/shoal/rig]
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
    /// How to show it
    #[arg(short, long, default_value = "table")]
    pub output: Form,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token, and show it this once
    Create(NewToken),
    /// Tokens that are good still
    Ls(Overview),
    /// A token lets nobody in any more; who is in stays
    Revoke {
        id: String,
        #[command(flatten)]
        home: Home,
    },
}

#[derive(Debug, Args)]
pub(crate) struct NewToken {
    /// For whom: worker (a rig), viewer (looks), or admin (may do everything)
    #[arg(long, default_value = "worker")]
    pub role: String,
    /// How often somebody may join with it
    #[arg(long, default_value_t = 1)]
    pub uses: u32,
    /// How long it is good
    #[arg(long, default_value = "24h", value_parser = life, value_name = "TIME")]
    pub ttl: Duration,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The cluster's coordinator, or each of several with commas between
    #[arg(value_name = "HOST:PORT,...")]
    pub address: String,
    /// A file that holds the token, of role admin or viewer. Or the variable `SHOAL_TOKEN`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// What you are called
    #[arg(long, value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    pub manifest: Manifest,
    /// Say what would happen, and let nothing happen
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Overview {
    /// How to show it
    #[arg(short, long, default_value = "table")]
    pub output: Form,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The job
    pub job: String,
    /// out (what its launcher says), launch, coordinator, or worker-N
    #[arg(long, default_value = "out")]
    pub log: String,
    /// Go on with what is added
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many bytes
    #[arg(long, default_value_t = 16 << 10, value_name = "BYTES")]
    pub tail: u64,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct RigNamed {
    /// The rig
    pub rig: String,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct Expel {
    /// The rig
    pub rig: String,
    /// It cannot be undone: only a new token lets the rig back
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub home: Home,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveJob {
    /// The job
    pub job: String,
    #[command(flatten)]
    pub home: Home,
}

/// `90s`, `15m`, `24h` or `7d`.
fn life(text: &str) -> Result<Duration, String> {
    let seconds = shoal_plan::settings::seconds(text);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no time: want a number and s, m, h or d, such as 24h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        let seconds = |text: &str| life(text).map(|life| life.as_secs());
        assert_eq!((seconds("90s"), seconds("15m")), (Ok(90), Ok(900)));
        assert_eq!((seconds("24h"), seconds("7d")), (Ok(86_400), Ok(604_800)));
        for text in ["", "h", "0s", "-1s", "1.5h", "10", "1w", "h1", "99999999999999999999d", "é"]
        {
            assert!(life(text).unwrap_err().contains("such as 24h"), "{text}");
        }
    }
}
