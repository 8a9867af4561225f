//! What one rendering has used up, and what it has changed.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
};

use super::{
    MAX_DEPTH, MAX_OUTPUT_BYTES, MAX_STEPS, MAX_VALUE_DEPTH, MAX_WORK_BYTES, Missing, Value,
    error::Cause, value::Map,
};

/// The state of one rendering, also through `tpl` and `include`.
pub(super) struct Run {
    pub(super) missing: Missing,
    steps: Cell<u64>,
    work_bytes: Cell<u64>,
    depth: usize,
    /// Maps that `set` and its like have changed, by identity. In Go a map is changed in place, and
    /// everybody who has it sees that; here the values of the caller stay as they are. The map
    /// itself is kept so that no other one gets its identity.
    changed: HashMap<usize, (Map, BTreeMap<String, Value>)>,
}

impl Run {
    pub(super) fn new(missing: Missing) -> Self {
        Self {
            missing,
            steps: Cell::new(0),
            work_bytes: Cell::new(0),
            depth: 0,
            changed: HashMap::new(),
        }
    }

    /// Counts steps of evaluation.
    pub(super) fn steps(&self, count: usize) -> Result<(), Cause> {
        let steps = self.steps.get().saturating_add(count as u64);
        self.steps.set(steps);
        if steps > MAX_STEPS {
            return Err(Cause::Limit(format!("evaluation takes more than {MAX_STEPS} steps")));
        }
        Ok(())
    }

    /// Counts bytes that are made or looked at.
    pub(super) fn work(&self, bytes: usize) -> Result<(), Cause> {
        let sum = self.work_bytes.get().saturating_add(bytes as u64);
        self.work_bytes.set(sum);
        if sum > MAX_WORK_BYTES {
            let mib = MAX_WORK_BYTES >> 20;
            return Err(Cause::Limit(format!("evaluation moves more than {mib} MiB")));
        }
        Ok(())
    }

    /// Enters a level of evaluation; `leave` leaves it.
    pub(super) fn enter(&mut self) -> Result<(), Cause> {
        if self.depth == MAX_DEPTH {
            return Err(Cause::Limit(format!("evaluation nests more than {MAX_DEPTH} deep")));
        }
        self.depth += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.depth -= 1;
    }

    /// What a map holds now.
    pub(super) fn entries<'r>(&'r self, map: &'r Map) -> &'r BTreeMap<String, Value> {
        match self.changed.get(&map.identity()) {
            Some((_, now)) => now,
            None => map,
        }
    }

    /// What a map holds, to be changed.
    pub(super) fn entries_mut(&mut self, map: &Map) -> &mut BTreeMap<String, Value> {
        let entry = self.changed.entry(map.identity());
        &mut entry.or_insert_with(|| (map.clone(), BTreeMap::clone(map))).1
    }

    /// Go's `reflect.DeepEqual`.
    pub(super) fn deep_equal(&self, a: &Value, b: &Value) -> Result<bool, Cause> {
        self.deep_equal_at(a, b, 0)
    }

    fn deep_equal_at(&self, a: &Value, b: &Value, depth: usize) -> Result<bool, Cause> {
        self.steps(1)?;
        check_depth(depth)?;
        Ok(match (a, b) {
            (Value::List(a), Value::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (a, b) in a.iter().zip(b.iter()) {
                    if !self.deep_equal_at(a, b, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Map(a), Value::Map(b)) => {
                let (a, b) = (self.entries(a), self.entries(b));
                if a.len() != b.len() {
                    return Ok(false);
                }
                for ((key, a), (other, b)) in a.iter().zip(b.iter()) {
                    if key != other || !self.deep_equal_at(a, b, depth + 1)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::String(a), Value::String(b)) => {
                self.work(a.len().min(b.len()))?;
                a == b
            }
            (a, b) => a == b,
        })
    }
}

/// Refuses what is too deep to be walked: only a map that holds itself is.
pub(super) fn check_depth(depth: usize) -> Result<(), Cause> {
    if depth > MAX_VALUE_DEPTH {
        return Err(Cause::Limit(format!("values nest more than {MAX_VALUE_DEPTH} deep")));
    }
    Ok(())
}

/// A text that is being made, within bounds.
pub(super) struct Text<'r> {
    run: &'r Run,
    text: String,
}

impl<'r> Text<'r> {
    pub(super) fn new(run: &'r Run) -> Self {
        Self { run, text: String::new() }
    }

    pub(super) fn run(&self) -> &'r Run {
        self.run
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Cause> {
        check_output(self.text.len().saturating_add(text.len()))?;
        self.run.work(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// `count` times the same.
    pub(super) fn repeat(&mut self, text: &str, count: usize) -> Result<(), Cause> {
        let bytes = text.len().saturating_mul(count);
        check_output(self.text.len().saturating_add(bytes))?;
        self.run.work(bytes)?;
        self.text.push_str(&text.repeat(count));
        Ok(())
    }

    pub(super) fn finish(self) -> String {
        self.text
    }
}

/// Refuses a text of more bytes than a template may give.
pub(super) fn check_output(bytes: usize) -> Result<(), Cause> {
    if bytes > MAX_OUTPUT_BYTES {
        let mib = MAX_OUTPUT_BYTES >> 20;
        return Err(Cause::Limit(format!("the text becomes longer than {mib} MiB")));
    }
    Ok(())
}
