//! Which token ends a document.

use super::{END_OF_TEXT, Tokenizer};
use crate::error::DataError;
use crate::settings::EndToken;

/// How the usual tokenizers call it, most telling first: GPT-2, OLMo and ours; DeepSeek; Llama 2,
/// T5 and Mistral; Gemma; Llama 3; Qwen; BERT.
const USUAL: [&str; 9] = [
    END_OF_TEXT,
    "<｜end▁of▁sentence｜>",
    "<|end▁of▁sentence|>",
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<|eos|>",
    "<EOS>",
    "[SEP]",
];

/// Names shown in an error.
const SHOWN_MAX: usize = 12;

pub(super) fn resolve(
    tokenizer: &Tokenizer,
    choice: &EndToken,
    vocab_size: u32,
) -> Result<Option<u32>, DataError> {
    match choice {
        EndToken::None => Ok(None),
        EndToken::Auto if tokenizer.is_bytes() => Ok((vocab_size > 256).then_some(256)),
        EndToken::Auto => {
            let specials = tokenizer.specials();
            let is = |name: &&str| specials.iter().find(|(_, special)| special == name);
            match USUAL.iter().find_map(is) {
                Some((id, _)) => Ok(Some(*id)),
                None => Err(missing(
                    "none of the tokenizer's special tokens has a usual name",
                    tokenizer,
                )),
            }
        }
        EndToken::Token(name) => match tokenizer.id_of(name) {
            Some(id) => Ok(Some(id)),
            None if tokenizer.is_bytes() => {
                let what = format!(
                    "bytes have no token {name:?}; with auto, a vocab_size above 256 gives them one"
                );
                Err(DataError::EndToken { what })
            }
            None => Err(missing(&format!("the tokenizer has no token {name:?}"), tokenizer)),
        },
    }
}

fn missing(what: &str, tokenizer: &Tokenizer) -> DataError {
    let names: Vec<String> =
        tokenizer.specials().into_iter().take(SHOWN_MAX).map(|(_, name)| name).collect();
    let has = if names.is_empty() {
        "it has no special tokens".to_owned()
    } else {
        format!("its special tokens begin with {}", names.join(" "))
    };
    DataError::EndToken { what: format!("{what} ({has})") }
}
