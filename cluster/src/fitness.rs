//! What makes a rig unfit for a cluster, as far as both ends can see it: the coordinator refuses it, and
//! `shoal doctor` warns of it, in the same words.

use crate::words::VERSION;

/// Certificates begin so much before they are signed: clocks further apart break them.
pub const CLOCKS_APART_MS: u64 = 300_000;

/// Clocks that are wrong by less do no harm, and times in logs are off by it.
pub const CLOCKS_ODD_MS: u64 = 30_000;

/// Why a rig that speaks these words is not understood.
pub fn words(rig: &str, shoal: &str, words: u32, coordinator: &str) -> Option<String> {
    (words != VERSION).then(|| {
        format!(
            "rig {rig} (shoal {shoal}) speaks version {words} of the words of a cluster, and this coordinator (shoal \
             {coordinator}) speaks {VERSION}: install the same shoal on both"
        )
    })
}

/// Why a rig whose clock says `rig_ms` when the coordinator's says `here_ms` cannot stay.
pub fn clocks(rig: &str, rig_ms: u64, here_ms: u64) -> Option<String> {
    let apart = rig_ms.abs_diff(here_ms);
    (apart > CLOCKS_APART_MS).then(|| {
        let way = if rig_ms > here_ms { "ahead of" } else { "behind" };
        format!(
            "the clock of rig {rig} is {} s {way} the coordinator's, and certificates break when clocks are more than \
             {} s apart: set both by NTP (timedatectl set-ntp true)",
            apart / 1000,
            CLOCKS_APART_MS / 1000
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_words_and_clocks_far_apart_make_unfit() {
        assert_eq!(words("a", "1.0", VERSION, "2.0"), None);
        let told = words("a", "1.0", VERSION + 1, "2.0").unwrap();
        assert!(told.contains("rig a (shoal 1.0)") && told.contains("install the same"), "{told}");
        let noon = 1_000_000_000;
        assert_eq!(clocks("a", noon, noon + CLOCKS_APART_MS), None);
        let told = clocks("a", noon, noon + CLOCKS_APART_MS + 1).unwrap();
        assert!(told.contains("rig a is 300 s behind the coordinator's"), "{told}");
        let told = clocks("a", noon + 400_000, noon).unwrap();
        assert!(told.contains("400 s ahead of"), "{told}");
    }
}
