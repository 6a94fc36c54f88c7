//! A tokenizer as a file beside a model, so that the directory needs nothing else.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::beside::run_data;
use super::bytes_of::byte_letters;
use super::{END_OF_TEXT, FILE_NAME, Tokenizer};
use crate::error::{DataError, io_error};

/// The end token of bytes.
const BYTES_END: u32 = 256;

impl Tokenizer {
    /// The tokenizer of the model in `directory` with the content of a `tokenizer.json` for it:
    /// the file there or of the run it is a checkpoint of, as it is; or one that says of bytes what
    /// bytes are. `None` where there is none and the vocabulary is not theirs.
    ///
    /// # Errors
    /// A tokenizer that cannot be read, or has more tokens than `vocab_size`.
    pub fn file_beside(
        directory: &Path,
        vocab_size: u32,
    ) -> Result<Option<(Self, Vec<u8>)>, DataError> {
        let places = ["", "data", "../../data"].map(|data| directory.join(data).join(FILE_NAME));
        let file = places.iter().find(|file| file.exists());
        let is_bytes_run = file.is_none() && run_data(directory).is_some();
        let may_be_bytes = (BYTES_END..=BYTES_END + 1).contains(&vocab_size);
        if file.is_none() && !is_bytes_run && !may_be_bytes {
            return Ok(None);
        }
        let tokenizer = Self::beside(directory, vocab_size)?;
        let json = match file {
            Some(file) => fs::read(file).map_err(io_error("reading", file))?,
            None => Self::bytes_json(tokenizer.end_token().is_some()),
        };
        Ok(Some((tokenizer, json)))
    }

    /// A byte-level `tokenizer.json` without merges, whose ids are the bytes; with an end token,
    /// that is id 256.
    pub fn bytes_json(with_end: bool) -> Vec<u8> {
        let letters = byte_letters().into_iter();
        let vocabulary: Map<String, Value> =
            letters.map(|(letter, byte)| (letter.to_string(), byte.into())).collect();
        let end = json!({
            "id": BYTES_END,
            "content": END_OF_TEXT,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": true,
        });
        let spelling = json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": false,
            "use_regex": false,
        });
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": if with_end { vec![end] } else { vec![] },
            "normalizer": null,
            "pre_tokenizer": spelling.clone(),
            "post_processor": null,
            "decoder": spelling,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": false,
                "vocab": vocabulary,
                "merges": [],
            },
        });
        let mut text = serde_json::to_vec_pretty(&json).expect("plain data");
        text.push(b'\n');
        text
    }

    /// Whether a `tokenizer.json` is one of `bytes_json`.
    pub(super) fn is_bytes_json(json: &[u8]) -> bool {
        [false, true].into_iter().any(|with_end| Self::bytes_json(with_end) == json)
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::Tokenizer as Hub;

    use super::*;

    /// The judge is the library that `transformers` uses.
    #[test]
    fn ids_of_the_bytes_file_are_the_bytes() {
        for with_end in [false, true] {
            let json = Tokenizer::bytes_json(with_end);
            let hub = Hub::from_bytes(&json).unwrap();
            assert_eq!(hub.get_vocab_size(true), if with_end { 257 } else { 256 });
            let every_char: String = (1..0x3000_u32).filter_map(char::from_u32).collect();
            for text in ["", " a  b\n\t\0", "größe 漢字 🐟", "don't 123", &every_char] {
                let ids = hub.encode(text, false).unwrap();
                let want: Vec<u32> = text.bytes().map(u32::from).collect();
                assert_eq!(ids.get_ids(), want);
                assert_eq!(hub.decode(&want, true).unwrap(), text);
            }
            assert_eq!(hub.token_to_id(END_OF_TEXT), with_end.then_some(256));
        }
    }

    #[test]
    fn the_bytes_file_is_read_as_bytes() {
        let scratch = tempfile::tempdir().unwrap();
        let (bytes, json) = Tokenizer::file_beside(scratch.path(), 257).unwrap().unwrap();
        assert!(bytes.is_bytes() && bytes.end_token() == Some(256));
        fs::write(scratch.path().join(FILE_NAME), &json).unwrap();
        // Even for a model with more tokens than bytes have.
        let (again, same) = Tokenizer::file_beside(scratch.path(), 320).unwrap().unwrap();
        assert!(again.is_bytes() && same == json);
        let empty = tempfile::tempdir().unwrap();
        assert!(Tokenizer::file_beside(empty.path(), 320).unwrap().is_none());
        let error = Tokenizer::file_beside(scratch.path(), 200).unwrap_err();
        assert!(error.to_string().contains("200"), "{error}");
    }
}
