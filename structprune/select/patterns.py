"""Which layers an option means: patterns of names, or modules and parameters themselves."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from structprune.errors import OptionError, described, nearest
from structprune.meta.replica import named_tensors, walk


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a parameter, its module or a module around it (``*`` and ``?`` as in shells)."""
    if fnmatch.fnmatchcase(name, pattern):
        return True
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts)))


class Names:
    """The names of a model's modules and tensors, as patterns and objects refer to them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._tensors = named_tensors(model)

    def patterns(self, option: str, given: Any) -> list[str]:
        """The patterns that an entry of an option stands for.

        Raises:
            OptionError: It is none, matches nothing, or is no part of the model.
        """
        if isinstance(given, nn.Module):
            return self._of_module(option, given)
        if isinstance(given, torch.Tensor):
            return [glob.escape(self._name_of(option, given))]
        if not isinstance(given, str):
            raise OptionError(
                f"{option} holds {described(given)}; expected patterns of module or parameter names as strings, or "
                "modules and parameters of the model."
            )
        if not self._known(given):
            parts = [name.split(".") for name in self._tensors]
            modules = {".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)}
            raise OptionError(f"{option}={given!r} matches no module and no parameter{nearest(given, modules)}")
        return [given]

    def weight(self, option: str, given: Any) -> str:
        """The name of a layer's weight, which an entry of an option names: the layer, its weight, or either's name.

        Raises:
            OptionError: It names no layer and no weight of the model.
        """
        if isinstance(given, torch.Tensor) or (isinstance(given, str) and given in self._tensors):
            return given if isinstance(given, str) else self._name_of(option, given)
        modules = dict(walk(self._model))
        if isinstance(given, nn.Module):
            path = self._path_of(option, given)
        elif isinstance(given, str):
            path = given
        else:
            raise OptionError(
                f"{option} has the key {described(given)}; expected the name of a layer, a module or a weight."
            )
        if path not in modules:
            layers = [name.rpartition(".")[0] for name in self._tensors if name.endswith(".weight")]
            raise OptionError(f"{option} names {path!r}, which is no layer and no weight{nearest(path, layers)}")
        weight = getattr(modules[path], "weight", None)
        if not isinstance(weight, torch.Tensor):
            raise OptionError(
                f"{option} names {path!r}, which has no weight: name a layer that has one, or the weight itself."
            )
        return self._name_of(option, weight)

    def listed(self, option: str, given: Any) -> list[str]:
        """The patterns of an option that takes one entry or several."""
        entries = [given] if isinstance(given, (str, nn.Module, torch.Tensor)) else given
        if not isinstance(entries, Iterable) or isinstance(entries, (Mapping, bytes)):
            raise OptionError(
                f"{option} is {described(given)}; expected a list of patterns of module or parameter names, or of "
                "modules and parameters of the model."
            )
        return [pattern for entry in entries for pattern in self.patterns(option, entry)]

    def _known(self, pattern: str) -> bool:
        return any(matches(pattern, name) for name in self._tensors)

    def _of_module(self, option: str, module: nn.Module) -> list[str]:
        if module is self._model:
            return ["*"]
        path = self._path_of(option, module)
        if self._known(glob.escape(path)):
            return [glob.escape(path)]
        # All that it has is tied, and goes by the names that it has elsewhere.
        names = [self._name_of(option, tensor) for tensor in named_tensors(module).values()]
        if not names:
            raise OptionError(
                f"{option} holds {path}, {described(module)} without parameters, which has no channels. To leave alone "
                "what goes into it and comes out of it, see Registry.opaque in structprune.rules."
            )
        return [glob.escape(name) for name in names]

    def _path_of(self, option: str, module: nn.Module) -> str:
        path = next((path for path, own in walk(self._model) if own is module), None)
        if path is None:
            raise OptionError(
                f"{option} holds {described(module)} that is no part of this {type(self._model).__name__}: give one of "
                "its own modules, not of a copy, or a pattern of names."
            )
        return path

    def _name_of(self, option: str, tensor: torch.Tensor) -> str:
        name = next((name for name, own in self._tensors.items() if own is tensor), None)
        if name is None:
            raise OptionError(
                f"{option} holds {described(tensor)} that is no parameter of this {type(self._model).__name__}: give "
                "one of its own, not of a copy, or a pattern of names."
            )
        return name
