#!/usr/bin/env python3
"""timeline_check.py - trace.json by the rules of the readers of Chrome's trace events.

    tests/oracle/timeline_check.py RUN_DIR

The array without its closing bracket must be JSON when that is put there; each event has a phase, a
process and a thread; complete events have a begin and a length; each thread has one name.
"""
import json
import pathlib
import sys


def main():
    text = (pathlib.Path(sys.argv[1]) / "trace.json").read_text()
    assert text.startswith("[\n") and text.endswith(",\n"), "not whole lines of an array"
    events = json.loads(text[:-2] + "\n]")
    names, used = {}, set()
    for e in events:
        assert {"name", "ph", "pid", "tid"} <= e.keys(), e
        if e["ph"] == "M" and e["name"] == "thread_name":
            assert names.setdefault(e["tid"], e["args"]["name"]) == e["args"]["name"], e
        if e["ph"] == "X":
            assert isinstance(e["ts"], int) and isinstance(e["dur"], int) and e["dur"] >= 0, e
            assert isinstance(e.get("args", {}), dict), e
            used.add((e["tid"], e["cat"]))
    assert used <= set(names.items()), "a track has no name, or another one"
    print(f"{len(events)} events on {len(names)} tracks: a JSON array of trace events")


if __name__ == "__main__":
    main()
