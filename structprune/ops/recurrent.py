"""Fused recurrent kernels, written as the operators that they are made of.

Which kernel runs depends on the device, the dtype and whether there are values: a recurrent layer on the meta device
is made of matrix products and pointwise functions anyway. A trace takes the same way everywhere. Only operators with a
rule are called here, none that PyTorch would take apart further: a mode that runs below autograd sees them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from structprune.ir.operators import Operator, OperatorSpec
from structprune.ops.flops import recurrent_layer

Tensor = torch.Tensor
State = tuple[Tensor, Tensor | None]
Step = Callable[[Tensor, Tensor, State], State]
_RELU, _TANH, _LSTM, _GRU = range(4)


def unfused(op: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """What computes the same as a fused kernel from operators; ``None`` for all others, and for packed sequences."""
    parts = op.spec.parts
    if parts is None or any(_is_packed(a) for a in (*args[-2:], kwargs.get("batch_sizes"))):
        return None
    return parts


def _is_packed(argument: Any) -> bool:
    return isinstance(argument, (list, tuple)) and len(argument) > 0


def _lstm_step(from_input: Tensor, from_state: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber (1997) with forget gates; PyTorch's order of the gates."""
    gates = from_input + from_state
    i, f, g, o = torch.split(gates, gates.shape[-1] // 4, -1)
    assert state[1] is not None
    cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_step(from_input: Tensor, from_state: Tensor, state: State) -> State:
    """Cho et al. (2014), with the reset gate behind the matrix product, as PyTorch has it."""
    width = from_input.shape[-1] // 3
    reset, update, new = torch.split(from_input, width, -1)
    state_reset, state_update, state_new = torch.split(from_state, width, -1)
    new = (new + (reset + state_reset).sigmoid() * state_new).tanh()
    return (state[0] - new) * (update + state_update).sigmoid() + new, None


def _plain_step(function: Callable[[Tensor], Tensor]) -> Step:
    return lambda from_input, from_state, _: (function(from_input + from_state), None)


_STEPS: dict[int, Step] = {
    _RELU: _plain_step(torch.relu),
    _TANH: _plain_step(torch.tanh),
    _LSTM: _lstm_step,
    _GRU: _gru_step,
}


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _one_direction(
    x: Tensor, weights: Sequence[Tensor], state: State, step: Step, *, reverse: bool
) -> tuple[Tensor, State]:
    """Every step of ``(steps, batch, inputs)``; ``weights`` are those of input and state, biases, and a projection."""
    w_input, w_state = weights[:2]
    b_input, b_state = weights[2:4] if len(weights) >= 4 else (None, None)
    projection = weights[-1] if len(weights) in (3, 5) else None
    outputs = []
    for now in reversed(x.unbind(0)) if reverse else x.unbind(0):
        hidden, cell = step(_linear(now, w_input, b_input), _linear(state[0], w_state, b_state), state)
        state = (hidden if projection is None else _linear(hidden, projection, None)), cell
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state


def _one_lstm_layer(
    x: Tensor, w_input: Tensor, w_state: Tensor, b_input: Tensor, b_state: Tensor, hidden: Tensor, cell: Tensor,
    reverse: bool, _batch_sizes: Any, mode: int, _width: int, _layers: int, has_biases: bool, *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``mkldnn_rnn_layer``: one layer in one direction, time first."""
    weights = [w_input, w_state, *([b_input, b_state] if has_biases else [])]
    for weight, zeros in () if has_biases else ((w_input, b_input), (w_state, b_state)):
        # What is handed in place of biases is made in the shapes of the weights, and loses what they lose.
        if weight.shape == zeros.shape:
            torch.add(weight, zeros)
    state = hidden.view(hidden.shape[-2:]), cell.view(cell.shape[-2:])
    out, last = _one_direction(x, weights, state, _STEPS[mode], reverse=reverse)
    assert last[1] is not None
    return out, last[0].view(hidden.shape), last[1].view(cell.shape), x.new_empty(0)


def _layers(
    x: Tensor, weights: Sequence[Tensor], stride: int, _buffer: Any, hidden: Tensor, cell: Tensor | None, mode: int,
    _width: int, _projected: int, layers: int, batch_first: bool, dropout: float, train: bool, bidirectional: bool,
    *_: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """``_cudnn_rnn``: all layers and directions."""
    directions = 2 if bidirectional else 1
    x = x.transpose(0, 1) if batch_first else x
    ends: list[State] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            state = hidden[at], None if cell is None else cell[at]
            own = weights[at * stride : (at + 1) * stride]
            out, last = _one_direction(x, own, state, _STEPS[mode], reverse=direction == 1)
            outputs.append(out)
            ends.append(last)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout and train and layer < layers - 1:
            x = torch.native_dropout(x, dropout, True)[0]
    cells = [last[1] for last in ends if last[1] is not None]
    end = torch.stack(cells) if cells else x.new_empty(0)
    return (
        x.transpose(0, 1) if batch_first else x,
        torch.stack([last[0] for last in ends]),
        end,
        *(x.new_empty(0) for _ in range(2)),
    )


def _with_biases(
    gates: Tensor, state_gates: Tensor, bias: Tensor | None, state_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    return gates if bias is None else gates + bias, state_gates if state_bias is None else state_gates + state_bias


def _lstm_cell(
    gates: Tensor, state_gates: Tensor, cell: Tensor, bias: Tensor | None = None, state_bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """``_thnn_fused_lstm_cell``: what follows the two products of one step."""
    hidden, new = _lstm_step(*_with_biases(gates, state_gates, bias, state_bias), (cell, cell))
    assert new is not None
    return hidden, new, gates.new_empty(0)


def _gru_cell(
    gates: Tensor, state_gates: Tensor, hidden: Tensor, bias: Tensor | None = None, state_bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """``_thnn_fused_gru_cell``: what follows the two products of one step."""
    new, _ = _gru_step(*_with_biases(gates, state_gates, bias, state_bias), (hidden, None))
    return new, gates.new_empty(0)


SPECS = (
    OperatorSpec("mkldnn_rnn_layer", parts=_one_lstm_layer, flops=recurrent_layer),
    OperatorSpec("_cudnn_rnn", parts=_layers),
    OperatorSpec("_thnn_fused_lstm_cell", parts=_lstm_cell),
    OperatorSpec("_thnn_fused_gru_cell", parts=_gru_cell),
)
