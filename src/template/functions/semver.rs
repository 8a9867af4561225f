//! sprig's `semver` and `semverCompare`, with the rules of Masterminds' `semver` 3.

use semver::{BuildMetadata, Prerelease, Version};

use super::{Function, function};
use crate::template::Value;

pub(super) const FUNCTIONS: &[Function] = &[
    function("semver", "s", |call| {
        let original = call.text(0);
        let version = version(&original)?;
        let entries: [(&str, Value); 6] = [
            ("Major", (version.major as i64).into()),
            ("Minor", (version.minor as i64).into()),
            ("Patch", (version.patch as i64).into()),
            ("Prerelease", version.pre.as_str().into()),
            ("Metadata", version.build.as_str().into()),
            ("Original", Value::String(original)),
        ];
        Ok(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }),
    function("semverCompare", "ss", |call| {
        let constraints = constraints(&call.text(0))?;
        let version = version(&call.text(1))?;
        Ok(constraints.iter().any(|all| all.iter().all(|one| one.allows(&version))).into())
    }),
];

/// Reads `v1`, `1.2` and `1.2.3-rc.1+build`.
fn version(text: &str) -> Result<Version, String> {
    let partial = Partial::parse(text).filter(|partial| !partial.has_wildcard());
    partial.and_then(|p| p.version()).ok_or_else(|| format!("Invalid Semantic Version: {text}"))
}

/// A version that may lack numbers, or have `x` for them.
struct Partial<'t> {
    /// `None` where it is `x`, `X` or `*`.
    numbers: Vec<Option<u64>>,
    pre: &'t str,
    build: &'t str,
}

impl<'t> Partial<'t> {
    fn parse(text: &'t str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, build) = text.split_once('+').map_or((text, ""), |(text, build)| (text, build));
        let (core, pre) = text.split_once('-').map_or((text, ""), |(core, pre)| (core, pre));
        let number = |part: &str| match part {
            "x" | "X" | "*" => Some(None),
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(Some(digits.parse().ok()?))
            }
            _ => None,
        };
        let numbers = core.split('.').map(number).collect::<Option<Vec<_>>>()?;
        (numbers.len() <= 3).then_some(Self { numbers, pre, build })
    }

    fn has_wildcard(&self) -> bool {
        self.numbers.contains(&None)
    }

    /// How many numbers say something.
    fn precision(&self) -> usize {
        self.numbers.iter().take_while(|number| number.is_some()).count()
    }

    fn version(&self) -> Option<Version> {
        let precision = self.precision();
        let number = |index: usize| match self.numbers.get(index) {
            Some(Some(number)) if index < precision => *number,
            _ => 0,
        };
        let mut version = Version::new(number(0), number(1), number(2));
        version.pre = Prerelease::new(self.pre).ok()?;
        version.build = BuildMetadata::new(self.build).ok()?;
        Some(version)
    }
}

#[derive(Clone, Copy)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterOrEqual,
    LessOrEqual,
    Tilde,
    Caret,
}

const OPERATORS: [(&str, Operator); 11] = [
    ("!=", Operator::NotEqual),
    (">=", Operator::GreaterOrEqual),
    ("=>", Operator::GreaterOrEqual),
    ("<=", Operator::LessOrEqual),
    ("=<", Operator::LessOrEqual),
    ("~>", Operator::Tilde),
    (">", Operator::Greater),
    ("<", Operator::Less),
    ("~", Operator::Tilde),
    ("^", Operator::Caret),
    ("=", Operator::Equal),
];

struct Constraint {
    operator: Operator,
    version: Version,
    /// How many of its numbers say something; 3 if it is whole.
    precision: usize,
}

/// Alternatives, each a list of constraints that must all hold.
fn constraints(text: &str) -> Result<Vec<Vec<Constraint>>, String> {
    text.split("||").map(|part| alternative(part).ok_or_else(|| improper(part))).collect()
}

fn improper(text: &str) -> String {
    format!("improper constraint: {text}")
}

fn alternative(text: &str) -> Option<Vec<Constraint>> {
    let mut all = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (operator, after) = OPERATORS
            .iter()
            .find_map(|(name, operator)| Some((Some(*operator), rest.strip_prefix(name)?)))
            .unwrap_or((None, rest));
        let after = after.trim_start();
        let end = after.find([',', ' ', '\t', '\n', '\r']).unwrap_or(after.len());
        let first = constraint(operator.unwrap_or(Operator::Equal), &after[..end])?;
        rest = &after[end..];
        let spaced = rest.trim_start();
        // `1.2 - 1.4`: from the one to the other.
        match spaced.strip_prefix("- ").filter(|_| operator.is_none() && rest != spaced) {
            Some(upper) => {
                let upper = upper.trim_start();
                let end = upper.find([',', ' ', '\t']).unwrap_or(upper.len());
                all.push(Constraint { operator: Operator::GreaterOrEqual, ..first });
                all.push(constraint(Operator::LessOrEqual, &upper[..end])?);
                rest = upper[end..].trim_start();
            }
            None => {
                all.push(first);
                rest = spaced;
            }
        }
        if let Some(next) = rest.strip_prefix(',') {
            rest = next.trim_start();
            if rest.is_empty() {
                return None;
            }
        }
    }
    (!all.is_empty()).then_some(all)
}

fn constraint(operator: Operator, text: &str) -> Option<Constraint> {
    let partial = Partial::parse(text)?;
    Some(Constraint { operator, version: partial.version()?, precision: partial.precision() })
}

impl Constraint {
    fn allows(&self, version: &Version) -> bool {
        let wanted = &self.version;
        // A prerelease is only what somebody wants who names one.
        let is_unwanted = !version.pre.is_empty() && wanted.pre.is_empty();
        if is_unwanted && !(matches!(self.operator, Operator::NotEqual) && self.precision == 3) {
            return false;
        }
        let ordering = version.cmp_precedence(wanted);
        match self.operator {
            Operator::Equal if self.precision == 3 => ordering.is_eq(),
            Operator::Equal | Operator::Tilde => self.tilde(version),
            Operator::NotEqual if self.precision == 3 => ordering.is_ne(),
            Operator::NotEqual => self.differs(version),
            Operator::Greater => match self.precision {
                3 => ordering.is_gt(),
                // Greater than 11 is 12, not 11.1.
                2 => (version.major, version.minor) > (wanted.major, wanted.minor),
                1 => version.major > wanted.major,
                _ => version.major > 0 || ordering.is_gt(),
            },
            Operator::Less => ordering.is_lt(),
            Operator::GreaterOrEqual => ordering.is_ge(),
            Operator::LessOrEqual => match self.precision {
                3 => ordering.is_le(),
                1 => version.major <= wanted.major,
                _ => (version.major, version.minor) <= (wanted.major, wanted.minor),
            },
            Operator::Caret => self.caret(version),
        }
    }

    fn differs(&self, version: &Version) -> bool {
        let wanted = &self.version;
        if version.major != wanted.major {
            return true;
        }
        match self.precision {
            1 => false,
            2 => version.minor != wanted.minor || version.pre != wanted.pre,
            _ => {
                (version.minor, version.patch) != (wanted.minor, wanted.patch)
                    || version.cmp_precedence(wanted).is_ne()
            }
        }
    }

    fn tilde(&self, version: &Version) -> bool {
        let wanted = &self.version;
        if version.cmp_precedence(wanted).is_lt() {
            return false;
        }
        let is_zero = (wanted.major, wanted.minor, wanted.patch) == (0, 0, 0);
        if is_zero && !matches!(self.precision, 1 | 2) {
            return true;
        }
        version.major == wanted.major && (self.precision == 1 || version.minor == wanted.minor)
    }

    fn caret(&self, version: &Version) -> bool {
        let wanted = &self.version;
        if version.cmp_precedence(wanted).is_lt() {
            return false;
        }
        if wanted.major > 0 || self.precision == 1 {
            return version.major == wanted.major;
        }
        if version.major > 0 {
            return false;
        }
        if wanted.minor > 0 || self.precision == 2 {
            return version.minor == wanted.minor;
        }
        version.minor == 0 && version.patch == wanted.patch
    }
}
