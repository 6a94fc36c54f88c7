"""What both peers share: sizes, text, the loop that is timed, and the figures that come out.

A peer gives `measure` a function that trains one step on (inputs, targets) and returns the loss. Tokens are
the bytes of a file. Sequences, batch and sizes are those of shoal's presets, without multi-token prediction.
"""
import argparse
import json
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """plan/src/model/presets.rs, with the sequence and batch of `shoal bench train`."""

    hidden: int
    layers: int
    heads: int
    q_lora: int
    kv_lora: int
    experts: int
    expert_width: int
    dense_width: int
    vocabulary: int
    tokens: int
    batch: int
    # Equal in both presets.
    dense_layers: int = 1
    nope: int = 32
    rope: int = 16
    value: int = 32
    chosen: int = 4
    shared: int = 1
    groups: int = 4
    groups_kept: int = 2
    scaling: float = 2.5

    @property
    def query(self):
        return self.nope + self.rope

    def flops_per_token(self):
        """Forward and backward: 6 for each weight a token meets in a product (router and head in, embedding
        out), and causal attention. Useful FLOPs: no padding, nothing computed twice."""
        attention = (
            self.hidden * self.q_lora
            + self.q_lora * self.heads * self.query
            + self.hidden * (self.kv_lora + self.rope)
            + self.kv_lora * self.heads * (self.nope + self.value)
            + self.heads * self.value * self.hidden
        )
        moe = self.hidden * self.experts + 3 * self.hidden * self.expert_width * (self.shared + self.chosen)
        weights = (
            self.layers * attention
            + self.dense_layers * 3 * self.hidden * self.dense_width
            + (self.layers - self.dense_layers) * moe
            + self.hidden * self.vocabulary
        )
        scores = self.layers * self.heads * (self.query + self.value) * (self.tokens + 1) / 2
        return 6 * weights + 6 * scores


PRESETS = {
    "tiny": Sizes(
        hidden=256, layers=4, heads=4, q_lora=96, kv_lora=64, experts=16, expert_width=128, dense_width=512,
        vocabulary=256, tokens=256, batch=8,
    ),
    "small": Sizes(
        hidden=512, layers=8, heads=8, q_lora=192, kv_lora=128, experts=32, expert_width=256, dense_width=1024,
        vocabulary=8192, tokens=512, batch=4,
    ),
}  # fmt: skip

# Steps before the clock starts, beside the first, in which compilers run.
WARM_UP = 3
LEARNING_RATE = 1e-3
ADAMW = dict(lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="to measure, after compiling and warm-up")
    parser.add_argument("--text", required=True, help="a file whose bytes are trained on")
    parser.add_argument("--seed", type=int, default=0)
    return parser


class Text:
    """Windows of a file, at random."""

    def __init__(self, path, sizes, seed):
        import numpy
        import torch

        self.bytes = torch.from_numpy(numpy.fromfile(path, dtype=numpy.uint8).astype(numpy.int64))
        if len(self.bytes) < sizes.tokens + 2:
            sys.exit(f"{path} has {len(self.bytes)} bytes, want {sizes.tokens + 2} or more")
        self.sizes, self.generator = sizes, torch.Generator().manual_seed(seed)

    def batch(self):
        """Inputs and targets, [sequences, tokens] each."""
        import torch

        sizes, last = self.sizes, len(self.bytes) - self.sizes.tokens - 1
        places = torch.randint(0, last, (sizes.batch,), generator=self.generator).tolist()
        windows = torch.stack([self.bytes[place : place + sizes.tokens + 1] for place in places])
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def others_cpu_seconds():
    """CPU time of all other processes so far (Linux)."""
    with open("/proc/stat") as stat:
        ticks = list(map(int, stat.readline().split()[1:]))
    own = resource.getrusage(resource.RUSAGE_SELF)
    # user, nice, system, and both kinds of interrupts.
    busy = sum(ticks[:3]) + sum(ticks[5:7])
    return busy / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


def measure(step, args, **what):
    """Runs the steps and prints one line of JSON."""
    import torch

    sizes = PRESETS[args.preset]
    text = Text(args.text, sizes, args.seed)
    began = time.perf_counter()
    losses = [step(*text.batch()) for _ in range(1 + WARM_UP)]
    warm_up = time.perf_counter() - began
    seconds, others, began = [], others_cpu_seconds(), time.perf_counter()
    while time.perf_counter() - began < args.seconds or len(seconds) < 3:
        step_began = time.perf_counter()
        losses.append(step(*text.batch()))
        seconds.append(time.perf_counter() - step_began)
    others = max(0.0, (others_cpu_seconds() - others) / (time.perf_counter() - began))
    median = statistics.median(seconds)
    tokens_per_second = sizes.batch * sizes.tokens / median
    print(
        json.dumps(
            dict(
                what,
                preset=args.preset,
                precision=args.precision,
                threads=args.threads,
                batch=sizes.batch,
                tokens=sizes.tokens,
                steps=len(seconds),
                median_seconds=median,
                tokens_per_second=tokens_per_second,
                gflops=tokens_per_second * sizes.flops_per_token() / 1e9,
                loss_first=losses[0],
                loss_last=statistics.mean(losses[-5:]),
                peak_resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                warm_up_seconds=warm_up,
                others_cores=others,
                torch=torch.__version__,
            )
        )
    )
