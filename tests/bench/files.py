"""Save and load on networks of the zoo: ``python -m tests.bench.files``.

Every network is pruned, saved, and loaded into two freshly built dense ones, on the CPU and on the
meta device. Outputs must be equal bit by bit, and the file within 1 % of the weights' size (toys apart).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

import structprune
from tests.zoo.calls import Call
from tests.zoo.families import Network, build

NETWORKS = (
    "torchvision:resnet50 torchvision:mobilenet_v2 torchvision:densenet121 torchvision:efficientnet_b0 "
    "torchvision:shufflenet_v2_x1_0 torchvision:resnext50_32x4d torchvision:googlenet torchvision:convnext_tiny "
    "torchvision:swin_t torchvision:vit_b_16 torchvision:squeezenet1_1 torchvision:mnasnet0_5 "
    "timm:beit_base_patch16_224 timm:levit_128s timm:mobilenetv3_small_050 timm:pvt_v2_b0 timm:resnest14d "
    "timm:deit_tiny_patch16_224 timm:hrnet_w18_small timm:res2next50"
).split()
# Toys of a few hundred kilobytes, whose names and plans weigh more than 1 %.
TOYS = "transformers:llama transformers:bert-masked transformers:t5 transformers:swinv2".split()


def main() -> None:
    """Print a line for every network, and the count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS + TOYS)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    networks = parser.parse_args().networks
    good = sum([report(key) for key in networks])
    print(f"{good} of {len(networks)} bit-identical, from the CPU and from the meta device, and within 1 %")


def report(key: str) -> bool:
    """Print what came of one network."""
    with tempfile.TemporaryDirectory() as folder:
        share, same = round_trip(Network.of(key), Path(folder) / "pruned.safetensors")
    verdict = ", ".join(f"from {device} {'equal' if equal else 'DIFFERENT'}" for device, equal in same.items())
    print(f"{key:34} {verdict}; file {100 * share:.2f} % of the weights", flush=True)
    return all(same.values()) and share <= 1.01


def round_trip(network: Network, path: Path) -> tuple[float, dict[str, bool]]:
    """The file's size in weights, and whether what was loaded computes the same, by device of the dense model."""
    dense, call = build(network)
    pruned = structprune.prune_model(dense, 0.5, "channel", example_inputs=call.example_inputs)
    structprune.save(pruned, path)
    same = {device: equal(pruned, structprune.load(path, fresh(network, device)), call) for device in ("cpu", "meta")}
    return path.stat().st_size / weight_bytes(pruned), same


def fresh(network: Network, device: str) -> nn.Module:
    """The dense network, built anew on a device."""
    with torch.device(device):
        return build(network)[0]


def equal(pruned: nn.Module, loaded: nn.Module, call: Call) -> bool:
    """Whether two networks give the same bits."""
    pairs = zip(call(pruned), call(loaded), strict=True)
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def weight_bytes(model: nn.Module) -> int:
    """The size of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


if __name__ == "__main__":
    main()
