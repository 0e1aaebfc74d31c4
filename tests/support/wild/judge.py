"""Is a pruned network right? Judged by values alone, with nothing of structprune but its public calls.

The slices that were kept are recovered from the values. In the dense network, built anew, every
removed slice is zeroed, and blocks leave removed channels out of statistics where they mark it.
Both networks then run in float64, in evaluation and in training mode, and must agree.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

import structprune
from tests.support import oracle
from tests.support.wild import marks
from tests.support.wild.containers import tensors
from tests.support.wild.network import Recipe, build, example, recipe

Tensor = torch.Tensor
TOLERANCE = 1e-9
LEAST_POWER = 1e-7


@dataclass
class Verdict:
    """What became of one network.

    Attributes:
        outcome: "right", "wrong", "foreign" (an error that is not structprune's own), "refused", "uncut",
            "no verdict" (the masking changed nothing that could be seen).
        said: The error, or what is wrong.
        removed: Share of the parameters that went.
        cut: The blocks of whose parameters some went, by position.
        plan: The plan as text, to compare with another run.
    """

    recipe: Recipe
    outcome: str
    said: str = ""
    removed: float = 0.0
    cut: list[bool] = field(default_factory=list)
    plan: str = ""


def plan_of(r: Recipe, model: nn.Module) -> structprune.Plan:
    return structprune.plan_pruning(
        model, r.ratio, r.granularity, example_inputs=example(r), keep_representation=r.keep_representation, round_to=1
    )  # type: ignore[call-overload]


def judge(r: Recipe) -> Verdict:
    """Prune the network of a recipe, and judge what comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _judge(r)
        except oracle.WrongCut as error:
            return Verdict(r, "wrong", str(error))


def _judge(r: Recipe) -> Verdict:
    model = build(r)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    dense_out = _outputs(model, example(r))
    try:
        plan = plan_of(r, model)
        pruned = plan.apply(model)
    except structprune.StructPruneError as error:
        return Verdict(r, "refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict(
            r, "foreign", f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        )
    _check_unchanged(model, before, dense_out, r)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, pruned)]
    verdict = Verdict(r, "right", "", 1 - sizes[1] / sizes[0], _cut_blocks(r, model, pruned), plan.to_json())
    if sizes[0] == sizes[1]:
        verdict.outcome = "uncut"
        return verdict
    power = _compare(r, model, pruned, plan)
    if not power > LEAST_POWER:
        verdict.outcome = "no verdict"
    return verdict


def _check_unchanged(model: nn.Module, before: dict[str, Tensor], outputs: list[Tensor], r: Recipe) -> None:
    after = model.state_dict()
    if before.keys() != after.keys() or any(not _same(after[n], t) for n, t in before.items()):
        raise oracle.WrongCut("planning or cutting a copy changed the dense model's tensors")
    if any(not _same(a, b) for a, b in zip(_outputs(model, example(r)), outputs, strict=True)):
        raise oracle.WrongCut("planning or cutting a copy changed what the dense model computes")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors(model(x)))


def _cut_blocks(r: Recipe, model: nn.Module, pruned: nn.Module) -> list[bool]:
    pairs = [*zip(model.blocks.children(), pruned.blocks.children(), strict=True)]
    pairs += [*zip(model.tail, pruned.tail, strict=True)]
    return [any(p.shape != q.shape for p, q in zip(a.parameters(), b.parameters(), strict=True)) for a, b in pairs]


def _compare(r: Recipe, model: nn.Module, pruned: nn.Module, plan: structprune.Plan) -> float:
    """How much the masking changed the dense outputs, relative to their scale; raises if the two differ."""
    _check_runs(r, pruned)
    plain = without_gains(model, pruned, plan)
    kept = oracle.kept_slices(_Renamed(_named(model)), plain)
    double(model), double(pruned)
    _exact_gains(model, pruned, plan, kept)
    masked, dense = double(build(r)), double(build(r))
    zero_removed(masked, kept)
    x = example(r)
    x = x.double() if x.is_floating_point() else x
    power = 0.0
    with _no_fast_paths(), marks.exact():
        for training in (False,) if r.random else (False, True):
            for m in (masked, dense, pruned):
                m.train(training)
            with marks.reference(masked, kept):
                expected = _outputs(masked, x)
            whole = _outputs(dense, x)
            got = _run(pruned, x, "training" if training else "evaluation")
            if [t.shape for t in expected] != [t.shape for t in got]:
                raise oracle.WrongCut(f"outputs have shapes {[list(t.shape) for t in got]}")
            scale = max(float(t.abs().max()) for t in whole) or 1.0
            error = max(float((a - b).abs().max()) for a, b in zip(expected, got, strict=True)) / scale
            power = max(power, *(float((a - b).abs().max()) / scale for a, b in zip(expected, whole, strict=True)))
            if not error <= TOLERANCE:
                mode = "training" if training else "evaluation"
                raise oracle.WrongCut(
                    f"outputs in {mode} mode differ by {error:.1e} of their scale (power {power:.1e})"
                )
    return power


def _check_runs(r: Recipe, pruned: nn.Module) -> None:
    """Forward and backward in the dtype that it has, in both modes."""
    state = {name: t.clone() for name, t in pruned.state_dict().items()}
    for training in (True, False):
        pruned.train(training)
        outs = [t for t in _run(pruned, example(r), "float32", grad=True) if t.requires_grad]
        if outs:
            sum(t.float().sum() for t in outs).backward()  # type: ignore[union-attr]
    for p in pruned.parameters():
        p.grad = None
    pruned.load_state_dict(state)


def _run(pruned: nn.Module, x: Tensor, what: str, *, grad: bool = False) -> list[Tensor]:
    try:
        if grad:
            return list(tensors(pruned(x)))
        return _outputs(pruned, x)
    except Exception as error:
        raise oracle.WrongCut(f"the pruned network fails in {what}: {type(error).__name__}: {error}") from error


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def without_gains(model: nn.Module, pruned: nn.Module, plan: structprune.Plan) -> nn.Module:
    """The pruned model's tensors without the factors that its plan names, exactly as the dense model has them."""
    plain, dense = {}, _named(model)
    for name, tensor in _named(pruned).items():
        value = tensor.detach().clone()
        if name in plan.row_scales:
            gains = torch.tensor(plan.row_scales[name], dtype=torch.float64).view(-1, *(1,) * (value.ndim - 1))
            value = _nearest(dense[name].detach(), value.double() / gains)
        plain[name] = value
    return _Renamed(plain)


class _Renamed(nn.Module):
    """Tensors under the names that they have in the model; complex ones as pairs of numbers."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = {n: torch.view_as_real(t.detach()) if t.is_complex() else t for n, t in tensors.items()}

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        return iter(())

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        return iter(self.held.items())


def _nearest(dense: Tensor, value: Tensor) -> Tensor:
    """The dense value next to each of these, where one is within rounding."""
    order = dense.double().flatten().sort().values
    place = torch.searchsorted(order, value.flatten()).clamp(1, len(order) - 1) if len(order) > 1 else None
    if place is None:
        return order.expand(value.numel()).reshape(value.shape).to(dense.dtype)
    low, high = order[place - 1], order[place]
    near = torch.where((value.flatten() - low).abs() < (high - value.flatten()).abs(), low, high).view(value.shape)
    close = (near - value).abs() <= 1e-5 * near.abs() + 1e-7
    return torch.where(close, near, value).to(dense.dtype)


def _exact_gains(model: nn.Module, pruned: nn.Module, plan: structprune.Plan, kept: marks.Kept) -> None:
    dense, cut = _named(model), _named(pruned)
    for name, gains in plan.row_scales.items():
        value = dense[name].detach()
        for dim, index in kept[name].items():
            value = value.index_select(dim, index)
        factor = torch.tensor(gains, dtype=torch.float64).view(-1, *(1,) * (value.ndim - 1))
        cut[name].data = value * factor


def double(model: nn.Module) -> nn.Module:
    """Every real tensor in float64, every complex one in complex128."""
    model.double()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex128)
    return model


def zero_removed(model: nn.Module, kept: marks.Kept) -> None:
    """Zero every slice that the pruned network does not have.

    A removed channel may have any value in the dense network, as long as no layer reads it; the
    zeros in what reads it see to that.
    """
    named = _named(model)
    for name, dims in kept.items():
        for dim, index in dims.items():
            # A filter of weight norm without a length would be 0 / 0; it is not read.
            if dim == 0 and name.endswith(("original1", "weight_v")):
                continue
            gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
            gone[index] = False
            named[name].data.index_fill_(dim, gone.nonzero().flatten(), 0)


class _no_fast_paths:
    """torch.nn's fused kernel of an encoder layer knows nothing of the marks."""

    def __enter__(self) -> None:
        self.was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self.was)


def judge_all(recipes: Iterable[Recipe]) -> Iterator[Verdict]:
    """Judge networks one after another, each planned a second time after the next one was pruned."""
    last: Verdict | None = None
    for r in recipes:
        verdict = judge(r)
        if last is not None:
            yield _planned_again(last)
        last = verdict
    if last is not None:
        yield _planned_again(last)


def _planned_again(verdict: Verdict) -> Verdict:
    if not verdict.plan or verdict.outcome == "wrong":
        return verdict
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build(verdict.recipe)
        _outputs(model, example(verdict.recipe))  # some forwards leave sizes in the model, which a plan then lists
        again = plan_of(verdict.recipe, model).to_json()
    if again != verdict.plan:
        return replace(verdict, outcome="wrong", said="another plan after another network was pruned")
    return verdict


def judge_seeds(seeds: Iterable[int]) -> list[Verdict]:
    """The verdicts on the networks of these seeds, for a process of its own."""
    return list(judge_all(recipe(seed) for seed in seeds))
