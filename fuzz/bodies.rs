//! What each fuzz target does with its bytes. The bounded tests run the same on a stable compiler.

use std::collections::BTreeSet;
use std::path::Path;

use shoal_weights::{StoredConfig, header, index, listing};

/// What is accepted is what the format's own reader sees, tensor by tensor.
pub(crate) fn safetensors_header(bytes: &[u8]) {
    let Ok(entries) = header::parse_file(bytes) else { return };
    let (_, theirs) = safetensors::SafeTensors::read_metadata(bytes).expect("the judge takes it");
    assert_eq!(theirs.tensors().len(), entries.len());
    for (name, entry) in &entries {
        let info = theirs.info(name).expect("the judge has it");
        assert_eq!(info.shape, entry.shape);
        assert_eq!(format!("{:?}", info.dtype), entry.dtype);
        let (start, end) = info.data_offsets;
        assert_eq!(start as u64..end as u64, entry.bytes);
    }
}

/// What is accepted names plain files of the same directory.
pub(crate) fn index_json(bytes: &[u8]) {
    let Ok(map) = index::parse(bytes) else { return };
    assert!(!map.is_empty());
    for file in map.values() {
        assert!(file.ends_with(".safetensors") && !file.contains(['/', '\\', '\0']), "{file:?}");
        assert!(!file.starts_with('.') && !file.contains(".."), "{file:?}");
    }
}

/// What is accepted has tensors whose names differ and whose elements can be counted.
pub(crate) fn config_json(bytes: &[u8]) {
    let Ok(config) = StoredConfig::parse(Path::new("config.json"), bytes) else { return };
    let model = &config.model;
    if u64::from(model.num_hidden_layers) * u64::from(model.n_routed_experts) > 10_000 {
        return;
    }
    let mut names = BTreeSet::new();
    for expected in listing::listing(model, config.block) {
        let count = expected.shape.iter().try_fold(8_usize, |n, width| n.checked_mul(*width));
        assert!(count.is_some(), "{expected:?}");
        assert!(names.insert(expected.name.clone()), "{expected:?}");
    }
}
