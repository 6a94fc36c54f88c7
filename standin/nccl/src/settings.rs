//! What the environment chooses.
//!
//! | variable | value | unset |
//! |---|---|---|
//! | `SHOAL_STANDIN_NCCL_VERSION` | what `ncclGetVersion` says: 22803 is 2.28.3 | `22803` |
//! | `SHOAL_STANDIN_NCCL_PATIENCE_MS` | a peer that has not come by then never comes: a deadlock is reported | `20000` |
//! | `SHOAL_STANDIN_NCCL_DELAY_MS` | before each message leaves | `0` |
//! | `SHOAL_STANDIN_NCCL_FAIL` | failures, with commas | none |
//! | `SHOAL_STANDIN_NCCL_REPORT` | where faults are written, a line each; `%p` becomes the process id | standard error only |
//!
//! A failure is `init` (no communicator is made), `lose:N` (the N-th message of this process gets lost) or `async:N` (with the N-th
//! group of this process its communicator has an error that only `ncclCommGetAsyncError` tells). Both count from 1.

use std::time::Duration;

/// Something that shall go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Init,
    Lose(u64),
    Async(u64),
}

/// All choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub version: i32,
    pub patience: Duration,
    pub delay: Duration,
    pub failures: Vec<Failure>,
    pub report: Option<String>,
}

impl Settings {
    /// Reads the variables through `get`. The error names the variable, its value and what it may be.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let get = |name: &str| get(&format!("SHOAL_STANDIN_NCCL_{name}")).filter(|v| !v.is_empty());
        let number = |name: &str, unset: u64| {
            let Some(text) = get(name) else { return Ok(unset) };
            text.parse().map_err(|_| wrong(name, &text, "a number"))
        };
        let version = number("VERSION", 22803)?;
        let failures = get("FAIL").unwrap_or_default();
        let failures = failures.split(',').filter(|text| !text.is_empty()).map(failure);
        Ok(Self {
            version: i32::try_from(version)
                .map_err(|_| wrong("VERSION", &version.to_string(), "a version"))?,
            patience: Duration::from_millis(number("PATIENCE_MS", 20_000)?),
            delay: Duration::from_millis(number("DELAY_MS", 0)?),
            failures: failures.collect::<Result<_, _>>()?,
            report: get("REPORT").map(|path| path.replace("%p", &std::process::id().to_string())),
        })
    }
}

fn failure(text: &str) -> Result<Failure, String> {
    let refuse = || wrong("FAIL", text, "init, lose:N or async:N");
    let (what, number) = text.split_once(':').unwrap_or((text, ""));
    let number = || number.parse().map_err(|_| refuse());
    match what {
        "init" => Ok(Failure::Init),
        "lose" => Ok(Failure::Lose(number()?)),
        "async" => Ok(Failure::Async(number()?)),
        _ => Err(refuse()),
    }
}

fn wrong(name: &str, value: &str, want: &str) -> String {
    format!("SHOAL_STANDIN_NCCL_{name} is {value:?}, want {want}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let read = |name: &str, value: &str| {
            Settings::read(|asked| {
                (asked == format!("SHOAL_STANDIN_NCCL_{name}")).then(|| value.to_owned())
            })
        };
        let failures = read("FAIL", "init,lose:3,async:1").unwrap().failures;
        assert_eq!(failures, [Failure::Init, Failure::Lose(3), Failure::Async(1)]);
        assert_eq!(read("PATIENCE_MS", "50").unwrap().patience, Duration::from_millis(50));
        for (name, value, want) in [
            ("FAIL", "lose", "want init, lose:N or async:N"),
            ("FAIL", "other:1", "is \"other:1\""),
            ("DELAY_MS", "soon", "SHOAL_STANDIN_NCCL_DELAY_MS is \"soon\", want a number"),
        ] {
            let error = read(name, value).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
