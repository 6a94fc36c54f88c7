//! The picture: rows of parts, from 80 x 24 upwards, and a sentence where there is less room.

mod parts;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::border;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};
use shoal_cluster::words::RigIs;

use super::view::{Part, View};
use crate::terminal::one_line as clean;

/// Less is no room for anything.
const LEAST: (u16, u16) = (40, 12);

const KEYS: &str = "q quit  tab next part  arrows move  enter large  ? help";

const HELP: &str = "\
q          end
tab        the next part; shift-tab the one before
up, down   move in it; page up, page down: ten lines
enter      make it large, and small again
left, right  another job of the cluster
?          this

Rates are of the time between two looks. Figures that are
not there are not known here: a worker's traffic is only
known where its metrics can be read.";

const ASCII: border::Set<'_> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

pub(crate) fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text =
            format!("{} x {} is too small: 80 x 24 will do. q ends", area.width, area.height);
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let rows = [Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)];
    let [head, middle, foot] = Layout::vertical(rows).areas(area);
    frame.render_widget(Line::styled(title(view), bold()), head);
    let below = match &view.past.look.trouble {
        Some(trouble) => Line::styled(clean(trouble), view.style(Color::Red)),
        None => Line::styled(KEYS, view.faint()),
    };
    frame.render_widget(below, foot);
    if view.large {
        part(frame, view, view.part, middle);
    } else {
        all(frame, view, middle);
    }
    if view.help {
        help(frame, view, middle);
    }
}

fn all(frame: &mut Frame<'_>, view: &View, area: Rect) {
    // In 24 lines these are exactly their heights.
    let heights = [7, 6, 5, 4].map(Constraint::Fill);
    let [first, second, third, events] = Layout::vertical(heights).areas(area);
    let two = |row: Rect| Layout::horizontal([Constraint::Fill(1); 2]).areas::<2>(row);
    for (row, parts) in [
        (first, [Part::Run, Part::Loss]),
        (second, [Part::Rigs, Part::Stages]),
        (third, [Part::Experts, Part::Links]),
    ] {
        for (place, which) in two(row).into_iter().zip(parts) {
            part(frame, view, which, place);
        }
    }
    part(frame, view, Part::Events, events);
}

fn part(frame: &mut Frame<'_>, view: &View, which: Part, area: Rect) {
    let (title, lines) = match which {
        Part::Run => parts::run(view),
        Part::Loss => parts::loss(view, area),
        Part::Rigs => parts::rigs(view),
        Part::Stages => parts::stages(view),
        Part::Experts => parts::experts(view, area),
        Part::Links => parts::links(view),
        Part::Events => parts::events(view),
    };
    let style = if view.part == which { view.style(Color::Cyan) } else { view.faint() };
    let mut block = Block::bordered().border_style(style).title(format!(" {title} "));
    if !view.unicode {
        block = block.border_set(ASCII);
    }
    let room = usize::from(area.height.saturating_sub(2));
    let most = lines.len().saturating_sub(room);
    let scrolled = view.scrolled.get(&which).copied().unwrap_or(0).min(most);
    // Of what happened the newest is seen first, at the bottom.
    let skipped = if which == Part::Events { most - scrolled } else { scrolled };
    let shown: Vec<Line<'_>> = lines.into_iter().skip(skipped).take(room).collect();
    frame.render_widget(Paragraph::new(shown).block(block), area);
}

fn help(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let (width, height) = (60, HELP.lines().count() as u16 + 2);
    let place = area.centered(Constraint::Max(width), Constraint::Max(height));
    frame.render_widget(Clear, place);
    let mut block = Block::bordered().title(" keys ").border_style(view.style(Color::Cyan));
    if !view.unicode {
        block = block.border_set(ASCII);
    }
    frame.render_widget(Paragraph::new(HELP).block(block), place);
}

fn title(view: &View) -> String {
    let look = &view.past.look;
    let count = |n: usize, one: &str| match n {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    };
    let name = clean(&look.title);
    if look.rigs.is_empty() && look.jobs.is_empty() {
        return format!("shoal top  {name}");
    }
    let away = look.rigs.iter().filter(|rig| rig.is == RigIs::Away).count();
    let away = if away == 0 { String::new() } else { format!(" ({away} away)") };
    let (rigs, jobs) = (count(look.rigs.len(), "rig"), count(look.jobs.len(), "job"));
    format!("shoal top  {name}: {rigs}{away}, {jobs}")
}

/// Of headings; no colour.
pub(super) fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

impl View {
    pub(super) fn style(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn faint(&self) -> Style {
        if self.colours { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }
}

#[cfg(test)]
mod tests;
