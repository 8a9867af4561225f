//! From the text of a Go template to tokens, as Go's `text/template/parse` cuts it.

use std::borrow::Cow;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text outside of actions, already trimmed.
    Text,
    LeftDelim,
    RightDelim,
    Space,
    Identifier,
    /// `if`, `range` and the like
    Keyword,
    /// `.name`
    Field,
    /// `$name` or `$`
    Variable,
    Dot,
    Nil,
    Bool,
    Number,
    Char,
    String,
    RawString,
    Pipe,
    /// `=`
    Assign,
    /// `:=`
    Declare,
    LeftParen,
    RightParen,
    /// Any other printable ASCII character; only a comma has a use.
    Other,
    End,
    /// The text is a message.
    Error,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token<'t> {
    pub(super) kind: Kind,
    /// Where it starts, in bytes.
    pub(super) at: usize,
    pub(super) text: Cow<'t, str>,
}

const KEYWORDS: [&str; 10] =
    ["block", "break", "continue", "define", "else", "end", "if", "range", "template", "with"];

struct Lexer<'t> {
    input: &'t str,
    at: usize,
    /// Open parentheses in this action.
    parens: usize,
    tokens: Vec<Token<'t>>,
}

/// Cuts a whole template. The last token is `End` or `Error`.
pub(super) fn lex(input: &str) -> Vec<Token<'_>> {
    let mut lexer = Lexer { input, at: 0, parens: 0, tokens: Vec::new() };
    if let Err((at, message)) = lexer.run() {
        lexer.tokens.push(Token { kind: Kind::Error, at, text: message.into() });
    }
    lexer.tokens
}

type Failure = (usize, String);

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.input[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn emit(&mut self, kind: Kind, start: usize) {
        let text = Cow::Borrowed(&self.input[start..self.at]);
        self.tokens.push(Token { kind, at: start, text });
    }

    fn run(&mut self) -> Result<(), Failure> {
        // Whether the action before has eaten the white space that follows it.
        loop {
            let start = self.at;
            let Some(found) = self.rest().find("{{") else {
                self.at = self.input.len();
                if self.at > start {
                    self.emit(Kind::Text, start);
                }
                self.emit(Kind::End, self.at);
                return Ok(());
            };
            let open = start + found;
            let trims = has_left_trim(&self.input[open + 2..]);
            let text = &self.input[start..open];
            let text = if trims { text.trim_end_matches(is_space) } else { text };
            self.at = start + text.len();
            if !text.is_empty() {
                self.emit(Kind::Text, start);
            }
            self.at = open + 2;
            let after_marker = self.at + if trims { 2 } else { 0 };
            if self.input[after_marker..].starts_with("/*") {
                self.at = after_marker;
                self.comment(open)?;
            } else {
                self.emit(Kind::LeftDelim, open);
                self.at = after_marker;
                self.parens = 0;
                self.action(open)?;
            }
        }
    }

    fn comment(&mut self, open: usize) -> Result<(), Failure> {
        let Some(end) = self.rest()[2..].find("*/") else {
            return Err((open, "unclosed comment".into()));
        };
        self.at += 2 + end + 2;
        match self.at_right_delim() {
            Some(trims) => self.skip_right_delim(trims),
            None => return Err((open, "comment ends before closing delimiter".into())),
        }
        Ok(())
    }

    /// Whether this is `}}` (or ` -}}`: `Some(true)`).
    fn at_right_delim(&self) -> Option<bool> {
        let rest = self.rest();
        if has_right_trim(rest) && rest[2..].starts_with("}}") {
            return Some(true);
        }
        rest.starts_with("}}").then_some(false)
    }

    fn skip_right_delim(&mut self, trims: bool) {
        self.at += if trims { 4 } else { 2 };
        if trims {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start_matches(is_space).len();
        }
    }

    fn action(&mut self, open: usize) -> Result<(), Failure> {
        loop {
            let start = self.at;
            if let Some(trims) = self.at_right_delim() {
                if self.parens > 0 {
                    return Err((start, "unclosed left paren".into()));
                }
                self.at += if trims { 2 } else { 0 };
                let delim = self.at;
                self.at += 2;
                self.emit(Kind::RightDelim, delim);
                self.at = start;
                self.skip_right_delim(trims);
                return Ok(());
            }
            let Some(c) = self.next() else { return Err((open, "unclosed action".into())) };
            match c {
                c if is_space(c) => self.spaces(start),
                '=' => self.emit(Kind::Assign, start),
                ':' => match self.next() {
                    Some('=') => self.emit(Kind::Declare, start),
                    _ => return Err((start, "expected :=".into())),
                },
                '|' => self.emit(Kind::Pipe, start),
                '"' => self.quoted(start, '"', Kind::String, "unterminated quoted string")?,
                '\'' => {
                    self.quoted(start, '\'', Kind::Char, "unterminated character constant")?;
                }
                '`' => {
                    let Some(end) = self.rest().find('`') else {
                        return Err((start, "unterminated raw quoted string".into()));
                    };
                    self.at += end + 1;
                    self.emit(Kind::RawString, start);
                }
                '$' => self.name(start, Kind::Variable, Kind::Variable)?,
                '.' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => {
                    self.name(start, Kind::Dot, Kind::Field)?;
                }
                '.' | '+' | '-' | '0'..='9' => {
                    self.at = start;
                    self.number(start)?;
                }
                c if is_alphanumeric(c) => {
                    self.at = start;
                    self.name(start, Kind::Identifier, Kind::Identifier)?;
                }
                '(' => {
                    self.emit(Kind::LeftParen, start);
                    self.parens += 1;
                }
                ')' => {
                    if self.parens == 0 {
                        return Err((start, "unexpected right paren".into()));
                    }
                    self.emit(Kind::RightParen, start);
                    self.parens -= 1;
                }
                c if c.is_ascii_graphic() => self.emit(Kind::Other, start),
                c => {
                    let message = format!("unrecognized character in action: {}", unicode(c));
                    return Err((start, message));
                }
            }
        }
    }

    /// A run of spaces, of which the last may belong to ` -}}`.
    fn spaces(&mut self, start: usize) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
        let last = self.at - 1;
        if has_right_trim(&self.input[last..]) && self.input[last + 2..].starts_with("}}") {
            self.at = last;
            if last == start {
                return;
            }
        }
        self.emit(Kind::Space, start);
    }

    fn quoted(&mut self, start: usize, end: char, kind: Kind, open: &str) -> Result<(), Failure> {
        loop {
            let unterminated = match self.next() {
                Some('\\') => matches!(self.next(), None | Some('\n')),
                None | Some('\n') => true,
                Some(c) if c == end => break,
                Some(_) => false,
            };
            if unterminated {
                return Err((start, open.into()));
            }
        }
        self.emit(kind, start);
        Ok(())
    }

    /// A name, or what its mark means alone.
    fn name(&mut self, start: usize, alone: Kind, kind: Kind) -> Result<(), Failure> {
        let name = self.at;
        while self.peek().is_some_and(is_alphanumeric) {
            self.next();
        }
        // As in Go, `$x+2` is none, in case there will be arithmetic one day.
        let is_end = match self.peek() {
            None | Some('.' | ',' | '|' | ':' | ')' | '(') => true,
            Some(c) => is_space(c) || self.rest().starts_with("}}"),
        };
        if !is_end {
            let c = self.peek().map(unicode).unwrap_or_default();
            return Err((self.at, format!("bad character {c}")));
        }
        let word = &self.input[name..self.at];
        let kind = match kind {
            Kind::Identifier if KEYWORDS.contains(&word) => Kind::Keyword,
            Kind::Identifier if word == "nil" => Kind::Nil,
            Kind::Identifier if matches!(word, "true" | "false") => Kind::Bool,
            _ if word.is_empty() => alone,
            kind => kind,
        };
        self.emit(kind, start);
        Ok(())
    }

    /// Not a perfect scanner: whether it is a number, the parser sees.
    fn number(&mut self, start: usize) -> Result<(), Failure> {
        let bad = |lexer: &Self| {
            let text = &lexer.input[start..lexer.at];
            (start, format!("bad number syntax: {text:?}"))
        };
        self.accept("+-");
        let mut digits = "0123456789_";
        if self.accept("0") {
            if self.accept("xX") {
                digits = "0123456789abcdefABCDEF_";
            } else if self.accept("oO") {
                digits = "01234567_";
            } else if self.accept("bB") {
                digits = "01_";
            }
        }
        while self.accept(digits) {}
        if self.accept(".") {
            while self.accept(digits) {}
        }
        let exponent = match digits.len() {
            11 => "eE",
            23 => "pP",
            _ => "",
        };
        if self.accept(exponent) {
            self.accept("+-");
            while self.accept("0123456789_") {}
        }
        if self.peek().is_some_and(|c| is_alphanumeric(c) || c == '+' || c == '-') {
            self.next();
            return Err(bad(self));
        }
        self.emit(Kind::Number, start);
        Ok(())
    }

    fn accept(&mut self, valid: &str) -> bool {
        let accepted = self.peek().is_some_and(|c| valid.contains(c));
        if accepted {
            self.at += 1;
        }
        accepted
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_alphanumeric(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// `- ` after the opening braces
fn has_left_trim(rest: &str) -> bool {
    rest.starts_with('-') && rest[1..].starts_with(is_space)
}

/// ` -` before the closing ones
fn has_right_trim(rest: &str) -> bool {
    rest.starts_with(is_space) && rest[1..].starts_with('-')
}

/// `U+0025 '%'`
fn unicode(c: char) -> String {
    format!("U+{:04X} '{}'", c as u32, c.escape_debug())
}
