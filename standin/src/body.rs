//! A kernel's body: scopes, labels, variables and instructions, in the order of the text.

use std::collections::BTreeMap;

use crate::decode::{Decoder, Operation};
use crate::error::LoadError;
use crate::instruction::{Instruction, Op, Space, Transfer};
use crate::registers::Registers;
use crate::scan::{Piece, Scanner};
use crate::variable::Variable;

/// Where a name stands for a number.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Addresses of global and constant variables.
    pub(crate) symbols: BTreeMap<String, u64>,
    /// Offsets in shared memory.
    pub(crate) shared: BTreeMap<String, usize>,
    /// Offsets in a thread's local memory.
    pub(crate) local: BTreeMap<String, usize>,
    /// Offsets of parameters.
    pub(crate) params: BTreeMap<String, usize>,
}

/// A body that was read.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) code: Vec<Instruction>,
    pub(crate) registers: Registers,
    /// Distinct opcodes, by `Instruction::opcode`.
    pub(crate) opcodes: Vec<String>,
    /// Shared bytes declared with a size; what a launch adds starts behind them.
    pub(crate) static_shared: usize,
    /// Bytes of local memory of one thread.
    pub(crate) local: usize,
    /// The smallest access to shared and to global memory, in bytes.
    pub(crate) granules: [usize; 2],
}

/// A branch whose label may come later.
struct Jump {
    at: usize,
    label: String,
    scopes: Vec<usize>,
    line: u32,
}

struct Reader {
    decoder: Decoder,
    code: Vec<Instruction>,
    opcodes: BTreeMap<String, u16>,
    jumps: Vec<Jump>,
    labels: BTreeMap<(usize, String), u32>,
    /// Numbers of the open scopes, outermost first, and how many there were so far.
    scopes: Vec<usize>,
    scope_count: usize,
    static_shared: usize,
    local: usize,
}

/// Decodes a body. `shared` are the module's shared variables.
pub(crate) fn decode(
    mut scanner: Scanner<'_>,
    names: Names,
    shared: &[Variable],
) -> Result<Body, LoadError> {
    let mut reader = Reader {
        decoder: Decoder { registers: Registers::default(), names },
        code: Vec::new(),
        opcodes: BTreeMap::new(),
        jumps: Vec::new(),
        labels: BTreeMap::new(),
        scopes: Vec::new(),
        scope_count: 0,
        static_shared: 0,
        local: 0,
    };
    reader.open();
    let own = variables_ahead(&scanner)?;
    reader.place_shared(shared.iter().chain(&own));
    while let Some(piece) = scanner.piece() {
        match piece {
            Piece::Open => reader.open(),
            Piece::Close => reader.close(),
            Piece::Label { line, name } => {
                let scope = reader.scopes.last().copied().unwrap_or_default();
                let at = reader.code.len() as u32;
                if reader.labels.insert((scope, name.to_owned()), at).is_some() {
                    let what = format!("label {name} stands twice");
                    return Err(LoadError { line, text: name.to_owned(), what });
                }
            }
            Piece::Statement { line, text } => {
                let result = reader.statement(line, text);
                result.map_err(|what| LoadError { line, text: first_line(text), what })?;
            }
        }
    }
    // Falling off the end is returning.
    let opcode = reader.opcode("ret");
    reader.code.push(Instruction { guard: None, op: Op::Exit, line: scanner.line(), opcode });
    reader.finish()
}

fn first_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Variables of the body in shared memory, wherever they are declared.
fn variables_ahead(scanner: &Scanner<'_>) -> Result<Vec<Variable>, LoadError> {
    let mut scanner = scanner.clone();
    let mut found = Vec::new();
    while let Some(piece) = scanner.piece() {
        if let Piece::Statement { line, text } = piece
            && (text.starts_with(".shared") || text.starts_with(".extern"))
        {
            let variable = Variable::parse(text, "");
            let variable =
                variable.map_err(|what| LoadError { line, text: first_line(text), what });
            found.push(variable?);
        }
    }
    Ok(found)
}

impl Reader {
    fn open(&mut self) {
        self.decoder.registers.open();
        self.scopes.push(self.scope_count);
        self.scope_count += 1;
    }

    fn close(&mut self) {
        self.decoder.registers.close();
        self.scopes.pop();
    }

    /// Static variables first, then all dynamic ones at one place.
    fn place_shared<'a>(&mut self, variables: impl Iterator<Item = &'a Variable> + Clone) {
        let mut end = 0usize;
        for variable in variables.clone().filter(|variable| !variable.is_dynamic) {
            let offset = end.next_multiple_of(variable.align);
            self.decoder.names.shared.insert(variable.name.clone(), offset);
            end = offset + variable.bytes;
        }
        let dynamic: Vec<&Variable> = variables.filter(|variable| variable.is_dynamic).collect();
        if let Some(align) = dynamic.iter().map(|variable| variable.align).max() {
            end = end.next_multiple_of(align);
        }
        for variable in dynamic {
            self.decoder.names.shared.insert(variable.name.clone(), end);
        }
        self.static_shared = end;
    }

    fn opcode(&mut self, name: &str) -> u16 {
        let next = self.opcodes.len() as u16;
        *self.opcodes.entry(name.to_owned()).or_insert(next)
    }

    fn statement(&mut self, line: u32, text: &str) -> Result<(), String> {
        if let Some(declaration) = text.strip_prefix(".reg") {
            return self.decoder.registers.declare(declaration);
        }
        if text.starts_with(".local") {
            let variable = Variable::parse(text, "")?;
            let offset = self.local.next_multiple_of(variable.align);
            self.local = offset + variable.bytes;
            self.decoder.names.local.insert(variable.name, offset);
            return Ok(());
        }
        if text.starts_with(".shared") || text.starts_with(".extern") || text.starts_with(".pragma")
        {
            return Ok(());
        }
        if text.starts_with('.') {
            return Err("this directive is not executed".to_owned());
        }
        let (guard, rest) = match text.strip_prefix('@') {
            Some(rest) => {
                let (guard, rest) = rest.split_once(char::is_whitespace).ok_or("an instruction")?;
                (Some(self.decoder.guard(guard)?), rest.trim())
            }
            None => (None, text),
        };
        let (name, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let opcode = self.opcode(name);
        if let Some(tail) = name.strip_prefix("bra")
            && matches!(tail, "" | ".uni")
        {
            let jump = Jump {
                at: self.code.len(),
                label: operands.trim().to_owned(),
                scopes: self.scopes.clone(),
                line,
            };
            self.jumps.push(jump);
            self.code.push(Instruction { guard, op: Op::Branch { target: 0 }, line, opcode });
            return Ok(());
        }
        let op = self.decoder.decode(&Operation::new(name, operands))?;
        self.code.push(Instruction { guard, op, line, opcode });
        Ok(())
    }

    fn finish(mut self) -> Result<Body, LoadError> {
        for jump in &self.jumps {
            let found = jump
                .scopes
                .iter()
                .rev()
                .find_map(|scope| self.labels.get(&(*scope, jump.label.clone())));
            let target = *found.ok_or_else(|| LoadError {
                line: jump.line,
                text: jump.label.clone(),
                what: "a label that stands nowhere".to_owned(),
            })?;
            self.code[jump.at].op = Op::Branch { target };
        }
        let mut opcodes = vec![String::new(); self.opcodes.len()];
        for (name, index) in self.opcodes {
            opcodes[index as usize] = name;
        }
        let granules = [Space::Shared, Space::Global].map(|space| granule(&self.code, space));
        Ok(Body {
            code: self.code,
            registers: self.decoder.registers,
            opcodes,
            static_shared: self.static_shared,
            local: self.local,
            granules,
        })
    }
}

/// The smallest access in bytes that code makes to a space: all are aligned, so a shadow of this
/// grain tells bytes apart as well as one of single bytes would. For global memory only writes count.
fn granule(code: &[Instruction], space: Space) -> usize {
    let to = |transfer: &Transfer| {
        let is_hit = transfer.space == space || transfer.space == Space::Generic;
        is_hit.then_some(transfer.width as usize * transfer.registers.len())
    };
    let is_shared = space == Space::Shared;
    let size = |op: &Op| {
        if let Op::Store(transfer) = op {
            to(transfer)
        } else if let Op::Atomic(update) = op {
            Some(if update.is_64 { 8 } else { 4 })
        } else if let (Op::Load(transfer), true) = (op, is_shared) {
            to(transfer)
        } else if let (Op::CopyAsync { bytes, .. }, true) = (op, is_shared) {
            Some(*bytes as usize)
        } else {
            None
        }
    };
    let sizes = code.iter().filter_map(|instruction| size(&instruction.op));
    sizes.min().unwrap_or(16).min(16)
}
