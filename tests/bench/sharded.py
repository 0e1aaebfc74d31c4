"""Prune a sharded checkpoint that memory could not hold: ``python -m tests.bench.sharded FOLDER``.

Makes the weights of a Llama of about 8 GB in shards of 0.2 GB, prunes them in a process that is
limited to 2 GB, and compares every tensor with what the cut in memory gives. The limit is on the
address space (``RLIMIT_AS``): whatever the process maps or allocates counts, libraries and the shard that
is open included, so that resident memory cannot pass it either.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import structprune
from structprune import Plan
from tests.support import vision

INDEX = "model.safetensors.index.json"
INPUTS = {"input_ids": torch.arange(12)[None], "use_cache": False}


@dataclass(frozen=True)
class Size:
    """A Llama by its widths."""

    layers: int = 23
    hidden: int = 4096
    inner: int = 11008
    heads: int = 32
    vocabulary: int = 8000

    def build(self, device: str = "meta") -> nn.Module:
        """The architecture."""
        vision.torchvision()  # transformers imports it
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.inner,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.heads // 4,
        )  # fmt: skip
        with torch.device(device):
            return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Outcome:
    """What the limited process says of itself, in megabytes and seconds."""

    mapped: float
    resident: float
    grown: float
    seconds: float


def main() -> None:
    """Make, prune, compare, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=Size.layers)
    parser.add_argument("--shard-megabytes", type=int, default=200)
    parser.add_argument("--limit-megabytes", type=int, default=2000)
    parser.add_argument("--in-limits", metavar="SIZE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source, target = arguments.folder / "dense", arguments.folder / "pruned"
    warnings.simplefilter("ignore")
    if arguments.in_limits:
        size = Size(**json.loads(arguments.in_limits))
        print(json.dumps(asdict(prune_in_limits(source, target, size, arguments.limit_megabytes))))
        return
    size = Size(layers=arguments.layers)
    try:
        total, shards = make(source, size, arguments.shard_megabytes * 10**6)
        print(f"made {total / 1e9:.2f} GB in {shards} shards", flush=True)
        outcome = prune_in_process(arguments.folder, size, arguments.limit_megabytes)
        print(
            f"pruned in {outcome.seconds:.0f} s, limited to {arguments.limit_megabytes} MB: {outcome.mapped:.0f} MB "
            f"of address space, {outcome.resident:.0f} MB resident, {outcome.grown:.0f} MB more than before",
            flush=True,
        )
        compared, plan = compare(source, target, size)
        print(f"{compared} tensors equal to the cut in memory; parameters {plan.params[0]:,} -> {plan.params[1]:,}")
    finally:
        shutil.rmtree(source, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)


def make(source: Path, size: Size, shard_bytes: int) -> tuple[int, int]:
    """Write random weights as the hub has them, a shard at a time; their bytes and the number of shards."""
    source.mkdir(parents=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in size.build().state_dict().items()}
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, shape in shapes.items():
        room -= 2 * torch.Size(shape).numel()
        if room < 0 and shards[-1]:
            shards.append([])
            room = shard_bytes - 2 * torch.Size(shape).numel()
        shards[-1].append(name)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(size.hidden + 2**20, generator=generator)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: drawn(shapes[name], noise, generator) for name in names}
        save_file(tensors, source / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (source / INDEX).write_text(json.dumps(index))
    return total, len(shards)


def drawn(shape: tuple[int, ...], noise: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random values of one scale a row, quick to make: rows are pieces of one noise."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    out = torch.empty(shape, dtype=torch.bfloat16)
    long = noise.repeat(1 + (shape[1] + 2**20) // len(noise))
    for row, (start, scale) in enumerate(
        zip(torch.randint(2**20, (shape[0],), generator=generator).tolist(), torch.rand(shape[0]).tolist(), strict=True)
    ):
        out[row] = long[start : start + shape[1]] * scale
    return out


def prune_in_process(folder: Path, size: Size, limit_megabytes: int) -> Outcome:
    """Prune in a process of its own, under the limit."""
    command = [
        sys.executable, "-W", "ignore", "-m", "tests.bench.sharded", str(folder),
        "--limit-megabytes", str(limit_megabytes), "--in-limits", json.dumps(asdict(size)),
    ]  # fmt: skip
    # Every thread of a library would reserve address space for a heap of its own, and use none of it.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def prune_in_limits(source: Path, target: Path, size: Size, limit_megabytes: int) -> Outcome:
    """Set the limit for this process and prune."""
    resource.setrlimit(resource.RLIMIT_AS, (limit_megabytes * 10**6,) * 2)
    torch.set_num_threads(1)
    model = size.build()
    before, start = status("VmHWM"), time.perf_counter()
    structprune.prune_checkpoint(source / INDEX, target, model, 0.5, example_inputs=INPUTS)
    seconds = time.perf_counter() - start
    return Outcome(status("VmPeak"), status("VmHWM"), status("VmHWM") - before, seconds)


def status(what: str) -> float:
    """A line of ``/proc/self/status``, in megabytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) * 1024 / 1e6


def compare(source: Path, target: Path, size: Size) -> tuple[int, Plan]:
    """Hold the files against the plan made in memory, and every tensor against its slice."""
    weights = json.loads((source / INDEX).read_text())["weight_map"]
    pruned = json.loads((target / INDEX).read_text())["weight_map"]
    assert weights == pruned
    model = size.build()
    dense = {}
    for file in set(weights.values()):
        with safe_open(source / file, framework="pt") as opened:  # mapped: read as it is asked for
            dense |= {name: opened.get_tensor(name) for name in opened.keys()}
    model.load_state_dict(dense, assign=True)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=INPUTS)
    for file in sorted(set(pruned.values())):
        with safe_open(target / file, framework="pt") as opened:
            for name in opened.keys():
                expected = dense[name]
                for dim, kept in plan.kept.get(name, {}).items():
                    expected = expected.index_select(dim, torch.tensor(kept))
                assert torch.equal(opened.get_tensor(name), expected), name
    return len(pruned), plan


if __name__ == "__main__":
    main()
