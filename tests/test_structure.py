"""How a model is put together: entry points, outputs, state, wrappers, and operators between two layers."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import structprune
from structprune import NothingToPruneError
from structprune.tracing.discovery import Decisions
from structprune.tracing.session import Session
from tests.support import oracle, vision
from tests.support.attention import INPUTS, STREAM, TOKENS, Fused, Net, Separate
from tests.zoo.by_value import by_value
from tests.zoo.calls import Call

Tensor = torch.Tensor
X = torch.randn(1, TOKENS, INPUTS, generator=torch.Generator().manual_seed(0))
PAIR = torch.cat([X, X.flip(1)])


def pruned(model: nn.Module, x: Any = X, granularity: Any = "channel", **options: Any) -> Any:
    """Prune without any floor and prove it."""
    options = {"keep_representation": False, "round_to": 1, **options}
    small = structprune.prune_model(model, 0.5, granularity, example_inputs=x, **options)
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
    return small


# Operators between two layers.


class Between(nn.Module):
    """A function of the channels between two layers."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], out: int, **held: Any) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(INPUTS, 16), nn.Linear(out, 5), function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), self))


class Op(NamedTuple):
    """A function of ``(y, module)``, how wide it makes the sixteen channels, how many stay or why all do."""

    name: str
    function: Callable[[Tensor, Any], Tensor]
    left: int | str = 8
    out: int = 16
    held: Callable[[], dict[str, Any]] = dict


def weight(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"w": nn.Parameter(torch.randn(*shape))}


def written(y: Tensor, _module: Any) -> Tensor:
    z = y.clone()
    z[:, 0] = y[:, 1]
    return z


def turned(y: Tensor, _module: Any) -> Tensor:
    """Neighbours as complex numbers, as some rotary embeddings have them."""
    return torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2))) * 1j).flatten(-2)


THREE, SECOND = torch.tensor([0, 3, 3]), torch.ones(1, 2, 1, dtype=torch.long)
OPS = [
    Op("stack", lambda y, m: torch.stack([y, y.relu()], 1).sum(1)),
    Op("stack, then flatten", lambda y, m: torch.stack([y, y.relu()], -1).flatten(-2), out=32),
    Op("unbind of tokens", lambda y, m: torch.stack([t * i for i, t in enumerate(y.unbind(1), 1)], 1)),
    Op("unbind of channels", lambda y, m: torch.stack(y.unbind(2), 2), "is taken apart entry by entry"),
    Op("select of a token", lambda y, m: y[:, 0]),
    Op("slice of a channel", lambda y, m: y[..., 3:4] * y, 10),
    Op("roll of tokens", lambda y, m: y.roll(2, 1) + y),
    Op("roll by half of the channels", lambda y, m: y.roll(y.shape[-1] // 2, -1)),
    Op("repeat of tokens", lambda y, m: y.repeat(1, 2, 1)),
    Op("repeat of channels", lambda y, m: y.repeat(1, 1, 2), out=32),
    Op("repeat_interleave", lambda y, m: y.repeat_interleave(2, -1), out=32),
    Op("gather of tokens", lambda y, m: y.gather(1, SECOND.expand(len(y), 2, y.shape[-1]))),
    Op("gather of channels", lambda y, m: y.gather(2, torch.arange(16).expand_as(y)), "is indexed by position"),
    Op("index_select of tokens", lambda y, m: y.index_select(1, THREE)),
    Op("advanced index of tokens", lambda y, m: y[:, torch.tensor([[0, 3], [1, 2]])].flatten(1, 2)),
    Op("advanced index in two dimensions", lambda y, m: y[torch.arange(len(y))[:, None], THREE[None]]),
    Op("advanced index of channels", lambda y, m: y[..., torch.arange(16).flip(0)], "is indexed by position"),
    Op("write to a token", written),
    Op("einsum over channels", lambda y, m: torch.einsum("bnc,cd->bnd", y, m.w), held=weight(16, 16)),
    Op("einsum over tokens", lambda y, m: torch.einsum("bnc,mn->bmc", y, m.w), held=weight(4, TOKENS)),
    Op("einsum of all pairs", lambda y, m: torch.einsum("bnc,bmc->bnm", y, y) @ y),
    Op("einsum of channel pairs", lambda y, m: torch.einsum("bnc,bnd->bncd", y, y).flatten(2), "is merged with", 256),
    Op("cat with itself", lambda y, m: torch.cat([y, y], -1), out=32),
    Op("cat of functions of itself", lambda y, m: torch.cat([y, y.relu(), y], -1), out=48),
    Op("halves swapped", lambda y, m: torch.cat([-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]], -1)),
    Op("even and odd swapped", lambda y, m: torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)),
    Op("FFT over tokens", lambda y, m: torch.fft.fft(y, dim=1).real),
    Op("real FFT over tokens and back", lambda y, m: torch.fft.irfft(torch.fft.rfft(y, dim=1), n=y.shape[1], dim=1)),
    Op("FFT over channels", lambda y, m: torch.fft.fft(y, dim=-1).real, "is transformed to frequencies"),
    Op("layer over tokens", lambda y, m: m.mix(y.mT).mT + y, held=lambda: {"mix": nn.Linear(TOKENS, TOKENS)}),
    Op("all tokens flattened", lambda y, m: m.all(y.flatten(1))[:, None], held=lambda: {"all": nn.Linear(96, 16)}),
    Op("cumulative sum of tokens", lambda y, m: y.cumsum(1)),
    Op("cumulative sum of channels", lambda y, m: y.cumsum(-1), "is accumulated by cumsum"),
    Op("sort of channels", lambda y, m: y.sort(-1).values, "is ordered by sort"),
    Op("complex pairs", turned),
]  # fmt: skip


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_operators_between_two_layers(op: Op) -> None:
    torch.manual_seed(0)
    model: Any = oracle.randomise(Between(op.function, op.out, **op.held()).eval())
    x = X.double()
    if isinstance(op.left, str):
        with pytest.raises(NothingToPruneError, match=f"first.weight: {op.left}"):
            pruned(model, x)
        return
    small = pruned(model, x)
    assert small.first.out_features == op.left and small.last.in_features * 16 == op.out * op.left
    assert by_value(model, small, Call((x,)))["oracle"] == "right"
    assert small.train()(PAIR.double()).shape == model(PAIR.double()).shape


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_other_ranks(rank: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv3d, nn.BatchNorm3d)
    transposed = nn.ConvTranspose1d if rank == 1 else nn.ConvTranspose3d
    model = nn.Sequential(
        conv(3, 16, 3, padding=1), norm(16), nn.ReLU(), conv(16, 16, 3, groups=16), transposed(16, 8, 2), conv(8, 4, 1)
    )
    x = torch.randn(1, 3, *(6,) * rank, dtype=torch.float64)
    small = pruned(oracle.randomise(model).eval(), x)
    assert [m.out_channels for m in small if hasattr(m, "out_channels")] == [8, 8, 4, 4] and small[3].groups == 8
    oracle.check(model, small, x)
    oracle.check(model, small, torch.cat([x, x + 1]), training=True)


def test_an_operator_without_a_rule_is_named() -> None:
    model = Between(lambda y, m: torch.cdist(y, y) @ m.second(y), 16, second=nn.Linear(16, 16))
    graph = structprune.trace(model, X)
    assert graph.unknown_operators == {"aten::_cdist_forward": 2}
    assert graph.frozen["first.weight"].startswith("_cdist_forward has no rule (_cdist_forward in the model's own")
    assert "second.weight" not in graph.frozen and "no rule for aten::_cdist_forward (2 times)" in str(graph)


class Argument(NamedTuple):
    """An operator with an argument other than a tensor that is computed from a size, and changes no shape."""

    name: str
    function: Callable[[Tensor], Tensor]


def gram(h: Tensor) -> Tensor:
    return h @ h.mT


ARGUMENTS = [
    Argument("slope", lambda h: F.softplus(h, h.shape[-1] / 16)),
    Argument("number that is the default in the dense network", lambda h: F.celu(h, h.shape[-1] / 16)),
    Argument("number that becomes the default", lambda h: torch.add(h, h.relu(), alpha=h.shape[-1] // 8)),
    Argument("slope that is the default in the dense network", lambda h: F.leaky_relu(h, h.shape[-1] / 1600)),
    Argument("decimals", lambda h: h.round(decimals=h.shape[-1] // 8)),
    Argument("word", lambda h: F.gelu(h, approximate="tanh" if h.shape[-1] >= 16 else "none")),
    Argument("rounding", lambda h: torch.div(h * 9, 3.0, rounding_mode="floor" if h.shape[-1] >= 16 else "trunc")),
    Argument("flag", lambda h: h.sort(1, descending=h.shape[-1] >= 16).values),
    Argument("diagonal", lambda h: torch.tril(gram(h), h.shape[-1] - 16) @ h),
    Argument("window", lambda h: F.max_pool1d(h.mT, h.shape[-1] // 4 + 1, 1, h.shape[-1] // 8).mT),
    Argument("rank", lambda h: h + h.kthvalue(h.shape[-1] // 4, 1, keepdim=True).values),
    Argument("padding", lambda h: F.pad(h.mT, (h.shape[-1] // 4, -(h.shape[-1] // 4))).mT),
    Argument("dimension", lambda h: gram(h).softmax(h.shape[-1] // 8) @ h),
    Argument("norm of an FFT", lambda h: torch.fft.fft(h, dim=1, norm="ortho" if h.shape[-1] >= 16 else None).real),
    Argument("dtype", lambda h: h.to(torch.float16 if h.shape[-1] >= 16 else torch.bfloat16).to(h)),
]  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda a: a.name)
def test_arguments_computed_from_a_size_are_noticed(argument: Argument) -> None:
    """What is left must be whole: with another argument the network would compute something else."""
    model = Between(lambda y, m: argument.function(y), 16)
    with pytest.raises(NothingToPruneError, match=r"first\.weight: cannot shrink here"):
        structprune.prune_model(model, 0.5, example_inputs=X, keep_representation=False, round_to=1)


class TwoRoles(Separate):
    """The number of heads is also the dilation of a convolution over tokens, which keeps every shape."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(STREAM, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).mT
        return F.conv1d(y, self.kernel, padding=self.heads, dilation=self.heads, groups=y.shape[1]).mT


def test_a_held_size_with_a_second_role_stays() -> None:
    try:
        small = pruned(Net(TwoRoles()))
    except NothingToPruneError as error:
        assert "it depends on the size" in str(error)
    else:
        assert small.block.heads == 4


# Entry points and outputs.


class Encoder(nn.Module):
    """Three ways in: none of them runs all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Separate(), nn.Linear(STREAM, 5)
        self.project = nn.Linear(STREAM, 3)

    def encode(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return x + self.block(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))

    def contrast(self, x: Tensor) -> Tensor:
        return self.project(self.encode(x)).mean(1)


def test_several_entry_points() -> None:
    model = Encoder()

    def contrast(m: Any) -> Tensor:
        return m.contrast(torch.zeros(1, TOKENS, INPUTS).to(m.embed.weight))

    with pytest.raises(structprune.UntracedParameterError, match=r"project\.weight"):
        pruned(model)
    small = pruned(model, [X, contrast])
    assert (small.project.in_features, small.head.in_features, small.block.heads) == (16, 16, 2)
    assert small(PAIR).shape == (2, TOKENS, 5) and small.contrast(PAIR).shape == (2, 3)


@dataclass
class Prediction:
    """What a model may return."""

    logits: Tensor
    features: Tensor | None = None


class Returns(nn.Module):
    """A model with its own way to return."""

    def __init__(self, how: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Fused(), nn.Linear(STREAM, 5)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        return self.how(self.head(x + self.block(x)))


RETURNS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda y: {"logits": y, "parts": {"first": y[:, 0]}},
    "ordered dict": lambda y: OrderedDict(logits=y),
    "dataclass": lambda y: Prediction(y),
    "None beside it": lambda y: (None, y, 3, "name"),
    "list of lists": lambda y: [[y], [y.mean(1), None]],
}


@pytest.mark.parametrize("how", RETURNS)
def test_outputs_of_many_kinds(how: str) -> None:
    model = Returns(RETURNS[how])
    small = pruned(model)
    assert small.embed.out_features == 16 and small.head.out_features == 5
    assert type(small(X)) is type(model(X))
    # One by name is an output like any other: its width stays.
    whole = Returns(lambda y: RETURNS[how](y))
    whole.head = nn.Identity()
    with pytest.raises(NothingToPruneError, match="is a dimension of the model's output"):
        pruned(whole)


def test_an_output_of_transformers() -> None:
    outputs = imported("transformers.modeling_outputs")
    model = Returns(lambda y: outputs.SequenceClassifierOutput(loss=None, logits=y))
    small = pruned(model)
    assert small(X).logits.shape == (1, TOKENS, 5) and small.embed.out_features == 16


class Cache:
    """Keys and values of attention, as transformers' ``DynamicCache`` keeps them."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.layers.append((k, v))
        return k, v


class Caching(Separate):
    """Attention that hands out its cache; ``hidden`` puts a prediction into it that nothing reads."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Any:
        cache = Cache()
        k, v = cache.update(self.split(self.k(x)), self.split(self.v(x)))
        out = self.merge(self.mixed(self.split(self.q(x)), k, v))
        if self.hidden:
            cache.layers.append((out, out))
        return out, cache


class WithCache(nn.Module):
    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Caching(hidden), nn.Linear(STREAM, 5)

    def forward(self, x: Tensor) -> Any:
        out, cache = self.block(self.embed(x))
        return self.head(out) if not self.block.hidden else self.head(self.embed(x)), cache


def test_a_cache_among_the_outputs_follows_the_heads() -> None:
    model = WithCache(hidden=False)
    small = pruned(model)
    logits, cache = small(X)
    assert logits.shape == (1, TOKENS, 5) and small.block.heads == 2
    assert [t.shape for t in cache.layers[0]] == [(1, 2, TOKENS, 8)] * 2


def test_a_prediction_in_an_object_stays_whole() -> None:
    model = WithCache(hidden=True)
    small = pruned(model)
    _, cache = small(X)
    assert cache.layers[1][0].shape == (1, TOKENS, STREAM) and small.block.out.out_features == STREAM
    assert small.block.heads == 2 and small.embed.out_features == 16


# Modes.


class Auxiliary(nn.Module):
    """A second head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Fused(), nn.Linear(STREAM, 5)
        self.side = nn.Sequential(nn.Linear(STREAM, 12), nn.ReLU(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        y = self.head(x + self.block(x))
        return (y, self.side(x)) if self.training else y


def test_a_head_that_only_training_runs() -> None:
    small = pruned(Auxiliary())
    assert (small.side[0].in_features, small.side[0].out_features, small.side[2].in_features) == (16, 6, 6)
    assert [y.shape for y in small.train()(PAIR)] == [(2, TOKENS, 5)] * 2


class Recomputed(nn.Module):
    """Blocks whose activations are computed again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(INPUTS, STREAM), nn.Linear(STREAM, 5)
        self.blocks = nn.ModuleList([Separate(), Fused()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.training else block(x))
        return self.head(x)


def test_gradient_checkpointing() -> None:
    small = pruned(Recomputed())
    assert (small.embed.out_features, small.blocks[0].heads, small.blocks[1].heads) == (16, 2, 2)
    small.train()(PAIR).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    small = pruned(Net(Separate()).to(dtype), X.to(dtype))
    assert small.block.heads == 2 and {p.dtype for p in small.parameters()} == {dtype}
    assert small(PAIR.to(dtype)).dtype == dtype


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(training: bool) -> None:
    model = Net(nn.TransformerEncoderLayer(STREAM, 4, 48, batch_first=True)).train(training)
    model.block.norm1.train(not training)
    small = pruned(model)
    for each in (model, small):
        assert each.training is training and each.block.norm1.training is not training
        assert each.block.self_attn.training is training


# State.


class Language(nn.Module):
    """An embedding whose weight the head shares, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.norm = nn.Embedding(11, STREAM), Fused(), nn.LayerNorm(STREAM)
        self.head = nn.Linear(STREAM, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.block(x)))


@pytest.mark.parametrize("inplace", [False, True])
def test_tied_and_frozen_weights(inplace: bool) -> None:
    model, ids = Language(), torch.arange(6)[None]
    model.block.requires_grad_(False)
    dense = copy.deepcopy(model)
    small: Any = structprune.prune_model(
        model, 0.5, "channel", example_inputs=ids, inplace=inplace, keep_representation=False, round_to=1
    )
    assert small.head.weight is small.embed.weight and small.embed.weight.shape == (11, 16)
    assert (small.embed.embedding_dim, small.head.in_features, small.block.heads) == (16, 16, 2)
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in dense.parameters()]
    assert not any(p.requires_grad for p in small.block.parameters()) and structprune.prove(dense, small, ids)


class FrozenBatchNorm(nn.Module):
    """As torchvision's: everything is a buffer, and the scale is computed from two of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


def test_normalisation_by_buffers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), FrozenBatchNorm(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    small = pruned(oracle.randomise(model), x)
    assert {n: tuple(t.shape) for n, t in small[1].named_buffers()} == dict.fromkeys(
        ("weight", "bias", "running_mean", "running_var"), (8,)
    )
    oracle.check(model, small, x)


@functools.cache
def angles(tokens: int, device: torch.device) -> Tensor:
    """A table that is computed once."""
    return torch.arange(tokens, device=device) * torch.full((1,), 0.5, device=device)


class Tabled(Separate):
    """Attention that weighs positions by a cached table, made by a function and by a method."""

    @functools.cache  # noqa: B019
    def decay(self, tokens: int, device: torch.device) -> Tensor:
        return torch.linspace(1, 2, tokens, device=device)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = angles(q.shape[2], q.device).cos() * self.decay(q.shape[2], q.device)
        return super().mixed(q, k, v * weights[:, None])


def test_cached_tables_are_left_with_values() -> None:
    angles.cache_clear()
    model = Net(Tabled())
    small = pruned(model)
    assert small.block.heads == 2
    for each in (model, small):
        assert each(X).device.type == "cpu" and bool(each(X).isfinite().all())
    # A table that the user's own forward filled is of no use under another device, and does no harm.
    assert angles(TOKENS, torch.device("cpu")).device.type == "cpu"
    assert structprune.prove(model, pruned(model), X)


def test_a_table_that_the_users_own_forward_has_cached() -> None:
    angles.cache_clear()
    model = Net(OneTable(lambda v: row(v.shape[2]).to(v)))
    model(X)
    assert pruned(model).block.heads == 2


def test_a_table_in_a_dict_of_the_file_is_left_with_values() -> None:
    ROWS.clear()
    model = Net(OneTable(lambda v: kept_row(v.shape[2], v.device)))
    try:
        assert pruned(model).block.heads == 2
    finally:
        assert model(X).device.type == "cpu"


class BiasByDevice(Separate):
    """As LeViT: biases of positions for every head, looked up once for every device and kept in evaluation."""

    def __init__(self, key: Callable[[torch.device], Any]) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(self.heads, TOKENS))
        self.register_buffer("distances", (torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)).abs())
        self.key = key
        self.cache: dict[Any, Tensor] = {}

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        key = self.key(q.device)
        if self.training or key not in self.cache:
            self.cache[key] = self.biases[:, self.distances]
        return ((q * self.scale @ k.transpose(-2, -1)) + self.cache[key]).softmax(-1) @ v


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("key", [str, torch.device], ids=["named", "device"])
def test_a_table_that_a_module_keeps_for_every_device(key: Any, inplace: bool) -> None:
    model = Net(BiasByDevice(key)).eval()
    with torch.no_grad():
        model(X)
    dense = copy.deepcopy(model)
    options = {"keep_representation": False, "round_to": 1, "inplace": inplace}
    small: Any = structprune.prune_model(model, 0.5, "channel", example_inputs=X, **options)
    assert small.block.heads == 2
    assert list(small.block.cache) == [] and list(dense.block.cache) == [key(X.device)]
    small(X)
    assert structprune.prove(dense, small, X)


@functools.cache
def row(tokens: int) -> Tensor:
    """A table whose key is a size alone."""
    return torch.linspace(0, 1, tokens)


ROWS: dict[int, Tensor] = {}


def kept_row(tokens: int, device: torch.device) -> Tensor:
    """The same, kept in a dict, on the device of the first call."""
    if tokens not in ROWS:
        ROWS[tokens] = torch.linspace(0, 1, tokens, device=device)
    return ROWS[tokens]


class OneTable(Separate):
    """Attention that weighs positions by a table."""

    def __init__(self, table: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.table = table

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().mixed(q, k, v * self.table(v)[:, None])


class Branches(nn.Module):
    """A forward whose way depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(INPUTS, STREAM), Separate(), nn.Linear(STREAM, 5)
        self.other = nn.Linear(STREAM, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.block(h)
        return self.head(h) if x.abs().max().item() < 100 else self.other(h)


def test_a_forward_that_reads_values_is_traced_with_them() -> None:
    model = Branches()
    plan = structprune.plan_pruning(
        model, 0.5, "channel", example_inputs=[X, X + 1000], keep_representation=False, round_to=1
    )
    assert any(note.startswith("the forward reads values of floating-point tensors: traced") for note in plan.notes)
    small: Any = plan.apply(model)
    assert (small.embed.out_features, small.block.heads, small.other.in_features) == (16, 2, 16)
    assert small(PAIR).shape == small(PAIR + 1000).shape == (2, TOKENS, 5)
    assert not any(p.is_meta for m in (model, small) for p in m.parameters())


class Described(Separate):
    """Attention that also holds its width for code that no forward runs."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = STREAM

    def extra_state(self) -> int:
        return self.dim


def test_sizes_that_nothing_reads_are_listed() -> None:
    model = Net(Described())
    plan = structprune.plan_pruning(model, 0.5, "channel", example_inputs=X, keep_representation=False, round_to=1)
    assert (
        "Described.dim stays 32 beside widths that become 16 (block): no operator that was traced is given it"
        in plan.notes
    )
    assert not any("heads" in note or ".width" in note for note in plan.notes)


# Wrapped models.


def imported(name: str) -> Any:
    """A library that imports torchvision."""
    vision.torchvision()
    return pytest.importorskip(name)


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
@pytest.mark.parametrize("keep_rank", [True, False])
def test_adapters_of_a_language_model(keep_rank: bool) -> None:
    peft = imported("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    model = peft.get_peft_model(tiny_llama(), config)
    small = pruned(model, IDS, ignore=["*lora_A*"] if keep_rank else [])
    layer = small.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    assert (a.in_features, a.out_features, b.in_features, b.out_features) == (16, *(4 if keep_rank else 2,) * 2, 16)
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


class CountsInPlace(nn.Module):
    """Reads a value, and writes into a mask that it has used before."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = x > 0
        scale = 2.0 if bool(mask.any()) else 1.0
        y = self.head(torch.relu(self.wide(x)) * scale) * mask.sum()
        mask.fill_(False)
        return y


def test_what_the_dense_network_decided_is_what_it_decided_then() -> None:
    x = torch.ones(2, 4)
    model = CountsInPlace()
    record = Session(model, x).discover(Decisions()).records[0]
    compared = next(node for node in record.nodes if node.op == "aten::gt")
    assert compared.memory["decided"][0].all()
    small = structprune.prune_model(model, 0.5, example_inputs=x, keep_representation=False, round_to=1)
    assert structprune.prove(model, small, x)
