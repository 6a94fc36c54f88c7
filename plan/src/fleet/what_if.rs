//! Changes to a fleet on trial: `rig+=4xRTX4090`, `rig-=attic`, `link.home=1Gbit/s`.

use super::read::is_plain;
use super::{Fleet, Rate, Rig, Site, home};
use crate::gpus;
use crate::manifest::nearest::nearest;

/// A change that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--what-if {change}: {what}")]
pub struct WhatIfError {
    pub change: String,
    pub what: String,
}

const FORMS: &str = "wanted rig+=NxGPU[@SITE], rig-=NAME, or link.SITE=RATE";

/// The fleet with one change.
///
/// - `rig+=4xRTX4090@lab`: a machine of four such cards, at `home` unless it says where.
/// - `rig-=attic`: without that rig.
/// - `link.home=1Gbit/s`: another way out of a site, or between the rigs of the only site.
pub fn what_if(fleet: &Fleet, change: &str) -> Result<Fleet, WhatIfError> {
    let wrong = |what: String| WhatIfError { change: change.to_owned(), what };
    let mut changed = fleet.clone();
    if let Some(rig) = change.strip_prefix("rig+=") {
        let (cards, site) = rig.split_once('@').unwrap_or((rig, ""));
        let (count, gpu) = cards.split_once('x').ok_or_else(|| wrong(FORMS.to_owned()))?;
        let count = count.parse::<u32>().ok().filter(|count| (1..=64).contains(count));
        let count = count.ok_or_else(|| wrong("wanted 1 to 64 cards in a machine".to_owned()))?;
        let (gpu, _) = gpus::find(gpu).map_err(|near| {
            let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            wrong(format!("no such GPU: {gpu}{near}"))
        })?;
        let names = (1..).map(|n| format!("new-{n}"));
        let name = names.into_iter().find(|name| fleet.rigs.iter().all(|rig| rig.name != *name));
        let mut rig = Rig::new(&name.unwrap_or_default(), gpu, count);
        let alike = fleet.rigs.iter().find(|known| site.is_empty() || known.site == site);
        // It stands beside the others, on the network they have.
        if let Some(alike) = alike {
            (rig.site, rig.nic, rig.rdma) = (alike.site.clone(), alike.nic, alike.rdma);
            rig.host_memory_gb_s = alike.host_memory_gb_s;
        }
        if !site.is_empty() {
            site_of(fleet, site).map_err(wrong)?;
            site.clone_into(&mut rig.site);
        }
        changed.sites.entry(home()).or_default();
        changed.rigs.push(rig);
        return Ok(changed);
    }
    if let Some(name) = change.strip_prefix("rig-=") {
        changed.rigs.retain(|rig| rig.name != name);
        if changed.rigs.len() == fleet.rigs.len() {
            let names = fleet.rigs.iter().map(|rig| rig.name.as_str());
            let near = nearest(name, names).map(|near| format!("; did you mean {near}?"));
            return Err(wrong(format!("no such rig: {name}{}", near.unwrap_or_default())));
        }
        if changed.rigs.is_empty() {
            return Err(wrong("no rig would be left".to_owned()));
        }
        return Ok(changed);
    }
    let link = change.strip_prefix("link.").and_then(|rest| rest.split_once('='));
    let (site, rate) = link.ok_or_else(|| wrong(FORMS.to_owned()))?;
    let rate: Rate = rate.parse().map_err(wrong)?;
    site_of(fleet, site).map_err(wrong)?;
    if fleet.rigs.iter().all(|rig| rig.site == site) {
        changed.rigs.iter_mut().for_each(|rig| rig.nic = rate);
    }
    changed.sites.entry(site.to_owned()).and_modify(|site| site.uplink = rate);
    Ok(changed)
}

fn site_of<'a>(fleet: &'a Fleet, name: &str) -> Result<&'a Site, String> {
    fleet.sites.get(name).filter(|_| is_plain(name)).ok_or_else(|| {
        let near = nearest(name, fleet.sites.keys().map(String::as_str));
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        format!("no such site: {name}{near}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rigs_come_and_go_and_links_change() {
        let fleet = Fleet::of(vec![Rig::new("a", "RTX3090", 2)]);
        let more = what_if(&fleet, "rig+=4x4090").unwrap();
        assert_eq!((more.rigs[1].name.as_str(), more.rigs[1].gpu.as_str()), ("new-1", "RTX4090"));
        assert_eq!(more.gpus(), 6);
        assert_eq!(what_if(&more, "rig-=new-1").unwrap(), fleet);
        let fast = what_if(&fleet, "link.home=10Gbit/s").unwrap();
        assert!((fast.rigs[0].nic.bytes_per_s() - 1.25e9).abs() < 1.0);
        for (change, wanted) in [
            ("rig+=4090", "wanted rig+=NxGPU"),
            ("rig+=4xRTX4909", "did you mean RTX4090?"),
            ("rig+=4xRTX4090@hme", "no such site: hme; did you mean home?"),
            ("rig+=0xRTX4090", "wanted 1 to 64 cards"),
            ("rig-=b", "no such rig: b"),
            ("rig-=a", "no rig would be left"),
            ("link.home=fast", "wanted a rate"),
            ("faster", "wanted rig+="),
        ] {
            let error = what_if(&fleet, change).expect_err(change).to_string();
            assert!(error.starts_with("--what-if ") && error.contains(wanted), "{error}");
        }
    }
}
