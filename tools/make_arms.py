#!/usr/bin/env python3
"""Writes configs/data/arms_train.jsonl, the prompts of `paceline bench arms`: arithmetic of the
quickstart and short stories in turn, 192 in all.  Deterministic."""
import json
import random

WORDS = """apple barn basket bicycle bread bridge candle castle cave clock coffee comet crown desert
doctor dragon farmer feather flute forest fox garden honey island kitchen lantern letter library
map market mirror moon mountain ocean owl pepper piano puppet queen river robot rocket shadow ship
snow soldier spider stone storm tailor teacher thunder tiger train tunnel violin whale window
wolf""".split()

rng = random.Random(7)
with open("configs/data/arithmetic_train.jsonl") as f:
    arithmetic = [json.loads(line) for line in f]
rng.shuffle(arithmetic)
with open("configs/data/arms_train.jsonl", "w") as out:
    for i in range(96):
        a, b, c = rng.sample(WORDS, 3)
        ask = f"Write a short story that contains the words {a}, {b} and {c}, each exactly once."
        story = {
            "data_source": "words_once",
            "prompt": [{"role": "user", "content": ask}],
            "reward_model": {"style": "rule", "ground_truth": f"{a},{b},{c}"},
        }
        for record in (arithmetic[i], story):
            print(json.dumps(record), file=out)
