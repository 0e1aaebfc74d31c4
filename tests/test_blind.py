"""What a trace cannot see is never cut silently: an error, the right network, or a note that nothing was verified."""

from __future__ import annotations

import pytest
import torch

import structprune
from tests.support import oracle
from tests.support.blind import BLIND, build, example
from tests.support.wild.judge import without_gains, zero_removed


@pytest.mark.parametrize("middle", sorted(BLIND))
@pytest.mark.parametrize("grad", [False, True], ids=["without grad", "with grad"])
def test_no_network_is_wrong_in_silence(middle: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        model, x = build(middle), example()
        try:
            pruned = structprune.prune_model(
                model, 0.5, "channel", example_inputs=x, keep_representation=False, round_to=1
            )
        except structprune.StructPruneError:
            return
        reference = build(middle)
        zero_removed(reference, oracle.kept_slices(model, without_gains(model, pruned, structprune.plan_of(pruned))))
        expected, got, scale = reference(x), pruned(x), model(x).abs().max()
    right = torch.allclose(expected, got, rtol=0, atol=1e-9 * float(scale))
    said = any("not verified" in note for note in structprune.plan_of(pruned).notes)
    assert right or said, f"outputs differ by {float((expected - got).abs().max() / scale):.1e} of their scale"
