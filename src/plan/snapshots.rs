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
            "  a snapshot: {} to write, {} until the last copy is there; {:.2} % of the time",
            seconds(price.write_s),
            seconds(price.arrive_s),
            100.0 * price.cost(every),
        );
        let _ = match price.alone {
            0 => writeln!(text, "  a lost rig costs at most {} steps", price.steps_lost(every)),
            n => writeln!(
                text,
                "  on one rig alone: {n} of the cells; if it is lost, the steps since the last checkpoint are"
            ),
        };
    }
    if price.lacking > 0 {
        let n = price.lacking;
        let _ = writeln!(
            text,
            "  with fewer copies than asked for, as there are too few rigs: {n} of the cells"
        );
    }
    if price.links.is_empty() && price.alone == 0 {
        text += "  every cell has a twin on another rig: nothing is sent\n";
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
        "steps_lost_max": (every > 0 && price.alone == 0).then(|| price.steps_lost(every)),
        "cells_lacking_copies": price.lacking, "cells_on_one_rig": price.alone,
        "links": links.collect::<Vec<_>>(), "rigs": rigs.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use shoal_plan::cost::Software;
    use shoal_plan::fleet;
    use shoal_plan::job::Job;
    use shoal_plan::planner::snapshots::{Choice, choose, price};
    use shoal_plan::planner::{self, Layout, Question};

    use super::*;
    use crate::plan::Snapshots;

    const FLEET: &str = "apiVersion: shoal/v1\nkind: Fleet\nspec:\n  rigs:\n    \
                         - {name: attic, gpu: RTX3060}\n    - {name: desk, gpu: RTX3060, nic: 300Mbit/s}\n";

    /// The section of a job of which the manifest says nothing about snapshots.
    fn shown(change: impl Fn(&mut Job)) -> (String, Value, String) {
        let mut job = Job::example();
        // Too large for one card.
        (job.model.hidden_size, job.model.vocab_size) = (2048, 64_000);
        (job.model.num_hidden_layers, job.model.n_routed_experts) = (24, 32);
        (job.training.batch, job.training.steps) = (64, 5000);
        change(&mut job);
        let fleet = fleet::parse("fleet.yaml", FLEET).unwrap();
        let question = Question { job: &job, fleet: &fleet, software: Software::SHOAL };
        let answer = planner::plan(&question).unwrap();
        let layout = Layout::of(&fleet);
        let price = price(&question, &layout, &answer.candidate, &answer.prediction);
        let (memory, steps) = (job.checkpoint.memory, job.training.steps);
        let choice = Choice { memory, every_given: false, copies_given: false, steps };
        let chosen = choose(&price, choice, &layout.network).unwrap();
        let snapshots = Snapshots { price, chosen };
        let planned =
            Planned { question, layout, answer, tokens: 1e9, trials: Vec::new(), snapshots };
        (text(&planned), value(&planned), manifest(&planned))
    }

    #[test]
    fn people_and_programs_read_the_same_figures() {
        let (text, value, manifest) = shown(|_| {});
        let number = |value: &Value| value.as_f64().unwrap();
        let bytes = |value: &Value| gb(value.as_u64().unwrap());
        let every = &value["every"];
        assert!(text.starts_with(&format!("Snapshots in memory: every {every} steps")), "{text}");
        for wanted in [
            format!("{} to write", seconds(number(&value["write_s"]))),
            format!("{} until the last copy", seconds(number(&value["arrive_s"]))),
            format!("{:.2} % of the time", 100.0 * number(&value["cost_share"])),
            format!("a lost rig costs at most {} steps", value["steps_lost_max"]),
        ] {
            assert!(text.contains(&wanted), "{wanted}: {text}");
        }
        let row = |words: Vec<String>| {
            let plain =
                text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            assert!(plain.into_iter().any(|line| line == words.join(" ")), "{words:?}: {text}");
        };
        let links = value["links"].as_array().unwrap();
        assert!(!links.is_empty());
        for link in links.iter().take(LINKS_MAX) {
            row(vec![
                link["link"].as_str().unwrap().to_owned(),
                bytes(&link["bytes"]),
                seconds(number(&link["seconds"])),
                format!("{:.1} % of it", 100.0 * number(&link["training_share"])),
                format!("{:.1} % of its bytes", 100.0 * number(&link["copies_share"])),
            ]);
        }
        let rigs = value["rigs"].as_array().unwrap();
        assert_eq!(rigs.len(), 2);
        for rig in rigs {
            let kinds = ["own_bytes", "others_bytes", "sent_bytes", "need_bytes", "have_bytes"];
            let name = rig["rig"].as_str().unwrap().to_owned();
            row([vec![name], kinds.map(|kind| bytes(&rig[kind])).to_vec()].concat());
        }
        let says = if value["chosen"] == "default" {
            String::new()
        } else {
            format!("\n  checkpoint: {{memory: {{every: {every}}}}}")
        };
        assert_eq!(manifest, says);
    }

    #[test]
    fn what_is_off_is_said_in_one_line() {
        let (text, value, manifest) = shown(|job| job.checkpoint.memory.every = 0);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("none (every: 0)") && manifest.is_empty());
        assert!(value["every"] == 0 && value["cost_share"].is_null());
        // A run that ends before the copies of a snapshot are there takes none.
        let (text, value, manifest) = shown(|job| job.training.steps = 1);
        assert_eq!(value["chosen"], "too_slow", "{text}");
        assert!(text.contains("the run ends before"), "{text}");
        assert!(manifest.contains("every: 0"), "{manifest}");
        // Nobody is told that a lost rig is made good where its state is nowhere else.
        let (text, value, _) = shown(|job| job.checkpoint.memory.copies = 0);
        assert!(text.contains("on one rig alone: 2 of the cells"), "{text}");
        assert!(value["steps_lost_max"].is_null() && value["links"] == json!([]), "{value}");
    }
}
