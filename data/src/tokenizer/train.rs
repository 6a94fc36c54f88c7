//! Trains a byte-level BPE (Sennrich et al. 2016; bytes as in Radford et al. 2019, GPT-2). The same
//! text gives the same tokenizer: equally frequent pairs are merged in the order of their ids.

use std::sync::mpsc;
use std::thread;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, TokenizerBuilder};

use crate::error::DataError;

/// The only special token of our own tokenizers.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A pair seen once is not worth a token.
const PAIR_COUNT_MIN: u64 = 2;

/// The bytes, and the end token.
const VOCAB_SIZE_MIN: u32 = 257;

/// Trains a tokenizer on `texts` and returns its `tokenizer.json`. Fewer than `vocab_size` tokens
/// come out where the text has too few different pairs. `progress` is told the bytes counted; the
/// merges, after the last byte, take their time too.
///
/// # Errors
/// A vocabulary smaller than the bytes and the end token.
pub fn train_bpe(
    texts: &[String],
    vocab_size: u32,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Vec<u8>, DataError> {
    if vocab_size < VOCAB_SIZE_MIN {
        let what = format!(
            "a trained tokenizer of {vocab_size} tokens: want at least {VOCAB_SIZE_MIN}, the bytes \
             and the end token"
        );
        return Err(DataError::Settings { what });
    }
    let bytes_all = texts.iter().map(|text| text.len() as u64).sum();
    let (sender, receiver) = mpsc::channel();
    let trained = thread::scope(|scope| {
        let training = scope.spawn(move || train(texts, vocab_size, sender));
        let mut done = 0;
        for bytes in receiver {
            done += bytes;
            progress(done, bytes_all);
        }
        training.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    trained.map(String::into_bytes).map_err(|error| DataError::Tokenizer {
        path: super::FILE_NAME.into(),
        what: format!("its training failed: {error}"),
    })
}

fn train(
    texts: &[String],
    vocab_size: u32,
    counted: mpsc::Sender<u64>,
) -> Result<String, tokenizers::Error> {
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size as usize)
        .min_frequency(PAIR_COUNT_MIN)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, _, ByteLevel, _>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
        .with_post_processor(None)
        .with_decoder(Some(ByteLevel::new(false, false, true)))
        .build()?;
    let texts = texts.iter().map(move |text| {
        // Nobody listens any more: training goes on all the same.
        let _ = counted.send(text.len() as u64);
        text.as_str()
    });
    tokenizer.train(&mut trainer, texts)?;
    tokenizer.to_string(false)
}
