#!/usr/bin/env python3
"""Our gradients of a whole model against torch's.

    make -C build dump_gradients
    tests/oracle/gradients.py --driver build/tests/model/dump_gradients --model MODEL [--isa ISA]

Needs the Python packages torch, transformers and safetensors.  torch runs transformers in fp32 on the
same bf16-rounded weights, same tokens, same loss: sum of advantage(text) log p(token) over the
second half of each text at temperature 0.9.  Prints relative L2 and cosine for each group of
parameters (and the worst single parameter in it), the largest difference of a log-prob, and exits
with 1 when a group passes 3e-2 or falls under 0.999.
"""
import argparse
import collections
import math
import re
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TEMPERATURE = 0.9
ADVANTAGES = [1.0, -0.7, 0.4, -1.2, 0.9, 0.3, -0.5, 1.1]  # of each text, as GRPO would give
TEXTS = [
    "<|im_start|>user\nWhat is 7 times 8?<|im_end|> <|im_start|>assistant 7 times 8 is 56. You can check "
    "it by adding 7 eight times: 7, 14, 21, 28, 35, 42, 49, 56.<|im_end|>",
    "The quick brown fox jumps over the lazy dog, and then it sleeps under the old apple tree until "
    "the sun goes down behind the hills.",
    "def area(radius):  return 3.14159 * radius ** 2  # the area of a circle; for a sphere see below. "
    "def volume(radius): return 4 / 3 * 3.14159 * radius ** 3",
    "Water boils at 100 degrees Celsius at sea level, but on a high mountain the pressure is lower, so "
    "it boils earlier and food takes longer to cook. Cooks in the Andes use pressure pots for beans, "
    "and they keep the lid closed until the steam has gone.",
    "<|im_start|>user\nWhat is 4 + 9?<|im_end|> <|im_start|>assistant To find the sum of 4 and 9 we "
    "count on from 9: ten, eleven, twelve, thirteen. So 4 + 9 = 13.<|im_end|>",
    "In 1804 the expedition left Saint Louis and followed the river to the north-west. The men drew "
    "maps, wrote down the names of plants, and traded knives for horses before the snow came.",
    "A list of three fruits: apples, oranges and bananas. A list of three colours: red, green and "
    "blue. A list of three animals: cats, dogs and horses.",
    "She opened the letter, read it twice, and laughed. It was from her brother, who had missed the "
    "train again and was now walking home through the rain with a borrowed umbrella.",
]


def run_driver(args, out):
    command = [args.driver, args.model, out, args.isa]
    text = "".join(t.replace("\n", " ") + "\n" for t in TEXTS)
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seqs, logprobs = [], {}
    for line in done.stdout.splitlines():
        kind, *words = line.split()
        if kind == "tokens":
            seqs.append((int(words[0]), [int(w) for w in words[1:]]))
        else:
            logprobs[int(words[0]), int(words[1])] = float(words[2])
    return seqs, logprobs


def torch_loss(model, seqs, ours):
    """Backward of every sequence; returns the largest difference of a log-prob."""
    worst = 0.0
    for s, (n_prompt, ids) in enumerate(seqs):
        logits = model(torch.tensor([ids])).logits[0] / TEMPERATURE
        lp = torch.log_softmax(logits, -1)
        total = 0.0
        for i in range(n_prompt, len(ids)):
            p = lp[i - 1, ids[i]]
            worst = max(worst, abs(p.item() - ours[s, i]))
            total = total + ADVANTAGES[s] * p
        total.backward()
    return worst


def compare(want, got):
    """Sums from which relative L2 and cosine of one or more parameters follow."""
    want, got = want.double().flatten(), got.double().flatten()
    return torch.stack([((got - want) ** 2).sum(), want @ want, got @ got, got @ want])


def figures(sums):
    diff, ww, gg, gw = sums.tolist()
    return math.sqrt(diff / ww), gw / math.sqrt(ww * gg)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--isa", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        seqs, logprobs = run_driver(args, out)
        model = AutoModelForCausalLM.from_pretrained(out + "/weights", dtype=torch.float32)
        ours = load_file(out + "/gradients/model.safetensors")
    print(f"{len(seqs)} sequences, {sum(len(i) for _, i in seqs)} tokens; "
          f"log-probs differ by {torch_loss(model, seqs, logprobs):.3g} at most")
    groups, worst = collections.defaultdict(lambda: 0), {}
    for name, p in model.named_parameters():
        group = re.sub(r"model\.(layers\.\d+\.)?|\.weight", "", name)
        sums = compare(p.grad, ours[name])
        groups[group] = groups[group] + sums
        l2, cosine = figures(sums)
        worst[group] = max(worst.get(group, (0,)), (l2, cosine, name))
    bad = 0
    print(f"{'group':28}{'rel. L2':>10}{'cosine':>11}   worst parameter")
    for group, sums in groups.items():
        l2, cosine = figures(sums)
        bad += l2 > 3e-2 or cosine < 0.999
        w = worst[group]
        print(f"{group:28}{l2:10.2e}{cosine:11.7f}   {w[0]:.2e} {w[1]:.6f} {w[2]}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
