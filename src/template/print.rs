//! Values as text, as Go's `fmt` has it: `print`, `println` and `printf`.

use super::{
    Value,
    error::Cause,
    float,
    run::{Run, Text, check_depth},
};

type Printed = Result<(), Cause>;

/// The widest width and precision that Go takes.
const MAX_WIDTH: usize = 1_000_000;

/// `%v` of one value
pub(super) fn value(run: &Run, value: &Value) -> Result<String, Cause> {
    print(run, std::slice::from_ref(value))
}

/// `fmt.Sprint`: a space between operands neither of which is a string.
pub(super) fn print(run: &Run, values: &[Value]) -> Result<String, Cause> {
    let mut printer = Printer::new(run);
    let mut after_string = true;
    for value in values {
        let is_string = matches!(value, Value::String(_));
        if !is_string && !after_string {
            printer.text.push(" ")?;
        }
        printer.argument(value, 'v')?;
        after_string = is_string;
    }
    Ok(printer.text.finish())
}

/// `fmt.Sprintln`: a space between all, and a newline.
pub(super) fn println(run: &Run, values: &[Value]) -> Result<String, Cause> {
    let mut printer = Printer::new(run);
    for (index, value) in values.iter().enumerate() {
        if index > 0 {
            printer.text.push(" ")?;
        }
        printer.argument(value, 'v')?;
    }
    printer.text.push("\n")?;
    Ok(printer.text.finish())
}

/// `fmt.Sprintf`
pub(super) fn printf(run: &Run, format: &str, values: &[Value]) -> Result<String, Cause> {
    let mut printer = Printer::new(run);
    let mut directives =
        Directives { format, at: 0, values, next: 0, reordered: false, good: true };
    directives.run(&mut printer)?;
    Ok(printer.text.finish())
}

/// `%q` of a string
pub(super) fn quote(text: &str) -> String {
    quoted(text, '"', false)
}

#[derive(Clone, Copy, Default)]
struct Flags {
    width: Option<usize>,
    precision: Option<usize>,
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    /// `%#v`
    go_syntax: bool,
}

struct Printer<'r> {
    text: Text<'r>,
    flags: Flags,
}

impl<'r> Printer<'r> {
    fn new(run: &'r Run) -> Self {
        Self { text: Text::new(run), flags: Flags::default() }
    }

    fn argument(&mut self, value: &Value, verb: char) -> Printed {
        self.text.run().steps(1)?;
        match (value, verb) {
            (Value::Nil, 'v' | 'T') => self.pad("<nil>"),
            (Value::Nil, verb) => self.text.push(&format!("%!{verb}(<nil>)")),
            (value, 'T') => self.string(value.type_name()),
            (value, verb) => self.value(value, verb, 0),
        }
    }

    fn value(&mut self, value: &Value, verb: char, depth: usize) -> Printed {
        check_depth(depth)?;
        match value {
            Value::Nil if self.flags.go_syntax => self.text.push("interface {}(nil)"),
            Value::Nil => self.text.push("<nil>"),
            Value::Bool(value) => match verb {
                't' | 'v' => self.pad(if *value { "true" } else { "false" }),
                _ => self.bad_verb(&Value::Bool(*value), verb),
            },
            Value::Int(number) => self.integer(*number, verb),
            Value::Float(number) => self.float(*number, verb),
            Value::String(text) => match verb {
                'v' if self.flags.go_syntax => self.quote(text),
                'v' | 's' => self.string(text),
                'x' => self.hex(text, false),
                'X' => self.hex(text, true),
                'q' => self.quote(text),
                _ => self.bad_verb(value, verb),
            },
            // As what it is as a text, whatever the verb.
            Value::Time(time) => self.value(&Value::from(time.to_string()), verb, depth),
            Value::List(_) | Value::Map(_) if verb == 'p' => self.bad_verb(value, verb),
            Value::List(list) => {
                let (open, close, separator) = self.brackets(value, "[");
                self.text.push(&open)?;
                for (index, value) in list.iter().enumerate() {
                    self.text.run().steps(1)?;
                    if index > 0 {
                        self.text.push(separator)?;
                    }
                    self.value(value, verb, depth + 1)?;
                }
                self.text.push(close)
            }
            Value::Map(map) => {
                let (open, close, separator) = self.brackets(value, "map[");
                self.text.push(&open)?;
                let run = self.text.run();
                for (index, (key, value)) in run.entries(map).iter().enumerate() {
                    run.steps(1)?;
                    if index > 0 {
                        self.text.push(separator)?;
                    }
                    self.value(&Value::from(key.as_str()), verb, depth + 1)?;
                    self.text.push(":")?;
                    self.value(value, verb, depth + 1)?;
                }
                self.text.push(close)
            }
        }
    }

    fn brackets(&self, value: &Value, open: &str) -> (String, &'static str, &'static str) {
        match self.flags.go_syntax {
            true => (format!("{}{{", value.type_name()), "}", ", "),
            false => (open.to_owned(), "]", " "),
        }
    }

    fn bad_verb(&mut self, value: &Value, verb: char) -> Printed {
        self.text.push(&format!("%!{verb}({}=", value.type_name()))?;
        self.value(value, 'v', 0)?;
        self.text.push(")")
    }

    /// Pads with spaces, or with zeros where those are asked for.
    fn pad(&mut self, text: &str) -> Printed {
        let filling = if self.flags.zero { "0" } else { " " };
        self.pad_with(text, filling)
    }

    fn pad_with(&mut self, text: &str, filling: &str) -> Printed {
        let width = self.flags.width.unwrap_or(0);
        let missing = width.saturating_sub(text.chars().count());
        if !self.flags.minus {
            self.text.repeat(filling, missing)?;
        }
        self.text.push(text)?;
        if self.flags.minus {
            self.text.repeat(" ", missing)?;
        }
        Ok(())
    }

    fn truncated<'t>(&self, text: &'t str) -> &'t str {
        let cut = self.flags.precision.and_then(|count| text.char_indices().nth(count));
        cut.map_or(text, |(at, _)| &text[..at])
    }

    fn string(&mut self, text: &str) -> Printed {
        self.pad(self.truncated(text))
    }

    fn quote(&mut self, text: &str) -> Printed {
        let text = self.truncated(text);
        let can_be_raw = |c: char| c != '`' && c != '\u{feff}' && (c == '\t' || !c.is_control());
        if self.flags.sharp && text.chars().all(can_be_raw) {
            return self.pad(&format!("`{text}`"));
        }
        self.pad(&quoted(text, '"', self.flags.plus))
    }

    fn hex(&mut self, text: &str, upper: bool) -> Printed {
        let bytes = &text.as_bytes()[..self.flags.precision.unwrap_or(text.len()).min(text.len())];
        // Twice as long, and at most five times.
        self.text.run().work(bytes.len() * 5)?;
        let prefix = match (self.flags.sharp && !bytes.is_empty(), upper) {
            (false, _) => "",
            (true, false) => "0x",
            (true, true) => "0X",
        };
        let digits = |byte: &u8| {
            if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }
        };
        let parts: Vec<String> = bytes.iter().map(digits).collect();
        let joined = match self.flags.space {
            true => {
                parts.iter().map(|part| format!("{prefix}{part}")).collect::<Vec<_>>().join(" ")
            }
            false => format!("{prefix}{}", parts.concat()),
        };
        self.pad(&joined)
    }

    fn integer(&mut self, number: i64, verb: char) -> Printed {
        let character = || {
            let code = u32::try_from(number).ok();
            code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
        let (base, prefix) = match verb {
            'v' | 'd' => (10, ""),
            'b' => (2, "0b"),
            'o' => (8, "0"),
            'O' => (8, ""),
            'x' => (16, "0x"),
            'X' => (16, "0X"),
            'c' => return self.pad(character().encode_utf8(&mut [0; 4])),
            'q' => {
                let text = character().to_string();
                return self.pad(&quoted(&text, '\'', self.flags.plus));
            }
            'U' => return self.unicode(number),
            _ => return self.bad_verb(&Value::Int(number), verb),
        };
        let magnitude = number.unsigned_abs();
        let mut digits = match (base, verb) {
            (2, _) => format!("{magnitude:b}"),
            (8, _) => format!("{magnitude:o}"),
            (16, 'X') => format!("{magnitude:X}"),
            (16, _) => format!("{magnitude:x}"),
            _ => magnitude.to_string(),
        };
        let sign = match (number < 0, self.flags.plus, self.flags.space) {
            (true, _, _) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        };
        let zeros = match (self.flags.precision, self.flags.width) {
            (Some(0), _) if number == 0 => return self.pad_with("", " "),
            (Some(precision), _) => precision,
            (None, Some(width)) if self.flags.zero => width.saturating_sub(sign.len()),
            _ => 0,
        };
        let missing = zeros.saturating_sub(digits.len());
        self.text.run().work(missing)?;
        digits = "0".repeat(missing) + &digits;
        let prefix = match verb {
            'O' => "0o",
            'o' if self.flags.sharp && digits.starts_with('0') => "",
            _ if self.flags.sharp => prefix,
            _ => "",
        };
        self.pad_with(&format!("{sign}{prefix}{digits}"), " ")
    }

    fn unicode(&mut self, number: i64) -> Printed {
        let precision = self.flags.precision.unwrap_or(4).max(4);
        self.text.run().work(precision)?;
        let mut shown = format!("U+{number:0precision$X}");
        let printable = u32::try_from(number).ok().and_then(char::from_u32);
        if let Some(c) = printable.filter(|c| self.flags.sharp && is_printable(*c)) {
            shown += &format!(" '{c}'");
        }
        self.pad_with(&shown, " ")
    }

    fn float(&mut self, number: f64, verb: char) -> Printed {
        let (form, default) = match verb {
            'v' => ('g', None),
            'g' | 'G' | 'b' => (verb, None),
            'f' | 'F' => ('f', Some(6)),
            'e' | 'E' => (verb, Some(6)),
            _ => return self.bad_verb(&Value::Float(number), verb),
        };
        let precision = self.flags.precision.or(default);
        self.text.run().work(precision.unwrap_or(0))?;
        let mut shown = float::format(number.abs(), form, precision);
        if self.flags.sharp && number.is_finite() && form != 'b' {
            shown = float::with_point(&shown, form, precision);
        }
        let negative = number.is_sign_negative() && !number.is_nan();
        let sign = match (negative, self.flags.plus, self.flags.space) {
            (true, _, _) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            // Infinity always shows its sign.
            _ if number.is_infinite() => "+",
            _ => "",
        };
        if !number.is_finite() {
            return self.pad_with(&format!("{sign}{shown}"), " ");
        }
        if self.flags.zero && !sign.is_empty() {
            // The sign stands before the zeros.
            self.text.push(sign)?;
            self.flags.width = self.flags.width.map(|width| width.saturating_sub(1));
            return self.pad(&shown);
        }
        self.pad(&format!("{sign}{shown}"))
    }
}

/// Go's `strconv.Quote` and its like.
fn quoted(text: &str, quote: char, ascii: bool) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push(quote);
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            c if c == quote => quoted.extend(['\\', c]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            c if is_printable(c) && (!ascii || c.is_ascii()) => quoted.push(c),
            c if c < ' ' || c == '\u{7f}' => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c if u32::from(c) < 0x10000 => quoted.push_str(&format!("\\u{:04x}", c as u32)),
            c => quoted.push_str(&format!("\\U{:08x}", c as u32)),
        }
    }
    quoted.push(quote);
    quoted
}

/// Go's `strconv.IsPrint`: letters, marks, numbers, punctuation, symbols and the ASCII space.
pub(super) fn is_printable(c: char) -> bool {
    // Rust escapes a mark only where nothing stands before it.
    let escaped: String = format!("a{c}").escape_debug().skip(1).collect();
    let is_itself = escaped.chars().eq([c]) || matches!(c, '"' | '\'' | '\\');
    is_itself && (c == ' ' || !c.is_whitespace())
}

/// The walk over a format.
struct Directives<'f> {
    format: &'f str,
    at: usize,
    values: &'f [Value],
    /// The operand that comes next.
    next: usize,
    /// Whether operands are chosen by number, as in `%[2]d`.
    reordered: bool,
    /// Whether the number of the operand of this directive is one.
    good: bool,
}

impl Directives<'_> {
    fn peek(&self) -> Option<char> {
        self.format[self.at..].chars().next()
    }

    fn skip(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn run(&mut self, printer: &mut Printer<'_>) -> Printed {
        while self.at < self.format.len() {
            let rest = &self.format[self.at..];
            let literal = &rest[..rest.find('%').unwrap_or(rest.len())];
            printer.text.push(literal)?;
            self.at += literal.len();
            if self.skip('%') {
                printer.text.run().steps(1)?;
                self.directive(printer)?;
            }
        }
        printer.flags = Flags::default();
        let extra = self.values.get(self.next..).unwrap_or_default();
        if self.reordered || extra.is_empty() {
            return Ok(());
        }
        printer.text.push("%!(EXTRA ")?;
        for (index, value) in extra.iter().enumerate() {
            if index > 0 {
                printer.text.push(", ")?;
            }
            match value {
                Value::Nil => printer.text.push("<nil>")?,
                value => {
                    printer.text.push(value.type_name())?;
                    printer.text.push("=")?;
                    printer.argument(value, 'v')?;
                }
            }
        }
        printer.text.push(")")
    }

    fn directive(&mut self, printer: &mut Printer<'_>) -> Printed {
        let mut flags = Flags::default();
        self.good = true;
        while let Some(c) = self.peek() {
            match c {
                '#' => flags.sharp = true,
                '0' => flags.zero = !flags.minus,
                '+' => flags.plus = true,
                '-' => {
                    flags.minus = true;
                    flags.zero = false;
                }
                ' ' => flags.space = true,
                _ => break,
            }
            self.at += 1;
        }
        let mut after_index = self.index();
        if self.skip('*') {
            match self.star() {
                Some(width) => {
                    flags.width = usize::try_from(width.unsigned_abs()).ok();
                    if width < 0 {
                        flags.minus = true;
                        flags.zero = false;
                    }
                }
                None => printer.text.push("%!(BADWIDTH)")?,
            }
            after_index = false;
        } else {
            flags.width = self.digits();
            self.good &= !(after_index && flags.width.is_some());
        }
        if self.at + 1 < self.format.len() && self.skip('.') {
            self.good &= !after_index;
            after_index = self.index();
            if self.skip('*') {
                flags.precision = self.star().and_then(|precision| usize::try_from(precision).ok());
                if flags.precision.is_none() {
                    printer.text.push("%!(BADPREC)")?;
                }
                after_index = false;
            } else {
                flags.precision = Some(self.digits().unwrap_or(0));
            }
        }
        if !after_index {
            self.index();
        }
        let Some(verb) = self.peek() else { return printer.text.push("%!(NOVERB)") };
        self.at += verb.len_utf8();
        if verb == '%' {
            return printer.text.push("%");
        }
        if !self.good {
            return printer.text.push(&format!("%!{verb}(BADINDEX)"));
        }
        let Some(value) = self.values.get(self.next) else {
            return printer.text.push(&format!("%!{verb}(MISSING)"));
        };
        self.next += 1;
        if verb == 'v' {
            flags.go_syntax = std::mem::take(&mut flags.sharp);
            flags.plus = false;
        }
        printer.flags = flags;
        printer.argument(value, verb)
    }

    /// `[3]`; returns whether there is a usable one.
    fn index(&mut self) -> bool {
        if self.peek() != Some('[') {
            return false;
        }
        self.reordered = true;
        let rest = &self.format[self.at..];
        let Some(end) = rest.find(']') else {
            self.at += 1;
            self.good = false;
            return false;
        };
        let number = rest[1..end].parse::<usize>().ok();
        let plain = rest[1..end].bytes().all(|b| b.is_ascii_digit());
        self.at += end + 1;
        match number.filter(|number| plain && *number <= MAX_WIDTH) {
            Some(number) if (1..=self.values.len()).contains(&number) => {
                self.next = number - 1;
                true
            }
            number => {
                self.good = false;
                number.is_some()
            }
        }
    }

    /// A width or precision that an operand says.
    fn star(&mut self) -> Option<i64> {
        let value = self.values.get(self.next)?;
        self.next += 1;
        match value {
            Value::Int(number) if number.unsigned_abs() <= MAX_WIDTH as u64 => Some(*number),
            _ => None,
        }
    }

    fn digits(&mut self) -> Option<usize> {
        let rest = &self.format[self.at..];
        let end = rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[..end].parse().ok().filter(|number| *number <= MAX_WIDTH);
        // Go gives up on one that is too large, and stays at the end.
        if end > 0 && number.is_none() {
            self.at = self.format.len();
            return None;
        }
        self.at += end;
        number
    }
}
