//! What a Rust source file says, taken apart for the rules: its rooms, functions, tokens, and which lines are tests.

use proc_macro2::{Spacing, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// A function and how many lines of code it has, without blank lines and comments.
#[derive(Debug, PartialEq)]
pub struct Function {
    pub name: String,
    pub line: usize,
    pub code_lines: usize,
}

/// One token of the flattened file. `::` is one token; groups appear as their delimiters.
#[derive(Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

/// A Rust file as the rules see it.
pub struct Source {
    /// Path relative to the repository, with `/`.
    pub path: String,
    pub text: String,
    pub functions: Vec<Function>,
    pub tokens: Vec<Token>,
    /// Names of the child modules that exist only for tests (`#[cfg(test)] mod tests;`).
    pub test_modules: Vec<String>,
    /// True if all of the file is test code.
    pub all_test: bool,
    test_lines: Vec<(usize, usize)>,
}

impl Source {
    /// Takes a file apart.
    pub fn parse(path: &str, text: &str) -> Result<Source, String> {
        let file = syn::parse_file(text).map_err(|error| format!("{path}: {error}"))?;
        let stream: TokenStream = text.parse().map_err(|error| format!("{path}: {error}"))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let mut walk = Walk { lines: text.lines().collect(), ..Walk::default() };
        walk.visit_file(&file);
        Ok(Source {
            path: path.to_owned(),
            text: text.to_owned(),
            functions: walk.functions,
            tokens,
            test_modules: walk.test_modules,
            all_test: file.attrs.iter().any(is_cfg_test),
            test_lines: walk.test_lines,
        })
    }

    /// True if the line belongs to tests.
    pub fn is_test(&self, line: usize) -> bool {
        self.all_test || self.test_lines.iter().any(|&(first, last)| (first..=last).contains(&line))
    }

    /// The lines at which these tokens follow one another.
    pub fn find<'a>(&'a self, pattern: &'a [&'a str]) -> impl Iterator<Item = usize> + 'a {
        self.tokens
            .windows(pattern.len())
            .filter(move |window| window.iter().zip(pattern).all(|(token, wanted)| token.text == *wanted))
            .map(|window| window[0].line)
    }
}

fn flatten(stream: TokenStream, into: &mut Vec<Token>) {
    let mut tokens = stream.into_iter().peekable();
    while let Some(token) = tokens.next() {
        let line = token.span().start().line;
        match token {
            TokenTree::Group(group) => {
                // A doc comment is an attribute that holds a literal: what it says is no code.
                let (open, close) = match group.delimiter() {
                    proc_macro2::Delimiter::Parenthesis => ("(", ")"),
                    proc_macro2::Delimiter::Brace => ("{", "}"),
                    proc_macro2::Delimiter::Bracket => ("[", "]"),
                    proc_macro2::Delimiter::None => ("", ""),
                };
                into.push(Token { text: open.into(), line });
                flatten(group.stream(), into);
                into.push(Token { text: close.into(), line: group.span_close().start().line });
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint => {
                tokens.next();
                into.push(Token { text: "::".into(), line });
            }
            TokenTree::Literal(_) => into.push(Token { text: "literal".into(), line }),
            other => into.push(Token { text: other.to_string(), line }),
        }
    }
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
}

fn is_test_attribute(attribute: &syn::Attribute) -> bool {
    is_cfg_test(attribute) || attribute.path().segments.last().is_some_and(|segment| segment.ident == "test")
}

#[derive(Default)]
struct Walk<'t> {
    lines: Vec<&'t str>,
    functions: Vec<Function>,
    test_modules: Vec<String>,
    test_lines: Vec<(usize, usize)>,
}

impl Walk<'_> {
    fn function(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let (first, last) = (signature.span().start().line, block.span().end().line);
        let code = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        let code_lines = self.lines[first - 1..last].iter().filter(code).count();
        self.functions.push(Function { name: signature.ident.to_string(), line: first, code_lines });
    }

    fn note_tests(&mut self, attributes: &[syn::Attribute], span: proc_macro2::Span) {
        if attributes.iter().any(is_test_attribute) {
            self.test_lines.push((span.start().line, span.end().line));
        }
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(module) => {
                if module.content.is_none() && module.attrs.iter().any(is_cfg_test) {
                    self.test_modules.push(module.ident.to_string());
                }
                &module.attrs
            }
            syn::Item::Fn(function) => &function.attrs,
            syn::Item::Use(import) => &import.attrs,
            syn::Item::Impl(implementation) => &implementation.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        self.note_tests(attributes, item.span());
        visit::visit_item(self, item);
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.note_tests(&item.attrs, item.span());
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}
