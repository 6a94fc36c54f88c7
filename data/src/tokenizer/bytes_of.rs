//! The bytes of text behind every token of a `tokenizer.json`.
//!
//! Tokens are kept in one of three spellings: byte-level (each letter stands for a byte; Radford
//! et al. 2019, GPT-2), `SentencePiece`'s (`▁` is a space, `<0x0A>` a byte; Kudo and Richardson
//! 2018), and `WordPiece`'s (`##` continues a word). What spells them is read off the decoder.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::Tokenizer as Hub;

/// How a vocabulary spells its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    ByteLevel,
    SentencePiece,
    WordPiece,
    Plain,
}

/// The bytes of every token, special ones empty.
#[derive(Clone, Debug)]
pub(super) struct Table {
    spelling: Spelling,
    tokens: Vec<Vec<u8>>,
}

impl Table {
    pub(super) fn new(hub: &Hub, json: &[u8], n_tokens: u32) -> Self {
        let json: Value = serde_json::from_slice(json).unwrap_or_default();
        let spelling = spelling(&json);
        let letters = byte_letters();
        let added = hub.get_added_tokens_decoder();
        let bytes = |id: u32| match (added.get(&id), hub.id_to_token(id)) {
            (Some(token), _) if token.special => Vec::new(),
            // An added token stands for itself.
            (Some(token), _) => token.content.clone().into_bytes(),
            (None, Some(token)) => bytes_of(&token, spelling, &letters),
            (None, None) => Vec::new(),
        };
        Self { spelling, tokens: (0..n_tokens).map(bytes).collect() }
    }

    pub(super) fn is_byte_level(&self) -> bool {
        self.spelling == Spelling::ByteLevel
    }

    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        self.tokens.get(token as usize).map_or(&[], Vec::as_slice)
    }
}

fn spelling(json: &Value) -> Spelling {
    let has = |kind: &str| ["decoder", "pre_tokenizer"].iter().any(|at| names(&json[at], kind));
    if has("ByteLevel") {
        Spelling::ByteLevel
    } else if has("Metaspace") || has("ByteFallback") {
        Spelling::SentencePiece
    } else if json["model"]["type"] == "WordPiece" || has("WordPiece") {
        Spelling::WordPiece
    } else {
        Spelling::Plain
    }
}

/// Whether a part of a tokenizer, or a part of it, is of this type.
fn names(part: &Value, kind: &str) -> bool {
    match part {
        Value::Object(keys) => {
            keys.iter().any(|(key, value)| (key == "type" && *value == *kind) || names(value, kind))
        }
        Value::Array(parts) => parts.iter().any(|part| names(part, kind)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn bytes_of(token: &str, spelling: Spelling, letters: &BTreeMap<char, u8>) -> Vec<u8> {
    match spelling {
        Spelling::ByteLevel => {
            let byte = |letter| letters.get(&letter).copied();
            let bytes: Option<Vec<u8>> = token.chars().map(byte).collect();
            bytes.unwrap_or_else(|| token.as_bytes().to_vec())
        }
        Spelling::SentencePiece => {
            let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            }
        }
        Spelling::WordPiece => token.strip_prefix("##").unwrap_or(token).as_bytes().to_vec(),
        Spelling::Plain => token.as_bytes().to_vec(),
    }
}

/// The byte behind each letter: printable ones stand for themselves, the others in order for the
/// letters from U+0100 on.
pub(super) fn byte_letters() -> BTreeMap<char, u8> {
    let mut next = 0x100;
    let letter = |byte: u8| {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            return (char::from(byte), byte);
        }
        next += 1;
        (char::from_u32(next - 1).expect("it is below the surrogates"), byte)
    };
    (0..=255).map(letter).collect()
}
