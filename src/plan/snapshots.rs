//! Snapshots in memory, as people and programs read what they take. Of a rig with several machines the fullest one is
//! shown, and its slowest links.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};
use shoal_plan::planner::advice::seconds;
use shoal_plan::planner::snapshots::{COST_MAX, Chosen, LinkUse, MachineUse, gb};

use super::Planned;
use crate::show::table;

/// Links that are shown to people.
const LINKS_MAX: usize = 3;

pub(super) fn text(planned: &Planned<'_>) -> String {
    let every = planned.snapshots.chosen.every();
    let mut text = format!("Snapshots in memory: {}\n", decision(planned));
    if matches!(planned.snapshots.chosen, Chosen::Asked(0) | Chosen::Default(0)) {
        return text;
    }
    let price = &planned.snapshots.price;
    if every > 0 {
        let _ = writeln!(
            text,
            "  a snapshot: {} to write, {} until the last copy is there; {:.2} % of the time; a lost rig costs at most {} steps",
            seconds(price.write_s),
            seconds(price.arrive_s),
            100.0 * price.cost(every),
            price.steps_lost(every),
        );
    }
    if price.lacking > 0 {
        let n = price.lacking;
        let _ = writeln!(text, "  {n} cells have fewer copies than asked for: there are too few rigs");
    }
    if price.machines.len() < 2 && planned.question.job.checkpoint.memory.copies > 0 {
        text += "  all copies stay on the one machine: over no link, and lost with it\n";
    }
    text += &table(&links(planned, every));
    text + &table(&rigs(planned))
}

/// How often, and why.
fn decision(planned: &Planned<'_>) -> String {
    let (price, chosen) = (&planned.snapshots.price, planned.snapshots.chosen);
    let memory = planned.question.job.checkpoint.memory;
    let copies = match memory.copies {
        0 => "no copies elsewhere".to_owned(),
        1 => "1 copy of each cell elsewhere".to_owned(),
        n => format!("{n} copies of each cell elsewhere"),
    };
    let percent = 100.0 * COST_MAX;
    match chosen {
        Chosen::Asked(0) | Chosen::Default(0) => {
            "none (every: 0); a lost rig costs the steps since the last checkpoint".to_owned()
        }
        Chosen::Asked(every) if price.every_min > every => format!(
            "every {every} steps as the manifest says, {copies}; every: {} would cost no more than {percent:.0} % of the time",
            price.every_min
        ),
        Chosen::Asked(every) => format!("every {every} steps as the manifest says, {copies}"),
        Chosen::Default(every) => format!("every {every} steps (default), {copies}"),
        Chosen::Fewest(every) => {
            let because = if price.every_arriving == every {
                "copies arrive no sooner".to_owned()
            } else {
                format!("more would cost over {percent:.0} % of the time")
            };
            format!("every {every} steps instead of {}, as {because}; {copies}", memory.every)
        }
        Chosen::NoRoom => {
            let short = price.short().map_or_else(String::new, |one| {
                let rig = planned.layout.network.rig_name(one.machine);
                format!("{rig} needs {} and has {}; ", gb(one.need), gb(one.have))
            });
            format!("none (every: 0): {short}a lost rig costs the steps since the last checkpoint")
        }
        Chosen::TooSlow => format!(
            "none (every: 0): one every {} steps would be the first not to be too often, and the run ends before",
            price.every_min
        ),
    }
}

fn links(planned: &Planned<'_>, every: u64) -> Vec<Vec<String>> {
    let network = &planned.layout.network;
    let head = ["link", "copies", "through in", "training needs", "copies are"];
    let row = |link: &LinkUse| {
        let share = match every {
            0 => "-".to_owned(),
            _ => format!("{:.1} % of its bytes", 100.0 * link.share(every)),
        };
        vec![
            network.link_name(link.link),
            gb(link.bytes),
            seconds(link.seconds),
            format!("{:.1} % of it", 100.0 * link.training),
            share,
        ]
    };
    let shown: Vec<Vec<String>> = distinct(planned).into_iter().take(LINKS_MAX).map(row).collect();
    if shown.is_empty() {
        return shown;
    }
    [vec![head.map(str::to_owned).to_vec()], shown].concat()
}

/// The slowest link of each name, the slowest first: machines of a rig have one.
fn distinct<'a>(planned: &'a Planned<'_>) -> Vec<&'a LinkUse> {
    let mut seen = BTreeSet::new();
    let links = planned.snapshots.price.links.iter();
    links.filter(|link| seen.insert(planned.layout.network.link_name(link.link))).collect()
}

/// The machine of each rig that needs most for what it has.
fn fullest<'a>(planned: &'a Planned<'_>) -> Vec<&'a MachineUse> {
    let rigs = 0..planned.question.fleet.rigs.len();
    let of = |rig: usize| {
        let machines = planned.snapshots.price.machines.iter();
        let own = machines.filter(|one| planned.layout.network.rig(one.machine) == rig);
        own.max_by_key(|one| one.need)
    };
    rigs.filter_map(of).collect()
}

fn rigs(planned: &Planned<'_>) -> Vec<Vec<String>> {
    let head = ["rig", "own", "others'", "sent", "two of all", "of"].map(str::to_owned);
    let row = |one: &MachineUse| {
        let mut row = vec![planned.layout.network.rig_name(one.machine).to_owned()];
        row.extend([one.own, one.others, one.sent, one.need, one.have].map(gb));
        row
    };
    std::iter::once(head.to_vec()).chain(fullest(planned).into_iter().map(row)).collect()
}

/// What the manifest must say for it; nothing where it says so already.
pub(super) fn manifest(planned: &Planned<'_>) -> String {
    let every = planned.snapshots.chosen.every();
    match planned.snapshots.chosen {
        Chosen::Asked(_) | Chosen::Default(_) => String::new(),
        Chosen::Fewest(_) | Chosen::NoRoom | Chosen::TooSlow => {
            format!("\n  checkpoint: {{memory: {{every: {every}}}}}")
        }
    }
}

pub(super) fn value(planned: &Planned<'_>) -> Value {
    let (price, chosen) = (&planned.snapshots.price, planned.snapshots.chosen);
    let (network, every) = (&planned.layout.network, chosen.every());
    let links = distinct(planned).into_iter().map(|link| {
        json!({
            "link": network.link_name(link.link), "bytes": link.bytes, "seconds": link.seconds,
            "bytes_per_s": network.rate(link.link), "training_share": link.training,
            "copies_share": (every > 0).then(|| link.share(every)),
        })
    });
    let rigs = fullest(planned).into_iter().map(|one| {
        json!({
            "rig": network.rig_name(one.machine), "own_bytes": one.own, "others_bytes": one.others,
            "sent_bytes": one.sent, "need_bytes": one.need, "have_bytes": one.have,
        })
    });
    json!({
        "every": every, "chosen": chosen.name(), "copies": planned.question.job.checkpoint.memory.copies,
        "every_min": price.every_min, "every_arriving": price.every_arriving, "write_s": price.write_s,
        "hash_s": price.hash_s, "arrive_s": price.arrive_s,
        "cost_share": (every > 0).then(|| price.cost(every)),
        "steps_lost_max": (every > 0).then(|| price.steps_lost(every)),
        "cells_lacking_copies": price.lacking,
        "links": links.collect::<Vec<_>>(), "rigs": rigs.collect::<Vec<_>>(),
    })
}
