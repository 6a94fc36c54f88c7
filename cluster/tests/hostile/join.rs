//! Somebody between a rig that joins and its coordinator.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use shoal_cluster::{ClientError, join};
use shoal_trust::{Authority, Clients, Credentials, Identity, Request, Role, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::frames::{SETTINGS, frame};

/// Long enough for whoever would say something to have said it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Answers one connection as a coordinator would begin to, and keeps all that is said within TLS.
async fn overhear(listener: TcpListener, config: Arc<rustls::ServerConfig>) -> Vec<u8> {
    let mut heard = Vec::new();
    let (stream, _) = listener.accept().await.unwrap();
    if let Ok(mut stream) = TlsAcceptor::from(config).accept(stream).await
        && stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.is_ok()
    {
        // Ends at the other side's end, or when it has said what it has to say.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
    }
    heard
}

fn coordinator(authority: &Authority) -> Credentials {
    let request = Request::new(&"coordinator".parse().unwrap()).unwrap();
    let identity = Identity { name: "coordinator".parse().unwrap(), role: Role::Coordinator };
    let (life, now) = (Duration::from_hours(1), SystemTime::now());
    let signed = authority.sign(request.pem(), &identity, life, now).unwrap();
    Credentials::new(authority.certificate_pem(), &signed.certificate_pem, request).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_of_another_authority_hears_nothing_from_who_joins() {
    let scratch = tempfile::tempdir().unwrap();
    // Of the same name, as who wants to be taken for it would choose.
    let [real, fake] =
        [(); 2].map(|()| Authority::create(&"tests".parse().unwrap(), SystemTime::now()).unwrap());
    for (pinned, is_fake) in [(&real, true), (&fake, false)] {
        let token = Token::create(pinned.pin()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut config =
            (*coordinator(&fake).server(|_| false, Clients::Optional).unwrap()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let hears = tokio::spawn(overhear(listener, Arc::new(config)));
        let name = "rig".parse().unwrap();
        let error = join(&address, &token, &name, scratch.path()).await.unwrap_err();
        let heard = hears.await.unwrap();
        let is_told = heard.windows(token.secret().len()).any(|bytes| bytes == token.secret());
        if is_fake {
            assert!(matches!(error, ClientError::Stranger { .. }), "{error}");
            assert!(heard.is_empty(), "{} bytes were said", heard.len());
        } else {
            assert!(is_told, "the one that the token pins is told its secret: {error}");
        }
    }
}
