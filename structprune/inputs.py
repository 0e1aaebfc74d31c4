"""Example inputs: given as a tensor, a tuple, a dict, a list of such or a callable, or inferred."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from structprune.compat import Convolution, fake_tensors, tree_map_only
from structprune.errors import InputError

# Tried in this order where nothing else says how large an image is.
_IMAGE_SIDES = (224, 299, 256, 384, 512, 128, 64, 32, 28)
_SIGNAL_LENGTHS = (224, 1024, 16000, 64, 16)
_VIDEO = ((16, 112, 112), (8, 224, 224), (16, 64, 64), (8, 16, 16))


@dataclass(frozen=True)
class Invocation:
    """One call of a model: with arguments, or through a function of the model."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    function: Callable[[nn.Module], Any] | None = None

    def __call__(self, model: nn.Module) -> Any:
        """Call ``model`` and return its output."""
        return self.function(model) if self.function is not None else model(*self.args, **self.kwargs)

    def mapped(self, convert: Callable[[torch.Tensor], torch.Tensor]) -> Invocation:
        """The same call with every tensor argument converted."""
        args, kwargs = tree_map_only(torch.Tensor, convert, (self.args, self.kwargs))
        return Invocation(args, kwargs, self.function)

    def for_training(self, batch: int) -> Invocation:
        """The same call with a batch of two or more, which batch normalisation asks for in training."""

        def repeated(tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat([tensor] * batch) if tensor.ndim and tensor.shape[0] == 1 else tensor

        return self.mapped(repeated)

    def __str__(self) -> str:
        if self.function is not None:
            return f"the callable {getattr(self.function, '__name__', self.function)!r}"
        parts = [describe(a) for a in self.args] + [f"{k}={describe(v)}" for k, v in self.kwargs.items()]
        return f"({', '.join(parts)})"


Invocations = list[Invocation]


def describe(value: Any) -> str:
    """A short text for an argument: shape and dtype of a tensor, else its type."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__


def read_inputs(example_inputs: Any) -> Invocations:
    """Turn what a user hands over into calls.

    Raises:
        InputError: The type is not one of those that ``example_inputs`` takes.
    """
    if isinstance(example_inputs, (list, torch.Size)) and _is_shape(example_inputs):
        raise InputError(f"example_inputs is {example_inputs}. {_no_shape(example_inputs)}")
    if isinstance(example_inputs, list):
        if not example_inputs:
            raise InputError("example_inputs is an empty list: give at least one input, or None to have it inferred.")
        return [call for item in example_inputs for call in read_inputs(item)]
    if isinstance(example_inputs, Invocation):
        return [example_inputs]
    if isinstance(example_inputs, torch.Tensor):
        return [Invocation((example_inputs,)).mapped(_with_numbers)]
    if isinstance(example_inputs, tuple):
        return [Invocation(example_inputs).mapped(_with_numbers)]
    if isinstance(example_inputs, dict):
        return [Invocation((), dict(example_inputs)).mapped(_with_numbers)]
    if callable(example_inputs):
        return [Invocation(function=example_inputs)]
    raise InputError(
        f"example_inputs is a {type(example_inputs).__name__}; expected a tensor, a tuple of arguments, a dict of "
        "keyword arguments, a list of such calls, or a callable model -> output."
    )


def is_fake(tensor: torch.Tensor) -> bool:
    """Whether a tensor only pretends to be on its device."""
    known = fake_tensors()
    return known is not None and isinstance(tensor, known.FakeTensor)


def _with_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros for a float that has a shape only; integers are read.

    Raises:
        InputError: An integer tensor has no numbers.
    """
    if not is_fake(tensor):
        return tensor
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise InputError(
            f"example_inputs holds a FakeTensor of {describe(tensor)}: integers are read, give them as a real tensor."
        )
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def misread(calls: Invocations) -> str:
    """What calls that fail may have been meant as; empty where nothing comes to mind."""
    for call in calls:
        if _is_shape(call.args) and not call.kwargs:
            return _no_shape(call.args)
    tensors = [call.args for call in calls if all(isinstance(arg, torch.Tensor) for arg in call.args)]
    if len(tensors) == len(calls) > 1 and all(len(args) == 1 for args in tensors):
        return (
            "A list is several calls, one with each entry: give ([a, b],) for one argument that is a list, (a, b) for "
            "several arguments."
        )
    if len(tensors) == len(calls) == 1 and len(tensors[0]) > 1:
        return (
            "A tuple holds the arguments of one call: give ([a, b],) for one argument that is a list, ((a, b),) for "
            "one that is a tuple, [a, b] for several calls."
        )
    return ""


def _is_shape(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(isinstance(v, int) and not isinstance(v, bool) for v in values)


def _no_shape(sizes: Sequence[int]) -> str:
    shape = ", ".join(map(str, sizes))
    return f"That looks like a shape: give torch.randn({shape}), or torch.zeros({shape}, dtype=torch.long) for tokens."


def infer_inputs(model: nn.Module) -> Iterator[Invocations]:
    """Guesses at inputs that a model takes, best first: what it declares, then its first layer's size."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = reference.dtype if reference is not None else torch.float32
    device = reference.device if reference is not None else torch.device("cpu")
    for declared in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, declared, None)
        size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        if size is not None:
            yield [Invocation((torch.zeros(1, *size, dtype=dtype, device=device),))]
    dummy = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, dict):
        yield [Invocation((), dict(dummy))]
    for shape in _shapes(model):
        yield [Invocation((torch.zeros(shape, dtype=dtype, device=device),))]
    if any(isinstance(m, nn.Embedding) for m in model.modules()):
        yield [Invocation((torch.zeros(1, 16, dtype=torch.long, device=device),))]


def _shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Input shapes that the first weight of two or more dimensions reads."""
    weights = [(m, p) for m in model.modules() for p in m.parameters(recurse=False) if p.ndim >= 2]
    # A raw parameter that is registered first is a token or a table more often than the first layer.
    layers = [(m, p) for m, p in weights if isinstance(m, (Convolution, nn.Linear, nn.Embedding))]
    owner, weight = next(iter(layers or weights), (None, None))
    if weight is None or isinstance(owner, nn.Embedding):
        return
    channels = weight.shape[1] * int(getattr(owner, "groups", 1) or 1)
    if getattr(owner, "transposed", False):
        channels = weight.shape[0]
    if weight.ndim == 2:
        yield (1, channels)
        yield (1, 16, channels)
    elif weight.ndim == 3:
        yield from ((1, channels, length) for length in _SIGNAL_LENGTHS)
    elif weight.ndim == 4:
        yield from ((1, channels, side, side) for side in _IMAGE_SIDES)
    elif weight.ndim == 5:
        yield from ((1, channels, *size) for size in _VIDEO)
