//! The links of a fleet by latency and rate: between cards of a machine, machines of a site, and sites; and what an
//! exchange of tokens, a message between stages and a sum of gradients take on them.

mod paths;
mod relays;

use super::Software;
use super::efficiency as share;
use crate::fleet::Fleet;
use crate::gpus::Peers;
use crate::model::ModelConfig;

pub use paths::Link;
pub use relays::Relay;

/// A way for bytes: `latency_s + bytes / bytes_per_s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    pub latency_s: f64,
    pub bytes_per_s: f64,
}

impl Way {
    pub fn seconds(self, bytes: f64) -> f64 {
        if bytes > 0.0 { self.latency_s + bytes / self.bytes_per_s } else { 0.0 }
    }
}

/// The machines of a fleet, numbered rig by rig.
#[derive(Clone, Debug)]
pub struct Network<'a> {
    fleet: &'a Fleet,
    /// The rig of each machine.
    rigs: Vec<usize>,
    /// One machine of each rig that everybody can dial: machines of a rig are alike.
    open: Vec<usize>,
}

/// One card of an expert group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    pub machine: usize,
    /// Tokens of its own in a microbatch.
    pub own: f64,
    /// The share of the experts it has.
    pub experts: f64,
}

/// What an exchange takes for rows of any width.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exchange {
    pub latency_s: f64,
    /// Seconds for each byte of a row.
    pub s_per_byte: f64,
    /// Rows that leave a machine over its network, in all.
    pub rows_outside: f64,
    /// Rows that go to another card of their machine, in all.
    pub rows_inside: f64,
}

impl Exchange {
    pub fn seconds(self, row_bytes: f64) -> f64 {
        self.latency_s + self.s_per_byte * row_bytes
    }
}

impl<'a> Network<'a> {
    pub fn new(fleet: &'a Fleet) -> Self {
        let rigs = fleet.rigs.iter().enumerate();
        let rigs = rigs.flat_map(|(at, rig)| std::iter::repeat_n(at, rig.machines as usize));
        let rigs: Vec<usize> = rigs.collect();
        let open = relays::open(fleet, &rigs);
        Self { fleet, rigs, open }
    }

    pub fn machines(&self) -> usize {
        self.rigs.len()
    }

    /// The number of a machine's rig in the fleet.
    pub fn rig(&self, machine: usize) -> usize {
        self.rigs[machine]
    }

    fn site(&self, machine: usize) -> &'a str {
        &self.fleet.rigs[self.rigs[machine]].site
    }

    /// From one card of a machine to another, while every card sends and receives.
    pub fn peers(&self, machine: usize) -> Way {
        let rig = &self.fleet.rigs[self.rigs[machine]];
        let (gpu, pcie) = (rig.card(), rig.card().pcie.gb_s());
        let (latency_s, gb_s) = match gpu.peers {
            Peers::Nvlink => (share::LATENCY_NVLINK_S, gpu.nvlink_gb_s * share::NVLINK),
            Peers::Pcie => (share::LATENCY_NVLINK_S, pcie * share::PCIE_PEERS),
            Peers::Host => {
                let crossings = share::HOST_CROSSINGS * f64::from(rig.count);
                let host = rig.host_memory_gb_s / crossings;
                (share::LATENCY_HOST_S, (pcie * share::HOST_BOUNCE).min(host))
            }
        };
        let gb_s = rig.measured.peers_gb_s.unwrap_or(gb_s);
        Way { latency_s, bytes_per_s: gb_s * 1e9 }
    }

    /// Out of a machine's network interfaces, all of its cards together.
    pub fn nic(&self, machine: usize) -> f64 {
        let rig = &self.fleet.rigs[self.rigs[machine]];
        let efficiency = if rig.rdma { share::RDMA } else { share::SOCKET };
        rig.nic.bytes_per_s() * efficiency
    }

    /// From one machine to another, with nothing else on the way; over a relay, where neither can dial the other.
    pub fn between(&self, a: usize, b: usize) -> Way {
        self.relay(a, b).map_or_else(|| self.dialed(a, b), |relay| self.relayed((a, b), relay))
    }

    /// From one to the other, as if nothing were in between.
    fn dialed(&self, a: usize, b: usize) -> Way {
        let nic = self.nic(a).min(self.nic(b));
        if self.site(a) == self.site(b) {
            let rigs = [a, b].map(|machine| &self.fleet.rigs[self.rigs[machine]]);
            let wire = self.fleet.site(self.site(a)).lan_rtt_ms / 2000.0;
            // RDMA's networks are faster than any switch somebody has at home.
            let rdma = rigs.iter().all(|rig| rig.rdma);
            let latency_s = if rdma { share::LATENCY_RDMA_S } else { wire + share::LATENCY_HOST_S };
            return Way { latency_s, bytes_per_s: nic };
        }
        let (rate, half_rtt) = self.fleet.between(self.site(a), self.site(b));
        Way { latency_s: half_rtt, bytes_per_s: nic.min(rate * share::SOCKET) }
    }

    /// One way of an exchange of tokens between the cards of an expert group: dispatch, or combine, which is the
    /// same reversed. Every card has as many tokens and experts as it says, and every expert is chosen equally
    /// often. Other groups of the machine exchange at the same time, so a group has as much of a machine's
    /// network as it has of its cards.
    pub fn exchange(
        &self,
        model: &ModelConfig,
        members: &[Member],
        software: Software,
    ) -> Exchange {
        let mut exchange = Exchange::default();
        if members.len() < 2 || model.n_routed_experts == 0 {
            return exchange;
        }
        let machines: Vec<usize> = {
            let mut all: Vec<usize> = members.iter().map(|member| member.machine).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let chosen = f64::from(model.num_experts_per_tok);
        let to_cell = reached(model, members.iter().map(|member| member.experts).collect());
        let of = |machine: usize| members.iter().filter(move |member| member.machine == machine);
        let experts = machines.iter().map(|at| of(*at).map(|member| member.experts).sum());
        let to_machine = reached(model, experts.collect());
        let all_cells: f64 = to_cell.iter().sum();
        let all_machines: f64 = to_machine.iter().sum();
        debug_assert!(all_cells <= chosen + 1e-9, "a token has so many choices");
        let tokens: f64 = members.iter().map(|member| member.own).sum();
        let mut slowest = 0.0_f64;
        for (at, machine) in machines.iter().enumerate() {
            let cards = of(*machine).count() as f64;
            let own: f64 = of(*machine).map(|member| member.own).sum();
            let (mut cells_here, mut inside) = (0.0, 0.0_f64);
            for (member, to) in
                members.iter().zip(&to_cell).filter(|(one, _)| one.machine == *machine)
            {
                cells_here += to;
                // What others of this machine send it; the same number leaves on average.
                inside = inside.max((own - member.own) * to);
                exchange.rows_inside += (own - member.own) * to;
            }
            let (out, back) = if software.once_a_machine {
                (own * (all_machines - to_machine[at]), (tokens - own) * to_machine[at])
            } else {
                (own * (all_cells - cells_here), (tokens - own) * cells_here)
            };
            exchange.rows_outside += out;
            let rig = &self.fleet.rigs[self.rigs[*machine]];
            let peers = self.peers(*machine);
            // A row that came once for the machine is handed on to its cards.
            let handed_on = if software.once_a_machine { back / cards } else { 0.0 };
            let inside_s = (inside + handed_on) / peers.bytes_per_s;
            let nic = self.network(*machine, &machines) * cards / f64::from(rig.count);
            let outside_s = out.max(back) / nic;
            // The two ways are different wires; under `once_a_machine` they are stages of one pipeline.
            slowest = slowest.max(inside_s.max(outside_s));
            let far = machines.iter().filter(|other| *other != machine);
            let far = far.map(|other| self.between(*machine, *other).latency_s);
            exchange.latency_s =
                far.chain([peers.latency_s, exchange.latency_s]).fold(0.0, f64::max);
        }
        exchange.s_per_byte = slowest;
        exchange
    }

    /// The slowest way out of a machine to any of the others.
    fn network(&self, machine: usize, others: &[usize]) -> f64 {
        let others = others.iter().filter(|other| **other != machine);
        let rates = others.map(|other| self.between(machine, *other).bytes_per_s);
        rates.fold(self.nic(machine), f64::min)
    }

    /// A sum over machines, in a ring: seconds for `bytes` that each machine holds once.
    pub fn ring_s(&self, machines: &[usize], bytes: f64) -> f64 {
        let n = machines.len();
        if n < 2 || bytes <= 0.0 {
            return 0.0;
        }
        let next = machines[1..].iter().chain(&machines[..1]);
        let ways = machines.iter().zip(next).map(|(a, b)| self.between(*a, *b));
        let (latency_s, rate) = ways.fold((0.0_f64, f64::INFINITY), |(latency, rate), way| {
            (latency.max(way.latency_s), rate.min(way.bytes_per_s))
        });
        2.0 * (n - 1) as f64 * (latency_s + bytes / n as f64 / rate)
    }
}

/// How likely a token has a choice in each bin, which owns that share of the experts. Routing limited to some groups
/// of experts reaches no more bins than those groups are spread over.
fn reached(model: &ModelConfig, experts: Vec<f64>) -> Vec<f64> {
    let chosen = f64::from(model.num_experts_per_tok);
    let p = |share: f64| 1.0 - (1.0 - share).powf(chosen);
    let mut likely: Vec<f64> = experts.iter().map(|share| p(*share)).collect();
    let bins = experts.iter().filter(|share| **share > 0.0).count() as f64;
    let groups = f64::from(model.topk_group) / f64::from(model.n_group.max(1));
    let within = (bins * groups).ceil().max(1.0);
    if within < bins {
        let most = within * p(1.0 / within);
        let sum: f64 = likely.iter().sum();
        if sum > most {
            for p in &mut likely {
                *p *= most / sum;
            }
        }
    }
    likely
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Rig;

    fn member(machine: usize, own: f64, experts: f64) -> Member {
        Member { machine, own, experts }
    }

    #[test]
    fn a_token_reaches_no_more_cells_than_it_has_choices_or_its_groups_have() {
        let v3 = ModelConfig::preset("deepseek-v3").unwrap();
        // Eight machines of a group each, four of which a token may go to: 4 (1 - 0.75^8) = 3.6.
        let machines: f64 = reached(&v3, vec![0.125; 8]).iter().sum();
        assert!((machines - 3.6).abs() < 0.01, "{machines}");
        let cells: f64 = reached(&v3, vec![1.0 / 64.0; 64]).iter().sum();
        assert!(machines < cells && cells < 8.0, "{cells}");
        assert_eq!(reached(&v3, vec![1.0, 0.0]), [1.0, 0.0]);
    }

    #[test]
    fn gaming_cards_go_through_the_host_and_share_its_memory() {
        let mut rig = Rig::new("a", "RTX4090", 2);
        let way =
            |rig: &Rig| Network::new(&Fleet::of(vec![rig.clone()])).peers(0).bytes_per_s / 1e9;
        // PCIe 4 x16, both ways at once: 0.48 of 31.5.
        assert!((way(&rig) - 15.0).abs() < 0.2, "{}", way(&rig));
        rig.count = 8;
        assert!((way(&rig) - 60.0 / 16.0).abs() < 1e-9, "{}", way(&rig));
        rig.measured.peers_gb_s = Some(20.0);
        assert!((way(&rig) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn an_exchange_sends_what_is_elsewhere() {
        let model = ModelConfig { topk_group: 4, ..ModelConfig::tiny() };
        let fleet = Fleet::of(vec![Rig::new("a", "RTX4090", 2), Rig::new("b", "RTX4090", 2)]);
        let network = Network::new(&fleet);
        let exchange = |members: &[Member]| network.exchange(&model, members, Software::SHOAL);
        // Four choices, two cells of half the experts: a token needs each with 1 - 2^-4.
        let two = exchange(&[member(0, 100.0, 0.5), member(0, 100.0, 0.5)]);
        assert!((two.rows_inside - 200.0 * 0.9375).abs() < 1e-9 && two.rows_outside.abs() < 1e-9);
        assert!((two.s_per_byte - 93.75 / network.peers(0).bytes_per_s).abs() < 1e-15);
        let far = exchange(&[member(0, 100.0, 0.5), member(1, 100.0, 0.5)]);
        assert!((far.rows_outside - 187.5).abs() < 1e-9);
        // Each has one of its machine's two cards, and half of the network.
        assert!((far.s_per_byte - 93.75 / (network.nic(0) / 2.0)).abs() < 1e-12);
        assert!(far.latency_s > two.latency_s);
        assert_eq!(exchange(&[member(0, 100.0, 1.0)]), Exchange::default());
        // Whoever has no tokens still receives.
        let idle = exchange(&[member(0, 200.0, 0.5), member(1, 0.0, 0.5)]);
        assert!((idle.rows_outside - 187.5).abs() < 1e-9 && idle.s_per_byte > far.s_per_byte);
    }

    #[test]
    fn a_ring_moves_twice_the_bytes_less_a_share() {
        let fleet = Fleet::of((0..4).map(|i| Rig::new(&format!("r{i}"), "H100", 8)).collect());
        let network = Network::new(&fleet);
        let (rate, latency) = (network.nic(0), network.between(0, 1).latency_s);
        let wanted = 6.0 * latency + 1.5 * 1e9 / rate;
        assert!((network.ring_s(&[0, 1, 2, 3], 1e9) - wanted).abs() < 1e-9 * wanted);
        assert!(network.ring_s(&[2], 1e9).abs() < 1e-12);
    }
}
