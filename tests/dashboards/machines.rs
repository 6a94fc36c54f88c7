//! The dashboards of the machines, and of what goes wrong with them.

#![expect(clippy::too_many_lines, reason = "a dashboard is one table, read from top to bottom")]

use super::panel::{Board, series};

pub(crate) fn rigs() -> Board {
    Board {
        name: "rigs",
        title: "Rigs and GPUs",
        description: "The machines: who computes how fast, and how the cards are.",
        rows: vec![
            (
                "Workers",
                vec![
                    series(
                        ("Speed", "percentunit"),
                        "FLOPs of its part of a step by its time of computing; 1 is the fastest worker. Below 0.67 it is named a straggler.",
                        &[("max by (worker) (shoal_worker_speed_ratio{@})", "worker {{worker}}")],
                    )
                    .up_to(1.0),
                    series(
                        ("Computing in a step", "s"),
                        "Mean of the worker's cells, the update left out.",
                        &[("sum by (process) (rate(shoal_step_duration_seconds_sum{@w, phase=\"compute\"}[$__rate_interval])) / sum by (process) (rate(shoal_step_duration_seconds_count{@w, phase=\"compute\"}[$__rate_interval]))", "{{process}}")],
                    ),
                    series(
                        ("CPU", "none"),
                        "Cores in use.",
                        &[("sum by (process) (rate(process_cpu_seconds_total{@w}[$__rate_interval]))", "{{process}}")],
                    ),
                    series(
                        ("Memory", "bytes"),
                        "Resident, snapshots in memory included.",
                        &[("sum by (process) (process_resident_memory_bytes{@w})", "{{process}}")],
                    ),
                    series(
                        ("Silence", "s"),
                        "Since a worker was last heard. The lease ends at 5 s.",
                        &[("time() - max by (worker) (shoal_worker_last_heartbeat_timestamp_seconds{@})", "worker {{worker}}")],
                    ),
                    series(
                        ("Cells", "none"),
                        "Of the model, on each worker.",
                        &[("sum by (process) (shoal_worker_cells{@w})", "{{process}}")],
                    ),
                    series(
                        ("Peak", "short"),
                        "FLOP/s in multiply-adds, measured when the worker starts. One that is lower than before runs with lower clocks, or not alone.",
                        &[("sum by (process) (shoal_worker_peak_flops{@w})", "{{process}}")],
                    ),
                    series(
                        ("Open files", "none"),
                        "Sockets and files of each process, the coordinator included.",
                        &[("sum by (process) (process_open_fds{@})", "{{process}}")],
                    ),
                ],
            ),
            (
                "GPUs",
                vec![
                    series(
                        ("GPU utilisation", "percentunit"),
                        "Share of the time in which a kernel ran.",
                        &[("max by (uuid) (shoal_gpu_utilization_ratio{@w})", "{{uuid}}")],
                    )
                    .up_to(1.0),
                    series(
                        ("GPU memory", "percentunit"),
                        "In use by anybody: a game counts, too.",
                        &[("max by (uuid) (shoal_gpu_memory_used_bytes{@w} / shoal_gpu_memory_total_bytes{@w})", "{{uuid}}")],
                    )
                    .up_to(1.0),
                    series(
                        ("GPU temperature", "celsius"),
                        "Of the chip.",
                        &[("max by (uuid) (shoal_gpu_temperature_celsius{@w})", "{{uuid}}")],
                    ),
                    series(
                        ("GPU power", "watt"),
                        "Drawn by each card.",
                        &[("max by (uuid) (shoal_gpu_power_watts{@w})", "{{uuid}}"), ("max by (uuid) (shoal_gpu_power_limit_watts{@w})", "{{uuid}} limit")],
                    ),
                    series(
                        ("GPU clocks", "hertz"),
                        "Of the multiprocessors and of the memory.",
                        &[("max by (uuid, domain) (shoal_gpu_clock_hertz{@w})", "{{uuid}} {{domain}}")],
                    ),
                    series(
                        ("GPU throttled", "none"),
                        "1 while the clocks are lowered for a reason.",
                        &[("max by (uuid, reason) (shoal_gpu_throttle_active{@w}) == 1", "{{uuid}} {{reason}}")],
                    ),
                ],
            ),
        ],
    }
}

pub(crate) fn reliability() -> Board {
    Board {
        name: "reliability",
        title: "Reliability",
        description: "What was lost, how fast the run was back, and what would be lost now.",
        rows: vec![
            (
                "Cluster",
                vec![
                    series(
                        ("Rigs", "none"),
                        "That have joined: at work, free, away.",
                        &[("sum by (state) (shoal_cluster_rigs{@c})", "{{state}}")],
                    ),
                    series(
                        ("Silence of rigs", "s"),
                        "Since the coordinator has heard a rig. After 5 s it is away.",
                        &[(
                            "time() - max by (rig) (shoal_cluster_rig_last_heartbeat_timestamp_seconds{@c} > 0)",
                            "{{rig}}",
                        )],
                    ),
                    series(
                        ("Changes written down", "ops"),
                        "By the coordinator, and attempts that failed: while one fails, nothing new is done.",
                        &[
                            (
                                "sum(rate(shoal_cluster_store_commits_total{@c}[$__rate_interval]))",
                                "written",
                            ),
                            (
                                "sum(rate(shoal_cluster_store_failures_total{@c}[$__rate_interval]))",
                                "failed",
                            ),
                        ],
                    ),
                    series(
                        ("Refused at the door", "none"),
                        "Attempts to join with a wrong token, and calls that are not for whoever called.",
                        &[
                            (
                                "sum(increase(shoal_cluster_tokens_refused_total{@c}[$__rate_interval]))",
                                "tokens",
                            ),
                            (
                                "sum(increase(shoal_cluster_calls_refused_total{@c}[$__rate_interval]))",
                                "calls",
                            ),
                        ],
                    ),
                ],
            ),
            (
                "Losses and recoveries",
                vec![
                    series(
                        ("Workers lost", "none"),
                        "By cause. `shoal events` names the workers.",
                        &[(
                            "sum by (cause) (increase(shoal_evictions_total{@}[$__rate_interval]))",
                            "{{cause}}",
                        )],
                    ),
                    series(
                        ("Recoveries", "none"),
                        "How often the run went back to an earlier state.",
                        &[(
                            "sum by (cause) (increase(shoal_recoveries_total{@}[$__rate_interval]))",
                            "{{cause}}",
                        )],
                    ),
                    series(
                        ("Time of a recovery", "s"),
                        "From the first sign of a loss until all train again, mean since the start.",
                        &[(
                            "sum by (run) (shoal_recovery_duration_seconds_sum{@}) / (sum by (run) (shoal_recovery_duration_seconds_count{@}) > 0)",
                            "{{run}}",
                        )],
                    ),
                    series(
                        ("Plan in force", "none"),
                        "Its number, and the one that each worker's cells were started for.",
                        &[
                            ("max by (run) (shoal_membership_epoch{@})", "{{run}}"),
                            ("max by (process) (shoal_worker_generation{@w})", "{{process}}"),
                        ],
                    ),
                    series(
                        ("Slow, flapping, paused", "none"),
                        "Stragglers and quarantines since the start; 1 while the run waits for workers.",
                        &[
                            (
                                "sum by (run) (increase(shoal_stragglers_total{@}[$__rate_interval]))",
                                "stragglers",
                            ),
                            (
                                "sum by (run) (increase(shoal_quarantines_total{@}[$__rate_interval]))",
                                "quarantines",
                            ),
                            ("max by (run) (shoal_paused{@})", "paused"),
                        ],
                    ),
                    series(
                        ("Waiting for moves", "s"),
                        "Time that workers stood still between two steps while cells moved, in each second.",
                        &[(
                            "sum by (run) (rate(shoal_edge_stall_seconds_sum{@}[$__rate_interval]))",
                            "{{run}}",
                        )],
                    ),
                ],
            ),
            (
                "What would be lost",
                vec![
                    series(
                        ("Steps at risk", "none"),
                        "Steps since the newest state that outlives one worker (durable), and since the newest checkpoint, which outlives all.",
                        &[
                            ("max by (run) (shoal_step{@} - shoal_durable_step{@})", "one worker"),
                            (
                                "max by (run) (shoal_step{@} - shoal_memory_snapshot_step{@})",
                                "whole in memory",
                            ),
                            (
                                "max by (run) (shoal_step{@} - shoal_checkpoint_last_step{@})",
                                "all workers",
                            ),
                            (
                                "max by (run) (shoal_checkpoint_last_step{@} - shoal_checkpoint_store_last_step{@})",
                                "store behind",
                            ),
                        ],
                    ),
                    series(
                        ("Age of the newest checkpoint", "s"),
                        "Absent before the first.",
                        &[(
                            "time() - max by (run) (shoal_checkpoint_last_success_timestamp_seconds{@} > 0)",
                            "{{run}}",
                        )],
                    ),
                    series(
                        ("Time of a checkpoint by phase", "s"),
                        "`memory`: copying into the worker's memory. `write`: each cell's files. `commit`: the last act.",
                        &[(
                            "sum by (phase) (rate(shoal_checkpoint_duration_seconds_sum{@}[$__rate_interval])) / (sum by (phase) (rate(shoal_checkpoint_duration_seconds_count{@}[$__rate_interval])) > 0)",
                            "{{phase}}",
                        )],
                    ),
                    series(
                        ("Checkpoints that failed", "none"),
                        "By reason, and attempts to copy to the store.",
                        &[
                            (
                                "sum by (reason) (increase(shoal_checkpoint_failures_total{@}[$__rate_interval]))",
                                "{{reason}}",
                            ),
                            (
                                "sum by (run) (increase(shoal_checkpoint_store_failures_total{@}[$__rate_interval]))",
                                "store",
                            ),
                        ],
                    ),
                    series(
                        ("Disk of the run", "bytes"),
                        "What is free, and the size of one checkpoint.",
                        &[
                            ("min by (run) (shoal_disk_available_bytes{@})", "{{run}} free"),
                            ("max by (run) (shoal_checkpoint_size_bytes{@})", "{{run}} checkpoint"),
                        ],
                    )
                    .logarithmic(),
                    series(
                        ("Turned away", "none"),
                        "Connections and calls at the coordinator's port that were refused.",
                        &[
                            (
                                "sum by (reason) (increase(shoal_rpc_rejected_total{@}[$__rate_interval]))",
                                "{{reason}}",
                            ),
                            (
                                "sum by (reason) (increase(shoal_auth_failures_total{@}[$__rate_interval]))",
                                "secret {{reason}}",
                            ),
                        ],
                    ),
                ],
            ),
        ],
    }
}
