#!/usr/bin/env python3
"""A GRPO step of TRL's GRPOTrainer beside one of `paceline run`, in turn on one machine.

    pip install torch transformers trl datasets gguf
    bench/peers/trl_grpo.py --program build/paceline --model MODEL \\
        [--config configs/quickstart.yaml] [--rounds 3] [--tokens 128] [--micro-batch 32] \\
        [--csv bench/results/trl_grpo.csv]

MODEL is a .gguf file or a Hugging Face directory; both sides load the same.  The same 8 prompts (the
first of --prompts), 8 samples of each, T = 1, and exactly --tokens new tokens a sample on both
sides: the end token is held back (TRL) or passed over (paceline, rollout.ignore_eos).  Same clip
range and learning rate, no KL, bf16 weights for TRL, its generation that of transformers.  TRL warms
up with one step; then in each round paceline runs one step as a process of its own, while TRL
stands still between two of its steps, and TRL its next step.  paceline's step is timing_s/step of
its metrics, TRL's the time between the callbacks of two steps.  Bar: ratio at least 6.
"""
import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

N_PROMPTS, N_SAMPLES = 8, 8


def load(path):
    """Model in bf16 and tokenizer, from a GGUF file or a directory."""
    where, extra = path, {}
    if path.endswith(".gguf"):
        where, extra = os.path.dirname(path) or ".", {"gguf_file": os.path.basename(path)}
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, **extra)
    return model, AutoTokenizer.from_pretrained(where, **extra)


def last_number(text):
    found = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"(?<=\d),(?=\d)", "", text))
    return float(found[-1]) if found else None


def reward(completions, answer, **_):
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [float(last_number(t) == float(a)) for t, a in zip(texts, answer)]


def our_step(args, prompts_file, tmp, i):
    """Run one step in a directory of its own.  Returns its record of metrics.jsonl."""
    run = os.path.join(tmp, f"run{i}")
    subprocess.run(
        [args.program, "run", args.config, f"actor_rollout_ref.model.path={args.model}",
         f"trainer.default_local_dir={run}", "trainer.total_training_steps=1",
         "trainer.val_before_train=false", "trainer.compare_prompts=0",
         f"trainer.threads={args.threads}", f"data.train_files={prompts_file}",
         f"data.val_files={prompts_file}", f"data.train_batch_size={N_PROMPTS}",
         f"actor_rollout_ref.rollout.n={N_SAMPLES}", "actor_rollout_ref.rollout.ignore_eos=true",
         f"data.max_response_length={args.tokens}"], check=True, stdout=subprocess.DEVNULL)
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as f:
        for record in map(json.loads, f):
            if "timing_s/step" in record:
                return record
    sys.exit(f"{run}/metrics.jsonl holds no timing_s/step")


class Alternate(TrainerCallback):
    """Time TRL's steps; let paceline do one after each."""

    def __init__(self, ours):
        self.ours, self.pairs, self.mine, self.t0 = ours, [], None, None

    def on_step_end(self, args, state, control, **_):
        if self.t0 is not None:
            self.pairs.append((self.mine, time.perf_counter() - self.t0))
        if state.global_step < args.max_steps:
            self.mine = self.ours(state.global_step)
            self.t0 = time.perf_counter()


def train(args, rows, ours):
    """Steps of TRL with paceline's between them: [(record of ours, seconds of TRL)]."""
    model, tokenizer = load(args.model)
    callback = Alternate(ours)
    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, max_steps=args.rounds + 1,
            per_device_train_batch_size=args.micro_batch,
            gradient_accumulation_steps=N_PROMPTS * N_SAMPLES // args.micro_batch,
            num_generations=N_SAMPLES, max_completion_length=args.tokens,
            generation_kwargs={"min_new_tokens": args.tokens}, temperature=1.0, top_p=1.0, top_k=0,
            beta=0.0, epsilon=0.2, epsilon_high=0.28, learning_rate=2e-5, loss_type="dapo",
            gradient_checkpointing=False, dataloader_pin_memory=False, seed=0)
        trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config,
                              train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
                              callbacks=[callback])
        trainer.train()
    return callback.pairs


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--program", default="build/paceline")
    p.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    p.add_argument("--config", default="configs/quickstart.yaml")
    p.add_argument("--prompts", default="configs/data/arithmetic_train.jsonl")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--micro-batch", type=int, default=32)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--csv")
    args = p.parse_args()

    torch.set_num_threads(args.threads)
    with open(args.prompts, encoding="utf-8") as f:
        lines = [next(f) for _ in range(N_PROMPTS)]
    records = [json.loads(line) for line in lines]
    rows = [{"prompt": r["prompt"], "answer": r["reward_model"]["ground_truth"]} for r in records]
    with tempfile.TemporaryDirectory() as tmp:
        prompts_file = os.path.join(tmp, "prompts.jsonl")
        with open(prompts_file, "w", encoding="utf-8") as f:
            f.writelines(lines)
        pairs = train(args, rows, lambda i: our_step(args, prompts_file, tmp, i))

    about = subprocess.run([args.program, "--version"], check=True, stdout=subprocess.PIPE,
                           text=True).stdout
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        machine = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    table = [{"case": f"prompts={N_PROMPTS},samples={N_SAMPLES},tokens={args.tokens}",
              "threads": args.threads, "rounds": len(pairs),
              "paceline_step_s": round(statistics.median(o["timing_s/step"] for o, _ in pairs), 2),
              "paceline_gen_s": round(statistics.median(o["timing_s/gen"] for o, _ in pairs), 2),
              "trl_step_s": round(statistics.median(t for _, t in pairs), 2),
              "ratio": round(statistics.median(t / o["timing_s/step"] for o, t in pairs), 2),
              "trl": version("trl"), "torch": version("torch"),
              "transformers": version("transformers"), "machine": machine,
              "commit": re.search(r"commit (\w+)", about).group(1)}]
    out = open(args.csv, "w", newline="") if args.csv else sys.stdout
    writer = csv.DictWriter(out, table[0].keys())
    writer.writeheader()
    writer.writerows(table)


if __name__ == "__main__":
    main()
