#!/usr/bin/env python3
"""Does vLLM load an exported drafter, and compute what was trained?  Run by hand:

    build/paceline drafter export --model MODEL --drafter DIR --out EXPORTED
    tests/oracle/drafter_vllm.py EXPORTED TARGET     TARGET: the same model, as Hugging Face saves it

Needs the Python package vllm (tried with 0.33.0; no GPU, nothing compiled) and a drafter that was
trained.  On the CPU, vLLM's own code: its configuration (SpeculativeConfig), its registry, its loader and safetensors iterator, its
drafter and its target, whose hidden states it picks by the layer numbers of config.json.  In place
of vLLM: the platform is said to be CPU, and attention with its KV cache is Chain of
drafter_loaders.py, as the kernels are not in the CUDA wheel.  Exits with 1 on a mismatch.
"""
import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform

vllm.platforms._current_platform = CpuPlatform()

from vllm.config import set_current_vllm_config
from vllm.distributed.parallel_state import (ensure_model_parallel_initialized,
                                             init_distributed_environment)
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.model_loader import get_model, get_model_loader
from vllm.model_executor.model_loader.utils import (initialize_model,
                                                   process_weights_after_loading)
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer
from vllm.v1.worker.gpu.spec_decode.eagle.eagle3_utils import get_eagle3_aux_layers_from_config
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

import drafter_loaders as ref

chains = {}


def attend(self, query, key, value, output_shape=None, output_dtype=None):
    chain = chains.get(self.layer_name) or ref.Chain()
    view = lambda x, heads: x.view(-1, heads, self.head_size)
    out = chain.attend(view(query, self.num_heads), view(key, self.num_kv_heads),
                       view(value, self.num_kv_heads), self.impl.scale)
    return out.reshape(query.shape[0], -1)


Attention.forward = attend


def make_config(drafter, target, dtype):
    return EngineArgs(model=target, dtype=dtype, enforce_eager=True, max_model_len=1024,
                      compilation_config={"custom_ops": ["none"]},  # their plain torch norms, RoPE
                      speculative_config={"method": "eagle3", "model": drafter,
                                          "num_speculative_tokens": ref.DEPTH}
                      ).create_engine_config()


def load_drafter(config):
    """As DefaultModelLoader.load_model does it, with poison between its two halves."""
    draft = config.speculative_config.draft_model_config
    loader = get_model_loader(config.load_config)
    with set_default_torch_dtype(draft.dtype):
        model = initialize_model(vllm_config=config, model_config=draft)
        ref.poison(model)
        loader.load_weights(model, draft)
    return model.eval()


def check_load(model, w, bad):
    name = "draft_id_to_target_id"
    ref.compare_parameters(model, w, bad, ignore={name, "model.embed_tokens.weight"})
    offsets = getattr(model, name)
    ref.compare_vocabulary(
        None if offsets is None else torch.arange(len(offsets)) + offsets.data, w, bad)
    bad.expect(not getattr(model, "has_own_embed_tokens", False) and model.has_own_lm_head,
               "the embedding is the target's, the head its own")


def drafted(model, tokens, aux):
    """Logits [DEPTH][rows] over the target's vocabulary, as the proposer chains them."""
    n = len(tokens)
    rows = torch.arange(n)
    layer = model.model.layers[0].self_attn.attn.layer_name
    chains[layer] = ref.Chain(record=True)
    hidden, out = model.combine_hidden_states(torch.cat(aux, -1)), []
    for k in range(ref.DEPTH):
        last, hidden = model(tokens[torch.clamp(rows + 1 + k, max=n - 1)], rows + k, hidden)
        out.append(model.compute_logits(last))
    del chains[layer]
    return out


def main(drafter, target):
    bad, w = ref.Failures(), ref.file_tensors(drafter)
    config = make_config(drafter, target, "float32")
    print("configuration")
    hf = config.speculative_config.draft_model_config.hf_config
    bad.expect(config.speculative_config.draft_model_config.architecture ==
               "LlamaForCausalLMEagle3", f"architecture {hf.architectures}")
    auto = make_config(drafter, target, "auto")
    types = auto.model_config.dtype, auto.speculative_config.draft_model_config.dtype
    bad.expect(types[0] == types[1], f"target and drafter by --dtype auto: {types}")
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"tcp://127.0.0.1:{ref.free_port()}", 0, backend="gloo")
        ensure_model_parallel_initialized(1, 1)
        print("weights")
        model = load_drafter(config)
        check_load(model, w, bad)
        if bad:
            return True
        print("forward")
        process_weights_after_loading(model, config.speculative_config.draft_model_config,
                                      torch.device("cpu"))
        body = get_model(vllm_config=config)
        runner = object.__new__(GPUModelRunner)
        runner.speculative_config = config.speculative_config
        layers = runner._get_eagle3_aux_layers_from_config()
        body.set_aux_hidden_state_layers(layers)
        print(f"         {type(model).__name__} on {type(body).__name__}")
        ref.compare_layers(layers, len(body.model.layers), bad)
        bad.expect(get_eagle3_aux_layers_from_config(config.speculative_config) == layers,
                   "the same in model runner V2")
        proposer = object.__new__(SpecDecodeBaseProposer)
        proposer.model, proposer.vllm_config = model, config
        proposer._maybe_share_embeddings(body)
        accepted, worst = ref.Acceptance(), 0.0
        with torch.no_grad(), set_forward_context(None, config):
            for tokens, n_prompt in ref.greedy_texts(target):
                _, aux = body(tokens, torch.arange(len(tokens)), None)
                logits = drafted(model, tokens, aux)
                embed = body.model.embed_tokens.weight
                want = ref.reference(drafter, w, embed, tokens, torch.stack(aux, 1))
                ids = w["t2d"].nonzero().flatten()
                worst = max(worst, *(float((a[:, ids] - b).norm() / b.norm())
                                     for a, b in zip(logits, want)))
                accepted.add(torch.stack([x.argmax(-1) for x in logits]), tokens, n_prompt)
    bad.expect(worst < 1e-3, f"logits against the definition: relative L2 {worst:.1e}")
    bad.expect(accepted.length() > 1.2, str(accepted))
    print("FAILED" if bad else "vLLM loads the drafter")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
