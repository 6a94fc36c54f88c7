//! The two streams: results go to standard output, everything else to standard error.
//!
//! A reader that went away (a closed pipe, a closed terminal) never ends a training run, so failed
//! writes are dropped here and nowhere else.

use std::io::{IsTerminal, Write, stderr, stdout};

use console::{Term, style};

/// Columns of text without a terminal: what a log viewer and a mail show unbroken.
const WIDTH_WITHOUT_TERMINAL: usize = 80;

/// Writes results, for people and for scripts alike.
pub(crate) fn data(text: &str) {
    let mut out = stdout().lock();
    // The reader may be gone; the run is worth more than the line.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Writes progress and diagnostics.
pub(crate) fn note(text: &str) {
    // As in `data`.
    let _ = writeln!(stderr().lock(), "{text}");
}

/// Writes an error with its causes, `error:` in red where colour is wanted.
pub(crate) fn error(text: &str) {
    note(&format!("{} {text}", style("error:").for_stderr().red().bold()));
}

/// A heading on standard output, bold where colour is wanted.
pub(crate) fn heading(text: &str) {
    data(&format!("\n{}", style(text).bold()));
}

/// Whether a bar that redraws itself makes sense on standard error.
pub(crate) fn redraws() -> bool {
    stderr().is_terminal() && can_redraw()
}

/// Whether the terminal, if it is one, can go back to what it has shown.
pub(crate) fn can_redraw() -> bool {
    std::env::var("TERM").is_ok_and(|term| term != "dumb")
}

/// Columns of standard output.
pub(crate) fn width() -> usize {
    Term::stdout().size_checked().map_or(WIDTH_WITHOUT_TERMINAL, |(_rows, columns)| columns.into())
}

/// Whether the reader's locale shows more than ASCII.
pub(crate) fn shows_unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    is_unicode(locale.as_deref(), set("TERM").as_deref())
}

fn is_unicode(locale: Option<&str>, term: Option<&str>) -> bool {
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    !matches!(term, Some("dumb" | "linux")) && (locale.contains("utf-8") || locale.contains("utf8"))
}

/// Text from outside, made harmless for a terminal: control characters and those that turn the
/// writing direction are shown as escapes; line ends and tabs stay.
pub(crate) fn harmless(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for letter in chunk.valid().chars() {
            let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            if matches!(letter, '\n' | '\t') || !(letter.is_control() || turns) {
                text.push(letter);
            } else {
                text.extend(letter.escape_unicode());
            }
        }
        for byte in chunk.invalid() {
            text.push_str("\\x");
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(digit.into(), 16));
            }
        }
    }
    text
}

/// The same, on one line.
pub(crate) fn one_line(text: &str) -> String {
    harmless(text.replace(['\n', '\t'], " ").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_reach_the_terminal_as_text() {
        assert_eq!(harmless(b"fn a() {\n\t1\n}"), "fn a() {\n\t1\n}");
        assert_eq!(harmless(b"\x1b[31mred"), "\\u{1b}[31mred");
        assert_eq!(harmless(b"\xff\xc3"), "\\xff\\xc3");
        assert_eq!(harmless("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(harmless("größe".as_bytes()), "größe");
    }

    #[test]
    fn block_characters_need_a_locale_that_has_them() {
        assert!(is_unicode(Some("C.UTF-8"), Some("xterm")));
        assert!(is_unicode(Some("de_DE.utf8"), None));
        assert!(!is_unicode(Some("C"), Some("xterm")));
        assert!(!is_unicode(None, Some("xterm")));
        assert!(!is_unicode(Some("en_US.UTF-8"), Some("dumb")));
    }
}
