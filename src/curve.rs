//! The loss curve, drawn with characters: braille (2 x 4 dots each) or plain ASCII.

use std::collections::BTreeSet;

/// What the curve is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ink {
    /// U+2800..: eight dots a character.
    Braille,
    /// One star a character, for terminals without Unicode.
    Ascii,
}

impl Ink {
    /// A single point.
    pub(crate) fn mark(self) -> char {
        match self {
            Self::Braille => '●',
            Self::Ascii => 'o',
        }
    }
}

/// How much room there is, in characters, axes included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canvas {
    pub width: usize,
    pub height: usize,
    pub ink: Ink,
}

/// Characters left of the plot: a label such as ` 5.61 ` and the axis.
const LABEL: usize = 8;

/// Bits of the dots of a braille character, `[column][row]`. Source: Unicode 15, table 2800.
const DOTS: [[u32; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// Draws `values`, the first belonging to step `first_step`, and single points, each of a step and
/// a value, over them. `None` for fewer than two values, or when there is no room.
pub(crate) fn draw(
    values: &[f64],
    first_step: u64,
    over: &[(u64, f64)],
    canvas: Canvas,
) -> Option<String> {
    let columns = canvas.width.checked_sub(LABEL + 1).filter(|columns| *columns >= 8)?;
    let rows = canvas.height.checked_sub(2).filter(|rows| *rows >= 2)?;
    if values.len() < 2 || !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    let (across, down) = match canvas.ink {
        Ink::Braille => (2, 4),
        Ink::Ascii => (1, 1),
    };
    let points = resample(values, columns * across);
    let seen = over.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
    let (low, high) = range(&points.iter().copied().chain(seen).collect::<Vec<_>>());
    let dots = dots(&points, rows * down, (low, high));
    let marks = marks(over, (first_step, values.len()), (columns, rows), (low, high));
    let mut text = String::new();
    for row in 0..rows {
        let label = match row {
            0 => format!("{high:6.2}"),
            _ if row + 1 == rows => format!("{low:6.2}"),
            _ => " ".repeat(6),
        };
        let letter = |column| {
            if marks.contains(&(row, column)) {
                canvas.ink.mark()
            } else {
                glyph(&dots, row, column, canvas.ink)
            }
        };
        let line: String = (0..columns).map(letter).collect();
        let axis = if canvas.ink == Ink::Braille { '┤' } else { '|' };
        text.push_str(format!("{label} {axis}{line}").trim_end());
        text.push('\n');
    }
    text.push_str(&bottom(columns, first_step, first_step + values.len() as u64 - 1, canvas.ink));
    Some(text)
}

/// The characters (row, column) where single points lie. One outside the steps is left out.
fn marks(
    over: &[(u64, f64)],
    (first_step, n_steps): (u64, usize),
    (columns, rows): (usize, usize),
    (low, high): (f64, f64),
) -> BTreeSet<(usize, usize)> {
    let part = |of: f64, all: f64, n: usize| (of / all * (n - 1) as f64).round() as usize;
    let place = |(step, value): &(u64, f64)| {
        let after = step.checked_sub(first_step).filter(|after| *after < n_steps as u64)?;
        let column = part(after as f64, (n_steps - 1) as f64, columns);
        value.is_finite().then(|| (part(high - value, high - low, rows), column))
    };
    over.iter().filter_map(place).collect()
}

/// As many values as there are dots: means where there are more, straight lines where fewer.
fn resample(values: &[f64], n: usize) -> Vec<f64> {
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    if values.len() >= n {
        return (0..n)
            .map(|i| mean(&values[i * values.len() / n..(i + 1) * values.len() / n]))
            .collect();
    }
    let scale = (values.len() - 1) as f64 / (n - 1) as f64;
    (0..n)
        .map(|i| {
            let at = i as f64 * scale;
            let left = (at as usize).min(values.len() - 2);
            values[left] + (at - left as f64) * (values[left + 1] - values[left])
        })
        .collect()
}

/// Lowest and highest, a little apart even for a flat curve.
fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if high - low < 0.01 { (low - 0.005, high + 0.005) } else { (low, high) }
}

/// For each column of dots the rows (0 is the top) that are set: from the last point's to its own.
fn dots(
    values: &[f64],
    n_rows: usize,
    (low, high): (f64, f64),
) -> Vec<std::ops::RangeInclusive<usize>> {
    let row = |value: f64| ((high - value) / (high - low) * (n_rows - 1) as f64).round() as usize;
    let mut last = row(values[0]);
    let mut join = |value: &f64| {
        let to = row(*value);
        // A steep piece stays connected without doubling the dot its neighbour already has.
        let span = match to.cmp(&last) {
            std::cmp::Ordering::Greater => last + 1..=to,
            std::cmp::Ordering::Less => to..=last - 1,
            std::cmp::Ordering::Equal => to..=to,
        };
        last = to;
        span
    };
    values.iter().map(&mut join).collect()
}

fn glyph(dots: &[std::ops::RangeInclusive<usize>], row: usize, column: usize, ink: Ink) -> char {
    match ink {
        Ink::Ascii if dots[column].contains(&row) => '*',
        Ink::Ascii => ' ',
        Ink::Braille => {
            let mut bits = 0;
            for (x, bits_of_column) in DOTS.iter().enumerate() {
                for (y, bit) in bits_of_column.iter().enumerate() {
                    if dots[2 * column + x].contains(&(4 * row + y)) {
                        bits |= bit;
                    }
                }
            }
            if bits == 0 {
                ' '
            } else {
                char::from_u32(0x2800 + bits).expect("eight bits above U+2800")
            }
        }
    }
}

/// The axis and its two labels.
fn bottom(columns: usize, first: u64, last: u64, ink: Ink) -> String {
    let (corner, line) = if ink == Ink::Braille { ('└', "─") } else { ('+', "-") };
    let (left, right) = (format!("step {first}"), format!("{last}"));
    let gap = columns.saturating_sub(left.len() + right.len());
    let indent = " ".repeat(LABEL - 1);
    format!("{indent}{corner}{}\n{indent} {left}{}{right}", line.repeat(columns), " ".repeat(gap))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], width: usize, height: usize, ink: Ink, expected: &str) {
        let canvas = Canvas { width, height, ink };
        let drawn = draw(values, 1, &[], canvas).unwrap_or_default();
        assert_eq!(drawn, expected.trim_matches('\n'), "\n{drawn}");
    }

    #[test]
    fn a_falling_line_in_ascii() {
        let expected = "
  4.00 |**
       |  ***
       |     ***
  1.00 |        **
       +----------
        step 1   4";
        check(&[4.0, 3.0, 2.0, 1.0], 19, 6, Ink::Ascii, expected);
    }

    #[test]
    fn a_steep_fall_stays_connected_in_braille() {
        let expected = "
  5.00 ┤⠉⠉⠉⠉⠉⡆
  1.00 ┤     ⣇⣀⣀⣀⣀
       └──────────
        step 1  20";
        let values: Vec<f64> = (0..20).map(|i| if i < 10 { 5.0 } else { 1.0 }).collect();
        check(&values, 19, 4, Ink::Braille, expected);
    }

    #[test]
    fn evaluations_are_points_over_the_curve_and_stretch_its_range() {
        let expected = "
  4.00 |***
       |   ***
       |      o***
  0.00 |         o
       +----------
        step 1   4";
        let canvas = Canvas { width: 19, height: 6, ink: Ink::Ascii };
        let over = [(3, 1.3), (4, 0.0), (9, 2.0), (4, f64::INFINITY)];
        let drawn = draw(&[4.0, 3.0, 2.0, 1.0], 1, &over, canvas).unwrap();
        assert_eq!(drawn, expected.trim_matches('\n'), "\n{drawn}");
    }

    #[test]
    fn many_values_are_averaged_and_a_flat_curve_has_room() {
        let flat = vec![2.0; 1000];
        let drawn = draw(&flat, 1, &[], Canvas { width: 40, height: 8, ink: Ink::Ascii }).unwrap();
        assert!(drawn.starts_with("  2.00 |") && drawn.ends_with("1000"), "{drawn}");
        assert_eq!(drawn.matches('*').count(), 31, "{drawn}");
    }

    #[test]
    fn nothing_is_drawn_without_values_room_or_numbers() {
        let canvas = Canvas { width: 40, height: 8, ink: Ink::Ascii };
        assert_eq!(draw(&[1.0], 1, &[], canvas), None);
        assert_eq!(draw(&[1.0, f64::NAN], 1, &[], canvas), None);
        assert_eq!(draw(&[1.0, 2.0], 1, &[], Canvas { width: 9, ..canvas }), None);
        assert_eq!(draw(&[1.0, 2.0], 1, &[], Canvas { height: 3, ..canvas }), None);
    }

    #[test]
    fn every_size_stays_inside_its_canvas() {
        for n in [2_usize, 3, 7, 61, 62, 63, 500] {
            let values: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin()).collect();
            for (width, height, ink) in
                [(17, 4, Ink::Ascii), (40, 9, Ink::Braille), (200, 30, Ink::Braille)]
            {
                let drawn = draw(&values, 1, &[], Canvas { width, height, ink }).unwrap();
                assert_eq!(drawn.lines().count(), height, "{drawn}");
                assert!(drawn.lines().all(|line| line.chars().count() <= width), "{drawn}");
            }
        }
    }
}
