//! `shoal serve` over real sockets, with requests written by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{RUN, report};

/// A server that ends with its test.
struct Server {
    child: Child,
    address: String,
    /// Kept open, so that the server can write to it.
    _words: BufReader<ChildStderr>,
}

impl Server {
    fn start(more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args([
                "serve",
                &RUN.display().to_string(),
                "--listen",
                "127.0.0.1:0",
                "--threads",
                "1",
            ])
            .args(more)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        words.read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap_or_else(|| panic!("{line}"));
        let address = address.split('/').next().unwrap().to_owned();
        Self { child, address, _words: words }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        // A server that hangs fails the test instead of hanging it.
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        stream
    }

    /// Status and body of a request given whole.
    fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) =
            self.raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        (status, serde_json::from_str(&body).unwrap())
    }

    fn post(&self, body: &str, headers: &str) -> (u16, String) {
        self.raw(&format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    fn ask(&self, request: &Value) -> (u16, Value) {
        let (status, body) = self.post(&request.to_string(), "Content-Type: application/json\r\n");
        (status, serde_json::from_str(&body).unwrap())
    }

    fn signal(&mut self, name: &str) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn completions_are_what_generate_writes_and_sigterm_ends_the_server() {
    let mut server = Server::start(&[]);
    assert_eq!(server.get("/health"), (200, json!({ "status": "ok" })));
    let (status, models) = server.get("/v1/models");
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("run")));

    let asked = json!({ "model": "run", "prompt": ["one ", "fish"], "max_tokens": 20, "n": 2, "temperature": 0 });
    let (status, answer) = server.ask(&asked);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["object"], "text_completion");
    let wanted = |prompt| report(&[prompt, "--temperature", "0", "--tokens", "20"])["text"].clone();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], wanted(["one ", "fish"][index / 2]));
        assert_eq!(choice["finish_reason"], "length");
    }
    let usage = json!({ "prompt_tokens": 16, "completion_tokens": 80, "total_tokens": 96 });
    assert_eq!(answer["usage"], usage);
    assert_eq!(server.signal("-TERM"), Some(0));
}

#[test]
fn a_stream_has_the_same_text_in_pieces_and_ends_with_done() {
    let server = Server::start(&[]);
    let asked = json!({
        "prompt": "one ", "max_tokens": 20, "temperature": 0, "stream": true,
        "stream_options": { "include_usage": true },
    });
    let (status, body) = server.post(&asked.to_string(), "Content-Type: application/json\r\n");
    assert_eq!(status, 200);
    let lines: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (last, events) = lines.split_last().unwrap();
    assert_eq!(*last, "[DONE]");
    let events: Vec<Value> =
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let text: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, report(&["one ", "--temperature", "0", "--tokens", "20"])["text"]);
    let reasons = events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str());
    assert_eq!(reasons.collect::<Vec<_>>(), ["length"]);
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 20);
}

#[test]
fn bad_requests_are_answered_in_the_interfaces_words() {
    let server = Server::start(&["--queue", "3"]);
    let check = |request: Value, want: u16, wanted: &str| {
        let (status, answer) = server.ask(&request);
        assert_eq!(status, want, "{request}: {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(wanted), "want {wanted:?} in {message}");
        assert!(answer["error"]["type"].is_string());
    };
    check(json!([1]), 400, "no completion request");
    check(json!({ "prompt": 5 }), 400, "no completion request");
    check(json!({ "prompt": "" }), 400, "no token");
    check(json!({ "prompt": "a", "temperature": -1 }), 400, "temperature is -1");
    check(json!({ "prompt": "a", "n": 0 }), 400, "0 texts");
    check(json!({ "prompt": "a", "n": 1_000_000 }), 400, "texts, want 1 to");
    check(json!({ "prompt": "a", "echo": true }), 400, "not supported");
    check(json!({ "prompt": "a", "model": "other" }), 404, "no model \"other\"");
    check(json!({ "prompt": "a".repeat(201) }), 400, "201 tokens");
    check(json!({ "prompt": "a", "n": 4 }), 429, "3 texts are under way");
    assert_eq!(server.post("{\"prompt\": \"a\"}", "Content-Type: text/plain\r\n").0, 415);
    assert_eq!(server.get("/v2").0, 404);
    let (status, _) =
        server.raw("GET /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(status, 405);
    let long = "a".repeat((4 << 20) + 1);
    assert_eq!(server.post(&long, "Content-Type: application/json\r\n").0, 413);
    // Nothing of this took a place for good.
    assert_eq!(server.ask(&json!({ "prompt": "a", "n": 3, "max_tokens": 2 })).0, 200);
}

#[test]
fn a_token_is_asked_for_and_a_client_that_leaves_gives_its_place_back() {
    let file = RUN.join("token.txt");
    std::fs::write(&file, "0123456789abcdef0123\n").unwrap();
    let server = Server::start(&["--token-file", &file.display().to_string(), "--queue", "1"]);
    let kind = "Content-Type: application/json\r\n";
    let body = json!({ "prompt": "a", "max_tokens": 150, "stream": true }).to_string();
    assert_eq!(server.post(&body, kind).0, 401);
    assert_eq!(server.post(&body, &format!("{kind}Authorization: Bearer nonsense\r\n")).0, 401);
    assert_eq!(server.get("/v1/models").0, 401);
    assert_eq!(server.get("/health").0, 200);
    let headers = format!("{kind}Authorization: Bearer 0123456789abcdef0123\r\n");
    // Clients that ask, read a little and leave: were their places kept, the one place would be gone.
    for _ in 0..3 {
        let mut stream = server.connect();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        drop(stream);
        let asked = json!({ "prompt": "a", "max_tokens": 1 }).to_string();
        let answered = (0..600).any(|_| {
            let (status, _) = server.post(&asked, &headers);
            assert!(status == 200 || status == 429, "{status}");
            status == 200
        });
        assert!(answered, "the place of a client that left is free again");
    }
}
