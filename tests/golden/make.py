#!/usr/bin/env python3
"""Small DeepSeek-V3 models, and what `transformers` computes with them.

    python tests/golden/make.py             writes tests/golden/CASE/ for every case
    python tests/golden/make.py --check     computes all of it again and compares with what is committed

Each directory is an ordinary Hugging Face checkpoint (`config.json`, `model.safetensors` in BF16) and
`golden.safetensors`: `input_ids` [B, T + 1], `logits` [B, T + 1, V], `loss` (mean over B * T targets), with
multi-token prediction `mtp_losses` [D], and `gradient.NAME` of every parameter under its name on disk. The
loss that is differentiated is `loss + MTP_WEIGHT * mean(mtp_losses)`.

Weights come from numpy's frozen generator, so they are the same bits everywhere, and `transformers` reads them
from the files: what is judged includes names and shapes. All arithmetic is FP32, attention and experts
are the plain ("eager") code. MTP runs through `transformers`' own `MtpModel`.
"""
import argparse
import json
import os
import sys
import tempfile

import numpy
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter
from transformers.utils import logging

VERSION = "1"
MTP_WEIGHT = 0.3
SEQUENCES, TOKENS = 2, 20
# How far a choice of experts or groups is from another one, in scores from 0 to 1: several times what BF16
# changes in them. Tokens are drawn so that every choice keeps it.
MARGIN = 0.02

BASE = dict(
    vocab_size=67, hidden_size=40, intermediate_size=56, moe_intermediate_size=12, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, n_shared_experts=1, n_routed_experts=8,
    num_experts_per_tok=3, n_group=4, topk_group=2, first_k_dense_replace=1, q_lora_rank=20, kv_lora_rank=24,
    qk_nope_head_dim=10, qk_rope_head_dim=8, v_head_dim=12, max_position_embeddings=64,
    num_nextn_predict_layers=0, bos_token_id=None, eos_token_id=None,
)  # fmt: skip

# What differs from BASE. `spelling`: how the rotation is written, before or since `transformers` 5.
# `shrink`: makes what enters the norms small, so that their epsilon shows.
CASES = {
    "groups": dict(num_hidden_layers=3),
    "wide": dict(
        hidden_size=144, intermediate_size=136, moe_intermediate_size=20, num_attention_heads=3,
        num_key_value_heads=3, q_lora_rank=None, n_routed_experts=4, num_experts_per_tok=4, n_group=1, topk_group=1,
        n_shared_experts=2, rms_norm_eps=1e-5, rope_theta=50000.0, routed_scaling_factor=2.446,
        shrink=0.01, spelling="old",
    ),
    "yarn": dict(
        qk_rope_head_dim=16, first_k_dense_replace=0, n_group=1, topk_group=1, spelling="old",
        rope_scaling=dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=8, beta_fast=2,
                          beta_slow=0.1, mscale=1.0, mscale_all_dim=1.0),
    ),
    "yarn_magnitudes": dict(
        qk_rope_head_dim=12, tie_word_embeddings=True, q_lora_rank=None,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4,
                          beta_slow=0.05, mscale=0.707, mscale_all_dim=1.3),
    ),
    "tied": dict(
        tie_word_embeddings=True, norm_topk_prob=False, n_group=2, topk_group=1, n_shared_experts=3,
        first_k_dense_replace=0, routed_scaling_factor=1.0, rms_norm_eps=1e-5, spelling="old",
    ),
    "mtp": dict(num_nextn_predict_layers=1),
    "mtp_two": dict(
        num_nextn_predict_layers=2, num_hidden_layers=1, tie_word_embeddings=True, n_group=2, topk_group=2,
        n_routed_experts=6,
        rope_scaling=dict(rope_type="yarn", factor=2.0, original_max_position_embeddings=32),
    ),
}  # fmt: skip


def config_of(case):
    """The configuration, with the rotation as `transformers` 5 writes it."""
    fields = BASE | {k: v for k, v in CASES[case].items() if k not in ("spelling", "shrink")}
    rope = dict(fields.pop("rope_scaling", dict(rope_type="default")))
    rope["rope_theta"] = fields.pop("rope_theta", 10000.0)
    return DeepseekV3Config(**fields, rope_parameters=rope, dtype="bfloat16",
                            architectures=["DeepseekV3ForCausalLM"])


def written(case, config):
    """`config.json`, in the case's spelling."""
    fields = json.loads(config.to_json_string(use_diff=False))
    fields.pop("transformers_version", None)
    if CASES[case].get("spelling") == "old":
        rope = fields.pop("rope_parameters")
        fields["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        fields["rope_scaling"] = None if kind == "default" else dict(type=kind, **rope)
        fields["torch_dtype"] = fields.pop("dtype", "bfloat16")
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def shapes_on_disk(config):
    """Names and shapes as `transformers` saves them, MTP modules counted on from the main model's layers."""
    longer = DeepseekV3Config(**(config.to_dict() | dict(
        num_hidden_layers=config.num_hidden_layers + config.num_nextn_predict_layers)))
    with tempfile.TemporaryDirectory() as scratch:
        DeepseekV3ForCausalLM(longer).save_pretrained(scratch)
        shapes = {k: tuple(v.shape) for k, v in load_file(f"{scratch}/model.safetensors").items()}
    d = config.hidden_size
    for layer in range(config.num_hidden_layers, longer.num_hidden_layers):
        own = {"enorm": (d,), "hnorm": (d,), "eh_proj": (d, 2 * d), "shared_head.norm": (d,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return dict(sorted(shapes.items()))


def weights_of(case, shapes):
    """BF16 values; router biases are FP32, and large enough to change many choices."""
    shrink = CASES[case].get("shrink", 1.0)
    random = numpy.random.RandomState(sorted(CASES).index(case) + 1)
    weights = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if name.endswith("e_score_correction_bias"):
            weights[name] = torch.tensor(0.2 * values, dtype=torch.float32)
            continue
        if len(shape) == 1:
            values = 1.0 + 0.2 * values
        elif "embed_tokens" in name:
            values *= 0.5 * shrink
        elif "_a_proj" in name:
            values *= shrink * shape[1] ** -0.5
        elif name.endswith("gate.weight") and "mlp.gate." in name:
            values *= 1.5 * shape[1] ** -0.5
        else:
            values *= shape[1] ** -0.5
        weights[name] = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    return weights


class Margins:
    """The smallest distance to another choice at each token, over the routers that ran since `clear`."""

    def __init__(self, model):
        self.clear()
        for module in model.modules():
            if isinstance(module, DeepseekV3TopkRouter):
                module.register_forward_hook(self.hook)

    def clear(self):
        self.of_router, self.changed, self.masked, self.decisions = [], 0, 0, 0

    def hook(self, router, inputs, output):
        logits, _, chosen = output
        scores = logits.detach().sigmoid()
        biased = scores + router.e_score_correction_bias
        groups = biased.view(len(biased), router.num_group, -1)
        group_scores, order = groups.topk(2, -1)[0].sum(-1).sort(-1, descending=True)
        smallest = torch.ones(len(biased))
        if router.topk_group < router.num_group:
            # Sums of two scores: twice the error.
            gap = group_scores[:, router.topk_group - 1] - group_scores[:, router.topk_group]
            smallest = torch.minimum(smallest, gap / 2)
        kept = torch.zeros_like(group_scores).scatter(1, order[:, : router.topk_group], 1.0).bool()
        left = groups.masked_fill(~kept.unsqueeze(-1), -9.0).flatten(1).sort(-1, descending=True)[0]
        if router.top_k < left.shape[1]:
            smallest = torch.minimum(smallest, left[:, router.top_k - 1] - left[:, router.top_k])
        self.of_router.append(smallest)
        same = lambda other: (other.sort(-1)[0] == chosen.sort(-1)[0]).all(-1)
        plain = scores.view_as(groups).masked_fill(~kept.unsqueeze(-1), -9.0).flatten(1)
        self.changed += int((~same(plain.topk(router.top_k, -1)[1])).sum())
        self.masked += int((~same(biased.topk(router.top_k, -1)[1])).sum())
        self.decisions += len(biased)


class Judge:
    """The model of one case, read from its directory."""

    def __init__(self, directory, weights):
        options = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
        self.main = DeepseekV3ForCausalLM.from_pretrained(directory, **options)
        self.config = self.main.config
        self.depth = self.config.num_nextn_predict_layers
        self.mtp = self.mtp_model(weights) if self.depth else None
        self.margins = Margins(self.main)
        self.mtp_margins = Margins(self.mtp.layers if self.mtp else torch.nn.ModuleList())
        self.watched = (self.margins, self.mtp_margins)

    def mtp_model(self, weights):
        """`MtpModel.from_pretrained` knows the released model's layer number only: renamed here."""
        model = MtpModel(self.main, self.depth)
        state = {}
        for name, value in weights.items():
            parts = name.split(".")
            if parts[1] != "layers" or int(parts[2]) < self.config.num_hidden_layers:
                continue
            rest = ".".join(parts[3:])
            own = {"enorm.weight": "enorm.weight", "hnorm.weight": "hnorm.weight",
                   "eh_proj.weight": "eh_proj.weight", "shared_head.norm.weight": "post_norm.weight"}
            at = int(parts[2]) - self.config.num_hidden_layers
            state[f"layers.{at}.{own.get(rest, 'mtp_block.' + rest)}"] = value.float()
        missing, unexpected = model.load_state_dict(fused(state), strict=False)
        shared = ("embed_tokens.", "shared_head.", "rotary_emb.")
        missing = [name for name in missing if not name.startswith(shared)]
        assert not missing and not unexpected, (missing, unexpected)
        model.config._attn_implementation = "eager"
        model.config._experts_implementation = "eager"
        return model

    def losses(self, ids):
        """Logits [B, T + 1, V], the loss, and each module's, every one a mean over its own targets."""
        hidden, mtp = self.main.model(input_ids=ids, use_cache=False).last_hidden_state, []
        logits = self.main.lm_head(hidden)
        loss = self.main.loss_function(logits=logits, labels=ids, vocab_size=self.config.vocab_size)
        for k in range(self.depth):
            # Module k + 1 reads states 0..T - k - 1 and tokens k + 1..: the last has no target.
            inputs = ids[:, k + 1 :]
            positions = torch.arange(k + 1, ids.shape[1])[None]
            hidden = self.mtp.forward_layer(k, hidden[:, :-1], positions, None, input_ids=inputs)
            ahead = self.mtp.shared_head(hidden)[:, :-1]
            mtp.append(torch.nn.functional.cross_entropy(ahead.flatten(0, 1), ids[:, k + 2 :].flatten()))
        return logits, loss, mtp

    @torch.no_grad()
    def draw(self, seed):
        """Token by token, the first of a random order at which every choice keeps its margin. Later
        tokens do not change earlier choices."""
        random = numpy.random.RandomState(1000 + seed)
        ids = []
        while len(ids) <= TOKENS:
            best = (-1.0, 0)
            for token in random.permutation(self.config.vocab_size).tolist():
                found = self.smallest(torch.tensor([[*ids, token]]))
                best = max(best, (found, token))
                if found >= MARGIN:
                    break
            assert best[0] >= MARGIN, f"no token keeps the margin after {ids}: {best}"
            ids.append(best[1])
        return ids

    def smallest(self, ids):
        """The smallest margin at what the last token decides."""
        self.margins.clear()
        out = self.main.model(input_ids=ids, use_cache=False)
        found = [router[-1] for router in self.margins.of_router]
        hidden = out.last_hidden_state
        for k in range(min(self.depth, ids.shape[1] - 1)):
            self.mtp_margins.clear()
            positions = torch.arange(k + 1, ids.shape[1])[None]
            hidden = self.mtp.forward_layer(k, hidden[:, :-1], positions, None, input_ids=ids[:, k + 1 :])
            found += [router[-1] for router in self.mtp_margins.of_router]
        return min(map(float, found), default=1.0)

    def gradients(self):
        """By name on disk; of a parameter that nothing reached, zeros."""
        gradients = {}
        for name, p in self.main.named_parameters():
            gradients[name] = p.grad
        first = self.config.num_hidden_layers
        back = {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "post_norm": "shared_head.norm"}
        for k, layer in enumerate(self.mtp.layers if self.mtp else []):
            for name, p in layer.named_parameters():
                module = name.removesuffix(".weight")
                rest = back[module] + ".weight" if module in back else name.removeprefix("mtp_block.")
                gradients[f"model.layers.{first + k}.{rest}"] = p.grad
        gradients = {n: torch.zeros(0) if g is None else g for n, g in gradients.items()}
        return unfused(gradients)


def fused(state):
    """Experts as `transformers` holds them in memory: [E, 2 F, D] and [E, D, F]."""
    out, experts = {}, {}
    for name, value in state.items():
        if ".experts." not in name:
            out[name] = value
            continue
        before, rest = name.split(".experts.")
        number, linear, _ = rest.split(".")
        experts.setdefault(before + ".experts.", {})[int(number), linear] = value
    for prefix, parts in experts.items():
        numbers = sorted({number for number, _ in parts})
        up = [torch.cat([parts[n, "gate_proj"], parts[n, "up_proj"]]) for n in numbers]
        out[prefix + "gate_up_proj"] = torch.stack(up)
        out[prefix + "down_proj"] = torch.stack([parts[n, "down_proj"] for n in numbers])
    return out


def unfused(gradients):
    """The reverse."""
    out = {}
    for name, value in gradients.items():
        if name.endswith(".experts.gate_up_proj"):
            prefix = name.removesuffix("gate_up_proj")
            for number, both in enumerate(value):
                gate, up = both.chunk(2)
                out[f"{prefix}{number}.gate_proj.weight"] = gate
                out[f"{prefix}{number}.up_proj.weight"] = up
        elif name.endswith(".experts.down_proj"):
            for number, down in enumerate(value):
                out[f"{name.removesuffix('down_proj')}{number}.down_proj.weight"] = down
        else:
            out[name] = value
    return out


def make(case, directory):
    """Writes one case."""
    config = config_of(case)
    os.makedirs(directory, exist_ok=True)
    with open(f"{directory}/config.json", "w", encoding="utf-8") as file:
        file.write(written(case, config))
    weights = weights_of(case, shapes_on_disk(config))
    save_file(weights, f"{directory}/model.safetensors", metadata=dict(format="pt"))
    judge = Judge(directory, weights)
    ids = torch.tensor([judge.draw(seed) for seed in range(SEQUENCES)])
    for margins in judge.watched:
        margins.clear()
    logits, loss, mtp = judge.losses(ids)
    (loss + (MTP_WEIGHT * sum(mtp) / len(mtp) if mtp else 0.0)).backward()
    gradients = judge.gradients()
    biases = {name for name in weights if name.endswith("e_score_correction_bias")}
    assert set(gradients) == set(weights) - biases, set(gradients) ^ set(weights)
    golden = dict(input_ids=ids, logits=logits, loss=loss[None])
    golden |= dict(mtp_losses=torch.stack(mtp)) if mtp else {}
    golden |= {f"gradient.{name}": gradient for name, gradient in gradients.items()}
    golden = {name: value.detach().contiguous() for name, value in golden.items()}
    metadata = dict(version=VERSION, mtp_weight=str(MTP_WEIGHT))
    save_file(golden, f"{directory}/golden.safetensors", metadata=metadata)
    choices, by_bias, by_groups = (
        sum(getattr(margins, what) for margins in judge.watched) for what in ("decisions", "changed", "masked"))
    print(f"{case}: loss {loss.item():.4f}, mtp {[round(x.item(), 4) for x in mtp]}; of {choices} choices of "
          f"experts biases change {by_bias} and groups {by_groups}")
    chooses = config.num_experts_per_tok < config.n_routed_experts
    assert not chooses or by_bias * 10 > choices, "biases change too few choices"


def compare(case, made, committed):
    """Weights and tokens as they are, everything computed within FP32's rounding. Returns what differs."""
    problems = []
    for name in ("config.json", "model.safetensors"):
        with open(f"{made}/{name}", "rb") as a, open(f"{committed}/{name}", "rb") as b:
            if a.read() != b.read():
                problems.append(f"{case}/{name} is not what make.py writes")
    got, want = (load_file(f"{path}/golden.safetensors") for path in (made, committed))
    if sorted(got) != sorted(want):
        return [*problems, f"{case}: other tensors than committed"]
    for name, value in want.items():
        if name == "input_ids":
            problems += [] if torch.equal(got[name], value) else [f"{case}: other input_ids"]
            continue
        # Another build sums in another order: some hundred roundings of 2^-24, relative to the largest.
        off = (got[name] - value).abs().max() / value.abs().max().clamp(min=1e-9)
        if not off < 3e-5:
            problems.append(f"{case}: {name} is off by {off:.2e} of its largest value")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is committed")
    parser.add_argument("cases", nargs="*", help="only these; otherwise all")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    here = os.path.dirname(os.path.abspath(__file__))
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in arguments.cases or CASES:
            make(case, f"{scratch if arguments.check else here}/{case}")
            if arguments.check:
                problems += compare(case, f"{scratch}/{case}", f"{here}/{case}")
    print("\n".join(problems), file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
