//! `shoal data tokenizer`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use anyhow::Context;
use shoal_data::tokenizer::train_bpe;
use shoal_data::{Tokenizer, sample_text};

use crate::cli::TrainTokenizer;
use crate::exit::Stopped;
use crate::fetch;
use crate::progress::{Reading, short};
use crate::terminal::{data as print, note};

/// Text on which the result is tried.
const TRIED_BYTES: usize = 1 << 20;

const MEGABYTE: u64 = 1_000_000;

pub(super) fn train(args: &TrainTokenizer) -> Result<(), Stopped> {
    let name = args.output.display();
    // Looked at before the work, and again when it is written.
    let exists = || Stopped::Input(format!("{name} exists: choose another -o, or delete it"));
    if args.output.exists() {
        return Err(exists());
    }
    let mut reading = Reading::start();
    let files = fetch::files(&args.files, &mut reading)?;
    let texts = sample_text(&files, &args.field, args.max_mb * MEGABYTE, &mut |done, all| {
        reading.bytes("reading", done, Some(all));
    })?;
    let json = train_bpe(&texts, args.vocab, &mut |done, all| reading.tokenizer(done, all))?;
    drop(reading);
    let tokenizer = Tokenizer::from_json(&json, &args.output)?;
    let bytes: u64 = texts.iter().map(|text| text.len() as u64).sum();
    let (mut tried, mut tokens) = (0, 0);
    for text in &texts {
        if tried < TRIED_BYTES {
            let start = &text[..text.floor_char_boundary(TRIED_BYTES - tried)];
            tried += start.len();
            tokens += tokenizer.encode(start.as_bytes())?.tokens.len();
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&args.output);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(exists()),
        file => file.with_context(|| format!("creating {name}"))?,
    };
    let written = file.write_all(&json).and_then(|()| file.sync_all());
    written.with_context(|| format!("writing {name}"))?;
    let n = tokenizer.n_tokens();
    if n < args.vocab {
        note(&format!("the text has pairs for no more than {n} of {} tokens", args.vocab));
    }
    print(&format!(
        "{name}: {n} tokens, trained on {}B of {} files, {:.2} bytes per token",
        short(bytes as f64),
        files.len(),
        tried as f64 / tokens.max(1) as f64,
    ));
    note(&format!("in a manifest: data.tokenizer: {name}, and model.vocab_size of {n} or more"));
    Ok(())
}
