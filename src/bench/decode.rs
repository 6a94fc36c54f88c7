//! `shoal bench decode`: plain against speculative decoding, and the bound of what speculation can
//! gain: (1 + p) / (c2 + `c_mtp`), with p the share of drafts that are right, c2 the time of a pass over
//! two tokens of each text and `c_mtp` that of a draft, both in passes over one token.

use serde::Serialize;
use shoal_infer::{Cache, ModelError, Request, Sampling, Step, Text, Voice};

use crate::cli::{Decode, Output, Speculate};
use crate::clock::Stopwatch;
use crate::exit::Stopped;
use crate::show::{json, table};
use crate::terminal::{data, note};
use crate::voice::{self, Interrupted};

/// Every figure is the best of so many measurements, taken in turn: what else the machine does slows
/// some of them down and speeds none up.
const TURNS: usize = 3;

/// Passes of each kind whose best is compared.
const PASSES: usize = 40;

#[derive(Serialize)]
struct Row {
    batch: usize,
    plain_tokens_per_second: f64,
    speculative_tokens_per_second: f64,
    speed_up: f64,
    acceptance: f64,
    c2: f64,
    c_mtp: f64,
    bound: f64,
    share_of_bound: f64,
    identical: bool,
}

/// One way to write the texts.
struct Written {
    tokens_per_second: f64,
    tokens: Vec<Vec<u32>>,
    acceptance: f64,
}

pub(super) fn bench(args: &Decode) -> Result<(), Stopped> {
    if args.tokens < 2 || args.batch.contains(&0) {
        return Err(Stopped::Input("want 2 tokens or more, and batches of 1 or more".into()));
    }
    let interrupted = Interrupted::listen()?;
    let voice = voice::open(&args.model)?;
    voice::speculates(&voice, &args.model, Speculate::Mtp)?;
    let pool = voice::pool(args.model.threads)?;
    note(&format!("{} threads; each figure is the best of several", pool.current_num_threads()));
    let mut rows = Vec::new();
    for batch in &args.batch {
        let row = pool.install(|| measure(&voice, args, *batch, &interrupted));
        if let Some(signal) = interrupted.signal() {
            return Err(Stopped::Signal(signal));
        }
        let row = row?;
        note(&format!("batch {batch}: {:.2} times as fast", row.speed_up));
        rows.push(row);
    }
    match args.output {
        Output::Table => data(&shown(&rows)),
        Output::Json => data(&json(&rows)?),
    }
    Ok(())
}

fn measure(
    voice: &Voice,
    args: &Decode,
    batch: usize,
    interrupted: &Interrupted,
) -> Result<Row, Stopped> {
    let (mut plain, mut drafted) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        plain.push(write(voice, args, batch, false, interrupted)?);
        drafted.push(write(voice, args, batch, true, interrupted)?);
    }
    let best = |all: &[Written]| all.iter().map(|one| one.tokens_per_second).fold(0.0, f64::max);
    let (p, identical) = (drafted[0].acceptance, plain[0].tokens == drafted[0].tokens);
    let (c2, c_mtp) = costs(voice, args, batch)?;
    let (plain, drafted) = (best(&plain), best(&drafted));
    let (speed_up, bound) = (drafted / plain, (1.0 + p) / (c2 + c_mtp));
    Ok(Row {
        batch,
        plain_tokens_per_second: plain,
        speculative_tokens_per_second: drafted,
        speed_up,
        acceptance: p,
        c2,
        c_mtp,
        bound,
        share_of_bound: speed_up / bound,
        identical,
    })
}

fn prompt(voice: &Voice, args: &Decode, number: usize) -> Result<Vec<u32>, Stopped> {
    let text = &args.prompt[number % args.prompt.len()];
    Ok(voice.tokenizer().encode(text.as_bytes())?.tokens)
}

/// Continues every prompt, `batch` at a time.
fn write(
    voice: &Voice,
    args: &Decode,
    batch: usize,
    speculate: bool,
    interrupted: &Interrupted,
) -> Result<Written, Stopped> {
    let n_texts = args.prompt.len().next_multiple_of(batch);
    let (mut new, mut seconds, mut done) = (0, 0.0, Vec::<Text>::new());
    for first in (0..n_texts).step_by(batch) {
        let mut texts = Vec::<Text>::new();
        for number in first..first + batch {
            let prompt = prompt(voice, args, number)?;
            let sampling = Sampling::default();
            let request = Request { prompt, tokens: args.tokens, sampling, stop: Vec::new() };
            texts.push(voice.begin(request, speculate)?);
        }
        let (tokens, took) = decode(voice, &mut texts, interrupted)?;
        (new, seconds) = (new + tokens, seconds + took);
        done.append(&mut texts);
    }
    let sum = |of: fn(&Text) -> u64| done.iter().map(of).sum::<u64>() as f64;
    Ok(Written {
        tokens_per_second: new as f64 / seconds,
        acceptance: sum(|text| text.tally().accepted) / sum(|text| text.tally().drafted).max(1.0),
        tokens: done.iter().map(|text| text.new_tokens().to_vec()).collect(),
    })
}

/// Writes texts to their ends; the tokens after the first of each, and the seconds these took.
fn decode(
    voice: &Voice,
    texts: &mut [Text],
    interrupted: &Interrupted,
) -> Result<(u64, f64), Stopped> {
    let mut watch = Stopwatch::start();
    let mut begun = None;
    while texts.iter().any(|text| text.ended().is_none()) && interrupted.signal().is_none() {
        voice.round(&mut texts.iter_mut().collect::<Vec<_>>())?;
        if begun.is_none() && texts.iter().all(|text| 0 < text.tally().passes) {
            begun = Some(count(texts));
            watch = Stopwatch::start();
        }
    }
    let new = count(texts).saturating_sub(begun.unwrap_or(0));
    Ok((new, watch.seconds()))
}

fn count(texts: &[Text]) -> u64 {
    texts.iter().map(|text| text.tally().tokens).sum()
}

/// The time of a pass over two tokens, and of a draft, in passes over one token, in the middle of
/// the texts.
fn costs(voice: &Voice, args: &Decode, batch: usize) -> Result<(f64, f64), Stopped> {
    let decoder = voice.decoder();
    let positions = (args.tokens / 2).clamp(1, decoder.positions().saturating_sub(2));
    let middle: Vec<u32> = prompt(voice, args, 0)?.into_iter().cycle().take(positions).collect();
    let mut caches: Vec<Cache> = (0..batch).map(|_| decoder.cache()).collect();
    let mut drafts: Vec<Cache> = (0..batch).map(|_| decoder.module_cache()).collect();
    let fail = |error: ModelError| Stopped::Failed(error.into());
    let feed = |caches: &mut [Cache], tokens: &[u32]| {
        let n = caches.first().map_or(0, Cache::len);
        let mut steps: Vec<Step<'_>> =
            caches.iter_mut().map(|cache| Step { cache, tokens }).collect();
        let watch = Stopwatch::start();
        let hidden = decoder.advance(&mut steps)?;
        decoder.logits(&hidden);
        let seconds = watch.seconds();
        for cache in caches {
            cache.truncate(n);
        }
        Ok::<_, ModelError>((seconds, hidden))
    };
    let mut steps: Vec<Step<'_>> =
        caches.iter_mut().map(|cache| Step { cache, tokens: &middle }).collect();
    let hidden = decoder.advance(&mut steps).map_err(fail)?;
    let mut steps: Vec<Step<'_>> =
        drafts.iter_mut().map(|cache| Step { cache, tokens: &middle }).collect();
    decoder.predict(1, &hidden, &mut steps).map_err(fail)?;
    let pair = [middle[0], middle[middle.len() - 1]];
    let (mut one, mut two, mut draft) = (f64::MAX, f64::MAX, f64::MAX);
    for _ in 0..PASSES {
        let (seconds, hidden) = feed(&mut caches, &pair[..1]).map_err(fail)?;
        one = one.min(seconds);
        two = two.min(feed(&mut caches, &pair).map_err(fail)?.0);
        let mut steps: Vec<Step<'_>> =
            drafts.iter_mut().map(|cache| Step { cache, tokens: &pair[..1] }).collect();
        let watch = Stopwatch::start();
        let read = decoder.predict(1, &hidden, &mut steps).map_err(fail)?;
        decoder.logits(&read);
        draft = draft.min(watch.seconds());
        for cache in &mut drafts {
            cache.truncate(positions);
        }
    }
    Ok((two / one, draft / one))
}

fn shown(rows: &[Row]) -> String {
    let head = [
        "batch",
        "plain tok/s",
        "drafted tok/s",
        "times",
        "p",
        "c2",
        "c_mtp",
        "bound",
        "share",
        "same",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.batch.to_string(),
            format!("{:.0}", row.plain_tokens_per_second),
            format!("{:.0}", row.speculative_tokens_per_second),
            format!("{:.2}", row.speed_up),
            format!("{:.1} %", row.acceptance * 100.0),
            format!("{:.2}", row.c2),
            format!("{:.2}", row.c_mtp),
            format!("{:.2}", row.bound),
            format!("{:.0} %", row.share_of_bound * 100.0),
            if row.identical { "yes" } else { "no" }.to_owned(),
        ]
    }));
    table(&lines)
}
