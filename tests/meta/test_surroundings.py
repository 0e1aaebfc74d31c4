"""What a forward keeps outside its model: traces neither use it nor leave anything there, in any thread."""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import structprune

Tensor = torch.Tensor
TOKENS = torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Heads that a function of the widths splits, which may be cached."""

    def __init__(self, split: Callable[..., Any]) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(32, 96), nn.Linear(32, 32)
        self.split = split

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            t.reshape(self.split(b, n, self.heads, t.shape[-1])).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        return self.out(((q @ k.mT * 0.3).softmax(-1) @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    def __init__(self, split: Callable[..., Any], depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Linear(12, 32), nn.Linear(32, 5)
        self.layers = nn.ModuleList(Attention(split) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def plain(b: int, n: int, heads: int, width: int) -> tuple[int, ...]:
    return b, n, heads, width // heads


def in_a_file(name: str) -> types.ModuleType:
    """A file with a cached function and one of the same name that calls it."""
    file = types.ModuleType(name)
    code = (
        "import functools\n"
        "@functools.lru_cache(maxsize=None)\n"
        "def cached(b, n, heads, width):\n"
        "    return b, n, heads, width // heads\n"
        "def split(*sizes):\n"
        "    return cached(*sizes)\n"
    )
    exec(code, vars(file))
    return file


def splits() -> list[tuple[str, Callable[[], Callable[..., Any]]]]:
    def held() -> Callable[..., Any]:
        return functools.lru_cache(plain)

    def in_a_closure() -> Callable[..., Any]:
        cached = functools.lru_cache(plain)
        return lambda *sizes: cached(*sizes)

    def of_another_file() -> Callable[..., Any]:
        sys.modules["a_file_of_helpers"] = in_a_file("a_file_of_helpers")
        split: Callable[..., Any] = sys.modules["a_file_of_helpers"].split
        return split

    def a_method() -> Callable[..., Any]:
        class Shapes:
            @classmethod
            @functools.lru_cache(maxsize=8)
            def split(cls, *sizes: int) -> tuple[int, ...]:
                return plain(*sizes)

        sys.modules["a_file_of_classes"] = types.ModuleType("a_file_of_classes")
        Shapes.__module__ = "a_file_of_classes"
        sys.modules["a_file_of_classes"].Shapes = Shapes  # type: ignore[attr-defined]
        return lambda *sizes: sys.modules["a_file_of_classes"].Shapes.split(*sizes)

    return [(f.__name__, f) for f in (held, in_a_closure, of_another_file, a_method)]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("make", [s[1] for s in splits()], ids=[s[0] for s in splits()])
def test_cached_helpers_change_no_plan(make: Callable[[], Callable[..., Any]], depth: int) -> None:
    small: Any = structprune.prune_model(Blocks(make(), depth), 0.5, round_to=1, example_inputs=TOKENS)
    assert [layer.heads for layer in small.layers] == [2] * depth


def _edited(file: Any) -> None:
    file.cached = functools.lru_cache(plain)


def _with_one_more(file: Any) -> None:
    file.another, file.split = functools.lru_cache(plain), lambda *sizes: file.another(*sizes)


def _loaded_again(file: types.ModuleType) -> None:
    sys.modules[file.__name__] = in_a_file(file.__name__)


@pytest.mark.parametrize("change", [_edited, _with_one_more, _loaded_again])
def test_caches_are_found_in_files_that_change(
    change: Callable[[types.ModuleType], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that stay as they were are not looked through again at every run."""
    name = "a_file_that_changes"
    monkeypatch.setitem(sys.modules, name, in_a_file(name))
    for _ in range(2):
        model, held = Blocks(lambda *sizes: sys.modules[name].split(*sizes), 2), dict(vars(sys.modules[name]))
        small: Any = structprune.prune_model(model, 0.5, round_to=1, example_inputs=TOKENS)
        assert [layer.heads for layer in small.layers] == [2, 2]
        assert vars(sys.modules[name]) == held
        change(sys.modules[name])


def test_a_users_cache_is_neither_emptied_nor_filled() -> None:
    cached = functools.lru_cache(plain)
    model = Blocks(cached, 2)
    model(TOKENS)
    before = cached.cache_info()
    first = structprune.plan_pruning(model, 0.5, round_to=1, example_inputs=TOKENS)
    assert cached.cache_info() == before and model.layers[0].split is cached
    again = structprune.plan_pruning(Blocks(functools.lru_cache(plain), 2), 0.5, round_to=1, example_inputs=TOKENS)
    assert first.kept == again.kept  # what ran before changes nothing


@pytest.mark.parametrize("module", ["rearrange", "layers"])
def test_heads_that_einops_splits(module: str) -> None:
    einops = pytest.importorskip("einops")
    layers = pytest.importorskip("einops.layers.torch")

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.qkv, self.out = 4, nn.Linear(32, 96), nn.Linear(32, 32)
            self.split = nn.ModuleList(layers.Rearrange("b n (h d) -> b h n d", h=4) for _ in range(3))
            self.merge = layers.Rearrange("b h n d -> b n (h d)")

        def forward(self, x: Tensor) -> Tensor:
            parts = self.qkv(x).chunk(3, -1)
            if module == "layers":
                q, k, v = (split(t) for split, t in zip(self.split, parts, strict=True))
                return self.out(self.merge((q @ k.mT * 0.3).softmax(-1) @ v))  # type: ignore[no-any-return]
            q, k, v = (einops.rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in parts)
            mixed = (q @ k.mT * 0.3).softmax(-1) @ v
            return self.out(einops.rearrange(mixed, "b h n d -> b n (h d)"))  # type: ignore[no-any-return]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(12, 32), nn.Linear(32, 5)
            self.layers = nn.ModuleList(Split() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for layer in self.layers:
                x = x + layer(x)
            return self.head(x.mean(1))  # type: ignore[no-any-return]

    model = Net()
    small: Any = structprune.prune_model(model, 0.5, round_to=1, example_inputs=TOKENS)
    assert structprune.prove(model, small, TOKENS)
    for layer in small.layers:
        assert layer.qkv.out_features == 48
        assert (layer.heads, 4) == (2, 4) if module == "rearrange" else layer.split[0].axes_lengths == {"h": 2}
        if module == "layers":
            assert layer.split[0](torch.zeros(1, 6, 16)).shape == (1, 2, 6, 8)


def test_large_globals_of_the_models_file_are_not_copied_and_small_ones_are_put_back() -> None:
    file = types.ModuleType("a_file_with_tables")
    code = (
        "import torch\n"
        "from torch import nn\n"
        "numbers, seen, calls = list(range(100_000)), {}, 0\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 4)\n"
        "    def forward(self, x):\n"
        "        global calls\n"
        "        calls += 1\n"
        "        h = self.a(x)\n"
        "        seen[h.shape[-1]] = h\n"
        "        numbers.append(h)\n"
        "        return self.b(h)\n"
    )
    sys.modules[file.__name__] = file
    exec(code, vars(file))
    model = file.Net()
    with torch.no_grad():
        model(TOKENS)
    before, entries = file.numbers, dict(file.seen)
    structprune.plan_pruning(model, 0.5, example_inputs=TOKENS, keep_representation=False)
    assert file.numbers is before and len(before) == 100_001
    assert file.seen.keys() == entries.keys() and all(file.seen[k] is entries[k] for k in entries)
    assert file.calls == 1


def test_planning_in_several_threads_leaves_the_global_switches() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def look() -> tuple[Any, ...]:
        cuda = torch.backends.cuda
        return (
            torch.backends.mha.get_fastpath_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(), torch.get_rng_state().tolist(),
        )  # fmt: skip

    plans: list[Any] = []

    def work() -> None:
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        plans.append(structprune.plan_pruning(model, 0.5, importance="l1", example_inputs=torch.ones(2, 8)))

    torch.manual_seed(0)
    models = [threading.Thread(target=work) for _ in range(4)]
    try:
        torch.manual_seed(0)
        switches = look()[:-1]
        for thread in models:
            thread.start()
        for thread in models:
            thread.join()
        assert look()[:-1] == switches
        assert len(plans) == 4
    finally:
        sys.setswitchinterval(interval)
