//! Between text and tokens: bytes, or any Hugging Face `tokenizer.json`.
//!
//! Text never makes a special token: `<|endoftext|>` inside a document is five or so ordinary
//! tokens. Special tokens come from us alone.

mod beside;
mod bytes_of;
mod end_token;
mod stand_alone;
mod train;

use std::fs;
use std::path::Path;

use tokenizers::Tokenizer as Hub;

pub use train::{END_OF_TEXT, train_bpe};

use crate::error::{DataError, io_error};
use crate::record::Record;
use crate::settings::{EndToken, TokenizerChoice};
use crate::shards::Vocabulary;

/// The name of a run's tokenizer beside its shards. Bytes need none.
pub const FILE_NAME: &str = "tokenizer.json";

/// Cuts text into tokens and puts it together again.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    kind: Kind,
    vocabulary: Vocabulary,
    end_token: Option<u32>,
    /// Of the `tokenizer.json`; of nothing for bytes.
    hash: blake3::Hash,
}

#[derive(Clone, Debug)]
enum Kind {
    Bytes,
    Hub { hub: Box<Hub>, table: bytes_of::Table },
}

/// Text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub tokens: Vec<u32>,
    /// Whether bytes that are not UTF-8 were replaced by U+FFFD. Never for bytes.
    pub replaced: bool,
}

impl Tokenizer {
    /// Every byte is a token; id 256 may be the end token.
    pub fn bytes() -> Self {
        let hash = blake3::hash(b"");
        Self { kind: Kind::Bytes, vocabulary: Vocabulary::BYTES, end_token: None, hash }
    }

    /// From the content of a `tokenizer.json`; `path` is for errors. Without an end token.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self, DataError> {
        if Self::is_bytes_json(json) {
            return Ok(Self::bytes());
        }
        let wrong = |what: String| DataError::Tokenizer { path: path.to_path_buf(), what };
        let mut hub = Hub::from_bytes(json)
            .map_err(|error| wrong(format!("it is no readable tokenizer.json: {error}")))?;
        // Truncation and padding would lose or invent text.
        hub.with_truncation(None).map_err(|error| wrong(error.to_string()))?;
        hub.with_padding(None);
        hub.set_encode_special_tokens(true);
        let largest = hub.get_vocab(true).into_values().max();
        let size = largest.ok_or_else(|| wrong("it has no tokens".into()))?.saturating_add(1);
        let hash = blake3::hash(json);
        let [a, b, c, d, ..] = *hash.as_bytes();
        let vocabulary = Vocabulary { size, id: u32::from_le_bytes([a, b, c, d]) };
        let table = bytes_of::Table::new(&hub, json, size);
        let kind = Kind::Hub { hub: Box::new(hub), table };
        Ok(Self { kind, vocabulary, end_token: None, hash })
    }

    /// Reads a `tokenizer.json`. Without an end token.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::from_json(&fs::read(path).map_err(io_error("reading", path))?, path)
    }

    /// The tokenizer that made the shards in `dir`, with its end token.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let record = Record::read_there(dir)?;
        let tokenizer = record.tokenizer();
        let mut found = match tokenizer.choice {
            TokenizerChoice::Bytes => Self::bytes(),
            TokenizerChoice::Bpe { .. } | TokenizerChoice::File(_) => {
                Self::read(&dir.join(FILE_NAME))?
            }
        };
        if found.hash.to_hex().as_str() != tokenizer.blake3 {
            let what = format!("blake3 {}, want {}", found.hash, tokenizer.blake3);
            return Err(DataError::Damaged { path: dir.join(FILE_NAME), what });
        }
        found.end_token = tokenizer.end_token;
        found.vocabulary = record.vocabulary();
        Ok(found)
    }

    /// The same with the end token that `choice` asks for.
    ///
    /// # Errors
    /// More tokens than the model's `vocab_size`, or no such end token.
    pub fn for_model(self, choice: &EndToken, vocab_size: u32) -> Result<Self, DataError> {
        let end_token = end_token::resolve(&self, choice, vocab_size)?;
        let size = self.vocabulary.size.max(end_token.map_or(0, |token| token + 1));
        if size > vocab_size {
            return Err(DataError::VocabularyTooSmall { tokens: size, vocab_size });
        }
        let vocabulary = Vocabulary { size, ..self.vocabulary };
        Ok(Self { vocabulary, end_token, ..self })
    }

    /// Ids are below this; the model may have more.
    pub fn n_tokens(&self) -> u32 {
        self.vocabulary.size
    }

    pub(crate) fn vocabulary(&self) -> Vocabulary {
        self.vocabulary
    }

    /// The token after every document.
    pub fn end_token(&self) -> Option<u32> {
        self.end_token
    }

    /// blake3 of the `tokenizer.json`; of nothing for bytes.
    pub fn hash(&self) -> blake3::Hash {
        self.hash
    }

    /// Whether text of any bytes comes back as it was.
    pub fn is_bytes(&self) -> bool {
        matches!(self.kind, Kind::Bytes)
    }

    /// The tokens of a piece of text, no special ones among them. What is not UTF-8 is replaced by
    /// U+FFFD, but for a character that the end of the piece cuts: that is left out.
    ///
    /// # Errors
    /// Text that the tokenizer has no token for, where it has no token for the unknown either.
    pub fn encode(&self, text: &[u8]) -> Result<Encoded, DataError> {
        let Kind::Hub { hub, .. } = &self.kind else {
            let tokens = text.iter().copied().map(u32::from).collect();
            return Ok(Encoded { tokens, replaced: false });
        };
        let text = match str::from_utf8(text) {
            Err(error) if error.error_len().is_none() => &text[..error.valid_up_to()],
            Ok(_) | Err(_) => text,
        };
        let valid = String::from_utf8_lossy(text);
        let replaced = matches!(valid, std::borrow::Cow::Owned(_));
        let encoding = hub.encode_fast(valid.as_ref(), false);
        let encoding = encoding.map_err(|error| DataError::Tokenizer {
            path: FILE_NAME.into(),
            what: format!("it cannot encode {:?}: {error}", start_of(&valid)),
        })?;
        Ok(Encoded { tokens: encoding.get_ids().to_vec(), replaced })
    }

    /// The text of tokens, special ones left out. Byte for byte what was encoded, where the
    /// tokenizer keeps everything: bytes and byte-level tokenizers without a normalizer.
    pub fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        match &self.kind {
            Kind::Bytes => tokens.iter().filter_map(|token| u8::try_from(*token).ok()).collect(),
            Kind::Hub { table, .. } if table.is_byte_level() => {
                tokens.iter().flat_map(|token| table.bytes(*token)).copied().collect()
            }
            // It fails for no ids: unknown ones are left out.
            Kind::Hub { hub, .. } => hub.decode(tokens, true).unwrap_or_default().into_bytes(),
        }
    }

    /// Bytes of text that a token stands for; 0 for special tokens and ids that are none.
    pub fn token_bytes(&self, token: u32) -> u32 {
        match &self.kind {
            Kind::Bytes => u32::from(token < 256),
            Kind::Hub { table, .. } => table.bytes(token).len() as u32,
        }
    }

    /// How a special token is called; `None` for tokens that stand for text.
    pub fn special_name(&self, token: u32) -> Option<String> {
        match &self.kind {
            Kind::Bytes => (token >= 256).then(|| {
                if self.end_token == Some(token) {
                    END_OF_TEXT.into()
                } else {
                    format!("<{token}>")
                }
            }),
            Kind::Hub { hub, table } => (table.bytes(token).is_empty())
                .then(|| hub.id_to_token(token).unwrap_or_else(|| format!("<{token}>"))),
        }
    }

    /// The id of a token by its name.
    pub fn id_of(&self, name: &str) -> Option<u32> {
        match &self.kind {
            Kind::Bytes => None,
            Kind::Hub { hub, .. } => hub.token_to_id(name),
        }
    }

    /// Names and ids of the special tokens, by id.
    fn specials(&self) -> Vec<(u32, String)> {
        let Kind::Hub { hub, .. } = &self.kind else { return Vec::new() };
        let added = hub.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special);
        let mut special: Vec<_> = special.map(|(id, token)| (id, token.content)).collect();
        special.sort_unstable();
        special
    }
}

/// Enough of a text to find it again.
fn start_of(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
pub(crate) mod tests;
