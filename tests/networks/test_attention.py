"""Attention as people write it: whole heads go, the stream shrinks, and what cannot follow stays with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import structprune
from tests.support import oracle
from tests.support.attention import (
    HEADS,
    INPUTS,
    STREAM,
    TOKENS,
    Checked,
    ClassTokens,
    Configured,
    Cosine,
    Fused,
    Grouped,
    HeldWidth,
    LayerScale,
    Literal,
    LiteralHeads,
    LiteralRoot,
    Mlp,
    NanoGPT,
    Net,
    RelativeBias,
    RootOfWidth,
    Rotary,
    Separate,
    Shared,
    Slopes,
    TalkingHeads,
    Torch,
    Windowed,
)
from tests.zoo.by_value import by_value
from tests.zoo.calls import Call

Tensor = torch.Tensor
TIED = "must be as wide as embed.weight, which stays whole"
LITERAL = "cannot shrink here: fails: shape '[1, 6, 4, 8]' is invalid"
Left = dict[str, Any]


class Case(NamedTuple):
    """A block; what it holds where the stream shrinks and where it stays, and why its heads do not go there."""

    name: str
    make: Callable[[], nn.Module]
    channel: Left
    filter: Left | None = None
    """As ``channel`` where it is not given."""
    reasons: tuple[str, str] = ("", "")

    def expected(self, granularity: str) -> tuple[Left, str]:
        """What is held, and the reason."""
        if granularity == "channel":
            return self.channel, self.reasons[0]
        return self.channel if self.filter is None else self.filter, self.reasons[1]


def torch_case(name: str, channel: Left | None = None, filter: Left | None = None, **options: Any) -> Case:
    """``nn.MultiheadAttention`` reshapes to the width of its query: heads go only with the stream."""
    sizes = {"embed_dim": 16, "kdim": 16, "vdim": 16, "num_heads": 2, "out_proj.in_features": 16}
    stays = {"embed_dim": 32, "kdim": 32, "vdim": 32, "num_heads": 4, "out_proj.in_features": 32}
    return Case(
        name,
        lambda: Torch(**options),
        {f"attention.{path}": size for path, size in {**sizes, **(channel or {})}.items()},
        {f"attention.{path}": size for path, size in {**stays, **(filter or {})}.items()},
        ("", TIED),
    )


class EncoderDecoder(nn.Module):
    """``nn.Transformer`` from the stream to itself, reversed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(STREAM, HEADS, 1, 1, 48, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.flip(1))


def gated(mlp: str, width: int) -> Case:
    return Case(f"MLP {mlp}".strip(), lambda: Mlp(mlp), {"up.out_features": width, "out.in_features": 24})


HELD = {"heads": 2, "out.in_features": 16}
FUSED = {"qkv.out_features": 48, **HELD}
WHOLE = {"heads": 4, "out.in_features": 32}
CONFIG = {"out.in_features": 16, "q.out_features": 16}
CASES = [
    torch_case("torch", batch_first=True),
    torch_case("torch, tokens first"),
    torch_case("torch without biases", batch_first=True, bias=False),
    torch_case("torch with biases for keys", batch_first=True, add_bias_kv=True),
    torch_case("torch with a zero key", batch_first=True, add_zero_attn=True),
    torch_case("torch with weights", weights="unused", batch_first=True),
    torch_case("torch, keys and values of other widths", {"kdim": 6, "vdim": 10}, {"kdim": 6, "vdim": 10}, cross=True),
    Case(
        "torch's encoder layer",
        lambda: nn.TransformerEncoderLayer(STREAM, HEADS, 48, batch_first=True),
        {"self_attn.num_heads": 2, "norm1.normalized_shape": (16,), "linear1.out_features": 24},
        {"self_attn.num_heads": 4, "norm1.normalized_shape": (32,), "linear1.out_features": 24},
        ("", TIED),
    ),
    Case(
        "torch's transformer",
        EncoderDecoder,
        {"inner.d_model": 16, "inner.decoder.layers.0.multihead_attn.num_heads": 2},
        {"inner.d_model": 32, "inner.decoder.layers.0.multihead_attn.num_heads": 4},
        ("", TIED),
    ),
    Case("separate", Separate, {"q.out_features": 16, "k.out_features": 16, "scale": 8**-0.5, **HELD}),
    Case("fused", Fused, FUSED, {"qkv.out_features": 96, **WHOLE}, ("", TIED)),
    Case("fused, width held, own scale", lambda: HeldWidth(stored_scale=True), FUSED),
    Case("fused, width held, default scale", HeldWidth, {"width": 8, **FUSED}),
    Case(
        "nanoGPT",
        NanoGPT,
        {"n_head": 2, "n_embd": 16, "out.in_features": 16},
        {"n_head": 4, "n_embd": 32, "out.in_features": 32},
        ("", TIED),
    ),
    *(
        Case(f"grouped queries, {how}", lambda how=how: Grouped(how), {"kv_heads": 1, "k.out_features": 8, **HELD})
        for how in ("expand", "repeat_interleave", "enable_gqa")
    ),
    Case(
        "one key for all queries",
        lambda: Grouped("expand", each=4),
        {"each": 2, "kv_heads": 1, "k.out_features": 8, **HELD},
        reasons=("is multiplied with a tensor of fixed size (bmm in block)",) * 2,
    ),
    Case("relative bias", RelativeBias, {"table.shape": (11, 2), **HELD}),
    Case("cosine", Cosine, {"temperature.shape": (2, 1, 1), **HELD}),
    Case("talking heads", TalkingHeads, {"talk.weight.shape": (2, 2), **HELD}),
    Case("stored slopes", lambda: Slopes(True), {"slopes.shape": (2,), **HELD}),
    # Slopes computed from the number of heads would be others: the heads stay, and are narrower.
    Case("computed slopes", lambda: Slopes(False), {"heads": 4, "width": 4, "scale": 8**-0.5, "out.in_features": 16}),
    Case("windows", Windowed, FUSED, {"qkv.out_features": 96, **WHOLE}, ("", TIED)),
    Case(
        "class and distillation token",
        ClassTokens,
        {"cls.shape": (1, 1, 16), "positions.shape": (1, TOKENS + 2, 16), "attention.heads": 2},
        {"cls.shape": (1, 1, 32), "positions.shape": (1, TOKENS + 2, 32), "attention.heads": 4},
        ("", TIED),
    ),
    Case("rotary", Rotary, {"cos.shape": (TOKENS, 8), "width": 8, **HELD}),
    Case("one head", lambda: Fused(heads=1), {"heads": 1, "qkv.out_features": 48}, {"out.in_features": 32}, ("", TIED)),
    Case(
        "sizes in an object",
        lambda: Configured(SimpleNamespace(heads=4, width=8), lambda c: (c.heads, c.width)),
        {"config": SimpleNamespace(heads=2, width=8), **CONFIG},
    ),
    Case(
        "sizes in a dict",
        lambda: Configured({"heads": 4, "width": 8}, lambda c: (c["heads"], c["width"])),
        {"config": {"heads": 2, "width": 8}, **CONFIG},
    ),
    Case("sizes in a tuple", lambda: Configured((4, 8), lambda c: c), {"config": (2, 8), **CONFIG}),
    Case(
        "sizes in an object that two blocks share",
        Shared,
        {"config.heads": 2, "first.config.heads": 2, "second.config.heads": 2, "second.out.in_features": 16},
    ),
    Case("asserted width", lambda: Checked("assert"), {"dim": 16, **HELD}, {"dim": 32, **HELD}),
    Case("compared sizes", lambda: Checked("raise"), HELD),
    # The scale of the stored root would change with the width, so that the heads go.
    Case("root of the width", RootOfWidth, {"width": 8, **HELD}),
    Case("head count as a number", LiteralHeads, {"heads": 4, "q.out_features": 16, "out.in_features": 16}),
    Case("sizes as numbers", Literal, WHOLE, reasons=(LITERAL, LITERAL)),
    Case("head count as a number, root of the width", LiteralRoot, {"heads": 4, "q.out_features": 16}),
    Case(
        "layer scale",
        lambda: LayerScale(Fused()),
        {"gamma.shape": (16,), "norm.normalized_shape": (16,), "block.heads": 2},
        {"gamma.shape": (32,), "norm.normalized_shape": (32,), "block.heads": 4},
        ("", TIED),
    ),
    gated("", 24),
    gated("chunk", 48),
    gated("glu", 48),
    gated("two layers", 24),
]


@pytest.fixture(autouse=True)
def operators_and_not_one_kernel() -> Iterator[None]:
    """The oracle replaces norms, which torch's fast path does not call."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def plan(model: nn.Module, granularity: Any, x: Tensor) -> structprune.Plan:
    return structprune.plan_pruning(model, 0.5, granularity, example_inputs=x, keep_representation=False, round_to=1)


def judge(model: nn.Module, plan: structprune.Plan, x: Tensor) -> Any:
    """Apply a plan to a randomised model: proved, right by value, running in both modes."""
    small = plan.apply(model)
    proof = structprune.prove(model, small, x)
    assert proof and proof.max_error < 1e-12, str(proof)
    if not plan.row_scales:  # values of rows that are multiplied are not found again
        assert by_value(model, small, Call((x,)))["oracle"] == "right"
    for training in (False, True):
        out = small.train(training)(torch.cat([x, x]))
        assert out.shape == model(torch.cat([x, x])).shape
    out.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters() if p.requires_grad)
    return small.eval()


@pytest.mark.parametrize("granularity", ["channel", "filter"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_heads_go_whole(case: Case, granularity: str) -> None:
    torch.manual_seed(0)
    model: Any = oracle.randomise(Net(case.make()).eval())
    x = torch.randn(1, TOKENS, INPUTS, dtype=torch.float64)
    held, reason = case.expected(granularity)
    try:
        planned = plan(model, granularity, x)
    except structprune.NothingToPruneError as error:
        assert reason and reason in str(error)
        assert {path: attrgetter(path)(model.block) for path in held} == held
        return
    left_whole = [g.reason for g in planned.groups if g.name.startswith("block.") and not g.removed]
    assert any(each.startswith(reason) for each in left_whole) if reason else not left_whole
    small = judge(model, planned, x)
    assert small.embed.out_features == small.head.in_features == (16 if granularity == "channel" else 32)
    assert {path: attrgetter(path)(small.block) for path in held} == held


COLLIDING: dict[str, Callable[[], nn.Module]] = {
    "fused": lambda: Fused(16, 4),
    "nanoGPT": lambda: NanoGPT(16, 4),
    "grouped queries": lambda: Grouped("expand", 16, 4),
    "relative bias": lambda: RelativeBias(16, 4, 4),
    "rotary": lambda: Rotary(16, 4, 4),
    "windows": lambda: Windowed(16, 4),
    "compared sizes": lambda: Checked("raise", 16, 4),
    "sizes in an object that two blocks share": lambda: Shared(16, 4),
}


@pytest.mark.parametrize("name", COLLIDING)
def test_sizes_that_are_equal_by_chance(name: str) -> None:
    """Four heads of width four, four tokens, a batch of four."""
    torch.manual_seed(0)
    model: Any = oracle.randomise(Net(COLLIDING[name](), 16).eval())
    x = torch.randn(4, 4, INPUTS, dtype=torch.float64)
    small = judge(model, plan(model, "channel", x), x)
    shapes = {tuple(t.shape) for n, t in small.block.named_parameters() if n.endswith("out.weight")}
    assert small.embed.out_features == 8 and shapes == {(8, 8)}
    held = {**vars(small.block), **vars(vars(small.block).get("config", SimpleNamespace()))}
    assert held.get("heads", held.get("n_head")) == 2 and held.get("width", 4) == 4


class Shown(nn.Module):
    """Attention whose weights are an output."""

    def __init__(self, average: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(INPUTS, STREAM), nn.Linear(STREAM, 5)
        self.attention, self.average = nn.MultiheadAttention(STREAM, HEADS, batch_first=True), average

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        out, weights = self.attention(x, x, x, average_attn_weights=self.average)
        return self.head(out), weights


@pytest.mark.parametrize(
    ("average", "reason"),
    [(True, "is reduced on the way to an output (mean in attention)"), (False, "is a dimension of the model's output")],
)
def test_heads_whose_weights_are_shown_stay(average: bool, reason: str) -> None:
    model, x = Shown(average).eval(), torch.randn(1, TOKENS, INPUTS)
    planned = plan(model, "channel", x)
    assert {g.name: g.reason for g in planned.groups if g.name.startswith("attention.in_proj")} == {
        "attention.in_proj_weight": reason
    }
    small: Any = planned.apply(model)
    assert small.attention.num_heads == HEADS and small.attention.out_proj.out_features == 16
    assert small(x)[1].shape == model(x)[1].shape and structprune.prove(model, small, x)


def test_the_fast_path_of_torch_gives_the_same() -> None:
    """It reads the sizes that the modules hold, where the operators take them from the tensors."""
    model = Net(nn.TransformerEncoderLayer(STREAM, HEADS, 48, batch_first=True)).eval()
    x = torch.randn(2, TOKENS, INPUTS)
    small = plan(model, "channel", x[:1]).apply(model)
    with torch.no_grad():
        slow = small(x)
        torch.backends.mha.set_fastpath_enabled(True)
        assert torch.allclose(small(x), slow, atol=1e-6)


@pytest.mark.parametrize("make", [Separate, Fused, lambda: Torch(batch_first=True), Rotary])
def test_pruned_again(make: Callable[[], nn.Module]) -> None:
    model, x = Net(make()).eval(), torch.randn(1, TOKENS, INPUTS)
    once: Any = plan(model, "channel", x).apply(model)
    twice: Any = plan(once, "channel", x).apply(once)
    assert [m.embed.out_features for m in (model, once, twice)] == [32, 16, 8]
    assert twice(torch.cat([x, x])).shape == (2, 5) and structprune.prove(once, twice, x)
