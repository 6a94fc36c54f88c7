//! Which of this machine's GPUs each worker computes on, and whether its cells fit there, decided before anything is
//! started.

mod fit;

use std::fmt::{self, Write};

use shoal_plan::device::{DeviceChoice, deal};
use shoal_plan::job::{Job, Precision, Workers};
use shoal_plan::pace;
use shoal_plan::plan::{Plan, WorkerId};
use shoal_worker::devices::{Card, DeviceError, Share};

use self::fit::{Load, Needs};
use crate::exit::Stopped;
use crate::manifest::Loaded;
use crate::progress::short;

/// Where the manifest leaves it open, so much of a GPU is taken: the rest is for the desktop, the driver and
/// whatever else has a window.
const USUAL_PERCENT: usize = 90;

/// The GPUs of this machine that its owner lends: each is one that can train, or why it cannot.
pub(crate) fn lent_cards(
    lent: &DeviceChoice,
) -> Result<Vec<Result<Card, DeviceError>>, DeviceError> {
    match lent {
        DeviceChoice::Cpu => Ok(Vec::new()),
        DeviceChoice::Auto => cards(&[]),
        DeviceChoice::Cuda(gpus) => cards(gpus),
    }
}

/// These GPUs; none named: all.
fn cards(gpus: &[u32]) -> Result<Vec<Result<Card, DeviceError>>, DeviceError> {
    if gpus.is_empty() {
        return Card::all();
    }
    Ok(gpus.iter().map(|gpu| Card::look(*gpu as usize)).collect())
}

/// What each worker gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Devices {
    /// By worker; empty: the CPU.
    shares: Vec<Vec<Share>>,
    cards: Vec<Card>,
    /// For people: the names of GPUs, or why there is none.
    told: String,
}

impl Devices {
    /// Looks at the machine's GPUs, if the job may use them, and deals them out to workers whose cells fit there. Who has
    /// more of them gets more cells.
    pub(crate) fn choose(loaded: &mut Loaded) -> Result<Self, Stopped> {
        let mut devices = Self::dealt(loaded)?;
        let job = loaded.job().clone();
        pace::by_devices(&job, &mut loaded.plan, &fit::devices_of(&devices.shares));
        let help = "lower spec.training.microbatch or sequence, set spec.training.recompute: all, take more stages, \
                    expert shards or GPUs, raise spec.workers.device_mb, or train with `device: cpu`";
        devices
            .fit(loaded.job(), &loaded.plan)
            .map_err(|problem| loaded.error_at("spec.workers.device", &problem, help))?;
        Ok(devices)
    }

    fn dealt(loaded: &Loaded) -> Result<Self, Stopped> {
        let job = loaded.job();
        match &job.workers.device {
            DeviceChoice::Cpu => Ok(Self::cpu("spec.workers.device")),
            DeviceChoice::Auto => Ok(Self::automatic(job, Card::all)),
            DeviceChoice::Cuda(wanted) => Self::wanted(job, wanted).map_err(|what| {
                let help =
                    "`device: cpu` trains without a GPU; nvidia-smi shows what the driver sees";
                loaded.error_at("spec.workers.device", &what, help)
            }),
        }
    }

    /// These GPUs, or all; each of them must do.
    fn wanted(job: &Job, wanted: &[u32]) -> Result<Self, String> {
        let mut usable = Vec::new();
        for card in cards(wanted).map_err(|error| error.to_string())? {
            usable.push(card.map_err(|error| error.to_string())?);
        }
        if usable.is_empty() {
            return Err("this machine has no GPU".to_owned());
        }
        Ok(Self::over(&job.workers, &usable))
    }

    /// What a rig's one worker gets: all that it has, its owner lends (`lent`), and the job may use.
    ///
    /// # Errors
    /// The job wants a GPU that is not here or not lent, or there is none of those that are lent.
    pub(crate) fn of_a_rig(job: &Job, lent: &DeviceChoice) -> Result<Self, String> {
        let mut job = job.clone();
        job.workers.local = 1;
        let refused = || {
            let wanted = &job.workers.device;
            format!(
                "spec.workers.device is {wanted}, and this rig lends {lent} (`shoal worker --devices`)"
            )
        };
        match (&job.workers.device, lent) {
            (DeviceChoice::Cpu, _) => Ok(Self::cpu("spec.workers.device")),
            (DeviceChoice::Auto, DeviceChoice::Cpu) => Ok(Self::cpu("--devices of this rig")),
            (DeviceChoice::Cuda(_), DeviceChoice::Cpu) => Err(refused()),
            (DeviceChoice::Auto, DeviceChoice::Auto | DeviceChoice::Cuda(_)) => {
                Ok(Self::automatic(&job, || lent_cards(lent)))
            }
            (DeviceChoice::Cuda(wanted), DeviceChoice::Cuda(lent)) if !lent.is_empty() => {
                if wanted.iter().any(|gpu| !lent.contains(gpu)) {
                    return Err(refused());
                }
                Self::wanted(&job, if wanted.is_empty() { lent } else { wanted })
            }
            (DeviceChoice::Cuda(wanted), DeviceChoice::Auto | DeviceChoice::Cuda(_)) => {
                Self::wanted(&job, wanted)
            }
        }
    }

    fn automatic<E: fmt::Display>(
        job: &Job,
        look: impl FnOnce() -> Result<Vec<Result<Card, E>>, E>,
    ) -> Self {
        if job.training.precision == Precision::F32 {
            return Self::cpu("precision f32 is the CPU's alone");
        }
        if job.training.precision == Precision::Fp8 && !job.training.scales.are_alike() {
            return Self::cpu("FP8 scales of two formats are the CPU's alone");
        }
        let cards = match look() {
            Ok(cards) if cards.is_empty() => return Self::cpu("this machine has no GPU"),
            Ok(cards) => cards,
            Err(error) => return Self::cpu(&error.to_string()),
        };
        let (usable, refused): (Vec<_>, Vec<_>) = cards.into_iter().partition(Result::is_ok);
        let usable: Vec<Card> = usable.into_iter().flatten().collect();
        let refused: Vec<String> =
            refused.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
        if usable.is_empty() {
            return Self::cpu(&refused.join("; "));
        }
        let mut devices = Self::over(&job.workers, &usable);
        for error in refused {
            let _ = write!(devices.told, "; left out: {error}");
        }
        devices
    }

    pub(crate) fn cpu(why: &str) -> Self {
        let (shares, cards) = (Vec::new(), Vec::new());
        Self { shares, cards, told: format!("device: CPU ({why})") }
    }

    /// Whether workers compute on GPUs.
    pub(crate) fn are_gpus(&self) -> bool {
        !self.shares.is_empty()
    }

    /// Adds what the cells need to what is told, or says why they do not fit.
    fn fit(&mut self, job: &Job, plan: &Plan) -> Result<(), String> {
        if !self.are_gpus() {
            return Ok(());
        }
        let needs = Needs::of(job, plan)?;
        let loads = needs.loads(plan, &self.shares);
        let mb = |bytes: usize| format!("{}B", short(bytes as f64));
        if let Some(load) = loads.iter().find(|load| load.share.bytes < load.bytes) {
            return Err(format!(
                "out of memory on the GPU: the cells of {} need {} of cuda:{}, of which they may have {}: {}",
                load.worker,
                mb(load.bytes),
                load.share.ordinal,
                mb(load.share.bytes),
                needs.told(load)
            ));
        }
        for card in &self.cards {
            let here: Vec<&Load> =
                loads.iter().filter(|load| load.share.ordinal == card.ordinal).collect();
            let bytes = here.iter().map(|load| load.bytes).sum();
            if card.free_bytes < bytes {
                let told: Vec<String> = here.iter().map(|load| needs.told(load)).collect();
                return Err(format!(
                    "out of memory on the GPU: the cells need {} of cuda:{}, of which {} are free, other programs \
                     have the rest: {}",
                    mb(bytes),
                    card.ordinal,
                    mb(card.free_bytes),
                    told.join("; ")
                ));
            }
        }
        let each: Vec<String> = loads
            .iter()
            .map(|load| {
                format!("{} {} on cuda:{}", load.worker, mb(load.bytes), load.share.ordinal)
            })
            .collect();
        let _ = write!(self.told, "\n  memory of cells: {}", each.join(", "));
        if let Some((left, load)) = needs.after_losses(job, &self.shares) {
            let (need, may) = (mb(load.bytes), mb(load.share.bytes));
            let _ = write!(
                self.told,
                "\n  with {left} left the cells of {} would need {need} of cuda:{}, of which they may have {may}: the run \
                 would end there; raise workers.min above {left}, and it waits for workers instead",
                load.worker, load.share.ordinal
            );
        }
        Ok(())
    }

    fn over(workers: &Workers, cards: &[Card]) -> Self {
        let dealt = deal(cards.len(), workers.local as usize);
        let sharers =
            |card: usize| dealt.iter().filter(|cards| cards.contains(&card)).count().max(1);
        let share = |card: &usize| {
            let usual = cards[*card].memory_bytes / 100 * USUAL_PERCENT;
            let asked = usize::try_from(workers.device_mb).unwrap_or(usize::MAX);
            let bytes = if asked == 0 { usual } else { asked.saturating_mul(1_000_000) };
            Share { ordinal: cards[*card].ordinal, bytes: bytes / sharers(*card) }
        };
        let shares: Vec<Vec<Share>> =
            dealt.iter().map(|cards| cards.iter().map(share).collect()).collect();
        let told = cards.iter().enumerate().map(|(at, card)| {
            let with = (0..).zip(&dealt).filter(|(_, cards)| cards.contains(&at));
            let with: Vec<String> = with.map(|(id, _)| WorkerId(id).to_string()).collect();
            let each = short(share(&at).bytes as f64);
            format!("cuda:{} {}, {each}B each: {}", card.ordinal, card.name, with.join(", "))
        });
        let told: Vec<String> = told.collect();
        let told = format!("device: {}", told.join("; "));
        Self { shares, cards: cards.to_vec(), told }
    }

    /// Of one worker.
    pub(crate) fn of(&self, worker: WorkerId) -> &[Share] {
        self.shares.get(worker.0 as usize).map_or(&[], Vec::as_slice)
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told)
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::numerics::ScaleFormat;

    use super::*;

    fn card(ordinal: usize) -> Card {
        let (memory_bytes, free_bytes) = (24_000_000_000, 23_000_000_000);
        Card { ordinal, name: format!("RTX {ordinal}"), memory_bytes, free_bytes }
    }

    fn job(local: u32, device_mb: u64) -> Job {
        let mut job = Job::example();
        job.training.precision = Precision::Fp8;
        job.workers.local = local;
        job.workers.device_mb = device_mb;
        job
    }

    #[test]
    fn two_workers_share_a_card_and_its_memory() {
        let found = Devices::automatic(&job(2, 0), || Ok::<_, String>(vec![Ok(card(0))]));
        let share = Share { ordinal: 0, bytes: 10_800_000_000 };
        assert_eq!((found.of(WorkerId(0)), found.of(WorkerId(1))), (&[share][..], &[share][..]));
        assert_eq!(found.to_string(), "device: cuda:0 RTX 0, 10.8GB each: worker-0, worker-1");
    }

    #[test]
    fn one_worker_has_all_cards_and_what_the_manifest_says_of_their_memory() {
        let cards =
            || Ok::<_, String>(vec![Ok(card(0)), Err("GPU 1 is too old".into()), Ok(card(2))]);
        let found = Devices::automatic(&job(1, 6000), cards);
        let share = |ordinal| Share { ordinal, bytes: 6_000_000_000 };
        assert_eq!(found.of(WorkerId(0)), [share(0), share(2)]);
        let text = "device: cuda:0 RTX 0, 6.0GB each: worker-0; cuda:2 RTX 2, 6.0GB each: worker-0; \
                    left out: GPU 1 is too old";
        assert_eq!(found.to_string(), text);
    }

    #[test]
    fn without_a_card_that_can_train_the_job_it_is_the_cpu_and_says_why() {
        let none = || Ok::<_, String>(vec![]);
        let old = || Ok::<_, String>(vec![Err("GPU 0 is too old".into())]);
        let broken = || Err::<Vec<Result<Card, String>>, _>("no driver".to_owned());
        let fp8 = job(1, 0);
        for (found, why) in [
            (Devices::automatic(&fp8, none), "this machine has no GPU"),
            (Devices::automatic(&fp8, old), "GPU 0 is too old"),
            (Devices::automatic(&fp8, broken), "no driver"),
        ] {
            assert_eq!(found, Devices::cpu(why));
        }
        let mut mixed = fp8.clone();
        mixed.training.scales.gradients = ScaleFormat::Fp32;
        let found = Devices::automatic(&mixed, || Ok::<_, String>(vec![Ok(card(0))]));
        assert_eq!(found, Devices::cpu("FP8 scales of two formats are the CPU's alone"));
        let mut f32 = fp8;
        f32.training.precision = Precision::F32;
        let found = Devices::automatic(&f32, || Ok::<_, String>(vec![Ok(card(0))]));
        assert_eq!(found.to_string(), "device: CPU (precision f32 is the CPU's alone)");
    }

    #[test]
    fn a_job_gets_of_a_rig_no_more_than_its_owner_lends() {
        let of = |wanted: &str, lent: &str| {
            let mut job = job(1, 0);
            job.workers.device = wanted.parse().unwrap();
            Devices::of_a_rig(&job, &lent.parse().unwrap()).map(|devices| devices.to_string())
        };
        let refused = |wanted: &str, lent: &str| {
            let text = format!(
                "spec.workers.device is {wanted}, and this rig lends {lent} (`shoal worker --devices`)"
            );
            assert_eq!(of(wanted, lent), Err(text));
        };
        for lent in ["auto", "cpu", "cuda", "cuda:7"] {
            assert_eq!(of("cpu", lent).unwrap(), "device: CPU (spec.workers.device)");
        }
        assert_eq!(of("auto", "cpu").unwrap(), "device: CPU (--devices of this rig)");
        refused("cuda", "cpu");
        refused("cuda:0", "cpu");
        refused("cuda:0,1", "cuda:1");
        // What is lent is asked for, though this machine may not have it.
        assert!(!of("cuda:63", "cuda:63").is_ok_and(|told| told.contains("CPU")));
    }
}
