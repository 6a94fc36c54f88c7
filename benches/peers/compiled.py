#!/usr/bin/env python3
"""Peer: DeepSeek-V3 in PyTorch by hand, compiled: the most that we could get out of PyTorch on a CPU.

    python compiled.py --preset tiny --precision bf16 --threads 2 --text FILE [--eager] [--malloc LIB]

- bf16 means weights and activations in BF16 with an FP32 master copy in one flat tensor for a fused AdamW;
  norms, router and loss are FP32. (Faster here than autocast, which casts every weight in every step.)
- Experts' rows are sorted by expert and padded to multiples of 64: few distinct shapes, so oneDNN finds its
  compiled kernels again. Padded rows have weight 0.
- Attention is two batched products with the whole causal mask: faster on a CPU than
  scaled_dot_product_attention at these lengths, which is used with --eager.
- torch.compile takes the whole model; it needs a C++ compiler and 10 to 70 s, which are not timed.
- Where libtcmalloc_minimal is installed the script starts itself again with it: 5 to 25 % faster.

Prints one line of JSON.
"""
import ctypes.util
import glob
import os
import sys

from measure import ADAMW, PRESETS, arguments, measure

ROWS_PADDED_TO = 64


def parse():
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--malloc", default="auto", help="auto, none, or a library to preload")
    return parser.parse_args()


def restart_with_malloc(args):
    """Preloading works only for a process that begins: this one begins again."""
    if args.malloc == "none" or "PEER_MALLOC" in os.environ:
        return
    library = args.malloc
    if library == "auto":
        installed = glob.glob("/usr/lib/*/libtcmalloc_minimal.so*")
        library = ctypes.util.find_library("tcmalloc_minimal") or (installed[0] if installed else "")
    environment = dict(os.environ, PEER_MALLOC=os.path.basename(library) or "libc")
    environment["OMP_NUM_THREADS"] = str(args.threads)
    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8192"
    if library:
        environment["LD_PRELOAD"] = library
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


ARGS = parse()
if __name__ == "__main__":
    restart_with_malloc(ARGS)
os.environ.setdefault("OMP_NUM_THREADS", str(ARGS.threads))

import torch  # noqa: E402: only after the restart
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

SIZES = PRESETS[ARGS.preset]


# Products of rows sorted by expert with each expert's matrix. `ends` holds the end row of each expert.


@torch.library.custom_op("peer::grouped", mutates_args=())
def grouped(x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    y, start = x.new_empty(x.shape[0], w.shape[1]), 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(x[start:end], w[expert].t(), out=y[start:end])
        start = end
    y[start:].zero_()
    return y


@grouped.register_fake
def _(x, w, ends):
    return x.new_empty(x.shape[0], w.shape[1])


@torch.library.custom_op("peer::grouped_backward", mutates_args=())
def grouped_backward(
    d_y: torch.Tensor, x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    d_y, start = d_y.contiguous(), 0
    d_x, d_w = torch.empty_like(x), torch.empty_like(w)
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            torch.mm(d_y[start:end], w[expert], out=d_x[start:end])
            torch.mm(d_y[start:end].t(), x[start:end], out=d_w[expert])
        else:
            d_w[expert].zero_()
        start = end
    d_x[start:].zero_()
    return d_x, d_w


@grouped_backward.register_fake
def _(d_y, x, w, ends):
    return torch.empty_like(x), torch.empty_like(w)


def _gradients(ctx, d_y):
    x, w, ends = ctx.saved_tensors
    d_x, d_w = torch.ops.peer.grouped_backward(d_y, x, w, ends)
    return d_x, d_w, None


grouped.register_autograd(
    _gradients, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def sort_by_expert(chosen):
    """From chosen experts [T, K]: for each padded row its (token, choice) pair, the end row of each expert, the
    row of each pair, the token of each row, and 1 for rows that are no padding."""
    n_chosen, flat, pad = chosen.shape[1], chosen.reshape(-1), ROWS_PADDED_TO
    n = flat.numel()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=SIZES.experts)
    padded = (counts + pad - 1) // pad * pad
    ends = padded.cumsum(0)
    shift = (ends - padded) - (counts.cumsum(0) - counts)
    row = torch.arange(n) + shift[flat[order]]
    n_rows = (n // pad + SIZES.experts) * pad
    pair_of_row = torch.zeros(n_rows, dtype=torch.long)
    pair_of_row[row] = order
    is_used = torch.zeros(n_rows)
    is_used[row] = 1.0
    row_of_pair = torch.empty_like(order)
    row_of_pair[order] = row
    return pair_of_row, ends, row_of_pair, pair_of_row // n_chosen, is_used


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight, self.shape = nn.Parameter(torch.ones(width)), (width,)

    def forward(self, x):
        return F.rms_norm(x, self.shape, self.weight.to(x.dtype), 1e-6)


class Linear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=0.02)


def rotated(x, cos, sin):
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], -1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        s = SIZES
        # One product for what reads the hidden state: query latent, key-value latent, rotated key.
        self.down = Linear(s.hidden, s.q_lora + s.kv_lora + s.rope)
        self.q_norm, self.kv_norm = Norm(s.q_lora), Norm(s.kv_lora)
        self.q_up = Linear(s.q_lora, s.heads * s.query)
        self.kv_up = Linear(s.kv_lora, s.heads * (s.nope + s.value))
        self.out = Linear(s.heads * s.value, s.hidden)
        self.scale = s.query**-0.5

    def forward(self, x, cos, sin):
        s, (batch, tokens, _) = SIZES, x.shape
        q_low, kv_low, k_rope = self.down(x).split([s.q_lora, s.kv_lora, s.rope], -1)
        q = self.q_up(self.q_norm(q_low)).view(batch, tokens, s.heads, -1).transpose(1, 2)
        kv = self.kv_up(self.kv_norm(kv_low)).view(batch, tokens, s.heads, -1).transpose(1, 2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q = torch.cat([q[..., : s.nope], rotated(q[..., s.nope :], cos, sin)], -1)
        k_rope = rotated(k_rope.view(batch, 1, tokens, s.rope), cos, sin).expand(-1, s.heads, -1, -1)
        k, v = torch.cat([kv[..., : s.nope], k_rope], -1), kv[..., s.nope :]
        if ARGS.eager:
            v = F.pad(v, (0, s.query - s.value))
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)[..., : s.value]
        else:
            mask = torch.full((tokens, tokens), float("-inf"), dtype=q.dtype).triu(1)
            o = torch.softmax((q @ k.transpose(-1, -2)) * self.scale + mask, -1).to(v.dtype) @ v
        return self.out(o.transpose(1, 2).reshape(batch, tokens, s.heads * s.value))


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gate_up, self.down = Linear(SIZES.hidden, 2 * width), Linear(width, SIZES.hidden)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        s = SIZES
        self.router = nn.Parameter(torch.randn(s.experts, s.hidden) * 0.02)
        self.register_buffer("bias", torch.zeros(s.experts))
        self.gate_up = nn.Parameter(torch.randn(s.experts, 2 * s.expert_width, s.hidden) * 0.02)
        self.down = nn.Parameter(torch.randn(s.experts, s.hidden, s.expert_width) * 0.02)
        self.shared = FeedForward(s.expert_width * s.shared)

    def forward(self, x):
        flat, n_chosen = x.reshape(-1, SIZES.hidden), SIZES.chosen
        scores = F.linear(flat.float(), self.router.float()).sigmoid()
        chosen = torch.topk(scores.detach() + self.bias, n_chosen, -1, sorted=False)[1]
        gates = scores.gather(1, chosen)
        gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        pair_of_row, ends, row_of_pair, token_of_row, is_used = sort_by_expert(chosen)
        gate_up = torch.ops.peer.grouped(flat.index_select(0, token_of_row), self.gate_up, ends)
        width = gate_up.shape[-1] // 2
        row_gates = gates.reshape(-1).index_select(0, pair_of_row) * is_used
        hidden = F.silu(gate_up[:, :width].float()) * gate_up[:, width:].float() * row_gates[:, None]
        y = torch.ops.peer.grouped(hidden.to(gate_up.dtype), self.down, ends)
        y = y.index_select(0, row_of_pair).view(-1, n_chosen, SIZES.hidden).sum(1)
        return y.view(x.shape) + self.shared(x)


class Layer(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.attention_norm, self.ffn_norm = Norm(SIZES.hidden), Norm(SIZES.hidden)
        self.attention = Attention()
        self.ffn = Experts() if number >= SIZES.dense_layers else FeedForward(SIZES.dense_width)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        s = SIZES
        self.embedding = nn.Embedding(s.vocabulary, s.hidden)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList([Layer(number) for number in range(s.layers)])
        self.norm, self.head = Norm(s.hidden), Linear(s.hidden, s.vocabulary)
        frequencies = 10_000 ** (torch.arange(0, s.rope, 2).float() / s.rope)
        angles = torch.arange(s.tokens).float()[:, None] / frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, inputs, targets):
        x = self.embedding(inputs)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


class PlainUpdate:
    """FP32 parameters."""

    def __init__(self, model):
        self.optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)

    def __call__(self):
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class MasterUpdate:
    """BF16 parameters in one flat buffer, their FP32 master in another; norms and routers stay FP32."""

    def __init__(self, model):
        def stays(name, parameter):
            return parameter.dim() == 1 or name.endswith("router")

        named = list(model.named_parameters())
        self.low = [p for name, p in named if not stays(name, p)]
        self.high = [p for name, p in named if stays(name, p)]
        n = sum(p.numel() for p in self.low)
        master, self.buffer, self.gradient = torch.empty(n), torch.empty(n, dtype=torch.bfloat16), torch.zeros(n)
        for p, place in self.places():
            master[place].copy_(p.data.reshape(-1))
            p.data = self.buffer[place].view(p.shape)
        self.master = nn.Parameter(master)
        self.master.grad = self.gradient
        self.buffer.copy_(self.master.data)
        self.optimizer = torch.optim.AdamW([self.master, *self.high], **ADAMW)

    def places(self):
        start = 0
        for p in self.low:
            yield p, slice(start, start + p.numel())
            start += p.numel()

    def __call__(self):
        for p, place in self.places():
            self.gradient[place].copy_(p.grad.view(-1))
            p.grad = None
        self.optimizer.step()
        self.buffer.copy_(self.master.data)
        for p in self.high:
            p.grad = None


def main():
    torch.set_num_threads(ARGS.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(ARGS.seed)
    model = Model()
    parameters = sum(p.numel() for p in model.parameters())
    update = MasterUpdate(model) if ARGS.precision == "bf16" else PlainUpdate(model)
    forward = model if ARGS.eager else torch.compile(model, dynamic=False)

    def step(inputs, targets):
        loss = forward(inputs, targets)
        loss.backward()
        update()
        return loss.item()

    measure(
        step,
        ARGS,
        peer="PyTorch by hand, eager" if ARGS.eager else "PyTorch by hand, compiled",
        parameters=parameters,
        malloc=os.environ.get("PEER_MALLOC", "libc"),
    )


if __name__ == "__main__":
    main()
