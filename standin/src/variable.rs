//! Declarations of variables and parameters: state space, size, alignment, first value.

use std::collections::BTreeMap;

/// A declared variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: &'static str,
    pub(crate) bytes: usize,
    pub(crate) align: usize,
    /// Size of an element in bytes.
    element: usize,
    is_float: bool,
    initial: String,
    /// `[]`: as large as the launch says.
    pub(crate) is_dynamic: bool,
}

/// The largest variable, in bytes; a device refuses far smaller ones in every space but global.
const BYTES_MAX: usize = 1 << 30;

const SPACES: [&str; 5] = [".shared", ".local", ".global", ".const", ".param"];

impl Variable {
    /// Takes `.shared .align 16 .b8 name[256]` and what follows it, `= {1, 2}`.
    pub(crate) fn parse(text: &str, rest: &str) -> Result<Variable, String> {
        let mut words = text.split_whitespace().peekable();
        let (mut space, mut align, mut element, mut vector) = (None, None, None, 1);
        let mut name = String::new();
        let mut is_float = false;
        while let Some(word) = words.next() {
            if let Some(known) = SPACES.iter().find(|known| **known == word) {
                // `.param .u64 .ptr .global` says where a parameter points to.
                space = space.or(Some(*known));
            } else if word == ".align" {
                let number = words.next().and_then(|number| number.parse().ok());
                let number = number.filter(|number: &usize| number.is_power_of_two());
                // `.ptr .align 16` speaks of what is pointed to, after the type.
                if element.is_none() {
                    align = Some(number.ok_or("an alignment is wanted")?);
                }
            } else if matches!(
                word,
                ".visible" | ".extern" | ".weak" | ".common" | ".managed" | ".ptr"
            ) {
            } else if let Some(count) = word.strip_prefix(".v") {
                let count = count.parse().ok().filter(|count| [2, 4, 8].contains(count));
                vector = count.ok_or("a vector of how many")?;
            } else if let Some(ty) = word.strip_prefix('.') {
                element = Some(size_of(ty).ok_or_else(|| format!("type .{ty}"))?);
                is_float = ty.starts_with('f');
            } else {
                name = word.to_owned() + &words.by_ref().collect::<String>();
            }
        }
        let (space, element) =
            (space.ok_or("a state space is wanted")?, element.ok_or("a type is wanted")?);
        let element_bytes: usize = element * vector;
        let (mut count, mut is_dynamic) = (1usize, false);
        let (bare, dimensions) = name.split_once('[').unwrap_or((&name, ""));
        for dimension in dimensions.split(['[', ']']).filter(|_| name.contains('[')) {
            match dimension.trim() {
                "" => {}
                number => {
                    let number: usize = number.parse().map_err(|_| format!("size {number}"))?;
                    count = count.checked_mul(number).ok_or("a size without end")?;
                }
            }
        }
        if name.ends_with("[]") {
            is_dynamic = true;
            count = 0;
        }
        let bytes = count.checked_mul(element_bytes).filter(|bytes| *bytes <= BYTES_MAX);
        let bytes = bytes.ok_or_else(|| format!("more than {BYTES_MAX} bytes"))?;
        if bare.is_empty() {
            return Err("a name is wanted".to_owned());
        }
        Ok(Variable {
            name: bare.to_owned(),
            space,
            bytes,
            align: align.unwrap_or(element_bytes),
            element,
            is_float,
            initial: rest.trim_start().trim_start_matches('=').trim().to_owned(),
            is_dynamic,
        })
    }

    /// The first value; what is not given is zero.
    pub(crate) fn initial_bytes(&self, symbols: &BTreeMap<String, u64>) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(self.bytes);
        let items = self.initial.split(['{', '}', ',']).map(str::trim);
        for item in items.filter(|item| !item.is_empty()) {
            let value = match symbols.get(item) {
                Some(address) => *address,
                None => literal(item, self.is_float && self.element == 4)
                    .ok_or_else(|| format!("value {item}"))?,
            };
            bytes.extend_from_slice(&value.to_le_bytes()[..self.element]);
        }
        if bytes.len() > self.bytes {
            return Err(format!("{} bytes of values for {} bytes", bytes.len(), self.bytes));
        }
        bytes.resize(self.bytes, 0);
        Ok(bytes)
    }
}

/// Size in bytes of a type's name without the dot.
pub(crate) fn size_of(ty: &str) -> Option<usize> {
    Some(match ty {
        "f16x2" | "bf16x2" => 4,
        "bf16" => 2,
        _ => {
            let bits: usize = ty.strip_prefix(['b', 'u', 's', 'f'])?.parse().ok()?;
            if !matches!(bits, 8 | 16 | 32 | 64) {
                return None;
            }
            bits / 8
        }
    })
}

/// A literal's bits. Decimal fractions become a float, of 32 bits if `is_single`.
pub(crate) fn literal(text: &str, is_single: bool) -> Option<u64> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let starts = |prefix: &str| {
        let head = digits.get(..2)?;
        head.eq_ignore_ascii_case(prefix).then(|| &digits[2..])
    };
    let value = if let Some(hex) = starts("0f") {
        u64::from(u32::from_str_radix(hex, 16).ok()?)
    } else if let Some(hex) = starts("0d") {
        u64::from_str_radix(hex, 16).ok()?
    } else if digits.contains('.') {
        let value: f64 = text.parse().ok()?;
        return Some(if is_single { u64::from((value as f32).to_bits()) } else { value.to_bits() });
    } else {
        let digits = digits.trim_end_matches(['U', 'u']);
        if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
            u64::from_str_radix(hex, 16).ok()?
        } else if let Some(bits) = digits.strip_prefix("0b") {
            u64::from_str_radix(bits, 2).ok()?
        } else if digits.len() > 1 && digits.starts_with('0') {
            u64::from_str_radix(digits, 8).ok()?
        } else {
            digits.parse().ok()?
        }
    };
    Some(if is_negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_alignments_and_values() {
        let parse = |text| Variable::parse(text, "").unwrap();
        let array = parse(".shared .align 16 .b8 tile[1024]");
        assert_eq!((array.bytes, array.align, array.space), (1024, 16, ".shared"));
        let dynamic = parse(".extern .shared .align 128 .b8 smem[]");
        assert!(dynamic.is_dynamic && dynamic.bytes == 0 && dynamic.align == 128);
        let pointer = parse(".param .u64 .ptr .global .align 16 k_param_0");
        assert_eq!((pointer.bytes, pointer.align, pointer.space), (8, 8, ".param"));
        let matrix = parse(".const .align 4 .f32 m[2][3]");
        assert_eq!((matrix.bytes, matrix.align), (24, 4));
        let table = Variable::parse(".global .align 4 .b32 t[3]", " = {1, -1}").unwrap();
        let bytes = table.initial_bytes(&BTreeMap::new()).unwrap();
        assert_eq!(bytes, [1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0]);
        assert!(Variable::parse(".shared .b128 x", "").is_err());
    }

    #[test]
    fn literals_in_every_notation() {
        let one = u64::from(1f32.to_bits());
        for (text, value) in [
            ("12", 12),
            ("-1", u64::MAX),
            ("0x1F", 31),
            ("017", 15),
            ("0", 0),
            ("5U", 5),
            ("0f3F800000", one),
            ("1.0", one),
            ("0d3FF0000000000000", 1f64.to_bits()),
        ] {
            assert_eq!(literal(text, true), Some(value), "{text}");
        }
        assert_eq!(literal("%r1", true), None);
        assert_eq!(literal("smem", true), None);
    }
}
