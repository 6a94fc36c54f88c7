//! Text from tokens, as they come: whole characters only, in the words of the tokenizer.
//!
//! Some tokenizers spell a token by what stands before it (a word's first space), so each piece is what
//! the text of the last few tokens gained, not the text of a token alone.

use shoal_data::Tokenizer;

/// Tokens that a new one's spelling may depend on.
const CONTEXT: usize = 4;

/// U+FFFD, which a decoder writes for the start of a character.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// The bytes that new tokens add to a text.
#[derive(Clone, Debug)]
pub(crate) struct Spelling {
    /// The last tokens that were spelled, and then those that were not.
    recent: Vec<u32>,
    spelled: usize,
}

impl Spelling {
    /// After a prompt.
    pub(crate) fn after(prompt: &[u32]) -> Self {
        let recent = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        Self { spelled: recent.len(), recent }
    }

    /// What the token adds. Nothing as long as the text ends within a character.
    pub(crate) fn push(&mut self, token: u32, tokenizer: &Tokenizer) -> Vec<u8> {
        self.recent.push(token);
        let added = self.added(tokenizer);
        if added.ends_with(REPLACEMENT) && self.recent.len() - self.spelled < CONTEXT {
            return Vec::new();
        }
        let old = self.recent.len().saturating_sub(CONTEXT);
        self.recent.drain(..old);
        self.spelled = self.recent.len();
        added
    }

    /// The rest of a text that has ended.
    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Vec<u8> {
        let added = self.added(tokenizer);
        self.spelled = self.recent.len();
        added
    }

    fn added(&self, tokenizer: &Tokenizer) -> Vec<u8> {
        let (old, mut all) =
            (tokenizer.decode(&self.recent[..self.spelled]), tokenizer.decode(&self.recent));
        if all.starts_with(&old) { all.split_off(old.len()) } else { all }
    }
}

/// Bytes to text: an incomplete character at the end waits for its rest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Characters {
    held: Vec<u8>,
}

impl Characters {
    /// Whole characters; what can never be one becomes U+FFFD.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let whole = self.held.len() - incomplete(&self.held);
        let rest = self.held.split_off(whole);
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held = rest;
        text
    }

    /// The rest of a text that has ended.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Bytes at the end that more bytes could make a character of.
fn incomplete(bytes: &[u8]) -> usize {
    let chunk = bytes.utf8_chunks().last();
    let invalid = chunk.map_or(&[][..], |chunk| chunk.invalid());
    let is_open = str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
    if is_open { invalid.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_whole_and_what_is_none_is_replaced() {
        let text = "añ→😀b";
        for cut in 0..=text.len() {
            let mut characters = Characters::default();
            let (a, b) = text.as_bytes().split_at(cut);
            let (a, b) = (characters.push(a), characters.push(b));
            assert!(text.starts_with(&a) && !a.contains('\u{fffd}'), "{a}");
            assert_eq!(a + &b + &characters.finish(), text);
        }
        let mut characters = Characters::default();
        assert_eq!(characters.push(b"a\xffb\xe2\x86"), "a\u{fffd}b");
        assert_eq!(characters.push(b"c\xe2"), "\u{fffd}c");
        assert_eq!(characters.finish(), "\u{fffd}");
    }

    #[test]
    fn bytes_are_spelled_one_by_one() {
        let tokenizer = Tokenizer::bytes();
        let mut spelling = Spelling::after(&[65, 66, 67, 68, 69, 70]);
        let text: Vec<u8> =
            "é!".bytes().flat_map(|byte| spelling.push(u32::from(byte), &tokenizer)).collect();
        assert_eq!(text, "é!".as_bytes());
        assert!(spelling.finish(&tokenizer).is_empty());
    }
}
