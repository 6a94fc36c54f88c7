//! The `data` verbs: text looked at, counted, and made into tokenizers. No run is started.
//! Results go to standard output, everything else to standard error.

mod inspect;
mod stats;
mod train;

use std::path::Path;

use shoal_data::{EndToken, Tokenizer};

use crate::cli::Data;
use crate::exit::Stopped;

/// Tokens of a window where no manifest says it: for counting windows of bare files.
const SEQUENCE: u32 = 1024;

pub(crate) fn run(verb: &Data) -> Result<(), Stopped> {
    match verb {
        Data::Tokenizer(args) => train::train(args),
        Data::Inspect(args) => inspect::inspect(args),
        Data::Stats(args) => stats::stats(args),
    }
}

/// `bytes`, or a `tokenizer.json`, for any model: with the end token it has, or none.
pub(crate) fn tokenizer(choice: &str) -> Result<Tokenizer, Stopped> {
    let tokenizer = match choice {
        "bytes" => Tokenizer::bytes(),
        path => {
            let path = Path::new(path);
            if !path.is_file() {
                let path = path.display();
                let what = format!("no tokenizer {path}: want `bytes` or a tokenizer.json");
                return Err(Stopped::Input(what));
            }
            Tokenizer::read(path)?
        }
    };
    let choice = if tokenizer.is_bytes() { EndToken::None } else { EndToken::Auto };
    // Only looked at, so that one without an end token of a usual name will do.
    Ok(tokenizer.clone().for_model(&choice, u32::MAX).unwrap_or(tokenizer))
}
