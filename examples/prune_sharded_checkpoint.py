"""Prune a sharded checkpoint from file to file, and load the result.

Run it from the repository root::

    python examples/prune_sharded_checkpoint.py
    python examples/prune_sharded_checkpoint.py --width 4096 --layers 60 --shard-megabytes 1000

It makes the checkpoint itself: a stack of linear layers in bfloat16, in shards with an index, as model hubs have them.
The model exists on the meta device alone, so that memory does not grow with its size.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import structprune

try:
    import resource
except ModuleNotFoundError:  # Windows has none
    resource = None  # type: ignore[assignment]


def network(layers: int, width: int) -> nn.Module:
    """Linear layers with activations between them, without values."""
    with torch.device("meta"):
        parts = [part for _ in range(layers) for part in (nn.Linear(width, width, dtype=torch.bfloat16), nn.ReLU())]
        return nn.Sequential(*parts, nn.Linear(width, 10, dtype=torch.bfloat16))


def make(folder: Path, model: nn.Module, shard_bytes: int) -> tuple[int, int]:
    """Write random weights in shards; the number of bytes and of shards."""
    shards: list[dict[str, torch.Size]] = [{}]
    room = shard_bytes
    for name, tensor in model.state_dict().items():
        room -= 2 * tensor.numel()
        if room < 0 and shards[-1]:
            shards.append({})
            room = shard_bytes - 2 * tensor.numel()
        shards[-1][name] = tensor.shape
    weight_map, total = {}, 0
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(2 * tensor.numel() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total, len(shards)


def main() -> None:
    """Make, prune, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--shard-megabytes", type=float, default=0.3)
    parser.add_argument("--ratio", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = network(arguments.layers, arguments.width)
    with tempfile.TemporaryDirectory() as made:
        source, target = Path(made) / "dense", Path(made) / "pruned"
        source.mkdir()
        total, shards = make(source, model, int(arguments.shard_megabytes * 1e6))
        print(f"dense:  {total / 1e6:.1f} MB in {shards} shards")
        x = torch.randn(1, arguments.width, dtype=torch.bfloat16)
        plan = structprune.prune_checkpoint(source, target, model, arguments.ratio, example_inputs=x)
        size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        print(f"pruned: {size / 1e6:.1f} MB, parameters {plan.params[0]:,} -> {plan.params[1]:,}")
        if resource is not None:
            # In kilobytes; macOS says bytes.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1e3)
            print(f"peak memory of this process: {peak / 1e6:.0f} MB")
        small = structprune.load(target, model)
        print(f"loaded: outputs {list(small(x).shape)}")


if __name__ == "__main__":
    main()
