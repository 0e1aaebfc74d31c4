"""Recurrent layers and cells with states of their own, packed sequences, scans written by hand."""

from __future__ import annotations

from random import Random

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.support.wild.registry import block

Tensor = torch.Tensor
LAYERS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


@block("recurrent layer")
class Plain(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        kind, both = rng.choice(sorted(LAYERS)), rng.random() < 0.4
        self.layer = LAYERS[kind](c, 20, rng.choice([1, 2]), batch_first=True, bidirectional=both)
        self.mix, self.out = nn.Linear(40 if both else 20, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.layer(x)[0])


@block("recurrent layer with its own state")
class OwnState(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.kind, self.layers, self.hidden = rng.choice(sorted(LAYERS)), rng.choice([1, 2]), 20
        self.layer = LAYERS[self.kind](c, 20, self.layers, batch_first=True)
        self.held = rng.choice(["attribute", "layer", "learned"])
        if self.held == "learned":
            self.start = nn.Parameter(torch.randn(self.layers, 1, 20))
        self.mix, self.out = nn.Linear(20, c), c

    def forward(self, x: Tensor) -> Tensor:
        if self.held == "learned":
            state = self.start.expand(-1, x.shape[0], -1).contiguous()
        else:
            width = self.hidden if self.held == "attribute" else self.layer.hidden_size
            state = torch.zeros(self.layers, x.size(0), width, dtype=x.dtype)
        y, last = self.layer(x, (state, state.clone()) if self.kind == "lstm" else state)
        last = last[0] if self.kind == "lstm" else last
        return x + self.mix(y + last[-1][:, None])


@block("recurrent cell in a loop")
class Cell(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.kind, self.hidden = rng.choice(sorted(CELLS)), 20
        self.cell, self.mix = CELLS[self.kind](c, 20), nn.Linear(20, 24)
        self.start, self.out = rng.choice(["none", "cell", "own"]), 24

    def forward(self, x: Tensor) -> Tensor:
        state, steps = None, []
        if self.start != "none":
            state = x.new_zeros(x.shape[0], self.cell.hidden_size if self.start == "cell" else self.hidden)
            state = (state, state) if self.kind == "lstm" else state
        for step in x.unbind(1):
            state = self.cell(step, state)
            steps.append(state[0] if self.kind == "lstm" else state)
        return self.mix(torch.stack(steps, 1))


@block("stacked cells")
class StackedCells(nn.Module):
    """Two cells, the states in a list that the loop writes into."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(c, 16), nn.GRUCell(16, 24)])
        self.out = 24

    def forward(self, x: Tensor) -> Tensor:
        states = [torch.zeros(x.shape[0], cell.hidden_size, dtype=x.dtype) for cell in self.cells]
        outs = torch.zeros(x.shape[1], x.shape[0], states[-1].shape[1], dtype=x.dtype)
        for t in range(x.shape[1]):
            y = x[:, t]
            for i, cell in enumerate(self.cells):
                y = states[i] = cell(y, states[i])
            outs[t] = y
        return outs.transpose(0, 1)


@block("packed sequence")
class Packed(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layer = rng.choice([nn.GRU, nn.LSTM])(c, 20, batch_first=True, bidirectional=True)
        self.mix, self.out = nn.Linear(40, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        lengths = [x.shape[1] - i % 2 for i in range(x.shape[0])]
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.shape[1])
        return self.mix(y)


@block("lstm with a projection")
class Projected(nn.Module):
    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.layer, self.mix, self.out = nn.LSTM(c, 24, proj_size=12, batch_first=True), nn.Linear(12, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.layer(x)[0])


@block("gru by hand")
class HandGru(nn.Module):
    """Gates out of one layer by chunks, the state made from the weights' width."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.inputs, self.states = nn.Linear(c, 60), nn.Linear(20, 60)
        self.mix, self.out = nn.Linear(20, 24), 24

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.states.in_features)
        steps = []
        for gates in self.inputs(x).unbind(1):
            r, z, n = gates.chunk(3, -1)
            hr, hz, hn = self.states(h).chunk(3, -1)
            z = torch.sigmoid(z + hz)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + hr) * hn) + z * h
            steps.append(h)
        return self.mix(torch.stack(steps, 1))


@block("lstm by hand, one matrix")
class HandLstm(nn.Module):
    """Input and state are joined; the gates are slices by a held width."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.width = 16
        self.gates, self.out = nn.Linear(c + 16, 64), 16

    def forward(self, x: Tensor) -> Tensor:
        h = s = torch.zeros(x.shape[0], self.width, dtype=x.dtype)
        steps = []
        for t in range(x.shape[1]):
            gates = self.gates(torch.cat([x[:, t], h], 1))
            i, f, g, o = (gates[:, n * self.width : (n + 1) * self.width] for n in range(4))
            s = torch.sigmoid(f) * s + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(s)
            steps += [h]
        return torch.stack(steps, dim=1)


@block("state space scan")
class Scan(nn.Module):
    """A selective scan, channel by channel, with a state of 4 for each."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.inner, self.state = 24, 4
        self.up, self.project = nn.Linear(c, 48), nn.Linear(24, 8 + 24)
        self.log = nn.Parameter(torch.randn(24, 4))
        self.skip, self.down = nn.Parameter(torch.randn(24)), nn.Linear(24, c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        u, gate = self.up(x).chunk(2, -1)
        read, write, step = self.project(u).split([self.state, self.state, self.inner], -1)
        step = step.sigmoid()
        decay = torch.exp(-self.log.exp() * step.unsqueeze(-1))
        h = torch.zeros(x.shape[0], u.shape[-1], self.state, dtype=x.dtype)
        outs = []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + (step[:, t] * u[:, t]).unsqueeze(-1) * write[:, t, None]
            outs.append(torch.einsum("bcs,bs->bc", h, read[:, t]))
        return x + self.down((torch.stack(outs, 1) + u * self.skip) * gate.sigmoid())


@block("exponential average by cumsum")
class Average(nn.Module):
    """A causal mean over the tokens, by a cumulative sum and a count."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.decay, self.down = nn.Linear(c, 28), nn.Parameter(torch.randn(28)), nn.Linear(28, c)
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x) * self.decay.sigmoid()
        count = torch.arange(1, y.shape[1] + 1, dtype=y.dtype).view(-1, 1)
        return x + self.down(y.cumsum(1) / count)


@block("memory that is kept")
class Memory(nn.Module):
    """A buffer of state that every forward writes, and reads."""

    def __init__(self, c: int, rng: Random) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(c, 24), nn.Linear(24, c)
        self.register_buffer("average", torch.zeros(24))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.out = c

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.training:
            with torch.no_grad():
                self.average.lerp_(y.mean((0, 1)), 0.1)
                self.count += 1
        return x + self.down(torch.relu(y - self.average))
