"""The counter against closed forms, and against what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import structprune
from structprune import count_flops
from tests.support import vision


class Does(nn.Module):
    """A forward written as a function, with weights of its own."""

    def __init__(self, run: Callable[..., torch.Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.run = run
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.run(self, *args)


class Widened(nn.Linear):
    """A subclass with work of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + x @ self.weight.t()


X = torch.randn(2, 8, 10, 10)
S = torch.randn(2, 5, 16)
Q = torch.randn(2, 4, 5, 8)
CASES: dict[str, tuple[nn.Module, tuple[torch.Tensor, ...], int]] = {
    "conv2d": (Does(lambda m, x: F.conv2d(x, m.w), w=(6, 8, 3, 3)), (X,), 2 * 6 * 64 * 8 * 9),
    "grouped conv": (nn.Conv2d(8, 12, 3, groups=4), (X,), 2 * 12 * 64 * 2 * 9),
    "depthwise conv": (nn.Conv2d(8, 8, 3, groups=8), (X,), 2 * 8 * 64 * 9),
    "strided dilated conv": (nn.Conv2d(8, 4, 3, stride=2, dilation=2), (X,), 2 * 4 * 9 * 8 * 9),
    "transposed conv": (nn.ConvTranspose2d(8, 4, 2, stride=2), (X,), 2 * 8 * 100 * 4 * 4),
    "conv1d": (nn.Conv1d(5, 7, 3), (S,), 2 * 7 * 14 * 5 * 3),
    "conv3d": (nn.Conv3d(2, 3, 2), (torch.randn(1, 2, 4, 4, 4),), 3 * 27 * 2 * 8),
    "F.linear": (Does(lambda m, x: F.linear(x, m.w), w=(7, 16)), (S,), 2 * 5 * 16 * 7),
    "linear with bias": (nn.Linear(16, 7), (S,), 2 * 5 * 16 * 7),
    "x @ y": (Does(lambda m, x: x @ m.w, w=(16, 3)), (S,), 2 * 5 * 16 * 3),
    "batched @": (Does(lambda m, x: x @ x.transpose(1, 2)), (S,), 2 * 5 * 5 * 16),
    "matrix @ vector": (Does(lambda m, x: x[0] @ m.w, w=(16,)), (S,), 5 * 16),
    "dot": (Does(lambda m, x: x[0, 0] @ m.w, w=(16,)), (S,), 16),
    "addmv": (Does(lambda m, x: torch.addmv(x[0, :, 0], x[0], m.w), w=(16,)), (S,), 5 * 16),
    "baddbmm": (Does(lambda m, x: torch.baddbmm(x @ x.mT, x, x.mT)), (S,), 2 * 2 * 5 * 5 * 16),
    "addbmm": (Does(lambda m, x: torch.addbmm(x[0] @ x[0].t(), x, x.mT)), (S,), 5 * 5 * 16 + 2 * 5 * 5 * 16),
    "einsum": (Does(lambda m, x: torch.einsum("btc,dc->btd", x, m.w), w=(9, 16)), (S,), 2 * 5 * 16 * 9),
    "bilinear": (nn.Bilinear(16, 16, 3), (S, S), 10 * 3 * 16 * 16),
    "sdpa": (Does(lambda m, q: F.scaled_dot_product_attention(q, q, q)), (Q,), 2 * 8 * 5 * 5 * 8),
    "causal sdpa": (
        Does(lambda m, q: F.scaled_dot_product_attention(q, q, q, is_causal=True)),
        (Q,),
        2 * 8 * 5 * 5 * 8,
    ),
    "grouped-query sdpa": (
        Does(lambda m, q: F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True)),
        (Q,),
        2 * 8 * 5 * 5 * 8,
    ),
    "multi-head attention": (
        Does(lambda m, x: m.a(x, x, x)[0]),
        (S,),
        10 * 16 * 48 + 10 * 16 * 16 + 2 * 2 * 4 * 5 * 5 * 4,
    ),
    "encoder layer in eval": (
        nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval(),
        (S,),
        10 * 16 * 64 + 2 * 2 * 4 * 5 * 5 * 4 + 2 * 10 * 16 * 32,
    ),
    "lstm": (nn.LSTM(16, 6, batch_first=True), (S,), 10 * 4 * 6 * (16 + 6)),
    "bidirectional lstm, two layers": (
        nn.LSTM(16, 6, 2, batch_first=True, bidirectional=True),
        (S,),
        10 * 2 * 4 * 6 * (16 + 6) + 10 * 2 * 4 * 6 * (12 + 6),
    ),
    "gru": (nn.GRU(16, 6, batch_first=True), (S,), 10 * 3 * 6 * (16 + 6)),
    "rnn": (nn.RNN(16, 6, batch_first=True), (S,), 10 * 6 * (16 + 6)),
    "lstm cell": (nn.LSTMCell(16, 6), (S[:, 0],), 2 * 4 * 6 * (16 + 6)),
    "subclassed linear": (Widened(16, 16), (S,), 2 * 2 * 5 * 16 * 16),
    "nothing": (nn.ReLU(), (S,), 0),
}
if hasattr(torch, "_grouped_mm"):  # PyTorch 2.6 has none
    CASES["grouped product"] = (
        Does(lambda m, x: torch._grouped_mm(x[0], m.w, offs=torch.tensor([2, 5], dtype=torch.int32)), w=(2, 16, 8)),
        (S,),
        5 * 16 * 8,
    )
CASES["multi-head attention"][0].a = nn.MultiheadAttention(16, 4, batch_first=True)


@pytest.mark.parametrize("name", CASES)
def test_forward_by_closed_form(name: str) -> None:
    model, inputs, macs = CASES[name]
    count = count_flops(model, inputs)
    assert (count.macs, count.flops) == (macs, 2 * macs)
    assert count.uncounted == {}


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_backward_of_a_grouped_convolution_is_two_forwards(kind: type[nn.Module], groups: int) -> None:
    layers = nn.Sequential(kind(8, 16, 3, groups=groups), kind(16, 8, 3, groups=groups))
    first = count_flops(layers[0], X).macs
    forward = count_flops(layers, X).macs
    assert count_flops(layers, X, training=True).macs == 3 * forward - first


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnext50_32x4d", "resnet50"])
def test_training_step_by_closed_form(name: str) -> None:
    model, x = vision.build(name), torch.randn(2, 3, 224, 224)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    forward = count_flops(model, x).flops
    count = count_flops(model, x, training=True)
    first_input_gradient = 2 * stem.weight.numel() * 112 * 112 * 2
    assert count.flops == 3 * forward - first_input_gradient
    assert count.uncounted == {}


def test_frozen_parameters_need_no_gradient() -> None:
    body, head = nn.Linear(16, 32), nn.Linear(32, 4)
    model, x = nn.Sequential(body, nn.ReLU(), head), torch.randn(3, 16)
    forward = 3 * (16 * 32 + 32 * 4)
    assert count_flops(model, x, training=True).macs == 3 * forward - 3 * 16 * 32
    body.requires_grad_(False)
    assert count_flops(model, x, training=True).macs == forward + 3 * 32 * 4
    body.requires_grad_(True)
    head.requires_grad_(False)
    # The head's input gradient is still needed, its weights' is not.
    assert count_flops(model, x, training=True).macs == forward + 3 * 32 * 4 + 3 * 16 * 32
    body.requires_grad_(False)
    assert count_flops(model, x, training=True).macs == forward


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_agrees_with_torchs_counter_on_ungrouped_networks(name: str) -> None:
    # Its own class, on the real device: another way through the same operators.
    model, x = vision.build(name).train(), torch.randn(2, 3, 64, 64)
    with FlopCounterMode(display=False) as theirs:
        model(x).sum().backward()
    assert count_flops(model, x, training=True).flops == theirs.get_total_flops()


@pytest.mark.parametrize("name", vision.models())
def test_macs_published_by_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Weights that nobody reads are not drawn: of some networks they are gigabytes.
    for draw in ("kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, draw, lambda tensor, *_args, **_kwargs: tensor)
    for crop, giga_macs in vision.published(name):
        # A vision transformer has a position for every patch: its size is part of the architecture.
        model = vision.build(name, **({"image_size": crop} if name.startswith("vit") else {}))
        assert round(count_flops(model, torch.empty(1, 3, crop, crop, device="meta")).macs / 1e9, 3) == giga_macs


def test_by_module_is_a_tree_that_adds_up() -> None:
    count = count_flops(structprune.demo.resnet50())
    tree = count.by_module
    assert (tree.name, tree.kind, tree.macs, tree.params) == ("", "ResNet50", count.macs, count.params)
    by_name = {cost.name: cost for cost in tree.walk()}
    assert by_name["conv1"].macs == 64 * 112 * 112 * 3 * 49
    for cost in tree.walk():
        if cost.children:
            assert cost.macs == sum(child.macs for child in cost.children)
            assert cost.params == sum(child.params for child in cost.children)
    assert (count.macs, count.params, count.param_bytes) == (4_089_184_256, 25_557_032, 4 * 25_557_032)


def test_backward_is_attributed_to_the_module_that_made_the_forward() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(8, 4, 3), nn.Linear(4, 2)
            self.own = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = self.stem(x).mean((2, 3)) @ self.own
            return self.head(pooled)

    costs = {c.name: c.macs for c in count_flops(Net(), X, training=True).by_module.walk()}
    stem, own, head = 2 * 4 * 64 * 8 * 9, 2 * 4 * 4, 2 * 4 * 2
    assert costs == {"": 2 * stem + 3 * own + 3 * head, "stem": 2 * stem, "head": 3 * head}


def test_shared_parameters_and_modules_count_once() -> None:
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.Sequential(shared), nn.Linear(16, 16, bias=False))
    model[2].weight = shared.weight
    count = count_flops(model, S)
    assert (count.params, count.param_bytes) == (16 * 16 + 16, 4 * (16 * 16 + 16))
    assert count.macs == 3 * 10 * 16 * 16
    assert count.by_module.params == count.params


def test_activation_bytes() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(400, 5))
    count = count_flops(model, X)
    # Views and in-place operators write no new memory.
    assert count.activation_bytes == 4 * (2 * 4 * 100 + 2 * 5)
    assert count.peak_activation_bytes == 4 * (2 * 8 * 100 + 2 * 4 * 100 + 2 * 5)


def test_unknown_operators_are_listed() -> None:
    model = Does(lambda m, x: torch.fft.fft(x @ m.w).abs() + torch.linalg.inv_ex(x @ x.mT).inverse.sum(), w=(16, 4))
    count = count_flops(model, S)
    assert count.macs == 2 * 5 * 16 * 4 + 2 * 5 * 5 * 16
    assert count.uncounted == {"aten::_fft_r2c": 1, "aten::linalg_inv_ex": 1}
    assert "not counted: aten::_fft_r2c (1 times)" in str(count)


def test_custom_operators_are_not_counted_0_in_silence() -> None:
    @torch.library.custom_op("structprune_tests::halved", mutates_args=())
    def halved(x: torch.Tensor) -> torch.Tensor:
        return x / 2

    halved.register_fake(lambda x: torch.empty_like(x))
    assert count_flops(Does(lambda m, x: halved(x)), S).uncounted == {"structprune_tests::halved": 1}


def test_model_and_global_state_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(256, 2))
    model[3].eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    versions = {n: t._version for n, t in model.named_parameters()}
    torch.backends.mha.set_fastpath_enabled(True)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    count_flops(model, X, training=True)
    assert torch.equal(torch.rand(1), expected)
    assert torch.backends.mha.get_fastpath_enabled()
    assert [m.training for m in model] == [True, True, True, False, True]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert versions == {n: t._version for n, t in model.named_parameters()}
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Sizes(TorchDispatchMode):
    """Bytes that operators write to real memory, and how many operators there are."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.allocated = 0, [0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        leaves = out if isinstance(out, (list, tuple)) else [out]
        real = [t for t in leaves if isinstance(t, torch.Tensor) and not t.is_meta]
        self.allocated.extend(t.nbytes for t in real if not func.is_view)
        return out


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16"])
def test_is_quick_and_allocates_no_weight(name: str) -> None:
    model = vision.build(name)
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    with Sizes() as counting:
        count_flops(model)
    # The inferred image is the largest thing that is real.
    assert max(counting.allocated) == 4 * 3 * 224 * 224 < largest
    with torch.device("meta"):
        replica, x = vision.build(name).eval(), torch.empty(1, 3, 224, 224)
    with Sizes() as plain:
        replica(x)
    # One forward, one copy of every tensor, and little else.
    assert counting.operators <= plain.operators + len(model.state_dict()) + 100


def test_torchscript_is_counted() -> None:
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU())
    assert count_flops(torch.jit.script(model), X).macs == count_flops(model, X).macs


def test_plans_count_as_the_counter_does() -> None:
    for name in ("mobilenet_v2", "efficientnet_b0", "resnext50_32x4d", "convnext_tiny"):
        model, x = vision.build(name), torch.empty(1, 3, 96, 96)
        plan = structprune.plan_pruning(model, 0.5, example_inputs=x)
        assert plan.macs == (count_flops(model, x).macs, count_flops(plan.apply(model), x).macs)


def test_errors() -> None:
    with pytest.raises(
        structprune.InputError, match=r"Linear does not run with the example inputs \(float32\[2, 3\]\)"
    ):
        count_flops(nn.Linear(4, 2), torch.randn(2, 3))
    with pytest.raises(structprune.InputError, match="could not be inferred"):
        count_flops(nn.Sequential(nn.ReLU()))
    with pytest.raises(structprune.ModelError, match=r"0\.weight is not initialised: run one forward"):
        count_flops(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 3))


def test_a_backward_that_cannot_be_followed_is_no_silent_forward() -> None:
    with torch.inference_mode():
        assert count_flops(nn.Linear(4, 4), torch.ones(2, 4), training=True).macs == 2 * 32
    with pytest.raises(structprune.InputError, match="no tensor among its outputs depends on its parameters"):
        count_flops(torch.jit.script(nn.Linear(4, 4)), torch.ones(2, 4), training=True)


def test_several_calls_add_up_and_callables_run() -> None:
    layer = nn.Linear(16, 4)
    assert count_flops(layer, [S, S]).macs == 2 * count_flops(layer, S).macs
    model = nn.Sequential(layer, nn.Linear(4, 4))
    assert count_flops(model, lambda m: m[0](torch.empty(3, 16, device=m[0].weight.device))).macs == 3 * 16 * 4
