//! A coordinator that shares an etcd with others: it waits until it is the active one, and begins anew, as a standby,
//! when it is so no more. Nothing of what it knew is left then: the process takes its own place.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use shoal_cluster::election::Stand;
use shoal_cluster::store::remote::{Candidacy, Candidate, Remote, Standing, Tls};
use shoal_cluster::store::{StoreError, open_etcd};
use tokio::sync::watch;

use crate::cli;
use crate::exit::Stopped;
use crate::notify::{self, Watchdog};
use crate::signals::Signals;
use crate::terminal::note;

/// An etcd that does not answer is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Where the state is kept, if not in a file here.
pub(super) fn remote(args: &cli::StoreAt) -> Result<Option<Remote>, Stopped> {
    // Each may come from another place, a flag or a variable: that one needs the other is seen here.
    let incomplete = [
        (args.ca.is_some() && args.at.is_none(), "--store-ca is for an etcd: say --store, too"),
        (args.cert.is_some() && args.ca.is_none(), "--store-cert is for TLS: say --store-ca, too"),
        (args.cert.is_some() != args.key.is_some(), "--store-cert and --store-key go together"),
    ];
    if let Some((_, what)) = incomplete.iter().find(|(is_so, _)| *is_so) {
        return Err(Stopped::Input((*what).to_owned()));
    }
    let Some(mut remote) = args.at.clone() else { return Ok(None) };
    remote.tls =
        args.ca.clone().map(|ca| Tls { ca, shown: args.cert.clone().zip(args.key.clone()) });
    if remote.tls.is_none() && !remote.is_here() {
        note(
            "warning: etcd is spoken to in clear, and secrets of runs are kept there: --store-ca, or a network that \
             nobody else is in",
        );
    }
    Ok(Some(remote))
}

/// Waits for etcd, and asks to be active.
///
/// # Errors
/// It is not the etcd, or not the cluster, that it should be; or somebody wants to go.
pub(super) async fn candidacy(
    remote: &Remote,
    candidate: &Candidate,
    signals: &mut Signals,
) -> Result<Candidacy, Stopped> {
    let mut said = None;
    loop {
        let why = match open_etcd(remote, candidate.clone()) {
            Ok(candidacy) => return Ok(candidacy),
            Err(error @ StoreError::Away { .. }) => error.to_string(),
            Err(
                error @ (StoreError::Unfit(_)
                | StoreError::Database { .. }
                | StoreError::Damaged { .. }
                | StoreError::Fenced { .. }),
            ) => return Err(Stopped::Input(error.to_string())),
        };
        if said.as_ref() != Some(&why) {
            note(&format!("{why}; trying again"));
            notify::status(&why);
            said = Some(why);
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            signal = signals.next() => return Err(Stopped::Signal(signal)),
        }
    }
}

/// Returns when this coordinator is the active one: in which term.
///
/// # Errors
/// It must not be any more, or somebody wants to go.
pub(super) async fn elected(
    standing: &mut watch::Receiver<Standing>,
    watchdog: &mut Watchdog,
    signals: &mut Signals,
) -> Result<u64, Stopped> {
    let mut said = None;
    loop {
        let stand = standing.borrow_and_update().stand.clone();
        match stand {
            Stand::Active { term, .. } => return Ok(term),
            Stand::Deposed { why } => return Err(Stopped::Input(why)),
            Stand::Standby { active } => {
                let active = active.map(|holder| holder.address);
                if active.is_some() && said != active {
                    let at = active.as_deref().unwrap_or_default();
                    note(&format!("standing by: the active coordinator is at {at}"));
                    notify::status(&format!("standing by for {at}"));
                    said = active;
                }
            }
        }
        watchdog.feed();
        tokio::select! {
            changed = standing.changed() => changed.context("the thread that speaks to etcd has ended")?,
            () = tokio::time::sleep(watchdog.every()) => {}
            signal = signals.next() => return Err(Stopped::Signal(signal)),
        }
    }
}

/// Returns when this coordinator is the active one no more, with why. Never for one that shares with nobody.
pub(super) async fn deposed(standing: Option<&mut watch::Receiver<Standing>>) -> String {
    let Some(standing) = standing else { return std::future::pending().await };
    loop {
        if let Stand::Deposed { why } = &standing.borrow_and_update().stand {
            return why.clone();
        }
        if standing.changed().await.is_err() {
            return "the thread that speaks to etcd has ended".to_owned();
        }
    }
}

/// Puts a new process in the place of this one, with the same arguments. Launchers stay its children, and look for
/// whoever is active.
pub(super) fn begin_anew(why: &str) -> Stopped {
    note(&format!("not active any more: {why}; standing by"));
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => {
            return anyhow::Error::from(error).context("finding this program's own file").into();
        }
    };
    let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
    anyhow::Error::from(error).context("beginning anew").into()
}
