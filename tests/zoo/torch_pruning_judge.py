"""The same network pruned with torch-pruning, used as its documentation and published examples say."""

from __future__ import annotations

import time
from typing import Any

import torch_pruning
from torch import nn

from tests.support import oracle
from tests.zoo.by_value import by_value
from tests.zoo.calls import Call, tensors
from tests.zoo.families import Network, build
from tests.zoo.process import Emit, described
from tests.zoo.structprune_judge import RATIO


def judge(network: Network, emit: Emit) -> None:
    """Prune a float64 network, judge it, and then time the same on a float32 one: the first was the warm-up."""
    emit({"doing": "dense"})
    model, call = build(network)
    oracle.randomise(model)
    call = call.double()
    shapes, before = call.shapes(model), _size(model)
    emit({"doing": "prune"})
    try:
        prune(model, call)
    except Exception as error:
        emit({"failed": described(error)})
        return
    emit({"removed": 1 - _size(model) / before, "doing": "judge"})
    emit(_verdict(network, model, call, shapes))
    del model
    emit({"doing": "time"})
    model, call = build(network)
    start = time.perf_counter()
    try:
        prune(model, call)
    except Exception as error:
        emit({"timing_failed": described(error)})
    else:
        emit({"seconds": round(time.perf_counter() - start, 4)})


def prune(model: nn.Module, call: Call) -> None:
    """Cut a network in place."""
    heads = _heads(model)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        call.example_inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=_last_layers(model, call),
        num_heads=heads,
        output_transform=tensors,
    )
    pruner.step()
    _resize(model, heads)


def _verdict(network: Network, pruned: nn.Module, call: Call, shapes: list[tuple[int, ...]]) -> dict[str, Any]:
    """Whether it runs, and what the oracle says: the dense network is built again, with the same weights."""
    try:
        got = call.shapes(pruned)
    except Exception as error:
        return {"runs": False, "run_failed": described(error)}
    if got != shapes:
        return {"runs": False, "run_failed": f"outputs have shapes {got}, not {shapes}"}
    dense = oracle.randomise(build(network)[0])
    try:
        return {"runs": True, **by_value(dense, pruned, call)}
    except Exception as error:
        return {"runs": True, "oracle": described(error)}


def _last_layers(model: nn.Module, call: Call) -> list[nn.Module]:
    """Layers with as many outputs as the network has classes, which must stay."""
    classes = {t.shape[1] if t.ndim == 4 else t.shape[-1] for t in call(model) if t.ndim}
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.shape[0] in classes]


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Projections whose channels go head by head, as the examples for torchvision, timm and BERT list them."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        heads = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
        if not isinstance(heads, int):
            continue
        if isinstance(module, nn.MultiheadAttention):
            found[module] = heads
        for name in ("qkv", "query", "key", "value"):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Linear):
                found[projection] = heads
    return found


def _resize(model: Any, heads: dict[nn.Module, int]) -> None:
    """Sizes that modules hold, which the examples set by hand after the cut."""
    if hasattr(model, "hidden_dim") and hasattr(model, "conv_proj"):
        model.hidden_dim = model.conv_proj.out_channels
    module: Any
    for module in model.modules():
        qkv, query = getattr(module, "qkv", None), getattr(module, "query", None)
        if qkv in heads and hasattr(module, "head_dim"):
            module.head_dim = qkv.out_features // (3 * heads[qkv])
            if hasattr(module, "attn_dim"):
                module.attn_dim = module.head_dim * heads[qkv]
        if query in heads and hasattr(module, "attention_head_size"):
            module.attention_head_size = query.out_features // heads[query]
            module.all_head_size = query.out_features


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
