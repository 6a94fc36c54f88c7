//! Which part of the model one cell owns.

use std::ops::Range;

use shoal_plan::grid::CellId;
use shoal_plan::model::ModelConfig;
use shoal_plan::plan::{Plan, StagePlan};

/// One cell's part: layers of the stage, routed experts of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    pub config: ModelConfig,
    /// 0-based decoder layers, without the multi-token-prediction module's.
    pub layers: Range<u32>,
    /// Holds the embedding.
    pub first: bool,
    /// Holds the final norm and the head; with multi-token prediction, its modules. With either these
    /// or a tied head, a copy of the embedding.
    pub last: bool,
    /// Routed experts of every shard, the same in every layer: consecutive, from 0 to E, of any
    /// length from 1 on. Of a dense model all are empty.
    pub experts: Vec<Range<u32>>,
    /// Which of `experts` this cell owns.
    pub shard: usize,
}

impl Cut {
    /// The model in one piece.
    pub fn whole(config: ModelConfig) -> Self {
        let experts = std::iter::once(0..config.n_routed_experts).collect();
        let layers = 0..config.num_hidden_layers;
        Self { config, layers, first: true, last: true, experts, shard: 0 }
    }

    /// The parts a plan gives to a cell: one for each chunk of its stage.
    pub fn of(config: &ModelConfig, plan: &Plan, id: CellId) -> Vec<Self> {
        let cell = plan.grid.cell(id);
        let n_chunks = plan.chunks() as usize;
        let part = |(chunk, stage): (usize, &StagePlan)| Self {
            config: config.clone(),
            layers: stage.layers.clone(),
            first: cell.stage == 0 && chunk == 0,
            last: cell.stage + 1 == plan.grid.stages && chunk + 1 == n_chunks,
            experts: plan.experts.clone(),
            shard: cell.expert_shard as usize,
        };
        plan.chunks_of(cell.stage).enumerate().map(part).collect()
    }

    /// The experts this cell owns.
    pub fn local_experts(&self) -> Range<u32> {
        self.experts[self.shard].clone()
    }

    /// Numbers of the multi-token-prediction modules' layers: empty where this stage has none.
    pub fn mtp_layers(&self) -> Range<u32> {
        let all = self.config.mtp_layers();
        if self.last { all } else { all.end..all.end }
    }

    /// Mixture-of-experts layers of the stage in order, the multi-token-prediction modules' last:
    /// the rows of the routing counts.
    pub fn moe_layers(&self) -> Vec<u32> {
        let layers = self.layers.clone().chain(self.mtp_layers());
        layers.filter(|layer| self.config.is_moe(*layer)).collect()
    }

    /// Asserts what the plan promised: a `Cut` that breaks it is a bug of whoever made it.
    pub(crate) fn check(&self) {
        let (mut next, dense) = (0, self.config.n_routed_experts == 0);
        for range in &self.experts {
            assert!(
                range.start == next && (dense || range.start < range.end),
                "shards own consecutive experts"
            );
            next = range.end;
        }
        assert_eq!(next, self.config.n_routed_experts, "every expert has an owner");
        assert!(self.shard < self.experts.len(), "the cell's shard is one of the shards");
        assert!(self.layers.end <= self.config.num_hidden_layers, "the stage's layers exist");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_layers_are_the_stages_experts_and_the_mtp_module_last() {
        let whole = Cut::whole(ModelConfig::tiny());
        assert_eq!(whole.moe_layers(), [1, 2, 3, 4]);
        let first = Cut { layers: 0..2, last: false, ..whole };
        assert_eq!(first.moe_layers(), [1]);
    }

    #[test]
    fn a_dense_model_counts_no_layer_and_an_mtp_module_has_experts_wherever_there_are_any() {
        let dense = ModelConfig { n_routed_experts: 0, ..ModelConfig::tiny() };
        assert!(Cut::whole(dense).moe_layers().is_empty());
        for first_k_dense_replace in [4, 9] {
            let config = ModelConfig {
                first_k_dense_replace,
                num_nextn_predict_layers: 2,
                ..ModelConfig::tiny()
            };
            assert_eq!(Cut::whole(config).moe_layers(), [4, 5]);
        }
    }

    #[test]
    #[should_panic(expected = "consecutive")]
    fn a_gap_between_shards_is_a_bug() {
        let whole = Cut::whole(ModelConfig::tiny());
        Cut { experts: vec![0..7, 8..16], ..whole }.check();
    }
}
