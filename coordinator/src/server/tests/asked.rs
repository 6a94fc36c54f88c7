//! Questions from another terminal: who is answered, who is refused, and what a restart makes of an order.

use shoal_proto::wire::QUESTION_BYTES_MAX;
use shoal_proto::wire::raw::control_client::ControlClient;

use super::*;
use crate::asking::{AskError, ask};
use crate::control::{Answer, Ask, Order, RunPhase};

async fn status(running: &Run, secret: &Secret) -> crate::control::Status {
    let answer = ask(running.address, secret, &Ask::Status).await.unwrap();
    let Answer::Status(status) = answer else { panic!("want a status: {answer:?}") };
    *status
}

/// Raw words over a connection of their own.
async fn raw_question(running: &Run, secret: &Secret, ask_json: String) -> Status {
    let mut client = ControlClient::connect(format!("http://{}", running.address)).await.unwrap();
    let mut request = Request::new(raw::Question { ask_json });
    request.metadata_mut().insert(SECRET_KEY, secret.to_hex().parse().unwrap());
    client.ask(request).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn whoever_knows_the_secret_is_told_how_the_run_is_and_nobody_else() {
    let dir = TestDir::new("asked");
    let (running, secret) = started(&dir);
    let before = status(&running, &secret).await;
    assert_eq!((before.phase, before.workers.len()), (RunPhase::Connecting, 2));
    assert_eq!(before.why.unwrap(), "0 of 2 workers have joined");
    let wrong = Secret::random().unwrap();
    let refused = ask(running.address, &wrong, &Ask::Status).await.unwrap_err();
    assert!(matches!(refused, AskError::Secret { .. }), "{refused}");
    counted(&running, "shoal_auth_failures_total{reason=\"wrong\"} 1").await;
}

#[tokio::test]
async fn a_question_that_is_none_or_too_long_is_refused_and_harms_nobody() {
    let dir = TestDir::new("asked-nonsense");
    let (running, secret) = started(&dir);
    let unknown = raw_question(&running, &secret, "{\"dance\":1}".to_owned()).await;
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("an unknown question: unknown variant `dance`"));
    let long = raw_question(&running, &secret, " ".repeat(QUESTION_BYTES_MAX + 1)).await;
    assert_eq!(long.code(), Code::OutOfRange, "{long}");
    assert_eq!(status(&running, &secret).await.phase, RunPhase::Connecting);
}

#[tokio::test]
async fn a_hundred_questions_at_once_are_answered_or_told_to_come_again() {
    let dir = TestDir::new("asked-many");
    let (running, secret) = started(&dir);
    let (address, mut asking) = (running.address, tokio::task::JoinSet::new());
    for _ in 0..100 {
        let secret = secret.clone();
        asking.spawn(async move { ask(address, &secret, &Ask::Status).await });
    }
    let mut answered = 0;
    while let Some(answer) = asking.join_next().await {
        match answer.unwrap() {
            Ok(_) => answered += 1,
            Err(AskError::Silent { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(answered >= 8, "{answered}");
}

#[tokio::test]
async fn an_order_that_was_answered_is_known_to_the_next_coordinator() {
    let dir = TestDir::new("asked-restart");
    let (mut running, secret) = started(&dir);
    let mut workers =
        [Worker::join(&running, &secret, 0).await, Worker::join(&running, &secret, 1).await];
    for worker in &mut workers {
        let ToWorker::Assign(assign) = worker.next().await.unwrap() else { panic!("want a plan") };
        worker.say(FromWorker::Ready { generation: assign.plan.generation });
    }
    for worker in &mut workers {
        assert!(matches!(worker.next().await.unwrap(), ToWorker::Start { .. }));
    }
    let drain = Ask::Order(Order::Drain { worker: WorkerId(1), force: false });
    let accepted = ask(running.address, &secret, &drain).await.unwrap();
    let want = "worker-1 hands over its cells and leaves at the end of a step";
    assert_eq!(accepted, Answer::Accepted(want.to_owned()));
    running.restart().await;
    let again = ask(running.address, &secret, &drain).await.unwrap();
    let want = "worker-1 was asked to go before; it leaves at the end of a step";
    assert_eq!(again, Answer::Accepted(want.to_owned()));
    let other = Ask::Order(Order::Drain { worker: WorkerId(0), force: false });
    let refused = ask(running.address, &secret, &other).await.unwrap();
    assert!(matches!(&refused, Answer::Refused(why) if why.contains("nobody but worker-0")));
}

#[tokio::test]
async fn where_nobody_listens_that_is_the_answer() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let secret = Secret::random().unwrap();
    let nobody = ask(address, &secret, &Ask::Status).await.unwrap_err();
    assert!(matches!(nobody, AskError::Nobody { .. }), "{nobody}");
}
