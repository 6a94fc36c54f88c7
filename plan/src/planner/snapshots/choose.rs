//! How often snapshots are taken on a fleet: as the manifest says, as is usual, or as seldom as links and memory want it.

use super::{COST_MAX, MachineUse, Price};
use crate::buddies::STEPS_KEPT;
use crate::cost::links::Network;
use crate::job::MemorySnapshots;
use crate::planner::advice::seconds;

/// What the job wants, and which of it the manifest says; the rest are defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub memory: MemorySnapshots,
    pub every_given: bool,
    pub copies_given: bool,
    /// Of the run.
    pub steps: u64,
}

/// How often, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The manifest says so; 0: never.
    Asked(u64),
    /// The default is not too often.
    Default(u64),
    /// The fewest steps that are not too often.
    Fewest(u64),
    /// Never: a machine has too little memory.
    NoRoom,
    /// Never: the run is over before the copies of a snapshot have arrived.
    TooSlow,
}

/// Why the manifest's own choice cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {help}")]
pub struct Refusal {
    /// The key of the manifest.
    pub path: &'static str,
    pub what: String,
    pub help: String,
}

impl Chosen {
    /// Steps between two snapshots; 0: none are taken.
    pub fn every(self) -> u64 {
        match self {
            Self::Asked(every) | Self::Default(every) | Self::Fewest(every) => every,
            Self::NoRoom | Self::TooSlow => 0,
        }
    }

    /// A word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Asked(_) => "asked",
            Self::Default(_) => "default",
            Self::Fewest(_) => "fewest",
            Self::NoRoom => "no_room",
            Self::TooSlow => "too_slow",
        }
    }
}

/// Decides. What the manifest says is kept or refused, and never changed.
pub fn choose(price: &Price, choice: Choice, network: &Network<'_>) -> Result<Chosen, Refusal> {
    let memory = choice.memory;
    if memory.every == 0 {
        return Ok(if choice.every_given { Chosen::Asked(0) } else { Chosen::Default(0) });
    }
    if let Some(short) = price.short() {
        let copies_asked = choice.copies_given && memory.copies > 0;
        return match (choice.every_given, copies_asked) {
            (true, _) => {
                Err(no_room(price, (short, memory.copies), "spec.checkpoint.memory.every", network))
            }
            (false, true) => Err(no_room(
                price,
                (short, memory.copies),
                "spec.checkpoint.memory.copies",
                network,
            )),
            (false, false) => Ok(Chosen::NoRoom),
        };
    }
    if choice.every_given {
        if memory.every < price.every_arriving {
            return Err(too_often(price, memory.every, network));
        }
        return Ok(Chosen::Asked(memory.every));
    }
    if price.every_min <= memory.every {
        Ok(Chosen::Default(memory.every))
    } else if price.every_min <= choice.steps {
        Ok(Chosen::Fewest(price.every_min))
    } else {
        Ok(Chosen::TooSlow)
    }
}

fn no_room(
    price: &Price,
    (short, copies): (&MachineUse, u32),
    path: &'static str,
    network: &Network<'_>,
) -> Refusal {
    let rig = network.rig_name(short.machine);
    let own = |one: &MachineUse| {
        let others = one.others.saturating_mul(STEPS_KEPT);
        one.need.saturating_sub(others)
    };
    let what = format!(
        "snapshots do not fit into the memory of {rig}: {} needed ({STEPS_KEPT} of its own cells' {} and of {} of \
         others'), {} there",
        gb(short.need),
        gb(short.own),
        gb(short.others),
        gb(short.have),
    );
    let fits_alone = price.machines.iter().all(|one| own(one) <= one.have);
    let help = if fits_alone && short.others > 0 {
        let need = gb(own(short));
        let fewer = if copies > 1 { "fewer copies, or " } else { "" };
        format!(
            "set {fewer}copies: 0, with which {rig} needs {need}, or every: 0, or give {rig} more memory"
        )
    } else {
        format!("set every: 0, as its own alone are too much, or give {rig} more memory")
    };
    Refusal { path, what, help }
}

fn too_often(price: &Price, every: u64, network: &Network<'_>) -> Refusal {
    let slowest = price.links.first().filter(|link| link.seconds >= price.arrive_s - price.hash_s);
    let because = slowest.map_or_else(
        || {
            let most = price.machines.iter().map(|one| one.own).max().unwrap_or(0);
            format!("a rig hashes and sends up to {}, one copy after the other", gb(most))
        },
        |link| {
            let name = network.link_name(link.link);
            let beside = if link.training > 0.0 {
                format!(", {:.0} % of which the training needs", 100.0 * link.training)
            } else {
                String::new()
            };
            let rate = gb_s(network.rate(link.link));
            format!(
                "{} take {} through {name} ({rate}{beside})",
                gb(link.bytes),
                seconds(link.seconds)
            )
        },
    );
    let fewest = price.every_arriving;
    let what = format!(
        "a snapshot every {} is too often: its copies arrive after {} ({}), as {because}",
        steps(every),
        steps(fewest),
        seconds(price.arrive_s),
    );
    let cheap = if price.every_min > fewest {
        let percent = 100.0 * COST_MAX;
        format!(" (every: {} costs no more than {percent:.0} % of the time)", price.every_min)
    } else {
        String::new()
    };
    let help = format!(
        "set every: {fewest}{cheap}, or copies: 0, with which a lost rig costs the steps since the last checkpoint"
    );
    Refusal { path: "spec.checkpoint.memory.every", what, help }
}

/// Bytes as people say them.
pub fn gb(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e3 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b if b < 1e12 => format!("{:.1} GB", b / 1e9),
        b => format!("{:.1} TB", b / 1e12),
    }
}

fn steps(n: u64) -> String {
    if n == 1 { "step".to_owned() } else { format!("{n} steps") }
}

fn gb_s(rate: f64) -> String {
    format!("{}/s", gb(rate as u64))
}
