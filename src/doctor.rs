//! The verb `doctor`: what stands in the way of this machine being a rig, and what mends it. Everything is looked
//! at first; what it means is said by functions of what was seen.

mod advertised;
mod coordinator;
mod finding;
mod gpu;
mod libraries;
mod machine;
mod papers;
mod peers;

use std::net::IpAddr;

use shoal_cluster::Client;
use shoal_cluster::probing::reaching::Trusting;
use shoal_cluster::probing::words::Look;
use shoal_cluster::probing::{address, neighbour, reaching};
use shoal_cluster::relaying::Relay;
use shoal_cluster::words::VERSION;
use shoal_trust::Credentials;

use crate::clock::unix_time;
use crate::exit::Stopped;
use crate::people;
use crate::{cli, launch, settings};
use advertised::Advertised;
use coordinator::{Coordinator, Standing};
use finding::{Finding, Level};
use gpu::Gpus;
use machine::Machine;
use papers::Papers;
use peers::Peer;

/// Small calls, of which the middle one says how far away the coordinator is.
const LOOKS: usize = 9;

pub(crate) fn examine(args: &cli::Doctor) -> Result<(), Stopped> {
    let papers = Papers::read(args)?;
    let mut findings = Machine::here(&papers.directory).findings();
    findings.extend(Gpus::here().findings());
    findings.extend(papers.findings());
    if let Ok(Some(addresses)) = &papers.address {
        // Where there are several coordinators: the first.
        let address = addresses.split(',').next().unwrap_or_default();
        let trusting = trusting(args, &papers)?;
        let runtime = launch::event_loop()?;
        findings.extend(runtime.block_on(cluster(args, &papers, address, trusting)));
    }
    findings.sort_by_key(|finding| finding.group);
    people::show(args.output, &findings, || finding::table(&findings))?;
    ended(&findings)
}

/// One problem is enough to fail.
fn ended(findings: &[Finding]) -> Result<(), Stopped> {
    let problems: Vec<&str> = (findings.iter().filter(|finding| finding.level == Level::Problem))
        .map(|finding| finding.what.as_str())
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    let plural = if problems.len() == 1 { "" } else { "s" };
    Err(Stopped::Failed(anyhow::anyhow!(
        "{} problem{plural}: {}",
        problems.len(),
        problems.join(", ")
    )))
}

/// What the coordinator is believed by: the certificate that is here, or a token's pin before there is one.
fn trusting<'a>(args: &cli::Doctor, papers: &'a Papers) -> Result<Trusting<'a>, Stopped> {
    if let Some(credentials) = &papers.credentials {
        return Ok(Trusting::Member(credentials));
    }
    let is_given = args.token_file.is_some() || settings::token().is_some();
    if !is_given {
        return Ok(Trusting::Nobody);
    }
    Ok(Trusting::Pinned(people::read_token(args.token_file.as_deref())?.pin))
}

async fn cluster(
    args: &cli::Doctor,
    papers: &Papers,
    address: &str,
    trusting: Trusting<'_>,
) -> Vec<Finding> {
    let reached = reaching::reach(address, trusting).await;
    let connected = reached.tcp.clone().and_then(Result::ok);
    let is_trusted = matches!(reached.tls, Some(Ok(())));
    let mut found = Coordinator { address: address.to_owned(), reached, standing: None };
    let mut client = None;
    if let Some(credentials) = papers.credentials.as_ref().filter(|_| is_trusted) {
        match standing(address, credentials).await {
            Ok((standing, known)) => {
                (found.standing, client) = (Some(Ok(standing)), Some((known, credentials)));
            }
            Err(why) => found.standing = Some(Err(why)),
        }
    }
    let mut findings = found.findings();
    let Some(connected) = connected else { return findings };
    let here = args.advertise.unwrap_or(connected.from);
    let seen = found.standing.as_ref().and_then(|standing| standing.as_ref().ok());
    let advertised = Advertised {
        address: here,
        interface: address::interface_of(here),
        coordinator: connected.to.ip(),
        seen_from: seen.map(|standing| standing.seen.address),
    };
    findings.push(advertised.finding());
    if let Some((client, credentials)) = client {
        findings.extend(met(papers, &client, credentials, here).await);
    }
    findings
}

/// What the coordinator says, and how fast.
async fn standing(address: &str, credentials: &Credentials) -> Result<(Standing, Client), String> {
    let shown = |error: shoal_cluster::ClientError| error.to_string();
    let client = Client::connect(address, credentials).await.map_err(shown)?;
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        let unix_ms = (unix_time() * 1e3) as u64;
        let look = Look { words: VERSION, version: env!("CARGO_PKG_VERSION").to_owned(), unix_ms };
        let (seen, took) = client.look(&look).await.map_err(shown)?;
        looks.push((took, unix_ms, seen));
    }
    looks.sort_by_key(|(took, ..)| *took);
    let seconds = looks[LOOKS / 2].0.as_secs_f64();
    // The quickest says most exactly what time it was there, half way between.
    let (took, sent_ms, seen) = looks.swap_remove(0);
    let here_ms = sent_ms + took.as_millis() as u64 / 2;
    let ahead_ms = here_ms as i64 - seen.unix_ms as i64;
    let up = client.probe_up().await.map_err(shown);
    let down = client.probe_down().await.map_err(shown);
    Ok((Standing { seen, ahead_ms, seconds, up, down }, client))
}

/// Every other rig that is here, one after the other: together they would share the link.
async fn met(
    papers: &Papers,
    client: &Client,
    credentials: &Credentials,
    here: IpAddr,
) -> Vec<Finding> {
    let neighbours = match client.neighbours().await {
        Ok(neighbours) => neighbours,
        Err(error) => {
            let mend = "shoal doctor, again";
            return vec![finding::Group::Peers.warning("rigs", error.to_string(), mend)];
        }
    };
    // The rig's own agent may not run: others dial this process back.
    let certificate = papers.directory.join(crate::rig::CERTIFICATE);
    let back = neighbour::listen(here, 0, &certificate, Relay::default());
    let place = back.as_ref().ok().map(|back| (here, back.port));
    let mut peers = Vec::new();
    for whom in neighbours {
        let met = neighbour::meet(&whom, credentials, place).await;
        let has_port = whom.probe_port.is_some();
        peers.push(Peer { name: whom.name, address: whom.address, has_port, met });
    }
    let mut findings = peers::findings(&peers);
    if let Err(error) = back {
        let mend = "name an address of this machine with --advertise";
        let fact = format!("no port can be opened at {here}: {error}");
        findings.push(finding::Group::Peers.problem("port", fact, mend));
    }
    findings
}
