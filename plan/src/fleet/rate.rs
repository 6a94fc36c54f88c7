//! A rate of data as people write it: `10Gbit/s`, `100Mbit/s`, `25GB/s`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Data per second, in one direction. Always positive and finite.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate {
    bits_per_s: f64,
}

const UNITS: [(&str, f64); 8] = [
    ("Kbit/s", 1e3),
    ("Mbit/s", 1e6),
    ("Gbit/s", 1e9),
    ("Tbit/s", 1e12),
    ("KB/s", 8e3),
    ("MB/s", 8e6),
    ("GB/s", 8e9),
    ("TB/s", 8e12),
];

impl Rate {
    pub(crate) const fn from_bits_per_s(bits_per_s: f64) -> Self {
        Self { bits_per_s }
    }

    pub fn bytes_per_s(self) -> f64 {
        self.bits_per_s / 8.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "wanted a rate such as 10Gbit/s, 100Mbit/s or 25GB/s".to_owned();
        let end = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(end);
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let unit = UNITS.iter().find(|(name, _)| unit.trim().eq_ignore_ascii_case(name));
        let bits_per_s = unit.map(|(_, scale)| number * scale).ok_or_else(wrong)?;
        // From a modem to more than any backplane.
        if (1e3..=1e16).contains(&bits_per_s) { Ok(Self { bits_per_s }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = UNITS[..4].iter().rev().find(|(_, scale)| self.bits_per_s >= *scale);
        let (name, scale) = bits.unwrap_or(&UNITS[0]);
        write!(f, "{}{name}", self.bits_per_s / scale)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|wrong| de::Error::custom(format!("{wrong}, got the text `{text}`")))
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> Cow<'static, str> {
        "Rate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]+(\\.[0-9]+)? ?[KkMmGgTt]([Bb][Ii][Tt]|[Bb])/[Ss]$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_they_are_printed() {
        for (text, bytes, shown) in [
            ("10Gbit/s", 1.25e9, "10Gbit/s"),
            ("100 Mbit/s", 1.25e7, "100Mbit/s"),
            ("25GB/s", 2.5e10, "200Gbit/s"),
            ("1.5mbit/s", 187_500.0, "1.5Mbit/s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert!((rate.bytes_per_s() - bytes).abs() < 1e-6, "{text}");
            assert_eq!(rate.to_string(), shown);
            assert_eq!(shown.parse::<Rate>().unwrap(), rate);
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in
            ["", "10", "Gbit/s", "10 apples", "-1Gbit/s", "0Gbit/s", "nanGbit/s", "1e99TB/s"]
        {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
