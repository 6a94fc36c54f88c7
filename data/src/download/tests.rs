//! Against a tiny server on this machine that does what it is told, request by request.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use tempfile::TempDir;

use super::*;

/// Serves one answer per connection, then closes it. The requests come out of the channel.
fn serve(answers: Vec<Vec<u8>>) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/dir/text.jsonl", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) =
                lines.next().filter(|line| line.as_ref().is_ok_and(|line| !line.is_empty()))
            {
                request += &line.to_ascii_lowercase();
                request += "\n";
            }
            let _ = sender.send(request);
            let _ = stream.write_all(&answer);
        }
    });
    (address, receiver)
}

/// An answer that promises `length` bytes and sends `body`.
fn answer(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn downloads(scratch: &TempDir) -> Downloads {
    Downloads { cache: scratch.path().join("downloads"), token: Some("secret".into()) }
}

fn fetch(downloads: &Downloads, address: &str) -> Result<Vec<u8>, String> {
    let path = downloads.fetch(address, &mut |_, _| {}).map_err(|error| error.to_string())?;
    Ok(fs::read(path).unwrap())
}

const TEXT: &[u8] = b"{\"text\": \"a text from far away\"}\n";

#[test]
fn a_file_is_fetched_once_and_its_origin_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let downloads = downloads(&scratch);
    let (address, requests) = serve(vec![answer("200 OK", "etag: \"a\"\r\n", TEXT.len(), TEXT)]);
    let mut told = Vec::new();
    let path = downloads.fetch(&address, &mut |done, all| told.push((done, all))).unwrap();
    assert_eq!(fs::read(&path).unwrap(), TEXT);
    assert_eq!(path.file_name().unwrap(), "text.jsonl");
    assert_eq!(told.last(), Some(&(TEXT.len() as u64, Some(TEXT.len() as u64))));
    // The token is the hub's alone.
    assert!(!requests.recv().unwrap().contains("secret"));
    let origin = fs::read(path.with_added_extension("json")).unwrap();
    let origin: Origin = serde_json::from_slice(&origin).unwrap();
    assert_eq!((origin.address, origin.bytes), (address.clone(), TEXT.len() as u64));
    assert_eq!(origin.blake3, blake3::hash(TEXT).to_hex().as_str());
    // The server is gone; the file is there.
    assert_eq!(fetch(&downloads, &address).unwrap(), TEXT);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2);
}

#[test]
fn a_cut_transfer_goes_on_where_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    let (address, requests) = serve(vec![
        answer("200 OK", "etag: \"a\"\r\n", TEXT.len(), &TEXT[..10]),
        answer(
            "206 Partial Content",
            "etag: \"a\"\r\ncontent-range: bytes 10-32/33\r\n",
            23,
            &TEXT[10..],
        ),
    ]);
    assert_eq!(TEXT.len(), 33);
    assert_eq!(fetch(&downloads(&scratch), &address).unwrap(), TEXT);
    assert!(!requests.recv().unwrap().contains("range"));
    let second = requests.recv().unwrap();
    assert!(second.contains("range: bytes=10-") && second.contains("if-range: \"a\""), "{second}");
}

#[test]
fn a_later_call_goes_on_unless_the_file_changed() {
    let scratch = tempfile::tempdir().unwrap();
    let downloads = downloads(&scratch);
    let other = b"{\"text\": \"another text by now\"}\n";
    let (address, requests) = serve(vec![
        answer("200 OK", "etag: \"a\"\r\n", TEXT.len(), &TEXT[..10]),
        answer("503 Busy", "", 0, b""),
        // With another ETag the server sends all of it.
        answer("200 OK", "etag: \"b\"\r\n", other.len(), other),
    ]);
    let error = fetch(&downloads, &address).unwrap_err();
    assert!(error.contains("503") && error.contains(&address), "{error}");
    let path = downloads.place(&address).unwrap();
    assert!(!path.exists() && path.with_added_extension("partial").exists());
    assert_eq!(fetch(&downloads, &address).unwrap(), other);
    assert!(requests.iter().take(3).last().unwrap().contains("if-range: \"a\""));
}

#[test]
fn without_an_etag_a_cut_transfer_begins_anew() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = answer("200 OK", "etag: W/\"weak\"\r\n", TEXT.len(), TEXT);
    let (address, requests) =
        serve(vec![answer("200 OK", "etag: W/\"weak\"\r\n", TEXT.len(), &TEXT[..10]), whole]);
    assert_eq!(fetch(&downloads(&scratch), &address).unwrap(), TEXT);
    assert!(requests.iter().take(2).all(|request| !request.contains("range")));
}

#[test]
fn redirections_are_followed_and_the_hubs_hash_is_checked() {
    let scratch = tempfile::tempdir().unwrap();
    let sha256 = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c";
    let to = |hash: &str| {
        let headers = format!("location: /elsewhere\r\nx-linked-etag: \"{hash}\"\r\n");
        answer("302 Found", &headers, 0, b"")
    };
    // SHA-256 of "foo\n": FIPS 180-4, as any sha256sum says.
    let file = || answer("200 OK", "", 4, b"foo\n");
    let (address, requests) = serve(vec![to(sha256), file()]);
    assert_eq!(fetch(&downloads(&scratch), &address).unwrap(), b"foo\n");
    assert!(requests.iter().nth(1).unwrap().starts_with("get /elsewhere"));

    let (address, _) = serve(vec![to(&sha256.replace('b', "c")), file()]);
    let error = fetch(&downloads(&scratch), &address).unwrap_err();
    assert!(
        error.contains("its SHA-256 is b5bb") && error.contains("the hub says c5cc"),
        "{error}"
    );
    assert!(!downloads(&scratch).place(&address).unwrap().exists());
    let (address, _) =
        serve(vec![answer("302 Found", "location: http://example.org/x\r\n", 0, b"")]);
    let error = fetch(&downloads(&scratch), &address).unwrap_err();
    assert!(error.contains("http:// is for this machine only"), "{error}");
}

#[test]
fn failures_name_address_cause_and_way_out() {
    let scratch = tempfile::tempdir().unwrap();
    let downloads = downloads(&scratch);
    let (address, _) = serve(vec![answer("404 Not Found", "", 0, b"")]);
    let error = fetch(&downloads, &address).unwrap_err();
    assert_eq!(
        error,
        format!("cannot download {address}: the server answers 404 Not Found; check the address")
    );
    // Nobody listens there any more.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(&downloads, &format!("http://{closed}/a.txt")).unwrap_err();
    assert!(error.contains("refused") && error.contains("or use a local path"), "{error}");
    assert!(!error.contains('\n'));
    let (address, _) = serve(vec![answer("200 OK", "", TEXT.len(), &TEXT[..10]); 9]);
    // The same ten bytes again and again are no progress beyond the attempts.
    assert!(fetch(&downloads, &address).unwrap_err().contains("cut after 10"));
}

#[test]
fn a_list_of_files_may_mix_patterns_and_addresses() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("b.txt"), "b").unwrap();
    fs::write(scratch.path().join("a.txt"), "a").unwrap();
    let (address, _) = serve(vec![answer("200 OK", "", TEXT.len(), TEXT)]);
    let cache = scratch.path().join("cache");
    let env = |name: &str| (name == "SHOAL_CACHE").then(|| cache.display().to_string());
    let entries = [address, format!("{}/*.txt", scratch.path().display())];
    let mut told = Vec::new();
    let files =
        resolve(&entries, &env, &mut |address, done, _| told.push((address.to_owned(), done)));
    let contents: Vec<Vec<u8>> =
        files.unwrap().iter().map(|path| fs::read(path).unwrap()).collect();
    assert_eq!(contents, [b"a".to_vec(), b"b".to_vec(), TEXT.to_vec()]);
    assert_eq!(told.last(), Some(&(entries[0].clone(), TEXT.len() as u64)));
    let nowhere = resolve(&entries, &|_| None, &mut |_, _, _| {}).unwrap_err().to_string();
    assert!(nowhere.contains("set SHOAL_CACHE"), "{nowhere}");
}
