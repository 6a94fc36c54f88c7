//! The numbers a cell owns: FP32 masters and gradients, BF16 or FP32 moments, the average of the
//! masters if one is kept, and the form used in compute.
//!
//! Each class has one flat arena per kind of number, so that an all-reduce is one call; a parameter
//! is a range of its class's arenas. Arena order is `names::specifications`.

mod arena;
mod step;

use std::collections::BTreeMap;
use std::ops::Range;

use shoal_kernels::embedding;
use shoal_kernels::linear::{self, Math, Rows, Weight};
use shoal_kernels::spread;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_plan::numerics::ParameterGroup;

use crate::arithmetic::Arithmetic;
use crate::initial;
use crate::memory::Memory;
use crate::names::{Role, Specification};
use crate::options::StageOptions;

use self::arena::Arena;
pub use self::arena::Moments;

/// Which cells hold a parameter, and so which cells sum its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Held by every cell of the stage: gradients are summed over the stage's cells.
    Dense,
    /// Held by one shard of each replica: gradients are summed over the replicas.
    Expert,
    /// Held by every cell of the first and of the last stage: summed over all of them.
    Embedding,
}

impl Class {
    pub(crate) const ALL: [Self; 3] = [Self::Dense, Self::Expert, Self::Embedding];

    /// Its place in `ALL`.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Dense => 0,
            Self::Expert => 1,
            Self::Embedding => 2,
        }
    }
}

/// A parameter of this cell; cheaper than its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(usize);

#[derive(Clone, Debug)]
struct Entry {
    specification: Specification,
    span: Range<usize>,
}

/// The form of a parameter that compute reads.
#[derive(Clone, Debug)]
enum Compute {
    Weight(Weight),
    /// Compute reads the master.
    Master,
}

/// All parameters of one cell.
#[derive(Clone, Debug)]
pub struct Parameters {
    arithmetic: Arithmetic,
    options: StageOptions,
    /// Masters and their average have changed places.
    swapped: bool,
    entries: Vec<Entry>,
    ids: BTreeMap<String, Id>,
    compute: Vec<Compute>,
    dense: Arena,
    expert: Arena,
    embedding: Arena,
}

impl Parameters {
    /// Draws initial values. The same name and seed give the same values on every grid.
    pub(crate) fn new(
        specifications: Vec<Specification>,
        options: &StageOptions,
        deviation: f32,
    ) -> Self {
        let mut parameters = Self::blank(specifications, options);
        parameters.draw(options.seed, deviation);
        parameters.restart_average();
        parameters.prepare();
        parameters
    }

    /// All zero, to be loaded; compute has weights after `prepare` alone.
    pub(crate) fn blank(specifications: Vec<Specification>, options: &StageOptions) -> Self {
        let mut sizes =
            BTreeMap::from([(Class::Dense, 0), (Class::Expert, 0), (Class::Embedding, 0)]);
        let mut entries = Vec::with_capacity(specifications.len());
        let mut ids = BTreeMap::new();
        for specification in specifications {
            let size = sizes.get_mut(&specification.class).expect("all three classes were listed");
            let span = *size..*size + specification.shape.iter().product::<usize>();
            *size = span.end;
            let old = ids.insert(specification.name.clone(), Id(entries.len()));
            assert!(old.is_none(), "{} is listed twice", specification.name);
            entries.push(Entry { specification, span });
        }
        let averaged = 0.0 < options.ema_decay;
        let arena = |class| Arena::zeros(sizes[&class], options.moments, averaged);
        Self {
            arithmetic: Arithmetic::of(options),
            options: options.clone(),
            swapped: false,
            compute: Vec::new(),
            ids,
            dense: arena(Class::Dense),
            expert: arena(Class::Expert),
            embedding: arena(Class::Embedding),
            entries,
        }
    }

    fn draw(&mut self, seed: u64, deviation: f32) {
        let Self { entries, dense, expert, embedding, .. } = self;
        for (class, arena) in
            [(Class::Dense, dense), (Class::Expert, expert), (Class::Embedding, embedding)]
        {
            let mine = entries.iter().filter(|entry| entry.specification.class == class);
            let pieces = pieces(mine.map(|entry| (entry, entry.span.clone())), &mut arena.master);
            spread::map(pieces, |(entry, values)| match entry.specification.role {
                Role::Gain => values.fill(1.0),
                Role::Linear | Role::Wide | Role::Table | Role::Tied | Role::Router => {
                    initial::normal(seed, &entry.specification.name, deviation, values);
                }
            });
        }
    }

    /// Refreshes what compute reads from the masters, in its place: after every update and after
    /// loading.
    pub fn prepare(&mut self) {
        if self.compute.is_empty() {
            self.compute = spread::map(&self.entries, |entry| {
                let master = &self.arena(entry.specification.class).master[entry.span.clone()];
                self.arithmetic.compute(&entry.specification, master)
            });
            return;
        }
        let Self { entries, compute, dense, expert, embedding, .. } = self;
        spread::each(entries.iter().zip(compute), |(entry, compute)| {
            let arena = match entry.specification.class {
                Class::Dense => &*dense,
                Class::Expert => &*expert,
                Class::Embedding => &*embedding,
            };
            match compute {
                Compute::Weight(weight) => weight.refresh(&arena.master[entry.span.clone()]),
                Compute::Master => {}
            }
        });
    }

    pub(crate) fn add_to(&self, memory: &mut Memory) {
        for class in Class::ALL {
            self.arena(class).add_to(memory);
        }
        for (entry, compute) in self.entries.iter().zip(&self.compute) {
            match (compute, entry.specification.role) {
                (Compute::Weight(weight), Role::Linear) => memory.linear_weights += weight.bytes(),
                (Compute::Weight(weight), _) => memory.other_weights += weight.bytes(),
                (Compute::Master, _) => {}
            }
        }
    }

    /// Every parameter of this cell, in arena order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.specification.name.as_str())
    }

    /// Whether this cell holds a parameter of that name. The accessors below panic if it does not.
    pub fn contains(&self, name: &str) -> bool {
        self.ids.contains_key(name)
    }

    /// [out, in], or `[width]` of a norm.
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.entry(self.id(name)).specification.shape
    }

    /// Which cells share it.
    pub fn class(&self, name: &str) -> Class {
        self.entry(self.id(name)).specification.class
    }

    /// The FP32 master.
    pub fn master(&self, name: &str) -> &[f32] {
        self.values(self.id(name))
    }

    /// The FP32 master, to be loaded. Compute sees it after `prepare`.
    pub fn master_mut(&mut self, name: &str) -> &mut [f32] {
        let (span, class) = self.place(self.id(name));
        &mut self.arena_mut(class).master[span]
    }

    /// `AdamW`'s first and second moment, as they are kept.
    pub fn moments(&self, name: &str) -> Moments<'_> {
        let (span, class) = self.place(self.id(name));
        self.arena(class).moments(span)
    }

    /// Loads the moments, rounded to the form in which they are kept: BF16 values to BF16 exactly.
    pub fn set_moments(&mut self, name: &str, first: &[f32], second: &[f32]) {
        let (span, class) = self.place(self.id(name));
        self.arena_mut(class).set_moments(span, first, second);
    }

    /// Whether an average of the masters is kept.
    pub fn is_averaged(&self) -> bool {
        0.0 < self.options.ema_decay
    }

    /// The average of a master over the updates: None where none is kept.
    pub fn average(&self, name: &str) -> Option<&[f32]> {
        let (span, class) = self.place(self.id(name));
        self.is_averaged().then(|| &self.arena(class).average[span])
    }

    /// The average, to be loaded.
    pub fn average_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        let (span, class) = self.place(self.id(name));
        self.is_averaged().then(|| &mut self.arena_mut(class).average[span])
    }

    /// Starts the average, if one is kept, again from the masters: when they were loaded from
    /// somewhere that has none.
    pub fn restart_average(&mut self) {
        if self.is_averaged() {
            for class in Class::ALL {
                let Arena { master, average, .. } = self.arena_mut(class);
                average.copy_from_slice(master);
            }
        }
    }

    /// Exchanges masters and average, and refreshes what compute reads. Twice is as before, bit
    /// for bit. Does nothing where no average is kept.
    pub(crate) fn swap_average(&mut self) {
        if self.is_averaged() {
            for class in Class::ALL {
                let Arena { master, average, .. } = self.arena_mut(class);
                std::mem::swap(master, average);
            }
            self.swapped = !self.swapped;
            self.prepare();
        }
    }

    /// What the parameters were made with.
    pub(crate) fn options(&self) -> &StageOptions {
        &self.options
    }

    /// Of the average, for the optimizer.
    pub(crate) fn average_decay(&self) -> f32 {
        assert!(!self.swapped, "an update moves the masters, not their average");
        self.options.ema_decay
    }

    /// The FP32 gradient accumulated since the last update.
    pub fn gradient(&self, name: &str) -> &[f32] {
        let (span, class) = self.place(self.id(name));
        &self.arena(class).gradient[span]
    }

    /// All gradients of a class, for an all-reduce. Empty where the cell has none of the class.
    pub fn gradients_mut(&mut self, class: Class) -> &mut [f32] {
        &mut self.arena_mut(class).gradient
    }

    /// All gradients of a class.
    pub fn gradients(&self, class: Class) -> &[f32] {
        &self.arena(class).gradient
    }

    /// All gradients, class by class.
    pub(crate) fn all_gradients(&self) -> [&[f32]; 3] {
        Class::ALL.map(|class| self.gradients(class))
    }

    /// Forgets every gradient.
    pub fn zero_gradients(&mut self) {
        for class in Class::ALL {
            self.arena_mut(class).gradient.fill(0.0);
        }
    }

    /// The handle of a parameter that must be there.
    pub(crate) fn id(&self, name: &str) -> Id {
        let id = self.ids.get(name);
        *id.unwrap_or_else(|| panic!("this cell has no parameter {name}"))
    }

    /// A Linear's output [T, N].
    pub(crate) fn linear<'a>(&self, id: Id, x: impl Into<Rows<'a>>, out: DType) -> Tensor {
        linear::forward(x, self.weight(id), out)
    }

    /// Outputs of two Linears of one input, which is read once.
    pub(crate) fn linear_pair<'a>(
        &self,
        ids: [Id; 2],
        x: impl Into<Rows<'a>>,
        out: DType,
    ) -> [Tensor; 2] {
        linear::forward_each(x, ids.map(|id| self.weight(id)), out)
    }

    /// A Linear's input gradient [T, K].
    pub(crate) fn linear_input_gradient<'a>(
        &self,
        id: Id,
        d_y: impl Into<Rows<'a>>,
        out: DType,
    ) -> Tensor {
        linear::backward_input(d_y, self.weight(id), out)
    }

    /// Adds a Linear's input gradient to that of another one of the same input, FP32 [T, K].
    pub(crate) fn add_linear_input_gradient<'a>(
        &self,
        id: Id,
        d_y: impl Into<Rows<'a>>,
        d_x: &mut Tensor,
    ) {
        linear::add_backward_input(d_y, self.weight(id), d_x);
    }

    /// A Linear's weight as compute reads it.
    pub(crate) fn weight(&self, id: Id) -> &Weight {
        weight_of(&self.compute[id.0])
    }

    /// A weight and its gradient, for the head, which does both in one pass.
    pub(crate) fn weight_and_gradient(&mut self, id: Id) -> (&Weight, &mut [f32]) {
        let (span, class) = self.place(id);
        let arena = match class {
            Class::Dense => &mut self.dense,
            Class::Expert => &mut self.expert,
            Class::Embedding => &mut self.embedding,
        };
        (weight_of(&self.compute[id.0]), &mut arena.gradient[span])
    }

    /// The embedding's rows of some tokens, [T, D], rounded to `out`.
    pub(crate) fn embedded(&self, id: Id, tokens: &[u32], out: DType) -> Tensor {
        let width = self.entry(id).specification.shape[1];
        let table = match &self.compute[id.0] {
            Compute::Master => self.values(id),
            // Kept in the dtype of the activations.
            Compute::Weight(Weight::F32(rows) | Weight::Bf16(rows)) if rows.dtype() == out => {
                return rows.gather_rows(tokens);
            }
            Compute::Weight(_) => panic!("a Linear's weight is not a table"),
        };
        embedding::forward(table, width, tokens, out)
    }

    /// The master of a norm or of a router, which is what compute reads.
    pub(crate) fn values(&self, id: Id) -> &[f32] {
        let (span, class) = self.place(id);
        &self.arena(class).master[span]
    }

    /// The same with its gradient.
    pub(crate) fn values_and_gradient(&mut self, id: Id) -> (&[f32], &mut [f32]) {
        let (span, class) = self.place(id);
        let arena = self.arena_mut(class);
        (&arena.master[span.clone()], &mut arena.gradient[span])
    }

    /// The gradients of several parameters at once, each beside what it was asked for. No
    /// parameter may be asked for twice.
    pub(crate) fn gradients_of<T>(&mut self, wanted: Vec<(Id, T)>) -> Vec<(T, &mut [f32])> {
        let mut by_class: BTreeMap<Class, Vec<(T, Range<usize>)>> = BTreeMap::new();
        let mut wanted = wanted;
        wanted.sort_by_key(|(id, _)| *id);
        for (id, item) in wanted {
            let (span, class) = self.place(id);
            by_class.entry(class).or_default().push((item, span));
        }
        let arenas = [
            (Class::Dense, &mut self.dense),
            (Class::Expert, &mut self.expert),
            (Class::Embedding, &mut self.embedding),
        ];
        let mut all = Vec::new();
        for (class, arena) in arenas {
            let mine = by_class.remove(&class).unwrap_or_default();
            all.extend(pieces(mine.into_iter(), &mut arena.gradient));
        }
        all
    }

    pub(crate) fn arena(&self, class: Class) -> &Arena {
        match class {
            Class::Dense => &self.dense,
            Class::Expert => &self.expert,
            Class::Embedding => &self.embedding,
        }
    }

    pub(crate) fn arena_mut(&mut self, class: Class) -> &mut Arena {
        match class {
            Class::Dense => &mut self.dense,
            Class::Expert => &mut self.expert,
            Class::Embedding => &mut self.embedding,
        }
    }

    fn entry(&self, id: Id) -> &Entry {
        &self.entries[id.0]
    }

    fn place(&self, id: Id) -> (Range<usize>, Class) {
        let entry = self.entry(id);
        (entry.span.clone(), entry.specification.class)
    }
}

impl Arithmetic {
    fn compute(self, specification: &Specification, master: &[f32]) -> Compute {
        let math = match specification.role {
            Role::Linear => self.weight,
            Role::Table if self.wide == Math::F32 => return Compute::Master,
            Role::Wide | Role::Tied | Role::Table => self.wide,
            Role::Gain | Role::Router => return Compute::Master,
        };
        let [n, k] = specification.shape[..] else {
            panic!("a Linear's weight has two dimensions")
        };
        Compute::Weight(Weight::prepare(master, n, k, math))
    }
}

fn weight_of(compute: &Compute) -> &Weight {
    match compute {
        Compute::Weight(weight) => weight,
        Compute::Master => panic!("a gain is not a Linear's weight"),
    }
}

/// Cuts `values` at ascending spans that do not overlap.
fn pieces<T, V>(
    spans: impl Iterator<Item = (T, Range<usize>)>,
    values: &mut [V],
) -> Vec<(T, &mut [V])> {
    let (mut rest, mut at) = (values, 0);
    let cut = |(item, span): (T, Range<usize>)| {
        assert!(at <= span.start, "a parameter is asked for once");
        let (before, after) = std::mem::take(&mut rest).split_at_mut(span.end - at);
        rest = after;
        let piece = &mut before[span.start - at..];
        at = span.end;
        (item, piece)
    };
    spans.map(cut).collect()
}

#[cfg(test)]
#[path = "parameters/tests.rs"]
mod tests;
