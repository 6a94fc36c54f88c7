//! What lies in `checkpoints/`: names of directories, and which complete checkpoints stay.

use crate::job::Checkpoint;
use crate::plan::Generation;

/// A directory or a file in `checkpoints/`, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// `step-N`: complete, if it holds a manifest.
    Complete(u64),
    /// What a crash or a failure left of step N.
    Leftover(u64),
}

/// Which complete checkpoints stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest, and never none.
    pub newest: u32,
    /// And the one with the least loss on held-out text, which `best.json` then names.
    pub best: bool,
}

/// The directory of step `step` once it is complete.
pub fn complete_name(step: u64) -> String {
    format!("step-{step}")
}

/// The directory where the files of step `step` are written under the plan of `generation`. Whoever
/// still writes for an older plan, because nobody could tell it that it is out, writes elsewhere. A
/// checkpoint that is fetched belongs to no plan: generation 0.
pub fn partial_name(step: u64, generation: Generation) -> String {
    format!(".step-{step}.g{}.partial", generation.0)
}

/// Where a complete checkpoint waits while another of its step takes its place.
pub fn replaced_name(step: u64) -> String {
    format!(".step-{step}.replaced")
}

/// Whether a name can stand for a file: letters, digits, `.`, `_` and `-`, not at the start a dot,
/// nowhere two. So no path, no control character, nothing that a shell reads.
pub fn is_plain(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=255).contains(&name.len())
        && name.bytes().all(is_allowed)
        && !name.starts_with('.')
        && !name.contains("..")
}

impl Named {
    /// `None` for a name that is not ours: `step-007` and `step-+7` are not.
    pub fn of(name: &str) -> Option<Self> {
        let step = |text: &str| text.parse().ok().filter(|step: &u64| step.to_string() == text);
        if let Some(digits) = name.strip_prefix("step-") {
            return step(digits).map(Self::Complete);
        }
        let (digits, ending) = name.strip_prefix(".step-")?.split_once('.')?;
        let generation = |ending: &str| step(ending.strip_prefix('g')?.strip_suffix(".partial")?);
        // Without a generation, and discarded, as earlier versions wrote it.
        let is_ours =
            ["partial", "replaced", "discarded"].contains(&ending) || generation(ending).is_some();
        step(digits).filter(|_| is_ours).map(Self::Leftover)
    }
}

impl Keep {
    pub fn of(settings: &Checkpoint) -> Self {
        Self { newest: settings.keep, best: settings.keep_best }
    }

    /// Those of the complete checkpoints `steps` that go. `best` is the step of the best one, if
    /// there is one to keep.
    pub fn gone(self, steps: &[u64], best: Option<u64>) -> Vec<u64> {
        let mut steps = steps.to_vec();
        steps.sort_unstable();
        steps.dedup();
        let n_old = steps.len().saturating_sub(self.newest.max(1) as usize);
        let best = best.filter(|_| self.best);
        steps.truncate(n_old);
        steps.retain(|step| Some(*step) != best);
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_read() {
        for step in [0, 7, u64::MAX] {
            assert_eq!(Named::of(&complete_name(step)), Some(Named::Complete(step)));
            let partial = partial_name(step, Generation(step));
            let before = format!(".step-{step}.partial");
            for name in [partial, before, replaced_name(step), format!(".step-{step}.discarded")] {
                assert_eq!(Named::of(&name), Some(Named::Leftover(step)), "{name}");
            }
        }
        for name in [
            "step-07",
            "step-",
            "step-x",
            "step-+7",
            ".step-7",
            ".step-7.mine",
            ".step-7.g.partial",
        ] {
            assert_eq!(Named::of(name), None, "{name}");
        }
        for name in [".step-7.g01.partial", ".step-7.g1.partial.x", ".step-7.g1", "best.json", ""] {
            assert_eq!(Named::of(name), None, "{name}");
        }
    }

    #[test]
    fn the_newest_and_the_best_stay_and_never_none() {
        let gone =
            |newest, best, steps: &[u64], best_step| Keep { newest, best }.gone(steps, best_step);
        assert_eq!(gone(2, true, &[30, 10, 20, 40], Some(10)), [20]);
        assert_eq!(gone(2, false, &[30, 10, 20, 40], Some(10)), [10, 20]);
        assert_eq!(gone(2, true, &[30, 10, 20, 40], None), [10, 20]);
        assert_eq!(gone(0, true, &[10, 20], None), [10], "never none");
        assert_eq!(gone(3, true, &[10, 20], None), [0_u64; 0]);
        assert_eq!(gone(1, true, &[], None), [0_u64; 0]);
    }
}
