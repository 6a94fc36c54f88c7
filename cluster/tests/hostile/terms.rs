//! Coordinators that were active once: nobody who has seen the next one believes them.

use std::time::Duration;

use shoal_cluster::election::{Holder, Stand};
use shoal_cluster::store::remote::Standing;
use shoal_cluster::words::{Answer, Ask};
use shoal_cluster::{Client, ClientError};
use shoal_trust::Role;
use tokio::sync::watch;

use super::Served;

fn standing(stand: Stand) -> (watch::Sender<Standing>, watch::Receiver<Standing>) {
    watch::channel(Standing { stand, coordinators: vec!["a:1".to_owned(), "b:2".to_owned()] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_of_a_term_that_is_over_is_not_believed() {
    let (tell, heard) = standing(Stand::Active { term: 5, until: Duration::MAX });
    let served = Served::standing(Some(heard));
    let (address, rig) = (served.address().to_string(), served.member("rig", Role::Worker));
    let client = Client::connect_after(&address, &rig, 5).await.unwrap();
    assert_eq!((client.term(), client.coordinators().len()), (5, 2));
    let refused = Client::connect_after(&address, &rig, 6).await.unwrap_err();
    assert!(matches!(refused, ClientError::Unreachable { .. }), "another may be reached");
    assert!(refused.to_string().contains("term 6 has begun"), "{refused}");
    // It answers in a lower term than it said: nothing of that counts.
    let admin = served.client("admin", Role::Admin).await;
    assert!(matches!(admin.ask(&Ask::Overview).await.unwrap(), Answer::Overview(_)));
    tell.send_modify(|now| now.stand = Stand::Active { term: 4, until: Duration::MAX });
    let refused = admin.ask(&Ask::Overview).await.unwrap_err().to_string();
    assert!(refused.contains("in a term that is over"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_stands_by_says_who_is_active_and_one_without_a_lease_decides_nothing() {
    let holder = Holder { address: "127.0.0.1:1".to_owned(), term: 7, lease: 1 };
    let (tell, heard) = standing(Stand::Standby { active: Some(holder) });
    let served = Served::standing(Some(heard));
    let (address, admin) = (served.address().to_string(), served.member("admin", Role::Admin));
    let refused = Client::connect(&address, &admin).await.unwrap_err();
    assert!(matches!(refused, ClientError::Unreachable { .. }), "{refused}");
    tell.send_modify(|now| now.stand = Stand::Active { term: 8, until: Duration::ZERO });
    let client = Client::connect(&address, &admin).await.unwrap();
    assert!(matches!(client.ask(&Ask::Overview).await.unwrap(), Answer::Overview(_)), "it shows");
    let name = "admin".parse().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let refused = client.renew(&name, directory.path()).await.unwrap_err().to_string();
    assert!(refused.contains("decides nothing now"), "{refused}");
}
