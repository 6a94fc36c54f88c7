//! From text files to token shards, once per run directory.
//!
//! Tokens are bytes. Files are read in the given order up to a limit in all; each is a document.
//! Held out are whole documents, chosen by the hash of their content, so that copies of a text
//! never stand on both sides. Where documents are too few or too uneven for that, the tail of the
//! stream is held out instead (a copy of a text may then stand on both sides).
//!
//! Every step of training reads the same windows of the same shards, so sources that changed since
//! are refused: the sample order would not be the one that was trained.

mod dataset;
mod shards;
mod source;
mod write;

use std::io;
use std::path::{Path, PathBuf};

pub use dataset::{Dataset, FILE_NAME};
pub use shards::{Split, TokenShards};

use dataset::Record;
use source::Corpus;

/// How text is cut up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Read at most this many bytes in all.
    pub bytes_max: u64,
    /// Share of the documents kept for evaluation, 0 < x < 1.
    pub heldout_fraction: f32,
    /// Tokens per training sequence.
    pub sequence: u32,
    /// Training needs at least so many windows: one batch.
    pub windows_min_train: u64,
    /// Evaluation needs at least so many.
    pub windows_min_heldout: u64,
}

/// Why the text cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error("no text: the list of files is empty")]
    NoFiles,

    #[error(
        "too little text: {got} bytes in {files} files, want {want} or more for one batch and one \
         evaluation window of {sequence} tokens; add files, or lower batch or sequence"
    )]
    TooSmall { got: u64, files: usize, want: u64, sequence: u32 },

    #[error(
        "{} has changed since this run was started ({what}): the sample order would change; \
         restore it, or start over with --fresh",
        path.display()
    )]
    Changed { path: PathBuf, what: String },

    #[error("{} has changed while it was read; run again", path.display())]
    ChangedWhileRead { path: PathBuf },

    /// Shards and their description are written by `prepare` alone.
    #[error("{} is damaged: {what}; delete it and launch again to rebuild it", path.display())]
    Damaged { path: PathBuf, what: String },
}

/// Windows of `sequence` inputs and as many targets in a stream of tokens: they overlap by one.
fn windows(tokens: u64, sequence: u32) -> u64 {
    tokens.saturating_sub(1) / u64::from(sequence.max(1))
}

/// Writes the token shards of `files` into `dir`, or finds them there. `progress` is told the bytes
/// done and the bytes in all.
pub fn prepare(
    files: &[PathBuf],
    settings: &Settings,
    dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Dataset, DataError> {
    if files.is_empty() {
        return Err(DataError::NoFiles);
    }
    let recorded = Record::read(dir)?;
    let corpus = Corpus::survey(files, settings.bytes_max)?;
    if let Some(recorded) = &recorded {
        recorded.compare_settings(settings, dir)?;
        if recorded.is_untouched(&corpus) && recorded.shards_are_there(dir) {
            return recorded.dataset(settings, true);
        }
    }
    // The text is read twice: to choose by content, then to write.
    let bytes_all = 2 * corpus.bytes();
    let documents = corpus.hash(&mut |done| progress(done, bytes_all))?;
    if let Some(recorded) = &recorded {
        recorded.compare_contents(&documents)?;
        if recorded.shards_are_there(dir) {
            recorded.with_times_of(&documents).write(dir)?;
            return recorded.dataset(settings, true);
        }
    }
    let holdout = source::hold_out(&documents, settings)?;
    let shards = write::write_shards(&documents, &holdout, dir, &mut |done| {
        progress(bytes_all / 2 + done, bytes_all);
    })?;
    let record = Record::new(settings, &documents, &holdout, shards);
    record.write(dir)?;
    record.dataset(settings, false)
}

/// Attaches the path and what was being done to an I/O error.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |source| DataError::Io { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod proof {
    use std::fs;

    use super::*;
    use crate::checkpoint::scratch::Scratch;

    const SETTINGS: Settings = Settings {
        bytes_max: 1 << 20,
        heldout_fraction: 0.2,
        sequence: 16,
        windows_min_train: 4,
        windows_min_heldout: 1,
    };

    fn write_files(scratch: &Scratch, contents: &[Vec<u8>]) -> Vec<PathBuf> {
        let write = |(at, content): (usize, &Vec<u8>)| {
            let path = scratch.path().join(format!("text-{at:03}.txt"));
            fs::write(&path, content).unwrap();
            path
        };
        contents.iter().enumerate().map(write).collect()
    }

    /// Documents of different content, not all of it UTF-8.
    fn documents(n: usize, bytes: usize) -> Vec<Vec<u8>> {
        let byte = |document: usize, at: usize| (document * 37 + at * at + at / 3) as u8;
        (0..n).map(|document| (0..bytes).map(|at| byte(document, at)).collect()).collect()
    }

    fn prepare_quietly(
        files: &[PathBuf],
        settings: &Settings,
        dir: &Path,
    ) -> Result<Dataset, DataError> {
        prepare(files, settings, dir, &mut |_, _| {})
    }

    fn stream(dir: &Path, split: Split) -> Vec<u8> {
        let shards = TokenShards::open(dir, split).unwrap();
        let tokens = shards.tokens(0..shards.n_tokens());
        tokens.into_iter().map(|token| u8::try_from(token).unwrap()).collect()
    }

    #[test]
    fn every_document_is_on_exactly_one_side_in_order_and_copies_stay_together() {
        let scratch = Scratch::new("sides");
        let mut contents = documents(60, 300);
        contents[31] = contents[7].clone();
        contents[48] = contents[7].clone();
        contents.push(vec![]);
        let files = write_files(&scratch, &contents);
        let dir = scratch.path().join("data");
        let mut told = Vec::new();
        let dataset =
            prepare(&files, &SETTINGS, &dir, &mut |done, all| told.push((done, all))).unwrap();

        let (train, heldout) = (stream(&dir, Split::Train), stream(&dir, Split::Heldout));
        assert_eq!((train.len() + heldout.len()) as u64, dataset.tokens);
        assert_eq!(dataset.tokens, 60 * 300);
        assert_eq!(dataset.train_tokens, train.len() as u64);
        let (mut rest_train, mut rest_heldout) = (train.as_slice(), heldout.as_slice());
        let mut sides_of_copies = Vec::new();
        for content in contents.iter().filter(|content| !content.is_empty()) {
            let side = if let Some(rest) = rest_heldout.strip_prefix(content.as_slice()) {
                rest_heldout = rest;
                Split::Heldout
            } else {
                rest_train = rest_train.strip_prefix(content.as_slice()).unwrap();
                Split::Train
            };
            if *content == contents[7] {
                sides_of_copies.push(side);
            }
        }
        assert_eq!(sides_of_copies, [sides_of_copies[0]; 3]);
        assert!(heldout.len() >= 300 && heldout.len() < 36 * 300, "{} held out", heldout.len());
        assert_eq!(told.last(), Some(&(2 * 60 * 300, 2 * 60 * 300)));
        assert!(told.is_sorted());
    }

    #[test]
    fn one_single_file_is_split_at_its_tail() {
        let scratch = Scratch::new("tail");
        let files = write_files(&scratch, &documents(1, 2000));
        let dir = scratch.path().join("data");
        let dataset = prepare_quietly(&files, &SETTINGS, &dir).unwrap();
        assert_eq!((dataset.train_tokens, dataset.heldout_tokens), (1600, 400));
        let joined = [stream(&dir, Split::Train), stream(&dir, Split::Heldout)].concat();
        assert!(joined == documents(1, 2000)[0]);
    }

    #[test]
    fn no_more_than_the_limit_is_read() {
        let scratch = Scratch::new("limit");
        let files = write_files(&scratch, &documents(5, 1000));
        let dir = scratch.path().join("data");
        let settings = Settings { bytes_max: 2500, ..SETTINGS };
        let dataset = prepare_quietly(&files, &settings, &dir).unwrap();
        assert_eq!((dataset.tokens, dataset.documents), (2500, 3));
    }

    #[test]
    fn a_second_call_uses_what_is_there_and_rebuilds_what_is_damaged() {
        let scratch = Scratch::new("reuse");
        let files = write_files(&scratch, &documents(20, 500));
        let dir = scratch.path().join("data");
        let first = prepare_quietly(&files, &SETTINGS, &dir).unwrap();
        assert!(!first.reused);
        let train = stream(&dir, Split::Train);
        let second = prepare_quietly(&files, &SETTINGS, &dir).unwrap();
        assert_eq!(second, Dataset { reused: true, ..first.clone() });

        // The same content, newly written.
        fs::write(&files[3], &documents(20, 500)[3]).unwrap();
        fs::File::open(&files[3]).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(prepare_quietly(&files, &SETTINGS, &dir).unwrap().reused);
        assert!(prepare_quietly(&files, &SETTINGS, &dir).unwrap().reused);

        fs::remove_file(dir.join("train-00000.tokens")).unwrap();
        assert!(!prepare_quietly(&files, &SETTINGS, &dir).unwrap().reused);
        assert!(stream(&dir, Split::Train) == train);
    }

    #[test]
    fn changed_sources_are_refused_by_name() {
        let contents = documents(20, 500);
        let check = |change: &dyn Fn(&mut Vec<PathBuf>, &mut Settings), wants: &[&str]| {
            let scratch = Scratch::new("changed");
            let mut files = write_files(&scratch, &contents);
            let dir = scratch.path().join("data");
            let mut settings = SETTINGS;
            prepare_quietly(&files, &settings, &dir).unwrap();
            change(&mut files, &mut settings);
            let error = prepare_quietly(&files, &settings, &dir).unwrap_err().to_string();
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
        let more = |files: &mut Vec<PathBuf>, _: &mut Settings| {
            let path = files[0].with_file_name("text-999.txt");
            fs::write(&path, "more").unwrap();
            files.push(path);
        };
        check(&more, &["text-999.txt has changed", "was not among the files"]);
        check(
            &|_, settings| settings.sequence = 8,
            &["dataset.json has changed", "sequence is 8, was 16"],
        );
        let gone = |files: &mut Vec<PathBuf>, _: &mut Settings| fs::remove_file(&files[2]).unwrap();
        check(&gone, &["text-002.txt", "No such file"]);
    }

    #[test]
    fn too_little_text_says_how_much_is_wanted() {
        let scratch = Scratch::new("small");
        let files = write_files(&scratch, &documents(2, 40));
        let dir = scratch.path().join("data");
        let error = prepare_quietly(&files, &SETTINGS, &dir).unwrap_err().to_string();
        // Four training windows and one held out, each side with one token more.
        assert!(error.contains("80 bytes in 2 files, want 82 or more"), "{error}");
        assert!(!dir.join(FILE_NAME).exists());
        let error = prepare_quietly(&[], &SETTINGS, &dir).unwrap_err().to_string();
        assert_eq!(error, "no text: the list of files is empty");
    }
}
