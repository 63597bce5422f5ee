//! As much of Rust's grammar as the boundaries need: the words of a source file, without comments, literals and what
//! is compiled for tests only.

/// One token. Literals have no text: nothing in them is code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    /// The identifier, keyword, lifetime (with its quote) or punctuation character.
    pub(crate) text: &'a str,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// The tokens of a source file.
pub(crate) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < source.len() {
        let rest = &source[at..];
        let (len, is_code) = measure(rest);
        let text = &rest[..len];
        if is_code {
            found.push(Token { text, line });
        }
        line += text.matches('\n').count();
        at += len;
    }
    found
}

fn is_word(letter: char) -> bool {
    letter == '_' || letter.is_alphanumeric()
}

fn word_len(text: &str) -> usize {
    text.find(|letter: char| !is_word(letter)).unwrap_or(text.len())
}

/// The length of what `rest` starts with, and whether it is a token with a text.
fn measure(rest: &str) -> (usize, bool) {
    let first = rest.chars().next().unwrap_or(' ');
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), false);
    }
    if let Some(len) = string(rest) {
        return (len, false);
    }
    if first == '\'' {
        return quote(rest);
    }
    if first.is_ascii_digit() {
        return (word_len(rest), false);
    }
    if is_word(first) {
        return (word_len(rest), true);
    }
    (first.len_utf8(), !first.is_whitespace())
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if tail.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of a string literal of any kind at the start of `rest`.
fn string(rest: &str) -> Option<usize> {
    let prefix = ["", "b", "c", "r", "br", "cr"].into_iter().rev().find(|prefix| {
        let tail = rest.strip_prefix(prefix).unwrap_or_default();
        let tail = if prefix.ends_with('r') { tail.trim_start_matches('#') } else { tail };
        tail.starts_with('"')
    })?;
    let tail = &rest[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = tail.len() - tail.trim_start_matches('#').len();
        let end = format!("\"{}", &tail[..hashes]);
        let body = hashes + 1;
        let len = tail[body..].find(&end).map_or(tail.len(), |at| body + at + end.len());
        return Some(prefix.len() + len);
    }
    Some(prefix.len() + quoted(tail, b'"'))
}

/// The length of a literal that starts and ends with `mark`.
fn quoted(text: &str, mark: u8) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != mark {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// A character literal or a lifetime.
fn quote(rest: &str) -> (usize, bool) {
    let mut letters = rest[1..].chars();
    let (first, second) = (letters.next().unwrap_or(' '), letters.next());
    if first != '\\' && second != Some('\'') && is_word(first) {
        return (1 + word_len(&rest[1..]), true);
    }
    (quoted(rest, b'\''), false)
}

/// The tokens that are compiled outside of tests, and the modules in files of their own that are not.
pub(crate) fn without_tests<'a>(tokens: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    let (mut kept, mut test_modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let Some(end) = attribute(tokens, at).filter(|end| is_for_tests(&tokens[at..*end])) else {
            kept.push(tokens[at]);
            at += 1;
            continue;
        };
        at = end;
        while let Some(end) = attribute(tokens, at) {
            at = end;
        }
        let end = item(tokens, at);
        let names = tokens[at..end].windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";");
        test_modules.extend(names.map(|window| window[1].text));
        at = end;
    }
    (kept, test_modules)
}

/// Where the attribute ends that starts here.
fn attribute(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let starts = tokens.get(at)?.text == "#" && tokens.get(at + 1)?.text == "[";
    starts.then(|| closing(tokens, at + 1))
}

/// The index after the bracket that closes the one at `open`.
fn closing(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

fn is_for_tests(attribute: &[Token<'_>]) -> bool {
    let has = |word| attribute.iter().any(|token| token.text == word);
    attribute.get(2).is_some_and(|token| token.text == "cfg") && has("test") && !has("not") && !has("any")
}

/// Where the item ends that starts here: at a semicolon or a closed brace.
fn item(tokens: &[Token<'_>], start: usize) -> usize {
    let mut at = start;
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "{" => return closing(tokens, at),
            "(" | "[" => at = closing(tokens, at),
            _ => at += 1,
        }
    }
    at
}

mod tests {
    use super::{tokens, without_tests};

    fn words(source: &str) -> Vec<&str> {
        tokens(source).iter().map(|token| token.text).collect()
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let source = "a // tokio\n/* tokio /* tokio */ */ \"tokio \\\" tokio\" r#\"tokio \" tokio\"# b'\\'' 'x' 0x1f b";
        assert_eq!(words(source), ["a", "b", "b"], "the first b is the prefix of a byte, which is harmless");
        assert_eq!(words("&'static str; 'a'..='z'"), ["&", "'static", "str", ";", ".", ".", "="]);
        assert_eq!(words("br##\"\"# tokio\"## c"), ["c"]);
        assert_eq!(tokens("\n\"\n\"\nx").last().map(|token| token.line), Some(4));
    }

    #[test]
    fn what_is_for_tests_is_left_out() {
        let source = "use a; #[cfg(test)] #[path = \"x.rs\"] mod far; #[cfg(test)] mod near { use b; } \
                      #[cfg(not(test))] use c; #[cfg(test)] fn f(x: [u8; 3]) { d } e";
        let all = tokens(source);
        let (kept, modules) = without_tests(&all);
        let kept: Vec<&str> = kept.iter().map(|token| token.text).collect();
        assert_eq!(modules, ["far"]);
        for gone in ["far", "near", "b", "d"] {
            assert!(!kept.contains(&gone), "{gone}");
        }
        for present in ["a", "c", "e"] {
            assert!(kept.contains(&present), "{present}");
        }
    }
}
