#!/usr/bin/env python3
"""Our tokenizer against Hugging Face's on many strings.

    tests/oracle/tokenizer.py --driver BUILD/tokenizer_driver [--model MODEL.gguf] [--n 20000]
    tests/oracle/tokenizer.py --golden     also writes the golden files under tests/data/

Needs the Python packages tokenizers, transformers and gguf.  Two Hugging Face tokenizers are asked:
one that is built here from the vocabulary and merges of the GGUF with the documented pre-tokenizer
(Digits, then ByteLevel), and one that AutoTokenizer loads from what our pl_tokenizer_save wrote.
Prints the number of differences and exits with 1 when there is one.  --families also trains small
tokenizers of the other families and compares those.
"""
import argparse
import glob
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = ROOT + "/tests/data"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
          "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")

# Blocks that a text in this script is drawn from.
SCRIPTS = [(0x20, 0x7E), (0xA1, 0xFF), (0x100, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF),
           (0x400, 0x52F), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x700, 0x74F),
           (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xB80, 0xBFF), (0xC00, 0xC7F),
           (0xD00, 0xD7F), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F),
           (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1400, 0x167F),
           (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1C80, 0x1CBF), (0x1E00, 0x1EFF), (0x2070, 0x209F),
           (0x20A0, 0x20CF), (0x2100, 0x218F), (0x2190, 0x23FF), (0x2460, 0x24FF), (0x2500, 0x25FF),
           (0x2C00, 0x2DFF), (0x3040, 0x30FF), (0x3100, 0x33FF), (0x4E00, 0x9FFF), (0xA640, 0xA69F),
           (0xA720, 0xA7FF), (0xAC00, 0xD7A3), (0xFB00, 0xFDFF), (0xFE70, 0xFEFF), (0xFF00, 0xFFEF),
           (0x10400, 0x1044F), (0x105C0, 0x105FF), (0x10D30, 0x10D8F), (0x11300, 0x113FF),
           (0x11BC0, 0x11BFF), (0x11D00, 0x11DFF), (0x11F00, 0x11F5F), (0x13400, 0x1345F),
           (0x16100, 0x1613F), (0x16D40, 0x16D7F), (0x16FE0, 0x16FFF), (0x1CCF0, 0x1CCF9),
           (0x1D400, 0x1D7FF), (0x1DF00, 0x1DFFF), (0x1E000, 0x1E08F), (0x1E4D0, 0x1E5FF),
           (0x20000, 0x2A6DF), (0x2B730, 0x2B74F), (0x2EBF0, 0x2EE5F), (0x30000, 0x323AF)]
SPACES = ("\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u2007\u2009\u200a\u200b\u200c"
          "\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff")
EMOJI = ["\U0001F600", "\U0001F44D\U0001F3FD", "\U0001F468\u200d\U0001F469\u200d\U0001F467",
         "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001F1E9\U0001F1EA", "\U0001F3F4\U000E0067\U000E0062",
         "\U0001F9D1\u200d\U0001F680", "\u2603", "\U0001FAE8", "\u00a9\ufe0f", "\U0001F980"]
PIECES = ["'s", "'S", "'ll", "'LL", "'re", "'Ve", "'\u017f", "'t", "'d", "''m", "don't", "I'd", " 'tis",
          "12", "3.14", "1e-5", "0x1F", "2024-01-02", "  ", "   ", "\n", "\n\n", "\r\n", "\t\t", " \n ",
          "...", "--", "==", "!=", "->", "/*", "*/", "//", "(", ")", "{}", "[0]", ";", ",", ".", "?!",
          "hello", "World", "naive", "na\u00efve", "cafe\u0301", "\u00bd", "\u2167", "\u0664\u0665",
          "\u4e94", "x\u00b2", "<", ">", "|", "<|", "|>", "im_end"]


def scripts(rng):
    low, high = rng.choice(SCRIPTS)
    words = ["".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 9)))
             for _ in range(rng.randint(1, 9))]
    return rng.choice([" ", "  ", "", ", ", "\u3000"]).join(words)


def mixed(rng):
    def one():
        k = rng.random()
        if k < 0.3:
            return rng.choice(PIECES)
        if k < 0.45:
            return rng.choice(SPACES) * rng.randint(1, 3)
        if k < 0.6:
            return rng.choice(EMOJI)
        low, high = rng.choice(SCRIPTS)
        return chr(rng.randint(low, high))
    return "".join(one() for _ in range(rng.randint(1, 24)))


def any_char(rng):
    c = rng.choice([rng.randint(0, 0x7F), rng.randint(0, 0xFFF), rng.randint(0, 0xFFFF),
                    rng.randint(0, 0x323AF), rng.randint(0, 0x10FFFF)])
    return chr(c) if not 0xD800 <= c < 0xE000 else " "


def corpus(only_ours):
    """Code and prose: the sources here and, unless only_ours, some of Python's own modules."""
    texts = []
    names = sorted(glob.glob(ROOT + "/core/*.[ch]") + glob.glob(ROOT + "/model/*.[ch]"))
    if not only_ours:
        names += sorted(glob.glob(sysconfig.get_paths()["stdlib"] + "/[a-h]*.py"))[:40]
    for name in names:
        with open(name, encoding="utf-8") as f:
            texts.append(f.read())
    return texts


def make_strings(n, specials, seed, only_ours=False):
    rng = random.Random(seed)
    texts = corpus(only_ours)

    def code():
        text = rng.choice(texts)
        at = rng.randrange(len(text))
        return text[at:at + rng.randint(1, 100 if only_ours else 300)]

    kinds = [
        code,
        lambda: scripts(rng),
        lambda: mixed(rng),
        lambda: "".join(rng.choice(EMOJI) for _ in range(rng.randint(1, 8))),
        lambda: "".join(rng.choice(SPACES + "ab1") for _ in range(rng.randint(1, 20))),
        lambda: "".join(chr(rng.randint(0, 0x1F)) + rng.choice(["", "a", " ", "7"])
                        for _ in range(rng.randint(1, 12))),
        lambda: "".join(rng.choice(specials) if rng.random() < 0.4 else mixed(rng)[:6]
                        for _ in range(rng.randint(1, 6))),
        lambda: "".join(any_char(rng) for _ in range(rng.randint(1, 30))),
        lambda: "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 30))),
        lambda: rng.choice("aeiou \n!=-_#1\u00e9\u4e00") * rng.randint(1, 100 if only_ours else 400),
        lambda: "".join(rng.choice("abcdefghij") for _ in range(rng.randint(40, 200))),
    ]
    out = [kinds[i % len(kinds)]() for i in range(n)]
    out[0] = ""
    return out


def run(command, strings):
    text = "".join(json.dumps(s) + "\n" for s in strings)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def from_gguf(path):
    from gguf import GGUFReader
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    t = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(tokens)}, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(s, special=True, normalized=False)
                          for s, k in zip(tokens, types) if k == 3])
    return t


def train(family, n_vocab):
    """A small tokenizer of a family, trained on our sources.  That of gpt2 lacks bytes, as SmolLM2's
    does."""
    t = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family != "llama3")
    t.pre_tokenizer = {
        "gpt2": byte_level,
        "smollm2": pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), byte_level]),
        "llama3": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), byte_level])}[family]
    t.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = [] if family == "gpt2" else pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(corpus(True), trainers.BpeTrainer(
        vocab_size=n_vocab, special_tokens=specials, show_progress=False,
        initial_alphabet=alphabet))
    return t


def compare(name, hf, command, strings):
    """Number of strings whose ids differ, with special tokens as tokens and as text."""
    n_bad = 0
    for special in (True, False):
        hf.encode_special_tokens = not special
        want = [e.ids for e in hf.encode_batch(strings, add_special_tokens=False)]
        got = [r["tokens"] for r in run(command + (["special"] if special else []), strings)]
        bad = [i for i in range(len(strings)) if want[i] != got[i]]
        for i in bad[:5]:
            print("  differs:", json.dumps(strings[i]), "\n   want", want[i], "\n   got ", got[i])
        print(f"{name}, special tokens as {'tokens' if special else 'text'}: "
              f"{len(strings)} strings, {len(bad)} differences")
        n_bad += len(bad)
    hf.encode_special_tokens = False
    return n_bad


def roundtrip(hf, driver, model, strings):
    """Text comes back exactly, if every byte of it has a token."""
    known = set(b for b in range(256) if hf.token_to_id(byte_text(b)) is not None)
    whole = [s for s in strings if set(s.encode()) <= known]
    bad = run([driver, model, "roundtrip"], whole).count(0)
    print(f"round trip: {len(whole)} strings, {bad} differences; "
          f"{len(strings) - len(whole)} more hold a byte that the vocabulary lacks")
    return bad


def byte_text(byte):
    plain = [b for b in range(256) if 0x21 <= b <= 0x7E or 0xA1 <= b <= 0xAC or b >= 0xAE]
    others = [b for b in range(256) if b not in plain]
    return chr(byte) if byte in plain else chr(0x100 + others.index(byte))


def write_golden(name, about, hf, strings):
    path = f"{DATA}/{name}.jsonl"
    with open(path, "w", encoding="utf-8") as f:
        f.write(json.dumps({"about": about}) + "\n")
        for s in strings:
            hf.encode_special_tokens = False
            row = {"text": s, "tokens": hf.encode(s, add_special_tokens=False).ids}
            hf.encode_special_tokens = True
            plain = hf.encode(s, add_special_tokens=False).ids
            if plain != row["tokens"]:
                row["plain"] = plain
            f.write(json.dumps(row) + "\n")
    hf.encode_special_tokens = False
    print("wrote", path)


def save_small(t, path):
    os.makedirs(path, exist_ok=True)
    t.save(path + "/tokenizer.json", pretty=False)
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
              "unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": False,
              "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHATML}
    with open(path + "/tokenizer_config.json", "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--driver", required=True)
    p.add_argument("--model", default=ROOT + "/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    p.add_argument("--n", type=int, default=20000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--families", action="store_true")
    p.add_argument("--golden", action="store_true")
    a = p.parse_args()
    import tokenizers
    about = (f"tokenizers {tokenizers.__version__}, tests/oracle/tokenizer.py --golden, seed {a.seed}; "
             "tokens: special tokens recognised; plain, where it differs: taken as text")

    hf = from_gguf(a.model)
    specials = [hf.id_to_token(i) for i in range(17)]
    strings = make_strings(a.n, specials, a.seed)
    n_bad = compare("vocabulary of the GGUF", hf, [a.driver, a.model, "encode"], strings)
    n_bad += roundtrip(hf, a.driver, a.model, strings)
    with tempfile.TemporaryDirectory() as d:
        from transformers import AutoTokenizer
        subprocess.run([a.driver, a.model, "save", d], check=True)
        saved = AutoTokenizer.from_pretrained(d)
        n_bad += compare("saved, by AutoTokenizer", saved.backend_tokenizer,
                         [a.driver, a.model, "encode"], strings)
        n_bad += compare("saved, read back", hf, [a.driver, d, "encode"], strings)
    if a.golden:
        write_golden("tokenizer_smollm2", about, hf, make_strings(2000, specials, a.seed, True))
    for family in ("gpt2", "llama3", "smollm2") if a.families or a.golden else ():
        t = train(family, 700)
        with tempfile.TemporaryDirectory() as d:
            save_small(t, d)
            n_bad += compare("trained, " + family, t, [a.driver, d, "encode"], strings)
            os.mkdir(d + "/again")
            subprocess.run([a.driver, d, "save", d + "/again"], check=True)
            n_bad += compare("trained, saved by us, " + family,
                             Tokenizer.from_file(d + "/again/tokenizer.json"),
                             [a.driver, d + "/again", "encode"], strings[:2000])
        if a.golden:
            save_small(t, f"{DATA}/tokenizer_{family}_small")
            write_golden(f"tokenizer_{family}_small", about, t, make_strings(
                500, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], a.seed, True))
    print("differences in all:", n_bad)
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
