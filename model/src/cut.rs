//! Which part of the model one cell owns.

use std::ops::Range;

use shoal_plan::grid::CellId;
use shoal_plan::model::ModelConfig;
use shoal_plan::plan::Plan;

/// One cell's part: layers of the stage, routed experts of the shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    pub config: ModelConfig,
    /// 0-based decoder layers, without the multi-token-prediction module's.
    pub layers: Range<u32>,
    /// Holds the embedding.
    pub first: bool,
    /// Holds the final norm and the head; with multi-token prediction, its module and a copy of the
    /// embedding.
    pub last: bool,
    /// Routed experts of every shard, the same in every layer: consecutive, from 0 to E.
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

    /// The part a plan gives to a cell.
    pub fn of(config: ModelConfig, plan: &Plan, id: CellId) -> Self {
        let cell = plan.grid.cell(id);
        Self {
            config,
            layers: plan.stages[cell.stage as usize].layers.clone(),
            first: cell.stage == 0,
            last: cell.stage + 1 == plan.grid.stages,
            experts: plan.experts.clone(),
            shard: cell.expert_shard as usize,
        }
    }

    /// The experts this cell owns.
    pub fn local_experts(&self) -> Range<u32> {
        self.experts[self.shard].clone()
    }

    /// Number of the multi-token-prediction module's layer, where this stage has one.
    pub fn mtp_layer(&self) -> Option<u32> {
        (self.last && 0 < self.config.num_nextn_predict_layers)
            .then_some(self.config.num_hidden_layers)
    }

    /// Mixture-of-experts layers of the stage in order, the multi-token-prediction module's last:
    /// the rows of the routing counts.
    pub fn moe_layers(&self) -> Vec<u32> {
        self.layers
            .clone()
            .filter(|layer| self.config.is_moe(*layer))
            .chain(self.mtp_layer())
            .collect()
    }

    /// Asserts what the plan promised: a `Cut` that breaks it is a bug of whoever made it.
    pub(crate) fn check(&self) {
        let mut next = 0;
        for range in &self.experts {
            assert!(
                range.start == next && range.start < range.end,
                "shards own consecutive experts"
            );
            next = range.end;
        }
        assert_eq!(next, self.config.n_routed_experts, "every expert has an owner");
        assert!(self.shard < self.experts.len(), "the cell's shard is one of the shards");
        assert!(self.layers.end <= self.config.num_hidden_layers, "the stage's layers exist");
        assert!(self.config.num_nextn_predict_layers <= 1, "at most one token more is predicted");
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
    #[should_panic(expected = "consecutive")]
    fn a_gap_between_shards_is_a_bug() {
        let whole = Cut::whole(ModelConfig::tiny());
        Cut { experts: vec![0..7, 8..16], ..whole }.check();
    }
}
