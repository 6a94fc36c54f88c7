//! What keys mean.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::view::Key;

pub(super) fn meaning(pressed: KeyEvent) -> Option<Key> {
    if pressed.kind == KeyEventKind::Release {
        return None;
    }
    // A raw terminal sends Ctrl-C as a key.
    if pressed.modifiers.contains(KeyModifiers::CONTROL) {
        return (pressed.code == KeyCode::Char('c')).then_some(Key::Interrupt);
    }
    let key = if let KeyCode::Char(letter) = pressed.code {
        match letter {
            'q' => Key::Quit,
            '?' | 'h' => Key::Help,
            'j' => Key::Down,
            'k' => Key::Up,
            _ => return None,
        }
    } else {
        let known = [
            (KeyCode::Tab, Key::Next),
            (KeyCode::BackTab, Key::Previous),
            (KeyCode::Up, Key::Up),
            (KeyCode::Down, Key::Down),
            (KeyCode::PageUp, Key::PageUp),
            (KeyCode::PageDown, Key::PageDown),
            (KeyCode::Enter, Key::Enlarge),
            (KeyCode::Esc, Key::Back),
            (KeyCode::Left, Key::OtherJob { forwards: false }),
            (KeyCode::Right, Key::OtherJob { forwards: true }),
        ];
        known.into_iter().find(|(code, _)| *code == pressed.code)?.1
    };
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_help_says_and_others_nothing() {
        let plain = |code| meaning(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(plain(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(plain(KeyCode::Tab), Some(Key::Next));
        assert_eq!(plain(KeyCode::Char('x')), None);
        let control = |letter| meaning(KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!((control('c'), control('q')), (Some(Key::Interrupt), None));
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(meaning(released), None);
    }
}
