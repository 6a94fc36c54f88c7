//! The whole way from files to shards: both sides, limits, reuse, changes, mixtures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

use crate::tokenizer::tests::text;
use crate::*;

pub(crate) const SETTINGS: Settings = Settings {
    sources: Vec::new(),
    tokenizer: TokenizerChoice::Bytes,
    vocab_size: 256,
    end_token: EndToken::Auto,
    bytes_max: 1 << 20,
    heldout_fraction: 0.2,
    sequence: 16,
    windows_min_train: 4,
    windows_min_heldout: 1,
    eval_sets: BTreeMap::new(),
};

pub(crate) fn source(name: &str, files: &[PathBuf]) -> Source {
    Source { name: name.into(), files: files.to_vec(), weight: 1.0, field: "text".into() }
}

/// One source named `text`.
pub(crate) fn prepare_files(
    files: &[PathBuf],
    settings: &Settings,
    dir: &Path,
) -> Result<Dataset, DataError> {
    let settings = Settings { sources: vec![source("text", files)], ..settings.clone() };
    prepare(&settings, dir, &mut |_| {})
}

pub(crate) fn write_files(scratch: &TempDir, contents: &[Vec<u8>]) -> Vec<PathBuf> {
    let write = |(at, content): (usize, &Vec<u8>)| {
        let path = scratch.path().join(format!("text-{at:03}.txt"));
        fs::write(&path, content).unwrap();
        path
    };
    contents.iter().enumerate().map(write).collect()
}

/// Documents of different content, not all of it UTF-8.
pub(crate) fn documents(n: usize, bytes: usize) -> Vec<Vec<u8>> {
    let byte = |document: usize, at: usize| (document * 37 + at * at + at / 3) as u8;
    (0..n).map(|document| (0..bytes).map(|at| byte(document, at)).collect()).collect()
}

/// Documents of words, each different.
fn stories(n: usize) -> Vec<Vec<u8>> {
    let letters: Vec<char> = text().chars().collect();
    let part = |at: usize| letters[at * 40..at * 40 + 600].iter().collect::<String>();
    (0..n).map(|at| format!("story {at}: {}", part(at)).into_bytes()).collect()
}

/// Documents below the held-out fraction are held out: the first 8 bytes of the hash, as 0 <= x < 1.
fn place_of(content: &[u8]) -> f64 {
    let hash = blake3::hash(content);
    u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap()) as f64 / 2_f64.powi(64)
}

fn is_heldout(content: &[u8]) -> bool {
    place_of(content) < f64::from(SETTINGS.heldout_fraction)
}

fn tokens(dir: &Path, part: Part<'_>) -> Vec<u32> {
    let shards = TokenShards::open(dir, part).unwrap();
    shards.tokens(0..shards.n_tokens())
}

fn stream(dir: &Path, part: Part<'_>) -> Vec<u8> {
    tokens(dir, part).into_iter().map(|token| u8::try_from(token).unwrap()).collect()
}

#[test]
fn every_document_is_on_exactly_one_side_in_order_and_copies_stay_together() {
    let scratch = tempfile::tempdir().unwrap();
    let mut contents = documents(60, 300);
    contents[31] = contents[7].clone();
    contents[48] = contents[7].clone();
    contents.push(vec![]);
    let files = write_files(&scratch, &contents);
    let dir = scratch.path().join("data");
    let settings = Settings { sources: vec![source("text", &files)], ..SETTINGS };
    let mut told = Vec::new();
    let dataset = prepare(&settings, &dir, &mut |at| told.push((at.done, at.all))).unwrap();

    let (train, heldout) = (stream(&dir, Part::Train(0)), stream(&dir, Part::Heldout));
    assert_eq!((train.len() + heldout.len()) as u64, dataset.tokens);
    assert_eq!((dataset.tokens, dataset.documents, dataset.files), (60 * 300, 60, 61));
    assert_eq!(dataset.train_tokens, train.len() as u64);
    let (mut rest_train, mut rest_heldout) = (train.as_slice(), heldout.as_slice());
    let mut sides_of_copies = Vec::new();
    for content in contents.iter().filter(|content| !content.is_empty()) {
        let is_heldout = if let Some(rest) = rest_heldout.strip_prefix(content.as_slice()) {
            rest_heldout = rest;
            true
        } else {
            rest_train = rest_train.strip_prefix(content.as_slice()).unwrap();
            false
        };
        if *content == contents[7] {
            sides_of_copies.push(is_heldout);
        }
    }
    assert_eq!(sides_of_copies, [sides_of_copies[0]; 3]);
    assert!(heldout.len() >= 300 && heldout.len() < 36 * 300, "{} held out", heldout.len());
    assert_eq!(told.last(), Some(&(60 * 300, 60 * 300)));
    assert!(told.is_sorted());
}

#[test]
fn one_source_of_bytes_gives_the_tokens_it_always_gave() {
    // The hashes are those of the shards that the first version wrote for the same files.
    let check = |contents: &[Vec<u8>], train: &str, heldout: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let files = write_files(&scratch, contents);
        let dir = scratch.path().join("data");
        prepare_files(&files, &SETTINGS, &dir).unwrap();
        let hash = |name: &str| {
            let file = fs::read(dir.join(name)).unwrap();
            blake3::hash(&file[64..]).to_hex()[..16].to_owned()
        };
        assert_eq!(hash("train-text-00000.tokens"), train);
        assert_eq!(hash("heldout-text-00000.tokens"), heldout);
    };
    let mut contents = documents(60, 300);
    contents[31] = contents[7].clone();
    contents[48] = contents[7].clone();
    contents.push(vec![]);
    check(&contents, "3a7a0d349e9e2608", "bea9ddf0d2833cf8");
    check(&documents(1, 2000), "e2ff3853729d8754", "90793e2e09ec91df");
}

#[test]
fn one_single_file_is_split_at_its_tail() {
    let scratch = tempfile::tempdir().unwrap();
    let files = write_files(&scratch, &documents(1, 2000));
    let dir = scratch.path().join("data");
    let dataset = prepare_files(&files, &SETTINGS, &dir).unwrap();
    assert_eq!((dataset.train_tokens, dataset.heldout_tokens), (1600, 400));
    let joined = [stream(&dir, Part::Train(0)), stream(&dir, Part::Heldout)].concat();
    assert!(joined == documents(1, 2000)[0]);
    assert!(dataset.sources[0].heldout_is_tail);
}

#[test]
fn no_more_than_the_limit_is_read() {
    let scratch = tempfile::tempdir().unwrap();
    let files = write_files(&scratch, &documents(5, 1000));
    let dir = scratch.path().join("data");
    let settings = Settings { bytes_max: 2500, ..SETTINGS };
    let dataset = prepare_files(&files, &settings, &dir).unwrap();
    assert_eq!((dataset.tokens, dataset.documents, dataset.files), (2500, 3, 3));
    assert!(dataset.sources[0].cut);
    // A file beyond the limit may come and go.
    assert!(prepare_files(&files[..4], &settings, &dir).unwrap().reused);
    // Two sources share it by weight.
    let sources =
        vec![source("a", &files[..1]), Source { weight: 3.0, ..source("b", &files[1..]) }];
    let both = Settings { sources, bytes_max: 2000, ..SETTINGS };
    let dataset = prepare(&both, &scratch.path().join("both"), &mut |_| {}).unwrap();
    assert_eq!(dataset.sources.iter().map(|one| one.set.bytes).collect::<Vec<_>>(), [500, 1500]);
}

#[test]
fn a_second_call_uses_what_is_there_and_rebuilds_what_is_damaged() {
    let scratch = tempfile::tempdir().unwrap();
    let files = write_files(&scratch, &documents(20, 500));
    let dir = scratch.path().join("data");
    let first = prepare_files(&files, &SETTINGS, &dir).unwrap();
    assert!(!first.reused);
    let train = stream(&dir, Part::Train(0));
    let second = prepare_files(&files, &SETTINGS, &dir).unwrap();
    assert_eq!(second, Dataset { reused: true, ..first.clone() });
    assert_eq!(Dataset::open(&dir).unwrap(), second);

    // The same content, newly written.
    fs::write(&files[3], &documents(20, 500)[3]).unwrap();
    fs::File::open(&files[3]).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert!(prepare_files(&files, &SETTINGS, &dir).unwrap().reused);
    assert!(prepare_files(&files, &SETTINGS, &dir).unwrap().reused);

    // A leftover of an attempt that ended early goes with the next one.
    fs::remove_file(dir.join("train-text-00000.tokens")).unwrap();
    fs::write(dir.join("train-old-00000.tokens.partial"), "x").unwrap();
    assert!(!prepare_files(&files, &SETTINGS, &dir).unwrap().reused);
    assert!(stream(&dir, Part::Train(0)) == train);
    assert!(!dir.join("train-old-00000.tokens.partial").exists());
}

#[test]
fn changed_sources_are_refused_by_name() {
    let contents = documents(20, 500);
    let check = |change: &dyn Fn(&mut Vec<PathBuf>, &mut Settings), wants: &[&str]| {
        let scratch = tempfile::tempdir().unwrap();
        let mut files = write_files(&scratch, &contents);
        let dir = scratch.path().join("data");
        let mut settings = SETTINGS;
        prepare_files(&files, &settings, &dir).unwrap();
        change(&mut files, &mut settings);
        let error = prepare_files(&files, &settings, &dir).unwrap_err().to_string();
        assert!(wants.iter().all(|want| error.contains(want)), "{error}");
    };
    let other = |files: &mut Vec<PathBuf>, _: &mut Settings| {
        fs::write(&files[4], vec![b'x'; 500]).unwrap();
    };
    check(&other, &["text-004.txt has changed", "its content", "--fresh"]);
    let longer = |files: &mut Vec<PathBuf>, _: &mut Settings| {
        fs::write(&files[5], vec![b'x'; 501]).unwrap();
    };
    check(&longer, &["text-005.txt has changed", "501 bytes, was 500"]);
    check(&|files, _| drop(files.remove(6)), &["text-006.txt has changed", "no longer"]);
    check(&|files, _| files.truncate(19), &["text-019.txt has changed", "no longer"]);
    check(&|files, _| files.swap(2, 3), &["text-003.txt has changed", "file 3 in order, was 4"]);
    let more = |files: &mut Vec<PathBuf>, _: &mut Settings| {
        let path = files[0].with_file_name("text-999.txt");
        fs::write(&path, "more").unwrap();
        files.push(path);
    };
    check(&more, &["text-999.txt has changed", "was not among the files"]);
    let dataset = "dataset.json has changed";
    check(&|_, settings| settings.sequence = 8, &[dataset, "sequence is 8, was 16"]);
    let bpe = TokenizerChoice::Bpe { vocab_size: 300 };
    check(
        &|_, settings| settings.tokenizer = bpe.clone(),
        &[dataset, "tokenizer is bpe of 300, was bytes"],
    );
    check(&|_, settings| settings.vocab_size = 300, &[dataset, "end_token is Some(256), was None"]);
    let gone = |files: &mut Vec<PathBuf>, _: &mut Settings| fs::remove_file(&files[2]).unwrap();
    check(&gone, &["text-002.txt", "No such file"]);
}

#[test]
fn shards_of_the_version_before_ask_for_a_fresh_start() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join(FILE_NAME), r#"{"schema_version": 1, "sources": []}"#).unwrap();
    let files = write_files(&scratch, &documents(2, 500));
    let error = prepare_files(&files, &SETTINGS, scratch.path()).unwrap_err().to_string();
    assert!(error.contains("is of version 1, want 2: start over with --fresh"), "{error}");
}

#[test]
fn too_little_text_says_how_much_is_wanted() {
    let scratch = tempfile::tempdir().unwrap();
    let files = write_files(&scratch, &documents(2, 40));
    let dir = scratch.path().join("data");
    let error = prepare_files(&files, &SETTINGS, &dir).unwrap_err().to_string();
    // Four training windows and one held out, each side with one token more.
    assert!(error.contains("80 tokens in 2 files, want 82 or more"), "{error}");
    assert!(!dir.join(FILE_NAME).exists());
    let error = prepare_files(&[], &SETTINGS, &dir).unwrap_err().to_string();
    assert_eq!(error, "no text: the list of files is empty");
}

#[test]
fn every_document_ends_with_the_end_token() {
    let scratch = tempfile::tempdir().unwrap();
    let files = write_files(&scratch, &documents(30, 200));
    let dir = scratch.path().join("data");
    let dataset = prepare_files(&files, &Settings { vocab_size: 512, ..SETTINGS }, &dir).unwrap();
    assert_eq!((dataset.tokens, dataset.end_token, dataset.n_tokens), (30 * 201, Some(256), 257));
    for part in [Part::Train(0), Part::Heldout] {
        let tokens = tokens(&dir, part);
        let mut documents = tokens.chunks_exact(201);
        assert!(
            documents.all(|document| document.iter().position(|token| *token == 256) == Some(200))
        );
    }
    assert_eq!(Tokenizer::open(&dir).unwrap().end_token(), Some(256));
}

#[test]
fn a_trained_tokenizer_is_kept_and_its_shards_decode_to_the_documents() {
    let scratch = tempfile::tempdir().unwrap();
    let contents = stories(40);
    let files = write_files(&scratch, &contents);
    let dir = scratch.path().join("data");
    let settings = Settings {
        tokenizer: TokenizerChoice::Bpe { vocab_size: 320 },
        vocab_size: 400,
        ..SETTINGS
    };
    let dataset = prepare_files(&files, &settings, &dir).unwrap();
    assert!(dataset.tokens < dataset.bytes, "{dataset:?}");
    let tokenizer = Tokenizer::open(&dir).unwrap();
    let mut found = Vec::new();
    for part in [Part::Train(0), Part::Heldout] {
        let tokens = tokens(&dir, part);
        let end = tokenizer.end_token().unwrap();
        let documents = tokens.split(|token| *token == end).filter(|document| !document.is_empty());
        found.extend(documents.map(|document| tokenizer.decode(document)));
    }
    found.sort_unstable();
    let mut want = contents.clone();
    want.sort_unstable();
    assert!(found == want);

    // What is held out was not trained on: other held-out text, the same tokenizer; other training
    // text, another one.
    let json = fs::read(dir.join(tokenizer::FILE_NAME)).unwrap();
    assert!(prepare_files(&files, &settings, &dir).unwrap().reused);
    let n = contents[0].len();
    let side = |heldout: bool, of: &dyn Fn(u32) -> Vec<u8>| {
        (0..10_000).map(of).find(|content| is_heldout(content) == heldout).unwrap()
    };
    let filled = |at: u32| format!("{at:q>n$}").into_bytes();
    let replace = |at: usize, with: &[u8], name: &str| {
        fs::write(&files[at], with).unwrap();
        let other = scratch.path().join(name);
        let dataset = prepare_files(&files, &settings, &other).unwrap();
        fs::write(&files[at], &contents[at]).unwrap();
        assert!(!dataset.sources[0].heldout_is_tail);
        fs::read(other.join(tokenizer::FILE_NAME)).unwrap() == json
    };
    let at = |heldout: bool| contents.iter().position(|one| is_heldout(one) == heldout).unwrap();
    assert!(replace(at(true), &side(true, &filled), "heldout"));
    assert!(!replace(at(false), &side(false, &filled), "train"));
    // A damaged tokenizer is made again.
    fs::remove_file(dir.join(tokenizer::FILE_NAME)).unwrap();
    assert!(!prepare_files(&files, &settings, &dir).unwrap().reused);
    assert!(fs::read(dir.join(tokenizer::FILE_NAME)).unwrap() == json);
}

#[test]
fn a_mixture_has_training_shards_per_source_and_one_heldout_stream() {
    let scratch = tempfile::tempdir().unwrap();
    let files = write_files(&scratch, &documents(40, 300));
    let dir = scratch.path().join("data");
    let own = scratch.path().join("own.jsonl");
    fs::write(&own, "{\"text\": \"an evaluation of our own\"}\n{\"text\": \"more\"}\n").unwrap();
    let settings = Settings {
        sources: vec![source("books", &files[..30]), source("code", &files[30..])],
        eval_sets: [("own".to_owned(), vec![own])].into(),
        ..SETTINGS
    };
    let dataset = prepare(&settings, &dir, &mut |_| {}).unwrap();
    let heldout = [stream(&dir, Part::HeldoutOf(0)), stream(&dir, Part::HeldoutOf(1))].concat();
    assert!(stream(&dir, Part::Heldout) == heldout);
    let all = stream(&dir, Part::Train(0)).len() + stream(&dir, Part::Train(1)).len();
    assert_eq!((all + heldout.len()) as u64, dataset.tokens);
    assert_eq!(stream(&dir, Part::Eval("own")), b"an evaluation of our ownmore");
    assert_eq!(dataset.eval_sets["own"].documents, 2);
    assert_eq!(dataset.sources.iter().map(|one| one.set.tokens).collect::<Vec<_>>(), [9000, 3000]);

    let check = |change: &dyn Fn(&mut Settings), want: &str| {
        let mut changed = settings.clone();
        change(&mut changed);
        let error = prepare(&changed, &dir, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    check(&|changed| changed.sources[1].weight = 2.0, "the weight of \"code\" is 2, was 1");
    check(&|changed| changed.sources[0].field = "t".into(), "field of \"books\" is t, was text");
    check(&|changed| changed.sources.truncate(1), "sources is books, was books, code");
    check(&|changed| changed.eval_sets.clear(), "eval_sets is [], was [\"own\"]");
    check(&|changed| changed.sources[1].weight = f32::NAN, "\"code\" has weight NaN");
    check(&|changed| changed.sources[1].name = "books".into(), "two sources are named \"books\"");
    check(&|changed| changed.sources[1].name = "../x".into(), "want a name of letters");
    check(&|changed| changed.sources[1].files.clear(), "the list of files is empty");
    let short = Settings { windows_min_heldout: 400, ..settings.clone() };
    let error = prepare(&short, &scratch.path().join("s"), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("too little text in source \"code\""), "{error}");
}

#[test]
fn a_long_document_is_read_in_pieces_and_stays_on_one_side() {
    let scratch = tempfile::tempdir().unwrap();
    let line = b"a line of a long document\n";
    let settings = Settings { bytes_max: 1 << 30, heldout_fraction: 0.4, ..SETTINGS };
    // Both of more than one piece, and on different sides.
    let of = |bytes: usize, heldout: bool| -> Vec<u8> {
        let long = |bytes: usize| line.iter().copied().cycle().take(bytes).collect::<Vec<u8>>();
        let is_on_it = |content: &Vec<u8>| (place_of(content) < 0.4) == heldout;
        (bytes..bytes + 10_000).map(long).find(is_on_it).unwrap()
    };
    let (heldout, train) = (of(9 << 20, true), of(8 << 20, false));
    let files = write_files(&scratch, &[heldout.clone(), train.clone()]);
    let dir = scratch.path().join("data");
    let dataset = prepare_files(&files, &settings, &dir).unwrap();
    assert_eq!((dataset.documents, dataset.tokens), (2, (heldout.len() + train.len()) as u64));
    assert!(stream(&dir, Part::Heldout) == heldout);
    assert!(stream(&dir, Part::Train(0)) == train);
    // On the disk as in the record: every byte counted once.
    let ended = Settings { vocab_size: 300, ..settings };
    let ends = prepare_files(&files, &ended, &scratch.path().join("ends")).unwrap();
    assert_eq!(ends.tokens, dataset.tokens + 2);
}
