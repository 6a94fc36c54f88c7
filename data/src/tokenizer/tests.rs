//! Training, round trips, bytes of tokens, end tokens.

use std::path::Path;

use super::*;

/// A text with words, numbers, several scripts and every kind of white space.
pub(crate) fn text() -> String {
    let line = |i: u32| {
        format!(
            "The {}th fish swims {} miles\tüber größere Flüsse; 深い海 の 魚 🐟\r\n\u{a0}x{}\n",
            i % 97,
            i * 7 % 31,
            i % 5
        )
    };
    (0..400).map(line).collect()
}

fn trained(vocab_size: u32) -> Tokenizer {
    let json = train_bpe(&[text()], vocab_size, &mut |_, _| {}).unwrap();
    Tokenizer::from_json(&json, Path::new("t.json")).unwrap()
}

fn of_json(json: &str) -> Tokenizer {
    Tokenizer::from_json(json.as_bytes(), Path::new("t.json")).unwrap()
}

/// A word-level tokenizer with two special tokens, one of them called `name`.
fn word_level(name: &str) -> String {
    format!(
        r#"{{"version": "1.0", "truncation": {{"max_length": 1, "strategy": "LongestFirst",
        "stride": 0, "direction": "Right"}}, "padding": null, "added_tokens": [
        {{"id": 0, "content": "{name}", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false}}, {{"id": 4, "content": "[X]", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}}],
        "normalizer": null, "pre_tokenizer": {{"type": "Whitespace"}}, "post_processor": null,
        "decoder": null, "model": {{"type": "WordLevel", "unk_token": "[UNK]",
        "vocab": {{"{name}": 0, "a": 1, "bb": 2, "[UNK]": 3}}}}}}"#
    )
}

#[test]
fn the_same_text_trains_the_same_tokenizer() {
    let halves = text();
    let (one, two) = halves.split_at(halves.len() / 2 - 1);
    let texts = [one.to_owned(), two.to_owned()];
    let mut told = Vec::new();
    let first = train_bpe(&texts, 400, &mut |done, all| told.push((done, all))).unwrap();
    for _ in 0..3 {
        assert!(train_bpe(&texts, 400, &mut |_, _| {}).unwrap() == first);
    }
    assert_eq!(told.last(), Some(&(halves.len() as u64, halves.len() as u64)));
    let tokenizer = Tokenizer::from_json(&first, Path::new("t.json")).unwrap();
    assert_eq!(tokenizer.n_tokens(), 400);
    let error = train_bpe(&texts, 256, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("256") && error.contains("257"), "{error}");
}

#[test]
fn a_trained_tokenizer_gives_back_every_byte_and_counts_them() {
    let tokenizer = trained(500);
    let stranger = "\0\u{7f}\u{80} ß¿ \u{fffd} end\n\n  \u{1F41F}\u{200d}";
    for text in [text().as_str(), stranger, "", " ", "<|endoftext|>"] {
        let encoded = tokenizer.encode(text.as_bytes()).unwrap();
        assert!(!encoded.replaced);
        assert_eq!(tokenizer.decode(&encoded.tokens), text.as_bytes());
        let bytes: u32 = encoded.tokens.iter().map(|token| tokenizer.token_bytes(*token)).sum();
        assert_eq!(bytes as usize, text.len());
        assert!(!encoded.tokens.contains(&tokenizer.id_of(END_OF_TEXT).unwrap()), "{text}");
    }
    let n = tokenizer.encode(text().as_bytes()).unwrap().tokens.len();
    assert!(n * 2 < text().len(), "{n} tokens of {} bytes", text().len());
    // Half a character decodes to its bytes.
    let fish = tokenizer.encode("🦈".as_bytes()).unwrap().tokens;
    assert_eq!(tokenizer.decode(&fish[..1])[0], 0xF0);
}

#[test]
fn bytes_take_anything_and_others_say_what_they_replaced() {
    let bytes = Tokenizer::bytes();
    let all: Vec<u8> = (0..=255).collect();
    let encoded = bytes.encode(&all).unwrap();
    assert_eq!((bytes.decode(&encoded.tokens), encoded.replaced), (all, false));
    assert_eq!((bytes.token_bytes(255), bytes.token_bytes(256)), (1, 0));
    let tokenizer = trained(300);
    let encoded = tokenizer.encode(b"ab\xFFcd").unwrap();
    assert_eq!(tokenizer.decode(&encoded.tokens), "ab\u{fffd}cd".as_bytes());
    assert!(encoded.replaced);
    // A character cut by the end of the piece is nobody's mistake.
    let encoded = tokenizer.encode(&"aß".as_bytes()[..2]).unwrap();
    assert_eq!((tokenizer.decode(&encoded.tokens), encoded.replaced), (b"a".to_vec(), false));
}

#[test]
fn the_end_token_is_found_asked_for_or_left_out() {
    let check = |tokenizer: Tokenizer, choice: EndToken, vocab_size: u32, want: &str| {
        let got = match tokenizer.for_model(&choice, vocab_size) {
            Ok(tokenizer) => format!("{:?} of {}", tokenizer.end_token(), tokenizer.n_tokens()),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(want), "{got}");
    };
    let token = |name: &str| EndToken::Token(name.into());
    check(Tokenizer::bytes(), EndToken::Auto, 256, "None of 256");
    check(Tokenizer::bytes(), EndToken::Auto, 512, "Some(256) of 257");
    check(Tokenizer::bytes(), EndToken::None, 512, "None of 256");
    check(Tokenizer::bytes(), token("x"), 512, "bytes have no token \"x\"");
    check(Tokenizer::bytes(), EndToken::None, 255, "256 tokens but the model's vocab_size is 255");
    check(trained(300), EndToken::Auto, 300, "Some(0) of 300");
    check(trained(300), EndToken::Auto, 299, "300 tokens but the model's vocab_size is 299");
    check(of_json(&word_level("</s>")), EndToken::Auto, 10, "Some(0) of 5");
    check(
        of_json(&word_level("<odd>")),
        EndToken::Auto,
        10,
        "begin with <odd> [X]); set spec.data",
    );
    check(of_json(&word_level("<odd>")), token("<odd>"), 10, "Some(0) of 5");
    check(of_json(&word_level("<odd>")), token("</s>"), 10, "no token \"</s>\"");
}

#[test]
fn a_foreign_tokenizer_neither_cuts_nor_pads_and_a_broken_one_is_refused() {
    let tokenizer = of_json(&word_level("</s>"));
    // Its own truncation to one token is switched off, and the name of a special token is text.
    assert_eq!(tokenizer.encode(b"a bb zz").unwrap().tokens, [1, 2, 3]);
    assert!(!tokenizer.encode(b"a </s>").unwrap().tokens.contains(&0));
    assert_eq!((tokenizer.token_bytes(2), tokenizer.token_bytes(0)), (2, 0));
    assert_eq!(tokenizer.special_name(4).as_deref(), Some("[X]"));
    assert_eq!(tokenizer.special_name(1), None);
    let error = Tokenizer::from_json(b"{}", Path::new("t.json")).unwrap_err().to_string();
    assert!(error.contains("t.json: it is no readable tokenizer.json"), "{error}");
}

#[test]
fn sentencepiece_tokens_stand_for_spaces_and_bytes() {
    let tokenizer = of_json(
        r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace",
        "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix":
        null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true,
        "ignore_merges": false, "vocab": {"▁": 0, "a": 1, "▁a": 2, "<0xC3>": 3, "<0x9F>": 4},
        "merges": [["▁", "a"]]}}"#,
    );
    let encoded = tokenizer.encode("a aß".as_bytes()).unwrap();
    assert_eq!(encoded.tokens, [1, 2, 3, 4]);
    assert_eq!(
        (0..5).map(|token| tokenizer.token_bytes(token)).collect::<Vec<_>>(),
        [1, 1, 2, 1, 1]
    );
    assert_eq!(tokenizer.decode(&encoded.tokens), "a aß".as_bytes());
}
