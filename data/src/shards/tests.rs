//! Windows over the stream, damage, and the header of the version before.

use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

use super::*;
use crate::proof::{SETTINGS, prepare_files};
use crate::record::FILE_NAME;
use crate::settings::Settings;

fn prepared(scratch: &TempDir) -> PathBuf {
    let text = scratch.path().join("text");
    fs::write(&text, (0..1000u32).map(|at| (at % 251) as u8).collect::<Vec<_>>()).unwrap();
    let dir = scratch.path().join("data");
    let settings = Settings { heldout_fraction: 0.1, windows_min_train: 2, ..SETTINGS };
    prepare_files(&[text], &settings, &dir).unwrap();
    dir
}

#[test]
fn windows_overlap_by_one_token_and_end_with_the_stream() {
    let scratch = tempfile::tempdir().unwrap();
    let shards = TokenShards::open(&prepared(&scratch), Part::Train(0)).unwrap();
    assert_eq!((shards.n_tokens(), shards.windows(16), shards.windows(899)), (900, 56, 1));
    assert_eq!((shards.windows(900), shards.windows(1)), (0, 899));
    let (first, second) = (shards.window(0, 16), shards.window(1, 16));
    assert_eq!((first.len(), first[16], second[0]), (17, 16, 16));
    assert_eq!(shards.window(0, 899).last(), Some(&(899 % 251)));
}

#[test]
fn any_damage_to_a_shard_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = prepared(&scratch);
    let path = dir.join("train-text-00000.tokens");
    let good = fs::read(&path).unwrap();
    let check = |bytes: &[u8], want: &str| {
        fs::write(&path, bytes).unwrap();
        let error = TokenShards::open(&dir, Part::Train(0)).unwrap_err().to_string();
        assert!(
            error.contains("train-text-00000.tokens is damaged") && error.contains(want),
            "{error}"
        );
    };
    for at in [0, 9, 13, 17, 30, 57, 61, HEADER_BYTES, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        check(&bytes, if at < HEADER_BYTES { "header" } else { "blake3" });
    }
    check(&good[..good.len() - 1], "1863 bytes, want 1864");
    check(&[], "0 bytes");
    fs::remove_file(&path).unwrap();
    let error = TokenShards::open(&dir, Part::Train(0)).unwrap_err().to_string();
    assert!(error.contains("opening") && error.contains("train-text-00000.tokens"), "{error}");
    let error = TokenShards::open(&dir, Part::Eval("none")).unwrap_err().to_string();
    assert!(error.contains("no evaluation set \"none\""), "{error}");
    fs::write(dir.join(FILE_NAME), b"{").unwrap();
    let error = TokenShards::open(&dir, Part::Heldout).unwrap_err().to_string();
    assert!(error.contains("dataset.json is damaged"), "{error}");
}

#[test]
fn headers_of_both_versions_are_read_and_others_refused() {
    let header = Header { vocabulary: Vocabulary::BYTES, tokens: 5, hash: blake3::hash(b"x") };
    let mut bytes = header.encode();
    assert_eq!(Header::decode(&bytes), Ok(header));
    bytes[8] = 1;
    bytes[56] = 0;
    assert_eq!(Header::decode(&bytes), Ok(header));
    bytes[8] = 3;
    assert!(Header::decode(&bytes).unwrap_err().contains("version 3"));
    bytes[0] = 0;
    assert!(Header::decode(&bytes).unwrap_err().contains("does not begin"));
    let wide = Header { vocabulary: Vocabulary { size: 70_000, id: 9 }, ..header };
    assert_eq!(Header::decode(&wide.encode()), Ok(wide));
    let mut narrow = wide.encode();
    narrow[56] = 2;
    assert!(Header::decode(&narrow).unwrap_err().contains("2 bytes a token"));
}
