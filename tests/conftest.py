"""``--core``: the tests that need no other library, as on versions of PyTorch that those do not support."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# What the core tests do without. An environment of an older PyTorch has none of them.
LIBRARIES = frozenset(
    "torchvision timm transformers peft accelerate lightning torchao onnx onnxruntime onnxscript huggingface_hub "
    "distributed mkdocs".split()
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--core", action="store_true", help="skip what needs a library that is not installed")


@contextmanager
def _needing(config: pytest.Config) -> Iterator[None]:
    """Skip where something imports a library that a core environment does not have."""
    try:
        yield
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if config.getoption("--core") and library in LIBRARIES:
            pytest.skip(f"needs {library}")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    with _needing(item.config):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    with _needing(item.config):
        return (yield)
