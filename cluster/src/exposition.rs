//! Prometheus's text format, as our processes write it: read strictly, because what a rig sends is passed on to a
//! Prometheus, and shown on terminals.
//!
//! Source: prometheus.io, "Exposition formats", text format 0.0.4.

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, String)>,
    pub value: f64,
}

impl Sample<'_> {
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| value.as_str())
    }
}

/// All samples; lines that are none of this format are passed over.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(|line| sample(line).ok().flatten())
}

/// Whether every line is of this format.
///
/// # Errors
/// The number of the first that is not, and what is wrong with it.
pub fn check(text: &str) -> Result<(), String> {
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    for (at, line) in text.lines().enumerate() {
        sample(line).map_err(|what| format!("line {}: {what}", at + 1))?;
    }
    Ok(())
}

/// A line: none for a comment.
fn sample(line: &str) -> Result<Option<Sample<'_>>, &'static str> {
    if line.contains(char::is_control) {
        return Err("a control character");
    }
    if let Some(comment) = line.strip_prefix('#') {
        return about(comment).map(|()| None);
    }
    if line.is_empty() {
        return Ok(None);
    }
    let end = line.find(|c: char| !is_of_name(c)).ok_or("a name without a value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return Err("a name with letters that are none of a metric's");
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split(' ').filter(|word| !word.is_empty());
    let value = words.next().and_then(number).ok_or("wanted a number")?;
    // A time stamp would let a rig write into the past.
    if words.next().is_some() {
        return Err("something behind the value");
    }
    Ok(Some(Sample { name, labels, value }))
}

/// `# HELP name words`, `# TYPE name kind`, or anything else.
fn about(comment: &str) -> Result<(), &'static str> {
    let mut words = comment.trim_start().splitn(3, ' ');
    let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
    match (words.next(), words.next(), words.next()) {
        (Some("HELP" | "TYPE"), name, _) if !name.is_some_and(is_name) => Err("wanted a name"),
        (Some("TYPE"), _, kind) if !kind.is_some_and(|kind| kinds.contains(&kind)) => {
            Err("wanted a type")
        }
        _ => Ok(()),
    }
}

type Labels<'a> = Vec<(&'a str, String)>;

/// What stands in braces, and what comes after them.
fn labels(mut rest: &str) -> Result<(Labels<'_>, &str), &'static str> {
    let mut labels = Vec::new();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once("=\"").ok_or("wanted a label and its value")?;
        if !is_name(name) || name.contains(':') || name.starts_with("__") {
            return Err("a label that is none");
        }
        let (value, after) = quoted(after)?;
        labels.push((name, value));
        rest = match after.strip_prefix(',') {
            Some(next) => next,
            None if after.starts_with('}') => after,
            None => return Err("wanted a comma between two labels"),
        };
    }
}

/// A label's value up to its closing quote, and what comes after that.
fn quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match letters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, letter @ ('\\' | '"'))) => value.push(letter),
                Some(_) | None => return Err("a backslash before a letter that needs none"),
            },
            letter => value.push(letter),
        }
    }
    Err("a label's value without an end")
}

fn number(word: &str) -> Option<f64> {
    match word {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        // Rust takes words that Prometheus does not.
        word if word.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => {
            word.parse().ok().filter(|value: &f64| value.is_finite())
        }
        _ => None,
    }
}

fn is_of_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(is_of_name)
        && !name.starts_with(|letter: char| letter.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP a_total What it is.\n# TYPE a_total counter\na_total{op=\"x\",to=\"q\\\"\\\\\\n\"} 3\n\nb 1.5e3\n\
                    c{} +Inf\nnonsense\nd{a=\"1\",} -2\n";
        let found: Vec<Sample<'_>> = samples(text).collect();
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!((found[0].name, found[0].label("op")), ("a_total", Some("x")));
        assert_eq!(found[0].label("to"), Some("q\"\\\n"));
        assert_eq!((found[1].value, found[2].value), (1500.0, f64::INFINITY));
        assert_eq!((found[3].label("a"), found[3].value), (Some("1"), -2.0));
    }

    #[test]
    fn what_is_no_metric_is_refused_with_its_line() {
        check("# anything\na 1\na{b=\"c\"} NaN\n").unwrap();
        check("").unwrap();
        for (text, wanted) in [
            ("a 1", "the last line has no end"),
            ("a\n", "line 1: a name without a value"),
            ("a 1\n1a 2\n", "line 2: a name with letters"),
            ("a one\n", "wanted a number"),
            ("a inf\n", "wanted a number"),
            ("a +infinity\n", "wanted a number"),
            ("a 1 1700000000\n", "something behind the value"),
            ("a{b=\"c} 1\n", "without an end"),
            ("a{b=\"c\"d=\"e\"} 1\n", "wanted a comma"),
            ("a{__name__=\"c\"} 1\n", "a label that is none"),
            ("a{b=\"\\x\"} 1\n", "a backslash"),
            ("a{b=\"\u{1b}[2J\"} 1\n", "a control character"),
            ("# TYPE a bird\n", "wanted a type"),
            ("# HELP \u{e4} b\n", "wanted a name"),
            ("ä 1\n", "line 1"),
        ] {
            let got = check(text).expect_err(text);
            assert!(got.contains(wanted), "{text:?}: {got}");
        }
    }
}
