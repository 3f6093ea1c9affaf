"""Hyper-parameter sets as data: the convergent sets of Tables 7 to 9, Agora's starting grid, and
grids from files.

A set is the paper's ``<lr, d, wp, s>``: learning rate, weight decay, warmup proportion, random seed. Random
seeds do not carry over between frameworks, as the paper says itself; they are kept so that a command names
the same set. Nothing here imports MXNet.

Where the tables deviate from the text: learning rates 1e-5 and 5e-5 and the weight decay 0.1 are convergent
values but not members of the starting grid of section 5.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

from bort.errors import BortError
from bort.files import PathLike
from bort.json_files import read_json, shown


class Theta(NamedTuple):
    """One set of hyper-parameters, a member of Agora's Theta."""

    lr: float
    weight_decay: float
    warmup: float
    seed: int

    def __str__(self) -> str:
        return f"⟨{self.lr:g}, {self.weight_decay:g}, {self.warmup:g}, {self.seed}⟩"


class ConvergentSet(NamedTuple):
    """A row of Table 7, 8 or 9.

    Attributes:
        theta: the set.
        batch_size: examples per step.
        table: its number in the paper.
        note: what the row does not say and was filled in; empty where it says everything.
    """

    theta: Theta
    batch_size: int
    table: int
    note: str = ""


_BLANK = "Table 9 leaves its batch size blank; 16 is what the nearest row that states one has (COPA)"


def _rows(table: int, rows: Sequence[Tuple[Any, ...]]) -> Dict[str, ConvergentSet]:
    return {
        name: ConvergentSet(Theta(*theta), batch_size, table, *note)
        for name, theta, batch_size, *note in rows
    }


CHS: Dict[str, ConvergentSet] = {
    **_rows(
        7,
        [
            ("CoLA", (9e-6, 10, 0.45, 3), 8),
            ("SST-2", (1e-5, 10, 0.50, 0), 16),
            ("MRPC", (1e-4, 100, 0.50, 2), 8),
            ("STS-B", (9e-6, 10, 0.50, 1), 8),
            ("QQP", (5e-5, 0, 0.50, 2), 16),
            ("MNLI-m", (5e-5, 0.1, 0.50, 3), 16),
            ("MNLI-mm", (5e-5, 0.1, 0.45, 0), 16),
            ("QNLI", (9e-6, 0, 0.50, 0), 16),
            ("RTE", (1e-5, 100, 0.50, 2), 8),
            ("WNLI", (1e-4, 10, 0.40, 3), 8),
            ("AX", (5e-5, 0.1, 0.45, 0), 8),
        ],
    ),
    **_rows(8, [("RACE-H", (5e-5, 0.1, 0.45, 2), 16), ("RACE-M", (5e-5, 0.1, 0.35, 3), 16)]),
    **_rows(
        9,
        [
            ("BoolQ", (5e-6, 100, 0.50, 3), 16, _BLANK),
            ("CB", (1e-5, 100, 0.45, 2), 16, _BLANK),
            ("COPA", (1e-5, 100, 0.35, 1), 16),
            ("MultiRC", (5e-6, 10, 0.50, 0), 16),
            ("ReCoRD", (5e-5, 0, 0.50, 3), 16),
            ("SuperGLUE-RTE", (1e-5, 10, 0.45, 1), 16),
            ("WiC", (5e-5, 10, 0.45, 2), 16),
            ("WSC", (5e-5, 10, 0.35, 1), 16),
            ("AX-b", (1e-5, 10, 0.45, 1), 8),
            ("AX-g", (1e-5, 10, 0.45, 1), 8),
        ],
    ),
}
"""Task name to its convergent set (Appendix D)."""

LEARNING_RATES = (3e-6, 5e-6, 9e-6, 3e-5, 1e-4)
WEIGHT_DECAYS = (0.0, 10.0, 100.0, 350.0)
WARMUPS = (0.35, 0.40, 0.45, 0.50, 0.55)
SEEDS = (0, 1, 2, 3, 4)
MAX_SETS = 100_000
"""Sets of a grid from a file at most: a training of each in the first round is years of work already."""


def convergent_set(task: str) -> ConvergentSet:
    """The paper's convergent set for a task; RACE as a whole has RACE-H's, the larger part's.

    Raises:
        BortError: the paper has none for it.
    """
    if task == "RACE":
        return CHS["RACE-H"]._replace(note="Table 8 has RACE-H and RACE-M only; this is RACE-H's")
    if task not in CHS:
        raise BortError(
            f"the paper gives no convergent hyper-parameter set for {task} (Tables 7 to 9 have "
            f"{', '.join(CHS)}); use --grid instead of --chs"
        )
    return CHS[task]


LARGE_TASKS = frozenset({"SST-2", "QNLI", "QQP", "MNLI", "MNLI-m", "MNLI-mm"})
"""The four largest tasks (section 5.1)."""


def batch_size_of(task: str) -> int:
    """The paper's batch size: 8, and 16 for the four largest tasks (section 5.1)."""
    return 16 if task in LARGE_TASKS else 8


def product_grid(
    lr: Sequence[float], weight_decay: Sequence[float], warmup: Sequence[float], seed: Sequence[int]
) -> List[Theta]:
    """All combinations, the seed varying fastest."""
    return [
        Theta(float(a), float(b), float(c), int(d))
        for a, b, c, d in itertools.product(lr, weight_decay, warmup, seed)
    ]


def paper_grid() -> List[Theta]:
    """The 500 sets of section 5: 5 learning rates, 4 weight decays, 5 warmup proportions, 5 seeds."""
    return product_grid(LEARNING_RATES, WEIGHT_DECAYS, WARMUPS, SEEDS)


def small_grid(lr: float, weight_decay: float, warmup: float, seed: int = 0) -> List[Theta]:
    """Six sets around one: a third of the learning rate, the rate itself and three times it,
    each with two seeds."""
    return product_grid((lr / 3, lr, lr * 3), (weight_decay,), (warmup,), (seed, seed + 1))


def read_grid(path: PathLike) -> List[Theta]:
    """A grid from a JSON file, either ``{"lr": [...], "weight_decay": [...], "warmup": [...], "seed":
    [...]}`` for all combinations, or a list of ``{"lr": x, "weight_decay": x, "warmup": x, "seed": n}``.

    Raises:
        BortError: the file cannot be read, or is neither; the message names the entry.
    """
    content = read_json(path)
    names = Theta._fields
    if isinstance(content, dict):
        _check_keys(content, names, str(path))
        columns = [_numbers(content[name], name, str(path)) for name in names]
        count = math.prod(map(len, columns))  # before they are made: four lists of 200 are 1.6e9 sets
        if count > MAX_SETS:
            raise BortError(f"{path}: makes {count:,} sets; at most {MAX_SETS:,} are taken: shorten it")
        sets = product_grid(*columns)
    elif isinstance(content, list):
        sets = []
        for number, entry in enumerate(content):
            where = f"{path}, set {number + 1}"
            if not isinstance(entry, dict):
                raise BortError(f"{where}: an object with {', '.join(names)} is expected")
            _check_keys(entry, names, where)
            sets += product_grid(*[_numbers([entry[name]], name, where) for name in names])
    else:
        raise BortError(f"{path}: a grid is an object of lists or a list of objects, with {', '.join(names)}")
    if not sets:
        raise BortError(f"{path}: the grid is empty")
    repeated = [str(theta) for theta, times in Counter(sets).items() if times > 1]
    if repeated:
        raise BortError(f"{path}: names {repeated[0]} more than once")
    return sets


def _check_keys(entry: Dict[str, Any], names: Sequence[str], where: str) -> None:
    missing, extra = (
        [name for name in names if name not in entry],
        [str(name) for name in entry if name not in names],
    )
    if missing or extra:
        raise BortError(
            f"{where}: "
            + "; ".join(
                text
                for text in (
                    f"lacks {', '.join(missing)}" if missing else "",
                    f"has the unknown {', '.join(extra)}" if extra else "",
                )
                if text
            )
        )


def _numbers(values: Any, name: str, where: str) -> List[Any]:
    kinds = (int,) if name == "seed" else (int, float)
    limits = {"lr": (0, 1), "weight_decay": (0, 1e4), "warmup": (0, 0.999), "seed": (0, 2**31 - 1)}[name]
    if not isinstance(values, list):
        raise BortError(f"{where}: {name} must be a list")
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, kinds)
            or not limits[0] <= value <= limits[1]
            or (name == "lr" and value == 0)
        ):
            raise BortError(
                f"{where}: {name} {shown(value)} is not "
                f"{'a whole number' if name == 'seed' else 'a number'} from {limits[0]} to "
                f"{limits[1]}"
            )
    return list(values)


def choose_grid(name: str, lr: float, weight_decay: float, warmup: float, seed: int) -> List[Theta]:
    """The grid that ``--grid paper|small|FILE.json`` names; the numbers are what ``small`` is built around.

    Raises:
        BortError: there is no such grid or file.
    """
    if name == "paper":
        return paper_grid()
    if name == "small":
        return small_grid(lr, weight_decay, warmup, seed)
    if not Path(name).is_file():
        raise BortError(f"--grid {name}: neither paper nor small, and there is no such file")
    return read_grid(name)
