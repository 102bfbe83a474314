#!/usr/bin/env python3
"""Does SGLang load an exported drafter, and compute what was trained?  Run by hand:

    build/paceline drafter export --model MODEL --drafter DIR --out EXPORTED
    tests/oracle/drafter_sglang.py EXPORTED TARGET   TARGET: the same model, as Hugging Face saves it

Needs the Python package sglang (tried with 0.5.23; no GPU, nothing compiled) and a drafter that was
trained.  On the CPU, SGLang's own code: its configuration (ServerArgs, ModelConfig), its registry, its loader and safetensors iterator, its
drafter and its target, whose hidden states it picks by the layer numbers of config.json.  In place
of SGLang: RadixAttention with its KV cache is Chain of drafter_loaders.py, sgl_kernel is an
empty module, and the embedding is handed over as EagleDraftWorker.init_lm_head does it.
Exits with 1 on a mismatch.
"""
import os
import sys
from types import ModuleType, SimpleNamespace

os.environ.update(SGLANG_USE_CPU_ENGINE="1", CUDA_VISIBLE_DEVICES="", MASTER_ADDR="127.0.0.1",
                  RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
sys.modules["sgl_kernel"] = ModuleType("sgl_kernel")  # imported from, and never called
sys.modules["sgl_kernel"].__getattr__ = lambda name: None

import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.distributed.parallel_state import (init_distributed_environment,
                                                   initialize_model_parallel)
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.model_runner_components.attention_backend_setup import (
    configure_aux_hidden_state_capture)
from sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state import (
    resolve_spec_aux_hidden_state_config)
from sglang.srt.model_loader.loader import DefaultModelLoader, _initialize_model
from sglang.srt.model_loader.utils import set_default_torch_dtype
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.server_args import ServerArgs
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

import drafter_loaders as ref

os.environ["MASTER_PORT"] = str(ref.free_port())
chain = ref.Chain()


def attend(self, q, k, v, forward_batch, save_kv_cache=True, **kwargs):
    view = lambda x, heads: x.view(-1, heads, self.head_dim)
    out = chain.attend(view(q, self.tp_q_head_num), view(k, self.tp_k_head_num),
                       view(v, self.tp_v_head_num), self.scaling)
    return out.reshape(len(q), -1)


RadixAttention.forward = attend


def server_args(drafter, target, dtype):
    return ServerArgs(model_path=target, device="cpu", dtype=dtype,
                      attention_backend="torch_native", disable_cuda_graph=True,
                      speculative_algorithm="EAGLE3",
                      speculative_draft_model_path=drafter, speculative_num_steps=ref.DEPTH,
                      speculative_eagle_topk=1, speculative_num_draft_tokens=ref.DEPTH + 1)


def configs(args, drafter):
    """Of target and drafter."""
    return (ModelConfig.from_server_args(args),
            ModelConfig.from_server_args(args, model_path=drafter, is_draft_model=True))


def load(config):
    """As DefaultModelLoader.load_model does it, with poison between its two halves."""
    loader = DefaultModelLoader(LoadConfig())
    with set_default_torch_dtype(config.dtype):
        model = _initialize_model(config, loader.load_config)
        ref.poison(model)
        loader.load_weights_and_postprocess(model, loader._get_all_weights(config, model),
                                            torch.device("cpu"))
    return model.eval()


def batch(tokens, hidden=None):
    n = len(tokens)
    out = ForwardBatch(forward_mode=ForwardMode.EXTEND, batch_size=1, input_ids=tokens,
                       req_pool_indices=torch.zeros(1, dtype=torch.long),
                       seq_lens=torch.tensor([n]), out_cache_loc=torch.arange(n), seq_lens_sum=n)
    out.spec_info = SimpleNamespace(hidden_states=hidden)
    return out


def drafted(model, tokens, aux):
    """Logits [DEPTH][rows] over the draft vocabulary, as EagleDraftWorker chains them."""
    global chain
    n, chain = len(tokens), ref.Chain(record=True)
    rows, hidden, out = torch.arange(n), torch.cat(aux, -1), []
    for k in range(ref.DEPTH):
        token = tokens[torch.clamp(rows + 1 + k, max=n - 1)]
        last, (hidden,) = model.model(token, rows + k, batch(token, hidden))
        out.append(last @ model.lm_head.weight.T)
    chain = ref.Chain()
    return out


def main(drafter, target):
    bad, w = ref.Failures(), ref.file_tensors(drafter)
    args = server_args(drafter, target, "float32")
    publish(args, role="test", ranks=SpawnRanks(world_rank=0))
    init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
    initialize_model_parallel(backend="gloo")
    initialize_dp_attention(args)
    print("configuration")
    config, draft = configs(args, drafter)
    types = [x.dtype for x in configs(server_args(drafter, target, "auto"), drafter)]
    bad.expect(types[0] == types[1], f"target and drafter by --dtype auto: {types}")
    hf = draft.hf_config
    bad.expect(hf.architectures == ["LlamaForCausalLMEagle3"], f"architecture {hf.architectures}")
    print("weights")
    before = len(bad)
    model = load(draft)
    ref.compare_parameters(model, w, bad, ignore={"model.embed_tokens.weight"})
    ids = model.get_hot_token_id()
    ref.compare_vocabulary(ids, w, bad)
    bad.expect(not model.load_lm_head_from_target, "the head is its own")
    if len(bad) > before:
        return True
    print("forward")
    body = load(config)
    capture = resolve_spec_aux_hidden_state_config(
        server_args=args, model_config=config, is_draft_worker=False,
        spec_algorithm=SpeculativeAlgorithm.from_string("EAGLE3"))
    configure_aux_hidden_state_capture(
        model=body, eagle_use_aux_hidden_state=capture.eagle_use_aux_hidden_state,
        eagle_aux_hidden_state_layer_ids=capture.eagle_aux_hidden_state_layer_ids,
        dflash_use_aux_hidden_state=False, dflash_target_layer_ids=None, is_dspark=False)
    print(f"         {type(model).__name__} on {type(body).__name__}")
    ref.compare_layers(body.model.layers_to_capture, len(body.model.layers), bad)
    embed = body.model.embed_tokens.weight
    model.set_embed(embed)
    accepted, worst = ref.Acceptance(), 0.0
    with torch.no_grad():
        for tokens, n_prompt in ref.greedy_texts(target):
            _, aux = body.model(tokens, torch.arange(len(tokens)), batch(tokens))
            logits = drafted(model, tokens, aux)
            want = ref.reference(drafter, w, embed, tokens, torch.stack(aux, 1))
            worst = max(worst, *(float((a - b).norm() / b.norm()) for a, b in zip(logits, want)))
            best = torch.stack([x.argmax(-1) for x in logits])
            accepted.add(best if ids is None else ids[best], tokens, n_prompt)
    bad.expect(worst < 1e-3, f"logits against the definition: relative L2 {worst:.1e}")
    bad.expect(accepted.length() > 1.2, str(accepted))
    print("FAILED" if bad else "SGLang loads the drafter")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
