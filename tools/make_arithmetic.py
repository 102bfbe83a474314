#!/usr/bin/env python3
"""Write the prompts of the quickstart: configs/data/arithmetic_{train,val}.jsonl.

Single-digit arithmetic, one record a line as verl's data sets have it.  A quarter of the *unordered*
pairs of each task is held out, so that 7 x 8 and 8 x 7 stand on the same side.  Which pairs those
are is decided by a hash of their names: the same on every machine.

usage: tools/make_arithmetic.py [directory, default configs/data]
"""

import hashlib
import json
import sys

TASKS = {
    "times": (range(2, 10), "What is {} times {}?", lambda a, b: a * b),
    "sum": (range(1, 10), "What is {} + {}?", lambda a, b: a + b),
}


def held_out(task, numbers):
    pairs = [(a, b) for a in numbers for b in numbers if a <= b]
    pairs.sort(key=lambda p: hashlib.sha256(f"{task} {p[0]} {p[1]}".encode()).digest())
    return set(pairs[: len(pairs) // 4])


def record(task, question, answer, split, index):
    return {
        "data_source": "last_number",
        "prompt": [{"role": "user", "content": question}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(answer)},
        "extra_info": {"split": split, "index": index, "task": task},
    }


def main():
    directory = sys.argv[1] if len(sys.argv) > 1 else "configs/data"
    records = {"train": [], "val": []}
    for task, (numbers, question, answer) in TASKS.items():
        val = held_out(task, numbers)
        for a in numbers:
            for b in numbers:
                split = "val" if (min(a, b), max(a, b)) in val else "train"
                rows = records[split]
                rows.append(record(task, question.format(a, b), answer(a, b), split, len(rows)))
    for split, rows in records.items():
        with open(f"{directory}/arithmetic_{split}.jsonl", "w", encoding="ascii") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
