//! YAML, and JSON as a part of it, as nodes with positions.
//!
//! Aliases share the nodes of their anchors, so that the nodes are never more than the file has.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use vm_watchdog_timeline::bounded;

use crate::near::is_elision;
use crate::problem::{Position, Problem};
use crate::text::number;

/// The most nodes of a file. A manifest of a VM has some hundreds.
const MAX_NODES: usize = 100_000;
/// How deep mappings and lists may be in each other.
const MAX_DEPTH: usize = 64;

/// The documents of a text.
#[derive(Debug)]
pub struct Tree<'t> {
    nodes: Vec<Node<'t>>,
    /// The roots of the documents.
    pub documents: Vec<Link>,
}

/// A node, and where the text refers to it: that is another place than its own after an alias.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    node: usize,
    pub position: Position,
}

impl Link {
    /// The same node, referred to from another place.
    pub fn at(self, position: Position) -> Self {
        Self { position, ..self }
    }
}

#[derive(Debug)]
pub enum Node<'t> {
    Scalar(Scalar<'t>),
    List(Vec<Link>),
    Mapping(Vec<(Link, Link)>),
    /// A collection whose end has not come yet.
    Open,
}

#[derive(Debug)]
pub struct Scalar<'t> {
    pub text: Cow<'t, str>,
    pub kind: Kind,
}

/// What a scalar is, by the rules of the parser that Kubernetes has (YAML 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    Boolean,
    Number,
    Text,
    /// Its tag says that it is something else.
    Tagged,
}

impl<'t> Tree<'t> {
    /// Parses all documents.
    pub fn parse(text: &'t str) -> Result<Self, Problem> {
        let options = granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
        let mut builder = Builder::default();
        for event in Parser::new_from_str_with_options(text, options) {
            match event {
                Ok((event, span)) => builder.take(event, position(&span.start))?,
                Err(error) => {
                    let position = position(error.marker());
                    return Err(elision(text, position).unwrap_or_else(|| {
                        Problem::new(position, "", format!("not valid YAML: {}", bounded(&error.info())))
                    }));
                }
            }
        }
        Ok(Tree { nodes: builder.nodes, documents: builder.documents })
    }

    pub fn node(&self, link: Link) -> &Node<'t> {
        &self.nodes[link.node]
    }

    /// The text of a scalar.
    pub fn scalar(&self, link: Link) -> Option<&Scalar<'t>> {
        match self.node(link) {
            Node::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub fn is_null(&self, link: Link) -> bool {
        self.scalar(link).is_some_and(|scalar| scalar.kind == Kind::Null)
    }
}

/// A line of dots before an error of syntax: a guide has left something out.
fn elision(text: &str, error: Position) -> Option<Problem> {
    let before = text.lines().zip(1..=error.line);
    let (line, line_number) = before.filter(|(line, _)| line.starts_with(' ') && is_elision(line.trim())).last()?;
    let column = line.chars().take_while(|char| char.is_whitespace()).count();
    let position = Position { line: line_number, column: number(column + 1) };
    let message = format!("{} stands for lines that a guide has left out: write them, or remove it", line.trim());
    Some(Problem::new(position, "", message))
}

fn position(marker: &Marker) -> Position {
    Position { line: number(marker.line()), column: number(marker.col() + 1) }
}

#[derive(Default)]
struct Builder<'t> {
    nodes: Vec<Node<'t>>,
    documents: Vec<Link>,
    /// The collections that have begun and not ended.
    open: Vec<Collection>,
    /// The nodes of anchors that have ended.
    anchors: HashMap<usize, usize>,
}

struct Collection {
    link: Link,
    anchor: usize,
    items: Vec<Link>,
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, position: Position) -> Result<(), Problem> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let kind = kind(&text, style, tag.as_deref());
                let link = self.push(Node::Scalar(Scalar { text, kind }), position)?;
                self.end(link, anchor);
            }
            Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _) => {
                if self.open.len() >= MAX_DEPTH {
                    return Err(Problem::new(
                        position,
                        "",
                        format!("nested deeper than {MAX_DEPTH}, which is the limit"),
                    ));
                }
                let link = self.push(Node::Open, position)?;
                self.open.push(Collection { link, anchor, items: Vec::new() });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Collection { link, anchor, items }) = self.open.pop() else { return Ok(()) };
                self.nodes[link.node] = if event == Event::SequenceEnd {
                    Node::List(items)
                } else {
                    Node::Mapping(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
                };
                self.end(link, anchor);
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(&node) => self.end(Link { node, position }, 0),
                None => return Err(Problem::new(position, "", "an alias inside of its own anchor is not accepted")),
            },
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'t>, position: Position) -> Result<Link, Problem> {
        if self.nodes.len() >= MAX_NODES {
            return Err(Problem::new(position, "", format!("more than {MAX_NODES} values, which is the limit")));
        }
        self.nodes.push(node);
        Ok(Link { node: self.nodes.len() - 1, position })
    }

    /// The node is complete: it belongs to the innermost open collection, or is a document.
    fn end(&mut self, link: Link, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, link.node);
        }
        match self.open.last_mut() {
            Some(collection) => collection.items.push(link),
            None => self.documents.push(link),
        }
    }
}

fn kind(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Kind {
    match tag {
        Some(tag) if tag.core_suffix() == Some("str") => Kind::Text,
        Some(_) => Kind::Tagged,
        None if style != ScalarStyle::Plain => Kind::Text,
        None => plain(text),
    }
}

/// What a scalar without quotes is.
fn plain(text: &str) -> Kind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Kind::Null,
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" | "y" | "Y" | "yes" | "Yes" | "YES" | "n" | "N"
        | "no" | "No" | "NO" | "on" | "On" | "ON" | "off" | "Off" | "OFF" => return Kind::Boolean,
        _ => {}
    }
    let digits = text.trim_start_matches(['-', '+']);
    let is_radix = ["0x", "0o", "0b"].iter().any(|prefix| {
        digits
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    });
    let begins_as_number = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let is_number = is_radix || (begins_as_number && digits.replace('_', "").parse::<f64>().is_ok());
    if is_number { Kind::Number } else { Kind::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_have_the_kinds_of_yaml_1_1() {
        let cases = [
            ("~", Kind::Null),
            ("no", Kind::Boolean),
            ("1500", Kind::Number),
            ("-1.5e3", Kind::Number),
            ("0x1F", Kind::Number),
            ("1_000", Kind::Number),
            (".5", Kind::Number),
            ("1.2.3.4", Kind::Text),
            ("inf", Kind::Text),
            ("-", Kind::Text),
            ("", Kind::Null),
            ("health", Kind::Text),
            ("0x", Kind::Text),
        ];
        for (text, expected) in cases {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }
}
