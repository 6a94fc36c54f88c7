//! The door: who gets in, what they may do, and what strangers cost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harbour::{Harbour, wait};

#[test]
fn a_token_lets_in_as_often_as_it_says_and_refusals_all_sound_the_same() {
    let harbour = Harbour::new("tokens");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&[]);
    let _a = harbour.rig("a", Some(&token));
    let refused = |name: &str, token: &std::path::Path| {
        let (state, address) = (harbour.path.join(name).display().to_string(), harbour.address());
        let token = token.display().to_string();
        let args = [
            "worker",
            "--state",
            &state,
            "--join",
            &address,
            "--name",
            name,
            "--token-file",
            &token,
        ];
        let (code, _, err) = harbour.run(&args);
        (code, err.lines().last().unwrap_or_default().to_owned())
    };
    let (code, used_up) = refused("b", &token);
    assert_eq!(code, Some(4), "{used_up}");
    assert!(used_up.contains("the token was refused"), "{used_up}");
    // Another secret behind the same id; and one that was revoked.
    let text = std::fs::read_to_string(&token).unwrap();
    let (head, secret) = text.trim().rsplit_once('.').unwrap();
    let wrong = harbour.path.join("wrong");
    std::fs::write(&wrong, format!("{head}.{}", "0".repeat(secret.len()))).unwrap();
    assert_eq!(refused("b", &wrong), (code, used_up.clone()));
    let revoked = harbour.token(&[]);
    let id = std::fs::read_to_string(&revoked).unwrap().split('.').nth(2).unwrap().to_owned();
    harbour.ok(&["token", "revoke", &id]);
    assert_eq!(refused("b", &revoked), (code, used_up));
    // Half a token is seen here, and nothing of it goes anywhere.
    std::fs::write(&wrong, &text[..text.len() / 2]).unwrap();
    let (code, err) = refused("b", &wrong);
    assert_eq!(code, Some(2), "{err}");
    assert!(!err.contains(secret), "{err}");
    // A name that is taken, and one that is none.
    let token = harbour.token(&["--uses", "3"]);
    let (state, address, file) = (
        harbour.path.join("other").display().to_string(),
        harbour.address(),
        token.display().to_string(),
    );
    let args = ["worker", "--state", &state, "--join", &address, "--token-file", &file, "--name"];
    let (code, _, err) = harbour.run(&[&args[..], &["a"]].concat());
    assert!(code == Some(4) && err.contains("`shoal expel a`"), "{err}");
    let (code, _, err) = harbour.run(&[&args[..], &["../a"]].concat());
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn a_viewer_looks_a_worker_does_neither_and_who_was_expelled_is_out() {
    let harbour = Harbour::new("roles");
    let _coordinator = harbour.coordinator();
    let file = harbour.token(&["--role", "viewer"]).display().to_string();
    let (address, home) = (harbour.address(), harbour.path.join("viewer").display().to_string());
    harbour.ok(&["login", &address, "--token-file", &file, "--name", "eve", "--cluster", &home]);
    harbour.ok(&["ps", "--cluster", &home]);
    harbour.manifest("small", 5);
    for args in [
        &["apply", "small.yaml", "--cluster", &home][..],
        &["token", "create", "--cluster", &home],
        &["cordon", "a", "--cluster", &home],
    ] {
        let (code, _, err) = harbour.run(args);
        assert!(code == Some(4) && err.contains("not for a viewer"), "{args:?}: {err}");
    }
    let token = harbour.token(&[]);
    let mut rig = harbour.rig("a", Some(&token));
    // A rig's certificate in the hands of a person asks for nothing.
    let stolen = harbour.path.join("a/certificate");
    std::fs::write(stolen.join("address"), &address).unwrap();
    let (code, _, err) = harbour.run(&["ps", "--cluster", &stolen.display().to_string()]);
    assert!(code == Some(4) && err.contains("is not for a worker (a)"), "{err}");
    let (code, _, err) = harbour.run(&["expel", "a"]);
    assert!(code == Some(2) && err.contains("--yes"), "{err}");
    harbour.ok(&["expel", "a", "--yes"]);
    wait("the rig to end", || !rig.is_alive());
    assert!(harbour.logs_of_rig("a").contains("was expelled"), "{}", harbour.logs_of_rig("a"));
    // And stays out.
    let mut again = harbour.rig_that_comes("a", None);
    wait("the rig to be refused", || !again.is_alive());
    let log = harbour.logs_of_rig("a");
    assert!(log.contains("joins anew with a token"), "{log}");
    assert!(harbour.overview()["rigs"].as_array().unwrap().is_empty());
}

/// Two hundred of each kind, and a rig that trains all the while.
#[test]
fn strangers_that_stall_are_closed_and_disturb_nobody() {
    let harbour = Harbour::new("strangers");
    let _coordinator = harbour.coordinator();
    let token = harbour.token(&[]);
    let _rig = harbour.rig("a", Some(&token));
    harbour.apply("small", 100_000, &[]);
    harbour.wait_for_step("small", 3);
    let address = harbour.address();
    let before = harbour.step("small");
    // The first bytes of TLS, and then silence; noise; nothing at all; half a preface of HTTP/2 without TLS.
    let openings: [&[u8]; 4] =
        [b"\x16\x03\x01\x02\x00\x01\x00", b"\x00\xff\x00\xffwhat", b"", b"PRI * HTTP/2.0\r\n"];
    let mut strangers = Vec::new();
    for opening in openings {
        for _ in 0..200 {
            // One too many is closed at once, which is what it should be.
            let Ok(mut stream) = TcpStream::connect(&address) else { continue };
            let _ = stream.write_all(opening);
            strangers.push(stream);
        }
    }
    wait("all strangers to be closed", || {
        strangers.retain_mut(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            let mut byte = [0];
            match stream.read(&mut byte) {
                // An alert before the end.
                Ok(1..) => true,
                Ok(0) => false,
                Err(error) => {
                    matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    )
                }
            }
        });
        strangers.is_empty()
    });
    harbour.wait_for_step("small", before + 3);
    let events = harbour.events("small");
    assert!(!events.iter().any(|event| event["kind"] == "evicted"), "{events:#?}");
    harbour.ok(&["ps"]);
}
