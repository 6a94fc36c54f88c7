//! A rig that joined, and floods with what rigs may do.

use shoal_cluster::words::FromRig;
use shoal_cluster::{Client, ClientError, Limits};
use shoal_trust::Role;
use tokio::task::JoinSet;

use crate::{Served, look};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_has_so_many_connections_and_one_more_is_refused_in_words() {
    let served = Served::new();
    let honest = served.honest().await;
    let bad = served.member("bad", Role::Worker);
    let address = served.address().to_string();
    let mut connections = Vec::new();
    let mut refusals = Vec::new();
    for _ in 0..Limits::USUAL.of_a_member + 20 {
        let client = Client::connect(&address, &bad).await.unwrap();
        match look(&client).await {
            Ok(()) => connections.push(client),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    assert_eq!(connections.len(), Limits::USUAL.of_a_member);
    assert!(
        refusals.iter().all(|why| why.contains("as many connections as one may have")),
        "{refusals:?}"
    );
    served.serves(&honest).await;
    // Who closes some may open others; nothing stays behind.
    connections.clear();
    while look(&Client::connect(&address, &bad).await.unwrap()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rig_that_floods_with_words_and_calls_makes_nobody_wait() {
    let served = Served::new();
    let honest = served.honest().await;
    let (bad, flooding) = served.rig("bad").await;
    let mut floods = JoinSet::new();
    for _ in 0..4 {
        let outbox = flooding.outbox.clone();
        floods.spawn(async move {
            while outbox.send(FromRig::Heartbeat { disk_free_mb: 1 }).await.is_ok() {}
        });
    }
    for _ in 0..200 {
        let bad = bad.clone();
        floods.spawn(async move { while look(&bad).await.is_ok() {} });
    }
    for _ in 0..20 {
        served.serves(&honest).await;
    }
    floods.abort_all();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_expelled_loses_the_connections_it_has() {
    let served = Served::new();
    let (bad, mut attending) = served.rig("bad").await;
    look(&bad).await.unwrap();
    let admin = served.client("admin", Role::Admin).await;
    let expel = shoal_cluster::words::Ask::Expel { rig: "bad".to_owned() };
    admin.ask(&expel).await.unwrap();
    let why = loop {
        if let Err(error) = attending.next().await {
            break error;
        }
    };
    assert!(matches!(why, ClientError::Refused { .. }), "{why}");
    // It does not hang up by itself: the connection is ended from the other side.
    loop {
        match look(&bad).await {
            Err(ClientError::Unreachable { .. }) => break,
            Err(_) => tokio::task::yield_now().await,
            Ok(()) => {}
        }
    }
}
