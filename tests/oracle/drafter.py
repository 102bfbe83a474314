#!/usr/bin/env python3
"""A drafter's logits against a plain torch one.  Run by hand:

    make -C build dump_drafter
    tests/oracle/drafter.py --build build

Needs the Python packages torch, transformers and safetensors.

Random targets of odd shapes; for each a random EAGLE-3.1 and a random plain EAGLE-3 (no fc_norm, the
un-normed state recurs), in the layout that SGLang and vLLM load, fp32 and 16 bits.  torch runs every
row's own chain in fp32: relative L2 of the logits at each depth at most 2e-2, where ours multiplies
in bf16.  What is written anew must hold the same tensors.  Exits with 1 when a bar is missed.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

N, DEPTH, BAR = 37, 2, 2e-2
SHAPES = [  # C, F, heads, KV heads, head size, V, Vd
    (64, 160, 4, 2, 16, 512, 320),
    (96, 200, 3, 3, 32, 600, 600),
    (80, 224, 5, 1, 24, 700, 129),
]


def norm(x, w, eps=1e-5):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w


def rotate(x, position, d, theta=10000.0):
    """x [rows, heads, d] at positions [rows]."""
    freq = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = position.double()[:, None] * freq
    cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
    lo, hi = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], -1)


def draft(w, embed, shape, tokens, features, is_plain):
    """Logits [depth][rows]: row i reads feature i and tokens i + 1 ..; keys of its past are those
    of depth 0, and its own."""
    _, _, h, hkv, d, _, _ = shape
    n = len(tokens)
    chunks = [features[:, i] for i in range(3)]
    if not is_plain:
        chunks = [norm(c, w[f"fc_norm.{i}.weight"]) for i, c in enumerate(chunks)]
    g = torch.cat(chunks, -1) @ w["fc.weight"].T
    keys, values, out = [], [], []
    for k in range(DEPTH):
        rows = torch.arange(n)
        token = tokens[torch.clamp(rows + 1 + k, max=n - 1)]
        u = torch.cat([norm(embed[token], w["midlayer.input_layernorm.weight"]),
                       norm(g, w["midlayer.hidden_norm.weight"])], -1)
        q, key, value = (u @ w[f"midlayer.self_attn.{p}_proj.weight"].T for p in "qkv")
        q = rotate(q.view(n, h, d), rows + k, d)
        key = rotate(key.view(n, hkv, d), rows + k, d).repeat_interleave(h // hkv, 1)
        value = value.view(n, hkv, d).repeat_interleave(h // hkv, 1)
        keys.append(key)
        values.append(value)
        past = torch.einsum("ihd,jhd->hij", q, keys[0]) / d**0.5
        past = past.masked_fill(torch.triu(torch.ones(n, n, dtype=bool), 1), float("-inf"))
        own = [torch.einsum("ihd,ihd->hi", q, x)[..., None] / d**0.5 for x in keys[1:]]
        p = torch.cat([past] + own, -1).softmax(-1)
        o = torch.einsum("hij,jhd->ihd", p[..., :n], values[0])
        for i, v in enumerate(values[1:]):
            o = o + p[..., n + i].T[..., None] * v
        x = g + o.reshape(n, h * d) @ w["midlayer.self_attn.o_proj.weight"].T
        y = norm(x, w["midlayer.post_attention_layernorm.weight"])
        gate, up = (y @ w[f"midlayer.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ w["midlayer.mlp.down_proj.weight"].T
        s = norm(x, w["norm.weight"])
        out.append(s @ w["lm_head.weight"].T)
        g = x if is_plain else s
    return out


def make_target(path, shape):
    c, f, h, hkv, d, v, _ = shape
    config = LlamaConfig(hidden_size=c, intermediate_size=f, num_hidden_layers=8,
                         num_attention_heads=h, num_key_value_heads=hkv, head_dim=d, vocab_size=v,
                         max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0,
                         tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
                         initializer_range=0.3)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path)
    return model.model.embed_tokens.weight.detach().float()


def make_drafter(path, shape, is_plain, dtype):
    c, f, h, hkv, d, v, vd = shape
    sizes = {"fc.weight": (c, 3 * c), "midlayer.self_attn.q_proj.weight": (h * d, 2 * c),
             "midlayer.self_attn.k_proj.weight": (hkv * d, 2 * c),
             "midlayer.self_attn.v_proj.weight": (hkv * d, 2 * c),
             "midlayer.self_attn.o_proj.weight": (c, h * d),
             "midlayer.mlp.gate_proj.weight": (f, c), "midlayer.mlp.up_proj.weight": (f, c),
             "midlayer.mlp.down_proj.weight": (c, f), "lm_head.weight": (vd, c)}
    norms = ["midlayer.input_layernorm.weight", "midlayer.hidden_norm.weight",
             "midlayer.post_attention_layernorm.weight", "norm.weight"]
    norms += [] if is_plain else [f"fc_norm.{i}.weight" for i in range(3)]
    w = {n: torch.randn(s) / s[1] ** 0.5 for n, s in sizes.items()}
    w |= {n: 1 + 0.3 * torch.randn(c) for n in norms}
    w = {n: t.to(torch.bfloat16).to(dtype) for n, t in w.items()}
    ids = torch.randperm(v)[:vd].sort().values
    t2d = torch.zeros(v, dtype=torch.bool)
    t2d[ids] = True
    path.mkdir()
    tables = {"d2t": ids - torch.arange(vd), "t2d": t2d} if vd < v else {}
    save_file(w | tables, path / "model.safetensors")
    config = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "hidden_size": c,
              "intermediate_size": f, "num_hidden_layers": 1, "num_attention_heads": h,
              "num_key_value_heads": hkv, "head_dim": d, "vocab_size": v, "draft_vocab_size": vd,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
              "max_position_embeddings": 256, "tie_word_embeddings": False}
    config |= {} if is_plain else {"fc_norm": True, "norm_output": True}
    (path / "config.json").write_text(json.dumps(config))
    return {n: t.float() for n, t in w.items()}


def write_window(path, tokens, features, c):
    cp = (c + 31) // 32 * 32
    rows = torch.zeros(len(tokens), 4, cp, dtype=torch.bfloat16)
    rows[:, :3, :c] = features
    head = torch.tensor([len(tokens), DEPTH], dtype=torch.int32).numpy().tobytes()
    raw = lambda x: x.contiguous().view(torch.int16).numpy().tobytes()
    path.write_bytes(head + tokens.to(torch.int32).numpy().tobytes() + raw(rows[:, :3])
                     + raw(rows[:, 3]))


def compare(path, logits, vd):
    raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.int32).view(-1, 2 + vd)
    worst = []
    for k in range(DEPTH):
        mine = raw[raw[:, 1] == k]
        want = logits[k][mine[:, 0].long()]
        assert len(mine) == N - 1 - k, f"{len(mine)} rows at depth {k}"
        got = mine[:, 2:].contiguous().view(torch.float32)
        worst.append(float((got - want).norm() / want.norm()))
    return worst


def same_tensors(ours, theirs):
    a, b = load_file(ours / "model.safetensors"), load_file(theirs / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[n].float(), b[n].float()) for n in a)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", required=True, type=Path)
    tool = parser.parse_args().build / "dump_drafter"
    failed = 0
    torch.manual_seed(1)
    for shape in SHAPES:
        for is_plain in (False, True):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                with tempfile.TemporaryDirectory() as name:
                    home = Path(name)
                    embed = make_target(home / "target", shape)
                    w = make_drafter(home / "drafter", shape, is_plain, dtype)
                    tokens = torch.randint(0, shape[5], (N,))
                    features = torch.randn(N, 3, shape[0]).to(torch.bfloat16)
                    write_window(home / "in", tokens, features, shape[0])
                    subprocess.run([tool, home / "target", home / "drafter", home / "in",
                                    home / "out"], check=True)
                    logits = draft(w, embed, shape, tokens, features.float(), is_plain)
                    error = compare(home / "out", logits, shape[6])
                    same = same_tensors(home / "out.drafter", home / "drafter")
                ok = same and max(error) <= BAR
                failed += not ok
                print(f"C {shape[0]:3} Vd {shape[6]:3} {'plain' if is_plain else '3.1  '} "
                      f"{str(dtype)[6:]:8} relative L2 {' '.join(f'{e:.4f}' for e in error)} "
                      f"written anew {'the same' if same else 'DIFFERENT'}{'' if ok else '  FAILED'}")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
