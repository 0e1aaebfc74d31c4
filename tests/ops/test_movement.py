"""Which dimensions of a view belong together."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from structprune.ops.movement import dimension_blocks


@settings(deadline=None, max_examples=200, derandomize=True, database=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4), st.data())
def test_dimension_blocks(before: list[int], data: st.DataObject) -> None:
    total = int(np.prod(before))
    after, left = [], total
    while left > 1:
        part = data.draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0]))
        after.append(part)
        left //= part
    for _ in range(data.draw(st.integers(0, 2))):
        after.insert(data.draw(st.integers(0, len(after))), 1)
    seen: dict[int, list[int]] = defaultdict(list)
    for inputs, outputs in dimension_blocks(before, after):
        assert np.prod([before[d] for d in inputs]) == np.prod([after[d] for d in outputs])
        seen[0] += inputs
        seen[1] += outputs
    assert sorted(seen[0]) == list(range(len(before))) and sorted(seen[1]) == list(range(len(after)))
