//! What the dashboards show. Written for people who train: each description says what to look for.

#![expect(clippy::too_many_lines, reason = "a dashboard is one table, read from top to bottom")]

use super::machines::{reliability, rigs};
use super::panel::{Board, heatmap, series, stacked, stat};

pub(crate) fn all() -> Vec<Board> {
    vec![overview(), training(), network(), experts(), rigs(), reliability()]
}

fn overview() -> Board {
    Board {
        name: "overview",
        title: "Overview",
        description: "How far the run is, how fast, and whether anything needs a person.",
        rows: vec![
            (
                "Now",
                vec![
                    stat(("Step", "none"), "The last committed step.", &[("max by (run) (shoal_step{@})", "{{run}}")]),
                    stat(
                        ("Done", "percentunit"),
                        "Steps committed of those the manifest asks for.",
                        &[("max by (run) (shoal_step{@} / shoal_steps_target{@})", "{{run}}")],
                    ),
                    stat(
                        ("Time left", "s"),
                        "Steps to go, at the pace of the last minutes.",
                        &[("max by (run) (shoal_steps_target{@} - shoal_step{@}) * sum by (run) (rate(shoal_step_interval_seconds_sum{@}[$__rate_interval])) / sum by (run) (rate(shoal_step_interval_seconds_count{@}[$__rate_interval]))", "{{run}}")],
                    ),
                    stat(
                        ("Loss", "none"),
                        "Training loss of the main head in the last step, nats per token.",
                        &[("max by (run) (shoal_train_loss{@, part=\"main\"})", "{{run}}")],
                    ),
                    stat(
                        ("Workers that train", "none"),
                        "Spare and lost ones are not counted.",
                        &[("sum by (run) (shoal_workers{@, state=\"training\"})", "{{run}}")],
                    ),
                    stat(
                        ("MFU", "percentunit"),
                        "Model FLOPs utilisation: what the network asks for, of what the workers that train could do at most.",
                        &[("sum by (run) (rate(shoal_model_flops_total{@}[$__rate_interval])) / sum by (run) (shoal_worker_peak_flops{@} and shoal_worker_cells{@} > 0)", "{{run}}")],
                    ),
                ],
            ),
            (
                "Progress",
                vec![
                    series(
                        ("Loss", "none"),
                        "Main head, in training and on text kept back. A gap between them that grows is over-fitting.",
                        &[("max by (run) (shoal_train_loss{@, part=\"main\"})", "{{run}} train"), ("max by (run, set) (shoal_evaluation_loss{@})", "{{run}} {{set}}")],
                    ),
                    series(
                        ("Tokens per second", "short"),
                        "Target tokens of committed steps.",
                        &[("sum by (run) (rate(shoal_tokens_total{@}[$__rate_interval]))", "{{run}}")],
                    ),
                    stacked(
                        ("Where a step's time goes", "percentunit"),
                        "Shares over the chosen workers' cells. Bubble: waiting for the neighbouring stage. Communication: inside collectives, all of it exposed.",
                        &[("sum by (phase) (rate(shoal_step_duration_seconds_sum{@w}[$__rate_interval])) / ignoring (phase) group_left sum (rate(shoal_step_duration_seconds_sum{@w}[$__rate_interval]))", "{{phase}}")],
                    )
                    .up_to(1.0),
                    stacked(
                        ("Workers", "none"),
                        "By state. `lost` that stays means work for a person.",
                        &[("sum by (state) (shoal_workers{@})", "{{state}}")],
                    ),
                ],
            ),
        ],
    }
}

fn training() -> Board {
    Board {
        name: "training",
        title: "Training",
        description: "Losses, the optimizer, and how long steps take.",
        rows: vec![
            (
                "Loss",
                vec![
                    series(
                        ("Parts of the loss", "none"),
                        "Nats per token. `total` is what is minimised: main, MTP by its weight, balance.",
                        &[("max by (run, part) (shoal_train_loss{@})", "{{run}} {{part}}")],
                    ),
                    series(
                        ("Evaluations", "none"),
                        "Loss on each evaluation set, nats per token; with -ema: of the averaged parameters.",
                        &[("max by (run, set) (shoal_evaluation_loss{@})", "{{run}} {{set}}")],
                    ),
                ],
            ),
            (
                "Optimizer",
                vec![
                    series(
                        ("Gradient norm", "none"),
                        "Global, before clipping. Spikes that come before those of the loss are worth a look.",
                        &[("max by (run) (shoal_grad_norm{@})", "{{run}}")],
                    )
                    .logarithmic(),
                    series(("Learning rate", "none"), "Of the last step.", &[("max by (run) (shoal_learning_rate{@})", "{{run}}")]),
                    series(
                        ("Skipped steps", "none"),
                        "Steps in which a value was not finite, by the pass that met it first.",
                        &[("sum by (run, where) (increase(shoal_nonfinite_total{@}[$__rate_interval]))", "{{run}} {{where}}")],
                    ),
                    series(
                        ("Steps per minute", "none"),
                        "Committed, trained or skipped.",
                        &[("60 * sum by (run) (rate(shoal_steps_total{@}[$__rate_interval]))", "{{run}}")],
                    ),
                ],
            ),
            (
                "Time",
                vec![
                    series(
                        ("Step time", "s"),
                        "From one committed step to the next, beside what it takes by the workers' measured speed and the schedule if sending costs nothing.",
                        &[
                            ("histogram_quantile(0.5, sum by (le, run) (rate(shoal_step_interval_seconds_bucket{@}[$__rate_interval])))", "{{run}} median"),
                            ("histogram_quantile(0.95, sum by (le, run) (rate(shoal_step_interval_seconds_bucket{@}[$__rate_interval])))", "{{run}} 95 %"),
                            ("max by (run) (shoal_step_predicted_seconds{@})", "{{run}} predicted"),
                        ],
                    ),
                    series(
                        ("Measured by predicted", "none"),
                        "1: all time is computing and the schedule's bubble. The alert fires at 2.",
                        &[("sum by (run) (rate(shoal_step_interval_seconds_sum{@}[$__rate_interval])) / sum by (run) (rate(shoal_step_interval_seconds_count{@}[$__rate_interval])) / max by (run) (shoal_step_predicted_seconds{@} > 0)", "{{run}}")],
                    ),
                    stacked(
                        ("A cell's step by phase", "s"),
                        "Mean over the chosen workers' cells.",
                        &[("sum by (phase) (rate(shoal_step_duration_seconds_sum{@w}[$__rate_interval])) / sum by (phase) (rate(shoal_step_duration_seconds_count{@w}[$__rate_interval]))", "{{phase}}")],
                    ),
                    series(
                        ("FLOP/s of the model", "short"),
                        "Forward and backward, of the tokens trained. What is computed twice counts once.",
                        &[("sum by (run) (rate(shoal_model_flops_total{@}[$__rate_interval]))", "{{run}}")],
                    ),
                ],
            ),
        ],
    }
}

fn network() -> Board {
    Board {
        name: "network",
        title: "Network",
        description: "What the cells send each other, and how long they wait for it.",
        rows: vec![
            (
                "Traffic",
                vec![
                    stacked(
                        ("Received", "Bps"),
                        "Payload of the data plane by operation: `recv` between stages, `all_to_all` to the experts and back, `all_reduce` of gradients.",
                        &[("sum by (op) (rate(shoal_collective_bytes_total{@w, direction=\"received\"}[$__rate_interval]))", "{{op}}")],
                    ),
                    stacked(
                        ("Sent by worker", "Bps"),
                        "Payload that leaves each worker's cells, also to cells of its own.",
                        &[("sum by (process) (rate(shoal_collective_bytes_total{@w, direction=\"sent\"}[$__rate_interval]))", "{{process}}")],
                    ),
                    series(
                        ("Bandwidth reached", "Bps"),
                        "Bytes by the time inside the operation, waiting for peers included: far below the link's speed means waiting, not sending.",
                        &[("sum by (op) (rate(shoal_collective_bytes_total{@w}[$__rate_interval])) / sum by (op) (rate(shoal_collective_duration_seconds_sum{@w}[$__rate_interval]))", "{{op}}")],
                    ),
                    series(
                        ("Operations per second", "ops"),
                        "Calls of all chosen workers' cells.",
                        &[("sum by (op) (rate(shoal_collective_duration_seconds_count{@w}[$__rate_interval]))", "{{op}}")],
                    ),
                ],
            ),
            (
                "Time",
                vec![
                    series(
                        ("Median time of an operation", "s"),
                        "Until the cell goes on.",
                        &[("histogram_quantile(0.5, sum by (le, op) (rate(shoal_collective_duration_seconds_bucket{@w}[$__rate_interval])))", "{{op}}")],
                    )
                    .logarithmic(),
                    series(
                        ("Slowest hundredth of an operation", "s"),
                        "99 % are faster. Far above the median: peers that are late, or a link that stalls.",
                        &[("histogram_quantile(0.99, sum by (le, op) (rate(shoal_collective_duration_seconds_bucket{@w}[$__rate_interval])))", "{{op}}")],
                    )
                    .logarithmic(),
                    series(
                        ("Communication's share of a step", "percentunit"),
                        "By worker. One that is lower than the others' is who they wait for.",
                        &[("sum by (process) (rate(shoal_step_duration_seconds_sum{@w, phase=\"communication\"}[$__rate_interval])) / sum by (process) (rate(shoal_step_duration_seconds_sum{@w}[$__rate_interval]))", "{{process}}")],
                    ),
                    series(
                        ("Bubble's share of a step", "percentunit"),
                        "Waiting for the neighbouring stage, by worker.",
                        &[("sum by (process) (rate(shoal_step_duration_seconds_sum{@w, phase=\"bubble\"}[$__rate_interval])) / sum by (process) (rate(shoal_step_duration_seconds_sum{@w}[$__rate_interval]))", "{{process}}")],
                    ),
                    heatmap(
                        ("All-to-all", "s"),
                        "How long calls took. Two bands are two kinds of links.",
                        &[("sum by (le) (increase(shoal_collective_duration_seconds_bucket{@w, op=\"all_to_all\"}[$__rate_interval]))", "{{le}}")],
                    )
                    .wide(24),
                ],
            ),
        ],
    }
}

fn experts() -> Board {
    Board {
        name: "experts",
        title: "Experts",
        description: "Whether the routers use all experts. Layers are counted from 0, the multi-token-prediction modules after the model's.",
        rows: vec![(
            "Load",
            vec![
                series(
                    ("Entropy of the load", "percentunit"),
                    "1: all experts of the layer have as many tokens; 0: one has all.",
                    &[("max by (layer) (shoal_router_load_entropy_ratio{@})", "layer {{layer}}")],
                )
                .up_to(1.0),
                series(
                    ("Busiest expert", "none"),
                    "Its tokens as a multiple of the mean. The whole layer waits for it.",
                    &[("max by (layer) (shoal_router_load_max_ratio{@})", "layer {{layer}}")],
                ),
                heatmap(
                    ("Load of all experts", "none"),
                    "How many experts had which multiple of the mean load. Well balanced: one band at 1.",
                    &[("sum by (le) (increase(shoal_expert_load_ratio_bucket{@}[$__rate_interval]))", "{{le}}")],
                )
                .wide(24),
                series(
                    ("Experts without work", "percentunit"),
                    "Share of a layer's experts with less than a hundredth of the mean load. What stays here has died.",
                    &[("sum by (layer) (rate(shoal_expert_load_ratio_bucket{@, le=\"0.01\"}[$__rate_interval])) / sum by (layer) (rate(shoal_expert_load_ratio_count{@}[$__rate_interval]))", "layer {{layer}}")],
                ),
                series(
                    ("Router bias", "none"),
                    "Least and largest of the biases that balance the experts. They settle; a bias that runs away works against the loss.",
                    &[("max by (layer, bound) (shoal_router_bias{@})", "layer {{layer}} {{bound}}")],
                ),
                stat(
                    ("Dropped tokens", "none"),
                    "Choices of an expert that no expert has counted. Anything but 0 is a bug.",
                    &[("sum by (run) (increase(shoal_router_dropped_tokens_total{@}[$__rate_interval]))", "{{run}}")],
                )
                .wide(12),
            ],
        )],
    }
}
