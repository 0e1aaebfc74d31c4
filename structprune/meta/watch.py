"""What Python code does with tensors beside operators: makes them of numbers, asks where they are, takes them away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode

from structprune.compat import HigherOrderOperator, tree_leaves, tree_map_only
from structprune.ops.boundary import hand_over


def _getter(name: str) -> Any:
    return getattr(torch.Tensor, name).__get__


_LEAVING: dict[Any, str] = {
    torch.Tensor.numpy: "numpy()",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.data_ptr: "data_ptr()",
    torch.Tensor.__dlpack__: "DLPack",
    torch.Tensor.untyped_storage: "its storage",
    torch.Tensor.storage: "its storage",
    torch.Tensor.__reduce_ex__: "pickle",
    torch.Tensor.__deepcopy__: "copy.deepcopy()",
}
_MADE_OF_NUMBERS = frozenset((torch.tensor, torch.as_tensor, torch.asarray))
_DEVICE, _IS_META = _getter("device"), _getter("is_meta")
_IS_OF_KIND = {_getter(f"is_{kind}"): kind for kind in ("cpu", "cuda", "xpu", "mps")}
_MOVES = {torch.Tensor.cpu: "cpu", torch.Tensor.cuda: "cuda", torch.Tensor.xpu: "xpu"}
_SPECIAL = frozenset((*_LEAVING, *_MADE_OF_NUMBERS, _DEVICE, _IS_META, *_IS_OF_KIND, *_MOVES)) | {
    torch.Tensor.new_tensor,
    torch.Tensor.get_device,
    torch.Tensor.to,
}


class Watch(TorchFunctionMode):
    """Watches a run of a model.

    A tensor that is made of Python numbers has values, where on the meta device it would lose them. Where a tensor's
    memory is handed on, an operator says so. A copy on the meta device answers for the device of the user's model, so
    that code which asks takes the way that it takes there.

    Args:
        ran: Counts the operators that have run.
        device: Where the user's model is, if the run is one of a copy on the meta device.
        refuse: Raises for an operator of this name, which runs functions of the model's. A mode for operators is not
            handed those by every PyTorch.

    Attributes:
        noticed: Whether any of this happened: runs that are compared with this one have to be watched too.
    """

    def __init__(self, ran: Callable[[], int], device: torch.device | None, refuse: Callable[[str], NoReturn]) -> None:
        super().__init__()
        self._ran = ran
        self._refuse = refuse
        self.noticed = False
        # An object of its own, known again where code hands on what it was answered.
        self._device = None if device is None else torch.device(device.type, device.index)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function, or answer in its place."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self._refuse(func.__name__)
        if func not in _SPECIAL and "device" not in kwargs:  # nearly all of them
            return self._call(func, args, kwargs)
        if "device" in kwargs and self._is_theirs(kwargs["device"]):
            kwargs = {**kwargs, "device": torch.device("meta")}
        if func not in _SPECIAL:
            return self._call(func, args, kwargs)
        if func in _LEAVING:
            self.noticed = True
            if func is torch.Tensor.data_ptr and args[0].is_meta:
                # It would be 0, and a kernel that reads from there would end the process.
                raise NotImplementedError("data_ptr() of a tensor on the meta device, which has no values")
            hand_over(args[0], _LEAVING[func])
        elif func in _MADE_OF_NUMBERS:
            if _is_meta(kwargs.get("device")):
                self.noticed, kwargs = True, {**kwargs, "device": "cpu"}
        elif func is torch.Tensor.new_tensor:
            if _is_meta(kwargs.get("device", args[0].device)):
                self.noticed, kwargs = True, {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
        elif self._device is not None:
            return self._at_home(self._device, func, args, kwargs)
        return func(*args, **kwargs)

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; some want all their tensors on one device before any operator runs.

        What a forward made on the CPU, where it would be beside the model, follows the model to the meta device there.
        """
        before = self._ran()
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            if self._ran() > before or not _on_two_devices((args, kwargs)):
                raise
            self.noticed = True
            args, kwargs = tree_map_only(torch.Tensor, _beside_the_model, (args, kwargs))
            return func(*args, **kwargs)

    def _at_home(self, device: torch.device, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a function about devices does where the user's model is."""
        self.noticed = True
        if func == _DEVICE:
            return device
        if func == _IS_META:
            return False
        if func in _IS_OF_KIND:
            return device.type == _IS_OF_KIND[func]
        if func is torch.Tensor.get_device:
            return -1 if device.type == "cpu" else device.index or 0
        if func in _MOVES and device.type == _MOVES[func]:
            return args[0]
        if func is torch.Tensor.to and args[0].is_meta:
            home = torch.device("meta")
            args = args[:1] + tuple(home if _is_device(a) and _same(a, device) else a for a in args[1:])
        return func(*args, **kwargs)

    def _is_theirs(self, device: Any) -> bool:
        """Whether a tensor is asked for beside the model's; on the CPU one may be meant to stay there for good."""
        if self._device is None or not _is_device(device):
            return False
        return device is self._device or (self._device.type != "cpu" and _same(device, self._device))


def _on_two_devices(values: Any) -> bool:
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return any(t.is_meta for t in tensors) and any(t.is_cpu and t.is_floating_point() for t in tensors)


def _beside_the_model(tensor: torch.Tensor) -> torch.Tensor:
    # By an operator, so that a tracer sees where its channels go.
    return tensor.to("meta") if tensor.is_cpu and tensor.is_floating_point() else tensor


def _is_device(value: Any) -> bool:
    return isinstance(value, (torch.device, str))


def _same(value: torch.device | str, device: torch.device) -> bool:
    asked = torch.device(value)
    return asked.type == device.type and asked.index in (None, device.index)


def _is_meta(device: Any) -> bool:
    return device is not None and torch.device(device).type == "meta"
