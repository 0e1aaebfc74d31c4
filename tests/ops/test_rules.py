"""The contract of every rule, and that breaking a rule is noticed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from structprune.ir.operators import Result, Rule
from structprune.ir.slices import Ids, Labels
from structprune.ops import OPERATORS
from structprune.ops.call import Call
from tests.support.contract import Case, check_case
from tests.support.rule_cases import CASES, LATER, OTHER_DEVICES

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce.. is in beta")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_contract(case: Case) -> None:
    for seed in range(3):
        assert check_case(case, seed)


def _rules() -> dict[str, Rule]:
    return {name: spec.rule for name, spec in OPERATORS.specs().items() if spec.rule is not None}


@functools.cache
def _operators_by_case() -> dict[str, set[str]]:
    return {case.name: check_case(case, 0) for case in CASES}


def test_every_rule_has_a_case() -> None:
    ran = set().union(*_operators_by_case().values())
    later = {f"aten::{name}" for name in LATER if not hasattr(torch.ops.aten, name)}
    assert set(_rules()) - ran - OTHER_DEVICES == later


def test_registering_twice_raises() -> None:
    with pytest.raises(ValueError, match="aten::relu is in this registry already"):
        OPERATORS.operator("relu")(lambda call: ())


# Mutations: each breaks one rule in one way; the table above must notice every time.


class _Mutation:
    """Wraps a rule so that it errs in one way, and counts how often that changed anything."""

    def __init__(self, original: Rule, kind: str) -> None:
        self.original = original
        self.kind = kind
        self.effects = 0

    def __call__(self, call: Call) -> Result:
        if self.kind == "no coupling":
            call.couple = self._swallow_couple  # type: ignore[method-assign]
        elif self.kind == "no freezing":
            call.freeze = self._swallow_freeze  # type: ignore[method-assign]
        elif self.kind == "no mixing":
            call.mix = self._swallow_mix  # type: ignore[method-assign]
            self.call = call
        result = self.original(call)
        if self.kind == "off by one":
            return self._each(result, lambda ids: np.roll(ids, 1) if ids is not None and len(ids) > 1 else ids)
        if self.kind == "wrong dim":
            return [self._turned(labels) for labels in result] if isinstance(result, list) else self._turned(result)
        return result

    def _swallow_couple(self, left: Ids | None, right: Ids | None, why: str) -> None:
        self.effects += left is None or right is None or not np.array_equal(left, right)

    def _swallow_freeze(self, ids: Ids | None, reason: str) -> None:
        self.effects += ids is not None and len(ids) > 1

    def _swallow_mix(self, tensor: torch.Tensor, dim: int) -> None:
        self.effects += self.call.labels(tensor)[dim] is not None

    def _each(self, result: Result, change: Callable[[Ids | None], Ids | None]) -> Result:
        if isinstance(result, list):
            return [self._each(labels, change) for labels in result]  # type: ignore[misc]
        self.effects += any(ids is not None and len(ids) > 1 for ids in result)
        return tuple(map(change, result))

    def _turned(self, labels: Labels) -> Labels:
        if not any(ids is not None and len(ids) > 1 for ids in labels):
            return labels
        self.effects += 1
        return (*labels[1:], labels[0]) if len(labels) > 1 else (None,)


# A sum over channels that are zero is the sum over those that are left: marking these as mixing
# changes no number, only what is reported.
_EXACT_UNDER_MASKS = {
    "sum", "nansum", "linalg_vector_norm", "norm", "any", "count_nonzero", "_weight_norm_interface",
    "renorm", "max", "all",
}  # fmt: skip


# Entries that are all alike, or drawn alike, may be called what one likes.
_ANY_LABELS = {
    "empty", "empty_strided", "full", "ones", "zeros", "rand", "randn", "randint", "new_empty", "new_full", "new_ones",
    "new_zeros", "new_empty_strided", "empty_permuted",
}  # fmt: skip
_EQUIVALENT = {"no mixing": _EXACT_UNDER_MASKS, "off by one": _ANY_LABELS, "no coupling": {"rrelu_with_noise"}}


@pytest.mark.parametrize("kind", ["no coupling", "no freezing", "no mixing", "off by one", "wrong dim"])
def test_mutated_rules_are_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    by_rule: dict[Rule, list[str]] = {}
    for name, function in _rules().items():
        by_rule.setdefault(function, []).append(name)
    ran = _operators_by_case()
    survivors, tried = [], 0
    for function, names in by_rule.items():
        for name in names:
            if name.removeprefix("aten::") in _EQUIVALENT.get(kind, ()):
                continue
            mutation = _Mutation(function, kind)
            with monkeypatch.context() as patch:
                patch.setitem(OPERATORS._specs, name, replace(OPERATORS.spec(name), rule=mutation))
                patch.setattr(OPERATORS, "_known", {})
                caught = any(_breaks(case, mutation) for case in CASES if name in ran[case.name])
            tried += mutation.effects > 0
            if mutation.effects and not caught:
                survivors.append(name)
    assert tried > 8
    assert survivors == []


def _breaks(case: Case, mutation: _Mutation) -> bool:
    """Whether a case notices. What changes nothing is not looked at again: rules see shapes, which no seed changes."""
    before = mutation.effects
    for seed in range(4):
        try:
            check_case(case, seed)
        except Exception:
            return True
        if mutation.effects == before:
            return False
    return False
