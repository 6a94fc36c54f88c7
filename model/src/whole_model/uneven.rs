//! Cells that have unequal parts: sequences (down to none), experts, layers without any.

use std::ops::Range;

use shoal_plan::grid::Grid;
use shoal_plan::job::Precision;
use shoal_plan::model::ModelConfig;

use super::harness::{Cluster, mesh, scale_of, small, tokens, windows};
use crate::cut::Cut;
use crate::exchange::Alone;
use crate::options::StageOptions;
use crate::stage::{Evaluated, Stage};

const SHARDS: Grid = Grid { stages: 1, expert_shards: 2, replicas: 1 };
const BOTH: Grid = Grid { stages: 2, expert_shards: 2, replicas: 1 };

/// The relative distance of a cluster's gradients from another's, over all parameters.
fn distance(got: &Cluster, want: &Cluster) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for name in want.columns[0][0].parameters().names() {
        let (got, want) = (got.gradient(name), want.gradient(name));
        error += got.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        norm += want.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    }
    (error / norm).sqrt()
}

/// Trains four windows in two microbatches, `shares` of each to the two columns.
fn shared(
    config: &ModelConfig,
    grid: Grid,
    precision: Precision,
    shares: [usize; 2],
) -> (f64, Cluster) {
    let windows = windows(4, 17, config.vocab_size, 3);
    let mut cluster = Cluster::new(config, grid, precision, 4);
    // The second microbatch has its shares the other way round.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let (a, b) = windows.split_at(shares[0] + shares[1]);
    let (left, right) = a.split_at(shares[0]);
    first.push(left);
    second.push(right);
    let (left, right) = b.split_at(b.len().min(shares[1]));
    first.push(left);
    second.push(right);
    let loss = cluster.gradients_of(&[first, second], &scale_of(&windows));
    (loss, cluster)
}

#[test]
fn cells_with_unequal_shares_of_the_sequences_have_the_uncut_models_gradients() {
    let config = ModelConfig { num_nextn_predict_layers: 2, ..small() };
    let windows = windows(4, 17, config.vocab_size, 3);
    let mut whole = Cluster::new(&config, Grid::ONE, Precision::F32, 4);
    let want = whole.gradients(&windows);
    for grid in [SHARDS, BOTH] {
        for shares in [[2, 0], [0, 2], [3, 1], [1, 3], [4, 0]] {
            let (loss, cluster) = shared(&config, grid, Precision::F32, shares);
            assert!((loss - want).abs() < 1e-5 * want, "grid {grid}, {shares:?}: {loss} {want}");
            let error = distance(&cluster, &whole);
            assert!(error < 1e-5, "grid {grid}, {shares:?}: gradients off by {error}");
        }
    }
}

#[test]
fn a_cell_without_sequences_works_for_the_others_in_every_precision() {
    for precision in Precision::ALL {
        let (want, even) = shared(&small(), BOTH, precision, [1, 1]);
        let (loss, uneven) = shared(&small(), BOTH, precision, [2, 0]);
        assert!((loss - want).abs() < 0.01 * want, "{precision}: {loss}, want {want}");
        let error = distance(&uneven, &even);
        assert!(error < 0.2, "{precision}: gradients off by {error}");
        for stage in uneven.stages() {
            assert_eq!(stage.first_nonfinite(), None, "{precision}");
        }
    }
}

#[test]
fn no_sequence_anywhere_leaves_no_gradient_and_no_loss() {
    for precision in Precision::ALL {
        let mut stage = Stage::new(Cut::whole(small()), &StageOptions::new(precision, 1));
        let (none, scale) = (tokens(&[]), scale_of(&windows(2, 9, 23, 1)));
        stage.forward(0, &none.batch(), None, &scale, &mut Alone).unwrap();
        stage.backward_input(0, None, &mut Alone).unwrap();
        stage.backward_weight(0).unwrap();
        let losses = stage.take_losses();
        assert!(
            [losses.main_sum, losses.mtp_sum, losses.balance_sum].iter().all(|sum| *sum == 0.0)
        );
        let norms = stage.sum_of_squares();
        assert!([norms.dense, norms.expert, norms.embedding].iter().all(|norm| *norm == 0.0));
        assert!(stage.counts_mut().iter().all(|count| *count == 0));
    }
}

#[test]
fn evaluation_needs_no_sequences_in_every_cell() {
    let windows = windows(2, 9, 23, 1);
    for precision in Precision::ALL {
        let mut stages: Vec<Stage> = (0..2)
            .map(|shard| Cut { experts: vec![0..1, 1..6], shard, ..Cut::whole(small()) })
            .map(|cut| Stage::new(cut, &StageOptions::new(precision, 1)))
            .collect();
        let evaluated: Vec<(f64, u64)> = std::thread::scope(|scope| {
            let shares = [&windows[..], &[]];
            let cells = stages.iter_mut().zip(shares).zip(mesh(2));
            let cells = cells.map(|((stage, windows), mut mesh)| {
                scope.spawn(move || {
                    let tokens = tokens(windows);
                    match stage.evaluate(&tokens.batch(), None, &mut mesh).unwrap() {
                        Evaluated::Loss { loss_sum, targets } => (loss_sum, targets),
                        Evaluated::Hidden(_) => panic!("the whole model ends in a loss"),
                    }
                })
            });
            let cells: Vec<_> = cells.collect();
            cells.into_iter().map(|cell| cell.join().unwrap()).collect()
        });
        assert_eq!((evaluated[0].1, evaluated[1].1), (16, 0));
        assert!(evaluated[0].0 > 16.0 && evaluated[1].0 == 0.0, "{precision}: {evaluated:?}");
    }
}

#[test]
fn shards_of_any_number_of_experts_have_the_uncut_models_gradients() {
    let config = ModelConfig {
        n_routed_experts: 16,
        num_experts_per_tok: 4,
        n_group: 4,
        topk_group: 2,
        ..small()
    };
    let windows = windows(4, 17, config.vocab_size, 3);
    let mut whole = Cluster::new(&config, Grid::ONE, Precision::F32, 4);
    let want = whole.gradients(&windows);
    let check = |grid: Grid, experts: &[Range<u32>]| {
        let mut cluster = Cluster::with_experts(&config, grid, Precision::F32, 1, experts);
        let loss = cluster.gradients(&windows);
        assert!((loss - want).abs() < 1e-5 * want, "{experts:?}: {loss}, want {want}");
        let error = distance(&cluster, &whole);
        assert!(error < 1e-5, "{experts:?}: gradients off by {error}");
    };
    check(SHARDS, &[0..10, 10..16]);
    check(BOTH, &[0..10, 10..16]);
    check(SHARDS, &[0..1, 1..16]);
    check(Grid { expert_shards: 4, ..SHARDS }, &[0..1, 1..7, 7..15, 15..16]);
}

#[test]
fn a_dense_model_is_the_same_on_every_grid() {
    let config = ModelConfig { n_routed_experts: 0, ..small() };
    let windows = windows(4, 17, config.vocab_size, 3);
    for precision in Precision::ALL {
        let mut whole = Cluster::new(&config, Grid::ONE, precision, 4);
        let want = whole.gradients(&windows);
        for grid in [SHARDS, BOTH] {
            let mut cluster = Cluster::new(&config, grid, precision, 1);
            let loss = cluster.gradients(&windows);
            assert!((loss - want).abs() < 1e-3 * want, "{precision}, {grid}: {loss}, {want}");
            let tolerance = if precision == Precision::F32 { 1e-5 } else { 0.2 };
            let error = distance(&cluster, &whole);
            assert!(error < tolerance, "{precision}, {grid}: gradients off by {error}");
            assert!(cluster.columns[0][0].counts_mut().is_empty());
        }
    }
}
