//! The page as a browser and as a stranger meet it, over real sockets, looking at runs that are made up.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use super::*;
use crate::look::{Look, Run};

const FAST: Pace = Pace { every: Duration::from_millis(20), idle: Duration::from_millis(400) };
const PATIENCE: Duration = Duration::from_secs(20);

/// A run with so many long events that are other ones at each look.
struct Made {
    looks: Arc<AtomicUsize>,
    events: usize,
}

impl Sight for Made {
    fn look(&mut self, seconds: f64) -> Result<Look, Stopped> {
        let nth = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
        let events = (0..self.events).map(|n| format!("{nth} {n} {}", "x".repeat(380))).collect();
        let losses = (1..=nth as u64).map(|step| (step, 1.0)).collect();
        let run = Run { name: "made".to_owned(), events, losses, ..Run::default() };
        Ok(Look { seconds, title: "made".to_owned(), run: Some(run), ..Look::default() })
    }
}

struct Opened {
    page: Page,
    address: SocketAddr,
    looks: Arc<AtomicUsize>,
}

impl Opened {
    fn new(events: usize) -> Self {
        let looks = Arc::new(AtomicUsize::new(0));
        let made = Made { looks: Arc::clone(&looks), events };
        let page = Page::start(made, 0, FAST, "shoal page runs/made".to_owned()).unwrap();
        let address = page.link.split('/').nth(2).unwrap().parse().unwrap();
        Self { page, address, looks }
    }

    fn path(&self) -> String {
        let at = self.page.link.find("/?").unwrap();
        self.page.link[at..].to_owned()
    }

    fn send(&self, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\n{headers}\r\n").unwrap();
        stream
    }

    /// The whole answer.
    fn get(&self, path: &str, more: &str) -> String {
        let headers = format!("Host: {}\r\nConnection: close\r\n{more}", self.address);
        let mut answer = String::new();
        self.send(path, &headers).read_to_string(&mut answer).unwrap();
        answer
    }

    /// Opens the link, and returns the header of its cookie.
    fn enter(&self) -> String {
        let answer = self.get(&self.path(), "");
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
        format!("Cookie: {}\r\n", cookie.split(';').next().unwrap())
    }

    fn listen(&self, cookie: &str) -> Line {
        let stream = self.send("/live", &format!("Host: {}\r\n{cookie}", self.address));
        Line(BufReader::new(stream))
    }
}

/// A line to `/live`.
struct Line(BufReader<TcpStream>);

impl Line {
    fn status(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// What the next event says.
    fn event(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "the line has ended");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    }
}

fn starts(answer: &str, status: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "want {status}: {answer}");
}

#[test]
fn the_link_opens_the_page_once_and_its_cookie_from_then_on() {
    let opened = Opened::new(0);
    for path in ["/", "/live", "/page.js", "/anything"] {
        let answer = opened.get(path, "");
        starts(&answer, "401");
        assert!(answer.contains("shoal page runs/made"), "it says what helps: {answer}");
        assert!(answer.contains("nosniff"), "a refusal has the headers, too: {answer}");
    }
    let wrong = opened.get("/?token=0123", "");
    starts(&wrong, "403");
    assert!(wrong.contains("not that of the link"), "{wrong}");

    let cookie = opened.enter();
    starts(&opened.get(&opened.path(), ""), "403");
    starts(&opened.get(&opened.path(), &cookie), "303");
    let page = opened.get("/", &cookie);
    starts(&page, "200");
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
        "content-type: text/html",
    ] {
        assert!(page.contains(header), "want {header}: {page}");
    }
    let script = opened.get("/page.js", &cookie);
    starts(&script, "200");
    assert!(script.contains("content-type: text/javascript"), "{script}");
    starts(&opened.get("/../Cargo.toml", &cookie), "404");
    starts(&opened.get("/", &cookie.replace('=', "=0")), "401");
}

#[test]
fn another_name_for_this_machine_and_another_page_are_refused() {
    let opened = Opened::new(0);
    let cookie = opened.enter();
    let from = |host: &str| {
        let mut answer = String::new();
        let headers = format!("Host: {host}\r\nConnection: close\r\n{cookie}");
        opened.send("/", &headers).read_to_string(&mut answer).unwrap();
        answer
    };
    let rebound = from("page.example.com");
    starts(&rebound, "403");
    assert!(rebound.contains("ssh -L"), "{rebound}");
    starts(&from("localhost:8080"), "200");
    let other = opened.get("/live", &format!("{cookie}Sec-Fetch-Site: cross-site\r\n"));
    starts(&other, "403");
}

#[test]
fn who_listens_hears_all_and_then_what_is_new_and_nothing_is_done_for_nobody() {
    let opened = Opened::new(1);
    let cookie = opened.enter();
    opened.get("/", &cookie);
    assert_eq!(opened.looks.load(Ordering::SeqCst), 0, "nobody listens: nobody looks");
    let mut line = opened.listen(&cookie);
    assert_eq!(line.status(), "HTTP/1.1 200 OK");
    let all = line.event();
    assert_eq!(
        (&all["parts"]["run"]["name"], &all["losses"]["anew"]),
        (&"made".into(), &true.into())
    );
    let more = line.event();
    assert!(more["parts"].get("run").is_none(), "it has not changed: {more}");
    assert!(more["parts"]["events"].is_array() && more["losses"]["anew"] == false, "{more}");
    drop(line);
    // The last look may be under way while its reader goes, and the end is seen at the next write.
    let mut before = usize::MAX;
    for _ in 0..200 {
        let now = opened.looks.load(Ordering::SeqCst);
        if now == before {
            return;
        }
        before = now;
        let waiter = opened.send("/", "Host: x\r\nConnection: close\r\n");
        // Some time goes by: as long as a stalled connection has.
        let mut stalled = TcpStream::connect(opened.address).unwrap();
        let _ = stalled.read(&mut [0]);
        drop(waiter);
    }
    panic!("looks are taken for nobody");
}

#[test]
fn as_many_listen_as_there_are_seats_and_one_more_is_told_so() {
    let opened = Opened::new(1);
    let cookie = opened.enter();
    let mut lines: Vec<Line> = (0..SEATS).map(|_| opened.listen(&cookie)).collect();
    for line in &mut lines {
        assert_eq!(line.status(), "HTTP/1.1 200 OK");
        line.event();
    }
    let refused = opened.get("/live", &cookie);
    starts(&refused, "503");
    assert!(refused.contains("8 are looking already"), "{refused}");
    // The page itself is served all the same.
    starts(&opened.get("/", &cookie), "200");
    lines.pop();
    let again = (0..500).any(|_| opened.listen(&cookie).status() == "HTTP/1.1 200 OK");
    assert!(again, "a seat that was left is free again");
}

#[test]
fn one_who_does_not_read_holds_nobody_up_and_is_put_out() {
    let opened = Opened::new(60);
    let cookie = opened.enter();
    // It reads nothing of 24 kB a look, and so fills what the system keeps for it.
    let slow = opened.listen(&cookie);
    let mut quick = opened.listen(&cookie);
    assert_eq!(quick.status(), "HTTP/1.1 200 OK");
    let mut heard = 0;
    while heard < 400 {
        let events = quick.event()["parts"]["events"].as_array().unwrap().len();
        assert_eq!(events, 60);
        heard += 1;
    }
    // Nothing could be written to it for a while: it reads what the system had, and then the end.
    let mut rest = Vec::new();
    let ended = slow.0.into_inner().read_to_end(&mut rest);
    let is_over = ended.map_or_else(|error| error.kind() != ErrorKind::WouldBlock, |_| true);
    assert!(is_over, "it is put out, not waited for");
    assert!(rest.len() < 8 << 20, "{} bytes were kept for it", rest.len());
}

#[test]
fn a_connection_that_only_trickles_is_closed() {
    let opened = Opened::new(0);
    let mut stream = TcpStream::connect(opened.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: 127").unwrap();
    let mut answer = Vec::new();
    // Closed with or without a word, but closed.
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    starts(&opened.get("/", ""), "401");
}
