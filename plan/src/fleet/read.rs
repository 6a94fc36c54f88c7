//! Reads a fleet's file, and holds every value against the catalogue, the other values and bounds.

use std::collections::BTreeSet;

use super::{Fleet, KIND, MACHINES_MAX};
use crate::gpus;
use crate::manifest::complaint::{Complaint, Sources, quote};
use crate::manifest::nearest::nearest;
use crate::manifest::tree::{self, Node};
use crate::manifest::{API_VERSION, BYTES_MAX, Envelope, ManifestError, check_word, reader};

/// Parses and checks a fleet's file. `file_name` is for messages.
pub fn parse(file_name: &str, text: &str) -> Result<Fleet, ManifestError> {
    let sources = Sources::new(file_name, text);
    read(text).map_err(|complaints| sources.explain(&complaints))
}

fn read(text: &str) -> Result<Fleet, Vec<Complaint>> {
    if text.len() > BYTES_MAX {
        let what = format!("{} bytes; a fleet has at most {BYTES_MAX}", text.len());
        return Err(vec![Complaint::new(tree::At::start(0), "", what)]);
    }
    let root = tree::parse(text, 0)?;
    let envelope: Envelope<Fleet> = reader::read_elsewhere(&root, "")?;
    check_word(&root, "apiVersion", &envelope.api_version, API_VERSION)?;
    check_word(&root, "kind", &envelope.kind, KIND)?;
    let mut fleet = envelope.spec;
    // The site that rigs stand at who name none.
    if fleet.rigs.iter().any(|rig| rig.site == super::home()) {
        fleet.sites.entry(super::home()).or_default();
    }
    let complaints = check(&fleet, &root);
    if complaints.is_empty() { Ok(fleet) } else { Err(complaints) }
}

/// Everything that is wrong.
fn check(fleet: &Fleet, root: &Node) -> Vec<Complaint> {
    let mut check = Check { root, complaints: Vec::new() };
    if fleet.rigs.is_empty() {
        check.refuse("spec.rigs", "a fleet has at least one rig".to_owned(), String::new());
    }
    let mut named = BTreeSet::new();
    for (i, rig) in fleet.rigs.iter().enumerate() {
        let at = |key: &str| format!("spec.rigs[{i}].{key}");
        if !is_plain(&rig.name) {
            let what = format!("wanted letters, digits, `-` and `_`, got {}", quote(&rig.name));
            check.refuse(&at("name"), what, String::new());
        } else if !named.insert(&rig.name) {
            let what = format!("two rigs are named {}", quote(&rig.name));
            check.refuse(&at("name"), what, "several alike are one rig with `machines`".to_owned());
        }
        if let Err(near) = gpus::find(&rig.gpu) {
            let help = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are: {}", gpus::names().collect::<Vec<_>>().join(", ")),
            };
            check.refuse(&at("gpu"), format!("no such GPU: {}", quote(&rig.gpu)), help);
        }
        check.known_site(&at("site"), &rig.site, fleet);
        check.within(&at("count"), rig.count.into(), 1.0, 64.0);
        check.within(&at("machines"), rig.machines.into(), 1.0, MACHINES_MAX.into());
        check.within(&at("host_memory_gb"), rig.host_memory_gb, 1.0, 1e5);
        check.within(&at("host_memory_gb_s"), rig.host_memory_gb_s, 1.0, 1e5);
        check.within(&at("host_watts"), rig.host_watts, 0.0, 1e5);
        check.within(&at("rent_per_gpu_hour"), rig.rent_per_gpu_hour, 0.0, 1e5);
        check.within(&at("availability"), rig.availability, 0.01, 1.0);
        let measured = &rig.measured;
        for (key, value) in [
            ("bf16_tflops", measured.bf16_tflops),
            ("fp8_tflops", measured.fp8_tflops),
            ("memory_gb_s", measured.memory_gb_s),
            ("peers_gb_s", measured.peers_gb_s),
            ("free_gib", measured.free_gib),
        ] {
            let path = at(&format!("measured.{key}"));
            check.within(&path, value.unwrap_or(1.0), 1e-3, 1e5);
        }
    }
    for (name, site) in &fleet.sites {
        let at = |key: &str| format!("spec.sites.{name}.{key}");
        check.within(&at("rtt_ms"), site.rtt_ms, 0.0, 1e4);
        check.within(&at("lan_rtt_ms"), site.lan_rtt_ms, 0.0, 1e3);
        check.within(&at("electricity_per_kwh"), site.electricity_per_kwh, 0.0, 1e3);
    }
    for (i, link) in fleet.links.iter().enumerate() {
        let path = format!("spec.links[{i}].between");
        for site in &link.between {
            check.known_site(&path, site, fleet);
        }
        if link.between.len() != 2 || link.between[0] == link.between[1] {
            check.refuse(&path, "wanted the names of two sites".to_owned(), String::new());
        }
        check.within(&format!("spec.links[{i}].rtt_ms"), link.rtt_ms, 0.0, 1e4);
    }
    check.complaints
}

struct Check<'a> {
    root: &'a Node,
    complaints: Vec<Complaint>,
}

impl Check<'_> {
    fn refuse(&mut self, path: &str, what: String, help: String) {
        let at = self.root.locate(path).0;
        self.complaints.push(Complaint::new(at, path, what).help(help));
    }

    fn within(&mut self, path: &str, value: f64, low: f64, high: f64) {
        // NaN meets neither.
        if !(value >= low && value <= high) {
            let what = format!("wanted a number from {low} to {high}, got {value}");
            self.refuse(path, what, String::new());
        }
    }

    fn known_site(&mut self, path: &str, site: &str, fleet: &Fleet) {
        if fleet.sites.contains_key(site) {
            return;
        }
        let names = fleet.sites.keys().map(String::as_str);
        let help = match nearest(site, names.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("spec.sites has: {}", names.collect::<Vec<_>>().join(", ")),
        };
        self.refuse(path, format!("no such site: {}", quote(site)), help);
    }
}

pub(super) fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=64).contains(&name.len()) && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: shoal/v1\nkind: Fleet\nspec:\n";

    fn error(spec: &str) -> String {
        parse("fleet.yaml", &format!("{HEAD}{spec}")).expect_err(spec).to_string()
    }

    #[test]
    fn a_rig_needs_a_name_and_a_gpu_and_has_a_home() {
        let fleet = parse("f", &format!("{HEAD}  rigs: [{{name: a, gpu: RTX4090}}]\n")).unwrap();
        assert_eq!(fleet, Fleet::of(vec![super::super::Rig::new("a", "RTX4090", 1)]));
        assert_eq!(fleet.gpus(), 1);
        assert!((fleet.rigs[0].card().memory_gib - 24.0).abs() < 1e-9);
    }

    #[test]
    fn sites_and_links_are_looked_up_both_ways() {
        let spec = "  sites:\n    a: {uplink: 1Gbit/s, rtt_ms: 10}\n    b: {uplink: 200Mbit/s}\n    c: {}\n  \
                    rigs: [{name: x, gpu: H100, site: a}]\n  \
                    links: [{between: [c, a], rate: 10Gbit/s, rtt_ms: 2}]\n";
        let fleet = parse("f", &format!("{HEAD}{spec}")).unwrap();
        assert_eq!(fleet.between("a", "b"), (2.5e7, 0.015));
        assert_eq!(fleet.between("a", "c"), (1.25e9, 0.001));
        assert_eq!(fleet.between("c", "a"), (1.25e9, 0.001));
        assert!(!fleet.sites.contains_key("home"), "nobody lives there");
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        let unknown = error("  rigs:\n    - name: a\n      gpu: RTX4909\n");
        let wanted = "fleet.yaml:6:12: spec.rigs[0].gpu: no such GPU: `RTX4909`\n  |\n6 |       \
                      gpu: RTX4909\n  |            ^^^^^^^\n  = help: did you mean `RTX4090`?";
        assert_eq!(unknown, wanted);
        for (spec, wanted) in [
            ("  rigs: []\n", "a fleet has at least one rig"),
            ("  rigs: [{name: a}]\n", "spec.rigs[0].gpu: this key is missing"),
            ("  rigs: [{name: a, gpu: H100, cuont: 2}]\n", "did you mean `spec.rigs[0].count`?"),
            ("  rigs: [{name: a, gpu: H100, nic: fast}]\n", "wanted a rate such as 10Gbit/s"),
            ("  rigs: [{name: a, gpu: H100, count: 0}]\n", "wanted a number from 1 to 64, got 0"),
            ("  rigs: [{name: a, gpu: H100, site: lab}]\n", "no such site: `lab`"),
            ("  rigs: [{name: a b, gpu: H100}]\n", "wanted letters, digits, `-` and `_`"),
            (
                "  rigs: [{name: a, gpu: H100}, {name: a, gpu: H100}]\n",
                "spec.rigs[1].name: two rigs are named `a`",
            ),
            (
                "  rigs: [{name: a, gpu: H100, measured: {free_gib: .nan}}]\n",
                "spec.rigs[0].measured.free_gib: wanted a number",
            ),
            (
                "  rigs: [{name: a, gpu: H100}]\n  links: [{between: [home], rate: 1Gbit/s, rtt_ms: 1}]\n",
                "wanted the names of two sites",
            ),
        ] {
            let got = error(spec);
            assert!(got.contains(wanted), "{spec}: {got}");
        }
        let kind = parse("f", "apiVersion: shoal/v1\nkind: Training\nspec: {rigs: []}\n");
        assert!(kind.unwrap_err().to_string().contains("wanted Fleet, got `Training`"));
        let strange = error("  rigs: [{name: a, gpu: H100, batch: 2}]\n");
        assert!(!strange.contains("spec.training"), "{strange}");
    }
}
