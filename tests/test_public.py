"""The public names, and that imports run one way."""

from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import structprune
from tests.support import architecture
from tests.support.small import chain

PACKAGE = Path(structprune.__file__).parent
NAMES = [
    "CheckpointError", "Comparison", "ConfigChange", "DependencyGraph", "FlopCount", "Group", "GroupPlan", "InputError",
    "Latency", "LatencyOptions", "Measured", "MeasuredSensitivity", "ModelError", "ModuleCost", "NothingToPruneError",
    "OptionError", "Plan", "PlanError", "Proof", "PruningOptions", "RuleError", "Sensitivity", "Stage",
    "StructPruneError", "TraceError", "UntracedParameterError", "VerificationError", "compare", "count_flops", "demo",
    "fit_config", "load", "measure_latency", "plan_of", "plan_pruning", "plan_removal", "prove", "prune_checkpoint",
    "prune_model", "recalibrate", "rules", "save", "trace", "transfer",
]  # fmt: skip


def test_public_names() -> None:
    assert structprune.__all__ == NAMES
    assert all(hasattr(structprune, name) for name in NAMES)


def test_what_most_never_use_is_imported_late() -> None:
    late = ("structprune.transfer", "torch.utils.benchmark", "torch_pruning", "matplotlib", "rich")
    code = f"import sys, structprune; print([n for n in {late} if n in sys.modules]); print(structprune.transfer.sweep)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("[]\n<function sweep")
    assert "transfer" in dir(structprune)
    with pytest.raises(AttributeError, match="has no attribute 'transfers'"):
        structprune.transfers  # noqa: B018


@pytest.mark.parametrize("name", [n for n in NAMES if n != "demo"])
def test_public_names_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(structprune, name))


def test_every_error_is_in_the_tree() -> None:
    errors = [getattr(structprune, n) for n in NAMES if n.endswith("Error")]
    assert all(issubclass(e, structprune.StructPruneError) for e in errors)


def test_imports_run_one_way() -> None:
    order = architecture.ORDER
    wrong = [
        f"{path.name} imports {other}"
        for room in order
        for path in architecture.files(room)
        for other in architecture.imports(path)
        if order.index(other) > order.index(room)
    ]
    assert wrong == []


def test_no_circle_of_imports() -> None:
    """Not even one that is closed in a function, or for types only."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    edges = {
        name: {
            found
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("structprune.")
            for part in [(node.module or "").removeprefix("structprune.")]
            for found in (part, *(f"{part}.{alias.name}" for alias in node.names))
            if found in names.values()
        }
        for path, name in names.items()
    }
    try:
        graphlib.TopologicalSorter(edges).prepare()
        circle = []
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == []


def test_the_page_on_architecture_shows_the_rooms_as_they_are() -> None:
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith(("__", "py."))}
    assert there == {*architecture.ORDER, *architecture.ABOVE}
    page = architecture.PAGE.read_text()
    assert architecture.table() in page and architecture.guesses() in page


# Attributes of tensors and operators; the tables of nn.Module are used where they are needed.
PRIVATE = frozenset("_schema _overloadpacket _is_view _cdata _backward_hooks _version _base _opname".split())


def _private_names(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("torch.")]
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            own = node.attr in PRIVATE or text.startswith(("torch.", "nn."))
            names = [text] if own else []
        else:
            continue
        parts = [part for name in names for part in name.split(".")]
        if any(part.startswith("_") and not part.startswith("__") for part in parts):
            found += names
    return found


@pytest.mark.parametrize(
    "line", ["from torch._ops import OpOverload", "torch._C.f()", "import torch._dynamo", "x = func._schema", "nn.m._N"]
)
def test_a_private_name_is_seen(line: str) -> None:
    assert _private_names(ast.parse(line))


def test_private_names_of_pytorch_stand_in_one_module() -> None:
    assert _private_names(ast.parse((PACKAGE / "compat.py").read_text()))
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "compat.py"]
    assert {path.name: names for path in others if (names := _private_names(ast.parse(path.read_text())))} == {}


# What is known of an operator stands in ``ops``. Who names one elsewhere speaks of that very operator.
NAMED = {
    # A residual stream is a sum; a bias may be added by one.
    "flow.py": {"aten::add"},
    "places.py": {"aten::add"},
    # Errors of a residual stream are mended where a branch is added to it.
    "targets.py": {"aten::add"},
    # An error is diluted where a branch is added to a stream.
    "error.py": {"aten::add"},
    # Reading entries by a mask gives as many as the mask has.
    "record.py": {"aten::index"},
    # Rows make up for a number only where it multiplies or divides; scores are a product of two activations.
    "row_scales.py": {"aten::bmm", "aten::div", "aten::mm", "aten::mul"},
    # PyTorch makes a tensor of a Python number by it.
    "tracer.py": {"aten::lift_fresh"},
    # What was a copy may become a view; what is dropped is drawn by another number for other shapes; ``reshape``
    # raises before any operator runs.
    "replay.py": {"aten::clone", "aten::native_dropout", "aten::view"},
}


def test_operators_are_named_in_one_place() -> None:
    named: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "ops":
            constants = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            found = {c for c in constants if isinstance(c, str) and re.fullmatch(r"(aten|prim)::\w+", c)}
            named |= {path.name: found} if found else {}
    assert named == NAMED


def test_measure_knows_nothing_of_pruning() -> None:
    for path in (PACKAGE / "measure").glob("*.py"):
        assert architecture.imports(path) <= {"compat", "errors", "inputs", "ir", "ops", "meta", "measure"}


# The demonstration runs the built-in network.
DEMONSTRATED = {"demo.py": {"demo", "select"}, "files.py": {"demo"}}


def test_report_uses_public_names_only() -> None:
    for path in (PACKAGE / "report").glob("*.py"):
        # The words of errors and the private names of PyTorch are shared by all.
        assert architecture.imports(path) - {"compat", "errors", "report"} <= DEMONSTRATED.get(path.name, set())


def test_no_name_of_a_network_in_the_code() -> None:
    # torch.nn's own layers may be known; a network's or a library's name may not.
    names = ("torchvision", "timm", "ResNet", "DenseNet", "ShuffleNet", "EfficientNet")
    for path in PACKAGE.rglob("*.py"):
        # The report opens files and names libraries to do so; what it opens it hands on by the public calls.
        if path.name == "demo.py" or path.parent.name == "report":
            continue
        code = ast.dump(_without_docstrings(ast.parse(path.read_text())))
        assert [n for n in names if f"'{n}" in code] == [], path


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return tree


def test_help_lists_every_option() -> None:
    said = inspect.getdoc(structprune.prune_model) or ""
    assert [name for name in structprune.PruningOptions.__annotations__ if f"``{name}``" not in said] == []


@pytest.mark.parametrize("call", [structprune.prune_model, structprune.Plan.apply, structprune.load])
def test_what_comes_out_is_of_the_models_own_type(call: Callable[..., Any]) -> None:
    hints = typing.get_type_hints(call)
    assert isinstance(hints["return"], typing.TypeVar) and hints["model"] is hints["return"]


def test_results_print_in_a_few_lines_at_the_prompt() -> None:
    model, x = chain(*[8] * 20), torch.zeros(1, 3, 8, 8)
    plan = structprune.plan_pruning(model, 0.5, example_inputs=x)
    small, count, graph = plan.apply(model), structprune.count_flops(model, x), structprune.trace(model, x)
    quick: Any = {"min_seconds": 0.01, "device": "cpu"}
    results = [
        plan, plan.groups[0], plan.sensitivity(), count, count.by_module, count.by_module.children[0], graph,
        graph.groups[0], structprune.prove(model, small, x), structprune.measure_latency(small, x, **quick),
        structprune.compare(model, small, x, **quick),
    ]  # fmt: skip
    assert [text for text in map(repr, results) if len(text) > 400 or "object at 0x" in text] == []
    assert repr(plan).startswith(f"<Plan for Sequential: parameters {plan.params[0]:,} -> ")
    assert repr(plan).endswith("19 of 21 groups cut>")
    assert repr(graph.groups[0]) == "<Group 0.weight: 8 channels, inside a block>"
