"""Networks that look harmless and are not: each one once came out wrong, or was refused for no reason."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import structprune
from structprune import ModelError, NothingToPruneError
from tests.support import oracle

Tensor = torch.Tensor
X = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
IMAGES = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Middle(nn.Module):
    """Two convolutions with a function of the wide channels between them."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.c1, self.c2, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 1), nn.Linear(8, 4)
        self.function = function
        for name, tensor in tensors.items():
            setattr(self, name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.c1(x), self)
        return self.head(self.c2(y).relu().mean((2, 3)))


def pruned_or_refused(model: nn.Module, ratio: float = 0.5, raw: Any = None) -> nn.Module | None:
    """Prune; what is pruned must be right by the oracle and by the proof."""
    oracle.randomise(model)
    try:
        small = structprune.prune_model(model, ratio, "channel", example_inputs=X, round_to=1)
    except NothingToPruneError:
        return None
    if structprune.plan_of(small).row_scales:
        check_made_up_for(model, small)
    else:
        oracle.check(model, small, IMAGES, raw_inputs=raw)
    proof = structprune.prove(model, small, X)
    assert proof, str(proof)
    return small


def check_made_up_for(model: nn.Module, small: nn.Module) -> None:
    """Rows that make up for a number are no slices of the dense ones: the outputs alone can be compared."""
    kept = {n: {d: torch.tensor(i) for d, i in dims.items()} for n, dims in structprune.plan_of(small).kept.items()}
    masked = copy.deepcopy(model).eval()
    oracle.zero_inputs(masked, kept, {})
    torch.testing.assert_close(small.eval()(IMAGES), masked(IMAGES), rtol=1e-6, atol=1e-6)


FROM_SIZES: list[tuple[str, Callable[[Tensor, Any], Tensor], dict[str, Tensor]]] = [
    ("tensor", lambda y, m: y / torch.tensor(float(y.shape[1])), {}),
    ("root", lambda y, m: y / torch.sqrt(torch.tensor(y.shape[1], dtype=torch.float64)), {}),
    ("new tensor", lambda y, m: y / y.new_tensor(y.shape[1]), {}),
    ("tensor on its device", lambda y, m: y / torch.tensor(float(y.shape[1]), device=y.device), {}),
    ("numpy", lambda y, m: y * torch.from_numpy(np.array(1 / y.shape[1])), {}),
    (
        "another parameter",
        lambda y, m: y * (m.a if y.shape[1] >= 32 else m.b),
        {"a": torch.ones(()), "b": torch.ones(())},
    ),
    ("swapped operands", lambda y, m: y - y.relu() * 2 if y.shape[1] >= 32 else y.relu() - y * 2, {}),
    ("another place", lambda y, m: y.narrow(2, y.shape[1] // 16, 4), {}),
    ("another row", lambda y, m: y[:, :, y.shape[1] // 16].unsqueeze(2), {}),
    ("another roll", lambda y, m: y.roll(y.shape[1] // 8, 3) + y, {}),
    ("own mean", lambda y, m: y * torch.sigmoid(y.sum(1, keepdim=True) / y.shape[1]), {}),
]


@pytest.mark.parametrize(("function", "tensors"), [t[1:] for t in FROM_SIZES], ids=[t[0] for t in FROM_SIZES])
def test_what_is_computed_from_the_size_is_noticed(function: Any, tensors: dict[str, Tensor]) -> None:
    small: Any = pruned_or_refused(Middle(function, **tensors))
    assert small is None or small.c1.out_channels == 32 or structprune.plan_of(small).row_scales.keys() >= {"c1.weight"}


class Keeps(nn.Module):
    """Holds a number for a width, and makes another one where the width is another."""

    def __init__(self, number: Tensor) -> None:
        super().__init__()
        self.width, self.number = 32, number

    def forward(self, y: Tensor) -> Tensor:
        if y.shape[1] != self.width:
            self.width, self.number = y.shape[1], torch.tensor(y.shape[1], dtype=self.number.dtype, device=y.device)
        return y / self.number


def _table() -> Callable[[Tensor, Any], Tensor]:
    """A function of a file of its own that keeps a number for every width it was asked for."""
    file = types.ModuleType("a_table_of_numbers")
    exec(
        "import torch\n"
        "table = {}\n"
        "def scaled(y, m):\n"
        "    width = y.shape[1]\n"
        "    if width not in table:\n"
        "        table[width] = torch.tensor(width ** -0.5, dtype=torch.float64, device=y.device)\n"
        "    return y * table[width]\n",
        vars(file),
    )
    scaled: Callable[[Tensor, Any], Tensor] = file.scaled
    return scaled


@pytest.mark.parametrize(
    "make",
    [lambda: Keeps(torch.tensor(32)), lambda: Keeps(torch.tensor(32.0)), _table],
    ids=["integer", "float", "table"],
)
def test_a_number_that_is_kept_for_a_size_is_noticed(make: Callable[[], Any]) -> None:
    function = make()
    model = Middle((lambda y, m: m.keeps(y)) if isinstance(function, nn.Module) else function)
    if isinstance(function, nn.Module):
        model.keeps = function
    structprune.count_flops(model.double(), X)  # the table has the dense width before anything is traced
    small: Any = pruned_or_refused(model)
    assert small is None or small.c1.out_channels == 32 or structprune.plan_of(small).row_scales.keys() >= {"c1.weight"}


def test_group_norm_with_a_literal_number_of_groups() -> None:
    """With real statistics: the oracle makes group norms elementwise, which would hide it."""
    model = oracle.randomise(Middle(lambda y, m: F.group_norm(y, 4)))
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X, round_to=1)
    kept = torch.tensor(structprune.plan_of(small).kept["c1.weight"][0])
    # The same positions of each of the four groups of eight went.
    assert kept.remainder(8).view(4, 4).eq(kept.remainder(8).view(4, 4)[0]).all()
    assert structprune.prove(model, small, X)


def test_whole_groups_keep_their_exact_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.Conv2d(32, 8, 1))
    oracle.randomise(model)
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X, round_to=1, keep_representation=False)
    assert (small[1].num_groups, small[1].num_channels) == (4, 16)
    kept = torch.tensor(structprune.plan_of(small).kept["2.weight"][1])
    masked = copy.deepcopy(model)
    gone = torch.ones(32, dtype=torch.bool)
    gone[kept] = False
    masked[2].weight.data[:, gone] = 0  # type: ignore[index, operator]
    with torch.no_grad():
        assert torch.allclose(masked(IMAGES), small(IMAGES), rtol=0, atol=1e-10)


def test_a_copy_that_becomes_a_view_at_width_one() -> None:
    def through_copy(y: Tensor, m: Any) -> Tensor:
        z = y.permute(0, 2, 3, 1).contiguous()
        z.mul_(3.0)
        return y + z.permute(0, 3, 1, 2)

    small: Any = pruned_or_refused(Middle(through_copy), 0.95)
    assert small is None or small.c1.out_channels > 1


def test_a_variance_keeps_two_entries() -> None:
    model = oracle.randomise(Middle(lambda y, m: y / (y.std(1, keepdim=True) + 1e-5)))
    small: Any = structprune.prune_model(model, 0.99, example_inputs=X, round_to=1)
    assert small.c1.out_channels == 2 and structprune.prove(model, small, X)


def test_a_running_count_is_no_mixture() -> None:
    small: Any = pruned_or_refused(Middle(lambda y, m: y * torch.ones_like(y).cumsum(1)))
    assert small is None or small.c1.out_channels == 32


def test_a_reduction_that_reaches_the_output_through_a_buffer() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
            self.register_buffer("b", torch.zeros(()))

        def forward(self, x: Tensor) -> Any:
            y = self.c(x)
            self.b.copy_(y.mean())
            return self.o(y), self.b.clone()

    with pytest.raises(NothingToPruneError, match="reduced on the way to an output"):
        structprune.prune_model(Buffered().double(), 0.5, example_inputs=X, keep_representation=False)


class Clamped(nn.Module):
    """Weights that the forward itself changes in place."""

    def __init__(self, how: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(16, 3, 3, 3)), nn.Conv2d(16, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(x, self.how(self)))


@pytest.mark.parametrize(
    "how",
    [
        lambda m: m.weight.data.clamp_(-0.1, 0.1),
        lambda m: m.weight.detach().div_(7.0),
        lambda m: setattr(m.weight, "data", torch.renorm(m.weight.data, 2, 0, 0.5)) or m.weight,
    ],
)
def test_planning_leaves_weights_that_the_forward_writes(how: Any) -> None:
    model = Clamped(how).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = structprune.prune_model(model, 0.5, example_inputs=X, keep_representation=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert small(IMAGES).shape == (2, 4, 6, 6)


class Cached(nn.Module):
    """Something made in the first forward and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.o = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.linspace(0, 1, 6, dtype=x.dtype, device=x.device)
        return self.o(self.c(x) * self.kept)


def test_state_that_a_forward_leaves_behind() -> None:
    model = oracle.randomise(Cached())
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X, keep_representation=False)
    assert small.c.out_channels == 8 and small.kept is None and model.kept is None
    assert structprune.prove(model, small, X)


def test_tensors_of_the_user_are_not_marked() -> None:
    held = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)).double()
    structprune.prune_model(model, 0.5, example_inputs=lambda m: m(held), keep_representation=False)
    assert not hasattr(held, "_structprune")


def test_modules_that_refuse_to_be_copied() -> None:
    class Shared(nn.Conv2d):
        def __deepcopy__(self, memo: Any) -> Shared:
            return self

    model = nn.Sequential(Shared(3, 16, 3), nn.Conv2d(16, 4, 1))
    with pytest.raises(ModelError, match=r"0 is not copied by copy.deepcopy"):
        structprune.prune_model(model, 0.5, keep_representation=False)
    assert model[0].out_channels == 16


def test_hooks_of_frozen_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1))
    calls: list[int] = []
    model[0].weight.register_hook(lambda gradient: calls.append(1))  # type: ignore[union-attr]
    model[0].weight.requires_grad_(False)  # type: ignore[union-attr]
    small = structprune.prune_model(model, 0.5, keep_representation=False)
    assert not small[0].weight.requires_grad  # type: ignore[index, union-attr]
    small[0].weight.requires_grad_(True)  # type: ignore[index, union-attr]
    small(IMAGES.float()).sum().backward()
    assert calls == [1]


def test_cutting_in_place_while_a_graph_lives_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1))
    loss = model(IMAGES.float()).sum()
    with pytest.raises(ModelError, match="graph of an earlier forward is still alive"):
        structprune.prune_model(model, 0.5, keep_representation=False, inplace=True)
    assert model[0].out_channels == 16
    del loss
    structprune.prune_model(model, 0.5, keep_representation=False, inplace=True)
    model(IMAGES.float()).sum().backward()
    assert model[0].weight.grad.shape == (8, 3, 3, 3)  # type: ignore[union-attr]


def test_squeeze_in_place() -> None:
    small: Any = pruned_or_refused(Middle(lambda y, m: y.mean((2, 3), keepdim=True).squeeze_(-1).unsqueeze_(-1)))
    assert small is not None and small.c1.out_channels == 16


def only_single(y: Tensor, _module: nn.Module) -> Tensor:
    if y.dtype != torch.float32:
        raise RuntimeError("single precision only")
    return y


def test_the_proof_says_why_a_model_cannot_run() -> None:
    model = Middle(only_single)
    small = structprune.prune_model(model, 0.5, example_inputs=X.float(), round_to=1)
    proof = structprune.prove(model, small, X.float())
    assert not proof and "the dense model does not run in float64: RuntimeError" in proof.reason


def test_the_proof_computes_in_float64_where_the_forward_asks_for_less() -> None:
    model = Middle(lambda y, m: y.float())
    small = structprune.prune_model(model, 0.5, example_inputs=X.float(), round_to=1)
    proof = structprune.prove(model, small, X.float())
    assert proof and proof.max_error < 1e-12


def test_weight_standardisation_by_a_reshape() -> None:
    class Standardised(nn.Conv2d):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return F.conv2d(x, weight, padding=1)

    model = nn.Sequential(Standardised(3, 16), Standardised(16, 16), nn.Conv2d(16, 4, 1))
    small: Any = structprune.prune_model(model, 0.5, example_inputs=X.float(), keep_representation=False)
    assert small[1].weight.shape == (8, 8, 3, 3)
    assert structprune.prove(model, small, X.float())


def test_memory_that_nobody_filled_is_no_constant() -> None:
    def noisy(y: Tensor, module: nn.Module) -> Tensor:
        # A table on the CPU, dropped out in training: the mask's memory is empty at first.
        return y * F.dropout(torch.ones(3, 1, 1, 1), 0.5, training=module.training).sum()

    model = Middle(noisy)
    for _ in range(5):
        dirty = [torch.full((3,), float(i)) for i in range(100)]
        del dirty
        small: Any = structprune.prune_model(model, 0.5, example_inputs=X.float(), round_to=1)
        assert small.c1.out_channels == 16
