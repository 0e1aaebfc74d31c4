"""What surrounds a forward on the meta device: mode, global state, constants, module paths."""

from __future__ import annotations

import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from structprune.meta.replica import walk


@contextmanager
def running(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a copy into a mode, with the global state that a trace needs, and restore it.

    Random numbers start from the same state every time: a layer that is dropped by chance must be
    dropped in every trace, or in none. Attention runs as the operators that it is made of: which
    fused kernel would be taken depends on sizes and strides.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    modes = {module: module.training for _, module in walk(model)}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        torch.default_generator.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model.train(training)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        for module, mode in modes.items():
            # To set an attribute of a module takes ten times as long as to read it.
            if module.training is not mode:
                module.training = mode


class ConstantsSeen(TorchFunctionMode):
    """Makes tensors of Python numbers on the CPU where they would be on the meta device and lose their values.

    Some functions want all their tensors on one device before any operator runs. What a forward made on the CPU, where
    it would be beside the model, follows the model to the meta device there. ``ran`` counts the operators that
    have run.
    """

    def __init__(self, ran: Callable[[], int]) -> None:
        super().__init__()
        self.made_any = False
        self._ran = ran

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_meta(kwargs.get("device")):
            self.made_any, kwargs = True, {**kwargs, "device": "cpu"}
        elif func is torch.Tensor.new_tensor and _is_meta(kwargs.get("device", args[0].device)):
            self.made_any, kwargs = True, {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
        before = self._ran()
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            if self._ran() > before or not _on_two_devices((args, kwargs)):
                raise
            self.made_any = True
            args, kwargs = tree_map_only(torch.Tensor, _beside_the_model, (args, kwargs))
            return func(*args, **kwargs)


def _on_two_devices(values: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return any(t.is_meta for t in tensors) and any(t.is_cpu and t.is_floating_point() for t in tensors)


def _beside_the_model(tensor: torch.Tensor) -> torch.Tensor:
    # By an operator, so that a tracer sees where its channels go.
    return tensor.to("meta") if tensor.is_cpu and tensor.is_floating_point() else tensor


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"


@contextmanager
def module_paths(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep ``stack[-1]`` at the path of the module that runs."""
    # One hook for all modules, where one for each would have to be put on and taken off thousands of times.
    modules = walk(model)
    paths = {id(m): path for path, m in modules if not isinstance(m, torch.jit.ScriptModule)}

    def enter(module: nn.Module, _args: Any) -> None:
        path = paths.get(id(module))
        if path is not None:
            stack.append(path)

    def leave(module: nn.Module, _args: Any, _out: Any) -> None:
        if id(module) in paths:
            stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
    try:
        with _no_word_of_hooks(modules):
            yield
    finally:
        for handle in handles:
            handle.remove()
        stack.clear()


@contextmanager
def _no_word_of_hooks(modules: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """A compiled module warns of hooks on all modules: these are ours, and soon gone."""
    compiling = sys.modules.get("torch._dynamo.eval_frame")
    if compiling is None or not any(isinstance(module, compiling.OptimizedModule) for _, module in modules):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Using `torch\.compile\(module\)` when there are global hooks")
        yield


@contextmanager
def collection_paused() -> Iterator[None]:
    """Let Python's cycle collector rest: it would look through a growing record again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def reads_values(error: BaseException) -> bool:
    """Whether a forward failed for want of the values of floating-point tensors."""
    return not _wants_device(error) and ("meta" in str(error).lower() or isinstance(error, NotImplementedError))


def _wants_device(error: BaseException) -> bool:
    """Whether a function refuses the meta device as such, as ``flex_attention`` does."""
    return isinstance(error, ValueError) and "only supported on" in str(error)


def way_on(error: BaseException) -> str:
    """What to do about a forward that failed on the meta device."""
    if _wants_device(error):
        return (
            "That function runs on devices with numbers alone: write this part with ordinary operators "
            "(scaled_dot_product_attention in place of flex_attention)."
        )
    if reads_values(error):
        return (
            "Its forward reads the values of floating-point tensors (.item(), .numpy(), a branch, a boolean mask), "
            "which structprune does not compute: prune the part before or behind, or rewrite that line with tensor "
            "operators."
        )
    return (
        "Give inputs that its forward takes, of the model's dtype: a tensor, a tuple, a dict of keyword arguments, or "
        "a callable model -> output."
    )


def not_inferred(model: nn.Module, refused: list[str]) -> str:
    """The message for a model that runs with none of the guesses."""
    tried = "; ".join(refused[:3]) or "nothing could be guessed from its first layer"
    return (
        f"The inputs of {type(model).__name__} could not be inferred (tried {tried}). Give example_inputs: a "
        "tensor, a tuple of arguments, a dict of keyword arguments, or a callable model -> output."
    )
