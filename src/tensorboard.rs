//! `RUN/tensorboard/`: the run's figures as TensorBoard's event files.
//!
//! A file is a row of records: length (u64, little endian), its masked CRC-32C, the bytes, their masked
//! CRC-32C (TensorFlow's `TFRecord`). Each record is a protobuf `Event` (tensorflow/core/util/event.proto); only
//! the few fields that are needed are written, by hand. Each launch begins a file of its own. What it says
//! of steps that are done again is marked as superseded, so TensorBoard shows one curve.
//!
//! Nothing depends on these files: one that cannot be written is worth a warning, never the run.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use shoal_plan::report::{SkippedStep, StepRow};
use shoal_plan::routing::RouterHealth;

use crate::clock::unix_time;
use crate::metrics::EvaluationRow;

/// What a CRC is masked with, so that one of bytes that hold CRCs is no trivial number.
const MASK: u32 = 0xa282_ead8;

/// Protobuf's wire types: what follows a field's number.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;

/// The event file of one launch.
pub(crate) struct EventFile {
    file: File,
    /// Writing has failed, and that was said.
    warned: bool,
}

impl EventFile {
    /// Begins a file for what comes after step `after`. What earlier files say of later steps no longer
    /// holds.
    pub(crate) fn create(directory: &Path, after: u64) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let time = unix_time();
        // TensorBoard reads the files of a directory in the order of their names.
        let name = format!("events.out.tfevents.{:010}.shoal.{}", time as u64, std::process::id());
        let mut events = Self { file: File::create(directory.join(name))?, warned: false };
        let version = field(3, b"brain.Event:2");
        events.file.write_all(&record(&event(time, 0, &version)))?;
        events.superseded_after(after);
        Ok(events)
    }

    /// From here on, what was said of the steps after this one no longer holds.
    pub(crate) fn superseded_after(&mut self, step: u64) {
        // SessionLog { status: START }: readers drop events from this step on.
        let start = field(7, &[key(1, VARINT), vec![1]].concat());
        self.write(&event(unix_time(), step + 1, &start));
    }

    /// A step that was trained at so many tokens a second.
    pub(crate) fn step(&mut self, row: &StepRow, tokens_per_second: f64) {
        let mut scalars = vec![
            ("loss/total", row.loss),
            ("loss/main", row.main_loss),
            ("loss/mtp", row.mtp_loss),
            ("loss/balance", row.balance_loss),
            ("optimizer/grad_norm", row.grad_norm),
            ("optimizer/learning_rate", row.lr),
            ("throughput/tokens_per_second", tokens_per_second),
        ];
        if let Some(health) = RouterHealth::of(&row.router) {
            scalars.extend([
                ("router/load_entropy", health.load_entropy),
                ("router/load_max", health.load_max),
                ("router/bias_min", health.bias_min.into()),
                ("router/bias_max", health.bias_max.into()),
            ]);
        }
        self.scalars(row.step, &scalars);
    }

    /// A step that was not trained.
    pub(crate) fn skipped(&mut self, skipped: &SkippedStep) {
        self.scalars(skipped.step, &[("optimizer/skipped_in_a_row", skipped.in_a_row.into())]);
    }

    pub(crate) fn evaluated(&mut self, row: &EvaluationRow) {
        let name = |figure: &str| format!("evaluation/{}/{figure}", row.set);
        let figures = [
            ("loss", row.loss),
            ("bits_per_byte", row.bits_per_byte),
            ("perplexity", row.perplexity),
        ];
        let figures = figures.map(|(figure, value)| (name(figure), value));
        let known = figures.iter().filter_map(|(name, value)| Some((name.as_str(), (*value)?)));
        self.scalars(row.step, &known.collect::<Vec<_>>());
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) {
        let values = scalars.iter().map(|(tag, value)| {
            let value = [key(2, FOUR_BYTES), (*value as f32).to_le_bytes().to_vec()].concat();
            field(1, &[field(1, tag.as_bytes()), value].concat())
        });
        let summary = values.collect::<Vec<_>>().concat();
        self.write(&event(unix_time(), step, &field(5, &summary)));
    }

    /// In one call: a record is whole or torn at the end of the file, where readers expect it.
    fn write(&mut self, event: &[u8]) {
        if let Err(error) = self.file.write_all(&record(event))
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!(%error, "TensorBoard's event file is not written");
        }
    }
}

/// `wall_time` (1) and `step` (2) of an event, and what it holds.
fn event(time: f64, step: u64, what: &[u8]) -> Vec<u8> {
    let time = [key(1, EIGHT_BYTES), time.to_le_bytes().to_vec()].concat();
    // Protobuf does not write a zero, and neither does TensorFlow.
    let step = if step == 0 { Vec::new() } else { [key(2, VARINT), varint(step)].concat() };
    [time, step, what.to_vec()].concat()
}

/// A field of bytes, text or a message.
fn field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [key(number, LENGTH), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn key(number: u64, wire_type: u64) -> Vec<u8> {
    varint((number << 3) | wire_type)
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push((value as u8) | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let (of_length, of_bytes) = (masked(&length).to_le_bytes(), masked(bytes).to_le_bytes());
    [&length[..], &of_length, bytes, &of_bytes].concat()
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::tests::Dir;

    #[test]
    fn varints_are_protobufs() {
        // The examples of protobuf's encoding guide.
        assert_eq!(varint(1), [1]);
        assert_eq!(varint(150), [0x96, 1]);
        assert_eq!(varint(u64::MAX).len(), 10);
        assert_eq!(field(2, b"testing"), *b"\x12\x07testing");
    }

    #[test]
    fn the_first_record_is_the_one_every_event_file_begins_with() {
        let dir = Dir::new("tensorboard");
        drop(EventFile::create(&dir.0, 0).unwrap());
        let path = fs::read_dir(&dir.0).unwrap().next().unwrap().unwrap().path();
        let bytes = fs::read(path).unwrap();
        // 9 bytes of time, 15 of the version; the length's CRC as TensorFlow writes it.
        assert_eq!(bytes[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(bytes[12 + 9..12 + 24], *b"\x1a\x0dbrain.Event:2");
    }

    /// Reads a file back by the format's own words: lengths, CRCs, fields.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let (body, rest) = bytes[12..].split_at(length);
            for (of, crc) in [(&bytes[..8], &bytes[8..12]), (body, &rest[..4])] {
                let unmasked = u32::from_le_bytes(crc.try_into().unwrap()).wrapping_sub(MASK);
                assert_eq!(unmasked.rotate_left(15), crc32c::crc32c(of));
            }
            found.push(body.to_vec());
            bytes = &rest[4..];
        }
        found
    }

    #[test]
    fn a_step_is_one_record_and_a_rollback_another() {
        let dir = Dir::new("tensorboard-step");
        let mut events = EventFile::create(&dir.0, 300).unwrap();
        let row = StepRow {
            step: 301,
            loss: 2.5,
            main_loss: 2.0,
            mtp_loss: 1.0,
            balance_loss: 0.25,
            grad_norm: 1.0,
            lr: 1e-3,
            tokens: 2048,
            router: Vec::new(),
        };
        events.step(&row, 4096.0);
        events.superseded_after(250);
        let path = fs::read_dir(&dir.0).unwrap().next().unwrap().unwrap().path();
        let found = records(&fs::read(path).unwrap());
        assert_eq!(found.len(), 4);
        // Step 301, then SessionLog { status: 1 }.
        assert_eq!(found[1][9..], [0x10, 0xad, 2, 0x3a, 2, 8, 1]);
        assert_eq!(found[3][9..], [0x10, 0xfb, 1, 0x3a, 2, 8, 1]);
        let main = [&b"\x0a\x09loss/main\x15"[..], &2.0_f32.to_le_bytes()].concat();
        assert!(found[2].windows(main.len()).any(|window| window == main), "{:?}", found[2]);
    }
}
