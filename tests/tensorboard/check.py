#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader, and holds them against metrics.jsonl.

usage: check.py RUN
"""

import json
import math
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {
    "loss": "loss/total",
    "main_loss": "loss/main",
    "mtp_loss": "loss/mtp",
    "balance_loss": "loss/balance",
    "grad_norm": "optimizer/grad_norm",
    "lr": "optimizer/learning_rate",
    "tokens_per_second": "throughput/tokens_per_second",
}


def main(run):
    run = pathlib.Path(run)
    files = list((run / "tensorboard").iterdir())
    # 0: keep all events, as many as there are.
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    steps, evaluations = [], []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "main_loss" in row:
            steps.append(row)
        elif "evaluation" in row:
            evaluations.append(row)
    assert len(steps) > 10 and evaluations and len(files) > 1, (len(steps), len(evaluations), files)
    for key, tag in TAGS.items():
        wanted = {row["step"]: row[key] for row in steps}
        assert scalars[tag].keys() == wanted.keys(), (tag, set(scalars[tag]) ^ set(wanted))
        # Rates stand in metrics.jsonl with one decimal; event files hold 32-bit floats.
        tolerance = 0.051 if key == "tokens_per_second" else 0
        for step, value in wanted.items():
            assert math.isclose(scalars[tag][step], value, rel_tol=1e-6, abs_tol=tolerance), (tag, step)
    for row in evaluations:
        for figure in ("loss", "bits_per_byte", "perplexity"):
            value = scalars[f"evaluation/{row['evaluation']}/{figure}"][row["step"]]
            assert math.isclose(value, row[figure], rel_tol=1e-6), (row, value)
    assert all(0 <= value <= 1.0001 for value in scalars["router/load_entropy"].values())
    print(f"ok  {len(scalars)} scalars, {len(steps)} steps, {len(evaluations)} evaluations, {len(files)} files")


main(*sys.argv[1:])
