"""Models whose library builds them from a config: transformers with ``fit_config``, timm with the plan."""

from __future__ import annotations

import ast
import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import structprune
from structprune import ModelError, PlanError
from tests.support import vision
from tests.zoo.calls import Call
from tests.zoo.tiny_transformers import build_tiny

pytestmark = pytest.mark.filterwarnings("ignore")


def build(name: str) -> tuple[Any, Call]:
    """A tiny network of transformers with weights of a fixed seed."""
    vision.torchvision()  # transformers imports it for images
    torch.manual_seed(0)
    model, call = build_tiny(name)
    return model.eval(), call


def pruned(model: nn.Module, call: Call, ratio: Any = 0.5, granularity: Any = "filter", **options: Any) -> Any:
    return structprune.prune_model(model, ratio, granularity, example_inputs=call.kwargs, round_to=1, **options)


def outputs(model: Any, call: Call) -> list[torch.Tensor]:
    """Of random images or the call's own tokens."""
    generator = torch.Generator().manual_seed(3)
    kwargs = {
        k: torch.randn(v.shape, generator=generator) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in call.kwargs.items()
    }
    with torch.no_grad():
        return [t for t in model(**kwargs).to_tuple() if isinstance(t, torch.Tensor)]


class Fits(NamedTuple):
    """A network, how it is pruned, and how its config changes."""

    name: str
    granularity: str
    options: dict[str, Any]
    changes: set[str]


FITS = [
    Fits(
        "llama", "filter", {},
        {"intermediate_size: 128 -> 64", "num_attention_heads: 4 -> 2", "num_key_value_heads: 2 -> 1"},
    ),
    Fits(
        "llama", "channel", {"keep_representation": False},
        {
            "hidden_size: 64 -> 32", "intermediate_size: 128 -> 64", "num_attention_heads: 4 -> 2",
            "num_key_value_heads: 2 -> 1",
        },
    ),
    Fits("gpt2", "filter", {"ignore": ["*.attn"]}, {"n_inner: None -> 128"}),
    Fits("opt", "filter", {"ignore": ["*.self_attn"]}, {"ffn_dim: 128 -> 64"}),
    Fits("bert", "filter", {"ignore": ["*.attention"]}, {"intermediate_size: 128 -> 64"}),
    # The width of a head is hidden_size / num_attention_heads: both are halved, and it stays.
    Fits(
        "bert", "channel", {"keep_representation": False},
        {"hidden_size: 64 -> 32", "intermediate_size: 128 -> 64", "num_attention_heads: 4 -> 2"},
    ),
    # A field that the config does not declare, and the model reads.
    Fits(
        "vit", "filter", {},
        {"head_dim: None -> 16", "num_attention_heads: 4 -> 2", "intermediate_size: 128 -> 64"},
    ),
    # One that it declares and leaves empty.
    Fits(
        "qwen2", "filter", {},
        {
            "head_dim: None -> 16", "intermediate_size: 128 -> 64", "num_attention_heads: 4 -> 2",
            "num_key_value_heads: 2 -> 1",
        },
    ),
    # A number of heads that no layer reads any more, but the width of a head follows from it.
    Fits(
        "blip", "channel", {"keep_representation": False},
        {
            "text_config.hidden_size: 64 -> 32", "text_config.intermediate_size: 128 -> 64",
            "text_config.num_attention_heads: 4 -> 2", "vision_config.intermediate_size: 128 -> 64",
        },
    ),
    Fits(
        "convnext", "channel", {"keep_representation": False},
        {f"hidden_sizes[{i}]: {n} -> {n // 2}" for i, n in enumerate((32, 64, 96, 128))},
    ),
    Fits(
        "clip", "filter", {"keep_representation": False, "ignore": ["*.self_attn"]},
        {"text_config.intermediate_size: 128 -> 64", "vision_config.intermediate_size: 128 -> 64"},
    ),
]  # fmt: skip


@pytest.mark.parametrize("fits", FITS, ids=lambda f: f"{f.name}-{f.granularity}-{len(f.changes)}")
def test_saved_and_loaded(fits: Fits, tmp_path: Path) -> None:
    model, call = build(fits.name)
    small = pruned(model, call, granularity=fits.granularity, **fits.options)
    before, dense_config = outputs(small, call), model.config.to_dict()
    assert {str(change) for change in structprune.fit_config(small, call.kwargs)} == fits.changes
    assert structprune.fit_config(small, call.kwargs) == []
    assert model.config.to_dict() == dense_config, "the dense model's config is its own"
    small.save_pretrained(tmp_path)
    # What is loaded lies in the file, where a product may take another kernel than in aligned memory: a copy does not.
    loaded = copy.deepcopy(type(small).from_pretrained(tmp_path).eval())
    for ours, theirs, earlier in zip(outputs(small, call), outputs(loaded, call), before, strict=True):
        assert torch.equal(ours, theirs) and torch.equal(ours, earlier)
    assert structprune.prove(model, small, call.kwargs)


def test_a_config_that_is_fitted_again_after_a_second_cut(tmp_path: Path) -> None:
    model, call = build("llama")
    once = pruned(model, call)
    structprune.fit_config(once, call.kwargs)
    twice = pruned(once, call, {"model.layers.0.mlp": 0.5, "model.layers.1.mlp": 0.5})
    assert {str(change) for change in structprune.fit_config(twice, call.kwargs)} == {"intermediate_size: 64 -> 32"}
    twice.save_pretrained(tmp_path)
    loaded = type(twice).from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(outputs(twice, call), outputs(loaded, call), strict=True))


def test_generation_after_the_reload(tmp_path: Path) -> None:
    model, call = build("llama")
    small = pruned(model, call)
    structprune.fit_config(small, call.kwargs)
    small.save_pretrained(tmp_path)
    loaded = type(small).from_pretrained(tmp_path).eval()
    ids = call.kwargs["input_ids"]
    expected = small.generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(loaded.generate(ids, max_new_tokens=5, do_sample=False), expected)
    assert expected.shape == (1, ids.shape[1] + 5)


REFUSED = [
    ("bert", 0.5, r"bert\.encoder\.layer\.0\.attention\.self\.query\.weight is \[32, 64\], a model built from it with "
     r"intermediate_size: 128 -> 64 has \[64, 64\]"),
    ("gpt2", 0.5, r"transformer\.h\.0\.attn\.c_attn\.weight is \[64, 96\], .* n_inner: None -> 128 has \[64, 192\]"),
    ("llama", {"model.layers.0.mlp": 0.5, "model.layers.1.mlp": 0.25}, r"layers\.\d\.mlp.* and \d+ more differ"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ratio", "message"), REFUSED, ids=lambda v: str(v)[:5])
def test_refused_and_left_as_it_was(name: str, ratio: Any, message: str) -> None:
    model, call = build(name)
    small = pruned(model, call, ratio)
    config, before = small.config.to_dict(), outputs(small, call)
    with pytest.raises(ModelError, match=message) as caught:
        structprune.fit_config(small, call.kwargs)
    assert "structprune.save and structprune.load" in str(caught.value)
    assert small.config.to_dict() == config
    assert all(torch.equal(a, b) for a, b in zip(outputs(small, call), before, strict=True))
    # What the message says to do helps.
    ignore = ast.literal_eval(re.search(r"ignore=(\[.*?\])", str(caught.value))[1])  # type: ignore[index]
    ratio = ratio if isinstance(ratio, float) else 0.5
    structprune.fit_config(pruned(model, call, ratio, ignore=ignore), call.kwargs)


class Config(SimpleNamespace):
    """What every library calls a config."""

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Scaled(nn.Module):
    """Every width comes from the config, and so does a number that is used, or kept to be used."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = nn.Linear(6, config.width), nn.Linear(config.width, 4)
        if config.how == "attribute":
            self.factor = config.width**-0.5
        elif config.how == "buffer":
            self.register_buffer("factor", torch.tensor(config.width**-0.5), persistent=False)
        else:
            self.factor = config.factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)) * self.factor)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "attribute",
            r"width: 16 -> 8 has the pruned shapes, but its \.?factor is 0\.353553 where the pruned model has 0\.25",
        ),
        ("buffer", r"has the pruned shapes, but with the same weights it returns something else"),
        ("config", None),
    ],
)
def test_a_scale_that_would_be_computed_anew(how: str, message: str | None) -> None:
    model = Scaled(Config(width=16, how=how, factor=0.25))
    small: Any = structprune.prune_model(
        model, 0.5, example_inputs=torch.randn(1, 6), round_to=1, keep_representation=False
    )
    if message is None:
        assert [str(c) for c in structprune.fit_config(small, torch.randn(1, 6))] == ["width: 16 -> 8"]
        return
    with pytest.raises(ModelError, match=message):
        structprune.fit_config(small, torch.randn(1, 6))
    assert small.config.width == 16


class HeadsConfig(Config):
    """Refuses heads that do not divide the hidden size, when it is made as a file would make it."""

    def to_json_string(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadsConfig:
        if values["hidden"] % values["heads"]:
            raise ValueError(f"hidden={values['hidden']} is no multiple of heads={values['heads']}")
        return cls(**values)


class Headed(nn.Module):
    """Attention whose heads have a width of their own."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config, self.heads, self.width = config, config.heads, config.width
        inner = config.heads * config.width
        self.embed, self.head = nn.Linear(5, config.hidden), nn.Linear(config.hidden, 3)
        self.q, self.k, self.v = (nn.Linear(config.hidden, inner) for _ in range(3))
        self.out = nn.Linear(inner, config.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, self.width).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(mixed))


def test_a_number_of_heads_that_the_config_refuses_is_changed_to_the_nearest() -> None:
    model, x = Headed(HeadsConfig(heads=8, width=4, hidden=32)).eval(), torch.randn(1, 6, 5)
    options: dict[str, Any] = {"example_inputs": x, "round_to": 1}
    refused: Any = structprune.prune_model(model, 0.4, loadable=False, uniform=True, **options)
    assert refused.heads == 5
    with pytest.raises(ModelError, match=r"hidden=32 is no multiple of heads=5"):
        structprune.fit_config(refused, x)
    for asked in ({"uniform": True}, {"loadable": True}):
        small: Any = structprune.prune_model(model, 0.4, **asked, **options)
        assert [str(change) for change in structprune.fit_config(small, x)] == ["heads: 8 -> 4"]
        (note,) = (n for n in structprune.plan_of(small).notes if n.startswith("loadable"))
        assert note.startswith("loadable: 4 of 8 heads go in place of 3 (q.weight): without 3, its config cannot be")
        assert structprune.prove(model, small, x)
    # Of four heads three cannot stay: as near are four and two, and heads were asked for.
    few = Headed(HeadsConfig(heads=4, width=8, hidden=32)).eval()
    assert structprune.plan_pruning(few, 0.25, loadable=True, **options).shape_left("q.weight") == (16, 32)
    # What loads stays as it is, and a model without a config is no matter.
    half = structprune.plan_pruning(model, 0.5, loadable=True, **options)
    assert not any("loadable" in note for note in half.notes) and half.kept["q.weight"]
    del model.config
    assert structprune.plan_pruning(model, 0.4, loadable=True, **options).shape_left("q.weight") == (20, 32)


def test_with_a_target_a_note_says_that_no_config_has_the_sizes() -> None:
    model, x = Headed(HeadsConfig(heads=8, width=4, hidden=32)).eval(), torch.randn(1, 6, 5)
    options: dict[str, Any] = {"params": 0.75, "importance": "l2", "example_inputs": x, "round_to": 1}
    plan = structprune.plan_pruning(model, loadable=True, **options)
    assert plan.kept == structprune.plan_pruning(model, **options).kept
    assert plan.shape_left("q.weight") == (4 * 5, 32)
    assert plan.notes[-1] == (
        "loadable: no config has these sizes: its config cannot be read again (ValueError: hidden=32 is no multiple of "
        "heads=5)"
    )


def test_what_has_no_config() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    small: Any = structprune.prune_model(model, 0.5, example_inputs=torch.randn(1, 4))
    with pytest.raises(ModelError, match=r"Sequential has no config to fit .*structprune\.save and structprune\.load"):
        structprune.fit_config(small, torch.randn(1, 4))
    small.config = Config(width=8)
    with pytest.raises(ModelError, match=r"Sequential cannot be built as Sequential\(config\)"):
        structprune.fit_config(small, torch.randn(1, 4))
    with pytest.raises(PlanError, match="carries no plan"):
        structprune.fit_config(model, torch.randn(1, 4))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm(name: str, tmp_path: Path) -> None:
    vision.torchvision()
    import timm

    def create() -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=7)
        return model.eval()

    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 224, 224), create()
    small = structprune.prune_model(model, 0.5)  # the size of an image comes from pretrained_cfg
    torch.save(small.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "plan.json").write_text(structprune.plan_of(small).to_json())

    plan = structprune.Plan.from_json((tmp_path / "plan.json").read_text())
    loaded = plan.apply(create(), inplace=True)
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt"))
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
    assert sum(p.numel() for p in loaded.parameters()) == plan.params[1] < 0.7 * plan.params[0]
    assert json.loads(plan.to_json()) == json.loads(structprune.plan_of(copy.deepcopy(small)).to_json())
