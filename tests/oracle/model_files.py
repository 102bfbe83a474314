#!/usr/bin/env python3
"""Model files against other people's readers.  Run by hand:

    python tests/oracle/model_files.py gguf FILE.gguf DIR     needs: numpy gguf safetensors
    python tests/oracle/model_files.py load DIR               needs: torch transformers safetensors

gguf: DIR is a Hugging Face directory that pl_model_save wrote (fp32) from FILE.gguf; every tensor
must equal what the gguf package dequantizes, bit for bit, with Q and K put back into Hugging Face
order.  load: transformers must load DIR without a missing or unexpected key, with equal weights,
and its tokenizer must load.
"""
import json
import sys
from pathlib import Path

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def ggml_name(name):
    if name in OUTER:
        return OUTER[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def check_gguf(path, directory):
    import numpy as np
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import load_file

    config = json.loads((Path(directory) / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    theirs = {t.name: t for t in GGUFReader(path).tensors}
    ours = load_file(Path(directory) / "model.safetensors")
    bad = 0
    for name, have in ours.items():
        t = theirs.pop(ggml_name(name))
        want = dequantize(t.data, t.tensor_type).astype(np.float32)
        for part, n in heads.items():
            if part in name:
                rows, cols = want.shape
                want = want.reshape(n, rows // n // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        if not np.array_equal(want.view(np.uint32), have.view(np.uint32)):
            print(f"{name}: differs, by at most {np.abs(want - have).max()}")
            bad += 1
    print(f"{len(ours)} tensors, {bad} differ, {len(theirs)} left over: {sorted(theirs)}")
    return bad or len(theirs)


def check_load(directory):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    config = AutoConfig.from_pretrained(directory)
    stored = json.loads((Path(directory) / "config.json").read_text())
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", output_loading_info=True)
    print({k: list(v) for k, v in info.items() if v})
    bad = sum(len(info.get(k, ())) for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    have = model.state_dict()
    for name, want in load_file(Path(directory) / "model.safetensors").items():
        if have[name].dtype != want.dtype or not torch.equal(have[name], want):
            print(f"{name}: differs")
            bad += 1
    rope = getattr(config, "rope_parameters", None) or config.rope_scaling
    for key, value in (stored["rope_scaling"] or {}).items():
        bad += rope[key] != value
    bad += rope.get("rope_theta", stored["rope_theta"]) != stored["rope_theta"]
    bad += config.rms_norm_eps != stored["rms_norm_eps"] or config.head_dim != stored["head_dim"]
    bad += GenerationConfig.from_pretrained(directory).eos_token_id != stored["eos_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "What is 7 times 8? <|im_end|> Größe \u4f60\u597d"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    bad += tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    bad += not bool(torch.isfinite(logits).all())
    print(f"rope {rope}, {len(ids)} tokens, logits of spread {logits.float().std():.3f}, {bad} bad")
    return bad


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "gguf":
        sys.exit(check_gguf(sys.argv[2], sys.argv[3]) != 0)
    if len(sys.argv) == 3 and sys.argv[1] == "load":
        sys.exit(check_load(sys.argv[2]) != 0)
    sys.exit(__doc__)
