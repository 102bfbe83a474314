#!/usr/bin/env python3
"""wandb_bridge.py - the figures of a Paceline run in Weights & Biases.

    tools/wandb_bridge.py RUN_DIR [--follow] [--project P] [--name N] [--mode offline|online|disabled]

Reads RUN_DIR/metrics.jsonl, one line a step, and logs each line as one step.  With --follow it goes
on until the run is over (its lock is free) and every line is logged, or until it is interrupted.
Offline by default: wandb writes to RUN_DIR/wandb, nothing leaves the machine, and `wandb sync` sends
it when you want that.  The run is only read; needs the Python package wandb (pip install wandb).
"""
import argparse
import json
import math
import pathlib
import sys
import time

LINE_BYTES = 1 << 20


class Lines:
    """Whole lines of a file that grows; begins anew when the file is cut or replaced."""

    def __init__(self, path):
        self.path, self.at, self.rest, self.inode = path, 0, b"", None

    def read(self):
        try:
            with open(self.path, "rb") as f:
                size, inode = f.seek(0, 2), self.path.stat().st_ino
                if inode != self.inode or size < self.at:
                    self.at, self.rest, self.inode = 0, b"", inode
                f.seek(self.at)
                data = f.read(64 << 20)
        except FileNotFoundError:
            return []
        self.at += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LINE_BYTES:
            self.rest = b""
        return [line for line in lines if len(line) <= LINE_BYTES]


def figures(line):
    """(step, {name: number}) of a line; None: it is none of figures."""
    try:
        values = json.loads(line)
        step = values.pop("step")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        return None
    numbers = {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    return step, numbers


def is_over(run):
    """True when no process holds the run's lock: looked up, not tried, so that nothing is held."""
    try:
        inode = (run / "lock").stat().st_ino
        held = (line.split() for line in pathlib.Path("/proc/locks").read_text().splitlines())
        return not any("FLOCK" in words and f":{inode} " in " ".join(words) for words in held)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def config_of(run):
    try:
        return {"config.yaml": (run / "config.yaml").read_text(errors="replace")}
    except OSError:
        return {}


def bridge(wandb, args):
    run_dir = pathlib.Path(args.run)
    if not run_dir.is_dir():
        sys.exit(f"wandb_bridge: '{run_dir}' is not a directory: give the one of a run")
    run = wandb.init(
        project=args.project,
        name=args.name or run_dir.resolve().name,
        dir=str(run_dir),
        mode=args.mode,
        config=config_of(run_dir),
    )
    lines, n, bad, last = Lines(run_dir / "metrics.jsonl"), 0, 0, -1
    while True:
        over = not args.follow or is_over(run_dir)
        found = lines.read()
        for line in found:
            step_values = figures(line)
            if step_values is None:
                bad += bool(line.strip())
                continue
            step, values = step_values
            if step < last:  # a run that went on from an older checkpoint: wandb cannot take back
                continue
            run.log(values, step=step)
            n, last = n + 1, step
        if over and not found:
            break
        if not found:
            time.sleep(args.interval)
    run.finish()
    print(f"{n} steps logged to {args.project} ({args.mode})" + (f", {bad} lines were none" if bad else ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", help="directory of the run")
    parser.add_argument("--follow", action="store_true", help="go on while the run does")
    parser.add_argument("--project", default="paceline")
    parser.add_argument("--name", help="of the run there (default: the directory's)")
    parser.add_argument("--mode", default="offline", choices=["offline", "online", "disabled"])
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between looks")
    args = parser.parse_args()
    try:
        import wandb
    except ImportError:
        sys.exit("wandb_bridge: the Python package wandb is not installed: pip install wandb")
    try:
        bridge(wandb, args)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
