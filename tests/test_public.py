"""The public names, and that imports run one way."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import structprune

PACKAGE = Path(structprune.__file__).parent
NAMES = [
    "CheckpointError", "Comparison", "ConfigChange", "DependencyGraph", "FlopCount", "Group", "GroupPlan", "InputError",
    "Latency", "LatencyOptions", "Measured", "ModelError", "ModuleCost", "NothingToPruneError", "OptionError", "Plan",
    "PlanError", "Proof", "PruningOptions", "Sensitivity", "Stage", "StructPruneError", "TraceError",
    "UntracedParameterError", "VerificationError", "compare", "count_flops", "demo", "fit_config", "load",
    "measure_latency", "plan_of", "plan_pruning", "prove", "prune_checkpoint", "prune_model", "recalibrate", "save",
    "trace",
]  # fmt: skip

# Every package may import those before it; the order of the data.
LAYERS = (
    "errors inputs meta measure graph surgery resolve plan planning checkpoint verify recalibration hub api demo"
).split()


def test_public_names() -> None:
    assert structprune.__all__ == NAMES
    assert all(hasattr(structprune, name) for name in NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "demo"])
def test_public_names_are_documented(name: str) -> None:
    assert inspect.getdoc(getattr(structprune, name))


def test_every_error_is_in_the_tree() -> None:
    errors = [getattr(structprune, n) for n in NAMES if n.endswith("Error")]
    assert all(issubclass(e, structprune.StructPruneError) for e in errors)


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("structprune."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_run_one_way() -> None:
    # The plan holds the surgery's cut, and importance reads the graph; both stand before the proof.
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer not in LAYERS:
            continue
        wrong += [
            f"{path.name} imports {other}" for other in _imports(path) if LAYERS.index(other) > LAYERS.index(layer)
        ]
    assert wrong == []


def test_measure_knows_nothing_of_pruning() -> None:
    for path in (PACKAGE / "measure").glob("*.py"):
        assert _imports(path) <= {"errors", "inputs", "meta", "measure"}


def test_report_uses_public_names_only() -> None:
    for path in (PACKAGE / "report").glob("*.py"):
        # The words of errors are shared by all.
        assert _imports(path) <= {"errors", "report"} | ({"plan"} if path.name == "demo.py" else set())


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
