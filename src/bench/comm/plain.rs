//! The limit: bytes through two sockets and nothing else.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use serde::Serialize;
use shoal_bench::median;

use crate::clock::Stopwatch;

/// What one call hands to the system.
const BUFFER_BYTES: usize = 1 << 20;
const BUFFERS: usize = 512;
const ROUNDS: usize = 3;
const WORDS: usize = 500;

/// Of one connection between two processes.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Plain {
    pub one_way_gigabytes_per_second: f64,
    /// In each direction, while both are busy.
    pub both_ways_gigabytes_per_second: f64,
    /// 64 bytes there and back.
    pub round_trip_seconds: f64,
}

/// One end measures, the other does the same and forgets it. Medians of three rounds.
pub(super) fn measure(stream: &TcpStream, is_first: bool) -> io::Result<Plain> {
    stream.set_nodelay(true)?;
    let (mut one_way, mut both_ways, mut words) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one_way.push(rate(stream, is_first, !is_first)?);
        both_ways.push(rate(stream, true, true)?);
    }
    let mut word = [0; 64];
    for _ in 0..WORDS {
        let watch = Stopwatch::start();
        let (mut to, mut from) = (stream, stream);
        if is_first {
            to.write_all(&word)?;
            from.read_exact(&mut word)?;
        } else {
            from.read_exact(&mut word)?;
            to.write_all(&word)?;
        }
        words.push(watch.seconds());
    }
    Ok(Plain {
        one_way_gigabytes_per_second: median(&one_way),
        both_ways_gigabytes_per_second: median(&both_ways),
        round_trip_seconds: median(&words),
    })
}

/// Gigabytes a second until all has arrived at its end.
fn rate(stream: &TcpStream, sends: bool, receives: bool) -> io::Result<f64> {
    let watch = Stopwatch::start();
    thread::scope(|scope| {
        let sending = sends.then(|| scope.spawn(|| send(stream)));
        if receives {
            receive(stream)?;
        }
        sending.map_or(Ok(()), |sending| sending.join().expect("it does not panic"))
    })?;
    // Each waits until the other has everything.
    let mut word = [0; 1];
    let (mut to, mut from) = (stream, stream);
    to.write_all(&word)?;
    from.read_exact(&mut word)?;
    Ok((BUFFERS * BUFFER_BYTES) as f64 / watch.seconds() / 1e9)
}

fn send(mut stream: &TcpStream) -> io::Result<()> {
    let buffer = vec![7; BUFFER_BYTES];
    (0..BUFFERS).try_for_each(|_| stream.write_all(&buffer))
}

fn receive(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    (0..BUFFERS).try_for_each(|_| stream.read_exact(&mut buffer))
}
