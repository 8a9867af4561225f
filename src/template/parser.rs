//! From tokens to a tree, with the grammar and the messages of Go's `text/template/parse`.

use std::{collections::HashMap, sync::Arc};

use super::{
    MAX_NESTING, MAX_VARIABLES,
    error::{Cause, TemplateError},
    functions,
    lexer::{Kind, Token, lex},
    literal,
    tree::{Body, BranchKind, Command, Node, Operand, OperandKind, Pipe, Tree},
};

/// Reads a whole template.
pub(super) fn parse(text: &str) -> Result<Tree, TemplateError> {
    let mut parser = Parser {
        tokens: lex(text),
        at: 0,
        variables: vec!["$".to_owned()],
        defined: HashMap::new(),
        ranges: 0,
        depth: 0,
    };
    match parser.root() {
        Ok(root) => {
            let (text, root) = (text.to_owned(), Arc::new(root));
            Ok(Tree { text, root, defined: parser.defined })
        }
        Err((at, cause)) => Err(TemplateError::new(text, at, cause)),
    }
}

struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    at: usize,
    /// The variables in scope.
    variables: Vec<String>,
    defined: HashMap<String, Arc<Body>>,
    /// `range`s around this place.
    ranges: usize,
    /// Blocks and parentheses around this place.
    depth: usize,
}

type Parsed<T> = Result<T, (usize, Cause)>;

/// What ended a body.
#[derive(PartialEq, Eq)]
enum End {
    End,
    /// `else`, and the `if` or `with` that follows it at once.
    Else(Option<BranchKind>),
}

fn syntax<T>(at: usize, message: impl Into<String>) -> Parsed<T> {
    Err((at, Cause::Syntax(message.into())))
}

/// How Go shows a token in a message.
fn shown(token: &Token<'_>) -> String {
    match token.kind {
        Kind::End => "EOF".into(),
        Kind::Keyword => format!("<{}>", token.text),
        _ if token.text.chars().count() > 10 => {
            format!("{:?}...", token.text.chars().take(10).collect::<String>())
        }
        _ => format!("{:?}", token.text),
    }
}

impl<'t> Parser<'t> {
    /// The next token; the last one (`End` or `Error`) stays.
    fn peek(&self) -> Token<'t> {
        let last = self.tokens.len() - 1;
        self.tokens[self.at.min(last)].clone()
    }

    fn next(&mut self) -> Token<'t> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn skip_spaces(&mut self) {
        while self.peek().kind == Kind::Space {
            self.at += 1;
        }
    }

    fn peek_non_space(&mut self) -> Token<'t> {
        self.skip_spaces();
        self.peek()
    }

    fn next_non_space(&mut self) -> Token<'t> {
        self.skip_spaces();
        self.next()
    }

    fn expect(&mut self, kind: Kind, context: &str) -> Parsed<Token<'t>> {
        let token = self.next_non_space();
        if token.kind == kind { Ok(token) } else { unexpected(&token, context) }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == MAX_NESTING {
            let message = format!("blocks and parentheses nest more than {MAX_NESTING} deep");
            return Err((self.peek().at, Cause::Limit(message)));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn root(&mut self) -> Parsed<Body> {
        let mut body = Body::new();
        loop {
            let start = self.at;
            match self.peek().kind {
                Kind::End => return Ok(body),
                Kind::LeftDelim => {
                    self.next();
                    let token = self.next_non_space();
                    if token.kind == Kind::Keyword && token.text == "define" {
                        self.definition()?;
                        continue;
                    }
                    self.at = start;
                }
                _ => {}
            }
            let at = self.peek().at;
            match self.text_or_action()? {
                Ok(node) => body.push(node),
                Err(End::End) => return syntax(at, "unexpected {{end}}"),
                Err(End::Else(_)) => return syntax(at, "unexpected {{else}}"),
            }
        }
    }

    fn definition(&mut self) -> Parsed<()> {
        let name = self.template_name("define clause")?;
        self.expect(Kind::RightDelim, "define clause")?;
        self.define(name, "define clause")
    }

    /// Reads the body of a `define` or `block`.
    fn define(&mut self, (at, name): (usize, String), context: &str) -> Parsed<()> {
        let outer = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let ranges = std::mem::take(&mut self.ranges);
        let (body, end) = self.nested(Self::body)?;
        if end != End::End {
            return syntax(at, format!("unexpected {{{{else}}}} in {context}"));
        }
        (self.variables, self.ranges) = (outer, ranges);
        match self.defined.get(&name) {
            Some(there) if !is_empty(there) => {
                if !is_empty(&body) {
                    return syntax(at, format!("multiple definition of template {name:?}"));
                }
            }
            _ => {
                self.defined.insert(name, Arc::new(body));
            }
        }
        Ok(())
    }

    fn template_name(&mut self, context: &str) -> Parsed<(usize, String)> {
        let token = self.next_non_space();
        match token.kind {
            Kind::String | Kind::RawString => match literal::unquote(&token.text) {
                Ok(name) => Ok((token.at, name)),
                Err(reason) => syntax(token.at, reason),
            },
            _ => unexpected(&token, context),
        }
    }

    /// Up to the `end` or `else` that belongs to it.
    fn body(&mut self) -> Parsed<(Body, End)> {
        let mut body = Body::new();
        loop {
            let token = self.peek_non_space();
            if token.kind == Kind::End {
                return syntax(token.at, "unexpected EOF");
            }
            match self.text_or_action()? {
                Ok(node) => body.push(node),
                Err(end) => return Ok((body, end)),
            }
        }
    }

    fn text_or_action(&mut self) -> Parsed<Result<Node, End>> {
        let token = self.next_non_space();
        match token.kind {
            Kind::Text => Ok(Ok(Node::Text(token.text.into_owned()))),
            Kind::LeftDelim => self.action(),
            _ => unexpected(&token, "input"),
        }
    }

    fn action(&mut self) -> Parsed<Result<Node, End>> {
        let token = self.peek_non_space();
        if token.kind != Kind::Keyword {
            return Ok(Ok(Node::Action(self.pipeline("command", Kind::RightDelim)?)));
        }
        self.next();
        let at = token.at;
        let node = match token.text.as_ref() {
            "if" => self.branch(BranchKind::If)?,
            "with" => self.branch(BranchKind::With)?,
            "range" => self.range(at)?,
            "template" => self.template(at)?,
            "block" => self.block(at)?,
            "break" => self.leave(at, "{{break}}", Node::Break)?,
            "continue" => self.leave(at, "{{continue}}", Node::Continue)?,
            "end" => {
                self.expect(Kind::RightDelim, "end")?;
                return Ok(Err(End::End));
            }
            "else" => {
                let next = self.peek_non_space();
                let kind = match (next.kind, next.text.as_ref()) {
                    (Kind::Keyword, "if") => Some(BranchKind::If),
                    (Kind::Keyword, "with") => Some(BranchKind::With),
                    _ => None,
                };
                if kind.is_some() {
                    self.next();
                } else {
                    self.expect(Kind::RightDelim, "else")?;
                }
                return Ok(Err(End::Else(kind)));
            }
            _ => return unexpected(&token, "input"),
        };
        Ok(Ok(node))
    }

    fn leave(&mut self, at: usize, name: &str, node: Node) -> Parsed<Node> {
        self.expect(Kind::RightDelim, name)?;
        if self.ranges == 0 {
            return syntax(at, format!("{name} outside {{{{range}}}}"));
        }
        Ok(node)
    }

    fn branch(&mut self, kind: BranchKind) -> Parsed<Node> {
        let scope = self.variables.len();
        let context = if kind == BranchKind::If { "if" } else { "with" };
        let mut branches = Vec::new();
        let mut otherwise = Body::new();
        loop {
            let pipe = self.pipeline(context, Kind::RightDelim)?;
            let (body, end) = self.nested(Self::body)?;
            branches.push((kind, pipe, body));
            match end {
                End::End => break,
                End::Else(Some(next)) if next == kind => {}
                End::Else(Some(_)) => {
                    let message = format!("expected {{{{else {context}}}}} or {{{{else}}}}");
                    return syntax(self.peek().at, message);
                }
                End::Else(None) => {
                    otherwise = self.last_body()?;
                    break;
                }
            }
        }
        self.variables.truncate(scope);
        Ok(Node::Branch { branches, otherwise })
    }

    /// What follows an `else`.
    fn last_body(&mut self) -> Parsed<Body> {
        let (body, end) = self.nested(Self::body)?;
        match end {
            End::End => Ok(body),
            End::Else(_) => syntax(self.peek().at, "expected end; found {{else}}"),
        }
    }

    fn range(&mut self, at: usize) -> Parsed<Node> {
        let scope = self.variables.len();
        let pipe = self.pipeline("range", Kind::RightDelim)?;
        self.ranges += 1;
        let (body, end) = self.nested(Self::body)?;
        self.ranges -= 1;
        let otherwise = match end {
            End::End => Body::new(),
            End::Else(None) => self.last_body()?,
            End::Else(Some(_)) => {
                return syntax(self.peek().at, "{{range}} has no else with a condition");
            }
        };
        self.variables.truncate(scope);
        Ok(Node::Range { at, pipe, body, otherwise })
    }

    fn template(&mut self, at: usize) -> Parsed<Node> {
        let (_, name) = self.template_name("template clause")?;
        let pipe = if self.peek_non_space().kind == Kind::RightDelim {
            self.next();
            None
        } else {
            Some(self.pipeline("template clause", Kind::RightDelim)?)
        };
        Ok(Node::Template { at, name, pipe })
    }

    fn block(&mut self, at: usize) -> Parsed<Node> {
        let name = self.template_name("block clause")?;
        let pipe = self.pipeline("block clause", Kind::RightDelim)?;
        self.define(name.clone(), "block clause")?;
        Ok(Node::Template { at, name: name.1, pipe: Some(pipe) })
    }

    fn pipeline(&mut self, context: &str, end: Kind) -> Parsed<Pipe> {
        let at = self.peek_non_space().at;
        let mut pipe = Pipe { at, variables: Vec::new(), is_assignment: false, commands: vec![] };
        self.declarations(&mut pipe, context)?;
        loop {
            let token = self.peek_non_space();
            match token.kind {
                kind if kind == end => {
                    self.next();
                    break;
                }
                Kind::Bool
                | Kind::Char
                | Kind::Dot
                | Kind::Field
                | Kind::Identifier
                | Kind::Number
                | Kind::Nil
                | Kind::RawString
                | Kind::String
                | Kind::Variable
                | Kind::LeftParen => pipe.commands.push(self.command()?),
                _ => return unexpected(&token, context),
            }
        }
        if pipe.commands.is_empty() {
            return syntax(at, format!("missing value for {context}"));
        }
        for (stage, command) in pipe.commands.iter().enumerate().skip(1) {
            let executable = matches!(
                command.first.kind,
                OperandKind::Function(_)
                    | OperandKind::Field(_)
                    | OperandKind::Variable(..)
                    | OperandKind::Pipe(_)
                    | OperandKind::Chain(..)
            );
            if !executable {
                let message = format!("non executable command in pipeline stage {}", stage + 1);
                return syntax(command.first.at, message);
            }
        }
        Ok(pipe)
    }

    /// `$x :=`, `$x =`, and in `range` also `$i, $x :=`
    fn declarations(&mut self, pipe: &mut Pipe, context: &str) -> Parsed<()> {
        while self.peek_non_space().kind == Kind::Variable {
            let start = self.at;
            let variable = self.next().text.into_owned();
            let next = self.next_non_space();
            match next.kind {
                Kind::Assign | Kind::Declare => {
                    pipe.is_assignment = next.kind == Kind::Assign;
                    self.declare(pipe, next.at, variable)?;
                    return Ok(());
                }
                Kind::Other if next.text == "," => {
                    self.declare(pipe, next.at, variable)?;
                    if context != "range" || pipe.variables.len() > 1 {
                        return syntax(next.at, format!("too many declarations in {context}"));
                    }
                    let kind = self.peek_non_space().kind;
                    if !matches!(kind, Kind::Variable | Kind::RightDelim | Kind::RightParen) {
                        return syntax(next.at, "range can only initialize variables");
                    }
                }
                _ => {
                    // It is an operand.
                    self.at = start;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn declare(&mut self, pipe: &mut Pipe, at: usize, variable: String) -> Parsed<()> {
        if self.variables.len() == MAX_VARIABLES {
            let message = format!("there are more than {MAX_VARIABLES} variables in one scope");
            return Err((at, Cause::Limit(message)));
        }
        pipe.variables.push(variable.clone());
        self.variables.push(variable);
        Ok(())
    }

    fn command(&mut self) -> Parsed<Command> {
        let at = self.peek_non_space().at;
        let mut operands = Vec::new();
        loop {
            self.skip_spaces();
            operands.extend(self.operand()?);
            let token = self.peek();
            match token.kind {
                Kind::Space => {
                    self.next();
                }
                Kind::RightDelim | Kind::RightParen => break,
                Kind::Pipe => {
                    self.next();
                    break;
                }
                _ => return unexpected(&token, "operand"),
            }
        }
        let mut operands = operands.into_iter();
        match operands.next() {
            Some(first) => Ok(Command { first, rest: operands.collect() }),
            None => syntax(at, "empty command"),
        }
    }

    /// A term with the fields that follow it at once; none if there is no term.
    fn operand(&mut self) -> Parsed<Option<Operand>> {
        let Some(mut operand) = self.term()? else { return Ok(None) };
        let mut fields = Vec::new();
        let at = self.peek().at;
        while self.peek().kind == Kind::Field {
            fields.push(self.next().text[1..].to_owned());
        }
        if fields.is_empty() {
            return Ok(Some(operand));
        }
        match &mut operand.kind {
            OperandKind::Field(names) | OperandKind::Variable(_, names) => names.extend(fields),
            OperandKind::Bool(_)
            | OperandKind::String(_)
            | OperandKind::Number(_)
            | OperandKind::Nil
            | OperandKind::Dot => return syntax(at, "unexpected . after a literal or dot"),
            _ => {
                let kind = OperandKind::Chain(Box::new(operand), fields);
                return Ok(Some(Operand { at, kind }));
            }
        }
        Ok(Some(operand))
    }

    fn term(&mut self) -> Parsed<Option<Operand>> {
        let token = self.peek_non_space();
        let (at, text) = (token.at, token.text.as_ref());
        let bad = |reason: String| (at, Cause::Syntax(reason));
        let kind = match token.kind {
            Kind::Identifier => {
                OperandKind::Function(functions::find(text).map_err(|cause| (at, cause))?)
            }
            Kind::Dot => OperandKind::Dot,
            Kind::Nil => OperandKind::Nil,
            Kind::Bool => OperandKind::Bool(text == "true"),
            Kind::Field => OperandKind::Field(vec![text[1..].to_owned()]),
            Kind::Variable => {
                if !self.variables.iter().any(|variable| variable == text) {
                    return syntax(at, format!("undefined variable {text:?}"));
                }
                OperandKind::Variable(text.to_owned(), Vec::new())
            }
            Kind::Number => OperandKind::Number(literal::number(text).map_err(bad)?),
            Kind::Char => OperandKind::Number(literal::character(text).map_err(bad)?),
            Kind::String | Kind::RawString => {
                let said = literal::unquote(text).map_err(|reason| bad(reason.to_owned()))?;
                OperandKind::String(said.into())
            }
            Kind::LeftParen => {
                self.next();
                let inner =
                    |parser: &mut Self| parser.pipeline("parenthesized pipeline", Kind::RightParen);
                return Ok(Some(Operand {
                    at,
                    kind: OperandKind::Pipe(Box::new(self.nested(inner)?)),
                }));
            }
            _ => return Ok(None),
        };
        self.next();
        Ok(Some(Operand { at, kind }))
    }
}

fn unexpected<T>(token: &Token<'_>, context: &str) -> Parsed<T> {
    match token.kind {
        Kind::Error => syntax(token.at, token.text.clone()),
        _ => syntax(token.at, format!("unexpected {} in {context}", shown(token))),
    }
}

/// Whether a template is only white space: such a one may be defined again.
fn is_empty(body: &Body) -> bool {
    body.iter().all(|node| matches!(node, Node::Text(text) if text.trim().is_empty()))
}
