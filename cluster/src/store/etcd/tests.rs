//! Against a real etcd, whose address `SHOAL_TEST_ETCD` says (`.ci/etcd` starts one). Each test has a prefix of its own.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use etcd_client::{Client, GetOptions};
use tokio::runtime::Runtime;

use super::staged::on_stage;
use super::*;
use crate::store::seal::sealed;

/// Takes a test as long as it takes; one that hangs is a failure.
const PATIENCE: Duration = Duration::from_mins(1);

static COUNT: AtomicU32 = AtomicU32::new(0);

fn endpoints() -> String {
    std::env::var("SHOAL_TEST_ETCD")
        .expect("SHOAL_TEST_ETCD=HOST:PORT,... of an etcd: see .ci/etcd")
}

pub(crate) fn remote() -> Remote {
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let prefix = format!("try-{}-{}-{number}", std::process::id(), clock::unix_ms());
    format!("etcd://{}/{prefix}", endpoints()).parse().unwrap()
}

fn candidate(directory: &Path, address: &str) -> Candidate {
    let cluster = ("shoal".to_owned(), "p1n".to_owned());
    Candidate { address: address.to_owned(), cluster, directory: directory.to_path_buf() }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Waits until it stands so.
#[track_caller]
fn until(candidacy: &mut Candidacy, wanted: impl FnMut(&Standing) -> bool) -> Standing {
    let waiting =
        async { tokio::time::timeout(PATIENCE, candidacy.standing.wait_for(wanted)).await };
    runtime().block_on(waiting).expect("it never stood so").expect("its thread lives").clone()
}

fn is_active(standing: &Standing) -> bool {
    matches!(standing.stand, Stand::Active { .. })
}

pub(crate) fn active(remote: &Remote, directory: &Path) -> Candidacy {
    let mut opened = open(remote, candidate(directory, "a:1")).unwrap();
    until(&mut opened, is_active);
    opened
}

/// As somebody else who has access.
fn raw<T, Did: Future<Output = Result<T, etcd_client::Error>>>(
    did: impl FnOnce(Client) -> Did,
) -> T {
    runtime().block_on(async {
        let nodes: Vec<String> = endpoints().split(',').map(str::to_owned).collect();
        did(Client::connect(nodes, None).await.unwrap()).await.unwrap()
    })
}

fn put(key: &str, value: &[u8]) -> Change {
    (key.to_owned(), Some(value.to_vec()))
}

#[test]
fn a_batch_that_etcd_takes_not_at_once_is_there_whole() {
    let (remote, directory) = (remote(), tempfile::tempdir().unwrap());
    let mut opened = active(&remote, directory.path());
    let mut many: Vec<Change> = (0..300).map(|n| put(&format!("rig/{n:03}"), b"x")).collect();
    many.push(put("job/large", &vec![7; 900_000]));
    many.push(put("job/larger", &vec![8; 900_000]));
    opened.store.write(&many).unwrap();
    opened.store.write(&[("rig/000".to_owned(), None), put("rig/001", b"y")]).unwrap();
    let found = opened.store.load().unwrap();
    assert_eq!(found.len(), 301);
    assert_eq!(found[0], ("job/large".to_owned(), vec![7; 900_000]));
    assert_eq!(found[2], ("rig/001".to_owned(), b"y".to_vec()));
    let left = raw(|mut client| async move {
        let (stage, options) =
            (format!("{}/stage/", remote.prefix), GetOptions::new().with_prefix());
        client.get(stage, Some(options)).await
    });
    assert_eq!(left.count(), 0, "the stage is cleared");
    let large = opened.store.write(&[put("job/x", &vec![0; 2 << 20])]).unwrap_err().to_string();
    assert!(
        large.contains("the record job/x has 2097152 bytes, and etcd takes at most"),
        "{large}"
    );
}

#[test]
fn what_was_promised_is_finished_by_the_next_and_what_was_only_staged_is_not() {
    let (remote, directory) = (remote(), tempfile::tempdir().unwrap());
    let stage = |remote: &Remote, number: u32, change: &Change| {
        let key = format!("{}/stage/{number:08}", remote.prefix);
        let value = sealed(&key, &on_stage(change));
        raw(|mut client| async move { client.put(key, value, None).await });
    };
    let mut opened = active(&remote, directory.path());
    opened.store.write(&[put("rig/a", b"1"), put("rig/b", b"1")]).unwrap();
    stage(&remote, 0, &put("rig/a", b"2"));
    drop(opened);
    let mut opened = active(&remote, directory.path());
    assert_eq!(opened.store.load().unwrap()[0].1, b"1", "nobody has promised it");
    stage(&remote, 1, &("rig/b".to_owned(), None));
    let promise = format!("{}/promise", remote.prefix);
    let at = promise.clone();
    raw(|mut client| async move { client.put(at, "2", None).await });
    drop(opened);
    let mut opened = active(&remote, directory.path());
    let want = [("rig/a".to_owned(), b"2".to_vec())];
    assert_eq!(opened.store.load().unwrap(), want);
    assert_eq!(raw(|mut client| async move { client.get(promise, None).await }).count(), 0);
}

#[test]
fn who_is_deposed_writes_nothing_and_the_standby_takes_over() {
    let (remote, directory) = (remote(), tempfile::tempdir().unwrap());
    let mut first = active(&remote, directory.path());
    let other = tempfile::tempdir().unwrap();
    let mut second = open(&remote, candidate(other.path(), "b:2")).unwrap();
    let waits = until(&mut second, |standing| standing.coordinators.len() == 2);
    let Stand::Standby { active: Some(holder) } = waits.stand else { panic!("{waits:?}") };
    let term = first.standing.borrow().stand.term();
    assert_eq!((holder.address.as_str(), holder.term), ("a:1", term));
    assert!(second.store.write(&[put("rig/x", b"2")]).is_err(), "a standby decides nothing");
    first.store.write(&[put("rig/x", b"1")]).unwrap();
    // Its lease is over, without that it has heard of it.
    let leader = format!("{}/leader", remote.prefix);
    raw(|mut client| async move { client.delete(leader, None).await });
    let refused = first.store.write(&[put("rig/x", b"3")]).unwrap_err().to_string();
    assert!(refused.contains("not the active one any more"), "{refused}");
    until(&mut first, |standing| matches!(standing.stand, Stand::Deposed { .. }));
    let now = until(&mut second, is_active);
    assert!(now.stand.term() > term);
    assert_eq!(second.store.load().unwrap(), [("rig/x".to_owned(), b"1".to_vec())]);
    second.store.write(&[put("rig/x", b"4")]).unwrap();
}

#[test]
fn an_active_one_that_goes_is_followed_at_once() {
    let (remote, directory) = (remote(), tempfile::tempdir().unwrap());
    let first = active(&remote, directory.path());
    let other = tempfile::tempdir().unwrap();
    let mut second = open(&remote, candidate(other.path(), "b:2")).unwrap();
    until(&mut second, |standing| standing.coordinators.len() == 2);
    drop(first);
    let now = until(&mut second, is_active);
    assert_eq!(now.coordinators, ["b:2"]);
}

#[test]
fn another_cluster_s_data_and_an_etcd_that_went_back_are_refused_with_what_to_do() {
    let (remote, directory) = (remote(), tempfile::tempdir().unwrap());
    drop(active(&remote, directory.path()));
    let other = tempfile::tempdir().unwrap();
    let stranger = Candidate {
        cluster: ("shoal".to_owned(), "another".to_owned()),
        ..candidate(other.path(), "b:2")
    };
    let refused = open(&remote, stranger).map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::Unfit(_)), "{refused:?}");
    let refused = refused.to_string();
    assert!(refused.contains("copy `authority` and `name` from its state directory"), "{refused}");
    let kept = std::fs::read_to_string(directory.path().join("etcd.json")).unwrap();
    let ahead = kept.replace("\"revision\":", "\"revision\":9");
    std::fs::write(directory.path().join("etcd.json"), &ahead).unwrap();
    let refused = open(&remote, candidate(directory.path(), "a:1")).map(drop).unwrap_err();
    assert!(refused.to_string().contains("etcd went back: it is at revision"), "{refused}");
    let mut another: serde_json::Value = serde_json::from_str(&kept).unwrap();
    another["id"] = (another["id"].as_u64().unwrap() ^ 1).into();
    std::fs::write(directory.path().join("etcd.json"), another.to_string()).unwrap();
    let refused = open(&remote, candidate(directory.path(), "a:1")).map(drop).unwrap_err();
    assert!(refused.to_string().contains("this is another etcd (cluster "), "{refused}");
}

#[test]
fn a_record_that_was_damaged_is_named_and_an_etcd_that_is_away_is_told_from_one_that_does_not_fit()
{
    let (remote, directory) = (remote(), tempfile::tempdir().unwrap());
    let mut opened = active(&remote, directory.path());
    opened.store.write(&[put("rig/a", b"1")]).unwrap();
    let key = format!("{}/facts/rig/a", remote.prefix);
    raw(|mut client| async move { client.put(key, vec![0_u8; 40], None).await });
    let damaged = opened.store.load().unwrap_err().to_string();
    assert!(damaged.contains("the record rig/a is damaged: it does not fit its hash"), "{damaged}");
    // A port of ours that speaks no etcd.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = Remote { endpoints: vec![mute.local_addr().unwrap().to_string()], ..remote };
    let refused = open(&nobody, candidate(directory.path(), "a:1")).map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::Away { .. }), "{refused:?}");
}
