//! sprig's functions on lists.

use super::{Call, Function, function, is_empty};
use crate::template::{Value, error::Cause};

pub(super) const FUNCTIONS: &[Function] = &[
    function("list", "a*", |call| Ok(call.args.iter().cloned().collect())),
    function("tuple", "a*", |call| Ok(call.args.iter().cloned().collect())),
    function("append", "aa", append),
    function("push", "aa", append),
    function("mustAppend", "aa", append),
    function("mustPush", "aa", append),
    function("prepend", "aa", prepend),
    function("mustPrepend", "aa", prepend),
    function("concat", "a*", |call| {
        let mut all = Vec::new();
        for index in 0..call.len() {
            let Value::List(list) = call.value(index) else {
                let kind = super::kind(call.value(index));
                return Err(format!("Cannot concat type {kind} as list").into());
            };
            call.run.work(size_of_val(&**list))?;
            all.extend_from_slice(list);
        }
        Ok(all.into_iter().collect())
    }),
    function("first", "a", first),
    function("mustFirst", "a", first),
    function("last", "a", last),
    function("mustLast", "a", last),
    function("rest", "a", rest),
    function("mustRest", "a", rest),
    function("initial", "a", initial),
    function("mustInitial", "a", initial),
    function("reverse", "a", reverse),
    function("mustReverse", "a", reverse),
    function("uniq", "a", uniq),
    function("mustUniq", "a", uniq),
    function("without", "aa*", without),
    function("mustWithout", "aa*", without),
    function("has", "aa", has),
    function("mustHas", "aa", has),
    function("compact", "a", compact),
    function("mustCompact", "a", compact),
    function("chunk", "ia", chunk),
    function("mustChunk", "ia", chunk),
    function("sortAlpha", "a", |call| {
        let mut texts = call.texts_of(call.value(0))?;
        texts.sort();
        Ok(texts.into_iter().map(Value::String).collect())
    }),
    function("toStrings", "a", |call| {
        Ok(call.texts_of(call.value(0))?.into_iter().map(Value::String).collect())
    }),
    function("join", "sa", |call| {
        let texts = call.texts_of(call.value(1))?;
        let separator = call.text(0);
        let separators = separator.len().saturating_mul(texts.len());
        let bytes = texts.iter().fold(separators, |sum, text| sum.saturating_add(text.len()));
        crate::template::run::check_output(bytes)?;
        Ok(texts.join(separator.as_ref()).into())
    }),
    function("default", "aa*", |call| {
        let given = call.value(1);
        Ok(if is_empty(call.run, given) { call.value(0).clone() } else { given.clone() })
    }),
    function("empty", "a", |call| Ok(is_empty(call.run, call.value(0)).into())),
    function("coalesce", "a*", |call| {
        let found = call.args.iter().find(|value| !is_empty(call.run, value));
        Ok(found.cloned().unwrap_or_default())
    }),
    function("all", "a*", |call| {
        Ok(call.args.iter().all(|value| !is_empty(call.run, value)).into())
    }),
    function("any", "a*", |call| {
        Ok(call.args.iter().any(|value| !is_empty(call.run, value)).into())
    }),
    function("ternary", "aab", |call| Ok(call.value(if call.is_true(2) { 0 } else { 1 }).clone())),
    function("fail", "s", |call| Err(call.text(0).as_ref().into())),
    function("kindOf", "a", |call| Ok(super::kind(call.value(0)).into())),
    function("kindIs", "sa", |call| {
        Ok((call.text(0).as_ref() == super::kind(call.value(1))).into())
    }),
    function("typeOf", "a", |call| Ok(call.value(0).type_name().into())),
    function(
        "typeIs",
        "sa",
        |call| Ok((call.text(0).as_ref() == call.value(1).type_name()).into()),
    ),
    function("typeIsLike", "sa", |call| {
        Ok((call.text(0).as_ref() == call.value(1).type_name()).into())
    }),
    function("deepEqual", "aa", |call| {
        Ok(call.run.deep_equal(call.value(0), call.value(1))?.into())
    }),
];

fn append(call: &mut Call<'_>) -> Result<Value, Cause> {
    let list = call.list(0, "push")?;
    call.run.work(size_of_val(&*list))?;
    Ok(list.iter().chain([call.value(1)]).cloned().collect())
}

fn prepend(call: &mut Call<'_>) -> Result<Value, Cause> {
    let list = call.list(0, "prepend")?;
    call.run.work(size_of_val(&*list))?;
    Ok([call.value(1)].into_iter().chain(list.iter()).cloned().collect())
}

fn first(call: &mut Call<'_>) -> Result<Value, Cause> {
    Ok(call.list(0, "find first")?.first().cloned().unwrap_or_default())
}

fn last(call: &mut Call<'_>) -> Result<Value, Cause> {
    Ok(call.list(0, "find last")?.last().cloned().unwrap_or_default())
}

fn rest(call: &mut Call<'_>) -> Result<Value, Cause> {
    let list = call.list(0, "find rest")?;
    Ok(list.get(1..).unwrap_or_default().iter().cloned().collect())
}

fn initial(call: &mut Call<'_>) -> Result<Value, Cause> {
    let list = call.list(0, "find initial")?;
    Ok(list[..list.len().saturating_sub(1)].iter().cloned().collect())
}

fn reverse(call: &mut Call<'_>) -> Result<Value, Cause> {
    Ok(call.list(0, "find reverse")?.iter().rev().cloned().collect())
}

fn uniq(call: &mut Call<'_>) -> Result<Value, Cause> {
    let mut kept: Vec<Value> = Vec::new();
    for value in call.list(0, "find uniq")?.iter() {
        if !contains(call, &kept, value)? {
            kept.push(value.clone());
        }
    }
    Ok(kept.into_iter().collect())
}

fn without(call: &mut Call<'_>) -> Result<Value, Cause> {
    let mut kept = Vec::new();
    for value in call.list(0, "find without")?.iter() {
        if !contains(call, &call.args[1..], value)? {
            kept.push(value.clone());
        }
    }
    Ok(kept.into_iter().collect())
}

fn has(call: &mut Call<'_>) -> Result<Value, Cause> {
    if matches!(call.value(1), Value::Nil) {
        return Ok(false.into());
    }
    let list = call.list(1, "find has")?;
    Ok(contains(call, &list, call.value(0))?.into())
}

fn compact(call: &mut Call<'_>) -> Result<Value, Cause> {
    let list = call.list(0, "compact")?;
    Ok(list.iter().filter(|value| !is_empty(call.run, value)).cloned().collect())
}

fn chunk(call: &mut Call<'_>) -> Result<Value, Cause> {
    let list = call.list(1, "chunk")?;
    let size = usize::try_from(call.int(0)).ok().filter(|size| *size > 0);
    let size = size.ok_or("the size of a chunk must be more than 0")?;
    Ok(list.chunks(size).map(|chunk| chunk.iter().cloned().collect::<Value>()).collect())
}

pub(super) fn contains(call: &Call<'_>, list: &[Value], needle: &Value) -> Result<bool, Cause> {
    for value in list {
        if call.run.deep_equal(value, needle)? {
            return Ok(true);
        }
    }
    Ok(false)
}
