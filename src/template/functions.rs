//! The functions of Go templates: Go's own, sprig's and KubeKey's.
//!
//! Names, the order of arguments, results and errors are those of sprig 3.3. What Go returns as
//! `int64`, `[]string` or `map[string]string` is an `int`, a list and a map here, so a result can
//! go where Go would complain about the type.

mod builtin;
mod dates;
mod dicts;
mod encoding;
mod floats;
mod kubekey;
mod lists;
mod math;
mod network;
mod paths;
mod regexes;
mod semver;
mod strings;
mod toml;
mod urls;
mod words;
mod yaml;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, LazyLock},
};

use super::{
    Value,
    error::Cause,
    eval, print,
    run::Run,
    tree::Tree,
    value::{List, Map},
};

/// A function that templates can call.
pub(super) struct Function {
    pub(super) name: &'static str,
    /// Types of the parameters: `a`ny, `s`tring, `i`nteger, `f`loat, `b`ool, `m`ap, `t`ime. A `*` at
    /// the end: the last one as often as one likes.
    signature: &'static str,
    run: Body,
}

type Body = fn(&mut Call<'_>) -> Result<Value, Cause>;

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn function(name: &'static str, signature: &'static str, run: Body) -> Function {
    Function { name, signature, run }
}

impl Function {
    /// The parameters that are always there, and the type of those that may follow.
    pub(super) fn parameters(&self) -> (&'static [u8], Option<u8>) {
        let types = self.signature.as_bytes();
        match types {
            [fixed @ .., rest, b'*'] => (fixed, Some(*rest)),
            _ => (types, None),
        }
    }

    /// `and` and `or` look at their arguments one by one; the evaluator does that.
    pub(super) fn is_short_circuit(&self) -> bool {
        matches!(self.name, "and" | "or")
    }

    /// Whether the function is there to say what holds where something is missing.
    pub(super) fn takes_missing(&self) -> bool {
        matches!(self.name, "default" | "coalesce" | "empty")
    }

    pub(super) fn call(&self, call: &mut Call<'_>) -> Result<Value, Cause> {
        call.run.steps(1 + call.args.len())?;
        let value = (self.run)(call)?;
        let made = match &value {
            Value::List(list) => list.len() * size_of::<Value>(),
            Value::Map(map) => map.len() * 2 * size_of::<Value>(),
            Value::String(text) => text.len(),
            _ => 0,
        };
        call.run.work(made)?;
        super::run::check_depth(value.depth())?;
        if let Value::String(text) = &value {
            super::run::check_output(text.len())?;
        }
        Ok(value)
    }
}

/// One call: the arguments, checked against the signature, and what is around.
pub(super) struct Call<'c> {
    pub(super) run: &'c mut Run,
    pub(super) tree: &'c Tree,
    pub(super) args: Vec<Value>,
}

impl Call<'_> {
    fn len(&self) -> usize {
        self.args.len()
    }

    fn value(&self, index: usize) -> &Value {
        self.args.get(index).unwrap_or(&Value::Nil)
    }

    fn text(&self, index: usize) -> Arc<str> {
        match self.value(index) {
            Value::String(text) => text.clone(),
            _ => "".into(),
        }
    }

    fn int(&self, index: usize) -> i64 {
        match self.value(index) {
            Value::Int(number) => *number,
            _ => 0,
        }
    }

    fn is_true(&self, index: usize) -> bool {
        matches!(self.value(index), Value::Bool(true))
    }

    /// A map argument; a `nil` one is empty.
    fn map(&self, index: usize) -> Map {
        match self.value(index) {
            Value::Map(map) => map.clone(),
            _ => Map::default(),
        }
    }

    /// What a map argument holds now.
    fn entries(&self, index: usize) -> &BTreeMap<String, Value> {
        static NOTHING: BTreeMap<String, Value> = BTreeMap::new();
        match self.value(index) {
            Value::Map(map) => self.run.entries(map),
            _ => &NOTHING,
        }
    }

    /// A list argument; `doing` says what cannot be done to anything else.
    fn list(&self, index: usize, doing: &str) -> Result<List, Cause> {
        match self.value(index) {
            Value::List(list) => Ok(list.clone()),
            other => Err(format!("Cannot {doing} on type {}", kind(other)).into()),
        }
    }

    /// sprig's `strval`
    fn text_of(&self, value: &Value) -> Result<Arc<str>, Cause> {
        match value {
            Value::String(text) => Ok(text.clone()),
            other => Ok(print::value(self.run, other)?.into()),
        }
    }

    /// sprig's `strslice`
    fn texts_of(&self, value: &Value) -> Result<Vec<Arc<str>>, Cause> {
        match value {
            Value::Nil => Ok(Vec::new()),
            Value::List(list) => {
                self.run.steps(list.len())?;
                let there = list.iter().filter(|value| !matches!(value, Value::Nil));
                there.map(|value| self.text_of(value)).collect()
            }
            other => Ok(vec![self.text_of(other)?]),
        }
    }

    /// Renders a text with `dot`, for `tpl`.
    fn render_text(&mut self, text: &str, dot: Value) -> Result<String, Cause> {
        eval::render_nested(self.run, text, dot)
    }

    /// Renders a defined template with `dot`, for `include`.
    fn render_defined(&mut self, name: &str, dot: Value) -> Result<String, Cause> {
        eval::render_defined(self.run, self.tree, name, dot)
    }
}

/// Go's `reflect.Kind`
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Nil => "invalid",
        Value::List(_) => "slice",
        Value::Map(_) => "map",
        Value::Time(_) => "struct",
        scalar => scalar.type_name(),
    }
}

/// sprig's `empty`, which is also the opposite of Go's truth.
pub(super) fn is_empty(run: &Run, value: &Value) -> bool {
    match value {
        Value::Nil => true,
        Value::Bool(value) => !value,
        Value::Int(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::List(list) => list.is_empty(),
        Value::Map(map) => run.entries(map).is_empty(),
        Value::Time(_) => false,
    }
}

static FUNCTIONS: LazyLock<HashMap<&str, &Function>> = LazyLock::new(|| {
    let all = [
        builtin::FUNCTIONS,
        dates::FUNCTIONS,
        dicts::FUNCTIONS,
        encoding::FUNCTIONS,
        floats::FUNCTIONS,
        kubekey::FUNCTIONS,
        lists::FUNCTIONS,
        math::FUNCTIONS,
        network::FUNCTIONS,
        paths::FUNCTIONS,
        regexes::FUNCTIONS,
        semver::FUNCTIONS,
        strings::FUNCTIONS,
        urls::FUNCTIONS,
        words::FUNCTIONS,
    ];
    all.into_iter().flatten().map(|function| (function.name, function)).collect()
});

/// The function of a name, or what to say where there is none.
pub(super) fn find(name: &str) -> Result<&'static Function, Cause> {
    if let Some(function) = FUNCTIONS.get(name) {
        return Ok(function);
    }
    for (names, reason) in NOT_OFFERED {
        if names.split_whitespace().any(|known| known == name) {
            return Err(Cause::NotOffered { name: name.to_owned(), reason });
        }
    }
    let name: String = name.chars().take(60).collect();
    Err(Cause::UnknownFunction { similar: similar(&name), name })
}

/// What sprig, Go or KubeKey have and this does not, with the reason.
const NOT_OFFERED: &[(&str, &str)] = &[
    ("call", "values here are no functions"),
    ("env expandenv", "templates do not see the environment; use --set or --vars"),
    ("fileExist fileExists", "templates do not see files"),
    ("getHostByName", "templates do not see the network"),
    (
        "now ago",
        "it depends on the present time, and the same template and variables always give the same \
         text; give a date with --set or --vars",
    ),
    (
        "randAlphaNum randAlpha randAscii randNumeric randBytes randInt shuffle uuidv4",
        "it is random, and the same template and variables always give the same text",
    ),
    (
        "bcrypt htpasswd derivePassword genPrivateKey buildCustomCert genCA genCAWithKey \
         genSelfSignedCert genSelfSignedCertWithKey genSignedCert genSignedCertWithKey encryptAES \
         decryptAES",
        "templates make no passwords, keys or certificates",
    ),
];

/// The function whose name is most like this one, if any is.
fn similar(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    let mut names: Vec<&'static str> = FUNCTIONS.keys().copied().collect();
    names.sort_unstable();
    let near = |known: &&str| distance(&lower, &known.to_lowercase());
    names.into_iter().min_by_key(near).filter(|known| near(known) <= (name.len() / 3).clamp(1, 3))
}

/// Levenshtein's
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
