//! Evaluates the tree of a Go template, with the semantics of Go's `text/template/exec.go`.

use super::{
    Missing, Value,
    error::{Cause, TemplateError},
    functions::{Call, Function, is_empty},
    print,
    run::{Run, check_output},
    tree::{Body, BranchKind, Command, Node, Operand, OperandKind, Pipe, Tree},
};

/// What an expression gives. `None` is what a missing key gives, and what `nil` becomes in a
/// pipeline: a field of it is nothing again, while a field of `Some(Value::Nil)` is an error.
type Datum = Option<Value>;

/// A result, or the place and the cause of a failure.
type Evaluated<T> = Result<T, (usize, Cause)>;

/// How a body was left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// Renders a template.
pub(super) fn render(tree: &Tree, vars: &Value, missing: Missing) -> Result<String, TemplateError> {
    let mut run = Run::new(missing);
    render_body(&mut run, tree, &tree.root, &Some(vars.clone()))
        .map_err(|(at, cause)| TemplateError::new(&tree.text, at, cause))
}

/// Renders a text within a rendering.
pub(super) fn render_nested(run: &mut Run, text: &str, dot: Value) -> Result<String, Cause> {
    // Of texts in texts, the innermost has the mistake.
    let nested = |error: TemplateError| match error.cause() {
        Cause::Nested(inner) => Cause::Nested(inner.clone()),
        _ => Cause::Nested(Box::new(error)),
    };
    // Reading is work, too.
    run.steps(1 + text.len() / 16)?;
    run.enter()?;
    let tree = super::read_go(text).map_err(nested)?;
    let rendered = render_body(run, &tree, &tree.root, &Some(dot))
        .map_err(|(at, cause)| nested(TemplateError::new(&tree.text, at, cause)))?;
    run.leave();
    Ok(rendered)
}

/// Renders a defined template within a rendering.
pub(super) fn render_defined(
    run: &mut Run,
    tree: &Tree,
    name: &str,
    dot: Value,
) -> Result<String, Cause> {
    let body = tree.defined.get(name).ok_or_else(|| format!("template {name:?} not defined"))?;
    run.enter()?;
    let rendered = render_body(run, tree, body, &Some(dot)).map_err(|(_, cause)| cause)?;
    run.leave();
    Ok(rendered)
}

fn render_body(run: &mut Run, tree: &Tree, body: &Body, dot: &Datum) -> Evaluated<String> {
    let variables = vec![("$", dot.clone())];
    let mut evaluator = Evaluator { tree, run, variables, output: String::new() };
    evaluator.body(dot, body)?;
    Ok(evaluator.output)
}

struct Evaluator<'t, 'r> {
    tree: &'t Tree,
    run: &'r mut Run,
    /// The variables in scope with their values, the innermost last.
    variables: Vec<(&'t str, Datum)>,
    output: String,
}

fn fail<T>(at: usize, message: impl Into<String>) -> Evaluated<T> {
    Err((at, Cause::Evaluation(message.into())))
}

impl<'t> Evaluator<'t, '_> {
    fn write(&mut self, at: usize, text: &str) -> Evaluated<()> {
        check_output(self.output.len() + text.len()).map_err(|cause| (at, cause))?;
        self.run.work(text.len()).map_err(|cause| (at, cause))?;
        self.output.push_str(text);
        Ok(())
    }

    /// Goes one level down for `inner`.
    fn nested<T>(
        &mut self,
        at: usize,
        inner: impl FnOnce(&mut Self) -> Evaluated<T>,
    ) -> Evaluated<T> {
        self.run.enter().map_err(|cause| (at, cause))?;
        let result = inner(self);
        self.run.leave();
        result
    }

    fn body(&mut self, dot: &Datum, body: &'t Body) -> Evaluated<Flow> {
        for node in body {
            let flow = match node {
                Node::Text(text) => {
                    self.write(0, text)?;
                    Flow::Next
                }
                Node::Action(pipe) => {
                    let value = self.pipe(dot, pipe, false)?;
                    if pipe.variables.is_empty() {
                        self.print(pipe.at, value)?;
                    }
                    Flow::Next
                }
                Node::Branch { branches, otherwise } => self.branch(dot, branches, otherwise)?,
                Node::Range { at, pipe, body, otherwise } => {
                    let scope = self.variables.len();
                    let flow = self.range(*at, dot, pipe, body, otherwise)?;
                    self.variables.truncate(scope);
                    flow
                }
                Node::Template { at, name, pipe } => {
                    self.template(*at, dot, name, pipe.as_ref())?;
                    Flow::Next
                }
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn print(&mut self, at: usize, value: Datum) -> Evaluated<()> {
        match value {
            Some(Value::String(text)) => self.write(at, &text),
            Some(value) => {
                let text = print::value(self.run, &value).map_err(|cause| (at, cause))?;
                self.write(at, &text)
            }
            None if self.run.missing == Missing::Error => {
                Err((at, Cause::Missing("there is no value to print".into())))
            }
            None => self.write(at, "<no value>"),
        }
    }

    fn branch(
        &mut self,
        dot: &Datum,
        branches: &'t [(BranchKind, Pipe, Body)],
        otherwise: &'t Body,
    ) -> Evaluated<Flow> {
        let scope = self.variables.len();
        let mut chosen = (dot.clone(), otherwise);
        let mut at = 0;
        for (kind, pipe, body) in branches {
            at = pipe.at;
            let value = self.pipe(dot, pipe, false)?;
            if value.as_ref().is_some_and(|value| !is_empty(self.run, value)) {
                chosen = (if *kind == BranchKind::With { value } else { dot.clone() }, body);
                break;
            }
        }
        let (dot, body) = chosen;
        let flow = self.nested(at, |inner| inner.body(&dot, body))?;
        self.variables.truncate(scope);
        Ok(flow)
    }

    fn range(
        &mut self,
        at: usize,
        dot: &Datum,
        pipe: &'t Pipe,
        body: &'t Body,
        otherwise: &'t Body,
    ) -> Evaluated<Flow> {
        let value = self.pipe(dot, pipe, false)?;
        let limited = |cause| (at, cause);
        match value {
            Some(Value::List(list)) if !list.is_empty() => {
                for (index, value) in list.iter().enumerate() {
                    let index = Value::Int(index as i64);
                    if self.iteration(at, pipe, Some(index), &Some(value.clone()), body)? {
                        break;
                    }
                }
                return Ok(Flow::Next);
            }
            Some(Value::Map(map)) if !self.run.entries(&map).is_empty() => {
                // What the body changes is not seen here.
                let entries = self.run.entries(&map).clone();
                self.run.work(entries.len() * 64).map_err(limited)?;
                for (key, value) in entries {
                    if self.iteration(at, pipe, Some(key.into()), &Some(value), body)? {
                        break;
                    }
                }
                return Ok(Flow::Next);
            }
            Some(Value::Int(count)) => {
                if pipe.variables.len() > 1 {
                    let message =
                        format!("can't use {count} to iterate over more than one variable");
                    return fail(pipe.at, message);
                }
                for number in 0..count {
                    if self.iteration(at, pipe, None, &Some(number.into()), body)? {
                        break;
                    }
                }
                if count > 0 {
                    return Ok(Flow::Next);
                }
            }
            None | Some(Value::Nil | Value::List(_) | Value::Map(_)) => {}
            Some(other) => {
                let shown = print::value(self.run, &other).map_err(limited)?;
                let shown: String = shown.chars().take(60).collect();
                return fail(pipe.at, format!("range can't iterate over {shown}"));
            }
        }
        self.nested(at, |inner| inner.body(dot, otherwise))
    }

    /// One round of a `range`; returns whether it was the last one.
    fn iteration(
        &mut self,
        at: usize,
        pipe: &'t Pipe,
        index: Datum,
        value: &Datum,
        body: &'t Body,
    ) -> Evaluated<bool> {
        self.run.steps(1).map_err(|cause| (at, cause))?;
        let scope = self.variables.len();
        let values = match pipe.variables.len() {
            0 => vec![],
            1 => vec![value.clone()],
            _ => vec![index, value.clone()],
        };
        for (place, (name, value)) in pipe.variables.iter().zip(values).enumerate() {
            if pipe.is_assignment {
                self.assign(pipe.at, name, value)?;
            } else {
                // The pipeline has declared them last.
                let slot = scope - pipe.variables.len() + place;
                self.variables[slot].1 = value;
            }
        }
        let flow = self.nested(at, |inner| inner.body(value, body))?;
        self.variables.truncate(scope);
        Ok(flow == Flow::Break)
    }

    fn template(
        &mut self,
        at: usize,
        dot: &Datum,
        name: &str,
        pipe: Option<&'t Pipe>,
    ) -> Evaluated<()> {
        let Some(body) = self.tree.defined.get(name) else {
            return fail(at, format!("template {name:?} not defined"));
        };
        let dot = match pipe {
            Some(pipe) => self.pipe(dot, pipe, false)?,
            None => None,
        };
        // It sees none of the variables here.
        let outer = std::mem::replace(&mut self.variables, vec![("$", dot.clone())]);
        self.nested(at, |inner| inner.body(&dot, body))?;
        self.variables = outer;
        Ok(())
    }

    /// Evaluates a pipeline and sets its variables. `tolerant`: whether what comes after it is
    /// there to deal with missing values.
    fn pipe(&mut self, dot: &Datum, pipe: &'t Pipe, tolerant: bool) -> Evaluated<Datum> {
        let mut value: Option<Datum> = None;
        for (index, command) in pipe.commands.iter().enumerate() {
            self.run.steps(1).map_err(|cause| (command.first.at, cause))?;
            let tolerant = match pipe.commands.get(index + 1).map(|next| &next.first.kind) {
                Some(OperandKind::Function(function)) => function.takes_missing(),
                Some(_) => false,
                None => tolerant,
            };
            let result = self.command(dot, command, value, tolerant)?;
            value = Some(result.filter(|value| !matches!(value, Value::Nil)));
        }
        let value = value.flatten();
        for name in &pipe.variables {
            if pipe.is_assignment {
                self.assign(pipe.at, name, value.clone())?;
            } else {
                self.variables.push((name, value.clone()));
            }
        }
        Ok(value)
    }

    fn assign(&mut self, at: usize, name: &str, value: Datum) -> Evaluated<()> {
        match self.variables.iter_mut().rev().find(|(known, _)| *known == name) {
            Some((_, slot)) => {
                *slot = value;
                Ok(())
            }
            None => fail(at, format!("undefined variable: {name}")),
        }
    }

    fn variable(&self, at: usize, name: &str) -> Evaluated<Datum> {
        match self.variables.iter().rev().find(|(known, _)| *known == name) {
            Some((_, value)) => Ok(value.clone()),
            None => fail(at, format!("undefined variable: {name}")),
        }
    }

    fn command(
        &mut self,
        dot: &Datum,
        command: &'t Command,
        piped: Option<Datum>,
        tolerant: bool,
    ) -> Evaluated<Datum> {
        let Command { first, rest } = command;
        let has_arguments = !rest.is_empty() || piped.is_some();
        match &first.kind {
            OperandKind::Function(function) => {
                return self.call(first.at, dot, function, rest, piped);
            }
            OperandKind::Field(names) if has_arguments => {
                let name = names.last().map_or("", String::as_str);
                return fail(first.at, format!("{name} is not a method but has arguments"));
            }
            OperandKind::Nil => return fail(first.at, "nil is not a command"),
            _ if has_arguments => {
                return fail(first.at, "can't give argument to non-function");
            }
            _ => {}
        }
        self.operand(dot, first, tolerant)
    }

    /// Evaluates an operand that is no function with arguments.
    fn operand(&mut self, dot: &Datum, operand: &'t Operand, tolerant: bool) -> Evaluated<Datum> {
        let at = operand.at;
        Ok(match &operand.kind {
            OperandKind::Dot => dot.clone(),
            OperandKind::Nil => Some(Value::Nil),
            OperandKind::Bool(value) => Some((*value).into()),
            OperandKind::Number(number) => Some(match number.int {
                Some(int) if !number.is_float => int.into(),
                _ => number.float.into(),
            }),
            OperandKind::String(text) => Some(Value::String(text.clone())),
            OperandKind::Field(names) => self.fields(at, dot.clone(), names, tolerant)?,
            OperandKind::Variable(name, names) => {
                let value = self.variable(at, name)?;
                self.fields(at, value, names, tolerant)?
            }
            OperandKind::Function(function) => self.call(at, dot, function, &[], None)?,
            OperandKind::Pipe(pipe) => self.nested(at, |inner| inner.pipe(dot, pipe, tolerant))?,
            OperandKind::Chain(inner, names) => {
                if matches!(inner.kind, OperandKind::Nil) {
                    return fail(at, "indirection through explicit nil");
                }
                let value = self.operand(dot, inner, tolerant)?;
                self.fields(at, value, names, tolerant)?
            }
        })
    }

    fn fields(
        &mut self,
        at: usize,
        mut value: Datum,
        names: &[String],
        tolerant: bool,
    ) -> Evaluated<Datum> {
        let is_error = self.run.missing == Missing::Error && !tolerant;
        for name in names {
            value = match value {
                None if is_error => {
                    let message = format!("nil data; no entry for key {name:?}");
                    return Err((at, Cause::Missing(message)));
                }
                None => None,
                Some(Value::Map(map)) => {
                    let found = self.run.entries(&map).get(name).cloned();
                    if found.is_none() && is_error {
                        let message = format!("map has no entry for key {name:?}");
                        return Err((at, Cause::Missing(message)));
                    }
                    found
                }
                Some(Value::Nil) => {
                    return fail(at, format!("nil pointer evaluating interface {{}}.{name}"));
                }
                Some(other) => {
                    let type_name = other.type_name();
                    return fail(at, format!("can't evaluate field {name} in type {type_name}"));
                }
            };
        }
        Ok(value)
    }

    fn call(
        &mut self,
        at: usize,
        dot: &Datum,
        function: &'static Function,
        operands: &'t [Operand],
        piped: Option<Datum>,
    ) -> Evaluated<Datum> {
        let (fixed, rest) = function.parameters();
        let name = function.name;
        let count = operands.len() + usize::from(piped.is_some());
        let least = fixed.len();
        if count < least || rest.is_none() && count > least {
            let at_least = if rest.is_some() { "at least " } else { "" };
            let message =
                format!("wrong number of args for {name}: want {at_least}{least} got {count}");
            return fail(at, message);
        }
        let wanted = |index: usize| fixed.get(index).copied().or(rest).unwrap_or(b'a');
        let tolerant = function.takes_missing();
        if function.is_short_circuit() {
            let mut value = None;
            for operand in operands {
                value = self.argument(dot, operand, b'a', false)?;
                let truth = value.as_ref().is_some_and(|value| !is_empty(self.run, value));
                if truth == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(piped.unwrap_or(value));
        }
        let mut args = Vec::with_capacity(count);
        for (index, operand) in operands.iter().enumerate() {
            let value = self.argument(dot, operand, wanted(index), tolerant)?;
            args.push(value.unwrap_or_default());
        }
        if let Some(value) = piped {
            let value = checked(at, value, wanted(args.len()))?;
            args.push(value.unwrap_or_default());
        }
        let mut call = Call { run: self.run, tree: self.tree, args };
        match function.call(&mut call) {
            Ok(value) => Ok(Some(value)),
            Err(Cause::Evaluation(message)) => fail(at, format!("error calling {name}: {message}")),
            Err(cause) => Err((at, cause)),
        }
    }

    /// Evaluates an argument where a value of type `wanted` goes.
    fn argument(
        &mut self,
        dot: &Datum,
        operand: &'t Operand,
        wanted: u8,
        tolerant: bool,
    ) -> Evaluated<Datum> {
        let at = operand.at;
        let found = match (&operand.kind, wanted) {
            (OperandKind::Nil, b'a' | b'm') => return Ok(Some(Value::Nil)),
            (OperandKind::Nil, _) => {
                return fail(at, format!("cannot assign nil to {}", type_name(wanted)));
            }
            // A literal takes the type that is wanted, if it can.
            (OperandKind::Number(number), b'f') => return Ok(Some(number.float.into())),
            (OperandKind::Number(number), b'i') => match number.int {
                Some(int) => return Ok(Some(int.into())),
                None => number.float.to_string(),
            },
            (OperandKind::Number(number), b's' | b'b' | b'm' | b't') => match number.int {
                Some(int) => int.to_string(),
                None => number.float.to_string(),
            },
            (OperandKind::Bool(value), b's' | b'i' | b'f' | b'm' | b't') => value.to_string(),
            (OperandKind::String(text), b'i' | b'f' | b'b' | b'm' | b't') => format!("{text:?}"),
            _ => {
                let value = self.operand(dot, operand, tolerant)?;
                return checked(at, value, wanted);
            }
        };
        let expected = match wanted {
            b'i' => "integer",
            b'f' => "float",
            other => type_name(other),
        };
        let found: String = found.chars().take(60).collect();
        fail(at, format!("expected {expected}; found {found}"))
    }
}

fn type_name(wanted: u8) -> &'static str {
    match wanted {
        b's' => "string",
        b'i' => "int",
        b'f' => "float64",
        b'b' => "bool",
        b'm' => "map[string]interface {}",
        b't' => "time.Time",
        _ => "interface {}",
    }
}

/// Whether a value can go where a value of type `wanted` goes.
fn checked(at: usize, value: Datum, wanted: u8) -> Evaluated<Datum> {
    let Some(value) = value else {
        return match wanted {
            b'a' | b'm' => Ok(None),
            _ => fail(at, format!("invalid value; expected {}", type_name(wanted))),
        };
    };
    let fits = match wanted {
        b's' => matches!(value, Value::String(_)),
        b'i' => matches!(value, Value::Int(_)),
        b'f' => matches!(value, Value::Float(_)),
        b'b' => matches!(value, Value::Bool(_)),
        b'm' => matches!(value, Value::Map(_)),
        b't' => matches!(value, Value::Time(_)),
        _ => true,
    };
    if fits {
        return Ok(Some(value));
    }
    let found = match &value {
        Value::Nil => "interface {}",
        other => other.type_name(),
    };
    fail(at, format!("wrong type for value; expected {}; got {found}", type_name(wanted)))
}
