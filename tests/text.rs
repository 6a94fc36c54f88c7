//! Text from outside: the `data` verbs, files at a distance, and a run on a mixture with a
//! tokenizer of its own. The real binary on small generated text.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

#[path = "processes/network.rs"]
mod network;
#[path = "text/run.rs"]
mod run;

/// A directory for one test.
struct Place(PathBuf);

/// How the binary ended.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    /// With `a.txt`, `b.txt` and `c.jsonl.gz`.
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoal-text-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let place = Self(path);
        place.write("a.txt", &story(0, 120));
        place.write("b.txt", &story(1, 120));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        for at in 0..40 {
            let line = serde_json::json!({ "text": story(2 + at, 12), "id": at });
            writeln!(packed, "{line}").unwrap();
        }
        fs::write(place.0.join("c.jsonl.gz"), packed.finish().unwrap()).unwrap();
        place
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    /// Runs the binary in this directory, where its cache is, too.
    fn shoal(&self, args: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(args).current_dir(&self.0).env_remove("RUST_LOG");
        let Output { status, stdout, stderr } =
            command.env("SHOAL_CACHE", self.0.join("cache")).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: status.code(), out: text(stdout), err: text(stderr) }
    }

    /// It has to go well.
    #[track_caller]
    fn done(&self, args: &[&str]) -> Ended {
        let ended = self.shoal(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.err);
        ended
    }

    /// It has to be refused as wrong input, with nothing on standard output.
    #[track_caller]
    fn refused(&self, args: &[&str], wanted: &str) {
        let ended = self.shoal(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.err);
        assert!(ended.err.contains(wanted), "want {wanted:?} in:\n{}", ended.err);
        assert!(ended.out.is_empty(), "{}", ended.out);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Sentences that differ from document to document.
fn story(seed: u32, sentences: u32) -> String {
    const WHO: [&str; 5] = ["a small fish", "the old whale", "every shoal", "one crab", "the tide"];
    const DOES: [&str; 4] = ["swims around", "waits below", "turns with", "remembers"];
    let part = |words: &[&str], at: u32| words[(at as usize * 7 + 3) % words.len()].to_owned();
    let sentence = |at: u32| {
        let (who, does) = (part(&WHO, seed * 3 + at * at), part(&DOES, seed + at * 5));
        let mark = (seed * 7919 + at * 104_729) % 4096;
        format!("On day {} {who} {does} reef {mark:03x} {:03x}.\n", at + seed, mark * mark % 4093)
    };
    (0..sentences).map(sentence).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn json_file(path: &Path) -> Value {
    json(&fs::read_to_string(path).unwrap())
}

#[test]
fn a_tokenizer_is_trained_and_opens_documents_and_figures() {
    let place = Place::new("verbs");
    let train = ["data", "tokenizer", "*.txt", "c.jsonl.gz", "--vocab", "400", "-o", "t.json"];
    let ended = place.done(&train);
    assert!(ended.out.starts_with("t.json: 400 tokens, trained on "), "{}", ended.out);
    assert_eq!(ended.out.lines().count(), 1);
    assert!(ended.err.contains("model.vocab_size of 400 or more"), "{}", ended.err);
    place.refused(&train, "t.json exists");

    let inspect = ["data", "inspect", "a.txt", "c.jsonl.gz", "--tokenizer", "t.json"];
    let ended = place.done(&[&inspect[..], &["--documents", "2", "-o", "json"]].concat());
    let shown = json(&ended.out);
    assert_eq!(shown.as_array().unwrap().len(), 2);
    let tokens = shown[0]["tokens"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert!(story(0, 120).starts_with(&text) && tokens.len() == 100, "{text}");
    assert_eq!(shown[1]["from"], "c.jsonl.gz");
    let ended = place.done(&[&inspect[..], &["--documents", "1", "--tokens", "9"]].concat());
    assert!(ended.out.contains("a.txt, 1: 9 tokens\n"), "{}", ended.out);
    assert!(ended.out.contains('|'), "{}", ended.out);

    let ended = place.done(&["data", "stats", "c.jsonl.gz", "--tokenizer", "t.json", "-o", "json"]);
    let report = json(&ended.out);
    let figures = &report["sources"]["files"];
    assert_eq!((&figures["documents"], &figures["duplicates"]), (&40.into(), &0.into()));
    let bytes: usize = (2..42).map(|seed| story(seed, 12).len()).sum();
    assert_eq!(figures["bytes"], bytes);
    assert!(figures["bytes_per_token"].as_f64().unwrap() > 2.0, "{figures}");
    let ended = place.done(&["data", "stats", "*.txt"]);
    let first = ended.out.lines().nth(1).unwrap();
    assert!(first.trim_start().starts_with("files  2      2          0"), "{}", ended.out);
}

#[test]
fn wrong_text_and_wrong_usage_of_the_data_verbs_exit_with_two() {
    let place = Place::new("wrong");
    place.refused(&["data", "stats", "none/*.txt"], "no file matches");
    place.refused(&["data", "inspect", "a.txt", "--tokenizer", "none.json"], "no tokenizer none");
    place.refused(&["data", "inspect", "c.jsonl.gz", "--field", "body"], "body");
    place.refused(&["data", "inspect", "--run", "."], "want a run directory");
    place.refused(&["data", "inspect"], "required");
    let small = ["data", "tokenizer", "a.txt", "--vocab", "100", "-o", "t.json"];
    place.refused(&small, "at least 257");
    place.write("empty.txt", "");
    let empty = ["data", "tokenizer", "empty.txt", "--vocab", "300", "-o", "t.json"];
    place.refused(&empty, "no text to train a tokenizer on");
    place.refused(&["data", "stats", "ftp.yaml"], "cannot read the manifest");
    place.refused(&["data", "stats", "a.txt", "--set", "x=1"], "--set is for a manifest");
    place.refused(&["data", "stats", "http://example.org/a.txt"], "for this machine only");
    assert!(!place.0.join("t.json").exists());
}

/// A server on this machine that has one file; the address, and how often it was asked.
fn serve(name: &str, body: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/{name}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        // One answer; whoever asks again is refused a connection.
        let (mut stream, _) = listener.accept().unwrap();
        drop(listener);
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).count();
        let n = body.len();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    });
    address
}

#[test]
fn text_at_a_distance_is_told_by_validate_fetched_by_launch_and_then_kept() {
    let place = Place::new("remote");
    let address = serve("far.jsonl.gz", fs::read(place.0.join("c.jsonl.gz")).unwrap());
    let data = format!("  data:\n    files: [a.txt, \"{address}\"]\n    heldout: 0.2\n");
    place.write("job.yaml", &run::manifest(256, &data, 2));
    let valid = place.done(&["validate", "job.yaml"]);
    let remote = format!("remote: {address} (fetched at the launch)");
    assert!(valid.out.contains(&remote) && valid.out.contains("2 files"), "{}", valid.out);
    assert!(!place.0.join("cache").exists(), "validate fetches nothing");

    let first = place.done(&["launch", "job.yaml", "--run-dir", "run"]);
    assert!(first.err.contains("41 documents of 2 files"), "{}", first.err);
    let valid = place.done(&["validate", "job.yaml"]);
    assert!(valid.out.contains("(in the cache: "), "{}", valid.out);
    // The server is gone; the cache is not.
    place.done(&["launch", "job.yaml", "--run-dir", "again"]);

    let gone = format!("data.files=[\"{address}.gone\"]");
    let ended = place.shoal(&["launch", "job.yaml", "--set", &gone, "--run-dir", "gone"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let errors: Vec<&str> = ended.err.lines().collect();
    assert_eq!(errors.len(), 1, "{}", ended.err);
    assert!(errors[0].starts_with("error: cannot download http://127.0.0.1:"), "{}", errors[0]);
    let wrong = place.shoal(&["validate", "job.yaml", "--set", "data.files=[\"hf://x\"]"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("want hf://datasets/"), "{}", wrong.err);
}
