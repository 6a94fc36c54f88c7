//! Parameters drawn, lent and refreshed.

use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

use super::*;
use crate::cut::Cut;
use crate::names;

fn tiny(cut: &Cut, precision: Precision) -> Parameters {
    Parameters::new(names::specifications(cut), &StageOptions::new(precision, 7), 0.02)
}

#[test]
fn both_ends_of_a_pipeline_draw_the_same_embedding() {
    let whole = Cut::whole(ModelConfig::tiny());
    let first = tiny(&Cut { layers: 0..2, last: false, ..whole.clone() }, Precision::F32);
    let last = tiny(&Cut { layers: 2..4, first: false, ..whole }, Precision::F32);
    assert_eq!(first.master(names::EMBEDDING), last.master(names::EMBEDDING));
    assert!(!first.contains(names::HEAD) && last.contains(names::HEAD));
}

#[test]
fn a_tied_table_gives_the_rows_of_a_table_of_its_own() {
    let whole = |tie_word_embeddings| {
        Cut::whole(ModelConfig { tie_word_embeddings, ..ModelConfig::tiny() })
    };
    for (precision, dtype) in [(Precision::F32, DType::F32), (Precision::Fp8, DType::Bf16)] {
        let rows = |p: &Parameters| p.embedded(p.id(names::EMBEDDING), &[7, 0, 7], dtype);
        let (tied, plain) = (tiny(&whole(true), precision), tiny(&whole(false), precision));
        assert_eq!(rows(&tied), rows(&plain), "{precision}");
        assert!(!tied.contains(names::HEAD) && plain.contains(names::HEAD));
    }
}

#[test]
fn gradients_come_beside_what_asked_for_them_in_any_order() {
    let mut parameters = tiny(&Cut::whole(ModelConfig::tiny()), Precision::F32);
    let names: Vec<String> = parameters.names().map(String::from).collect();
    let wanted = names.iter().rev().map(|name| (parameters.id(name), name.as_str())).collect();
    for (name, gradient) in parameters.gradients_of(wanted) {
        gradient.fill(name.len() as f32);
    }
    for name in &names {
        let size: usize = parameters.shape(name).iter().product();
        assert_eq!(parameters.gradient(name).len(), size);
        let want = (name.len() as f32).to_bits();
        assert!(parameters.gradient(name).iter().all(|g| g.to_bits() == want), "{name}");
    }
}

#[test]
fn compute_sees_a_loaded_master_after_prepare() {
    let mut parameters = tiny(&Cut::whole(ModelConfig::tiny()), Precision::Fp8);
    parameters.master_mut(names::EMBEDDING).fill(1.001);
    let id = parameters.id(names::EMBEDDING);
    let first = |p: &Parameters| p.embedded(id, &[0], DType::Bf16).to_f32()[0];
    assert!(first(&parameters) < 0.5);
    parameters.prepare();
    // 1.001 rounded to BF16.
    assert!((first(&parameters) - 1.0).abs() < f32::EPSILON);
}
