//! What ships is readable, and is what `Arch` says of it.

use super::*;

#[test]
fn every_card_gets_the_best_image_that_runs_on_it() {
    for (capability, arch) in [
        ((7, 5), None),
        ((8, 0), Some(Arch::Sm80)),
        ((8, 6), Some(Arch::Sm80)),
        ((8, 9), Some(Arch::Sm89)),
        ((9, 0), Some(Arch::Sm90)),
        ((10, 0), Some(Arch::Sm90)),
        ((12, 0), Some(Arch::Sm120a)),
        // The `a` in sm_120a means that card alone.
        ((12, 1), Some(Arch::Sm89)),
    ] {
        assert_eq!(Arch::serving(capability), arch, "{capability:?}");
    }
}

#[test]
fn every_image_is_for_its_architecture_and_needs_no_newer_driver_than_it_says() {
    for (program, arch) in PROGRAMS.iter().flat_map(|p| Arch::ALL.map(|arch| (p, arch))) {
        let ptx = program.ptx(arch).unwrap();
        let after = |word: &str| {
            let line = ptx.lines().find_map(|line| line.strip_prefix(word)).unwrap();
            line.trim().to_owned()
        };
        assert_eq!(after(".target"), arch.to_string(), "{}", program.name());
        // PTX ISA, release notes: which version came with which CUDA.
        let isa = match arch {
            Arch::Sm80 => "7.7",
            Arch::Sm89 | Arch::Sm90 => "8.4",
            Arch::Sm120a => "8.7",
        };
        assert_eq!(after(".version"), isa, "{} for {arch}", program.name());
        let names: Vec<&str> = kernels(&ptx).collect();
        assert!(!names.is_empty());
        for name in names {
            assert!(!parameters(&ptx, name).unwrap().is_empty(), "{name}");
        }
    }
}

#[test]
fn parameters_are_read_as_compilers_write_them() {
    let ptx = "
.visible .entry first(
\t.param .u64 first_param_0,
\t.param .u64 .ptr .align 1 first_param_1,
\t.param .f32 first_param_2
)
.maxntid 128, 1, 1
{ .param .b32 not_this; }
.entry second(.param .align 8 .b8 second_param_0[24], .param .u32 second_param_1)
";
    assert_eq!(parameters(ptx, "first").unwrap(), ["u64", "u64", "f32"]);
    assert_eq!(parameters(ptx, "second").unwrap(), ["b8[24]", "u32"]);
    assert_eq!(parameters(ptx, "fir"), None);
    assert_eq!(kernels(ptx).collect::<Vec<_>>(), ["first", "second"]);
}
