//! A module: the kernels and variables of one PTX text.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::body::{self, Body, Names};
use crate::error::LoadError;
use crate::memory::{Allocation, module_variable};
use crate::scan::{Scanner, split_list, without_comments};
use crate::variable::Variable;

/// A parameter of a kernel, in the packed block that a launch takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
}

/// A kernel, ready to be launched.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) body: Body,
    pub(crate) max_threads: Option<usize>,
    pub(crate) exact_block: Option<[u32; 3]>,
    pub(crate) architecture: u32,
    pub(crate) variables: Arc<Vec<Arc<Allocation>>>,
    /// The whole text, for the faults.
    pub(crate) source: Arc<str>,
}

impl Kernel {
    /// The name of the entry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Size of the packed parameters in bytes.
    pub fn param_bytes(&self) -> usize {
        self.params.last().map_or(0, |param| param.offset + param.size)
    }

    /// Bytes of shared memory that every launch has, without the dynamic part.
    pub fn static_shared(&self) -> usize {
        self.body.static_shared
    }

    /// Threads a block may have at most, from `.maxntid` or `.reqntid`.
    pub fn max_threads(&self) -> Option<usize> {
        self.max_threads
    }

    /// The trimmed line of the text.
    pub(crate) fn line(&self, line: u32) -> &str {
        self.source.lines().nth(line as usize - 1).unwrap_or_default().trim()
    }
}

/// PTX text, decoded once.
#[derive(Debug)]
pub struct Module {
    target: String,
    version: (u32, u32),
    kernels: Vec<Arc<Kernel>>,
}

impl Module {
    /// Reads PTX text. Every instruction of every kernel must be one that this machine executes.
    pub fn load(ptx: &str) -> Result<Module, LoadError> {
        let text = without_comments(ptx);
        let mut reader = Reader {
            scanner: Scanner::new(&text, 1),
            source: Arc::from(ptx),
            target: String::new(),
            version: (0, 0),
            shared: Vec::new(),
            variables: Vec::new(),
            symbols: BTreeMap::new(),
        };
        let pending = reader.module()?;
        let variables = Arc::new(reader.variables);
        let mut kernels = Vec::with_capacity(pending.len());
        for mut kernel in pending {
            kernel.variables = Arc::clone(&variables);
            kernels.push(Arc::new(kernel));
        }
        Ok(Module { target: reader.target, version: reader.version, kernels })
    }

    /// The architecture that the text was made for, such as `sm_89`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The version of the language, major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// All kernels in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Kernel>> {
        self.kernels.iter()
    }

    /// The kernel with this name.
    pub fn entry(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}

struct Reader<'a> {
    scanner: Scanner<'a>,
    source: Arc<str>,
    target: String,
    version: (u32, u32),
    /// Shared variables outside of kernels.
    shared: Vec<Variable>,
    variables: Vec<Arc<Allocation>>,
    /// Addresses of global and constant variables.
    symbols: BTreeMap<String, u64>,
}

fn error(line: u32, text: &str, what: impl Into<String>) -> LoadError {
    let text = text.lines().next().unwrap_or_default().trim().to_owned();
    LoadError { line, text, what: what.into() }
}

impl Reader<'_> {
    /// The module's directives, variables and kernels.
    fn module(&mut self) -> Result<Vec<Kernel>, LoadError> {
        let mut kernels = Vec::new();
        loop {
            let line = self.scanner.line();
            let rest = self.scanner.rest();
            let Some(word) = rest.split(|c: char| c.is_whitespace() || c == '(').next() else {
                break;
            };
            match word {
                "" => break,
                ".version" => {
                    let text = self.scanner.rest_of_line();
                    let numbers = text[8..].trim().split_once('.');
                    let numbers =
                        numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                    self.version =
                        numbers.ok_or_else(|| error(line, text, "a version is wanted"))?;
                }
                ".target" => {
                    let text = self.scanner.rest_of_line();
                    let target = text[7..].split(',').next().unwrap_or_default();
                    target.trim().clone_into(&mut self.target);
                }
                ".address_size" => {
                    let text = self.scanner.rest_of_line();
                    if text[13..].trim() != "64" {
                        return Err(error(line, text, "only addresses of 64 bits are executed"));
                    }
                }
                ".file" | ".loc" => drop(self.scanner.rest_of_line()),
                ".section" => {
                    self.scanner.up_to_any(&['{']);
                    self.braces(line)?;
                }
                _ => kernels.extend(self.definition(line)?),
            }
        }
        Ok(kernels)
    }

    fn braces(&mut self, line: u32) -> Result<&str, LoadError> {
        self.scanner.block().ok_or_else(|| error(line, "", "braces that do not end"))
    }

    /// A kernel, a function or a variable.
    fn definition(&mut self, line: u32) -> Result<Option<Kernel>, LoadError> {
        let head = self.scanner.up_to_any(&['{', ';', '=']);
        let words: Vec<&str> = head.split_whitespace().collect();
        let is = |word: &str| words.iter().any(|known| known.split('(').next() == Some(word));
        if is(".entry") {
            let body_line = self.scanner.line();
            let name = head.split(".entry").nth(1).unwrap_or_default();
            let name = name.split('(').next().unwrap_or_default().trim();
            return self.kernel(name, head, (line, body_line)).map(Some);
        }
        if is(".func") {
            // Nothing may call it, so what it does is of no interest.
            if self.scanner.rest().starts_with('{') {
                self.braces(line)?;
            } else {
                self.scanner.statement();
            }
            return Ok(None);
        }
        let rest = self.scanner.statement();
        if !head.starts_with('.') {
            return Err(error(line, head, "a directive is wanted here"));
        }
        if is(".pragma") || head.starts_with(".alias") {
            return Ok(None);
        }
        let variable = Variable::parse(head, rest).map_err(|what| error(line, head, what))?;
        match variable.space {
            ".shared" => self.shared.push(variable),
            ".global" | ".const" => {
                let allocation = module_variable(variable.bytes);
                let bytes = variable.initial_bytes(&self.symbols);
                allocation.write(0, &bytes.map_err(|what| error(line, head, what))?);
                self.symbols.insert(variable.name, allocation.base());
                self.variables.push(allocation);
            }
            space => return Err(error(line, head, format!("a variable in {space} here"))),
        }
        Ok(None)
    }

    fn kernel(&mut self, name: &str, head: &str, lines: (u32, u32)) -> Result<Kernel, LoadError> {
        let (line, body_line) = lines;
        let bad = |what: &str| error(line, head, what);
        let (list, tail) = match (head.find('('), head.rfind(')')) {
            (Some(open), Some(close)) => (&head[open + 1..close], &head[close + 1..]),
            _ => ("", head.split(name).last().unwrap_or_default()),
        };
        let mut names = Names { symbols: self.symbols.clone(), ..Names::default() };
        let mut params: Vec<Param> = Vec::new();
        for text in split_list(list) {
            let variable = Variable::parse(text, "").map_err(|what| error(line, text, what))?;
            let end = params.last().map_or(0, |last| last.offset + last.size);
            let offset = end.next_multiple_of(variable.align);
            params.push(Param { offset, size: variable.bytes, align: variable.align });
            names.params.insert(variable.name, offset);
        }
        let (max_threads, exact_block) = limits(tail).ok_or_else(|| bad("limits of a block"))?;
        let digits: String = self.target.chars().filter(char::is_ascii_digit).collect();
        let text = self.scanner.block().ok_or_else(|| bad("a body that does not end"))?;
        let body = body::decode(Scanner::new(text, body_line), names, &self.shared)?;
        Ok(Kernel {
            name: name.to_owned(),
            params,
            body,
            max_threads,
            exact_block,
            architecture: digits.parse().map_err(|_| bad("no .target before it"))?,
            variables: Arc::default(),
            source: Arc::clone(&self.source),
        })
    }
}

/// Threads of a block: at most, and exactly.
type Limits = (Option<usize>, Option<[u32; 3]>);

/// Reads `.maxntid`, `.reqntid`; other directives of performance are of no interest.
fn limits(tail: &str) -> Option<Limits> {
    let (mut most, mut exact) = (None, None);
    for directive in tail.split('.').map(str::trim) {
        let (name, numbers) = directive.split_once(char::is_whitespace).unwrap_or((directive, ""));
        if !matches!(name, "maxntid" | "reqntid") {
            continue;
        }
        let mut sizes = [1u32; 3];
        for (size, number) in sizes.iter_mut().zip(numbers.split(',')) {
            *size = number.trim().parse().ok()?;
        }
        most = Some(sizes.iter().map(|size| *size as usize).product());
        if name == "reqntid" {
            exact = Some(sizes);
        }
    }
    Some((most, exact))
}
