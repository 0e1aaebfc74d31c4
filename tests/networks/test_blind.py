"""What a trace cannot see is never cut silently: an error, the right network, or a note that nothing was verified."""

from __future__ import annotations

import pytest
import torch

import structprune
from tests.support import oracle
from tests.support.blind import BLIND, build, example
from tests.support.wild import marks
from tests.support.wild.judge import without_gains, zero_removed


# In the order of what is verified most plainly: the branch on the gradient mode runs both ways.
@pytest.mark.parametrize(
    ("beside", "grad"), [("nothing", False), ("nothing", True), ("a norm", True), ("a value", True)]
)
@pytest.mark.parametrize("middle", sorted(BLIND))
def test_no_network_is_wrong_in_silence(middle: str, grad: bool, beside: str) -> None:
    with torch.set_grad_enabled(grad):
        model, x = build(middle, beside), example()
        try:
            pruned = structprune.prune_model(
                model, 0.5, "channel", example_inputs=x, keep_representation=False, round_to=1
            )
        except structprune.StructPruneError:
            return
        plan, reference = structprune.plan_of(pruned), build(middle, beside)
        kept = oracle.kept_slices(model, without_gains(model, pruned, plan))
        zero_removed(reference, kept)
        with marks.reference(reference, kept):
            expected = reference(x)
        got, scale = pruned(x), float(model(x).detach().abs().max())
    right = torch.allclose(expected, got, rtol=0, atol=1e-9 * scale)
    said = any("not verified" in note for note in plan.notes)
    assert right or said, f"outputs differ by {float((expected - got).detach().abs().max()) / scale:.1e} of their scale"
