"""The order in which channels go if the rest is fitted anew: held against least squares on the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from structprune.select import elimination
from structprune.select.elimination import Reading, eliminated

Rows = torch.Tensor


@pytest.fixture(autouse=True)
def _hardly_damped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elimination, "_DAMPING", 1e-9)


def correlated(entries: int, seed: int, rows: int = 400) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, entries, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(entries, entries, generator=generator, dtype=torch.float64)
    return x - x.mean(0)


def covariance(x: Rows) -> Callable[[], Rows]:
    return lambda: x.T @ x / len(x)


def left_wrong(x: Rows, matrix: torch.Tensor, kept: Sequence[int]) -> float:
    """What the best weights over the kept entries leave of the outputs, by least squares on the rows."""
    y = x @ matrix.T
    fit = torch.linalg.lstsq(x[:, list(kept)], y).solution if kept else torch.zeros(0, y.shape[1], dtype=y.dtype)
    return float((y - x[:, list(kept)] @ fit).square().sum() / len(x))


def by_trying(readers: list[tuple[Rows, torch.Tensor, list[list[int]]]], channels: int) -> list[int]:
    """The greedy order, every removal tried on the rows; a reader gives the entries of each channel."""
    order: list[int] = []
    while len(order) < channels:
        errors = {}
        for tried in set(range(channels)) - {*order}:
            errors[tried] = sum(
                left_wrong(x, matrix, [e for c, own in enumerate(entries) if c not in {*order, tried} for e in own])
                for x, matrix, entries in readers
            )
        order.append(min(errors, key=errors.__getitem__))
    return order


@pytest.mark.parametrize("taps", [1, 3])
def test_the_order_is_that_of_least_squares_tried_on_the_rows(taps: int) -> None:
    channels = 6
    readers, readings = [], []
    for seed, outputs in ((1, 4), (2, 7)):
        x = correlated(channels * taps, seed)
        matrix = torch.randn(outputs, channels * taps, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        readers.append((x, matrix, [list(range(c * taps, (c + 1) * taps)) for c in range(channels)]))
        readings.append(Reading(np.repeat(np.arange(channels), taps), covariance(x), matrix))
    scores = eliminated(readings, np.arange(channels), np.zeros(channels))
    order = by_trying(readers, channels)
    assert np.argsort(scores, kind="stable").tolist() == order
    # The first to go makes the error that is left once the others are fitted anew.
    first = order[0]
    kept = [e for c in range(channels) if c != first for e in readers[0][2][c]]
    expected = sum(left_wrong(x, matrix, kept) for x, matrix, _ in readers)
    assert scores[first] == pytest.approx(expected, rel=1e-5)


def test_a_channel_that_others_make_up_for_costs_nothing() -> None:
    x = correlated(5, 3)
    x[:, 4] = x[:, 0] - 2 * x[:, 1]
    matrix = torch.ones(2, 5, dtype=torch.float64)
    scores = eliminated([Reading(np.arange(5), covariance(x), matrix)], np.arange(5), np.zeros(5))
    assert scores.min() == pytest.approx(0, abs=1e-6) and np.argmin(scores) in (0, 1, 4)
    assert (scores > 1e-3).sum() == 4


def test_what_stays_helps_and_gets_no_score() -> None:
    x = correlated(4, 5)
    x[:, 3] = x[:, 1]
    reading = Reading(np.array([10, 11, 12, 13]), covariance(x), torch.randn(3, 4, dtype=torch.float64))
    scores = eliminated([reading], np.array([10, 11, 12]), np.zeros(20))
    assert scores[11] == pytest.approx(0, abs=1e-6) and scores[13] == 0
    assert np.flatnonzero(scores > 1e-6).tolist() == [10, 12]


def test_other_errors_are_added() -> None:
    x = correlated(3, 6)
    reading = Reading(np.arange(3), covariance(x), torch.randn(3, 3, dtype=torch.float64))
    fixed = np.array([0.0, 1e6, 0.0])
    assert eliminated([reading], np.arange(3), fixed)[1] >= 1e6
    assert np.argmax(eliminated([reading], np.arange(3), fixed)) == 1
    # Channels that nothing reads have these alone.
    assert eliminated([], np.arange(3), np.array([3.0, 1.0, 2.0])).tolist() == [3.0, 1.0, 2.0]
