#!/usr/bin/env python3
"""tensorboard_check.py - the event files of a run read by TensorBoard itself.

    tests/oracle/tensorboard_check.py RUN_DIR

Needs the Python package tensorboard.  Every finite figure of metrics.jsonl must be there as a scalar
of its name, step and fp32 value, and nothing else; every record must pass its checksums.
"""
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing import event_accumulator, event_file_loader


def as_float(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def wanted(run):
    """{name: {step: value}} of metrics.jsonl, the last line of a step winning."""
    out = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        figures = json.loads(line)
        step = figures.pop("step")
        for name, value in figures.items():
            if isinstance(value, (int, float)) and math.isfinite(value) and abs(value) < 3.4e38:
                out.setdefault(name, {})[step] = as_float(value)
    return out


def found(run):
    events = event_accumulator.EventAccumulator(
        str(run), size_guidance={event_accumulator.TENSORS: 0, event_accumulator.SCALARS: 0}
    )
    events.Reload()
    out = {}
    for name in events.Tags()["tensors"]:
        out[name] = {e.step: float(e.tensor_proto.float_val[0]) for e in events.Tensors(name)}
    for name in events.Tags()["scalars"]:
        out[name] = {e.step: e.value for e in events.Scalars(name)}
    return out


def check_records(run):
    """Each file to its end: a reader that meets a bad checksum stops or raises."""
    n = 0
    for path in sorted(run.glob("events.out.tfevents.*")):
        size = 0
        records = list(event_file_loader.RawEventFileLoader(str(path)).Load())
        for record in records:
            size += len(record) + 16
        assert size == path.stat().st_size, f"{path}: {size} bytes read of {path.stat().st_size}"
        n += len(records)
    assert n > 0, "no event files"
    return n


def main():
    run = pathlib.Path(sys.argv[1])
    records = check_records(run)
    want, have = wanted(run), found(run)
    assert want.keys() == have.keys(), f"names differ: {sorted(want.keys() ^ have.keys())[:5]}"
    for name, values in want.items():
        assert values == have[name], f"{name}: {values} in metrics.jsonl, {have[name]} in events"
    n = sum(map(len, want.values()))
    print(f"{records} records, {len(want)} names, {n} scalars: TensorBoard reads what was written")


if __name__ == "__main__":
    main()
