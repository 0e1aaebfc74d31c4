"""A model in a wrapper: it is pruned through it, or the error says exactly what to unwrap."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel

import structprune
from structprune import ModelError
from tests.tools.networks import CASES, Case, lightning_module

Model = Any
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Holder(nn.Module):
    """A model within a model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def compiled(model: nn.Module, _x: torch.Tensor) -> Model:
    return torch.compile(model, backend="eager")


def compiled_inside(model: nn.Module, x: torch.Tensor) -> Model:
    """As ``Module.compile`` does it, and it has run: what it compiled is the dense network."""
    model.compile(backend="eager")
    with torch.no_grad():
        model(x)
    return model


def prepared(model: nn.Module, _x: torch.Tensor) -> Model:
    from accelerate import Accelerator

    return Accelerator(cpu=True).prepare(model)


def prepared_for_bfloat16(model: nn.Module, _x: torch.Tensor) -> Model:
    """Accelerate puts a forward with autocast into the instance."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    finally:
        AcceleratorState._reset_state(True)


WRAPPERS: list[Callable[[nn.Module, torch.Tensor], Model]] = [
    compiled, compiled_inside, lambda m, x: Holder(compiled(m, x)), lambda m, x: Holder(compiled_inside(m, x)),
    lambda m, x: AveragedModel(m).eval(), prepared, lambda m, x: lightning_module(m).eval(),
]  # fmt: skip
NAMES = ["compile", "Module.compile", "compile within", "Module.compile within", "EMA", "accelerate", "lightning"]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=NAMES)
@pytest.mark.parametrize("inplace", [False, True])
@EACH
def test_pruned_through_the_wrapper(case: Case, inplace: bool, wrap: Callable[..., Model]) -> None:
    torch.compiler.reset()
    x, expected = case.batch(), case.pruned()
    model = wrap(case.dense(), x)
    with torch.no_grad():
        before = model(x)
    small = structprune.prune_model(model, 0.5, example_inputs=case.batch(1), round_to=1, inplace=inplace)
    assert type(small) is type(model) and (small is model) == inplace
    assert torch.equal(small(x), expected(x))
    if not inplace:
        assert torch.equal(model(x), before)


@EACH
def test_pruned_under_autocast(case: Case) -> None:
    small = structprune.prune_model(
        prepared_for_bfloat16(case.dense(), case.batch()), 0.5, example_inputs=case.batch(1), round_to=1
    )
    with torch.autocast("cpu", torch.bfloat16):
        expected = case.pruned()(case.batch())
    assert torch.equal(small(case.batch()), expected.float())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_graph_keeps_what_it_has_as_numbers() -> None:
    """A graph of ``torch.fx`` is pruned like any module; sizes that tracing made numbers stay, with the reason."""
    case = CASES["residual"]
    small = structprune.prune_model(
        torch.fx.symbolic_trace(case.dense()), 0.5, example_inputs=case.batch(1), round_to=1
    )
    assert torch.equal(small(case.batch()), case.pruned()(case.batch()))
    case = CASES["attention"]
    graph = torch.export.export(case.dense(), (case.batch(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    small = structprune.prune_model(graph.module(), 0.5, example_inputs=case.batch(), round_to=1)
    assert structprune.prove(graph.module(), small, case.batch())
    assert small.up.weight.shape == (32, 32) and small.qkv.weight.shape == (96, 32)
    reasons = {g.name: g.reason for g in structprune.plan_of(small).groups}
    assert reasons["qkv.weight"] == "is taken apart entry by entry (unbind in the model's own forward)"


class Refused(NamedTuple):
    """A wrapper and what the error says."""

    name: str
    wrap: Callable[[nn.Module, torch.Tensor], Model]
    message: str


def sharded(model: nn.Module, _x: torch.Tensor) -> Model:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


def sharded_flat(model: nn.Module, _x: torch.Tensor) -> Model:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def distributed_head(model: Any, _x: torch.Tensor) -> Model:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), init_device_mesh("cpu", (1,))))
    return model


REFUSED = [
    Refused("DataParallel", lambda m, x: nn.DataParallel(m), r"^The model is wrapped in DataParallel.*prune model\.module, wrap"),
    Refused("within", lambda m, x: Holder(nn.DataParallel(m)), r"^inner is wrapped in DataP.*prune model\.inner\.module, wrap"),
    Refused("DDP", lambda m, x: nn.parallel.DistributedDataParallel(m), r"^The model is .* DistributedDataParallel.*model\.module,"),
    Refused("FSDP2", sharded, r"^The model is sharded by fully_shard: .*Prune the whole model first, .*then shard"),
    Refused("FSDP2 within", lambda m, x: Holder(sharded(m, x)), r"^inner is sharded by fully_shard"),
    Refused("FSDP1", sharded_flat, r"^The model is sharded by FullyShardedDataParallel: .*Prune the whole model first"),
    Refused("DTensor", distributed_head, r"^head\.weight is a DTensor.*prune the model first, then quantise or distribute"),
    Refused("TorchScript", torch.jit.trace, r"^The model is a .*TorchScript module cannot be cut: prune the Python module"),
    Refused("TorchScript within", lambda m, x: Holder(torch.jit.trace(m, x)), r"^inner is a .*TorchScript module cannot"),
    Refused("export", lambda m, x: torch.export.export(m, (x,)), r"got a ExportedProgram: prune the module that it was exp"),
]  # fmt: skip


@pytest.mark.parametrize("refused", REFUSED, ids=lambda r: r.name)
@EACH
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
def test_refused(case: Case, refused: Refused) -> None:
    wrapped = refused.wrap(case.dense(), case.batch(1))
    plan = structprune.plan_of(case.pruned())
    for call in (
        lambda: structprune.prune_model(wrapped, 0.5, example_inputs=case.batch(1)),
        lambda: structprune.trace(wrapped, case.batch(1)),
        lambda: plan.apply(wrapped, inplace=True),
    ):
        with pytest.raises(ModelError, match=f"(?s){refused.message}"):
            call()


@pytest.mark.usefixtures("one_process")
@EACH
def test_what_the_error_says_to_do_works(case: Case) -> None:
    wrapped = nn.parallel.DistributedDataParallel(case.dense())
    small = structprune.prune_model(wrapped.module, 0.5, example_inputs=case.batch(1), round_to=1)
    assert torch.equal(nn.parallel.DistributedDataParallel(small)(case.batch()), case.pruned()(case.batch()))
    assert torch.equal(wrapped(case.batch()), case.dense()(case.batch()))
    assert torch.equal(copy.deepcopy(small)(case.batch()), small(case.batch()))


def test_a_copy_of_a_compiled_model_runs_itself() -> None:
    """``Module.compile`` keeps a function that runs the module it was called on."""
    case = CASES["residual"]
    small = structprune.prune_model(compiled_inside(case.dense(), case.batch()), 0, example_inputs=case.batch(1))
    before = small(case.batch())
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert torch.count_nonzero(small(case.batch())) == 0 and torch.count_nonzero(before)
