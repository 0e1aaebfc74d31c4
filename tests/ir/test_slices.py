"""The coupling of slices, against a naive closure."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune.ir.slices import Coupling, SliceSpace


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60),
    frozen=st.lists(st.integers(0, 29), max_size=3),
)
def test_coupling_against_a_naive_closure(pairs: list[tuple[int, int]], frozen: list[int]) -> None:
    space = SliceSpace()
    space.add_tensor("t", (30,))
    coupling = Coupling(space)
    member = {i: {i} for i in range(30)}
    for i, (a, b) in enumerate(pairs):
        coupling.couple(np.array([a]), np.array([b]))
        if i % 7 == 0:
            coupling.roots()
        joined = member[a] | member[b]
        for j in joined:
            member[j] = joined
    for i in frozen:
        coupling.freeze(np.array([i]), f"reason {i}")
    roots = coupling.roots()
    assert [int(r) for r in roots] == [min(member[i]) for i in range(30)]
    stuck = coupling.reasons()[0] >= 0
    assert stuck.tolist() == [bool(member[i] & set(frozen)) for i in range(30)]
