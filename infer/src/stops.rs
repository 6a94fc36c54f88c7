//! Finds the first stop string in a text that arrives in pieces, wherever the pieces are cut.

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    stops: Vec<Vec<u8>>,
    /// The end of the text that may be the start of a stop string.
    held: Vec<u8>,
}

impl Stops {
    /// Empty stop strings are none.
    pub(crate) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self { stops: stops.map(|stop| stop.clone().into_bytes()).collect(), held: Vec::new() }
    }

    /// What is certain to come before any stop string, and whether one was met.
    pub(crate) fn push(&mut self, piece: &[u8]) -> (Vec<u8>, bool) {
        self.held.extend_from_slice(piece);
        if let Some(at) = self.first() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The rest of a text that has ended.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Where the first stop string starts.
    fn first(&self) -> Option<usize> {
        let find = |stop: &Vec<u8>| self.held.windows(stop.len()).position(|window| window == stop);
        self.stops.iter().filter_map(find).min()
    }
}

/// The longest end of `text` that is a start of `stop`, but not all of it.
fn overlap(text: &[u8], stop: &[u8]) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|n| text.ends_with(&stop[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text up to the stop, and whether there was one.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let (mut finder, mut text) = (Stops::new(&stops), Vec::new());
        for piece in pieces {
            let (bytes, met) = finder.push(piece.as_bytes());
            text.extend(bytes);
            if met {
                return (String::from_utf8(text).unwrap(), true);
            }
        }
        text.extend(finder.finish());
        (String::from_utf8(text).unwrap(), false)
    }

    #[test]
    fn a_stop_string_is_found_however_the_text_is_cut() {
        let text = "one two\n\nthree\n\n";
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(run(&["\n\n"], &pieces), ("one two".to_owned(), true), "{pieces:?}");
                assert_eq!(run(&["\n\n\n", "x"], &pieces), (text.to_owned(), false));
                assert_eq!(run(&["three", "wo"], &pieces), ("one t".to_owned(), true));
            }
        }
    }

    #[test]
    fn only_what_may_be_a_stop_is_held_back() {
        let mut finder = Stops::new(&["aab".to_owned(), String::new()]);
        assert_eq!(finder.push(b"xaa"), (b"x".to_vec(), false));
        assert_eq!(finder.push(b"a"), (b"a".to_vec(), false));
        assert_eq!(finder.push(b"c"), (b"aac".to_vec(), false));
        assert_eq!(Stops::new(&[]).push(b"all"), (b"all".to_vec(), false));
    }
}
