#!/usr/bin/env python3
"""Prefill, decode and batch verify of llama.cpp beside paceline's, in turn on one machine.

    pip install llama-cpp-python                # builds llama.cpp from source, some minutes
    bench/peers/llamacpp.py --program build/paceline --model MODEL.gguf \\
        [--rounds 5] [--threads N] [--csv bench/results/llamacpp.csv]

Both run bf16 weights: llama.cpp's own quantizer first turns MODEL.gguf (what paceline dequantizes
itself) into a bf16 file.  It gets its best known setting, for each case the better of two: flash
attention with a bf16 KV cache, and none with an f16 one; a KV cache of its own for each sequence.
A round is one `paceline bench NAME --rounds 1` and one measurement of llama.cpp for each case; the
ratio is the median over the rounds of llama.cpp's seconds to paceline's of the same round.

Context 512: prefill of 512 tokens with logits for the last; decode of 1, 8 and 32 sequences;
verify of 16 tokens (a chain, since llama.cpp has no trees in a pass) with logits for all.
Bar: prefill at least 4x.
"""
import argparse
import csv
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import llama_cpp as lc

CONTEXT, REPEATS = 512, 3
GGML_TYPE_BF16 = 30  # of ggml.h; the Python package has no name for it
CASES = [("prefill", "rows=512", 1, CONTEXT), ("decode", "batch=1", 1, 1),
         ("decode", "batch=8", 8, 1), ("decode", "batch=32", 32, 1), ("verify", "rows=16", 1, 16)]
SETTINGS = {"fa+bf16kv": (lc.LLAMA_FLASH_ATTN_TYPE_ENABLED, GGML_TYPE_BF16),
            "f16kv": (lc.LLAMA_FLASH_ATTN_TYPE_DISABLED, lc.GGML_TYPE_F16)}


def to_bf16(path, out):
    """Write the model with bf16 weights."""
    params = lc.llama_model_quantize_default_params()
    params.ftype = lc.LLAMA_FTYPE_MOSTLY_BF16
    params.allow_requantize = True
    if lc.llama_model_quantize(path.encode(), out.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"llama.cpp cannot turn '{path}' into bf16")


class Peer:
    """One context of llama.cpp: n_seqs sequences that hold CONTEXT tokens each."""

    def __init__(self, model, n_vocab, threads, setting, n_seqs):
        flash, kv_type = SETTINGS[setting]
        params = lc.llama_context_default_params()
        params.n_ctx = n_seqs * (CONTEXT + 64)
        params.n_batch = params.n_ubatch = CONTEXT
        params.n_seq_max = n_seqs
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = flash
        params.type_k = params.type_v = kv_type
        params.kv_unified = False
        self.ctx = lc.llama_init_from_model(model, params)
        if not self.ctx:
            sys.exit(f"llama.cpp makes no context with {setting}")
        self.memory = lc.llama_get_memory(self.ctx)
        self.batch = lc.llama_batch_init(CONTEXT, 0, 1)
        self.n_vocab, self.n_seqs = n_vocab, n_seqs
        for seq in range(n_seqs):
            self.run([(seq, i) for i in range(CONTEXT)], 1)

    def run(self, rows, n_logits):
        """Decode rows (sequence, position), logits for the last n_logits."""
        b = self.batch
        b.n_tokens = len(rows)
        for i, (seq, position) in enumerate(rows):
            b.token[i] = (seq * 7919 + position * 104729 + 3) % self.n_vocab
            b.pos[i] = position
            b.n_seq_id[i] = 1
            b.seq_id[i][0] = seq
            b.logits[i] = i >= len(rows) - n_logits
        if lc.llama_decode(self.ctx, b) != 0:
            sys.exit("llama_decode failed")
        lc.llama_synchronize(self.ctx)

    def time(self, case):
        name, _, n_seqs, n_rows = case
        start = 0 if name == "prefill" else CONTEXT
        rows = [(s, start + i) for s in range(n_seqs) for i in range(n_rows)]
        seconds = []
        for _ in range(REPEATS):
            for s in range(n_seqs):
                lc.llama_memory_seq_rm(self.memory, s, start, -1)
            t0 = time.perf_counter()
            self.run(rows, 1 if name == "prefill" else len(rows))
            seconds.append(time.perf_counter() - t0)
        return statistics.median(seconds)

    def close(self):
        lc.llama_batch_free(self.batch)
        lc.llama_free(self.ctx)


def ours(program, model, name, threads):
    """Records of one round of a bench, by the first key of their case."""
    out = subprocess.run([program, "bench", name, "--json", "--rounds", "1", "--model", model,
                          "--threads", str(threads)], check=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True).stdout
    return {r["case"].split(",")[0]: r for r in map(json.loads, out.splitlines())}


def our_seconds(record, case):
    if record["unit"] == "ms":
        return record["value"] / 1e3
    tokens = CONTEXT if case[0] == "prefill" else case[2]
    return tokens / record["value"]


def measure(args, model, n_vocab):
    """[(case, our seconds, llama.cpp's, its setting)] of every round."""
    rows = []
    for i in range(args.rounds):
        records = {n: ours(args.program, args.model, n, args.threads)
                   for n in sorted({case[0] for case in args.cases})}
        for case in args.cases:
            best = None
            for setting in SETTINGS:
                peer = Peer(model, n_vocab, args.threads, setting, case[2])
                seconds = peer.time(case)
                peer.close()
                if best is None or seconds < best[0]:
                    best = (seconds, setting)
            record = records[case[0]][case[1]]
            rows.append((case, our_seconds(record, case), *best, record))
        print(f"round {i + 1} of {args.rounds}", file=sys.stderr)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--program", default="build/paceline")
    p.add_argument("--model", default="models/SmolLM2-135M-Instruct.Q4_1.gguf")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--csv")
    p.add_argument("--only", help="one bench: prefill, decode or verify")
    args = p.parse_args()
    args.cases = [case for case in CASES if args.only in (None, case[0])]

    quiet = lc.llama_log_callback(lambda level, text, data: None)
    lc.llama_log_set(quiet, None)
    lc.llama_backend_init()
    with tempfile.TemporaryDirectory() as tmp:
        path = os.path.join(tmp, "bf16.gguf")
        to_bf16(args.model, path)
        model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        rows = measure(args, model, n_vocab)
        lc.llama_model_free(model)

    table = []
    for case in args.cases:
        mine = [r for r in rows if r[0] == case]
        record = mine[0][4]
        table.append({"bench": case[0], "case": case[1], "context": CONTEXT,
                      "threads": args.threads, "rounds": args.rounds,
                      "paceline_ms": round(1e3 * statistics.median(r[1] for r in mine), 2),
                      "llamacpp_ms": round(1e3 * statistics.median(r[2] for r in mine), 2),
                      "ratio": round(statistics.median(r[2] / r[1] for r in mine), 2),
                      "llamacpp_setting": statistics.mode(r[3] for r in mine),
                      "llama_cpp_python": lc.__version__, "machine": record["machine"],
                      "commit": record["commit"]})
    out = open(args.csv, "w", newline="") if args.csv else sys.stdout
    writer = csv.DictWriter(out, table[0].keys())
    writer.writeheader()
    writer.writerows(table)


if __name__ == "__main__":
    main()
