//! `shoal page` from outside: of a run that is over, whose files are all there is.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;

struct Page {
    child: Child,
    link: String,
}

impl Page {
    fn open(run: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        let nowhere = std::env::temp_dir().join("shoal-cli-without-a-home");
        command.args(["page", run]).env("XDG_CONFIG_HOME", nowhere).env_remove("SHOAL_CLUSTER");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut link = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut link).unwrap();
        Self { child, link: link.trim().to_owned() }
    }

    /// Lines of an answer until one begins with this.
    fn until(&self, path: &str, cookie: &str, wanted: &str) -> String {
        let address = self.link.split('/').nth(2).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nCookie: {cookie}\r\n\r\n")
            .unwrap();
        let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
        lines.find(|line| line.starts_with(wanted)).unwrap()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_run_that_is_over_has_a_page_until_ctrl_c() {
    let place = Place::new("page");
    let mut page = Page::open(&top::run(&place));
    let path = page.link[page.link.find("/?").unwrap()..].to_owned();
    let cookie = page.until(&path, "", "set-cookie: ");
    let cookie = cookie["set-cookie: ".len()..].split(';').next().unwrap();
    let told = page.until("/live", cookie, "data: ");
    for wanted in ["nothing trains", "[40,10.2500]", "finished", "u{1b}[2J words"] {
        assert!(told.contains(wanted), "{wanted}: {told}");
    }
    let pid = page.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(page.child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_page_of_nothing_and_of_a_taken_port_say_what_is_wrong() {
    let nowhere = shoal(&["page", "no/such-run"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("is not a run directory"), "{}", text(&nowhere.stderr));
    let place = Place::new("page-port");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = shoal(&["page", &top::run(&place), "--port", &port]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("for the page"), "{}", text(&refused.stderr));
}
