"""A copy of a model, made ready to be timed: on its device, in its dtype, with its batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import TypedDict

from structprune.compat import accelerator, tree_leaves
from structprune.errors import InputError, OptionError, brief, described
from structprune.inputs import Invocation, Invocations
from structprune.measure.machine import device_name
from structprune.meta.given import check_module
from structprune.meta.replica import duplicate, like_parameter

_WARM_UP_SECONDS = 0.3
_WARM_UP_RUNS = 3


class LatencyOptions(TypedDict, total=False):
    """How ``measure_latency`` and ``compare`` run the models; every key may be left out.

    Attributes:
        device: ``"auto"`` (the accelerator that PyTorch reports, else the CPU), or a device. Default ``"auto"``.
        dtype: Floating-point dtype of weights and inputs, such as ``torch.bfloat16``. Default: the model's own.
        batch_size: Entries in a batch: the example inputs are repeated or cut to it. Default: as they are.
        channels_last: Whether images and kernels are laid out with the channels last. Default ``False``.
        compile: Whether ``torch.compile`` compiles the models first. Default ``False``.
        cuda_graph: Whether the forward is captured once and replayed (CUDA only). Default ``False``.
        min_seconds: Seconds that each model is timed for, at least. Default 3.
    """

    device: str | torch.device
    dtype: torch.dtype | None
    batch_size: int | None
    channels_last: bool
    compile: bool
    cuda_graph: bool
    min_seconds: float


@dataclass(frozen=True)
class Setting:
    """The options, read and checked."""

    device: torch.device
    dtype: torch.dtype | None = None
    batch_size: int | None = None
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    min_seconds: float = 3.0

    @property
    def device_name(self) -> str:
        """The device's own name."""
        return device_name(self.device)


def read_setting(options: LatencyOptions) -> Setting:
    """Check the options.

    Raises:
        OptionError: A name or a value cannot be used.
    """
    known = Setting.__dataclass_fields__
    if not isinstance(options, Mapping):
        raise OptionError(f"measure is {described(options)}: expected a dict of options, such as {{'device': 'cpu'}}.")
    for name in options:
        if name not in known:
            raise OptionError(f"{name!r} is not an option of a measurement; there are {', '.join(known)}.")
    device = _device(options.get("device", "auto"))
    setting = Setting(**{**options, "device": device})  # type: ignore[arg-type]
    if setting.dtype is not None and not (isinstance(setting.dtype, torch.dtype) and setting.dtype.is_floating_point):
        raise OptionError(
            f"dtype={described(setting.dtype)}: expected a floating-point torch.dtype, or None for the model's own."
        )
    if setting.batch_size is not None and (not isinstance(setting.batch_size, int) or setting.batch_size < 1):
        raise OptionError(f"batch_size={described(setting.batch_size)}: expected an integer of 1 or more, or None.")
    if not setting.min_seconds > 0:
        raise OptionError(f"min_seconds={described(setting.min_seconds)}: expected a number of seconds above 0.")
    if setting.cuda_graph and device.type != "cuda":
        raise OptionError(f"cuda_graph=True needs a CUDA device; this is {device}.")
    return setting


def _device(wanted: str | torch.device) -> torch.device:
    if wanted == "auto":
        return accelerator() or torch.device("cpu")
    try:
        device = torch.device(wanted)
        # A device that PyTorch knows but this machine lacks fails only when it is used.
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise OptionError(f"device={described(wanted)} cannot be used here ({brief(error)}).") from error
    if device.type == "meta":
        raise OptionError("device='meta' computes nothing, so there is nothing to time.")
    return device


class Runner:
    """One model, ready to be timed in blocks.

    The copy shares the weights of the model where device, dtype and layout stay as they are. It is
    in evaluation mode; the model that was handed over is not touched.
    """

    def __init__(self, model: nn.Module, calls: Invocations, setting: Setting) -> None:
        check_module(model)
        self.setting = setting
        self.name = type(model).__name__
        self.calls = [_prepared(call, setting) for call in calls]
        self.batch_size = _batch_of(self.calls)
        self.model = _copy(model, setting).eval()
        called: Callable[..., Any] = torch.compile(self.model) if setting.compile else self.model
        self._run = _captured(self._forward(called)) if setting.cuda_graph else self._forward(called)
        # Imported here: it brings setuptools, half of the time that importing structprune would take.
        from torch.utils.benchmark import Timer

        self._timer = Timer("run()", globals={"run": self._run}, num_threads=torch.get_num_threads())

    def warm_up(self) -> float:
        """Run for a while, so that clocks, caches and compilers settle; returns seconds a forward."""
        end = time.perf_counter() + _WARM_UP_SECONDS
        seconds: list[float] = []
        with torch.inference_mode():
            while time.perf_counter() < end or len(seconds) < _WARM_UP_RUNS:
                start = time.perf_counter()
                try:
                    self._run()
                    self.synchronize()
                except Exception as error:
                    raise InputError(
                        f"{self.name} does not run with {', '.join(map(str, self.calls))} on {self.setting.device}: "
                        f"{brief(error)}. Give example_inputs that fit the model, its dtype and the batch size."
                    ) from error
                seconds.append(time.perf_counter() - start)
        return min(seconds)

    def block(self, forwards: int) -> float:
        """Seconds a forward, as the mean of so many, synchronised."""
        with torch.inference_mode():
            return float(self._timer.timeit(forwards).mean)

    def once(self) -> Any:
        """Run one forward and wait for it."""
        with torch.inference_mode():
            out = self._run()
        self.synchronize()
        return out

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.setting.device.type != "cpu":
            torch.accelerator.synchronize(self.setting.device)

    def _forward(self, called: Callable[..., Any]) -> Callable[[], Any]:
        if len(self.calls) == 1 and self.calls[0].function is None:
            args, kwargs = self.calls[0].args, self.calls[0].kwargs
            return lambda: called(*args, **kwargs)
        return lambda: [call(called) for call in self.calls]  # type: ignore[arg-type]


def _copy(model: nn.Module, setting: Setting) -> nn.Module:
    """The model where and as it is to be run, sharing what need not change."""

    def placed(tensor: torch.Tensor) -> torch.Tensor:
        dtype = setting.dtype if tensor.is_floating_point() else None
        moved = tensor.detach().to(setting.device, dtype)
        # A forward may write buffers and what else a model holds; parameters it only reads.
        return _laid_out(moved if isinstance(tensor, nn.Parameter) else moved.clone(), setting)

    if isinstance(model, torch.jit.ScriptModule):
        # Its tensors live in C++, where no map reaches them.
        scripted: nn.Module = copy.deepcopy(model).to(setting.device, setting.dtype)
        return scripted
    return duplicate(model, lambda _name, tensor: like_parameter(tensor, placed(tensor)), placed)


def _laid_out(tensor: torch.Tensor, setting: Setting) -> torch.Tensor:
    if not setting.channels_last or tensor.ndim not in (4, 5):
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d)


def _prepared(call: Invocation, setting: Setting) -> Invocation:
    """The call with its tensors on the device, in the dtype and layout, with the batch asked for."""
    batch = _batch_of([call])

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if setting.batch_size is not None and tensor.ndim and tensor.shape[0] == batch:
            tensor = tensor[torch.arange(setting.batch_size, device=tensor.device) % batch]
        dtype = setting.dtype if tensor.is_floating_point() else None
        return _laid_out(tensor.detach().to(setting.device, dtype).clone(), setting)

    if call.function is not None and setting.batch_size is not None:
        raise OptionError(
            "batch_size cannot be used where example_inputs is a callable, which makes its own inputs: make them of "
            "the size that you want."
        )
    if setting.batch_size is not None and not batch:
        raise OptionError(
            f"batch_size={setting.batch_size} cannot be made of the example inputs {call}: their tensors have no first "
            "dimension in common, or it is 0. Give example inputs with the batch that you want."
        )
    return call.mapped(convert)


def _batch_of(calls: Invocations) -> int | None:
    """The first dimension of all tensor arguments, if it is one."""
    leaves = [leaf for call in calls for leaf in tree_leaves((call.args, call.kwargs))]
    sizes = {int(t.shape[0]) for t in leaves if isinstance(t, torch.Tensor) and t.ndim}
    return sizes.pop() if len(sizes) == 1 else None


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    """Record the kernels of one forward, and replay them without Python."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode():
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    return graph.replay
