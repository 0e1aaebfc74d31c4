"""Recurrent layers and cells: their sizes follow, whoever makes the first state, whatever wraps the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils import rnn as sequences
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import structprune
from structprune.ops import OPERATORS
from structprune.ops.recurrent import unfused
from structprune.tracing.discovery import Decisions
from structprune.tracing.session import Session
from tests.support import oracle

Tensor = torch.Tensor
INPUTS = 12
X = torch.randn(1, 6, INPUTS, generator=torch.Generator().manual_seed(0))
PAIR = torch.cat([X, X.flip(1)])
CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
LAYERS = (nn.RNN, nn.GRU, nn.LSTM)


def pruned(model: nn.Module, x: Any = X, **options: Any) -> Any:
    """Prune without any floor and prove it."""
    options = {"keep_representation": False, "round_to": 1, **options}
    small = structprune.prune_model(model, 0.5, example_inputs=x, **options)
    proof = structprune.prove(model, small, x)
    assert proof, str(proof)
    return small


def raw_inputs(model: nn.Module) -> dict[str, int]:
    """What a recurrent module's weights sum over, for the oracle."""
    return {
        f"{path}.{name}": 1
        for path, module in model.named_modules()
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
        for name, _ in module.named_parameters()
        if name.startswith("weight")
    }


def hidden(state: Any) -> Tensor:
    return state[0] if isinstance(state, tuple) else state


# Layers.


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(INPUTS, 12), kind(12, 16, batch_first=True, **options)
        self.head = nn.Linear((options.get("proj_size") or 16) * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


RECURRENT: list[tuple[Callable[..., nn.RNNBase], dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
    (nn.LSTM, {"proj_size": 6}),
    (nn.LSTM, {"proj_size": 6, "num_layers": 2, "bidirectional": True}),
    (nn.GRU, {"bias": False}),
    (nn.GRU, {"bidirectional": True, "num_layers": 2}),
    (nn.RNN, {"num_layers": 2}),
    (nn.RNN, {"bidirectional": True}),
]


@pytest.mark.parametrize("steps", [6, 1])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_layers(kind: Any, options: dict[str, Any], inplace: bool, steps: int) -> None:
    dense: Any = oracle.randomise(Recurrent(kind, **options).eval())
    x = X.double()[:, :steps]
    small: Any = structprune.prune_model(
        copy.deepcopy(dense), 0.5, example_inputs=x, keep_representation=False, round_to=1, inplace=inplace
    )
    rnn, projected = small.rnn, options.get("proj_size", 0) // 2
    assert (rnn.input_size, rnn.hidden_size, rnn.proj_size) == (6, 8, projected)
    assert list(map(id, rnn._flat_weights)) == [id(getattr(rnn, name)) for name in rnn._flat_weights_names]
    assert set(map(id, rnn._flat_weights)) == set(map(id, rnn.parameters()))
    for length in (steps, 5):  # a state that comes back, too
        assert oracle.check(dense, small, X.double()[:, :length], raw_inputs=raw_inputs(dense)) > 1e-2
    proof = structprune.prove(dense, small, x)
    assert proof and proof.max_error < 1e-12, str(proof)
    small.train()(torch.cat([x, x])).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


class States(nn.Module):
    """A recurrent layer whose first state the model makes from a size that it holds, and a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = 16
        self.rnn, self.cell, self.head = nn.GRU(INPUTS, 16, batch_first=True), nn.LSTMCell(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x, x.new_zeros(1, len(x), self.hidden))
        h, c = x.new_zeros(len(x), self.hidden), x.new_zeros(len(x), self.hidden)
        for step in y.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


def test_states_that_the_model_makes() -> None:
    small = pruned(States())
    assert small(PAIR).shape == (2, 5)
    assert small.rnn.hidden_size == small.cell.weight_ih.shape[1] and small.head.in_features == small.hidden


class Started(nn.Module):
    """A layer of which the first state is made on the default device, from sizes of the model's own."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.hidden, self.layers = 32, 2
        self.embed, self.rnn = nn.Linear(INPUTS, 24), kind(24, 32, 2, batch_first=True)
        self.mix, self.head = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(self.layers, x.size(0), self.hidden)
        state = (h, torch.zeros(self.layers, x.size(0), self.hidden)) if isinstance(self.rnn, nn.LSTM) else h
        return self.head(self.mix(self.rnn(self.embed(x).relu(), state)[0][:, -1]).relu())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_first_state_on_the_default_device(kind: Any) -> None:
    small = pruned(Started(kind))
    assert (small.rnn.input_size, small.rnn.hidden_size, small.hidden) == (12, 16, 16)
    assert structprune.plan_of(small).notes == ()
    dense = structprune.count_flops(Started(kind), X)
    assert dense.macs > structprune.count_flops(small, X).macs > 0


class Reads(nn.Module):
    """A layer in a forward that reads a value: it runs on numbers, by whichever kernel is the fastest."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = kind(INPUTS, 32, **options)
        self.mix, self.head = nn.LazyLinear(16), nn.Linear(16, 3)
        self(torch.zeros(2, 2, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        x = -x if x.abs().max() > 100 else x
        return self.head(self.mix(self.rnn(x)[0]).relu())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "num_layers": 2, "bidirectional": True, "bias": False}])
def test_layers_traced_by_value(kind: Any, options: dict[str, Any]) -> None:
    model = Reads(kind, **options)
    small = pruned(model)
    assert small.rnn.hidden_size == 16
    assert "reads values" in structprune.plan_of(small).notes[0]
    graph = structprune.trace(model, X)
    assert graph.unknown_operators == {}


def packed(kind: Callable[..., nn.RNNBase]) -> nn.Module:
    class Packed(Recurrent):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
            steps = sequences.pack_padded_sequence(self.embed(x), lengths, batch_first=True, enforce_sorted=False)
            return self.head(sequences.pad_packed_sequence(self.rnn(steps)[0], batch_first=True)[0])

    return Packed(kind, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences(kind: Any) -> None:
    model = packed(kind)
    small = pruned(model, (PAIR, torch.tensor([3, 6])))
    assert (small.embed.out_features, small.rnn.hidden_size) == (6, 8)
    assert structprune.plan_of(small).notes == ()
    assert small(PAIR, torch.tensor([6, 2])).shape == (2, 6, 5)


class Attends(nn.Module):
    """A decoder that starts where the encoder ended, and whose states are compared with the encoder's."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.encoder, self.decoder = (kind(INPUTS, 32, batch_first=True) for _ in range(2))
        self.out, self.mix, self.head = nn.Linear(32, 32), nn.Linear(64, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        encoded, state = self.encoder(x)
        decoded, _ = self.decoder(x, state)
        attended = (self.out(decoded) @ encoded.transpose(1, 2)).softmax(-1) @ encoded
        return self.head(self.mix(torch.cat([attended, decoded], -1)).relu())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_state_that_another_layer_ends_with(kind: Any) -> None:
    small = pruned(Attends(kind))
    assert small.encoder.hidden_size == small.decoder.hidden_size == small.out.out_features == 16


# Cells.


class Cells(nn.Module):
    """Two cells over each other in a loop; the first state is none, or the cell's or model's width, or a layer's."""

    def __init__(self, kind: Callable[..., Any], start: str) -> None:
        super().__init__()
        self.embed, self.cell, self.upper = nn.Linear(INPUTS, 24), kind(24, 32), kind(32, 32)
        self.mix, self.head = nn.Linear(32, 16), nn.Linear(16, 3)
        self.first = nn.Linear(INPUTS, 32 * (2 if kind is nn.LSTMCell else 1)) if start == "layer" else None
        self.start, self.width = start, 32

    def begin(self, x: Tensor) -> Any:
        if self.start == "none":
            return None
        both = isinstance(self.cell, nn.LSTMCell)
        if self.first is not None:
            made = self.first(x[:, 0])
            return made.chunk(2, -1) if both else made
        h = x.new_zeros(len(x), self.cell.hidden_size if self.start == "cell" else self.width)
        return (h, h) if both else h

    def forward(self, x: Tensor) -> Tensor:
        lower = upper = self.begin(x)
        for step in self.embed(x).relu().unbind(1):
            lower = self.cell(step, lower)
            upper = self.upper(hidden(lower), upper)
        return self.head(self.mix(hidden(upper)).relu())


def consistent(cell: Any) -> bool:
    """Whether a cell says what its weights are."""
    gates = {nn.RNNCell: 1, nn.GRUCell: 3, nn.LSTMCell: 4}
    count = next(n for kind, n in gates.items() if isinstance(cell, kind))
    return bool(
        cell.weight_ih.shape == (count * cell.hidden_size, cell.input_size)
        and cell.weight_hh.shape == (count * cell.hidden_size, cell.hidden_size)
    )


@pytest.mark.parametrize("steps", [6, 1])
@pytest.mark.parametrize("start", ["none", "cell", "own", "layer"])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: Any, start: str, steps: int) -> None:
    dense: Any = oracle.randomise(Cells(kind, start).eval())
    x = X.double()[:, :steps]
    small = pruned(dense, x)
    assert (small.cell.input_size, small.cell.hidden_size, small.upper.hidden_size) == (12, 16, 16)
    assert consistent(small.cell) and consistent(small.upper)
    assert oracle.check(dense, small, x, raw_inputs=raw_inputs(dense)) > 1e-2
    for cell in (small.cell, small.upper):
        h = cell(torch.zeros(2, cell.input_size).double())  # with no state, and with the one that it returns
        cell(torch.zeros(2, cell.input_size).double(), h)


def wrapped(wrap: Callable[..., Any]) -> nn.Module:
    model = Cells(nn.GRUCell, "none")
    for cell in (model.cell, model.upper):
        wrap(cell, "weight_hh")
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "left"),
    [
        (weight_norm, 16),
        (nn.utils.weight_norm, 16),
        (prune.identity, 16),
        (spectral_norm, 16),
    ],
    ids=["weight norm", "old weight norm", "masked", "spectral norm"],
)
def test_cells_whose_weight_is_computed(wrap: Any, left: int) -> None:
    small = pruned(wrapped(wrap))
    small(PAIR)  # hooks compute the weight when the cell runs
    assert (small.cell.input_size, small.cell.hidden_size) == (12, left)
    assert consistent(small.cell)


def test_cells_with_a_tied_weight() -> None:
    model: Any = Cells(nn.GRUCell, "none")
    model.upper.weight_hh = model.cell.weight_hh
    small = pruned(model)
    assert small.upper.weight_hh is small.cell.weight_hh
    assert consistent(small.cell) and consistent(small.upper) and small.upper.hidden_size == 16


class Normed(nn.RNNCellBase):
    """A cell of one's own over the weights that torch.nn's have."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, bias=True, num_chunks=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        h, c = state if state is not None else (x.new_zeros(len(x), self.hidden_size),) * 2
        gates = nn.functional.linear(x, self.weight_ih, self.bias_ih)
        i, f, g, o = (gates + nn.functional.linear(h, self.weight_hh, self.bias_hh)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm(c).tanh(), c


@pytest.mark.parametrize("steps", [6, 1])
def test_a_cell_of_ones_own(steps: int) -> None:
    small = pruned(Cells(Normed, "none"), X[:, :steps])
    assert (small.cell.input_size, small.cell.hidden_size, small.cell.norm.normalized_shape) == (12, 16, (16,))
    assert small(PAIR).shape == (2, 3)


# What a trace sees.


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_fused_kernel_of_the_cpu_is_what_it_is_said_to_be(bias: bool, reverse: bool) -> None:
    layer = nn.LSTM(5, 4, bias=bias)
    weights = [w.detach() for w in layer.parameters()]
    weights += [] if bias else [torch.zeros_like(w) for w in weights]
    state = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    arguments = (torch.randn(6, 3, 5), *weights, *state, reverse, [], 2, 4, 1, bias, False, False, False)
    parts = unfused(OPERATORS.of(torch.ops.aten.mkldnn_rnn_layer.default), arguments, {})
    assert parts is not None
    expected = torch.ops.aten.mkldnn_rnn_layer(*arguments)
    for got, wanted in zip(parts(*arguments)[:3], expected[:3], strict=True):
        assert torch.allclose(got.reshape(wanted.shape), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False, "batch_first": True}]
)
@pytest.mark.parametrize(
    ("kind", "mode", "projected"), [(nn.RNN, 1, 0), (nn.LSTM, 2, 0), (nn.LSTM, 2, 3), (nn.GRU, 3, 0)]
)
def test_the_fused_layers_of_an_accelerator(kind: Any, mode: int, projected: int, options: dict[str, Any]) -> None:
    layer = kind(5, 4, proj_size=projected, **options) if projected else kind(5, 4, **options)
    both = options.get("bidirectional", False)
    count = layer.num_layers * (2 if both else 1)
    h, c = torch.randn(count, 3, projected or 4), torch.randn(count, 3, 4) if kind is nn.LSTM else None
    x = torch.randn(3, 6, 5) if layer.batch_first else torch.randn(6, 3, 5)
    weights = [w.detach() for w in layer.parameters()]
    arguments = (
        x, weights, len(weights) // count, None, h, c, mode, 4, projected, layer.num_layers, layer.batch_first, 0.0,
        False, both, [], None,
    )  # fmt: skip
    parts = unfused(OPERATORS.of(torch.ops.aten._cudnn_rnn.default), arguments, {})
    assert parts is not None
    out, last, cell, *_ = parts(*arguments)
    with torch.no_grad():
        expected, state = layer(x, h if c is None else (h, c))
    assert torch.allclose(out, expected, atol=1e-6) and torch.allclose(last, hidden(state), atol=1e-6)
    assert c is None or torch.allclose(cell, state[1], atol=1e-6)


def test_the_fused_cells_of_an_accelerator() -> None:
    x, h, c = torch.randn(3, 5), torch.randn(3, 4), torch.randn(3, 4)
    for cell, func, held in (
        (nn.LSTMCell(5, 4), torch.ops.aten._thnn_fused_lstm_cell.default, c),
        (nn.GRUCell(5, 4), torch.ops.aten._thnn_fused_gru_cell.default, h),
    ):
        with torch.no_grad():
            expected = cell(x, (h, c) if held is c else h)
            gates = x @ cell.weight_ih.t(), h @ cell.weight_hh.t(), held, cell.bias_ih, cell.bias_hh
            parts = unfused(OPERATORS.of(func), gates, {})
            assert parts is not None
            assert torch.allclose(parts(*gates)[0], hidden(expected), atol=1e-6)


def test_memory_that_nobody_filled_is_no_constant() -> None:
    """The order of packed sequences is written into an empty tensor: what was in it before says nothing."""
    record = Session(packed(nn.GRU), (PAIR, torch.tensor([3, 6]))).discover(Decisions()).records[0]
    empty = next(node for node in record.nodes if node.op == "aten::empty_like")
    passed = [node for node in record.nodes if empty.index in node.parents and node.op == "aten::detach"]
    assert passed and all(set(node.constants) == {None} for node in passed)
