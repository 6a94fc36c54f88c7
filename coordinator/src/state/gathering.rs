//! Which files of checkpoints a coordinator that gathers them takes, and which it gives: decided from what it
//! knows, and never from what it is told. Nothing changes by it: what counts is the part that follows.

use shoal_plan::checkpoint::bytes_max;
use shoal_plan::job::Gather;
use shoal_plan::plan::{Generation, RunId, WorkerId};
use shoal_proto::{Deposit, Withdrawal};

use super::{PartError, Phase, State};

/// Why a file is neither taken nor given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It may be, in a moment: ask again.
    NotNow(String),
    Never(String),
}

impl State {
    /// Whether this file may come now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_deposit(&self, deposit: &Deposit) -> Result<(), Denied> {
        let Deposit { run, worker, generation, standing, cell, file } = deposit;
        self.of_this_plan(run, *worker, *generation)?;
        if !self.phase.trains() {
            // Of the hosts of this plan, until the next one is made.
            return Err(Denied::NotNow(format!("no files are taken while {:?}", self.phase)));
        }
        self.part_fits(*worker, *standing, *cell).map_err(Denied::Never)?;
        let step = standing.step;
        self.parts.fits(*standing, *cell).map_err(|error| {
            Denied::Never(match error {
                PartError::Late => {
                    format!("{cell}'s part of the checkpoint of step {step} is over")
                }
                PartError::Wrong(why) => why,
            })
        })?;
        let name = &file.name;
        let bounds = bytes_max(&self.settings.job, self.plan(), *cell);
        let Some(most) = bounds.get(name) else {
            return Err(Denied::Never(format!("{name} is no file that {cell} writes")));
        };
        if file.bytes == 0 || file.bytes > *most {
            let got = file.bytes;
            return Err(Denied::Never(format!("{name} has {got} bytes, want 1 to {most}")));
        }
        // Its word that the step is done goes another way, and may be slower.
        if self.members.get(worker).is_none_or(|member| member.done < step) {
            return Err(Denied::NotNow(format!("{worker} has not done step {step} yet")));
        }
        Ok(())
    }

    /// Whether a file of this checkpoint may be read now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_withdraw(&self, withdrawal: &Withdrawal) -> Result<(), Denied> {
        let Withdrawal { run, worker, generation, step, .. } = withdrawal;
        self.of_this_plan(run, *worker, *generation)?;
        let from = self.assignment.as_ref().and_then(|assignment| assignment.resume_from);
        if from == Some(*step) {
            return Ok(());
        }
        let from = from.map_or("no checkpoint".to_owned(), |from| format!("that of step {from}"));
        let why = format!("the checkpoint of step {step}: this plan starts from {from}");
        Err(Denied::Never(why))
    }

    /// Whoever asks hosts cells of the plan in force, in a run whose files go through here.
    fn of_this_plan(
        &self,
        run: &RunId,
        worker: WorkerId,
        generation: Generation,
    ) -> Result<(), Denied> {
        let never = |why: String| Err(Denied::Never(why));
        if self.settings.job.checkpoint.gather != Gather::Coordinator {
            return never(
                "spec.checkpoint.gather is disk: files do not go through here".to_owned(),
            );
        }
        if *run != self.settings.run {
            return never(format!("run {} is another than run {}", run.0, self.settings.run.0));
        }
        if self.phase == Phase::Ended {
            return never("the run has ended".to_owned());
        }
        match &self.plan {
            Some(plan) if plan.generation == generation => {
                if plan.hosts.contains(&worker) {
                    return Ok(());
                }
                never(format!("{worker} hosts nothing in {generation}"))
            }
            Some(plan) => never(format!("of {generation}, now is {}", plan.generation)),
            None => never(format!("of {generation}, before any plan")),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_plan::checkpoint::CheckpointFile;
    use shoal_plan::grid::{CellId, Grid};
    use shoal_proto::FromWorker;

    use super::super::Event;
    use super::super::fixtures::{
        G1, LAST_STEP, at, connection, hello, part, part_failed, settings,
    };
    use super::super::tests::{Run, written};
    use super::*;
    use crate::settings::Settings;

    const G2: Generation = Generation(2);

    fn gathering() -> Settings {
        let mut settings = settings();
        settings.job.checkpoint.gather = Gather::Coordinator;
        settings
    }

    /// Worker 1's, of its own cell.
    fn deposit(step: u64) -> Deposit {
        let name = "master-cell-1.safetensors".to_owned();
        Deposit {
            run: RunId("run".into()),
            worker: WorkerId(1),
            generation: G1,
            standing: at(step),
            cell: CellId(1),
            file: CheckpointFile { name, bytes: 100, blake3: "00".repeat(32) },
        }
    }

    fn with(change: impl FnOnce(&mut Deposit)) -> Deposit {
        let mut deposit = deposit(2);
        change(&mut deposit);
        deposit
    }

    #[track_caller]
    fn never(run: &Run, deposit: &Deposit, want: &str) {
        match run.state.may_deposit(deposit) {
            Err(Denied::Never(why)) => assert!(why.contains(want), "{why}, want {want}"),
            other => panic!("{other:?}, want {want}"),
        }
    }

    #[track_caller]
    fn not_now(run: &Run, deposit: &Deposit, want: &str) {
        match run.state.may_deposit(deposit) {
            Err(Denied::NotNow(why)) => assert!(why.contains(want), "{why}, want {want}"),
            other => panic!("{other:?}, want {want}"),
        }
    }

    #[test]
    fn a_host_leaves_the_files_of_its_own_cells_of_a_step_it_has_done() {
        let run = Run::two_steps_by(gathering());
        assert_eq!(run.state.may_deposit(&deposit(2)), Ok(()));
        not_now(&run, &deposit(3), "worker-1 has not done step 3 yet");
        never(&run, &deposit(LAST_STEP + 1), "a checkpoint of step 5: want 4 or less");
        for (changed, want) in [
            (with(|it| it.run = RunId("other".into())), "run other is another than run run"),
            (with(|it| it.generation = G2), "of generation 2, now is generation 1"),
            (with(|it| it.worker = WorkerId(7)), "worker-7 hosts nothing in generation 1"),
            (with(|it| it.cell = CellId(0)), "cell-0, which it does not host"),
            (with(|it| it.cell = CellId(99)), "cell-99, which it does not host"),
            (with(|it| it.file.name = "master-cell-0.safetensors".into()), "no file that cell-1"),
            (with(|it| it.file.name = "config.json".into()), "no file that cell-1 writes"),
            (with(|it| it.file.name = "ema-cell-1.safetensors".into()), "no file that cell-1"),
            (with(|it| it.file.bytes = 0), "has 0 bytes, want 1 to "),
            (with(|it| it.file.bytes = 1 << 40), "has 1099511627776 bytes, want 1 to "),
        ] {
            never(&run, &changed, want);
        }
        let run = Run::two_steps_by(settings());
        never(&run, &deposit(2), "spec.checkpoint.gather is disk");
    }

    #[test]
    fn what_is_over_is_over() {
        let mut run = Run::two_steps_by(gathering());
        run.say(1, part(1, 2));
        never(&run, &deposit(2), "cell-1's part of the checkpoint of step 2 is over");
        run.say(0, part(0, 2));
        never(&run, &deposit(2), "is over");
        run.apply(written(2));
        never(&run, &deposit(2), "is over");
        let mut run = Run::two_steps_by(gathering());
        run.say(0, part(0, 2));
        never(&run, &with(|it| it.standing.skips = 1), "cell-1 stands at");
        run.say(1, part_failed(1, 2));
        never(&run, &deposit(2), "is over");
        run.apply(Event::AbortRequested { reason: "enough".into() });
        never(&run, &deposit(2), "the run has ended");
    }

    #[test]
    fn while_another_plan_is_made_the_hosts_of_this_one_wait() {
        let mut run = Run::new(gathering());
        never(&run, &deposit(2), "of generation 1, before any plan");
        run.say(0, hello(0));
        run.say(1, hello(1));
        not_now(&run, &deposit(2), "no files are taken while Preparing");
    }

    #[test]
    fn cells_that_others_write_for_leave_nothing() {
        let mut settings = gathering();
        settings.job.grid = Grid { stages: 1, expert_shards: 1, replicas: 2 };
        let run = Run::two_steps_by(settings);
        never(&run, &deposit(2), "cell-1 writes no checkpoints in this plan");
    }

    #[test]
    fn hosts_read_the_checkpoint_that_their_plan_starts_from_and_no_other() {
        let mut settings = gathering();
        settings.resume_from = Some(at(2));
        let mut run = Run::new(settings);
        let (run_id, name) = (RunId("run".into()), "manifest.json".to_owned());
        let ask = |worker, generation, step| Withdrawal {
            run: run_id.clone(),
            worker: WorkerId(worker),
            generation,
            step,
            name: name.clone(),
        };
        assert!(run.state.may_withdraw(&ask(0, G1, 2)).is_err(), "nobody has joined");
        run.say(0, hello(0));
        run.say(1, hello(1));
        assert_eq!(run.state.may_withdraw(&ask(0, G1, 2)), Ok(()));
        for (asked, want) in [
            (ask(7, G1, 2), "worker-7 hosts nothing"),
            (ask(0, G2, 2), "of generation 2, now is generation 1"),
            (ask(0, G1, 1), "step 1: this plan starts from that of step 2"),
        ] {
            let Err(Denied::Never(why)) = run.state.may_withdraw(&asked) else { panic!("{want}") };
            assert!(why.contains(want), "{why}, want {want}");
        }
        let message = FromWorker::Ready { generation: G1 };
        run.apply(Event::Message { connection: connection(0), message });
        assert_eq!(run.state.may_withdraw(&ask(0, G1, 2)), Ok(()));
        let run = Run::two_steps_by(gathering());
        let Err(Denied::Never(why)) = run.state.may_withdraw(&ask(0, G1, 1)) else { panic!() };
        assert!(why.ends_with("this plan starts from no checkpoint"), "{why}");
    }
}
