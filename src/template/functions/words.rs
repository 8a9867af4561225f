//! sprig's functions on the words of a text: their case, their initials, and lines of a width.
//!
//! Cases are those of `huandu/xstrings` 1.5, the rest is that of `Masterminds/goutils` 1.1. Widths
//! are in bytes, as in Go.

use std::sync::LazyLock;

use regex::Regex;

use super::{Call, Function, function};
use crate::template::{
    Value,
    error::Cause,
    run::{Text, check_output},
};

pub(super) const FUNCTIONS: &[Function] = &[
    function("snakecase", "s", |call| lower_case(call, '_')),
    function("kebabcase", "s", |call| lower_case(call, '-')),
    function("camelcase", "s", |call| Ok(camel_case(&call.text(0)).into())),
    function("swapcase", "s", |call| Ok(swap_case(&call.text(0)).into())),
    function("initials", "s", |call| {
        let text = call.text(0);
        let words = text.split_whitespace();
        Ok(words.filter_map(|word| word.chars().next()).collect::<String>().into())
    }),
    function("wrap", "is", |call| wrap(call, call.int(0), "", &call.text(1), false)),
    function("wrapWith", "iss", |call| wrap(call, call.int(0), &call.text(1), &call.text(2), true)),
    function("abbrevboth", "iis", |call| Ok(abbreviate(call.int(0), call.int(1), &call.text(2)))),
    function("plural", "ssi", |call| Ok(call.value(usize::from(call.int(2) != 1)).clone())),
    function("hello", "", |_| Ok("Hello!".into())),
];

/// Go's `unicode.ToUpper`, which never makes two characters of one.
fn upper(c: char) -> char {
    let mut upper = c.to_uppercase();
    match (upper.next(), upper.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

fn lower(c: char) -> char {
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(one), None) => one,
        _ => c,
    }
}

/// What separates words in a case.
fn is_connector(c: char) -> bool {
    c == '-' || c == '_' || c.is_whitespace()
}

fn is_punctuation(c: char) -> bool {
    static PUNCTUATION: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"^\p{P}").ok());
    match c.is_ascii() {
        true => c.is_ascii_punctuation() && !"$+<=>^`|~".contains(c),
        false => {
            let matches = |regex: &Regex| regex.is_match(c.encode_utf8(&mut [0; 4]));
            PUNCTUATION.as_ref().is_some_and(matches)
        }
    }
}

/// A letter of a script that has no ideographs.
fn is_letter(c: char) -> bool {
    let is_ideograph = matches!(c,
        '\u{3400}'..='\u{4d85}' | '\u{4e00}'..='\u{9fcc}' | '\u{20000}'..='\u{2b81d}');
    c.is_alphabetic() && !c.is_numeric() && !is_ideograph
}

/// What a word consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing, or only characters that stand for none.
    Nothing,
    Number,
    /// Capitals, or a capital and small letters.
    Capitalised,
    Small,
    Connector,
    Punctuation,
    Other,
}

/// Splits the first word off.
fn next_word(text: &str) -> (Kind, &str, &str) {
    // U+FFFD belongs to the word that it is in, or else to the next one.
    let from = |at: usize| {
        let found = text[at..].char_indices().find(|(_, c)| *c != char::REPLACEMENT_CHARACTER);
        found.map(|(offset, c)| (c, at + offset + c.len_utf8()))
    };
    let while_ = |mut at: usize, belongs: &dyn Fn(char) -> bool| {
        while at < text.len() {
            match from(at) {
                Some((c, end)) if belongs(c) => at = end,
                Some(_) => break,
                None => at = text.len(),
            }
        }
        at
    };
    let is_small = |c: char| is_letter(c) && !c.is_uppercase();
    let Some((first, start)) = from(0) else { return (Kind::Nothing, text, "") };
    let (kind, end) = match first {
        c if is_connector(c) => (Kind::Connector, while_(start, &is_connector)),
        c if is_punctuation(c) => (Kind::Punctuation, while_(start, &is_punctuation)),
        c if c.is_uppercase() => {
            let capitals = while_(start, &char::is_uppercase);
            let end = match from(capitals) {
                // The last of several capitals begins the next word: `HTTPServer`.
                Some((next, _)) if capitals > start && is_letter(next) => {
                    let mut before = text[..capitals].char_indices().rev();
                    let last = before.find(|(_, c)| *c != char::REPLACEMENT_CHARACTER);
                    last.map_or(capitals, |(at, _)| at)
                }
                _ if capitals > start => capitals,
                _ => while_(start, &is_small),
            };
            (Kind::Capitalised, end)
        }
        c if is_letter(c) => (Kind::Small, while_(start, &is_small)),
        c if c.is_numeric() => (Kind::Number, while_(start, &char::is_numeric)),
        _ => {
            let ends =
                |c: char| is_connector(c) || is_letter(c) || c.is_numeric() || is_punctuation(c);
            (Kind::Other, while_(start, &|c| !ends(c)))
        }
    };
    (kind, &text[..end], &text[end..])
}

/// `snake_case` and `kebab-case`.
fn lower_case(call: &Call<'_>, connector: char) -> Result<Value, Cause> {
    let text = call.text(0);
    call.run.work(text.len().saturating_mul(8))?;
    let mut cased = String::with_capacity(text.len() + 8);
    let push = |cased: &mut String, kind: Kind, word: &str| match kind {
        Kind::Capitalised | Kind::Connector => {
            cased.extend(word.chars().map(|c| if is_connector(c) { connector } else { lower(c) }));
        }
        _ => cased.push_str(word),
    };
    let stays_apart = |kind: Kind| !matches!(kind, Kind::Connector | Kind::Punctuation);
    let is_more = |kind: Kind| kind != Kind::Nothing && stays_apart(kind);
    let goes_on = |kind: Kind| matches!(kind, Kind::Small | Kind::Number);
    let (mut kind, mut word, mut rest) = next_word(&text);
    while !rest.is_empty() {
        let before = kind;
        push(&mut cased, kind, word);
        (kind, word, rest) = next_word(rest);
        match before {
            Kind::Connector | Kind::Punctuation => {}
            // Small letters belong to the number before them: `20x`.
            Kind::Number => {
                while goes_on(kind) {
                    push(&mut cased, kind, word);
                    (kind, word, rest) = next_word(rest);
                }
                if is_more(kind) {
                    cased.push(connector);
                }
            }
            _ if kind != Kind::Number => {
                if stays_apart(kind) {
                    cased.push(connector);
                }
            }
            _ if rest.is_empty() => {}
            _ => {
                let number = word;
                (kind, word, rest) = next_word(rest);
                if kind != Kind::Small {
                    // A number belongs to the word before it: `Bld4Floor`.
                    cased.push_str(number);
                    if stays_apart(kind) {
                        cased.push(connector);
                    }
                    continue;
                }
                // Except with small letters after it: `http2xx`.
                cased.push(connector);
                cased.push_str(number);
                while goes_on(kind) {
                    push(&mut cased, kind, word);
                    (kind, word, rest) = next_word(rest);
                }
                if is_more(kind) {
                    cased.push(connector);
                }
            }
        }
    }
    push(&mut cased, kind, word);
    Ok(cased.into())
}

/// `CamelCase`: connectors at the beginning stay, and of several between words all but one.
fn camel_case(text: &str) -> String {
    let mut cased = String::with_capacity(text.len());
    let mut chars = text.chars();
    // The character that is still to be written, and whether it is in a run of capitals.
    let mut pending = None;
    let mut in_capitals = false;
    for c in chars.by_ref() {
        if !is_connector(c) {
            in_capitals = c.is_uppercase();
            pending = Some(upper(c));
            break;
        }
        cased.push(c);
        pending = Some(c);
    }
    for mut c in chars {
        let Some(before) = pending else { break };
        match (is_connector(before), is_connector(c)) {
            (true, true) => cased.push(before),
            (true, false) => {
                in_capitals = c.is_uppercase();
                c = upper(c);
            }
            (false, _) => {
                in_capitals = in_capitals && c.is_uppercase();
                if in_capitals {
                    c = lower(c);
                }
                cased.push(before);
            }
        }
        pending = Some(c);
    }
    cased.extend(pending);
    cased
}

/// Capitals become small and small letters capitals.
fn swap_case(text: &str) -> String {
    let swapped = |c: char| if c.is_uppercase() { lower(c) } else { upper(c) };
    text.chars().map(swapped).collect()
}

/// Breaks a text into lines of at most `width` bytes at its spaces; `break_words`: also within
/// words that are longer.
fn wrap(
    call: &Call<'_>,
    width: i64,
    newline: &str,
    text: &str,
    break_words: bool,
) -> Result<Value, Cause> {
    let width = usize::try_from(width).unwrap_or(1).max(1);
    let newline = if newline.is_empty() { "\n" } else { newline };
    let bytes = text.as_bytes();
    let mut wrapped: Vec<u8> = Vec::with_capacity(text.len());
    let mut at = 0;
    while bytes.len().saturating_sub(at) > width {
        call.run.steps(1)?;
        if bytes[at] == b' ' {
            at += 1;
            continue;
        }
        let space = |range: std::ops::Range<usize>| bytes[range].iter().rposition(|b| *b == b' ');
        let (end, next) = match space(at..at + width + 1) {
            Some(space) => (at + space, at + space + 1),
            None if break_words => (at + width, at + width),
            None => match bytes[at + width..].iter().position(|b| *b == b' ') {
                Some(space) => (at + width + space, at + width + space + 1),
                None => break,
            },
        };
        call.run.work(end - at + width.min(bytes.len()) + newline.len())?;
        check_output(wrapped.len() + end - at + newline.len())?;
        wrapped.extend_from_slice(&bytes[at..end]);
        wrapped.extend_from_slice(newline.as_bytes());
        at = next;
    }
    let mut result = Text::new(call.run);
    wrapped.extend_from_slice(&bytes[at..]);
    result.push(&String::from_utf8_lossy(&wrapped))?;
    Ok(result.finish().into())
}

/// At most `width` bytes around the one at `offset`, with dots for what is left out.
fn abbreviate(offset: i64, width: i64, text: &str) -> Value {
    let len = text.len() as i64;
    if width < 4 || offset > 0 && width < 7 || len <= width {
        return text.into();
    }
    let kept = width - 3;
    let offset = offset.min(len - kept);
    let part = |from: i64, to: i64| {
        let (from, to) = (from.clamp(0, len) as usize, to.clamp(0, len) as usize);
        String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned()
    };
    if offset <= 4 {
        return (part(0, kept) + "...").into();
    }
    if offset + kept < len {
        // Dots on both sides take six of the bytes.
        return match kept < 4 {
            true => "...".into(),
            false => format!("...{}...", part(offset, offset + kept - 3)).into(),
        };
    }
    format!("...{}", part(len - kept, len)).into()
}
