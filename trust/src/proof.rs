//! Real handshakes, in memory: who gets in, and everybody who does not. Files in `proof/files.rs`.

mod files;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;

use crate::*;

const HOUR: Duration = Duration::from_hours(1);

#[expect(
    clippy::disallowed_methods,
    reason = "rustls holds certificates against the system's clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn who(role: Role, called: &str) -> Identity {
    Identity { name: name(called), role }
}

fn authority() -> Authority {
    Authority::create(&name("reef"), now()).unwrap()
}

fn member_at(ca: &Authority, role: Role, called: &str, at: SystemTime) -> Credentials {
    let request = Request::new(&name("whatever")).unwrap();
    let signed = ca.sign(request.pem(), &who(role, called), 24 * HOUR, at).unwrap();
    let credentials =
        Credentials::new(ca.certificate_pem(), &signed.certificate_pem, request).unwrap();
    assert_eq!(
        (credentials.identity(), credentials.serial()),
        (&who(role, called), &*signed.serial)
    );
    assert_eq!(credentials.not_after(), signed.not_after);
    credentials
}

fn member(ca: &Authority, role: Role, called: &str) -> Credentials {
    member_at(ca, role, called, now())
}

/// Hands over bytes until neither side has any, then says a word each way. What the server knows of
/// the client, or the first error of each.
fn meet(
    client: Arc<ClientConfig>,
    dialed: ServerName<'static>,
    server: Arc<ServerConfig>,
) -> Result<Option<Identity>, (Option<String>, Option<String>)> {
    let mut client = ClientConnection::new(client, dialed).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let (mut of_client, mut of_server) = (None, None);
    while client.wants_write() || server.wants_write() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() && of_server.is_none() {
            server.read_tls(&mut bytes).unwrap();
            of_server = server.process_new_packets().err().map(|error| explain(&error));
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() && of_client.is_none() {
            client.read_tls(&mut bytes).unwrap();
            of_client = client.process_new_packets().err().map(|error| explain(&error));
        }
    }
    if of_client.is_some() || of_server.is_some() {
        return Err((of_client, of_server));
    }
    // No tickets, and words both ways.
    let mut bytes = Vec::new();
    client.writer().write_all(b"hello").unwrap();
    client.write_tls(&mut bytes).unwrap();
    server.read_tls(&mut bytes.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    let mut word = [0; 5];
    server.reader().read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    assert!(!server.wants_write() && client.handshake_kind() == Some(rustls::HandshakeKind::Full));
    Ok(server.peer_certificates().map(|chain| identity_of(&chain[0]).unwrap().0))
}

fn everybody(_: &str) -> bool {
    false
}

fn required(credentials: &Credentials) -> Arc<ServerConfig> {
    credentials.server(everybody, Clients::Required).unwrap()
}

fn dial(
    client: &Credentials,
    to: &Identity,
    server: Arc<ServerConfig>,
) -> Result<Option<Identity>, (Option<String>, Option<String>)> {
    meet(client.client().unwrap(), server_name(to), server)
}

#[track_caller]
fn client_refuses<T: std::fmt::Debug>(
    met: Result<T, (Option<String>, Option<String>)>,
    want: &str,
) {
    let (of_client, _) = met.unwrap_err();
    let of_client = of_client.expect("the client's refusal");
    assert!(of_client.contains(want), "{of_client}");
}

#[track_caller]
fn server_refuses<T: std::fmt::Debug>(
    met: Result<T, (Option<String>, Option<String>)>,
    want: &str,
) {
    let (_, of_server) = met.unwrap_err();
    let of_server = of_server.expect("the server's refusal");
    assert!(of_server.contains(want), "{of_server}");
}

#[test]
fn members_meet_and_know_each_other() {
    let ca = authority();
    let coordinator = who(Role::Coordinator, "head");
    let server = member(&ca, Role::Coordinator, "head");
    for role in Role::ALL {
        let client = member(&ca, role, "Rig_7.a");
        let met = dial(&client, &coordinator, required(&server));
        assert_eq!(met, Ok(Some(who(role, "Rig_7.a"))));
    }
    let (a, b) = (member(&ca, Role::Worker, "a"), member(&ca, Role::Worker, "b"));
    assert_eq!(dial(&a, b.identity(), required(&b)), Ok(Some(who(Role::Worker, "a"))));
    // Who has but an invitation.
    let open = server.server(everybody, Clients::Optional).unwrap();
    let anywhere = ServerName::try_from("192.0.2.7").unwrap();
    assert_eq!(meet(pinned(ca.pin()), anywhere, Arc::clone(&open)), Ok(None));
    // And who shows a certificate all the same.
    assert_eq!(dial(&a, &coordinator, open), Ok(Some(who(Role::Worker, "a"))));
}

#[test]
fn who_is_of_another_authority_or_shows_nothing_is_refused_by_both_sides() {
    let (ca, other) = (authority(), authority());
    let head = who(Role::Coordinator, "head");
    let (ours, theirs) = (member(&ca, head.role, "head"), member(&other, head.role, "head"));
    let worker = member(&ca, Role::Worker, "a");
    client_refuses(dial(&worker, &head, required(&theirs)), "UnknownIssuer");
    // One who believes our server and shows what another authority signed.
    let request = Request::new(&name("a")).unwrap();
    let identity = who(Role::Worker, "a");
    let signed = other.sign(request.pem(), &identity, HOUR, now()).unwrap();
    let chain = vec![certificate::from_pem(&signed.certificate_pem, "it").unwrap()];
    let foreign = Credentials::new(other.certificate_pem(), &signed.certificate_pem, request);
    let key = foreign.unwrap().key_der();
    let ca_der = certificate::from_pem(ca.certificate_pem(), "it").unwrap();
    let client = tls::client(tls::server_verifier(&ca_der).unwrap(), chain, key).unwrap();
    let met = meet(client, server_name(&head), required(&ours));
    server_refuses(met, "UnknownIssuer");
    let nobody = meet(pinned(ca.pin()), server_name(&head), required(&ours));
    server_refuses(nobody, "shows no certificate");
    // Even where one without a certificate may come, a wrong one may not.
    for clients in [Clients::Required, Clients::Optional] {
        let server = ours.server(everybody, clients).unwrap();
        let stranger = member(&other, Role::Worker, "a");
        assert!(dial(&stranger, &head, server).is_err());
    }
}

#[test]
fn a_certificate_is_good_in_its_time_alone() {
    let ca = Authority::create(&name("reef"), now() - 1000 * HOUR).unwrap();
    let head = who(Role::Coordinator, "head");
    let (was, will_be) = (now() - 25 * HOUR, now() + HOUR);
    let server = member(&ca, Role::Coordinator, "head");
    for (at, want) in [(was, "expired"), (will_be, "not valid yet")] {
        let client = member_at(&ca, Role::Worker, "a", at);
        server_refuses(dial(&client, &head, required(&server)), want);
        let server = member_at(&ca, Role::Coordinator, "head", at);
        let client = member(&ca, Role::Worker, "a");
        client_refuses(dial(&client, &head, required(&server)), want);
        client_refuses(meet(pinned(ca.pin()), server_name(&head), required(&server)), want);
    }
    // A clock that is four minutes behind the authority's still finds it good.
    let client = member_at(&ca, Role::Worker, "a", now() + 4 * HOUR / 60);
    dial(&client, &head, required(&server)).unwrap();
    let fresh = member_at(&ca, Role::Worker, "a", now());
    assert!(!fresh.is_due(now() + 15 * HOUR) && fresh.is_due(now() + 16 * HOUR));
}

#[test]
fn a_denied_serial_is_refused_at_its_next_connection() {
    let ca = authority();
    let head = who(Role::Coordinator, "head");
    let server = member(&ca, Role::Coordinator, "head");
    let (lost, kept) = (member(&ca, Role::Worker, "a"), member(&ca, Role::Worker, "a"));
    let serial = lost.serial().to_owned();
    let config = server.server(move |asked| asked == serial, Clients::Optional).unwrap();
    server_refuses(dial(&lost, &head, Arc::clone(&config)), "Revoked");
    dial(&kept, &head, config).unwrap();
}

#[test]
fn nobody_serves_in_a_name_or_role_that_is_not_theirs() {
    let ca = authority();
    let head = who(Role::Coordinator, "head");
    let client = member(&ca, Role::Admin, "ann");
    // A worker as coordinator, or as another worker; a coordinator as a worker.
    let worker = member(&ca, Role::Worker, "a");
    client_refuses(dial(&client, &head, required(&worker)), "want one for ");
    client_refuses(dial(&client, &who(Role::Worker, "b"), required(&worker)), "want one for ");
    let coordinator = member(&ca, Role::Coordinator, "head");
    let a = who(Role::Worker, "a");
    client_refuses(dial(&client, &a, required(&coordinator)), "want one for ");
    client_refuses(meet(pinned(ca.pin()), server_name(&head), required(&worker)), "want one for ");
    // A client's certificate serves nobody: not by our own door, and not past it.
    for role in [Role::Admin, Role::Viewer] {
        let client_only = member(&ca, role, "ann");
        let error = client_only.server(everybody, Clients::Required).unwrap_err().to_string();
        assert!(
            error.contains(&format!("for a client ({role}): want one for a server")),
            "{error}"
        );
        let ca_der = certificate::from_pem(ca.certificate_pem(), "it").unwrap();
        let chain = client_only.chain();
        let verifier = tls::client_verifier(&ca_der, Box::new(everybody), Clients::Optional);
        let server = tls::server(chain, client_only.key_der(), verifier.unwrap()).unwrap();
        let dialed = server_name(client_only.identity());
        let met = meet(client.client().unwrap(), dialed, Arc::clone(&server));
        assert!(met.unwrap_err().0.is_some());
        let met = meet(pinned(ca.pin()), server_name(&head), server);
        assert!(met.unwrap_err().0.is_some());
    }
}

/// Signed by our authority, but as it never would.
fn odd(ca: &Authority, purpose: ExtendedKeyUsagePurpose, names: &[SanType]) -> Odd {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.extended_key_usages = vec![purpose];
    let certificate = params.signed_by(&key, ca.issuer_for_tests()).unwrap();
    let ca_der = certificate::from_pem(ca.certificate_pem(), "it").unwrap();
    (vec![certificate.der().clone(), ca_der], key.serialize_der())
}

type Odd = (Vec<rustls_pki_types::CertificateDer<'static>>, Vec<u8>);

#[test]
fn a_certificate_that_says_anything_else_than_one_identity_is_refused() {
    let ca = authority();
    let ca_der = certificate::from_pem(ca.certificate_pem(), "it").unwrap();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let (server, client) =
        (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    let head = who(Role::Coordinator, "head");
    let a = member(&ca, Role::Worker, "a");
    let serve = |(chain, key): Odd| {
        let verifier = tls::client_verifier(&ca_der, Box::new(everybody), Clients::Optional);
        tls::server(chain, key.try_into().unwrap(), verifier.unwrap()).unwrap()
    };
    let coordinator = [uri("shoal://coordinator/head"), dns(SERVER_NAME)];
    let met = dial(&a, &head, serve(odd(&ca, server.clone(), &coordinator)));
    assert_eq!(met, Ok(Some(who(Role::Worker, "a"))), "as it should be");
    // Good for clients alone, though its names are a coordinator's.
    let met = dial(&a, &head, serve(odd(&ca, client.clone(), &coordinator)));
    client_refuses(met, "does not allow extended key usage for server");
    // The name in DNS is not the identity's.
    let worker = [uri("shoal://worker/a"), dns(SERVER_NAME)];
    for config in [a.client().unwrap(), pinned(ca.pin())] {
        let served = serve(odd(&ca, server.clone(), &worker));
        client_refuses(meet(config, server_name(&head), served), "want one for ");
    }
    let served = required(&member(&ca, Role::Coordinator, "head"));
    let call = |(chain, key): Odd| {
        let verifier = tls::server_verifier(&ca_der).unwrap();
        let client = tls::client(verifier, chain, key.try_into().unwrap()).unwrap();
        meet(client, server_name(&head), Arc::clone(&served))
    };
    let admin = uri("shoal://admin/ann");
    call(odd(&ca, client.clone(), std::slice::from_ref(&admin))).unwrap();
    server_refuses(
        call(odd(&ca, server, std::slice::from_ref(&admin))),
        "extended key usage for client",
    );
    for (names, want) in [
        (vec![], "it has 0 URIs"),
        (vec![dns("ann")], "it has 0 URIs"),
        (vec![admin.clone(), uri("shoal://viewer/ann")], "it has 2 URIs"),
        (vec![uri("shoal://king/ann")], "is no role"),
        (vec![uri("shoal://admin/..")], "is no name"),
        (vec![uri("https://admin/ann")], "it has \"https://admin/ann\""),
    ] {
        server_refuses(call(odd(&ca, client.clone(), &names)), want);
    }
}

#[test]
fn a_pin_is_held_against_the_ca_and_not_against_what_else_is_sent() {
    let (ca, other) = (authority(), authority());
    let head = who(Role::Coordinator, "head");
    let theirs = member(&other, Role::Coordinator, "head");
    let config = required(&theirs);
    client_refuses(meet(pinned(ca.pin()), server_name(&head), config), "UnknownIssuer");
    // The right CA's certificate is public: sending it along proves nothing.
    let ca_der = certificate::from_pem(ca.certificate_pem(), "it").unwrap();
    let mut chain = theirs.chain();
    chain.push(ca_der.clone());
    let verifier = tls::client_verifier(&ca_der, Box::new(everybody), Clients::Optional).unwrap();
    let server = tls::server(chain, theirs.key_der(), verifier).unwrap();
    client_refuses(meet(pinned(ca.pin()), server_name(&head), server), "UnknownIssuer");
}

#[test]
fn the_authority_signs_a_key_and_nothing_else_that_is_asked_for() {
    let ca = authority();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI("shoal://admin/root".try_into().unwrap()),
        SanType::DnsName(SERVER_NAME.try_into().unwrap()),
    ];
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let viewer = who(Role::Viewer, "v");
    let signed = ca.sign(&request, &viewer, HOUR, now()).unwrap();
    let got = certificate::from_pem(&signed.certificate_pem, "it").unwrap();
    assert_eq!(identity_of(&got).unwrap(), (viewer.clone(), signed.serial, signed.not_after));
    let ca_der = certificate::from_pem(ca.certificate_pem(), "it").unwrap();
    assert!(certificate::is_signed_by(&got, &ca_der).unwrap());
    let text = format!("{:?}", x509_parser::parse_x509_certificate(&got).unwrap().1);
    assert!(!text.contains(SERVER_NAME) && !text.contains("root"), "{text}");
    // It must prove that it has the key, which must be of our kind, and the text must be whole.
    let mut bytes = rustls_pki_types::CertificateSigningRequestDer::from(
        params.serialize_request(&key).unwrap(),
    )
    .to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let forged = rcgen::CertificateSigningRequestParams::from_der(&bytes.into());
    assert_eq!(forged.err(), Some(rcgen::Error::InvalidCertificationRequestSignature));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default().serialize_request(&p384).unwrap().pem().unwrap();
    let cut = &request[..request.len() / 2];
    let garbled = request.replace('A', "!");
    for (request, want) in [
        ("", "refused"),
        (cut, "refused"),
        (&garbled, "refused"),
        (&p384, "its key is not ECDSA P-256"),
        (&"x".repeat(1 << 20), "it has 1048576 bytes, at most 8192"),
    ] {
        let error = ca.sign(request, &viewer, HOUR, now()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn nothing_outlives_the_authority() {
    let ca = Authority::create(&name("reef"), now() - 87_000 * HOUR).unwrap();
    let request = Request::new(&name("a")).unwrap();
    let worker = who(Role::Worker, "a");
    let signed = ca.sign(request.pem(), &worker, 9000 * HOUR, now()).unwrap();
    assert!(signed.not_after < now() + 8000 * HOUR);
    let late = ca.sign(request.pem(), &worker, HOUR, now() + 8000 * HOUR);
    assert!(matches!(late, Err(TrustError::Expired { .. })), "{late:?}");
    let early = ca.sign(request.pem(), &worker, HOUR, now() - 90_000 * HOUR);
    assert!(matches!(early, Err(TrustError::Expired { .. })), "{early:?}");
}
