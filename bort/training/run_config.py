"""The ``config.json`` of a run: its settings, versions and command, which a resumed run must have again."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping

import numpy as np

import bort
from bort.backend import distributed
from bort.engines.base import hold, installed, preferred
from bort.engines.engine import first_choice
from bort.errors import BortError
from bort.json_files import read_json, shown

NEWER_SETTINGS: Dict[str, Any] = {"eval_interval": None, "eval_sequences": None, "train": "all", "subset": 0,
                                  "trials": 0, "sampled": 0}
"""What the settings were that earlier versions did not record; None: unknown, so whatever they are now."""


def is_config(content: Any) -> bool:
    """Whether ``content`` is what the ``config.json`` of a run holds."""
    return isinstance(content, dict) and isinstance(content.get("settings"), dict)


def new_config(settings: Mapping[str, Any]) -> Dict[str, Any]:
    """The content of the ``config.json`` of a run that begins: its settings, versions and command."""
    return {"settings": settings, "bort": bort.__version__, "python": sys.version.split()[0],
            "numpy": np.__version__, "command": sys.argv, "ranks": distributed.size(), "engine": _engine(),
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}


def refuse_other_settings(config: Path, earlier: Any, settings: Mapping[str, Any],
                          same_ranks: bool = False) -> None:
    """Refuse to go on with a run that was begun with other settings.

    Args:
        config: the run's ``config.json``, and ``earlier`` its content.
        same_ranks: whether the number of ranks must be the same, too.

    Raises:
        BortError: some differ, which are named, or the file is no run's.
    """
    if not is_config(earlier):
        raise BortError(f"{config}: not the config of a run; choose another --output")
    before = {**{name: settings[name] if value is None else value
                 for name, value in NEWER_SETTINGS.items() if name in settings}, **earlier["settings"]}
    if before.get("format") != settings.get("format"):
        raise BortError(f"{config.parent}: was begun by another version of this program, whose files have "
                        "another format; go on with that version, or choose another --output")
    different = [f"{key} was {_short(before.get(key))} and is {_short(settings.get(key))}"
                 for key in sorted(set(before) | set(settings)) if before.get(key) != settings.get(key)]
    if same_ranks and earlier.get("ranks") != distributed.size():
        different.append(f"the number of ranks was {earlier.get('ranks')} and is {distributed.size()}")
    different += _other_engine(config, earlier)
    if different:
        raise BortError(f"{config.parent}: cannot go on with other settings: " + "; ".join(different)
                        + ". Use the same command, or another --output")


def _engine() -> Dict[str, Any]:
    """What computes forward passes without gradients in this process, and what "auto" has to choose from."""
    return {"engine": preferred().kind, "precision": preferred().precision, "installed": installed()}


def _recorded_engine(config: Any) -> Dict[str, Any]:
    """:func:`_engine` of the process that began the run; empty where an earlier version began it."""
    found = config.get("engine")
    known = isinstance(found, dict) and set(found) == {"engine", "precision", "installed"}
    return found if known and isinstance(found["installed"], dict) else {}


def _other_engine(config: Path, earlier: Any) -> List[str]:
    """How this process's engine differs from the one that the run was begun with.

    Raises:
        BortError: the one that "auto" took is not installed here.
    """
    recorded, now = _recorded_engine(earlier), _engine()
    different = [f"--{option} was {recorded[option]} and is {now[option]}"
                 for option in ("engine", "precision") if recorded and recorded[option] != now[option]]
    if different or not recorded or now["engine"] != "auto":
        return different
    before = recorded["installed"]
    needed = {first_choice(now["precision"], before)}
    if now["precision"] in ("int8", "auto") and needed == {"openvino"}:
        needed |= {"nncf"} & set(before)
    for name in sorted(needed - set(now["installed"])):
        raise BortError(f"{config.parent}: was begun with {name} {before[name]}, which is not installed, and "
                        "another engine gives other last digits. Install it (pip install 'bort[fast]'), "
                        "or choose another --output")
    return []


def hold_to_engines(config: Path) -> None:
    """Let ``--engine auto`` choose, on every rank, among what was installed when the run of ``config`` was
    begun."""
    recorded = distributed.from_root(_recorded_engine(read_json(config)) if distributed.is_root() else None)
    hold(list(recorded["installed"]) if recorded else None)


def _short(value: Any) -> str:
    """A setting in a message: of long ones, the beginning."""
    return "unset" if value is None else shown(value, 80)
