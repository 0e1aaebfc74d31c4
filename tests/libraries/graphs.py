"""Graph networks of PyTorch Geometric, on a graph of eight nodes."""

from __future__ import annotations

from typing import Any

import torch

from tests.libraries.architecture import Architecture, made
from tests.zoo.calls import Call

_EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 2, 4], [1, 2, 3, 4, 5, 6, 7, 0, 4, 6, 1]])
_CALL = Call((torch.zeros(8, 16), _EDGES))
_SIZES: dict[str, Any] = {"in_channels": 16, "hidden_channels": 32, "num_layers": 3, "out_channels": 4}
_MODELS: dict[str, dict[str, Any]] = {
    "GCN": {},
    "GAT": {"heads": 4},
    "GraphSAGE": {},
    "GIN": {"norm": "batch_norm"},
    "PNA": {"aggregators": ["mean", "max"], "scalers": ["identity"], "deg": torch.tensor([0, 2, 6])},
    "EdgeCNN": {},
}

ARCHITECTURES = [
    Architecture("torch-geometric", name, made(f"torch_geometric.nn.{name}", **_SIZES, **options), _CALL)
    for name, options in _MODELS.items()
]
