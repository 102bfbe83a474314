"""What drafter_vllm.py and drafter_sglang.py share: the drafter's definition (drafter/eagle.h) in
plain torch, the attention that stands in for theirs, what a file must have become, acceptance.
The target's RoPE is not scaled, and it has seven layers or more."""
import json
import socket
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

DEPTH = 3
PROMPTS = ["What is 7 plus 5?", "Write a short story about a fox and a river.",
           "List three colours and say why you like them.", "What is 9 minus 4? Explain."]


class Failures(list):
    def expect(self, ok, text):
        print(f"  {'ok    ' if ok else 'FAILED'} {text}")
        if not ok:
            self.append(text)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---- the file against the loaded parameters ----

def file_tensors(directory):
    return load_file(Path(directory) / "model.safetensors")


def wanted_parameters(w):
    """Parameter of the loaded model -> value, made from the file's tensors; t2d is not used by
    either loader, d2t is not a weight."""
    mid, cat = "midlayer.", torch.cat
    out = {"model.layers.0.self_attn.qkv_proj.weight":
           cat([w[f"{mid}self_attn.{p}_proj.weight"] for p in "qkv"]),
           "model.layers.0.mlp.gate_up_proj.weight":
           cat([w[f"{mid}mlp.{p}_proj.weight"] for p in ("gate", "up")]),
           "lm_head.weight": w["lm_head.weight"]}
    done = {f"{mid}self_attn.{p}_proj.weight" for p in "qkv"}
    done |= {f"{mid}mlp.{p}_proj.weight" for p in ("gate", "up")} | {"lm_head.weight", "d2t", "t2d"}
    for name in w.keys() - done:
        out["model." + name.replace(mid, "layers.0.")] = w[name]
    return out


def poison(model):
    """So that a parameter that the loader leaves alone shows."""
    for p in model.parameters():
        p.data.fill_(float("nan") if p.is_floating_point() else -1)


def compare_parameters(model, w, bad, ignore=()):
    """Every parameter against the file, bit for bit in the parameter's type, both ways."""
    have = {n: p.data for n, p in model.named_parameters() if n not in ignore}
    want = wanted_parameters(w)
    bad.expect(not want.keys() - have.keys(),
               f"every tensor of the file has a place {sorted(want.keys() - have.keys())}")
    bad.expect(not have.keys() - want.keys(),
               f"every parameter is in the file {sorted(have.keys() - want.keys())}")
    for name in sorted(want.keys() & have.keys()):
        got, value = have[name], want[name].to(have[name].dtype)
        rows = got[: value.shape[0]]  # a head may be padded
        bad.expect(rows.shape == value.shape and torch.equal(rows, value),
                   f"{name} {tuple(got.shape)} {got.dtype}")


def compare_vocabulary(ids, w, bad):
    """Their draft id -> target id (None: the same) against t2d, which names the ids another way."""
    if ids is None:
        bad.expect("d2t" not in w, "the draft vocabulary is the target's, the file has no d2t")
        return
    bad.expect(torch.equal(ids.long(), w["t2d"].nonzero().flatten()),
               f"draft id -> target id: {len(ids)} ids, {ids[:4].tolist()} .. {ids[-1].item()}")


def compare_layers(layers, target_layers, bad):
    """A layer is named by the state that enters it, from 0, in both: the choice of EAGLE-3."""
    n = target_layers
    bad.expect(tuple(layers) == (2, n // 2, n - 3), f"reads what enters the layers {tuple(layers)}")


# ---- attention: a row sees the keys of step 0 up to its own, and its own of later steps ----

class Chain:
    """The stand-in for their attention kernel and KV cache."""

    def __init__(self, record=False):
        self.record, self.keys, self.values = record, [], []

    def attend(self, q, k, v, scale):
        """[rows, heads, d] each; Hkv heads of k and v are repeated."""
        n, group = len(q), q.shape[1] // k.shape[1]
        keys = self.keys + [k.repeat_interleave(group, 1)]
        values = self.values + [v.repeat_interleave(group, 1)]
        if self.record:
            self.keys, self.values = keys, values
        ban = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores = [torch.einsum("ihd,jhd->hij", q, keys[0]).masked_fill(ban, float("-inf"))]
        scores += [torch.einsum("ihd,ihd->hi", q, x)[..., None] for x in keys[1:]]
        p = (torch.cat(scores, -1).float() * scale).softmax(-1).to(v.dtype)
        o = torch.einsum("hij,jhd->ihd", p[..., :n], values[0])
        for i, x in enumerate(values[1:]):
            o = o + p[..., n + i].T[..., None] * x
        return o


# ---- the drafter as drafter/eagle.h defines it ----

def norm(x, w, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * w


def rotate(x, position, theta):
    d = x.shape[-1]
    angle = position.double()[:, None] * theta ** (-torch.arange(0, d, 2).double() / d)
    cos, sin = angle.cos().float()[:, None], angle.sin().float()[:, None]
    lo, hi = x[..., : d // 2], x[..., d // 2:]
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], -1)


def reference(directory, w, embed, tokens, features):
    """Logits [DEPTH][rows] over the draft vocabulary; features [rows, 3, C]."""
    c = json.loads((Path(directory) / "config.json").read_text())
    eps, theta, d = c["rms_norm_eps"], c["rope_theta"], c["head_dim"]
    heads, kv, n = c["num_attention_heads"], c["num_key_value_heads"], len(tokens)
    chunks = [features[:, i] for i in range(3)]
    if c.get("fc_norm"):
        chunks = [norm(x, w[f"fc_norm.{i}.weight"], eps) for i, x in enumerate(chunks)]
    g = torch.cat(chunks, -1) @ w["fc.weight"].T
    layer = lambda name: w[f"midlayer.{name}.weight"]
    rows, chain, out = torch.arange(n), Chain(record=True), []
    for k in range(DEPTH):
        token = tokens[torch.clamp(rows + 1 + k, max=n - 1)]
        u = torch.cat([norm(embed[token], layer("input_layernorm"), eps),
                       norm(g, layer("hidden_norm"), eps)], -1)
        q, key, v = (u @ layer(f"self_attn.{p}_proj").T for p in "qkv")
        q = rotate(q.view(n, heads, d), rows + k, theta)
        key = rotate(key.view(n, kv, d), rows + k, theta)
        o = chain.attend(q, key, v.view(n, kv, d), d ** -0.5)
        x = g + o.reshape(n, -1) @ layer("self_attn.o_proj").T
        y = norm(x, layer("post_attention_layernorm"), eps)
        x = x + (F.silu(y @ layer("mlp.gate_proj").T) * (y @ layer("mlp.up_proj").T)) @ \
            layer("mlp.down_proj").T
        s = norm(x, w["norm.weight"], eps)
        out.append(s @ w["lm_head.weight"].T)
        g = s if c.get("norm_output") else x
    return out


# ---- acceptance of a greedy chain ----

def greedy_texts(target, n_new=96):
    """[(tokens, length of the prompt)] that the target writes by itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(target)
    out = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}],
                                            add_generation_prompt=True, return_tensors="pt")
        ids = ids if torch.is_tensor(ids) else ids["input_ids"]
        done = model.generate(ids, max_new_tokens=n_new, do_sample=False)
        out.append((done[0], ids.shape[1]))
    return out


class Acceptance:
    def __init__(self):
        self.hits, self.rows = torch.zeros(DEPTH), 0

    def add(self, ids, tokens, n_prompt):
        """ids [DEPTH, rows]: target ids drafted; row i at depth k predicts token i + 2 + k."""
        last = len(tokens) - 1 - DEPTH
        alive = torch.ones(last - (n_prompt - 1), dtype=torch.bool)
        for k in range(DEPTH):
            rows = torch.arange(n_prompt - 1, last)
            alive = alive & (ids[k][rows] == tokens[rows + 2 + k])
            self.hits[k] += alive.sum()
        self.rows += len(alive)

    def length(self):
        return 1 + float(self.hits.sum()) / self.rows

    def __str__(self):
        shares = " ".join(f"{float(h) / self.rows:.3f}" for h in self.hits)
        return (f"acceptance length {self.length():.2f} of at most {1 + DEPTH} "
                f"({shares}; {self.rows} rows)")
