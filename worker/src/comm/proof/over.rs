//! The two kinds of connection that tests run over, and a small cluster for the one with certificates.

use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use shoal_plan::plan::WorkerId;
use shoal_trust::{Authority, Credentials, Identity, Name, Request, Role};
use tempfile::TempDir;

use crate::comm::Trust;
use crate::comm::channel::Channel;
use crate::comm::deadline::Deadline;
use crate::comm::handshake::Refusal;

/// Runs each test over both kinds.
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        mod over_plain {
            $(#[test] fn $name() { super::$name(&$crate::comm::proof::over::Over::Plain) })*
        }
        mod over_tls {
            $(#[test] fn $name() { super::$name(&$crate::comm::proof::over::Over::tls()) })*
        }
    };
}
pub(crate) use over_both;

/// Workers of a test's cluster; `worker-3` is called `rig-3`.
const WORKERS: u32 = 10;

pub(crate) enum Over {
    Plain,
    Tls(Box<Cluster>),
}

/// An authority, and a directory of credentials for each worker.
pub(crate) struct Cluster {
    pub(crate) authority: Authority,
    dir: TempDir,
}

impl Over {
    pub(crate) fn tls() -> Self {
        Self::Tls(Box::new(Cluster::new()))
    }

    /// What a worker goes by.
    pub(crate) fn trust(&self, me: WorkerId) -> Option<Trust> {
        match self {
            Self::Plain => None,
            Self::Tls(cluster) => Some(cluster.trust(me)),
        }
    }

    /// What `me` has in hand once it has dialed `peer`.
    pub(crate) fn dial(
        &self,
        stream: TcpStream,
        (me, peer): (WorkerId, WorkerId),
        deadline: Deadline,
    ) -> Result<Channel, Refusal> {
        Channel::dial(stream, self.trust(me).as_ref(), peer, deadline)
    }
}

#[expect(clippy::disallowed_methods, reason = "TLS holds certificates against the system's clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let authority = Authority::create(&"reef".parse().unwrap(), now()).unwrap();
        let cluster = Self { authority, dir: tempfile::tempdir().unwrap() };
        for worker in (0..WORKERS).map(WorkerId) {
            let identity = Identity { name: name(worker), role: Role::Worker };
            cluster.give(worker, &identity);
        }
        cluster
    }

    /// Writes new credentials where a worker's are.
    pub(crate) fn give(&self, worker: WorkerId, identity: &Identity) {
        let request = Request::new(&identity.name).unwrap();
        let life = Duration::from_hours(24);
        let signed = self.authority.sign(request.pem(), identity, life, now()).unwrap();
        let ca = self.authority.certificate_pem();
        let credentials = Credentials::new(ca, &signed.certificate_pem, request).unwrap();
        credentials.save(&self.place(worker)).unwrap();
    }

    pub(crate) fn place(&self, worker: WorkerId) -> PathBuf {
        self.dir.path().join(worker.to_string())
    }

    pub(crate) fn trust(&self, me: WorkerId) -> Trust {
        let names = (0..WORKERS).map(|id| (WorkerId(id), name(WorkerId(id)))).collect();
        Trust { credentials: self.place(me), names }
    }
}

pub(crate) fn name(worker: WorkerId) -> Name {
    format!("rig-{}", worker.0).parse().unwrap()
}
