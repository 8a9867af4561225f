//! Functions that KubeKey adds to sprig's, except for those on addresses.

use super::{Call, Function, function, math, toml};
use crate::template::{Value, error::Cause};

pub(super) const FUNCTIONS: &[Function] = &[
    function("toBool", "a", to_bool),
    function("toToml", "a", |call| Ok(toml::write(call.run, call.value(0))?.into())),
    function("fromTOML", "s", |call| {
        let text = call.text(0);
        call.run.work(text.len().saturating_mul(8))?;
        toml::read(&text).map_err(Cause::from)
    }),
    function("unquote", "a", |call| {
        let Value::String(text) = call.value(0) else { return Ok("".into()) };
        let said = crate::template::literal::unquote(text);
        Ok(said.map_or_else(|_| Value::String(text.clone()), Value::from))
    }),
    function("pow", "aa", |call| {
        let (base, exponent) = (math::to_float(call.value(0)), math::to_float(call.value(1)));
        Ok(base.powf(exponent).into())
    }),
    function("subtractList", "aa", |call| {
        let (all, without) = (list_or_empty(call, 0)?, list_or_empty(call, 1)?);
        let mut kept = Vec::new();
        for value in all {
            if !super::lists::contains(call, &without, &value)? {
                kept.push(value);
            }
        }
        Ok(kept.into_iter().collect())
    }),
    function("getStringSlice", "ms", |call| {
        Ok(call.entries(0).get(call.text(1).as_ref()).cloned().unwrap_or_default())
    }),
    // `5Mi` as docker wants it, which is `5m`.
    function("toLowerByteUnit", "s", |call| {
        let lower = call.text(0).trim().to_lowercase();
        Ok(lower.strip_suffix('i').unwrap_or(&lower).into())
    }),
    // A map of arguments as the list that kubeadm wants: `name` and `value` of each.
    function("mapToNamedStringArgs", "m", |call| {
        let mut named: Vec<Value> = Vec::new();
        for (name, value) in call.entries(0) {
            let value = Value::String(call.text_of(value)?);
            let entry = [("name".to_owned(), name.as_str().into()), ("value".to_owned(), value)];
            named.push(entry.into_iter().collect());
        }
        Ok(named.into_iter().collect())
    }),
];

fn to_bool(call: &mut Call<'_>) -> Result<Value, Cause> {
    let is_true = match call.value(0) {
        Value::Bool(value) => Some(*value),
        Value::Int(number) => Some(*number != 0),
        Value::Float(number) => Some(*number != 0.0),
        // What Go's `strconv.ParseBool` takes.
        Value::String(text) => match text.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        Value::Nil | Value::List(_) | Value::Map(_) | Value::Time(_) => None,
    };
    is_true.map(Value::from).ok_or_else(|| match call.value(0) {
        Value::String(text) => {
            let shown: String = text.chars().take(60).collect();
            format!("{shown:?} is neither true nor false").into()
        }
        other => format!("a {} is neither true nor false", other.type_name()).into(),
    })
}

fn list_or_empty(call: &Call<'_>, index: usize) -> Result<Vec<Value>, Cause> {
    match call.value(index) {
        Value::Nil => Ok(Vec::new()),
        _ => Ok(call.list(index, "subtract")?.to_vec()),
    }
}
