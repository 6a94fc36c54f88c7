//! Members that mean harm, and what they cost everybody else: messages that lie about their size, floods in HTTP/2,
//! floods of calls, words and connections; and somebody who stands between a rig and its coordinator.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "a fixture reads the calendar for certificates")]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use shoal_cluster::probing::words::Look;
use shoal_cluster::store::Embedded;
use shoal_cluster::store::remote::Standing;
use shoal_cluster::words::{Answer, Ask, Facts, FromRig, RigIs, VERSION};
use shoal_cluster::{
    Attending, Client, ClientError, Ended, Launch, Launchers, Limits, Running, STORE, Settings,
    serve,
};
use shoal_trust::{Authority, Credentials, Identity, Name, Request, Role};

use tokio::sync::watch;

mod floods;
mod frames;
mod join;
mod members;
mod metrics;
mod terms;

/// No job is applied here.
struct Nobody;

impl Launchers for Nobody {
    fn launch(&mut self, _: Launch) -> Result<Ended, String> {
        Err("no job is applied here".to_owned())
    }
}

/// A cluster without a program around it.
struct Served {
    running: Running,
    authority: Authority,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        Self::standing(None)
    }

    /// One of several coordinators.
    fn standing(standing: Option<watch::Receiver<Standing>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&"tests".parse().unwrap(), SystemTime::now()).unwrap();
        authority.save(&directory.path().join("authority")).unwrap();
        let settings = Settings {
            cluster: "tests".parse().unwrap(),
            authority: Authority::open(&directory.path().join("authority")).unwrap(),
            directory: directory.path().to_path_buf(),
            life: Duration::from_hours(1),
            limits: Limits::USUAL,
            standing,
            home: String::new(),
        };
        let store = Box::new(Embedded::open(&directory.path().join(STORE)).unwrap());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let running = serve(settings, port, store, Box::new(Nobody)).unwrap();
        Self { running, authority, _directory: directory }
    }

    fn address(&self) -> SocketAddr {
        self.running.address
    }

    fn member(&self, name: &str, role: Role) -> Credentials {
        let name: Name = name.parse().unwrap();
        let request = Request::new(&name).unwrap();
        let identity = Identity { name, role };
        let (life, now) = (Duration::from_hours(1), SystemTime::now());
        let signed = self.authority.sign(request.pem(), &identity, life, now).unwrap();
        let ca = self.authority.certificate_pem();
        Credentials::new(ca, &signed.certificate_pem, request).unwrap()
    }

    async fn client(&self, name: &str, role: Role) -> Client {
        let address = self.address().to_string();
        Client::connect(&address, &self.member(name, role)).await.unwrap()
    }

    async fn rig(&self, name: &str) -> (Client, Attending) {
        let client = self.client(name, Role::Worker).await;
        let hello = FromRig::Hello {
            version: VERSION,
            facts: Facts { version: env!("CARGO_PKG_VERSION").to_owned(), ..Facts::default() },
            running: Vec::new(),
            unix_ms: None,
        };
        let attending = client.attend(hello).await.unwrap();
        (client, attending)
    }

    /// A rig that says twice a second that it is there, as long as the test runs.
    async fn honest(&self) -> Client {
        let (client, attending) = self.rig("honest").await;
        tokio::spawn(async move {
            while attending.outbox.send(FromRig::Heartbeat { disk_free_mb: 1 }).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        client
    }

    /// What a cluster is for still works: an honest rig's calls are answered, and it is seen to be there.
    async fn serves(&self, honest: &Client) {
        for _ in 0..5 {
            look(honest).await.unwrap();
        }
        let admin = self.client("admin", Role::Admin).await;
        let Answer::Overview(overview) = admin.ask(&Ask::Overview).await.unwrap() else {
            panic!("an answer to another question");
        };
        let rig = overview.rigs.iter().find(|rig| rig.name == "honest").expect("it is known");
        assert_ne!(rig.is, RigIs::Away, "{rig:?}");
    }
}

/// A small call of a rig.
async fn look(client: &Client) -> Result<(), ClientError> {
    let look = Look { words: VERSION, version: env!("CARGO_PKG_VERSION").to_owned(), unix_ms: 0 };
    client.look(&look).await.map(drop)
}

/// What this process has in memory, in MB.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}
