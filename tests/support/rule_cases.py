"""A table of cases for every registered operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from structprune.ops.boundary import run_opaque
from tests.support.contract import Case

aten = torch.ops.aten


def positive(shape: Sequence[int]) -> torch.Tensor:
    """Entries in (0.1, 0.9), where every unary function is defined."""
    return torch.rand(*shape) * 0.8 + 0.1


def integers(shape: Sequence[int]) -> torch.Tensor:
    """Small positive integers."""
    return torch.randint(1, 7, tuple(shape))


def signs(shape: Sequence[int]) -> torch.Tensor:
    """Entries of -1, 0 and 1."""
    return torch.randint(-1, 2, tuple(shape)).float()


def fixed(*shape: int) -> torch.Tensor:
    """A constant: it is no operand that may shrink."""
    return torch.linspace(0.1, 0.9, int(torch.Size(shape).numel())).reshape(shape)


def indices(*shape: int) -> torch.Tensor:
    """A constant of indices 0, 1, 0, 1, ..."""
    return (torch.arange(int(torch.Size(shape).numel())) % 2).reshape(shape)


def complex_numbers(shape: Sequence[int]) -> torch.Tensor:
    """Complex entries."""
    return torch.randn(*shape, dtype=torch.complex64)


ALL3 = ("0.0", "0.1", "0.2")
X = ((4, 6, 5),)
PAIR = ((4, 6, 5), (4, 6, 5))
PAIRED = ("0.0", "0.1", "0.2", "1.0", "1.1", "1.2")

_SIMPLE = """
    abs acos asin asinh atan atanh ceil celu cos cosh deg2rad digamma elu erf erfc erfinv exp exp2 expm1 floor frac
    gelu hardshrink hardsigmoid hardswish hardtanh i0 isinf isnan leaky_relu lgamma log log10 log1p log2
    logical_not mish nan_to_num neg rad2deg reciprocal relu round rsqrt sgn sigmoid sign signbit
    silu sin sinc sinh softplus softshrink sqrt tan tanh trunc clone detach alias angle conj_physical lift lift_fresh
    logit zeros_like ones_like
""".split()
_POINTWISE = """
    add atan2 div floor_divide fmax fmin fmod ge gt hypot le logaddexp logaddexp2 lt maximum minimum mul pow
    remainder sub xlogy special_xlog1py rsub
""".split()
_OF_SIGNS = "copysign eq heaviside logical_and logical_or logical_xor ne".split()
_BITS = "bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift".split()


def _unary(name: str) -> Case:
    operator = getattr(aten, name)
    # The product shows which entry is which where the operator alone gives a constant.
    return Case(name, lambda x: (operator(x), operator(x) * x), X, ALL3, make=positive)


def _binary(name: str, make: Callable[[Sequence[int]], torch.Tensor] = positive) -> Case:
    operator = getattr(aten, name)
    return Case(name, lambda x, y: operator(x, y), PAIR, PAIRED, make=make)


def _random(name: str, *args: float) -> Case:
    """In-place random fills: compared after a comparison, which does not depend on the draw."""
    operator = getattr(aten, name + "_")
    return Case(name, lambda x: operator(x.clone(), *args).ge(-1e9) * x, X, ALL3, make=positive)


ELEMENTWISE = [
    *map(_unary, _SIMPLE),
    *map(_binary, _POINTWISE),
    *(_binary(name, integers) for name in _BITS),
    *(_binary(name, signs) for name in _OF_SIGNS),
    Case("nextafter", lambda x, y: (torch.nextafter(x, y) - x) * 1e8, PAIR, PAIRED, make=positive),
    Case("acosh", lambda x: torch.acosh(x + 1), X, ALL3, make=positive),
    Case("bitwise_not", lambda x: aten.bitwise_not(x), X, ALL3, make=integers),
    Case("clamp", lambda x: x.clamp(0.2, 0.5), X, ALL3),
    Case("clamp tensor", lambda x, y: aten.clamp(x, y), PAIR, PAIRED),
    Case("clamp_min", lambda x: x.clamp_min(0.2), X, ALL3),
    Case("clamp_max", lambda x, y: x.clamp_max(y), PAIR, PAIRED),
    Case("threshold", lambda x: F.threshold(x, 0.3, 2.0), X, ALL3),
    Case("to_copy", lambda x: x.to(torch.float64), X, ALL3),
    Case("log_sigmoid", lambda x: F.logsigmoid(x), X, ALL3),
    Case("in place", lambda x, y: x.clone().add_(y).relu_().mul_(2), PAIR, PAIRED),
    Case("fill", lambda x: x.clone().fill_(3.0), X, ALL3),
    Case("zero", lambda x: x.clone().zero_() + x, X, ALL3),
    _random("uniform"),
    _random("normal"),
    _random("exponential"),
    _random("bernoulli", 0.5),
    _random("random"),
    Case("native_dropout", lambda x: aten.native_dropout(x, 0.5, True)[0].ge(-1e9) * x, X, ALL3),
    Case("rrelu", lambda x, y: aten.rrelu_with_noise(x, y.clone(), 0.1, 0.1, False) + y * 0, PAIR, PAIRED),
    Case("copy", lambda x, y: x.clone().copy_(y), PAIR, PAIRED),
    Case("addcmul", lambda x, y: torch.addcmul(x, x, y), PAIR, PAIRED),
    Case("addcdiv", lambda x, y: torch.addcdiv(x, x, y), PAIR, PAIRED, make=positive),
    Case("lerp", lambda x, y: torch.lerp(x, y, 0.3), PAIR, PAIRED),
    Case("where", lambda x, y: torch.where(x > 0, x, y), PAIR, PAIRED),
    Case("masked_fill", lambda x, y: x.masked_fill(y > 0, 7.0), PAIR, PAIRED),
    Case("scalar operand", lambda x: 2 - x * 3, X, ALL3),
    Case("broadcast", lambda x, y: x + y, ((4, 6, 5), (6, 1)), ("0.0", "0.1", "0.2", "1.0")),
    Case("broadcast both", lambda x, y: x * y, ((4, 1, 5), (6, 1)), ("0.0", "0.2", "1.0")),
    Case("meets constant", lambda x: x + fixed(6, 1), X, ("0.0", "0.2")),
    Case("meets scalar tensor", lambda x: x * torch.tensor(2.0), X, ALL3),
    Case("prelu", lambda x, w: F.prelu(x, w), ((4, 6, 5), (6,)), ("0.0", "0.1", "0.2", "1.0")),
    Case("glu", lambda x: F.glu(x, 1), X, ALL3),
    Case("glu last", lambda x: F.glu(x, -1), ((4, 6, 8),), ALL3),
    Case("item", lambda x: torch.ones(3) * x.sum((0, 1))[:1].item(), X, ("0.0", "0.1")),
]
ELEMENTWISE = [c for c in ELEMENTWISE if c.name != "item"] + [
    Case("local_scalar_dense", lambda x: torch.ones(3) * x.item(), ((1,),), ()),
]


def _conv(rank: int, groups: int = 1, **options: object) -> Callable[..., torch.Tensor]:
    def convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        # A depthwise convolution has as many groups as its input has channels left.
        count = x.shape[1] if groups < 0 else groups
        return getattr(F, f"conv{rank}d")(x, w, b, groups=count, **options)

    return convolve


def _transposed(groups: int = 1) -> Callable[..., torch.Tensor]:
    def convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, w, b, stride=2, groups=x.shape[1] if groups < 0 else groups)

    return convolve


CONTRACTION = [
    Case("conv1d", _conv(1), ((2, 6, 9), (8, 6, 3), (8,)), ("0.0", "0.1", "1.0", "1.1", "2.0")),
    Case("conv2d", _conv(2), ((2, 6, 7, 7), (8, 6, 3, 3), (8,)), ("0.0", "0.1", "1.0", "1.1", "2.0")),
    Case("conv2d 1x1", _conv(2, stride=2), ((2, 6, 7, 7), (8, 6, 1, 1)), ("0.0", "0.1", "1.0", "1.1")),
    Case("conv3d", _conv(3, dilation=2), ((2, 4, 7, 7, 7), (6, 4, 3, 3, 3)), ("0.0", "0.1", "1.0", "1.1")),
    Case("conv grouped", _conv(2, 2), ((2, 8, 5, 5), (12, 4, 3, 3), (12,)), ("0.0", "0.1", "1.0", "1.1", "2.0")),
    Case("conv depthwise", _conv(2, -1), ((2, 8, 5, 5), (8, 1, 3, 3), (8,)), ("0.0", "0.1", "1.0", "2.0")),
    Case("conv multiplier", _conv(2, -1), ((2, 8, 5, 5), (24, 1, 3, 3), (24,)), ("0.0", "0.1", "1.0", "2.0")),
    Case("conv of constant", lambda w: F.conv2d(fixed(1, 6, 5, 5), w), ((8, 6, 3, 3),), ("0.0",)),
    Case("transposed", _transposed(), ((2, 6, 5, 5), (6, 8, 3, 3), (8,)), ("0.0", "0.1", "1.0", "1.1", "2.0")),
    Case(
        "transposed grouped", _transposed(2), ((2, 8, 5, 5), (8, 6, 3, 3), (12,)), ("0.0", "0.1", "1.0", "1.1", "2.0")
    ),
    Case("transposed depthwise", _transposed(-1), ((2, 8, 5, 5), (8, 3, 3, 3), (24,)), ("0.0", "0.1", "1.0", "2.0")),
    Case("mm", lambda a, b: a @ b, ((4, 6), (6, 8)), ("0.0", "0.1", "1.0", "1.1")),
    Case("bmm", lambda a, b: torch.bmm(a, b), ((4, 6, 5), (4, 5, 8)), ("0.0", "0.1", "0.2", "1.0", "1.1", "1.2")),
    Case(
        "addmm", lambda b, x, w: torch.addmm(b, x, w.t()), ((8,), (4, 6), (8, 6)), ("0.0", "1.0", "1.1", "2.0", "2.1")
    ),
    Case(
        "baddbmm",
        lambda b, x, y: torch.baddbmm(b, x, y),
        ((1, 6, 8), (4, 6, 5), (4, 5, 8)),
        ("0.1", "0.2", "1.0", "1.1", "1.2", "2.0", "2.1", "2.2"),
    ),
    Case(
        "linear 3d", lambda x, w, b: F.linear(x, w, b), ((4, 5, 6), (8, 6), (8,)), ("0.0", "0.2", "1.0", "1.1", "2.0")
    ),
    Case(
        "linear op", lambda x, w, b: aten.linear(x, w, b), ((4, 6), (8, 6), (8,)), ("0.0", "0.1", "1.0", "1.1", "2.0")
    ),
    Case("mv", lambda a, v: torch.mv(a, v), ((4, 6), (6,)), ("0.0", "0.1", "1.0")),
    Case("dot", lambda a, b: torch.dot(a, b), ((6,), (6,)), ("0.0", "1.0")),
    Case("vdot", lambda a, b: torch.vdot(a, b), ((6,), (6,)), ("0.0", "1.0")),
    Case("einsum", lambda a, b: torch.einsum("bic,oc->bio", a, b), ((4, 5, 6), (8, 6)), ("0.0", "0.2", "1.0", "1.1")),
    *(
        Case(f"{name} of complex numbers", function, shapes, free, make=complex_numbers)
        for name, function, shapes, free in (
            ("mm", lambda a, b: a @ b.mH, ((4, 6), (8, 6)), ("0.0", "0.1", "1.0", "1.1")),
            ("einsum", lambda a, b: torch.einsum("bix,iox->box", a, b), ((3, 6, 4), (6, 8, 4)), ("0.0", "0.1", "0.2", "1.0", "1.1", "1.2")),
            ("addmm", lambda b, x, w: torch.addmm(b, x, w.t()).abs(), ((8,), (4, 6), (8, 6)), ("0.0", "1.0", "1.1", "2.0", "2.1")),
            ("conv2d", _conv(2), ((2, 6, 7, 7), (8, 6, 3, 3), (8,)), ("0.0", "0.1", "1.0", "1.1", "2.0")),
            ("pointwise", lambda x, y: torch.view_as_real(x.conj() * y.sgn() + x.imag), PAIR, PAIRED),
            ("mean", lambda x: x.mean(1), X, ALL3),
            ("var", lambda x: x.var(1), X, ALL3),
        )
    ),
    Case("mm constant", lambda a: a @ fixed(6, 5), ((4, 6),), ("0.0",)),
    Case(
        "attention",
        lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=0.5)[0],
        ((2, 4, 3, 8), (2, 4, 5, 8), (2, 4, 5, 8)),
        ("0.0", "0.1", "0.2", "0.3", "1.0", "1.1", "1.3", "2.0", "2.1", "2.3"),
    ),
]  # fmt: skip

_BN = (("0.0", "0.1", "0.2", "1.0", "2.0", "3.0", "4.0"), ((4, 6, 5), (6,), (6,), (6,), (6,)))


def _batch_norm(training: bool) -> Callable[..., torch.Tensor]:
    def normalise(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, m.clone(), v.clone(), w, b, training=training)

    return normalise


NORMALISATION = [
    Case("batch_norm eval", _batch_norm(False), _BN[1], _BN[0], make=positive),
    Case(
        "batch_norm legit",
        lambda x, w, b, m, v: aten._native_batch_norm_legit(x, w, b, m.clone(), v.clone(), False, 0.1, 1e-5),
        _BN[1],
        _BN[0],
        make=positive,
    ),
    Case(
        "batch_norm no training",
        lambda x, w, b, m, v: aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5),
        _BN[1],
        _BN[0],
        make=positive,
    ),
    Case(
        "batch_norm no update",
        lambda x, w, b, m, v: aten._batch_norm_no_update(x, w, b, m, v, 0.1, 1e-5)[0],
        _BN[1],
        _BN[0],
        make=positive,
    ),
    Case(
        "batch_norm with update",
        lambda x, w, b, m, v: aten._batch_norm_with_update(x, w, b, m.clone(), v.clone(), 0.1, 1e-5)[0].clone(),
        _BN[1],
        _BN[0],
        make=positive,
    ),
    Case(
        "instance_norm",
        lambda x, w, b: F.instance_norm(x * fixed(2, 1, 1, 1), weight=w, bias=b),
        ((6, 5, 5), (6,), (6,)),
        ("0.0", "0.1", "0.2", "1.0", "2.0"),
    ),
    Case(
        "layer_norm",
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b),
        ((4, 5, 6), (6,), (6,)),
        ("0.0", "0.1", "0.2", "1.0", "2.0"),
    ),
    Case(
        "layer_norm 2 dims",
        lambda x, w: F.layer_norm(x, x.shape[-2:], w),
        ((4, 5, 6), (5, 6)),
        ("0.0", "0.1", "0.2", "1.0", "1.1"),
    ),
    Case("rms_norm", lambda x, w: F.rms_norm(x, x.shape[-1:], w), ((4, 5, 6), (6,)), ("0.0", "0.1", "0.2", "1.0")),
    Case(
        "group_norm groups",
        lambda x, w, b: F.group_norm(x, x.shape[1] // 2, w, b),
        ((2, 8, 5), (8,), (8,)),
        ("0.0", "0.1", "1.0", "2.0"),
        "groups",
    ),
    Case(
        "group_norm positions",
        lambda x, w, b: F.group_norm(x, 2, w, b),
        ((2, 8, 5), (8,), (8,)),
        ("0.0", "0.1", "1.0", "2.0"),
        "positions",
    ),
    Case(
        "group_norm one",
        lambda x, w, b: F.group_norm(x, 1, w, b),
        ((2, 8, 5), (8,), (8,)),
        ("0.0", "0.1", "1.0", "2.0"),
    ),
    Case("softmax", lambda x: x.softmax(1), X, ALL3),
    Case("safe_softmax", lambda x: aten._safe_softmax(x, -1), X, ALL3),
    Case("log_softmax", lambda x: x.log_softmax(-1), X, ALL3),
    Case("cumsum", lambda x: x.cumsum(1), X, ("0.0", "0.2")),
    Case("logcumsumexp", lambda x: x.logcumsumexp(2), X, ("0.0", "0.1")),
    Case(
        "weight_norm",
        lambda v, g: aten._weight_norm_interface(v, g, 0)[0],
        ((8, 6, 3), (8, 1, 1)),
        ("0.0", "0.1", "0.2", "1.0"),
    ),
    Case("renorm", lambda x: x.renorm(2, 0, 0.5), X, ALL3),
]


def _reduce(
    name: str, *args: object, make: Callable[[Sequence[int]], torch.Tensor] = torch.randn, **options: object
) -> list[Case]:
    operator = getattr(aten, name)
    return [
        Case(f"{name} dim {dim}", lambda x, d=dim: operator(x, *args, d, **options), X, ALL3, make=make)
        for dim in ([0], [1, 2], [-1])
    ]


REDUCTION = [
    *(case for name in ("mean", "sum", "nansum", "amax", "amin", "logsumexp") for case in _reduce(name)),
    *_reduce("mean", keepdim=True),
    *_reduce("linalg_vector_norm", 2),
    Case("norm", lambda x: aten.norm(x, 2, [1], True), X, ALL3),
    Case("var", lambda x: x.var(1), X, ALL3),
    Case("std", lambda x: x.std((0, 2), keepdim=True), X, ALL3),
    Case("var_mean", lambda x: torch.var_mean(x, 1), X, ALL3),
    Case("std_mean", lambda x: torch.std_mean(x, (0, 1)), X, ALL3),
    Case("prod", lambda x: x.prod(1), X, ALL3),
    Case("any", lambda x: (x > 3).any(1), X, ALL3),
    Case("all", lambda x: (x > 3).all(1), X, ALL3),
    Case("count_nonzero", lambda x: x.count_nonzero(1), X, ALL3),
    Case("sum all", lambda x: x.sum(), X, ALL3),
    Case("max all", lambda x: x.max(), X, ALL3),
    Case("max of two", lambda x, y: torch.max(x, y), PAIR, PAIRED),
    *(
        Case(f"{name} dim", lambda x, f=getattr(torch, name): f(x, 1), X, ("0.0", "0.2"))
        for name in ("max", "min", "median", "nanmedian", "mode", "argmax", "argmin", "sort", "cummax", "cummin")
    ),
    Case("kthvalue", lambda x: x.kthvalue(2, 1), X, ("0.0", "0.2")),
    Case("aminmax", lambda x: torch.aminmax(x, dim=1), X, ("0.0", "0.2")),
    Case("topk", lambda x: x.topk(3, 1), X, ("0.0", "0.2")),
]

IMAGE = ((2, 6, 8, 8),)
CHANNELS = ("0.0", "0.1")
SPATIAL = [
    Case("avg_pool1d", lambda x: F.avg_pool1d(x, 2), ((2, 6, 8),), CHANNELS),
    Case("avg_pool2d", lambda x: F.avg_pool2d(x, 2), IMAGE, CHANNELS),
    Case("avg_pool3d", lambda x: F.avg_pool3d(x, 2), ((2, 6, 4, 4, 4),), CHANNELS),
    Case("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 3), ((2, 6, 8),), CHANNELS),
    Case("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, 3), IMAGE, CHANNELS),
    Case("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 2), ((2, 6, 4, 4, 4),), CHANNELS),
    Case("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, 3), IMAGE, CHANNELS),
    Case("adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 2), ((2, 6, 4, 4, 4),), CHANNELS),
    Case("max_pool2d", lambda x: F.max_pool2d(x, 2), IMAGE, CHANNELS),
    Case("max_pool3d", lambda x: F.max_pool3d(x, 2), ((2, 6, 4, 4, 4),), CHANNELS),
    *(
        Case(f"{mode} pad {rank}d", lambda x, r=rank, m=mode: F.pad(x, (1, 1) * r, mode=m), ((2, 6) + (4,) * rank,), CHANNELS)
        for mode in ("reflect", "replicate")
        for rank in (1, 2, 3)
    ),
    *(
        Case(f"upsample {mode} {rank}d", lambda x, m=mode: F.interpolate(x, scale_factor=2.0, mode=m), ((2, 6) + (4,) * rank,), CHANNELS)
        for mode, rank in (
            ("nearest", 1), ("nearest", 2), ("nearest", 3), ("nearest-exact", 1), ("nearest-exact", 2),
            ("nearest-exact", 3), ("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3),
        )
    ),
    *(
        Case(f"{mode} antialias", lambda x, m=mode: F.interpolate(x, scale_factor=0.5, mode=m, antialias=True), IMAGE, CHANNELS)
        for mode in ("bilinear", "bicubic")
    ),
    Case("rfft", lambda x: torch.view_as_real(torch.fft.rfft(x, dim=2)), X, ("0.0", "0.1")),
    Case("fft", lambda x: torch.view_as_real(torch.fft.fft(torch.complex(x, x), dim=1)), X, ("0.0", "0.2")),
    Case("polar", lambda x: torch.view_as_real(torch.polar(x, x)), X, ("0.0", "0.1", "0.2")),
    Case("conj_physical", lambda x: torch.view_as_real(torch.conj_physical(torch.complex(x, x))), X, ("0.0", "0.1", "0.2")),
    Case("_conj", lambda x: torch.view_as_real(torch.resolve_conj(torch.complex(x, x).conj())), X, ("0.0", "0.1", "0.2")),
    Case("irfft", lambda x: torch.fft.irfft(torch.complex(x, x), dim=2), X, ("0.0", "0.1")),
    Case("grid_sampler_2d", lambda x: F.grid_sample(x, fixed(2, 3, 3, 2), align_corners=False), IMAGE, ("0.1",)),
    Case("grid_sampler_3d", lambda x: F.grid_sample(x, fixed(2, 2, 2, 2, 3), align_corners=False), ((2, 6, 4, 4, 4),), ("0.1",)),
]  # fmt: skip


def _shuffled(groups: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def shuffle(x: torch.Tensor) -> torch.Tensor:
        n, c, *rest = x.shape
        return x.view(n, groups, c // groups, *rest).transpose(1, 2).reshape(n, c, *rest)

    return shuffle


MOVEMENT = [
    Case("flatten", lambda x: (x.unsqueeze(-1) * fixed(5)).flatten(1), ((4, 6),), ("0.0", "0.1")),
    Case("flatten channel first", lambda x: x.view(x.shape[0], -1), ((4, 6, 1),), ("0.0", "0.1")),
    Case("merge", lambda x: x.reshape(-1, x.shape[-1]), X, ("0.0", "0.2")),
    Case("view inner", lambda x: x.view(x.shape[0], 2, -1), ((4, 6),), ("0.0", "0.1"), "dim 1"),
    Case("view outer", lambda x: x.view(x.shape[0], -1, 3), ((4, 6),), ("0.0", "0.1"), "dim 0"),
    Case("view frozen", lambda x: x.view(x.shape[0], 2, 3), ((4, 6),), ("0.0",), "frozen"),
    Case("view of nothing", lambda x: x[:0].view(0, x.shape[1], x.shape[2]), X, ALL3),
    Case("view of nothing split", lambda x: x[:, :, :0].view(x.shape[0], 2, 3, 0), X, ("0.2",)),
    Case("unsafe view", lambda x: aten._unsafe_view(x, [x.shape[0], x.shape[1], 1, x.shape[2]]), X, ALL3),
    Case("view copy", lambda x: aten.view_copy(x, [*x.shape, 1]), X, ALL3),
    Case("reshape alias", lambda x: aten._reshape_alias(x, list(x.shape), list(x.stride())), X, ALL3),
    Case("reshape copy", lambda x: aten._reshape_copy(x, [*x.shape, 1]), X, ALL3),
    Case("channel shuffle by views", _shuffled(2), ((2, 8, 5),), ("0.0", "0.1", "0.2"), "dim 1"),
    Case(
        "there and back",
        lambda x: (x.unsqueeze(-1) * fixed(5)).flatten(1).unflatten(1, (-1, 5)),
        ((4, 6),),
        ("0.0", "0.1"),
    ),
    Case("permute", lambda x: x.permute(2, 0, 1), X, ALL3),
    Case("permute negative", lambda x: x.permute(0, -1, 1), X, ALL3),
    Case("permute copy", lambda x: aten.permute_copy(x, [1, 2, 0]), X, ALL3),
    Case("transpose", lambda x: x.transpose(-1, 0), X, ALL3),
    Case("transpose copy", lambda x: aten.transpose_copy(x, 0, 2), X, ALL3),
    Case("t", lambda x: x.t(), ((4, 6),), ("0.0", "0.1")),
    Case("t copy", lambda x: aten.t_copy(x), ((4, 6),), ("0.0", "0.1")),
    Case("squeeze", lambda x: x.squeeze(1), ((4, 1, 6),), ("0.0", "0.2")),
    Case("squeeze all", lambda x: x.squeeze(), ((4, 1, 6),), ("0.0", "0.2")),
    Case("squeeze dims", lambda x: x.squeeze((1, 2)), ((4, 1, 6),), ("0.0", "0.2")),
    Case("squeeze copy", lambda x: aten.squeeze_copy(x, 1), ((4, 1, 6),), ("0.0", "0.2")),
    Case("unsqueeze", lambda x: x.unsqueeze(1).unsqueeze(-1), X, ALL3),
    Case("unsqueeze copy", lambda x: aten.unsqueeze_copy(x, 1), X, ALL3),
    Case("expand", lambda x, y: x.expand_as(y) * y, ((4, 1, 5), (4, 6, 5)), ("0.0", "0.2", "1.0", "1.1", "1.2")),
    Case("expand copy", lambda x: aten.expand_copy(x, [3, *x.shape]), X, ALL3),
    Case("repeat", lambda x: x.repeat(1, 3, 1), X, ALL3),
    Case("repeat new dim", lambda x: x.repeat(2, 1, 2, 1), X, ALL3),
    Case("repeat_interleave", lambda x: x.repeat_interleave(2, 1), X, ALL3),
    Case("flip", lambda x: x.flip(1, -1), X, ALL3),
    Case("roll half", lambda x: x.roll(x.shape[1] // 2, 1), X, ALL3, "free"),
    Case("roll by a number", lambda x: x.roll(2, 1), X, ALL3, "anchored"),
    Case("roll back", lambda x: x.roll(-2, 1), X, ALL3, "anchored"),
    Case("roll frozen", lambda x: x.roll(2, 1), X, ("0.0", "0.2"), "frozen"),
    Case("roll flat", lambda x: x.roll(2), X, ()),
    Case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), ((2, 16, 3, 3),), ("0.0", "0.1")),
    Case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), ((2, 4, 4, 4),), ("0.0", "0.1")),
    Case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), ((2, 8, 3, 3),), ("0.0", "0.1")),
    Case("im2col", lambda x: F.unfold(x, 3), ((2, 6, 5, 5),), ("0.0", "0.1")),
    Case("col2im", lambda x: F.fold(x, (5, 5), 3), ((2, 54, 9),), ("0.0", "0.1")),
    Case("unfold", lambda x: x.unfold(2, 3, 1), X, ("0.0", "0.1")),
    Case("as_strided", lambda x: x.as_strided((4, 6), (1, 4)), ((4, 6),), ()),
    Case("as_strided same", lambda x: x.as_strided(x.shape, x.stride()), ((4, 6),), ("0.0", "0.1")),
    Case("as_strided in place", lambda x: x.clone().as_strided_(x.shape, (x.shape[1], 1)), ((4, 6),), ("0.0", "0.1")),
    Case("diagonal", lambda x: x.diagonal(), ((6, 6),), ()),
    Case("diag_embed", lambda x: x.diag_embed(), ((4, 6),), ()),
    Case("tril", lambda x: x.tril(), X, ("0.0",)),
    Case("triu", lambda x: x.triu(), X, ("0.0",)),
    Case("rot90", lambda x: aten.rot90(x, 1, [0, 1]), ((6, 6),), ()),
    Case("trace", lambda x: aten.trace(x), ((6, 6),), ()),
    Case("complex", lambda x: torch.view_as_real(torch.view_as_complex(x)), ((4, 6, 2),), ("0.0", "0.1")),
    Case("neg_view", lambda x: aten._neg_view(x), X, ALL3),
]

PIECES = [
    Case("cat", lambda x, y: torch.cat([x, y], 1), ((4, 6, 5), (4, 8, 5)), PAIRED),
    Case("cat with constant", lambda x: torch.cat([fixed(4, 2, 5), x], 1), X, ("0.1",)),
    Case("cat with itself", lambda x: torch.cat([x, x.flip(1)], -2), X, ALL3),
    Case("stack", lambda x, y: torch.stack([x, y], 1), PAIR, PAIRED),
    Case("split", lambda x: x.split(x.shape[1] // 2, 1), X, ALL3),
    Case("split_with_sizes", lambda x: torch.split(x, [x.shape[1] // 2, x.shape[1] - x.shape[1] // 2], 1), X, ALL3),
    Case("split frozen", lambda x: x.split([2, 4], 1), X, ("0.0", "0.2"), "frozen"),
    Case("chunk", lambda x: x.chunk(2, 1), X, ALL3),
    Case("unsafe_split", lambda x: aten.unsafe_split(x, x.shape[1] // 2, 1), X, ALL3),
    Case("unsafe_split_with_sizes", lambda x: aten.unsafe_split_with_sizes(x, [x.shape[1] // 2] * 2, 1), X, ALL3),
    Case("chunk and swap", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), X, ALL3),
    Case("slice half", lambda x: x[:, : x.shape[1] // 2], X, ALL3, "free"),
    Case("slice by number", lambda x: x[:, :2], X, ALL3, "anchored"),
    Case("slice from number", lambda x: x[:, 2:], X, ALL3, "anchored"),
    Case("slice from the end", lambda x: x[:, -2:], X, ALL3, "anchored"),
    Case("slice off the end", lambda x: x[:, :-2], X, ALL3, "anchored"),
    Case("slice frozen", lambda x: x[:, 1:3], X, ("0.0", "0.2"), "frozen"),
    Case("slice stride", lambda x: x[:, 1::2], ((4, 8, 5),), ALL3),
    Case("slice stride of three", lambda x: x[:, ::3], ((4, 9, 5),), ALL3),
    Case("slice whole", lambda x: x[:, : x.shape[1]], X, ALL3),
    Case("slice copy", lambda x: aten.slice_copy(x, 1, 0, x.shape[1] // 2), X, ALL3, "free"),
    Case("pad channels", lambda x: F.pad(x, (0, 0, 2, 1)), X, ALL3),
    Case("pad negative", lambda x: F.pad(x, (0, 0, -1, 0)), X, ("0.0", "0.2")),
    Case("slice_scatter", lambda x, y: aten.slice_scatter(x, y, 1, 0, 6), PAIR, ("0.0", "0.2", "1.0", "1.2")),
    Case("slice_scatter of a stretch", lambda x, y: aten.slice_scatter(x, y, 1, 2, 5), ((4, 6, 5), (4, 3, 5)), ("0.0", "0.2", "1.0", "1.2")),
    Case("select_scatter", lambda x, y: aten.select_scatter(x, y, 1, 0), ((4, 6, 5), (4, 5)), ("0.0", "0.2", "1.0", "1.1")),
    Case("diagonal_scatter", lambda x, y: aten.diagonal_scatter(x, y, 0, 2, 0), ((6, 4, 6), (4, 6)), ("0.1", "1.0")),
    Case("slice_backward", lambda x: aten.slice_backward(x, [4, 8, 5], 1, 0, 6, 1), X, ()),
    Case("select_backward", lambda x: aten.select_backward(x, [4, 6, 3, 5], 2, 0), X, ()),
]  # fmt: skip

CREATION = [
    *(
        Case(name, lambda x, f=getattr(torch, name): f(x.shape) * 0 + x, X, ALL3)
        for name in ("ones", "zeros", "rand", "randn")
    ),
    Case("empty", lambda x: torch.empty(x.shape).fill_(1.0) + x, X, ALL3),
    *(
        Case(name, lambda x, f=getattr(torch, name): f(x) * 0 + x, X, ALL3)
        for name in ("ones_like", "zeros_like", "rand_like", "randn_like")
    ),
    Case("empty_like", lambda x: torch.empty_like(x).fill_(1.0) * x, X, ALL3),
    Case("full", lambda x: torch.full(x.shape, 2.0) * x, X, ALL3),
    Case("full_like", lambda x: torch.full_like(x, 2.0) * x, X, ALL3),
    Case("randint", lambda x: torch.randint(2, 3, x.shape) * x, X, ALL3),
    Case("randint_like", lambda x: torch.randint_like(x, 2, 3) * x, X, ALL3),
    Case("new_full", lambda x: x.new_full(x.shape, 2.0) * x, X, ALL3),
    Case("new_ones", lambda x: x.new_ones(x.shape) * x, X, ALL3),
    Case("new_zeros", lambda x: x.new_zeros(x.shape) + x, X, ALL3),
    Case("new_empty", lambda x: x.new_empty(x.shape).fill_(1.0) + x, X, ALL3),
    Case("new_empty_strided", lambda x: x.new_empty_strided(x.shape, x.stride()).fill_(1.0) + x, X, ALL3),
    Case("empty_strided", lambda x: torch.empty_strided(x.shape, x.stride()).fill_(1.0) + x, X, ALL3),
    Case("empty_permuted", lambda x: torch.empty_permuted(x.shape, (0, 1, 2)).fill_(1.0) + x, X, ALL3),
    Case("scalar_tensor", lambda x: torch.scalar_tensor(2.0) * x, X, ALL3),
    Case("arange", lambda x: torch.arange(6.0).view(6, 1) + x, X, ("0.0", "0.2")),
    Case("linspace", lambda x: torch.linspace(0, 1, 5) + x, X, ("0.0", "0.1")),
    Case("logspace", lambda x: torch.logspace(0, 1, 5) + x, X, ("0.0", "0.1")),
    Case("eye", lambda x: torch.eye(6, 5) + x, X, ("0.0",)),
    Case("tril_indices", lambda x: torch.tril_indices(3, 3).float() + x, ((4, 2, 6),), ("0.0",)),
    Case("triu_indices", lambda x: torch.triu_indices(3, 3).float() + x, ((4, 2, 6),), ("0.0",)),
    Case("randperm", lambda x: torch.randperm(5) * 0 + x, X, ("0.0", "0.1")),
    Case("multinomial", lambda x: torch.multinomial(x, 1).float() * 0, ((4, 6),), (), make=positive),
]


def alike(dim: int, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """An index along one dimension of ``x``, repeated along the others."""
    shape = [-1 if d == dim else 1 for d in range(x.ndim)]
    return index.view(shape).expand([-1 if d == dim else size for d, size in enumerate(x.shape)])


INDEXING = [
    Case("select", lambda x: x[:, 2], X, ("0.0", "0.2")),
    Case("unbind", lambda x: x.unbind(1), X, ("0.0", "0.2")),
    Case("index_select", lambda x: x.index_select(1, indices(4)), X, ("0.0", "0.2")),
    Case("index", lambda x: x[:, indices(4)], X, ("0.0", "0.2")),
    Case("index two dims", lambda x: x[indices(4), indices(4)], X, ("0.2",)),
    Case("index two dims apart", lambda x: x[indices(4), :, indices(4)], X, ("0.1",)),
    Case("index the last two dims", lambda x: x[:, indices(2, 1), indices(4)], X, ("0.0",)),
    Case("index by mask", lambda x: x[torch.tensor([True, False, True, True])], X, ("0.1", "0.2")),
    Case("index by mask over two dims", lambda x: x[torch.ones(4, 6, dtype=torch.bool)], X, ("0.2",)),
    Case("embedding", lambda w: F.embedding(indices(3, 2), w), ((8, 6),), ("0.1",)),
    Case(
        "_pack_padded_sequence",
        lambda x: torch._VF._pack_padded_sequence(x, torch.tensor([6, 4, 4, 2]), True)[0],
        X,
        ("0.2",),
    ),
    Case("gather", lambda x: x.gather(1, indices(4, 2, 5)), X, ()),
    Case("gather whole slices", lambda x: x.gather(1, alike(1, x, indices(4))), X, ("0.0", "0.2")),
    Case("gather by a table", lambda x, i: x.gather(1, i % 6), PAIR, ("0.0", "0.2", "1.0", "1.1", "1.2"), make=integers),
    Case("scatter", lambda x: x.scatter(1, indices(4, 2, 5), 1.0), X, ()),
    Case("scatter a number", lambda x: x.scatter(1, alike(1, x, indices(6)), 1.0), X, ("0.0", "0.2")),
    Case("scatter multiplied", lambda x: x.scatter(1, alike(1, x, indices(6)), 2.0, reduce="multiply"), X, ("0.0", "0.2")),
    Case("scatter in part", lambda x, y: x.scatter(1, alike(1, x, indices(6))[:, :, :2], y), PAIR, ("0.0", "1.0")),
    *(
        Case(name, lambda x, y, f=function: f(x, 1, alike(1, x, indices(6)), y), PAIR, ("0.0", "0.2", "1.0", "1.2"))
        for name, function in (
            ("scatter of a tensor", torch.scatter),
            ("scatter_add", torch.scatter_add),
            ("scatter_reduce", partial(torch.scatter_reduce, reduce="amax")),
        )
    ),
    Case("scatter_add by an index that differs", lambda x, y: x.scatter_add(1, indices(4, 6, 5), y), PAIR, ()),
    Case("scatter_add along channels", lambda x, y: x.scatter_add(-1, alike(2, x, indices(5)), y), PAIR, ("0.0", "0.1", "1.0", "1.1")),
    Case("index_put", lambda x: x.index_put((indices(2),), torch.tensor(1.0)), X, ("0.1", "0.2")),
    Case("index_put in the middle", lambda x, y: aten.index_put(x, [None, indices(2)], y), ((4, 6, 5), (2, 5)), ("0.0", "0.2", "1.1")),
    Case("index_put of constants", lambda x: x.index_put((indices(2),), fixed(2, 6, 1)), X, ("0.2",)),
    Case("index_put apart", lambda x, y: aten.index_put(x, [indices(2), None, indices(2)], y), ((4, 6, 5), (2, 6)), ("0.1", "1.1")),
    Case("index_put added", lambda x, y: x.index_put((indices(2),), y, accumulate=True), ((4, 6, 5), (2, 6, 5)), ("0.1", "0.2", "1.1", "1.2")),
    Case("index_put by mask", lambda x: x.index_put((x > 0,), torch.tensor(7.0)), X, ALL3),
    Case("index_put by mask of rows", lambda x: x.index_put((fixed(4, 6) > 0.5,), torch.ones(1)), X, ("0.2",)),
    Case("index_put by mask of many", lambda x, y: x.index_put((fixed(4) > 0,), y), PAIR, ("0.1", "0.2", "1.1", "1.2")),
    Case("index_add", lambda x, y: x.index_add(1, indices(6), y), PAIR, ("0.0", "0.2", "1.0", "1.2")),
    Case("index_copy", lambda x, y: x.index_copy(1, torch.arange(6), y), PAIR, ("0.0", "0.2", "1.0", "1.2")),
    Case("index_reduce", lambda x, y: x.index_reduce(1, indices(6), y, "amax"), PAIR, ("0.0", "0.2", "1.0", "1.2")),
    Case("index_fill", lambda x: x.index_fill(1, indices(2), 3.0), X, ("0.0", "0.2")),
    Case("masked_scatter", lambda x, y: x.masked_scatter(fixed(6, 5) > 0.5, y), PAIR, ()),
    Case("masked_scatter of rows", lambda x, y: x.masked_scatter(fixed(4, 6, 1) > 0.5, y), ((4, 6, 5), (24, 5)), ("0.2", "1.1")),
    Case("masked_scatter expanded", lambda x, y: x.masked_scatter((fixed(4, 6, 1) > 0.5).expand_as(x), y), ((4, 6, 5), (24, 5)), ("0.2", "1.1")),
    Case("masked_scatter by a mask that differs", lambda x, y: x.masked_scatter(fixed(4, 6, 1).expand_as(x) + x > 0.5, y), ((4, 6, 5), (24, 5)), ()),
]  # fmt: skip

OUTSIDE = [
    Case("_sparse_addmm", lambda x: torch.sparse.mm(fixed(5, 4).to_sparse(), x.to(torch.float32)), ((4, 6),), ("0.1",)),
    Case("structprune::opaque", lambda x: run_opaque([x], "a test", lambda given: [given[0] * 2])[0], X, ()),
    Case("structprune::leaves", lambda x: (torch.ops.structprune.leaves(x, "a test"), x * 2)[1], X, ()),
    Case("out=", lambda x, y: torch.mul(x, y, out=torch.empty_like(x)), PAIR, PAIRED),
    Case("view.dtype", lambda x: x.contiguous().view(torch.uint8), X, ("0.0", "0.1")),
]

# What not every supported PyTorch has.
LATER = {
    "_grouped_mm": Case(
        "_grouped_mm",
        lambda a, b: aten._grouped_mm(a, b, torch.tensor([3, 4], dtype=torch.int32)),
        ((4, 16), (2, 16, 8)),  # rows of 16 bytes, after the cut too
        ("0.1", "1.1", "1.2"),
    ),
}

CASES = [
    *(case for name, case in LATER.items() if hasattr(aten, name)),
    *ELEMENTWISE,
    *CONTRACTION,
    *NORMALISATION,
    *REDUCTION,
    *SPATIAL,
    *MOVEMENT,
    *PIECES,
    *CREATION,
    *INDEXING,
    *OUTSIDE,
]

# Operators that only other devices' backends run; their schemas are those of tested ones.
OTHER_DEVICES = {
    "aten::cudnn_convolution", "aten::convolution_overrideable", "aten::mkldnn_convolution", "aten::_convolution",
    "aten::cudnn_batch_norm", "aten::_scaled_dot_product_flash_attention", "aten::_fused_rms_norm",
    "aten::_scaled_dot_product_efficient_attention", "aten::mkldnn_max_pool2d",
}  # fmt: skip
