//! Proof of what `checkpoint` promises: what was written is read, what is damaged is named, and a
//! crash between any two operations leaves a checkpoint to resume from.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

use shoal_plan::checkpoint::{CheckpointFile, CheckpointManifest, FILE_NAME, SCHEMA_VERSION};
use shoal_plan::grid::{CellId, Grid};
use shoal_plan::plan::Generation;
use shoal_plan::standing::Standing;

use crate::{
    CheckpointReader, NamedTensor, StoredType, TensorKind, directory, newest_good,
    partial_directory, write_file,
};

const NAMES: [&str; 2] = ["model.layers.0.input_layernorm.weight", "lm_head.weight"];
const BIAS: &str = "model.layers.1.mlp.gate.e_score_correction_bias";

/// Distinct bytes for each kind, tensor, step and place.
fn bytes(kind: TensorKind, name: &str, step: u64, n: usize) -> Vec<u8> {
    let seed = blake3::hash(format!("{kind} {name} {step}").as_bytes());
    (0..n).map(|at| seed.as_bytes()[at % 32].wrapping_add(at as u8)).collect()
}

fn stored_type(kind: TensorKind) -> StoredType {
    match kind {
        TensorKind::Master | TensorKind::Average => StoredType::F32,
        TensorKind::Model | TensorKind::FirstMoment | TensorKind::SecondMoment => StoredType::Bf16,
    }
}

fn write_kind(partial: &Path, kind: TensorKind, step: u64, cell: u32) -> CheckpointFile {
    let name = NAMES[cell as usize];
    let shape = vec![3, 5];
    let dtype = stored_type(kind);
    let content = bytes(kind, name, step, 15 * dtype.size());
    let mut tensors = vec![NamedTensor { name, shape, dtype, bytes: Cow::Owned(content) }];
    if kind == TensorKind::Model && cell == 0 {
        let bytes = Cow::Owned(bytes(kind, BIAS, step, 16));
        tensors.push(NamedTensor { name: BIAS, shape: vec![4], dtype: StoredType::F32, bytes });
    }
    let file_name = kind.file_name(CellId(cell));
    write_file(partial, &file_name, &mut tensors.into_iter()).unwrap()
}

fn manifest(step: u64, files: Vec<CheckpointFile>) -> CheckpointManifest {
    CheckpointManifest {
        schema_version: SCHEMA_VERSION,
        standing: Standing { step, sequences: 8 * step, ..Standing::default() },
        grid: Grid { stages: 2, expert_shards: 1, replicas: 1 },
        files,
    }
}

fn write_manifest(directory: &Path, manifest: &CheckpointManifest) {
    fs::write(directory.join(FILE_NAME), manifest.to_text()).unwrap();
}

/// Writes and commits step `step` as cells and coordinator do, but stops after `operations`.
/// Returns how many operations a whole checkpoint takes.
fn write_checkpoint(checkpoints: &Path, step: u64, operations: usize) -> usize {
    let partial = partial_directory(checkpoints, step, Generation(1)).unwrap();
    let mut files = Vec::new();
    let mut done = 0;
    for cell in 0..2 {
        for kind in TensorKind::ALL {
            if done == operations {
                return done;
            }
            files.push(write_kind(&partial, kind, step, cell));
            done += 1;
        }
    }
    if done < operations {
        write_manifest(&partial, &manifest(step, files));
        done += 1;
    }
    if done < operations {
        fs::rename(&partial, directory(checkpoints, step)).unwrap();
        done += 1;
    }
    done
}

fn checkpoints_of(scratch: &TempDir, steps: &[u64]) -> PathBuf {
    let checkpoints = scratch.path().join("checkpoints");
    for step in steps {
        write_checkpoint(&checkpoints, *step, usize::MAX);
    }
    checkpoints
}

#[test]
fn what_was_written_is_read_by_name_kind_and_shape() {
    let scratch = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints_of(&scratch, &[5]);
    let newest = newest_good(&checkpoints).unwrap();
    assert_eq!(newest.step, Some(5));
    let reader = CheckpointReader::open(&newest.directory.unwrap()).unwrap();
    let standing = reader.manifest().standing;
    assert_eq!((standing.step, standing.sequences), (5, 40));
    assert_eq!(reader.names(TensorKind::Master).collect::<Vec<_>>(), [NAMES[1], NAMES[0]]);
    for name in NAMES {
        for kind in [TensorKind::Master, TensorKind::Average] {
            let want = bytes(kind, name, 5, 60);
            let got = reader.read_f32(kind, name, &[3, 5]).unwrap();
            assert_eq!(bytemuck::cast_slice::<f32, u8>(&got), want);
            let widened = reader.read_widened(kind, name, &[3, 5]).unwrap();
            assert_eq!(bytemuck::cast_slice::<f32, u8>(&widened), want);
        }
        for kind in [TensorKind::Model, TensorKind::FirstMoment, TensorKind::SecondMoment] {
            let got = reader.read_widened(kind, name, &[3, 5]).unwrap();
            let bits = bytes(kind, name, 5, 30);
            let want =
                bits.chunks_exact(2).map(|bits| u32::from_le_bytes([0, 0, bits[0], bits[1]]));
            assert!(got.iter().map(|value| value.to_bits()).eq(want), "{kind} {name}");
        }
    }
    let bias = reader.read_f32(TensorKind::Model, BIAS, &[4]).unwrap();
    assert_eq!(bytemuck::cast_slice::<f32, u8>(&bias), bytes(TensorKind::Model, BIAS, 5, 16));

    let check = |error: crate::CheckpointError, want: &str| {
        assert!(error.to_string().contains(want), "{error}");
    };
    check(
        reader.read_f32(TensorKind::Master, "nobody", &[1]).unwrap_err(),
        "no master named nobody",
    );
    let transposed = reader.read_f32(TensorKind::Master, NAMES[0], &[5, 3]).unwrap_err();
    check(transposed, "is F32 [3, 5], want F32 [5, 3]");
    let other_type = reader.read_f32(TensorKind::Model, NAMES[0], &[3, 5]).unwrap_err();
    check(other_type, "is BF16 [3, 5], want F32 [3, 5]");
}

#[test]
fn a_crash_between_any_two_operations_leaves_a_checkpoint_to_resume_from() {
    let all = write_checkpoint(tempfile::tempdir().unwrap().path(), 1, usize::MAX);
    assert_eq!(all, 12);
    for operations in 0..=all {
        let scratch = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints_of(&scratch, &[1]);
        write_checkpoint(&checkpoints, 2, operations);
        let newest = newest_good(&checkpoints).unwrap();
        assert_eq!(newest.step, Some(if operations == all { 2 } else { 1 }), "{operations}");
        assert!(newest.warnings.is_empty(), "{:?}", newest.warnings);
        CheckpointReader::open(&newest.directory.unwrap()).unwrap();
        // And the next attempt at the same step takes over what was left.
        if operations < all {
            write_checkpoint(&checkpoints, 2, usize::MAX);
            assert_eq!(newest_good(&checkpoints).unwrap().step, Some(2));
        }
    }
}

type Damage = fn(&Path);

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_damage_named() {
    let files = |checkpoints: &Path| {
        let entries = fs::read_dir(directory(checkpoints, 2)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let n_files = files(&checkpoints_of(&tempfile::tempdir().unwrap(), &[2])).len();
    assert_eq!(n_files, 11);
    let damages: [(&str, Damage); 4] = [
        ("flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x04;
            fs::write(path, bytes).unwrap();
        }),
        ("cut", |path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        ("empty", |path| fs::write(path, []).unwrap()),
        ("gone", |path| fs::remove_file(path).unwrap()),
    ];
    for (damage, apply) in damages {
        for at in 0..n_files {
            let scratch = tempfile::tempdir().unwrap();
            let checkpoints = checkpoints_of(&scratch, &[1, 2]);
            let path = files(&checkpoints).swap_remove(at);
            apply(&path);
            let newest = newest_good(&checkpoints).unwrap();
            assert_eq!(newest.step, Some(1), "{} {damage}", path.display());
            let warning = newest.warnings[0].to_string();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(warning.contains("step 2") && warning.contains(name), "{warning}");
        }
    }
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let good = || manifest(2, vec![]);
    let check = |change: &dyn Fn(&mut CheckpointManifest), want: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints_of(&scratch, &[2]);
        let path = directory(&checkpoints, 2);
        let files = crate::newest::read_manifest(&path).unwrap().files;
        let mut manifest = CheckpointManifest { files, ..good() };
        change(&mut manifest);
        write_manifest(&path, &manifest);
        let text = match newest_good(&checkpoints) {
            Ok(newest) => {
                assert_eq!(newest.step, None);
                newest.warnings[0].to_string()
            }
            Err(error) => error.to_string(),
        };
        assert!(text.contains(want), "{text}");
    };
    check(&|manifest| manifest.standing.step = 3, "it is of step 3, want 2");
    check(&|manifest| manifest.schema_version = 9, "use the shoal that wrote it");
    check(&|manifest| manifest.files[0].name = "../../etc/passwd".into(), "no plain file name");
    check(&|manifest| manifest.files[1] = manifest.files[0].clone(), "is named twice");
    check(&|manifest| manifest.files.clear(), "it names no file");
    let empty = newest_good(Path::new("does-not-exist")).unwrap();
    assert!(empty.step.is_none() && empty.warnings.is_empty());
}

/// A checkpoint of one file with this header and so much data.
fn hand_made(scratch: &TempDir, header: &str, data_bytes: usize) -> PathBuf {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    let name = "model-cell-0.safetensors".to_string();
    fs::write(scratch.path().join(&name), &bytes).unwrap();
    let file = CheckpointFile {
        name,
        bytes: bytes.len() as u64,
        blake3: blake3::hash(&bytes).to_hex().to_string(),
    };
    write_manifest(scratch.path(), &manifest(0, vec![file]));
    scratch.path().to_path_buf()
}

#[test]
fn a_hostile_header_is_refused() {
    let entry = |name: &str, start: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{start},{}]}}"#, start + 4)
    };
    let check = |header: String, data_bytes: usize, want: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let directory = hand_made(&scratch, &header, data_bytes);
        let got = match CheckpointReader::open(&directory) {
            Ok(_) => "opened".to_string(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(want), "{got}");
    };
    check(format!("{{{}}}", entry("a", 0)), 4, "opened");
    check(format!("{{{},{}}}", entry("a", 0), entry("a", 0)), 4, "a is there twice");
    check(format!("{{{}}}", entry("../../etc/passwd", 0)), 4, "no name for a tensor");
    check(format!("{{{}}}", entry("a\\n", 0)), 4, "no name for a tensor");
    check(format!("{{{}}}", entry("a", 0)), 8, "model-cell-0.safetensors is damaged");
    check(format!("{{{}}}", entry("a", 4)), 8, "damaged");
    check(format!("{{{}}}", entry("a", 0)).replace("F32", "I64"), 8, "damaged");
    let integers = entry("a", 0).replace("F32", "I32");
    check(format!("{{{integers}}}"), 4, "a is I32, want F32 or BF16");
    check("{".into(), 0, "damaged");
}

#[test]
fn tensors_that_cannot_be_read_back_are_not_written() {
    let scratch = tempfile::tempdir().unwrap();
    let tensor = |name: &'static str, n: usize| NamedTensor {
        name,
        shape: vec![2, 2],
        dtype: StoredType::Bf16,
        bytes: Cow::Owned(vec![0; n]),
    };
    let check = |tensors: Vec<NamedTensor<'static>>, want: &str| {
        let error = write_file(scratch.path(), "x", &mut tensors.into_iter()).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    };
    check(vec![tensor("a", 7)], "it has 7 bytes, want 8");
    check(vec![tensor("a/b", 8)], "its name is not plain");
    check(vec![tensor("a", 8), tensor("a", 8)], "it is there twice");
    let missing = scratch.path().join("missing");
    let error = write_file(&missing, "x", &mut [tensor("a", 8)].into_iter()).unwrap_err();
    assert!(error.to_string().starts_with("creating"), "{error}");
}
