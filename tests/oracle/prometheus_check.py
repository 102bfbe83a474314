#!/usr/bin/env python3
"""prometheus_check.py - what GET /metrics says, read by Prometheus' own Python parser.

    curl -s http://127.0.0.1:PORT/metrics | tests/oracle/prometheus_check.py [RUN_DIR]

Needs the Python package prometheus_client.  The text must parse; no family and no set of labels may
come twice; every family has a type and a help text; counters end in _total; with RUN_DIR the newest
figure of each name of metrics.jsonl must be among them.
"""
import json
import pathlib
import re
import sys

from prometheus_client.parser import text_string_to_metric_families


def newest(run):
    out = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if name != "step" and isinstance(value, (int, float)):
                out["paceline_" + re.sub(r"[^A-Za-z0-9_]", "_", name)] = float(value)
    return out


def main():
    text = sys.stdin.read()
    seen, values = set(), {}
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M)
    assert len({name for name, _ in types}) == len(types), "a family comes twice"
    for name, kind in types:
        assert (kind == "counter") == name.endswith("_total"), f"{name} is a {kind}"
        assert re.fullmatch(r"paceline_[a-zA-Z0-9_]+", name), name
    for family in text_string_to_metric_families(text):
        assert family.documentation, f"{family.name} has no help"
        assert family.type in ("gauge", "counter"), f"{family.name} is {family.type}"
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in seen, f"{key} comes twice"
            seen.add(key)
            if not sample.labels:
                values[sample.name] = sample.value
    assert seen, "nothing in it"
    if len(sys.argv) > 1:
        for name, value in newest(pathlib.Path(sys.argv[1])).items():
            assert values.get(name) == value, f"{name}: {values.get(name)}, not {value}"
    print(f"{len(types)} families, {len(seen)} samples: Prometheus' parser takes them")


if __name__ == "__main__":
    main()
