//! Verbs of those who look after a cluster. What they ask is answered by its coordinator; here it is shown.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use shoal_cluster::words::{
    Answer, Ask, JobStatus, Manifest, NewToken, Overview, RigStatus, TokenStatus,
};
use shoal_cluster::{Client, ClientError, Wanted};
use shoal_trust::{Credentials, Token};
use tokio::runtime::Runtime;

use crate::cli;
use crate::exit::Stopped;
use crate::progress::{duration, short};
use crate::show::{json, table};
use crate::status::yaml;
use crate::terminal::{data, harmless, note};
use crate::{launch, run_dir, settings};

/// In a cluster's directory: where its coordinator is.
const ADDRESS: &str = "address";

/// A token has about 220 bytes.
const TOKEN_BYTES_MAX: u64 = 4 << 10;

impl From<ClientError> for Stopped {
    fn from(error: ClientError) -> Self {
        let text = error.to_string();
        match error {
            ClientError::Unreachable { .. } => Self::Unreachable(text),
            ClientError::Refused { .. } | ClientError::Stranger { .. } => Self::Refused(text),
            ClientError::File { .. } | ClientError::Trust(_) => Self::Input(text),
        }
    }
}

/// A cluster that this person is known to.
#[derive(Debug)]
pub(crate) struct Cluster {
    client: Client,
    runtime: Runtime,
}

/// Where what is known of a cluster lies.
pub(crate) fn directory(home: &cli::Home) -> Result<PathBuf, Stopped> {
    if home.place.components().count() > 1 || home.place.is_absolute() {
        return Ok(home.place.clone());
    }
    Ok(config_home()?.join("shoal/clusters").join(&home.place))
}

fn config_home() -> Result<PathBuf, Stopped> {
    xdg("XDG_CONFIG_HOME", ".config")
}

/// A base directory of the XDG specification.
pub(crate) fn xdg(variable: &str, usual: &str) -> Result<PathBuf, Stopped> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let given = set(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = || set("HOME").map(|home| Path::new(&home).join(usual));
    given.or_else(usual).ok_or_else(|| {
        Stopped::Input(format!("neither {variable} nor HOME says where files of shoal lie"))
    })
}

/// Keeps where a cluster's coordinator is, beside the certificate.
pub(crate) fn remember(directory: &Path, address: &str) -> anyhow::Result<()> {
    run_dir::write_atomically(&directory.join(ADDRESS), format!("{address}\n").as_bytes())
}

pub(crate) fn is_known(home: &cli::Home) -> bool {
    directory(home).is_ok_and(|directory| directory.join(ADDRESS).is_file())
}

impl Cluster {
    /// # Errors
    /// Nothing is known of such a cluster, or its coordinator is not reached.
    pub(crate) fn reach(home: &cli::Home) -> Result<Self, Stopped> {
        let directory = directory(home)?;
        let file = directory.join(ADDRESS);
        let address = std::fs::read_to_string(&file).map_err(|error| {
            Stopped::Input(format!(
                "nothing is known of the cluster {}: {}: {error}\n`shoal coordinator` makes one on this machine; \
                 `shoal login HOST:PORT --token-file FILE` makes you known to one elsewhere",
                home.place.display(),
                file.display()
            ))
        })?;
        let credentials = Credentials::open(&directory).map_err(ClientError::from)?;
        let runtime = launch::event_loop()?;
        let client = runtime.block_on(Client::connect(address.trim(), &credentials))?;
        let known: Vec<&str> = address.trim().split(',').collect();
        let new = client.coordinators().iter().map(String::as_str);
        let all: Vec<&str> =
            known.iter().copied().chain(new.filter(|new| !known.contains(new))).collect();
        if all.len() > known.len() {
            // Somebody else's directory stays as it is.
            let _ = remember(&directory, &all.join(","));
        }
        Ok(Self { client, runtime })
    }

    pub(crate) fn ask(&self, ask: &Ask) -> Result<Answer, Stopped> {
        Ok(self.runtime.block_on(self.client.ask(ask))?)
    }

    pub(crate) fn wait(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    pub(crate) fn overview(&self) -> Result<Overview, Stopped> {
        let answer = self.ask(&Ask::Overview)?;
        if let Answer::Overview(overview) = answer {
            Ok(*overview)
        } else {
            Err(unexpected(answer))
        }
    }

    /// Puts an order that is answered with a sentence.
    fn order(&self, ask: &Ask) -> Result<(), Stopped> {
        let answer = self.ask(ask)?;
        let (Answer::Done(what) | Answer::Run(shoal_coordinator::control::Answer::Accepted(what))) =
            answer
        else {
            return Err(unexpected(answer));
        };
        note(&harmless(what.as_bytes()));
        Ok(())
    }
}

/// What was not hoped for.
pub(crate) fn unexpected(answer: Answer) -> Stopped {
    match answer {
        Answer::Refused(why) => Stopped::Refused(harmless(why.as_bytes())),
        Answer::Undecided(why) => Stopped::Unreachable(harmless(why.as_bytes())),
        Answer::Unknown(what) | Answer::Wrong(what) => Stopped::Input(harmless(what.as_bytes())),
        Answer::Overview(_)
        | Answer::Run(_)
        | Answer::Done(_)
        | Answer::Applied { .. }
        | Answer::Tokens(_)
        | Answer::Metrics(_)
        | Answer::Token { .. } => Stopped::Refused("an answer to another question".to_owned()),
    }
}

/// A token from a file or the environment: a command line is for everyone to read.
pub(crate) fn read_token(file: Option<&Path>) -> Result<Token, Stopped> {
    let text = match file {
        Some(path) => {
            let read = std::fs::File::open(path).and_then(|file| {
                use std::io::Read;
                let mut text = String::new();
                file.take(TOKEN_BYTES_MAX).read_to_string(&mut text).map(|_| text)
            });
            read.map_err(|error| {
                Stopped::Input(format!("cannot read the token in {}: {error}", path.display()))
            })?
        }
        None => settings::token().ok_or_else(|| {
            Stopped::Input(
                "a token is needed once: --token-file FILE, or the variable SHOAL_TOKEN. `shoal token create` on the \
                 coordinator's machine makes one"
                    .to_owned(),
            )
        })?,
    };
    text.trim().parse().map_err(|error: shoal_trust::TrustError| Stopped::Input(error.to_string()))
}

pub(crate) fn login(args: &cli::Login) -> Result<(), Stopped> {
    let token = read_token(args.token_file.as_deref())?;
    let name = args.name.parse().map_err(ClientError::from)?;
    let directory = directory(&args.home)?;
    let runtime = launch::event_loop()?;
    let joined = shoal_cluster::join(&args.address, &token, &name, &directory);
    let credentials = runtime.block_on(joined)?;
    remember(&directory, &args.address)?;
    note(&format!("{} is known as {} from now on", args.address, credentials.identity()));
    Ok(())
}

pub(crate) fn token(verb: &cli::Token) -> Result<(), Stopped> {
    match verb {
        cli::Token::Create(args) => {
            let new =
                NewToken { role: args.role.clone(), uses: args.uses, seconds: args.ttl.as_secs() };
            let answer = Cluster::reach(&args.home)?.ask(&Ask::CreateToken(new))?;
            let Answer::Token { token, status } = answer else { return Err(unexpected(answer)) };
            data(&token);
            note(&format!("for {}", token_line(&status)));
            Ok(())
        }
        cli::Token::Ls(args) => {
            let answer = Cluster::reach(&args.home)?.ask(&Ask::Tokens)?;
            let Answer::Tokens(tokens) = answer else { return Err(unexpected(answer)) };
            show(args.output, &tokens, || {
                let header = ["id", "role", "uses left", "good for"].map(str::to_owned);
                let row = |token: &TokenStatus| {
                    let left = duration(token.seconds_left.max(0) as f64);
                    [token.id.clone(), token.role.clone(), token.uses_left.to_string(), left]
                };
                with_header(header, tokens.iter().map(row))
            })
        }
        cli::Token::Revoke { id, home } => {
            Cluster::reach(home)?.order(&Ask::RevokeToken { id: id.clone() })
        }
    }
}

fn token_line(status: &TokenStatus) -> String {
    let TokenStatus { id, role, uses_left, seconds_left } = status;
    let uses = if *uses_left == 1 { "one use".to_owned() } else { format!("{uses_left} uses") };
    let left = duration((*seconds_left).max(0) as f64);
    format!("a {role}: {uses} within {left}; `shoal token revoke {id}` ends it")
}

pub(crate) fn apply(args: &cli::Apply) -> Result<(), Stopped> {
    let file = &args.manifest.file;
    let wrong = |error: std::io::Error| {
        Stopped::Input(format!("cannot read the manifest {}: {error}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(wrong)?;
    let manifest = Manifest {
        file: std::path::absolute(file).map_err(wrong)?.display().to_string(),
        directory: std::env::current_dir().map_err(wrong)?.display().to_string(),
        text,
        overrides: args.manifest.overrides.clone(),
        dry_run: args.dry_run,
    };
    let answer = Cluster::reach(&args.home)?.ask(&Ask::Apply(manifest))?;
    let Answer::Applied { job, changes, what } = answer else { return Err(unexpected(answer)) };
    for change in &changes {
        data(&harmless(change.as_bytes()));
    }
    note(&harmless(format!("{job}: {what}").as_bytes()));
    if args.dry_run && !what.starts_with("unchanged") {
        return Err(Stopped::Differs);
    }
    Ok(())
}

pub(crate) fn overview(args: &cli::Overview) -> Result<(), Stopped> {
    let overview = Cluster::reach(&args.home)?.overview()?;
    show(args.output, &overview, || as_table(&overview))
}

pub(crate) fn show<T: Serialize>(
    form: cli::Form,
    what: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Stopped> {
    match form {
        cli::Form::Table => data(text().trim_end()),
        cli::Form::Json => data(&json(what)?),
        cli::Form::Yaml => {
            let value =
                serde_json::to_value(what).map_err(|error| Stopped::Failed(error.into()))?;
            data(yaml::of(&value).trim_end());
        }
    }
    Ok(())
}

fn as_table(overview: &Overview) -> String {
    let rigs = if overview.rigs.is_empty() {
        "no rig has joined: `shoal token create` makes an invitation\n".to_owned()
    } else {
        let header = ["rig", "is", "does", "GPUs", "cores", "memory", "heard"].map(str::to_owned);
        with_header(header, overview.rigs.iter().map(rig_row))
    };
    let jobs = if overview.jobs.is_empty() {
        "no job was applied: `shoal apply job.yaml`\n".to_owned()
    } else {
        let header = ["job", "is", "step", "loss", "rigs", ""].map(str::to_owned);
        with_header(header, overview.jobs.iter().map(job_row))
    };
    format!("{rigs}\n{jobs}")
}

fn with_header<const N: usize>(
    header: [String; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).map(Vec::from).collect();
    table(&rows)
}

fn rig_row(rig: &RigStatus) -> [String; 7] {
    let facts = &rig.facts;
    let cordoned = if rig.cordoned { ", cordoned" } else { "" };
    let does = match (&rig.job, &rig.worker) {
        (Some(job), Some(worker)) => format!("{job}/{worker}"),
        _ if facts.relay_only => "only relays".to_owned(),
        _ => String::new(),
    };
    let does = match rig.relays {
        0 => does,
        n => format!("{does}{}relays {n}", if does.is_empty() { "" } else { ", " }),
    };
    let gpus: Vec<String> = facts
        .gpus
        .iter()
        .map(|gpu| format!("{} {}B", gpu.name, short(gpu.memory_mb as f64 * 1e6)))
        .collect();
    let gpus = if gpus.is_empty() { "none".to_owned() } else { gpus.join(", ") };
    let heard = rig.heard_seconds_ago.map(|seconds| format!("{seconds:.0} s ago"));
    [
        rig.name.clone(),
        format!("{}{cordoned}", rig.is),
        does,
        harmless(gpus.as_bytes()),
        facts.cores.to_string(),
        format!("{}B", short(facts.memory_mb as f64 * 1e6)),
        heard.unwrap_or_default(),
    ]
}

fn job_row(job: &JobStatus) -> [String; 6] {
    let run = job.run.as_deref();
    let step = run.map(|run| format!("{} of {}", run.step, run.steps));
    let loss = run.and_then(|run| run.loss).map(|loss| format!("{loss:.3}"));
    let rigs: Vec<&str> = job.rigs.values().map(String::as_str).collect();
    let why = job.why.as_deref().and_then(|why| why.lines().next()).unwrap_or_default();
    [
        job.name.clone(),
        job.phase.to_string(),
        step.unwrap_or_default(),
        loss.unwrap_or_default(),
        rigs.join(" "),
        harmless(why.as_bytes()),
    ]
}

pub(crate) fn logs(args: &cli::Logs) -> Result<(), Stopped> {
    let cluster = Cluster::reach(&args.home)?;
    let wanted = Wanted {
        job: args.job.clone(),
        log: args.log.clone(),
        tail_bytes: args.tail,
        follow: args.follow,
    };
    // A piece may end in the midst of a line, and with it of a letter.
    let mut rest = Vec::new();
    let take = |bytes: &[u8]| {
        rest.extend_from_slice(bytes);
        let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = rest.drain(..end).collect();
        let mut out = std::io::stdout().lock();
        // A reader that went away wants no more.
        write!(out, "{}", harmless(&lines)).and_then(|()| out.flush()).is_ok()
    };
    let ended = cluster.runtime.block_on(cluster.client.logs(wanted, take));
    if !rest.is_empty() {
        data(&harmless(&rest));
    }
    Ok(ended?)
}

pub(crate) fn cordon(args: &cli::RigNamed, cordoned: bool) -> Result<(), Stopped> {
    let rig = args.rig.clone();
    let ask = if cordoned { Ask::Cordon { rig } } else { Ask::Uncordon { rig } };
    Cluster::reach(&args.home)?.order(&ask)
}

pub(crate) fn drain(rig: &str, force: bool, home: &cli::Home) -> Result<(), Stopped> {
    Cluster::reach(home)?.order(&Ask::Drain { rig: rig.to_owned(), force })
}

pub(crate) fn expel(args: &cli::Expel) -> Result<(), Stopped> {
    if !args.yes {
        let rig = &args.rig;
        return Err(Stopped::Input(format!(
            "this cannot be undone: {rig} would need a new token. `shoal expel {rig} --yes` does it"
        )));
    }
    Cluster::reach(&args.home)?.order(&Ask::Expel { rig: args.rig.clone() })
}

pub(crate) fn forget(args: &cli::RemoveJob) -> Result<(), Stopped> {
    Cluster::reach(&args.home)?.order(&Ask::Remove { job: args.job.clone() })
}
