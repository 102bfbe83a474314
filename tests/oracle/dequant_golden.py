#!/usr/bin/env python3
"""Write tests/data/dequant_golden.h: blocks of every type and what the gguf package makes of them.

    python tests/oracle/dequant_golden.py > tests/data/dequant_golden.h      needs: numpy gguf
"""
import importlib.metadata

import numpy as np
from gguf import GGMLQuantizationType as T, dequantize

rng = np.random.default_rng(7)
version = importlib.metadata.version("gguf")
print("/* tests/data/dequant_golden.h - made by tests/oracle/dequant_golden.py with the gguf package")
print(f" * {version}, seed 7; do not edit. */")
print("static const struct {\n    int type, n;\n    unsigned char bytes[80];")
print("    uint32_t bits[64];")
print("} golden[] = {")
for kind, head, tail in ((T.Q4_0, 1, 16), (T.Q4_1, 2, 16), (T.Q8_0, 1, 32)):
    blocks = []
    for scale in (0.01, 7e-7):  # the second scale is a half denormal
        halves = (rng.standard_normal(head) * scale).astype(np.float16)
        quants = rng.integers(0, 256, tail, np.uint8)
        blocks.append(np.concatenate([halves.view(np.uint8), quants]))
    raw = np.concatenate(blocks)
    bits = dequantize(raw, kind).astype(np.float32).view(np.uint32)
    for text in (f"    {{{int(kind)}, {bits.size},",
                 "        {" + ", ".join(map(str, raw)) + "},",
                 "        {" + ", ".join(f"0x{v:08x}" for v in bits) + "}},"):
        while len(text) > 98:
            cut = text.rindex(" ", 0, 98)
            print(text[:cut])
            text = "        " + text[cut + 1:]
        print(text)
print("};")
