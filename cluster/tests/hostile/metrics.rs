//! A rig that is asked for its worker's metrics, and says something else, too much, or nothing.

use shoal_cluster::Attending;
use shoal_cluster::watching::{TEXT_BYTES_MAX, Unwatched};
use shoal_cluster::words::{FromRig, ToRig};

use crate::Served;

/// The number of the next question.
async fn question(attending: &mut Attending) -> u64 {
    loop {
        if let ToRig::Metrics { ask } = attending.next().await.unwrap() {
            return ask;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_rig_says_instead_of_metrics_is_passed_on_to_nobody() {
    let served = Served::new();
    let watch = served.running.watch();
    let nobody = watch.of_rig("bad").await.unwrap_err();
    assert_eq!(nobody, Unwatched::Nobody("bad".to_owned()));
    let (_client, mut attending) = served.rig("bad").await;
    served.serves(&served.honest().await).await;
    let long = format!("a 1\n{}\n", "#".repeat(TEXT_BYTES_MAX));
    for (said, wanted) in [
        (Ok("# TYPE a counter\na{b=\"c\"} 1\n".to_owned()), Ok(())),
        (Ok("a 1 1700000000000\n".to_owned()), Err("line 1: something behind the value")),
        (Ok("<script>\n".to_owned()), Err("what it says is no metric")),
        (Ok("a 1\n\u{1b}[2J\n".to_owned()), Err("line 2: a control character")),
        (Ok(long), Err("are taken")),
        (Err("no worker\u{1b}[2J runs here".to_owned()), Err("rig bad: no worker[2J runs here")),
    ] {
        // Two who ask: the second is told the answer to the first one's question, or asks its own,
        // as it comes. Only the answer to what was asked counts.
        let both = async { tokio::join!(watch.of_rig("bad"), watch.of_rig("bad")) };
        tokio::pin!(both);
        let (got, also) = loop {
            let ask = tokio::select! {
                both = &mut both => break both,
                ask = question(&mut attending) => ask,
            };
            for ask in [ask + 1, ask.wrapping_sub(1)] {
                let word = FromRig::Metrics { ask, text: Ok("forged 1\n".to_owned()) };
                attending.outbox.send(word).await.unwrap();
            }
            attending.outbox.send(FromRig::Metrics { ask, text: said.clone() }).await.unwrap();
        };
        assert_eq!(got, also);
        match (got, wanted) {
            (Ok(text), Ok(())) => assert_eq!(Ok(text), said),
            (Err(error), Err(wanted)) => {
                let error = error.to_string();
                assert!(error.contains(wanted) && !error.contains('\u{1b}'), "{error}");
            }
            (got, wanted) => panic!("{got:?}, and not {wanted:?}"),
        }
    }
    // One that goes in the midst of it, and one that says nothing.
    let asking = tokio::spawn({
        let watch = watch.clone();
        async move { watch.of_rig("bad").await }
    });
    question(&mut attending).await;
    drop(attending);
    let gone = asking.await.unwrap().unwrap_err();
    assert!(matches!(gone, Unwatched::Silent { .. }), "{gone}");
    let silent = watch.of_rig("honest").await.unwrap_err().to_string();
    assert!(silent.contains("no answer within 3 s"), "{silent}");
}
