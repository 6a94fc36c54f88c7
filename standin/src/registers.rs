//! The names of a kernel's registers, and what stands in them when a warp starts.

use std::collections::BTreeMap;

use crate::instruction::{P, R32, R64, Register};

/// Class of a declared register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Predicate,
    /// Up to 32 bits.
    Narrow,
    Wide,
}

/// A value that stands in a register from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    WarpCount,
    LanesEqual,
    LanesBelow,
    LanesUpTo,
    LanesAbove,
    LanesFrom,
    Zero,
    One,
    DynamicShared,
    TotalShared,
}

/// What a 32-bit register holds at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Initial {
    /// All ones, a NaN.
    Unset,
    Constant(u32),
    Special(Special),
}

/// A name's place: declared, and numbered when it is first used.
#[derive(Debug, Clone, Copy)]
enum Named {
    Predicate(P),
    Data(Register),
}

/// All registers of a kernel, by scope.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    /// Per open scope: declared names, and prefixes of numbered ones with their count.
    scopes: Vec<Scope>,
    pub(crate) narrow: Vec<Initial>,
    /// Constants of the 64-bit file; `None` is unset.
    pub(crate) wide: Vec<Option<u64>>,
    pub(crate) predicates: u32,
    constants32: BTreeMap<u32, R32>,
    constants64: BTreeMap<u64, R64>,
    specials: BTreeMap<String, R32>,
}

#[derive(Debug, Default)]
struct Scope {
    plain: BTreeMap<String, Class>,
    numbered: BTreeMap<String, (Class, u32)>,
    used: BTreeMap<String, Named>,
}

impl Registers {
    pub(crate) fn open(&mut self) {
        self.scopes.push(Scope::default());
    }

    pub(crate) fn close(&mut self) {
        self.scopes.pop();
    }

    /// Takes what follows `.reg`: a type and names, `%r<12>` for `%r0` to `%r11`.
    pub(crate) fn declare(&mut self, text: &str) -> Result<(), String> {
        let text = text.trim();
        let (ty, names) =
            text.split_once(char::is_whitespace).ok_or("a type and names are wanted")?;
        let class = match ty {
            ".pred" => Class::Predicate,
            ".b8" | ".u8" | ".s8" | ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" | ".b32"
            | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => Class::Narrow,
            ".b64" | ".u64" | ".s64" | ".f64" => Class::Wide,
            _ => return Err(format!("registers of type {ty} are not executed")),
        };
        let scope = self.scopes.last_mut().ok_or("a register outside of a body")?;
        for name in names.split(',').map(str::trim) {
            if let Some((prefix, count)) = name.split_once('<') {
                let count = count.trim_end_matches('>').parse().map_err(|_| "a count is wanted")?;
                scope.numbered.insert(prefix.to_owned(), (class, count));
            } else {
                scope.plain.insert(name.to_owned(), class);
            }
        }
        Ok(())
    }

    fn find(&mut self, name: &str) -> Option<Named> {
        for index in (0..self.scopes.len()).rev() {
            if let Some(named) = self.scopes[index].used.get(name) {
                return Some(*named);
            }
            if let Some(class) = self.scopes[index].class(name) {
                let named = match class {
                    Class::Predicate => Named::Predicate(self.fresh_predicate()),
                    Class::Narrow => Named::Data(Register::Narrow(self.fresh(Initial::Unset))),
                    Class::Wide => {
                        self.wide.push(None);
                        Named::Data(Register::Wide(self.wide.len() as u32 - 1))
                    }
                };
                self.scopes[index].used.insert(name.to_owned(), named);
                return Some(named);
            }
        }
        None
    }

    fn fresh(&mut self, initial: Initial) -> R32 {
        self.narrow.push(initial);
        self.narrow.len() as u32 - 1
    }

    fn fresh_predicate(&mut self) -> P {
        self.predicates += 1;
        self.predicates - 1
    }

    /// The data register of a name, special ones included.
    pub(crate) fn data(&mut self, name: &str) -> Option<Register> {
        if let Some(Named::Data(register)) = self.find(name) {
            return Some(register);
        }
        if let Some(register) = self.specials.get(name) {
            return Some(Register::Narrow(*register));
        }
        let register = self.fresh(Initial::Special(special(name)?));
        self.specials.insert(name.to_owned(), register);
        Some(Register::Narrow(register))
    }

    pub(crate) fn predicate(&mut self, name: &str) -> Option<P> {
        match self.find(name)? {
            Named::Predicate(predicate) => Some(predicate),
            Named::Data(_) => None,
        }
    }

    pub(crate) fn constant32(&mut self, value: u32) -> R32 {
        if let Some(register) = self.constants32.get(&value) {
            return *register;
        }
        let register = self.fresh(Initial::Constant(value));
        self.constants32.insert(value, register);
        register
    }

    pub(crate) fn constant64(&mut self, value: u64) -> R64 {
        let wide = &mut self.wide;
        *self.constants64.entry(value).or_insert_with(|| {
            wide.push(Some(value));
            wide.len() as u32 - 1
        })
    }
}

impl Scope {
    fn class(&self, name: &str) -> Option<Class> {
        if let Some(class) = self.plain.get(name) {
            return Some(*class);
        }
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let (class, count) = self.numbered.get(prefix)?;
        let number: u32 = name[prefix.len()..].parse().ok()?;
        (number < *count).then_some(*class)
    }
}

fn special(name: &str) -> Option<Special> {
    let (stem, axis) = match name.split_once('.') {
        Some((stem, axis)) => (stem, ["x", "y", "z"].iter().position(|known| *known == axis)?),
        None => (name, usize::MAX),
    };
    let has_axis = axis < 3;
    Some(match (stem, has_axis) {
        ("%tid", true) => Special::Tid(axis),
        ("%ntid", true) => Special::Ntid(axis),
        ("%ctaid", true) => Special::Ctaid(axis),
        ("%nctaid", true) => Special::Nctaid(axis),
        ("%laneid", false) => Special::LaneId,
        ("%warpid", false) => Special::WarpId,
        ("%nwarpid", false) => Special::WarpCount,
        ("%lanemask_eq", false) => Special::LanesEqual,
        ("%lanemask_lt", false) => Special::LanesBelow,
        ("%lanemask_le", false) => Special::LanesUpTo,
        ("%lanemask_gt", false) => Special::LanesAbove,
        ("%lanemask_ge", false) => Special::LanesFrom,
        ("%smid" | "%gridid" | "%cluster_ctarank", false) => Special::Zero,
        ("%nsmid" | "%cluster_nctarank", false) => Special::One,
        ("%dynamic_smem_size", false) => Special::DynamicShared,
        ("%total_smem_size", false) => Special::TotalShared,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_scopes_counts_and_classes() {
        let mut registers = Registers::default();
        registers.open();
        registers.declare(".b32 %r<3>").unwrap();
        registers.declare(".pred %p<2>").unwrap();
        registers.declare(".b64 %SP, %rd<2>").unwrap();
        let r1 = registers.data("%r1").unwrap();
        assert_eq!(registers.data("%r1"), Some(r1));
        assert_ne!(registers.data("%r2"), Some(r1));
        assert_eq!(registers.data("%r3"), None, "only 0 to 2 are declared");
        assert_eq!(registers.data("%SP"), Some(Register::Wide(0)));
        assert_eq!((registers.predicate("%p1"), registers.predicate("%r1")), (Some(0), None));
        registers.open();
        registers.declare(".b32 %r1").unwrap();
        assert_ne!(registers.data("%r1"), Some(r1), "the inner one hides the outer one");
        registers.close();
        assert_eq!(registers.data("%r1"), Some(r1));
        assert!(registers.data("%tid.x").is_some() && registers.data("%tid.w").is_none());
        assert!(registers.declare(".b128 %q").is_err());
    }
}
