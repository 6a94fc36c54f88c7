//! Days and money: what a number of tokens takes on the rigs that a plan uses.

use std::collections::BTreeSet;

use super::{Answer, Layout, Question};

/// What training to a number of tokens takes. Money is in the fleet's currency.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bill {
    pub days: f64,
    /// Hours of the GPUs that are used.
    pub gpu_hours: f64,
    pub kwh: f64,
    pub electricity: f64,
    pub rent: f64,
}

/// The bill for `tokens`. Cards draw their board power all the time. Training goes on while every rig is there: the
/// days are stretched by each rig's availability; what it takes to get going again is not counted.
pub fn bill(question: &Question<'_>, layout: &Layout<'_>, answer: &Answer, tokens: f64) -> Bill {
    let fleet = question.fleet;
    let hours = tokens / answer.prediction.tokens_per_s / 3600.0;
    let machines: BTreeSet<usize> =
        answer.candidate.cards.iter().map(|card| layout.machines[*card]).collect();
    let rigs: BTreeSet<usize> =
        machines.iter().map(|machine| layout.network.rig(*machine)).collect();
    let there: f64 = rigs.iter().map(|rig| fleet.rigs[*rig].availability).product();
    let mut bill = Bill { days: hours / there / 24.0, ..Bill::default() };
    for card in &answer.candidate.cards {
        let rig = &fleet.rigs[layout.rig(*card)];
        bill.gpu_hours += hours;
        bill.rent += hours * rig.rent_per_gpu_hour;
        bill.draw(rig.card().watts, hours, fleet.site(&rig.site).electricity_per_kwh);
    }
    for machine in machines {
        let rig = &fleet.rigs[layout.network.rig(machine)];
        bill.draw(rig.host_watts, hours, fleet.site(&rig.site).electricity_per_kwh);
    }
    bill
}

impl Bill {
    fn draw(&mut self, watts: f64, hours: f64, price: f64) {
        let kwh = watts * hours / 1000.0;
        self.kwh += kwh;
        self.electricity += kwh * price;
    }
}
