//! Probes between processes' worth of ends: who gets in, what is measured, and where it ends.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use shoal_trust::{Authority, Credentials, Identity, Name, Request, Role};
use tempfile::TempDir;

use super::BYTES_MAX;
use super::neighbour::{Back, Listening, listen, meet, try_all};
use super::words::{Look, Neighbour};
use crate::relaying::Relay;
use crate::store::Embedded;
use crate::words::{Facts, FromRig, VERSION};
use crate::{Client, Ended, JOBS, Launch, Launchers, Limits, Running, Settings};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An authority, and whom it has signed for.
struct Cluster {
    authority: Authority,
    directory: TempDir,
}

#[expect(clippy::disallowed_methods, reason = "rustls asks the system, too")]
fn now() -> SystemTime {
    SystemTime::now()
}

impl Cluster {
    fn new() -> Self {
        let authority = Authority::create(&"test".parse().unwrap(), now()).unwrap();
        Self { authority, directory: tempfile::tempdir().unwrap() }
    }

    fn member(&self, name: &str, role: Role) -> (Credentials, PathBuf) {
        let name: Name = name.parse().unwrap();
        let request = Request::new(&name).unwrap();
        let identity = Identity { name: name.clone(), role };
        let life = Duration::from_mins(10);
        let signed = self.authority.sign(request.pem(), &identity, life, now()).unwrap();
        let ca = self.authority.certificate_pem();
        let credentials = Credentials::new(ca, &signed.certificate_pem, request).unwrap();
        let place = self.directory.path().join(format!("{role}-{name}"));
        credentials.save(&place).unwrap();
        (credentials, place)
    }

    fn rig(&self, name: &str) -> (Credentials, Listening) {
        let (credentials, place) = self.member(name, Role::Worker);
        (credentials, listen(HERE, 0, &place, Relay::default()).unwrap())
    }

    fn coordinator(&self) -> Running {
        let place = self.directory.path().join("cluster");
        std::fs::create_dir_all(place.join(JOBS)).unwrap();
        self.authority.save(&place.join("authority")).unwrap();
        let settings = Settings {
            cluster: "test".parse().unwrap(),
            authority: Authority::open(&place.join("authority")).unwrap(),
            directory: place.clone(),
            life: Duration::from_mins(10),
            limits: Limits::USUAL,
            standing: None,
            home: String::new(),
        };
        let store = Embedded::open(&place.join("store")).unwrap();
        let port = TcpListener::bind((HERE, 0)).unwrap();
        crate::serve(settings, port, Box::new(store), Box::new(Nothing)).unwrap()
    }
}

/// No job is applied here.
struct Nothing;

impl Launchers for Nothing {
    fn launch(&mut self, _: Launch) -> Result<Ended, String> {
        Err("nothing is launched here".to_owned())
    }
}

fn neighbour(name: &str, listening: &Listening) -> Neighbour {
    Neighbour { name: name.to_owned(), address: Some(HERE), probe_port: Some(listening.port) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rigs_measure_each_other_and_say_whether_the_way_back_is_open() {
    let cluster = Cluster::new();
    let ((a, a_port), (_b, b_port)) = (cluster.rig("a"), cluster.rig("b"));
    let b = neighbour("b", &b_port);
    let met = meet(&b, &a, Some((HERE, a_port.port))).await.unwrap();
    assert_eq!(met.back, Some(Back::Reached));
    assert!(
        met.seconds > 0.0
            && (1..=BYTES_MAX).contains(&met.up.bytes)
            && (1..=BYTES_MAX).contains(&met.down.bytes)
    );
    // Where somebody else listens, or nobody.
    let met = meet(&b, &a, Some((HERE, b_port.port))).await.unwrap();
    assert_eq!(met.back, Some(Back::Stranger));
    let closed = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
    assert_eq!(meet(&b, &a, Some((HERE, closed))).await.unwrap().back, Some(Back::Refused));
    // Another rig than the one that is meant, and one without a port.
    let why = meet(&neighbour("c", &b_port), &a, None).await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
    let silent = Neighbour { probe_port: None, ..b };
    assert!(meet(&silent, &a, None).await.unwrap_err().contains("no probe port"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rig_finds_out_which_of_many_it_reaches() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (_, place) = cluster.member("a", Role::Worker);
    let rigs: Vec<(String, Listening)> =
        (0..20).map(|n| format!("r{n}")).map(|name| (name.clone(), cluster.rig(&name).1)).collect();
    let mut neighbours: Vec<Neighbour> =
        rigs.iter().map(|(name, port)| neighbour(name, port)).collect();
    // Somebody else answers, nobody does, somebody of another cluster does, and one cannot be tried at all.
    let (_, stranger) = other.rig("s");
    let closed = TcpListener::bind((HERE, 0)).unwrap().local_addr().unwrap().port();
    neighbours.push(neighbour("x", &rigs[0].1));
    neighbours.push(Neighbour { probe_port: Some(closed), ..neighbour("y", &rigs[0].1) });
    neighbours.push(neighbour("s", &stranger));
    neighbours.push(Neighbour { address: None, ..neighbour("z", &rigs[0].1) });
    let trials = try_all(neighbours, &place).await;
    let (reached, not): (Vec<_>, Vec<_>) = trials.into_iter().partition(|trial| trial.reached);
    let mut not: Vec<_> = not.into_iter().map(|trial| trial.rig).collect();
    not.sort();
    assert_eq!((reached.len(), not.join(" ")), (20, "s x y z".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_port_is_for_rigs_of_the_same_cluster_alone() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let (_a, port) = cluster.rig("a");
    let a = neighbour("a", &port);
    for role in [Role::Admin, Role::Viewer, Role::Coordinator] {
        let (credentials, _) = cluster.member("x", role);
        assert!(meet(&a, &credentials, None).await.is_err(), "{role}");
    }
    let (stranger, _) = other.member("a", Role::Worker);
    assert!(meet(&a, &stranger, None).await.is_err());
    // Without TLS nothing is said, and the connection ends.
    let place = (HERE, port.port);
    let ended = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(place).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&[super::wire::ECHO; 64]).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        said.len()
    });
    // An alert of TLS at most.
    assert!(ended.await.unwrap() < 16);
    assert!(meet(&a, &cluster.member("b", Role::Worker).0, None).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_rig_is_probed_once_at_a_time_and_within_bounds() {
    let cluster = Cluster::new();
    let running = cluster.coordinator();
    let address = running.address.to_string();
    let (rig, _) = cluster.member("a", Role::Worker);
    let client = Client::connect(&address, &rig).await.unwrap();
    let (first, second) = tokio::join!(client.probe_up(), client.probe_down());
    let refused = [&first, &second].into_iter().filter_map(|rate| rate.as_ref().err());
    let refused: Vec<String> = refused.map(ToString::to_string).collect();
    assert!(refused.len() == 1 && refused[0].contains("one at a time"), "{refused:?}");
    let up = client.probe_up().await.unwrap();
    assert!((1..=BYTES_MAX + (128 << 10)).contains(&up.bytes), "{up:?}");
    let down = client.probe_down().await.unwrap();
    assert!((1..=BYTES_MAX).contains(&down.bytes), "{down:?}");
    let (viewer, _) = cluster.member("v", Role::Viewer);
    let viewer = Client::connect(&address, &viewer).await.unwrap();
    for refused in [viewer.probe_up().await.err(), viewer.neighbours().await.err()] {
        assert!(refused.unwrap().to_string().contains("is not for a viewer"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_objects_and_refuses_in_the_same_words() {
    let cluster = Cluster::new();
    let running = cluster.coordinator();
    let (rig, _) = cluster.member("a", Role::Worker);
    let client = Client::connect(&running.address.to_string(), &rig).await.unwrap();
    let since = now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let right_ms = since.as_millis() as u64;
    let look = |words, unix_ms| Look { words, version: "9.9".to_owned(), unix_ms };
    let (seen, _) = client.look(&look(VERSION, right_ms)).await.unwrap();
    assert!(seen.objections.is_empty() && seen.address == HERE, "{seen:?}");
    for (words, unix_ms, word) in
        [(VERSION + 1, right_ms, "install the same shoal"), (VERSION, right_ms + 900_000, "by NTP")]
    {
        let (seen, _) = client.look(&look(words, unix_ms)).await.unwrap();
        let [objection] = seen.objections.as_slice() else { panic!("want one: {seen:?}") };
        assert!(objection.contains(word), "{objection}");
        let facts = Facts { version: "9.9".to_owned(), ..Facts::default() };
        let hello =
            FromRig::Hello { version: words, facts, running: Vec::new(), unix_ms: Some(unix_ms) };
        let refused = client.attend(hello).await.unwrap().next().await.unwrap_err().to_string();
        // Seconds may have passed in between.
        let head = objection.split(" is ").next().unwrap();
        assert!(refused.contains(word) && refused.contains(head), "{refused}");
    }
    let neighbours = client.neighbours().await.unwrap();
    assert!(neighbours.is_empty(), "{neighbours:?}");
}
