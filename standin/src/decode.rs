//! From the text of an instruction to what is executed. What is not listed here is refused: a
//! machine that skips what it does not know would judge nothing.

mod arithmetic;
mod convert;
mod functions;
mod moves;
mod together;

use crate::body::Names;
use crate::instruction::{Address, Base, Guard, Op, P, R32, R64, Register};
use crate::registers::Registers;
use crate::scan::split_list;
use crate::variable::literal;

/// What an operand or an instruction is refused with; the caller knows the line.
pub(crate) type Decoded<T> = Result<T, String>;

/// An instruction without its guard: the opcode's parts between dots, and the operands.
pub(crate) struct Operation<'a> {
    pub(crate) name: &'a str,
    pub(crate) parts: Vec<&'a str>,
    pub(crate) operands: Vec<&'a str>,
}

impl<'a> Operation<'a> {
    pub(crate) fn new(name: &'a str, operands: &'a str) -> Operation<'a> {
        Operation { name, parts: name.split('.').collect(), operands: split_list(operands) }
    }

    /// What stands between the name and the type.
    pub(crate) fn modifiers(&self) -> &[&'a str] {
        self.parts.get(1..self.parts.len() - 1).unwrap_or_default()
    }

    pub(crate) fn has(&self, part: &str) -> bool {
        self.parts.contains(&part)
    }

    /// The type, which stands last.
    pub(crate) fn ty(&self) -> &'a str {
        self.parts[self.parts.len() - 1]
    }

    pub(crate) fn operand(&self, index: usize) -> Decoded<&'a str> {
        self.operands.get(index).copied().ok_or_else(|| format!("operand {} is missing", index + 1))
    }

    pub(crate) fn expect(&self, count: usize) -> Decoded<()> {
        if self.operands.len() == count {
            return Ok(());
        }
        Err(format!("{} operands, {count} are wanted", self.operands.len()))
    }

    /// Refuses parts that change the meaning and are not among `known`.
    pub(crate) fn only(&self, known: &[&str]) -> Decoded<()> {
        match self.parts[1..].iter().find(|part| !known.contains(part)) {
            Some(part) => Err(format!("{}: .{part} is not executed", self.name)),
            None => Ok(()),
        }
    }

    pub(crate) fn unknown<T>(&self) -> Decoded<T> {
        Err(format!("{} is not executed by this machine", self.name))
    }
}

/// Knows the names of one kernel.
pub(crate) struct Decoder {
    pub(crate) registers: Registers,
    pub(crate) names: Names,
}

/// Bits of a type's name, `pred` and the like have none.
pub(crate) fn bits_of(ty: &str) -> Option<usize> {
    crate::variable::size_of(ty).map(|bytes| 8 * bytes)
}

impl Decoder {
    /// Decodes anything but a branch.
    pub(crate) fn decode(&mut self, o: &Operation<'_>) -> Decoded<Op> {
        match o.parts[0] {
            "mov" | "ld" | "ldu" | "st" | "cvta" | "atom" | "red" | "cp" | "prefetch"
            | "isspacep" | "applypriority" | "discard" => self.moves(o),
            "cvt" => self.convert(o),
            "shfl" | "vote" | "redux" | "activemask" | "elect" | "bar" | "barrier" | "membar"
            | "fence" | "ldmatrix" | "stmatrix" | "mma" | "ret" | "exit" | "trap" | "brkpt"
            | "nanosleep" | "griddepcontrol" => self.together(o),
            _ => self.arithmetic(o),
        }
    }

    /// `%p1` or `!%p1`.
    pub(crate) fn guard(&mut self, text: &str) -> Decoded<Guard> {
        let (name, is_negated) = match text.strip_prefix('!') {
            Some(name) => (name, true),
            None => (text, false),
        };
        Ok(Guard { predicate: self.predicate(name)?, is_negated })
    }

    pub(crate) fn predicate(&mut self, name: &str) -> Decoded<P> {
        self.registers.predicate(name).ok_or_else(|| format!("{name} is not a predicate"))
    }

    /// A destination predicate; `_` is none.
    pub(crate) fn predicate_or_sink(&mut self, name: &str) -> Decoded<Option<P>> {
        if name == "_" { Ok(None) } else { self.predicate(name).map(Some) }
    }

    /// A register of any data class, as a destination.
    pub(crate) fn destination(&mut self, name: &str) -> Decoded<Register> {
        if name == "_" {
            return Ok(Register::Sink);
        }
        self.registers.data(name).ok_or_else(|| format!("{name} is not a register"))
    }

    pub(crate) fn d32(&mut self, name: &str) -> Decoded<R32> {
        match self.destination(name)? {
            Register::Narrow(register) => Ok(register),
            Register::Wide(_) | Register::Sink => {
                Err(format!("{name} is not a register of 32 bits"))
            }
        }
    }

    pub(crate) fn d64(&mut self, name: &str) -> Decoded<R64> {
        match self.destination(name)? {
            Register::Wide(register) => Ok(register),
            Register::Narrow(_) | Register::Sink => {
                Err(format!("{name} is not a register of 64 bits"))
            }
        }
    }

    /// A destination of 32 bits or `_`.
    pub(crate) fn d32_or_sink(&mut self, name: &str) -> Decoded<Option<R32>> {
        if name == "_" { Ok(None) } else { self.d32(name).map(Some) }
    }

    /// A source: register, special register, literal or address of a variable.
    pub(crate) fn s32(&mut self, text: &str) -> Decoded<R32> {
        match self.registers.data(text) {
            Some(Register::Narrow(register)) => Ok(register),
            Some(Register::Wide(_) | Register::Sink) => {
                Err(format!("{text} has 64 bits, 32 are wanted"))
            }
            None => {
                let value = self.number(text, true)?;
                let fits = u32::try_from(value).is_ok() || i32::try_from(value as i64).is_ok();
                if !fits {
                    return Err(format!("{text} does not fit 32 bits"));
                }
                Ok(self.registers.constant32(value as u32))
            }
        }
    }

    pub(crate) fn s64(&mut self, text: &str) -> Decoded<R64> {
        match self.registers.data(text) {
            Some(Register::Wide(register)) => Ok(register),
            Some(Register::Narrow(_) | Register::Sink) => {
                Err(format!("{text} has 32 bits, 64 are wanted"))
            }
            None => {
                let value = self.number(text, false)?;
                Ok(self.registers.constant64(value))
            }
        }
    }

    /// A source of the class that a type of so many bits has.
    pub(crate) fn source(&mut self, text: &str, bits: usize) -> Decoded<Register> {
        if bits == 64 {
            self.s64(text).map(Register::Wide)
        } else {
            self.s32(text).map(Register::Narrow)
        }
    }

    /// Four registers in braces and the like.
    pub(crate) fn vector<const N: usize>(&mut self, text: &str) -> Decoded<[R32; N]> {
        let parts = braces(text);
        if parts.len() != N {
            return Err(format!("{text} has {} registers, {N} are wanted", parts.len()));
        }
        let mut registers = [0; N];
        for (register, part) in registers.iter_mut().zip(parts) {
            *register = self.s32(part)?;
        }
        Ok(registers)
    }

    /// A literal, or the address of a variable with or without an offset.
    pub(crate) fn number(&self, text: &str, is_single: bool) -> Decoded<u64> {
        if let Some(value) = literal(text, is_single) {
            return Ok(value);
        }
        if text == "WARP_SZ" {
            return Ok(32);
        }
        let (name, offset) = match text.split_once('+') {
            Some((name, offset)) => {
                (name.trim(), literal(offset.trim(), false).unwrap_or_default())
            }
            None => (text, 0),
        };
        let place = self.place(name).ok_or_else(|| format!("{text} is not known here"))?;
        Ok(place.wrapping_add(offset))
    }

    /// Address of a variable within its own state space.
    fn place(&self, name: &str) -> Option<u64> {
        let names = &self.names;
        let offset = names.shared.get(name).or_else(|| names.local.get(name));
        let offset = offset.or_else(|| names.params.get(name)).map(|offset| *offset as u64);
        offset.or_else(|| names.symbols.get(name).copied())
    }

    /// `[base]`, `[base+offset]`.
    pub(crate) fn address(&mut self, text: &str) -> Decoded<Address> {
        let inside = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let inside = inside.ok_or_else(|| format!("{text} is not an address"))?.trim();
        let (base, offset) = match inside.split_once('+') {
            Some((base, offset)) => {
                let value = literal(offset.trim(), false);
                (base.trim(), value.ok_or_else(|| format!("offset {offset}"))? as i64)
            }
            None => (inside, 0),
        };
        Ok(match self.registers.data(base) {
            Some(Register::Narrow(register)) => Address { base: Base::Narrow(register), offset },
            Some(Register::Wide(register)) => Address { base: Base::Wide(register), offset },
            Some(Register::Sink) => return Err(format!("{text} is not an address")),
            None => {
                let offset = offset.wrapping_add(self.number(base, false)? as i64);
                Address { base: Base::Absent, offset }
            }
        })
    }
}

/// The parts of `{a, b}`; a single operand is its own part.
pub(crate) fn braces(text: &str) -> Vec<&str> {
    let inside = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    inside.map_or_else(|| vec![text], split_list)
}
