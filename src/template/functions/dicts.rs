//! sprig's functions on maps. `set`, `unset` and `merge` change the map that they are given, as in
//! Go; what the caller of the template holds stays as it is.

use std::collections::BTreeMap;

use super::{Call, Function, function, is_empty};
use crate::template::{
    Value,
    error::Cause,
    run::{Run, check_depth},
    value::Map,
};

pub(super) const FUNCTIONS: &[Function] = &[
    function("dict", "a*", |call| {
        let mut entries = BTreeMap::new();
        for pair in call.args.chunks(2) {
            let key = call.text_of(&pair[0])?.to_string();
            entries.insert(key, pair.get(1).cloned().unwrap_or_else(|| "".into()));
        }
        Ok(Value::Map(entries.into()))
    }),
    function("get", "ms", |call| {
        let found = call.entries(0).get(call.text(1).as_ref());
        Ok(found.cloned().unwrap_or_else(|| "".into()))
    }),
    function("set", "msa", |call| {
        let (map, key, value) = (call.map(0), call.text(1), call.value(2).clone());
        call.run.entries_mut(&map).insert(key.to_string(), value);
        Ok(Value::Map(map))
    }),
    function("unset", "ms", |call| {
        let (map, key) = (call.map(0), call.text(1));
        call.run.entries_mut(&map).remove(key.as_ref());
        Ok(Value::Map(map))
    }),
    function("hasKey", "ms", |call| Ok(call.entries(0).contains_key(call.text(1).as_ref()).into())),
    function("keys", "m*", |call| {
        for index in 0..call.len() {
            call.run.steps(call.entries(index).len())?;
        }
        let keys = (0..call.len()).flat_map(|index| call.entries(index).keys());
        Ok(keys.map(|key| Value::from(key.as_str())).collect())
    }),
    function("values", "m", |call| Ok(call.entries(0).values().cloned().collect())),
    function("pluck", "sm*", |call| {
        let key = call.text(0);
        let found = (1..call.len()).filter_map(|index| call.entries(index).get(key.as_ref()));
        Ok(found.cloned().collect())
    }),
    function("pick", "ms*", |call| Ok(filtered(call, true))),
    function("omit", "ms*", |call| Ok(filtered(call, false))),
    function("merge", "mm*", |call| merged(call, false)),
    function("mustMerge", "mm*", |call| merged(call, false)),
    function("mergeOverwrite", "mm*", |call| merged(call, true)),
    function("mustMergeOverwrite", "mm*", |call| merged(call, true)),
    function("deepCopy", "a", |call| copy(call.run, call.value(0), 0)),
    function("mustDeepCopy", "a", |call| copy(call.run, call.value(0), 0)),
    function("dig", "aaaa*", dig),
];

fn filtered(call: &Call<'_>, keep: bool) -> Value {
    let named: Vec<_> = (1..call.len()).map(|index| call.text(index)).collect();
    let is_named = |key: &String| named.iter().any(|name| name.as_ref() == key);
    let entries = call.entries(0).iter().filter(|(key, _)| is_named(key) == keep);
    entries.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn merged(call: &mut Call<'_>, overwrite: bool) -> Result<Value, Cause> {
    let target = call.map(0);
    for index in 1..call.len() {
        let source = call.map(index);
        merge(call.run, &target, &source, overwrite, 0)?;
    }
    Ok(Value::Map(target))
}

/// As the library `mergo` does: an empty value never hides another, and the first one stays unless
/// told otherwise.
fn merge(
    run: &mut Run,
    target: &Map,
    source: &Map,
    overwrite: bool,
    depth: usize,
) -> Result<(), Cause> {
    check_depth(depth)?;
    let entries = run.entries(source).clone();
    run.work(entries.len() * 64)?;
    for (key, value) in entries {
        run.steps(1)?;
        let own = run.entries(target).get(&key).cloned();
        match (own, &value) {
            (Some(Value::Map(own)), Value::Map(other)) if !run.entries(&own).is_empty() => {
                merge(run, &own, other, overwrite, depth + 1)?;
            }
            (Some(own), value) => {
                let replace = if overwrite { !is_empty(run, value) } else { is_empty(run, &own) };
                if replace {
                    run.entries_mut(target).insert(key, value.clone());
                }
            }
            (None, _) => {
                run.entries_mut(target).insert(key, value);
            }
        }
    }
    Ok(())
}

fn copy(run: &Run, value: &Value, depth: usize) -> Result<Value, Cause> {
    check_depth(depth)?;
    run.steps(1)?;
    Ok(match value {
        Value::List(list) => {
            let values = list.iter().map(|value| copy(run, value, depth + 1));
            values.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
        }
        Value::Map(map) => {
            let mut entries = BTreeMap::new();
            for (key, value) in run.entries(map) {
                entries.insert(key.clone(), copy(run, value, depth + 1)?);
            }
            Value::Map(entries.into())
        }
        scalar => scalar.clone(),
    })
}

/// `dig "a" "b" default dict`
fn dig(call: &mut Call<'_>) -> Result<Value, Cause> {
    let [names @ .., default, found] = call.args.as_slice() else { return Ok(Value::Nil) };
    let mut found = found.clone();
    for name in names {
        let (Value::String(name), Value::Map(map)) = (name, &found) else {
            return Err("dig wants names, a default and a map".into());
        };
        match call.run.entries(map).get(name.as_ref()) {
            Some(value) => found = value.clone(),
            None => return Ok(default.clone()),
        }
    }
    Ok(found)
}
