//! Where the numbers of a cell's parameters lie on a device.
//!
//! As in the arenas of the host, one class after the other in the same order, but every parameter begins at a multiple of
//! [`ALIGNMENT`] numbers, so that kernels read 16 bytes at a time whatever the sizes before it. The same matrix of all
//! experts of a layer is one *group* without gaps, as a grouped product wants it.

use std::ops::Range;

use crate::names::{Role, Specification};
use crate::parameters::Class;

/// Numbers. Of FP32, 256 bytes.
const ALIGNMENT: usize = 64;

/// The same matrix of one expert or of several, or any other parameter by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) class: Class,
    pub(super) role: Role,
    /// Of the first member.
    pub(super) name: String,
    /// Parameters by number, in the host's order.
    pub(super) members: Range<usize>,
    /// [out, in], or `[width]` of a gain, of each.
    pub(super) shape: Vec<usize>,
    /// Where it begins in the class's numbers on the host, and on the device.
    pub(super) host: usize,
    pub(super) device: usize,
}

impl Group {
    /// Numbers of each member.
    pub(super) fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Numbers of all.
    pub(super) fn len(&self) -> usize {
        self.members.len() * self.size()
    }

    /// Where its numbers are on the device.
    pub(super) fn span(&self) -> Range<usize> {
        self.device..self.device + self.len()
    }
}

/// Numbers that lie side by side on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) host: usize,
    pub(super) device: usize,
    pub(super) len: usize,
}

/// All groups of a cell, and the numbers of each class on the device, gaps included.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) groups: Vec<Group>,
    sizes: [usize; 3],
}

impl Layout {
    pub(super) fn of(specifications: &[Specification]) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        let mut host = [0; 3];
        for (number, specification) in specifications.iter().enumerate() {
            let Specification { name, class, role, shape } = specification;
            let next = &mut host[class.index()];
            let size: usize = shape.iter().product();
            match groups.last_mut() {
                Some(last) if belongs(last, specification) => last.members.end += 1,
                _ => groups.push(Group {
                    class: *class,
                    role: *role,
                    name: name.clone(),
                    members: number..number + 1,
                    shape: shape.clone(),
                    host: *next,
                    device: 0,
                }),
            }
            *next += size;
        }
        let mut sizes = [0; 3];
        for group in &mut groups {
            let next = &mut sizes[group.class.index()];
            group.device = *next;
            *next = (*next + group.len()).next_multiple_of(ALIGNMENT);
        }
        Self { groups, sizes }
    }

    /// Numbers of a class on the device.
    pub(super) fn size(&self, class: Class) -> usize {
        self.sizes[class.index()]
    }

    /// What is copied between host and device, in as few pieces as there are.
    pub(super) fn runs(&self, class: Class) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for group in self.groups.iter().filter(|group| group.class == class) {
            let Group { host, device, .. } = *group;
            match runs.last_mut() {
                Some(Run { host: h, device: d, len })
                    if (*h + *len, *d + *len) == (host, device) =>
                {
                    *len += group.len();
                }
                _ => runs.push(Run { host, device, len: group.len() }),
            }
        }
        runs
    }
}

/// Whether a parameter is the same matrix of the same layer as the group's, of another expert.
fn belongs(group: &Group, next: &Specification) -> bool {
    let (group, next) = (matrix(&group.name), matrix(&next.name));
    group.is_some() && group == next
}

/// Of an expert's parameter, its layer and its Linear.
fn matrix(name: &str) -> Option<(&str, &str)> {
    let (layer, rest) = name.split_once(".mlp.experts.")?;
    let (_, linear) = rest.split_once('.')?;
    Some((layer, linear))
}

#[cfg(test)]
mod tests {
    use shoal_plan::model::ModelConfig;

    use super::*;
    use crate::cut::Cut;
    use crate::names::specifications;

    #[test]
    fn every_number_of_the_host_has_one_place_on_the_device() {
        let odd = ModelConfig { moe_intermediate_size: 7, hidden_size: 30, ..ModelConfig::tiny() };
        for config in [ModelConfig::tiny(), odd] {
            let list = specifications(&Cut::whole(config));
            let layout = Layout::of(&list);
            for class in Class::ALL {
                let mine = list.iter().filter(|s| s.class == class);
                let n: usize = mine.map(|s| s.shape.iter().product::<usize>()).sum();
                let runs = layout.runs(class);
                let (mut host, mut device) = (0, 0);
                for run in &runs {
                    assert_eq!(run.host, host, "the host's numbers have no gaps");
                    assert!(device <= run.device && run.device < device + ALIGNMENT);
                    host += run.len;
                    device = run.device + run.len;
                }
                assert_eq!(host, n);
                assert!(device <= layout.size(class) && layout.size(class) < device + ALIGNMENT);
            }
            assert!(layout.groups.iter().all(|group| group.device.is_multiple_of(ALIGNMENT)));
            let members = layout.groups.iter().flat_map(|group| group.members.clone());
            assert!(members.eq(0..list.len()), "every parameter is in one group");
        }
    }

    #[test]
    fn a_matrix_of_all_experts_is_one_group_and_round_sizes_are_one_run() {
        let config = ModelConfig::tiny();
        let layout = Layout::of(&specifications(&Cut::whole(config.clone())));
        let experts = layout.groups.iter().filter(|group| group.class == Class::Expert);
        let layers = Cut::whole(config.clone()).moe_layers().len();
        assert_eq!(experts.clone().count(), 3 * layers, "gate, up and down of each layer");
        assert!(
            experts.clone().all(|group| group.members.len() == config.n_routed_experts as usize)
        );
        assert_eq!(layout.runs(Class::Expert).len(), 1);
    }
}
