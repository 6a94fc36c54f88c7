//! Cuts PTX text into statements. It knows comments, strings, braces and line numbers and nothing
//! else of the language.

/// One piece of a function body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// `{`
    Open,
    /// `}`
    Close,
    /// `name:`
    Label { line: u32, name: &'a str },
    /// Everything up to a `;` that is not inside braces.
    Statement { line: u32, text: &'a str },
}

/// Walks over text whose comments were blanked.
#[derive(Clone)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

/// The same text with every comment replaced by spaces: offsets and lines stay.
pub(crate) fn without_comments(ptx: &str) -> String {
    let mut out = ptx.as_bytes().to_vec();
    let (mut i, mut in_string) = (0, false);
    while i < out.len() {
        let two = (out[i], out.get(i + 1).copied());
        if in_string || out[i] == b'"' {
            in_string ^= out[i] == b'"';
            i += 1;
        } else if two == (b'/', Some(b'/')) {
            while i < out.len() && out[i] != b'\n' {
                out[i] = b' ';
                i += 1;
            }
        } else if two == (b'/', Some(b'*')) {
            let end = ptx[i..].find("*/").map_or(out.len(), |length| i + length + 2);
            out[i..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
            i = end;
        } else {
            i += 1;
        }
    }
    // Comments may hold any characters, and all their bytes became spaces.
    String::from_utf8_lossy(&out).into_owned()
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str, line: u32) -> Scanner<'a> {
        Scanner { text, at: 0, line }
    }

    /// The line of the next piece, once space is skipped.
    pub(crate) fn line(&mut self) -> u32 {
        self.skip_space();
        self.line
    }

    /// What is left, once space is skipped.
    pub(crate) fn rest(&mut self) -> &'a str {
        self.skip_space();
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.advance(rest.len() - rest.trim_start().len());
    }

    /// Goes `length` bytes on, counting lines.
    pub(crate) fn advance(&mut self, length: usize) -> &'a str {
        let taken = &self.text[self.at..self.at + length];
        self.line += taken.bytes().filter(|byte| *byte == b'\n').count() as u32;
        self.at += length;
        taken
    }

    /// Up to and without the end of this line.
    pub(crate) fn rest_of_line(&mut self) -> &'a str {
        let rest = self.rest();
        self.advance(rest.find('\n').unwrap_or(rest.len())).trim()
    }

    /// Up to the first of `stops`, which is not taken.
    pub(crate) fn up_to_any(&mut self, stops: &[char]) -> &'a str {
        let rest = self.rest();
        self.advance(rest.find(stops).unwrap_or(rest.len())).trim()
    }

    /// The inside of a pair of braces, `None` if none is next or it does not end.
    pub(crate) fn block(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        if !rest.starts_with('{') {
            return None;
        }
        let mut depth = 0;
        for (i, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(&self.advance(i + 1)[1..i]);
            }
        }
        None
    }

    /// Up to a `;` outside of braces, which is taken but not returned.
    pub(crate) fn statement(&mut self) -> &'a str {
        let rest = self.rest();
        let mut depth = 0;
        for (i, byte) in rest.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b';' if depth == 0 => return self.advance(i + 1)[..i].trim(),
                _ => {}
            }
        }
        self.advance(rest.len()).trim()
    }

    /// The next piece of a function body; `None` at its end.
    pub(crate) fn piece(&mut self) -> Option<Piece<'a>> {
        let rest = self.rest();
        let line = self.line;
        let first = rest.chars().next()?;
        if first == '{' || first == '}' {
            self.advance(1);
            return Some(if first == '{' { Piece::Open } else { Piece::Close });
        }
        if first == ';' {
            self.advance(1);
            return self.piece();
        }
        if matches!(rest.split_whitespace().next(), Some(".loc" | ".file")) {
            self.rest_of_line();
            return self.piece();
        }
        let word = rest.find(|c: char| !(c.is_alphanumeric() || "_$%.".contains(c)));
        if let Some(length) = word.filter(|length| *length > 0) {
            let after = rest[length..].trim_start();
            if after.starts_with(':') && !after.starts_with("::") {
                let name = &rest[..length];
                self.advance(rest.len() - after.len() + 1);
                return Some(Piece::Label { line, name });
            }
        }
        Some(Piece::Statement { line, text: self.statement() })
    }
}

/// Splits at commas that are not inside brackets.
pub(crate) fn split_list(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    let last = text[start..].trim();
    if !last.is_empty() {
        parts.push(last);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_lines_stay() {
        let text = without_comments("a // é; b\n/* x\n y */ c \"//\"; d");
        assert_eq!(text.lines().count(), 3);
        let mut scanner = Scanner::new(&text, 1);
        assert_eq!(
            scanner.statement().split_whitespace().collect::<Vec<_>>(),
            ["a", "c", "\"//\""]
        );
        assert_eq!((scanner.line(), scanner.rest()), (3, "d"));
    }

    #[test]
    fn a_body_is_cut_into_labels_scopes_and_statements() {
        let mut scanner =
            Scanner::new("$L: { mov.b32 %r1, {%rs1,%rs2};\n}\n .loc 1 2 3\n .local .b8 x[4];", 7);
        let mut pieces = Vec::new();
        while let Some(piece) = scanner.piece() {
            pieces.push(piece);
        }
        let expected = [
            Piece::Label { line: 7, name: "$L" },
            Piece::Open,
            Piece::Statement { line: 7, text: "mov.b32 %r1, {%rs1,%rs2}" },
            Piece::Close,
            Piece::Statement { line: 10, text: ".local .b8 x[4]" },
        ];
        assert_eq!(pieces, expected);
    }

    #[test]
    fn a_list_is_split_outside_of_brackets() {
        assert_eq!(split_list("%r1, [%rd1+4], {a, b}"), ["%r1", "[%rd1+4]", "{a, b}"]);
    }
}
