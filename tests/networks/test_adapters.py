"""Language and vision models of other libraries, with adapters of peft and with gradient checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import structprune
from tests.support.pruned import imported, pruned


def tiny_llama() -> Any:
    transformers = imported("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# transformers renames it, and peft asks for the old name.
ANNOUNCED = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
IDS = {"input_ids": torch.arange(3, 11)[None], "use_cache": False}


@ANNOUNCED
def test_transformers_gradient_checkpointing() -> None:
    model = tiny_llama()
    model.gradient_checkpointing_enable()
    small = pruned(model, IDS)
    assert small.model.embed_tokens.embedding_dim == 16
    small.train()(**IDS).logits.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@ANNOUNCED
def test_adapters_of_a_language_model() -> None:
    peft = imported("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    model = peft.get_peft_model(tiny_llama(), config)
    small = pruned(model, IDS)
    layer = small.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    # peft's configuration holds the rank.
    assert (a.in_features, a.out_features, b.in_features, b.out_features) == (16, 4, 4, 16)
    assert layer.r == {"default": 4}
    reasons = {group.name: group.reason for group in structprune.plan_of(small).groups}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert reasons[name].startswith("is the rank of an adapter")
    assert layer.base_layer.out_features == 16
    assert {n for n, p in small.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    merged = copy.deepcopy(small).merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(merged.eval()(**IDS).logits, small.eval()(**IDS).logits, atol=1e-5)


def test_adapters_of_a_vision_transformer() -> None:
    peft, timm = imported("peft"), imported("timm")
    model = peft.get_peft_model(timm.create_model("test_vit", num_classes=7), peft.LoraConfig(target_modules=["qkv"]))
    image = torch.zeros(1, 3, 160, 160)
    small = pruned(model, image)
    blocks, dense = small.base_model.model.blocks, model.base_model.model.blocks
    assert [b.attn.num_heads for b in blocks] == [b.attn.num_heads // 2 for b in dense]
    assert blocks[0].attn.qkv.lora_B["default"].out_features * 2 == dense[0].attn.qkv.lora_B["default"].out_features
    assert small(image).shape == (1, 7)
