//! What a Go template consists of once it is read.

use std::{collections::HashMap, sync::Arc};

use super::functions::Function;

/// A template with those it defines.
#[derive(Debug)]
pub(super) struct Tree {
    /// The text, for errors.
    pub(super) text: String,
    pub(super) root: Arc<Body>,
    /// `define`d and `block` templates by name.
    pub(super) defined: HashMap<String, Arc<Body>>,
}

/// Text and actions in their order.
pub(super) type Body = Vec<Node>;

#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    /// `if` or `with`: conditions with their bodies, and what holds if none of them does.
    Branch {
        branches: Vec<(BranchKind, Pipe, Body)>,
        otherwise: Body,
    },
    Range {
        at: usize,
        pipe: Pipe,
        body: Body,
        otherwise: Body,
    },
    Template {
        at: usize,
        name: String,
        pipe: Option<Pipe>,
    },
    Break,
    Continue,
}

/// What a condition does to dot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BranchKind {
    If,
    With,
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) at: usize,
    /// Variables that are declared or assigned, with their `$`.
    pub(super) variables: Vec<String>,
    pub(super) is_assignment: bool,
    pub(super) commands: Vec<Command>,
}

/// An operand, or a function with its arguments.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) first: Operand,
    pub(super) rest: Vec<Operand>,
}

#[derive(Debug)]
pub(super) struct Operand {
    pub(super) at: usize,
    pub(super) kind: OperandKind,
}

#[derive(Debug)]
pub(super) enum OperandKind {
    Dot,
    Nil,
    Bool(bool),
    Number(Number),
    String(Arc<str>),
    /// `.a.b`
    Field(Vec<String>),
    /// `$x.a.b`, the name with its `$`
    Variable(String, Vec<String>),
    Function(&'static Function),
    /// `(...)`
    Pipe(Box<Pipe>),
    /// `(...).a.b`
    Chain(Box<Operand>, Vec<String>),
}

/// A number as it is written: Go gives it the type that its place wants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Number {
    /// Its value as an integer, if it has one (`1.0` has).
    pub(super) int: Option<i64>,
    pub(super) float: f64,
    /// Whether it is a float where the place wants nothing.
    pub(super) is_float: bool,
}
