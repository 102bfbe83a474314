#!/usr/bin/env python3
"""messages.py - the codec of ipc/ against Python's msgpack, both ways.

    tests/oracle/messages.py --driver build/tests/ipc/messages_driver [--n 50]

Needs the Python package msgpack.  Messages of every type, with fields at both limits and random,
are packed by the driver and read by msgpack; msgpack packs them again, with keys in another order
and once in every other form that a peer may choose, and the driver must find the same in them.
Then what msgpack can write and no message may hold: the driver must refuse each.
"""
import argparse
import random
import struct
import subprocess
import sys

import msgpack


def run(command, text=None):
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def unpack(body):
    return msgpack.unpackb(body, strict_map_key=True, raw=False)


def pack(pairs):
    """A map of these pairs.  Floats are packed by hand: Python's own are double, and going there
    and back makes a signalling NaN a quiet one."""
    packer = msgpack.Packer(use_bin_type=True)
    out = packer.pack_map_header(len(pairs))
    for key, value in pairs:
        out += msgpack.packb(key)
        out += b"\xca" + value[1] if isinstance(value, tuple) else msgpack.packb(value)
    return out


def float_bits(body, key):
    """The four bytes behind the key's 0xca."""
    at = body.index(msgpack.packb(key) + b"\xca") + len(key) + 2
    return body[at:at + 4]


def as_pairs(body):
    fields = unpack(body)
    return [(k, ("f32", float_bits(body, k)) if isinstance(v, float) else v)
            for k, v in fields.items()]


def check_values(name, body):
    """What msgpack sees has the types that the schema allows."""
    for key, value in unpack(body).items():
        assert isinstance(key, str), (name, key)
        assert type(value) in (int, float, str, bytes), (name, key, type(value))
        if isinstance(value, float) and value == value:
            assert struct.pack(">f", value) == float_bits(body, key), (name, key)
        if isinstance(value, int):
            assert 0 <= value < 2 ** 64, (name, key)


def broken(pairs, rng):
    """Bodies that differ from a good one in one thing that is not allowed."""
    def other(i, value):
        return pack(pairs[:i] + [(pairs[i][0], value)] + pairs[i + 1:])
    yield pack(pairs) + b"\xc0"
    yield pack(pairs + [("other", 1)])
    yield msgpack.packb([1, 2, 3])
    if not pairs:
        return
    i = rng.randrange(len(pairs))
    yield pack(pairs[:i] + pairs[i + 1:])
    yield pack(pairs[:i] + [(pairs[i][0] + "x", pairs[i][1])] + pairs[i + 1:])
    yield pack(pairs + [pairs[i]])
    if len(pairs) > 1:
        yield pack(pairs[:i] + [pairs[(i + 1) % len(pairs)]] + pairs[i + 1:])
    for value in (None, True, False, -1, -2 ** 40, 1.5, [], {}, [[[]]], msgpack.ExtType(5, b"x"),
                  msgpack.Timestamp(1)):
        yield other(i, value)
    value = pairs[i][1]
    if isinstance(value, int):
        yield other(i, b"\0" * 8)
        yield other(i, "1")
    if isinstance(value, str):
        yield other(i, value.encode())
        yield other(i, value + "\0")
        yield other(i, "x" * 5000)
    if isinstance(value, bytes):
        yield other(i, value.decode("latin-1"))
        yield other(i, b"\0" * ((1 << 20) + 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--driver", required=True)
    parser.add_argument("--n", type=int, default=50, help="keys, each with every type three times")
    args = parser.parse_args()
    n_good = n_bad = n_failed = 0
    for key in range(args.n):
        rng = random.Random(key)
        lines, wanted = [], []
        for line in run([args.driver, "pack", str(key)]).splitlines():
            number, name, hexed = line.split(" ")
            body = bytes.fromhex(hexed)
            if len(body) > 10000 and key > 0:
                continue  # the limits are the same for every key
            check_values(name, body)
            pairs = as_pairs(body)
            assert pack(pairs) == body, name  # shortest forms, and the order of the table
            rng.shuffle(pairs)
            lines.append(f"{number} {pack(pairs).hex()}")
            wanted.append(hexed)
            for bad in broken(pairs, rng) if len(body) < 10000 else ():
                lines.append(f"{number} {bad.hex()}")
                wanted.append("refused")
        for line, want, got in zip(lines, wanted, run([args.driver, "read"],
                                                      "\n".join(lines) + "\n").splitlines()):
            n_good += want != "refused"
            n_bad += want == "refused"
            if got != want and not (want == "refused" and got.startswith("refused: message ")):
                n_failed += 1
                print(f"{line[:100]}: {got[:100]} instead of {want[:100]}")
    print(f"msgpack {'.'.join(map(str, msgpack.version))}: {n_good} messages read and read back, "
          f"{n_bad} refused, {n_failed} failed")
    return 1 if n_failed or not n_good or not n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
