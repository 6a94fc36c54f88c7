//! Parameters on their way from a file into the form that decoding multiplies.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_kernels::fp8::ScaleFormat;
use shoal_kernels::linear::{Math, Weight};
use shoal_plan::model::ModelConfig;

use crate::arithmetic::Arithmetic;
use crate::names::{Role, Specification, of_bias, of_layer};

/// Gives the values of a parameter of a name and shape.
pub type Read<'a, E> = &'a mut dyn FnMut(&str, &[usize]) -> Result<Vec<f32>, E>;

pub(super) struct Reading<'a, E> {
    arithmetic: Arithmetic,
    pub(super) config: Arc<ModelConfig>,
    specifications: BTreeMap<String, Specification>,
    read: Read<'a, E>,
}

impl<'a, E> Reading<'a, E> {
    pub(super) fn new(
        arithmetic: Arithmetic,
        config: Arc<ModelConfig>,
        list: Vec<Specification>,
        read: Read<'a, E>,
    ) -> Self {
        let specifications = list.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        Self { arithmetic, config, specifications, read }
    }

    /// Whether the model has a parameter of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.specifications.contains_key(name)
    }

    /// A norm's gain, or a master as it is stored.
    pub(super) fn values(&mut self, name: &str) -> Result<Vec<f32>, E> {
        let specification = self.specifications.get(name);
        let specification = specification.unwrap_or_else(|| panic!("the model has no {name}"));
        (self.read)(name, &specification.shape)
    }

    /// A layer's gain.
    pub(super) fn gain(&mut self, layer: u32, rest: &str) -> Result<Vec<f32>, E> {
        self.values(&of_layer(layer, rest))
    }

    /// A matrix in the form of its role.
    pub(super) fn weight(&mut self, name: &str) -> Result<Weight, E> {
        let values = self.values(name)?;
        let specification = &self.specifications[name];
        let math = match specification.role {
            Role::Linear => self.arithmetic.weight,
            Role::Wide | Role::Table | Role::Tied => self.arithmetic.wide,
            Role::Router => Math::F32,
            Role::Gain => panic!("a gain is no matrix"),
        };
        let [n, k] = specification.shape[..] else { panic!("a matrix has two dimensions") };
        Ok(Weight::prepare(&values, n, k, math))
    }

    /// A layer's Linear.
    pub(super) fn linear(&mut self, layer: u32, rest: &str) -> Result<Weight, E> {
        self.weight(&of_layer(layer, &format!("{rest}.weight")))
    }

    /// A layer's router bias, `[E]`.
    pub(super) fn bias(&mut self, layer: u32) -> Result<Vec<f32>, E> {
        (self.read)(&of_bias(layer), &[self.config.n_routed_experts as usize])
    }

    /// The form of a Linear that is taken apart after it was rounded: one that holds its values
    /// exactly. BF16 holds every E4M3 number times a power of two.
    pub(super) fn exact(&self) -> Math {
        match self.arithmetic.weight {
            Math::F32 | Math::Fp8(ScaleFormat::Fp32) => Math::F32,
            Math::Bf16 | Math::Fp8(ScaleFormat::Pow2) => Math::Bf16,
        }
    }
}
