"""Holds an exported model against `transformers`: the same logits from the same directory.

    check_export.py SHOAL DIRECTORY [--relative 1e-4] [--tokens 24]

`SHOAL` is the binary; `DIRECTORY` is what `shoal export` wrote. Both sides compute in FP32 from the
weights as they are stored, so what remains is the order of sums: the largest difference of a logit
must be below `--relative` of the largest logit. The tokenizer, where there is one, is loaded, too:
text must come back as it was, and bytes must have their own numbers as ids.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "Größe  and\n\tsize: 漢字, don't 🐟"


def theirs(directory, ids):
    """Logits [B, T, V] of `transformers`; weights in FP8 are dequantised by it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = model.float().eval()
    with torch.no_grad():
        return type(model).__name__, model(input_ids=ids, use_cache=False).logits.float()


def ours(shoal, directory, ids, scratch):
    """Logits [B, T, V] of `shoal eval`."""
    tokens, logits = scratch / "tokens.safetensors", scratch / "logits.safetensors"
    save_file({"input_ids": ids}, tokens)
    command = [shoal, "eval", directory, "--tokens", tokens, "--logits", logits, "--precision", "f32"]
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return load_file(logits)["logits"]


def check_tokenizer(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.decode(ids) == TEXT, f"{tokenizer.decode(ids)!r} is not {TEXT!r}"
    if len(tokenizer) <= 257:
        assert ids == list(TEXT.encode()), "ids of bytes are the bytes"
    return f"{len(tokenizer)} tokens, text comes back"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("shoal")
    arguments.add_argument("directory", type=pathlib.Path)
    arguments.add_argument("--relative", type=float, default=1e-4)
    arguments.add_argument("--tokens", type=int, default=24)
    arguments = arguments.parse_args()

    directory = arguments.directory
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(vocabulary, (2, arguments.tokens), generator=generator)
    name, want = theirs(directory, ids)
    with tempfile.TemporaryDirectory() as scratch:
        got = ours(arguments.shoal, directory, ids, pathlib.Path(scratch))
    assert got.shape == want.shape, f"{tuple(got.shape)}, want {tuple(want.shape)}"
    largest = (got - want).abs().max().item()
    relative = largest / want.abs().max().item()
    print(f"{directory}: {name}, logits {tuple(got.shape)}, largest difference {largest:.2e} ({relative:.2e})")
    # Written so that NaN fails.
    if not relative < arguments.relative:
        sys.exit(f"the logits differ by {relative:.2e} of the largest, want less than {arguments.relative}")
    if (directory / "tokenizer.json").exists():
        print(f"{directory}: {check_tokenizer(directory)}")


if __name__ == "__main__":
    main()
