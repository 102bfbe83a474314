#!/usr/bin/env python3
"""Our log-probs, texts and checkpoints against transformers.  Run by hand:

    make -C build paceline dump_logits
    tests/oracle/logits.py --build build [smollm2] [odd] [run]     (no word: all three)
    tests/oracle/logits.py --build build --golden tests/data       writes the golden models

Needs the Python packages torch, transformers and safetensors.

smollm2  the GGUF, saved as a directory of bf16 weights, in transformers in fp32 and in bf16; 8 chat
         prompts and 48 greedy tokens each.  KL(transformers fp32 || x) of the full next-token
         distribution at every position, x = ours and x = transformers in bf16; greedy texts; the
         chat template; `score` against the logits.
odd      random Llama models of odd shapes saved by transformers, same comparison, and against the
         same roundings done in torch: what our numeric class costs, whoever computes it.
run      the policy of a short `paceline run` loads in transformers with equal weights.

Bars: mean KL at most 4e-4 and at most a quarter of that of transformers in bf16.  Exits with 1 when
one is missed.  --csv FILE keeps the figures.

The quarter depends on the weights too: where a layer adds much against what the residual holds, our
roundings come to more than a quarter of transformers in bf16 whoever computes them, as the line
"same class, torch" shows.  With weights as transformers draws them (odd --init 0.02) 5 of 8 miss
it.
"""
import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils import logging

MEAN_BAR, RATIO_BAR, CLASS_BAR = 4e-4, 0.25, 1.5
DRAWS = 3
NEW_TOKENS = 48
PROMPTS = [
    "What is 7 times 8?",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
    "Give me three tips for learning a new language.",
    "def fibonacci(n): please complete this Python function.",
    "Who wrote Romeo and Juliet, and when?",
    "Translate 'good morning, my friend' to French.",
    "List the planets of the solar system in order.",
]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 1000.0}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def shape(vocab, hidden, heads, kv, dim, inner, layers, tied, rope=DEFAULT_ROPE, eps=1e-5):
    return {"vocab_size": vocab, "hidden_size": hidden, "num_attention_heads": heads,
            "num_key_value_heads": kv, "head_dim": dim, "intermediate_size": inner,
            "num_hidden_layers": layers, "tie_word_embeddings": tied, "rope_parameters": rope,
            "rms_norm_eps": eps, "max_position_embeddings": 256}


# name: (config, shard size or None).  The first three are small enough to be kept as golden files.
MODELS = {
    "llama_head48": (shape(1003, 24, 4, 1, 48, 40, 2, False), None),
    "llama_heads7": (shape(300, 42, 7, 7, 18, 74, 2, True, LLAMA3, 1e-2), None),
    "llama_sharded": (shape(1003, 30, 3, 1, 48, 33, 1, False, LLAMA3), "50KB"),
    "all_odd": (shape(1003, 70, 7, 1, 48, 150, 4, False, LLAMA3), "100KB"),
    "wide_group": (shape(509, 96, 12, 2, 20, 200, 3, True), None),
    "head_2": (shape(1003, 45, 9, 3, 2, 77, 2, False), None),
    "head_160": (shape(1003, 64, 2, 1, 160, 96, 2, True, LLAMA3), "200KB"),
    "deep": (shape(1003, 192, 4, 2, 48, 500, 12, False), None),
}
GOLDEN = ("llama_head48", "llama_heads7", "llama_sharded")
GOLDEN_TOP = 24


# ---- our side ----

def call(command, text=""):
    done = subprocess.run([str(c) for c in command], input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def dump(args, model, out, texts):
    """Write out/weights (bf16) and return our logits, one tensor a text."""
    lines = "".join(" ".join(map(str, t)) + "\n" for t in texts)
    call([args.build / "tests/model/dump_logits", model, out, args.isa], lines)
    if not texts:
        return []
    rows = torch.from_file(f"{out}/logits", size=os.path.getsize(f"{out}/logits") // 4)
    rows = rows.view(sum(map(len, texts)), -1)
    return list(rows.split([len(t) for t in texts]))


def score(args, model, texts, top=0):
    lines = "".join(json.dumps({"tokens": t}) + "\n" for t in texts)
    out = call([args.build / "paceline", "score", "--json", "--model", model, "--isa", args.isa,
                "--top", top], lines)
    return [json.loads(line) for line in out.splitlines()]


# ---- distributions ----

def load(directory, dtype):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0].float()


def rounded(x):
    return x.to(torch.bfloat16).float()


@torch.no_grad()
def rounded_logits(model, ids):
    """What a forward in fp32 gives that rounds the inputs of every product, q, k, v and the softmax
    weights to bf16, and nothing else: the numeric class of Paceline, summed in torch's order.  A
    last bit at the start decides how later values round, and with it the KL of a deep model (2.5e-4
    to 3.6e-4 for SmolLM2): a little noise makes every call another draw."""
    c, n = model.config, len(ids)
    x = model.model.embed_tokens(torch.tensor(ids))
    x = x * (1 + 3e-7 * torch.randn_like(x))
    cosine, sine = model.model.rotary_emb(x[None], torch.arange(n)[None])
    future = torch.full((n, n), float("-inf")).triu(1)

    def norm(x, layer):
        rms = torch.rsqrt((x * x).mean(-1, keepdim=True) + c.rms_norm_eps)
        return rounded(x * rms * layer.weight)

    def heads(x):
        return x.view(n, -1, c.head_dim).transpose(0, 1)

    for layer in model.model.layers:
        a, f, h = layer.self_attn, layer.mlp, norm(x, layer.input_layernorm)
        q, k = heads(a.q_proj(h))[None], heads(a.k_proj(h))[None]
        q, k = apply_rotary_pos_emb(q, k, cosine, sine)
        group = c.num_attention_heads // c.num_key_value_heads
        k, v = (rounded(t).repeat_interleave(group, 0) for t in (k[0], heads(a.v_proj(h))))
        s = rounded(q[0]) @ k.transpose(1, 2) * c.head_dim ** -0.5 + future
        p = rounded(torch.exp(s - s.max(-1, keepdim=True).values))
        o = (p @ v / p.sum(-1, keepdim=True)).transpose(0, 1).reshape(n, -1)
        x = x + a.o_proj(rounded(o))
        h = norm(x, layer.post_attention_layernorm)
        x = x + f.down_proj(rounded(torch.nn.functional.silu(f.gate_proj(h)) * f.up_proj(h)))
    return model.lm_head(norm(x, model.model.norm))


class Figures:
    """KL(want || have), the error of the next token's log-prob, and argmax, over many positions."""

    def __init__(self):
        self.kl, self.error, self.flips = [], [], 0

    def add(self, want, have, ids):
        p, q = (torch.log_softmax(x.double(), -1) for x in (want, have))
        self.kl += (p.exp() * (p - q)).sum(-1).tolist()
        following = torch.tensor(ids[1:]).unsqueeze(1)
        self.error += (p[:-1] - q[:-1]).gather(1, following).abs().flatten().tolist()
        self.flips += int((p.argmax(-1) != q.argmax(-1)).sum())

    def summary(self):
        n = len(self.kl)
        return {"positions": n, "kl_mean": sum(self.kl) / n, "kl_max": max(self.kl),
                "logprob_error_mean": sum(self.error) / len(self.error),
                "logprob_error_max": max(self.error), "argmax_differs": self.flips / n}


def git(*words):
    top = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", "--no-optional-locks", "-C", top, *words], capture_output=True,
                          text=True)
    return done.stdout.strip()


class Report:
    def __init__(self, args):
        self.args, self.rows, self.bad = args, [], 0

    def keep(self, case, figures):
        self.rows += [(case, name, value) for name, value in figures.items()]

    def check(self, ok, words):
        print(("ok    " if ok else "MISSED") + " " + words)
        self.bad += not ok

    def compare(self, case, ours, theirs, torch_class):
        """Figures against transformers in fp32; torch_class: our roundings done by torch."""
        a, b, c = ours.summary(), theirs.summary(), torch_class.summary()
        for name, s in (("ours", a), ("same class, torch", c), ("transformers bf16", b)):
            print(f"  {case:14} {name:18} mean KL {s['kl_mean']:.2e}  max {s['kl_max']:.2e}  "
                  f"log-prob off by {s['logprob_error_mean']:.3f}, at most "
                  f"{s['logprob_error_max']:.3f}  argmax differs "
                  f"{100 * s['argmax_differs']:.1f} %  ({s['positions']} positions)")
        self.keep(f"model={case},engine=paceline", a)
        self.keep(f"model={case},engine=torch-same-class", c)
        self.keep(f"model={case},engine=transformers-bf16", b)
        ratio = a["kl_mean"] / b["kl_mean"]
        self.check(a["kl_mean"] <= MEAN_BAR and ratio <= RATIO_BAR,
                   f"{case}: mean KL {a['kl_mean']:.2e} (bar {MEAN_BAR:.0e}), {ratio:.3f} of "
                   f"transformers in bf16 (bar {RATIO_BAR})")
        ratio = a["kl_mean"] / c["kl_mean"]
        self.check(ratio <= CLASS_BAR,
                   f"{case}: {ratio:.2f} of the same roundings in torch (bar {CLASS_BAR})")

    def write(self):
        if not self.args.csv:
            return
        commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
        if git("status", "--porcelain", "--", "*.c", "*.h", "*.py"):
            commit += "-dirty"
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in lines if "model name" in x), "unknown")
        machine = f"{cpu} {os.cpu_count()} CPUs"
        software = f"torch {version('torch')} transformers {version('transformers')}"
        Path(self.args.csv).parent.mkdir(parents=True, exist_ok=True)
        with open(self.args.csv, "w", newline="") as f:
            out = csv.writer(f, lineterminator="\n")
            out.writerow(["bench", "case", "figure", "value", "machine", "software", "commit"])
            for case, figure, value in self.rows:
                out.writerow(["logits", case, figure, f"{value:.6g}", machine, software, commit])


# ---- SmolLM2 ----

def chat_ids(tokenizer, prompt):
    ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}],
                                        add_generation_prompt=True, tokenize=True)
    return list(ids["input_ids"] if hasattr(ids, "keys") else ids)


@torch.no_grad()
def greedy(model, ids):
    """Greedy continuation, up to and with the end token, and the logits it was chosen by."""
    x = torch.tensor([ids])
    out = model.generate(x, attention_mask=torch.ones_like(x), do_sample=False,
                         max_new_tokens=NEW_TOKENS, output_logits=True,
                         return_dict_in_generate=True)
    return out.sequences[0, len(ids):].tolist(), [x[0] for x in out.logits]


def compare_texts(report, ours, theirs, logits, prompts):
    """Where the greedy texts part, and how close the two tokens were there in fp32."""
    equal = 0
    for prompt, a, b, z in zip(prompts, ours, theirs, logits):
        at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None)
        if at is None and len(a) == len(b):
            equal += 1
            continue
        at = min(len(a), len(b)) if at is None else at
        gap = (z[at][b[at]] - z[at][a[at]]).item() if at < min(len(a), len(b)) else float("nan")
        print(f"  greedy text of '{prompt}' parts at token {at} of {len(b)}, where the two tokens "
              f"are {gap:.3f} apart in fp32")
        report.check(gap < 0.3, "a greedy text parts only where two tokens are nearly equal")
    print(f"  greedy texts: {equal} of {len(prompts)} equal over up to {NEW_TOKENS} tokens")
    report.keep("model=smollm2,engine=paceline",
                {"greedy_equal": equal, "greedy_texts": len(prompts)})


def smollm2(args, report):
    with tempfile.TemporaryDirectory() as out:
        dump(args, args.model, out, [])
        weights = out + "/weights"
        tokenizer = AutoTokenizer.from_pretrained(weights)
        model = load(weights, torch.float32)
        lines = "".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS)
        done = call([args.build / "paceline", "generate", "--json", "--model", args.model,
                     "--prompts", "-", "--temperature", 0, "--max-tokens", NEW_TOKENS,
                     "--isa", args.isa], lines)
        ours = [json.loads(line) for line in done.splitlines()]
        prompts = [chat_ids(tokenizer, p) for p in PROMPTS]
        report.check([o["prompt_ids"] for o in ours] == prompts,
                     "smollm2: chat prompts equal apply_chat_template's")
        texts, logits = zip(*(greedy(model, p) for p in prompts))
        compare_texts(report, [o["tokens"] for o in ours], texts, logits, PROMPTS)
        report.check(all(o["text"] == tokenizer.decode(o["tokens"], skip_special_tokens=True)
                         for o in ours), "smollm2: texts equal the Hugging Face tokenizer's")
        compare_model(args, report, "smollm2", args.model, out,
                      [p + t for p, t in zip(prompts, texts)], model)


def compare_model(args, report, case, path, out, texts, model=None):
    """Distributions of one model; model is transformers' in fp32 if it is loaded already."""
    ours = dump(args, path, out, texts)
    model = model or load(out + "/weights", torch.float32)
    want = [logits_of(model, t) for t in texts]
    small = load(out + "/weights", torch.bfloat16)
    mine, theirs, same = Figures(), Figures(), Figures()
    torch.manual_seed(0)
    for ids, w, o in zip(texts, want, ours):
        mine.add(w, o, ids)
        theirs.add(w, logits_of(small, ids), ids)
        for _ in range(DRAWS):
            same.add(w, rounded_logits(model, ids), ids)
    report.compare(case, mine, theirs, same)
    check_score(args, report, case, path, texts, ours)
    return want, theirs, same


def check_score(args, report, case, path, texts, ours):
    worst, order = 0.0, True
    for ids, z, line in zip(texts, ours, score(args, path, texts, 5)):
        lp = torch.log_softmax(z.double(), -1)
        have = torch.tensor(line["logprobs"][1:], dtype=torch.float64)
        want = lp[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).flatten()
        worst = max(worst, (have - want).abs().max().item())
        best = lp.topk(5).values
        top = torch.tensor([[pair[1] for pair in row] for row in line["top"]], dtype=torch.float64)
        order &= line["tokens"] == ids and (best - top).abs().max().item() < 2e-5
    report.check(worst < 2e-5 and order,
                 f"{case}: score --json --top 5 follows from the logits, within {worst:.1e}")


# ---- odd shapes ----

def random_model(name, seed, own_init=None):
    """Weights that give sharp attention and a distribution about as peaked as a language model's,
    with gains that differ from 1, and what the layers add scaled by 1 / sqrt(2 layers), as GPT-2
    was initialised; own_init: as transformers draws them, with that initializer_range.  Rounded to
    bf16.  Only to be saved: .to() rounds the RoPE frequencies too, from_pretrained() does not."""
    config = LlamaConfig(**MODELS[name][0], bos_token_id=1, eos_token_id=2, pad_token_id=None,
                         initializer_range=own_init or 0.02)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    if own_init:
        return model.to(torch.bfloat16)
    residual = 1 / config.hidden_size ** 0.5 if config.tie_word_embeddings else 1.0
    with torch.no_grad():
        for key, p in model.named_parameters():
            std = 1.2 / p.shape[-1] ** 0.5
            if p.dim() == 1:
                p.copy_(1 + 0.2 * torch.randn_like(p))
                continue
            if key == "model.embed_tokens.weight":
                std = residual
            elif key == "lm_head.weight":
                std = 2.5 / config.hidden_size ** 0.5
            elif "o_proj" in key or "down_proj" in key:
                std *= residual / (2 * config.num_hidden_layers) ** 0.5
            p.copy_(torch.randn_like(p) * std)
    return model.to(torch.bfloat16)


def save_model(name, directory, seed, own_init=None):
    shards = MODELS[name][1]
    model = random_model(name, seed, own_init)
    model.save_pretrained(directory, **({"max_shard_size": shards} if shards else {}))
    return model


def random_texts(vocab, seed, n_texts=4, n_tokens=100):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocab, (n_tokens,), generator=draw).tolist() for _ in range(n_texts)]


def give_tokenizer(args, directory, vocab):
    """`score` opens a tokenizer, which these models lack: a tiny one's, cut to fit."""
    with tempfile.TemporaryDirectory() as tiny:
        call([args.build / "paceline", "tiny", tiny + "/m", "--vocab", vocab])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (Path(directory) / file).write_bytes(Path(tiny, "m", file).read_bytes())


def same_weights(directory, model):
    have = {}
    for file in Path(directory).glob("*.safetensors"):
        have.update(load_file(file))
    want = model.state_dict()
    return all(torch.equal(t.to(want[k].dtype), want[k]) for k, t in have.items()) and \
        set(want) - set(have) <= {"lm_head.weight"}


def odd(args, report):
    for seed, name in enumerate(MODELS, 1):
        with tempfile.TemporaryDirectory() as out:
            theirs = out + "/theirs"
            model = save_model(name, theirs, seed, args.init)
            vocab = model.config.vocab_size
            give_tokenizer(args, theirs, vocab)
            compare_model(args, report, name, theirs, out, random_texts(vocab, seed))
            report.check(same_weights(out + "/weights", model),
                         f"{name}: pl_model_save writes what transformers saved")


def golden_json(name, seed, ids, want, theirs, same):
    lp = torch.log_softmax(want.double(), -1)
    best = lp.topk(GOLDEN_TOP)
    head = {"model": name, "seed": seed, "torch": version("torch"),
            "transformers": version("transformers"),
            "kl_mean_transformers_bf16": float(f"{theirs.summary()['kl_mean']:.4g}"),
            "kl_mean_same_class": float(f"{same.summary()['kl_mean']:.4g}"),
            "tokens": ids,
            "logprobs": [None] + [round(lp[i, t].item(), 6) for i, t in enumerate(ids[1:])]}
    rows = [json.dumps([[i, round(v, 6)] for i, v in zip(*row)], separators=(",", ":"))
            for row in zip(best.indices.tolist(), best.values.tolist())]
    text = json.dumps(head, separators=(",", ":"))[:-1]
    return text.replace(',"tokens"', ',\n"tokens"') + ',\n"top":[\n' + ",\n".join(rows) + "\n]}\n"


def golden(args, report):
    for seed, name in enumerate(GOLDEN, 1):
        directory = args.golden / name
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as out:
            vocab = save_model(name, directory, seed).config.vocab_size
            (directory / "generation_config.json").unlink(missing_ok=True)
            shutil.copytree(directory, out + "/theirs")
            give_tokenizer(args, out + "/theirs", vocab)
            texts = random_texts(vocab, 100 + seed, 1)
            want, theirs, same = compare_model(args, report, name, out + "/theirs", out, texts)
            (directory / "expected.json").write_text(
                golden_json(name, seed, texts[0], want[0], theirs, same))
        for file in directory.iterdir():
            file.chmod(0o644)


# ---- checkpoints ----

RUN_CONFIG = """\
actor_rollout_ref:
  model: {{path: {model}}}
  rollout: {{n: 4, temperature: 1.0, max_num_seqs: 8}}
  actor: {{optim: {{lr: 1e-3}}}}
data: {{train_files: {prompts}, train_batch_size: 2, max_response_length: 12}}
trainer:
  {{experiment_name: oracle, total_training_steps: 2, save_freq: 1, default_local_dir: {out}}}
"""


def write_run(out):
    prompts = Path(out, "prompts.jsonl")
    record = {"data_source": "last_number", "ability": "math",
              "reward_model": {"style": "rule", "ground_truth": "4"}}
    prompts.write_text("".join(
        json.dumps({**record, "prompt": [{"role": "user", "content": f"What is {i} + 1?"}],
                    "extra_info": {"index": i}}) + "\n" for i in range(4)))
    config = Path(out, "run.yaml")
    config.write_text(RUN_CONFIG.format(model=out + "/m", prompts=prompts, out=out + "/run"))
    return config


def run(args, report):
    with tempfile.TemporaryDirectory() as out:
        call([args.build / "paceline", "tiny", out + "/m"])
        call([args.build / "paceline", "run", write_run(out)])
        policy = sorted(Path(out, "run/checkpoints").glob("global_step_*/policy"))
        report.check([p.parent.name for p in policy] != [], f"run: {len(policy)} checkpoints")
        for p in policy:
            model, info = AutoModelForCausalLM.from_pretrained(
                p, dtype="auto", output_loading_info=True)
            wrong = [k for k in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[k]]
            report.check(not wrong and same_weights(p, model),
                         f"run: {p.parent.name} loads in transformers with equal weights, "
                         f"{model.dtype} {wrong or ''}")
            check_policy(args, report, p, model)


def check_policy(args, report, path, model):
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "What is 3 + 1? <|im_end|> caf\u00e9 \U0001f600 x"
    got = call([args.build / "paceline", "tokenize", "--json", "--model", path],
               json.dumps(text) + "\n")
    report.check(json.loads(got)["tokens"] == tokenizer.encode(text, add_special_tokens=False),
                 f"run: {path.parent.name}: its tokenizer in transformers gives our ids")
    ids = random_texts(model.config.vocab_size, 5, 1)[0]
    line = score(args, path, [ids])[0]
    want = torch.log_softmax(logits_of(model.to(torch.bfloat16).float(), ids), -1)
    worst = max(abs(want[i, t].item() - line["logprobs"][i + 1]) for i, t in enumerate(ids[1:]))
    report.check(worst < 0.05, f"run: {path.parent.name}: log-probs within {worst:.4f} of fp32")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["smollm2", "odd", "run"])
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--init", type=float, metavar="STD",
                        help="odd: weights as transformers draws them, with this initializer_range")
    parser.add_argument("--csv")
    parser.add_argument("--golden", type=Path, help="write the golden models below this directory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    report = Report(args)
    if args.golden:
        golden(args, report)
    else:
        for part in args.parts:
            {"smollm2": smollm2, "odd": odd, "run": run}[part](args, report)
    report.write()
    sys.exit(1 if report.bad else 0)


if __name__ == "__main__":
    main()
