#!/usr/bin/env python3
"""Peer: `transformers`' own DeepSeek-V3, trained as people train it.

    python hugging_face.py --preset tiny --precision bf16 --threads 2 --text FILE [--compile]

AdamW is the fused one; bf16 is autocast over FP32 parameters. Experts run through `transformers`' grouped
products (its default), attention through scaled_dot_product_attention. Prints one line of JSON.
"""
import os

from measure import ADAMW, PRESETS, arguments, measure


def main():
    parser = arguments(__doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model; needs a C++ compiler")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

    import torch
    import transformers
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    sizes = PRESETS[args.preset]
    config = DeepseekV3Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.dense_width,
        moe_intermediate_size=sizes.expert_width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        n_shared_experts=sizes.shared,
        n_routed_experts=sizes.experts,
        num_experts_per_tok=sizes.chosen,
        n_group=sizes.groups,
        topk_group=sizes.groups_kept,
        routed_scaling_factor=sizes.scaling,
        first_k_dense_replace=sizes.dense_layers,
        q_lora_rank=sizes.q_lora,
        kv_lora_rank=sizes.kv_lora,
        qk_nope_head_dim=sizes.nope,
        qk_rope_head_dim=sizes.rope,
        v_head_dim=sizes.value,
        max_position_embeddings=sizes.tokens,
        num_nextn_predict_layers=0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    model = DeepseekV3ForCausalLM(config)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    forward = torch.compile(model) if args.compile else model
    bf16 = args.precision == "bf16"

    def step(inputs, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = forward(input_ids=inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    measure(
        step,
        args,
        peer="transformers compiled" if args.compile else "transformers",
        parameters=sum(p.numel() for p in model.parameters()),
        transformers=transformers.__version__,
    )


if __name__ == "__main__":
    main()
