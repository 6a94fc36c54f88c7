//! The verb `top`: a cluster or a run on one screen, looked at again and again. Looks are taken by a thread of their
//! own, so that keys are heard while somebody does not answer.

mod draw;
mod keys;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event};
use ratatui::{DefaultTerminal, Terminal};

use crate::clock::Stopwatch;
use crate::exit::Stopped;
use crate::look::{Look, Source};
use crate::signals::{Signal, Signals};
use crate::terminal::{data, note};
use crate::{cli, launch, settings, terminal};
use view::{View, Wish};

/// How long a key, and what was seen, may wait.
const TURN: Duration = Duration::from_millis(100);

/// Between the two looks of one picture: rates need two.
const BETWEEN: Duration = Duration::from_secs(1);

/// Lines of one picture where there is no terminal.
const LINES: u16 = 24;
const COLUMNS: (usize, usize) = (80, 200);

/// What the screen hears of.
enum News {
    Look(Box<Look>),
    /// Nobody answered: why.
    Trouble(String),
    Signal(Signal),
}

pub(crate) fn top(args: &cli::Top) -> Result<(), Stopped> {
    let mut source = Source::choose(args.what.as_deref(), &args.home)?;
    let watch = Stopwatch::start();
    let first = source.look(watch.seconds())?;
    let mut view = View::new(settings::wants_colours(), terminal::shows_unicode());
    view.take(first);
    let on_screen = stdout().is_terminal() && stdin().is_terminal() && terminal::can_redraw();
    if args.once || !on_screen {
        if !args.once {
            note("this is no terminal that a picture moves on: one picture, as with --once");
        }
        return once(&mut source, watch, view);
    }
    live((source, watch), Duration::from_secs(args.every), view)
}

/// One picture, as text.
fn once(source: &mut Source, watch: Stopwatch, mut view: View) -> Result<(), Stopped> {
    let runtime = launch::event_loop()?;
    runtime.block_on(async { tokio::time::sleep(BETWEEN).await });
    view.take(source.look(watch.seconds())?);
    let columns = terminal::width().clamp(COLUMNS.0, COLUMNS.1) as u16;
    data(&picture(&view, columns, LINES)?);
    Ok(())
}

/// As a terminal of this size would show it, without colours.
fn picture(view: &View, columns: u16, lines: u16) -> anyhow::Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).context("drawing")?;
    terminal.draw(|frame| draw::draw(frame, view)).context("drawing")?;
    let cells = terminal.backend().buffer().content();
    let rows = cells.chunks(usize::from(columns.max(1)));
    let text = rows.map(|row| {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    Ok(text.collect::<Vec<_>>().join("\n"))
}

fn live(
    (source, watch): (Source, Stopwatch),
    every: Duration,
    mut view: View,
) -> Result<(), Stopped> {
    let (news, heard) = mpsc::channel();
    let (wishes, wanted) = mpsc::channel();
    listen(news.clone())?;
    // Both threads end with the process: one may wait for an answer, the other for a signal.
    let looking = move || look_on((source, watch), every, &wanted, &news);
    thread::Builder::new().name("looks".to_owned()).spawn(looking).context("starting a thread")?;
    // From here on a panic gives the terminal back, too.
    let mut terminal = ratatui::try_init().context("taking over the terminal")?;
    let ended = drive(&mut terminal, &mut view, &heard, &wishes);
    ratatui::restore();
    ended
}

fn listen(news: Sender<News>) -> Result<(), Stopped> {
    let runtime = launch::event_loop()?;
    let mut signals = {
        let _inside = runtime.enter();
        Signals::listen()?
    };
    let waiting = move || {
        let signal = runtime.block_on(signals.next());
        // The screen may have gone first.
        let _ = news.send(News::Signal(signal));
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(waiting)
        .context("starting a thread")?;
    Ok(())
}

/// Looks until nobody wants to see it.
fn look_on(
    (mut source, watch): (Source, Stopwatch),
    every: Duration,
    wanted: &Receiver<String>,
    news: &Sender<News>,
) {
    loop {
        match wanted.recv_timeout(every) {
            Ok(job) => source.turn_to(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let seen = match source.look(watch.seconds()) {
            Ok(look) => News::Look(Box::new(look)),
            Err(stopped) => News::Trouble(stopped.text().unwrap_or_default()),
        };
        if news.send(seen).is_err() {
            return;
        }
    }
}

fn drive(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    heard: &Receiver<News>,
    wishes: &Sender<String>,
) -> Result<(), Stopped> {
    let mut is_stale = true;
    loop {
        while let Ok(news) = heard.try_recv() {
            is_stale = true;
            match news {
                News::Look(look) => view.take(*look),
                News::Trouble(why) => view.trouble(why),
                News::Signal(signal) => return Err(Stopped::Signal(signal)),
            }
        }
        if std::mem::take(&mut is_stale) {
            terminal.draw(|frame| draw::draw(frame, view)).context("drawing on the terminal")?;
        }
        if !event::poll(TURN).context("listening for keys")? {
            continue;
        }
        is_stale = true;
        // A terminal of another size is drawn on anew, as after a key.
        let Event::Key(pressed) = event::read().context("reading a key")? else { continue };
        match keys::meaning(pressed).map_or(Wish::Nothing, |key| view.press(key)) {
            Wish::Nothing => {}
            Wish::Quit => return Ok(()),
            Wish::Interrupt => return Err(Stopped::Signal(Signal::Interrupt)),
            // Whoever looks may have ended; the next turn will not hear of it.
            Wish::Job(job) => drop(wishes.send(job)),
        }
    }
}
