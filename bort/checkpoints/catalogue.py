"""Published models: what there is, where their files are looked for, and how they are fetched.

The hosts these models were published on may be gone, so every file can also be put in place by hand; the
error of a missing one says which file, which folders, and where it used to be.
"""
from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from bort.architecture import Architecture, parse
from bort.checkpoints.locate import CONFIG_FILE
from bort.downloads.archives import extract
from bort.downloads.http import DownloadError, Terms, fetch, mirror_addresses, mirrored
from bort.errors import BortError
from bort.files import PathLike, open_regular, read_bytes
from bort.json_files import read_json

logger = logging.getLogger("bort.checkpoints")

DATASET = "openwebtext_ccnews_stories_books_cased"
GLUON = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/gluon"
OFFLINE_VARIABLE = "BORT_OFFLINE"
MAX_MODEL_BYTES = 4 << 30
QUICK = Terms(timeout=20, wait=0.2, progress=False)
"""Whoever asks for a model waits for it, so an address that does not answer is soon given up."""


class Entry(NamedTuple):
    """A published model.

    Attributes:
        aliases: its other file names.
        url: where it was published, None for one that was not by itself.
        sha1: of its parameter file, None where none is known.
        epsilon: of the MLM head's LayerNorm.
        elsewhere: the repository at Hugging Face that has it too.
    """

    architecture: Architecture
    aliases: Tuple[str, ...]
    url: Optional[str]
    sha1: Optional[str]
    epsilon: float
    elsewhere: Optional[str] = None


def _roberta(name: str, preset: str, sha1: str) -> Entry:
    # fairseq's epsilon is 1e-5 everywhere, in the MLM head too.
    return Entry(parse(preset), (), f"{GLUON}/models/{name}_{DATASET}-{sha1[:8]}.zip", sha1, 1e-5,
                 f"FacebookAI/{preset}")


MODELS: Dict[str, Entry] = {
    "bort_4_8_768_1024": Entry(parse("bort_4_8_768_1024"), ("bort",),
                               "https://alexa-saif-bort.s3.amazonaws.com/bort.params", None, 1e-12,
                               "amazon/bort"),
    "bort_2_16_512_1024": Entry(parse("bort_2_16_512_1024"), (), None, None, 1e-12),
    "roberta_12_768_12": _roberta("roberta_12_768_12", "roberta-base",
                                  "5cf21fcddb5ae1a4c21c61201643460c9d65d3b0"),
    "roberta_24_1024_16": _roberta("roberta_24_1024_16", "roberta-large",
                                   "d1b7163e9628e2fd51c9a9f3a0dc519d4fc24add"),
}
"""Models by GluonNLP's names; the numbers of a Bort's are depth, heads, intermediate, hidden."""


def folders(root: Optional[PathLike] = None) -> List[Path]:
    """Where models are looked for: ``root`` if given, else ``$BORT_HOME``,
    its ``models``, and GluonNLP's folder."""
    if root is not None:
        return [Path(root).expanduser()]
    home = os.environ.get("BORT_HOME")
    own = [Path(home).expanduser(), Path(home).expanduser() / "models"] if home else []
    return [*own, Path(os.environ.get("MXNET_HOME") or "~/.mxnet").expanduser() / "models"]


def candidates(name: str, folder: Path) -> Iterator[Path]:
    """Where a model would be in ``folder``, best first: a model folder,
    or a ``.params`` file by one of its names."""
    for own in (name, *MODELS[name].aliases):
        yield folder / own
        yield folder / f"{own}.params"
    yield from sorted(folder.glob(f"{name}_{DATASET}*.params"))


def find(name: str, root: Optional[PathLike] = None) -> Optional[Path]:
    """The model ``name`` on disk, or None.

    Raises:
        BortError: the file there is not the one its name or its checksum file announces.
    """
    for folder in folders(root):
        for path in candidates(name, folder):
            if (path / CONFIG_FILE).is_file():
                return path
            if path.is_file():
                _check(path, MODELS[name])
                return path
    return None


def _check(path: Path, entry: Entry) -> None:
    """GluonNLP's file names end in the first digits of the file's SHA-1;
    ``FILE.sha256`` may lie beside any file."""
    beside = path.with_name(path.name + ".sha256")
    if beside.is_file():
        expected = read_bytes(beside, max_bytes=1 << 16).decode("ascii", "replace").split()[:1]
        if not expected or not re.fullmatch(r"[0-9a-fA-F]{64}", expected[0]):
            raise BortError(f"{beside}: holds no SHA-256")
        _compare(path, "sha256", expected[0].lower())
    short = re.search(r"-([0-9a-f]{8})\.params$", path.name)
    if short or path.name.startswith("roberta_"):
        _compare(path, "sha1", short.group(1) if short else entry.sha1 or "")


def _compare(path: Path, kind: str, expected: str) -> None:
    digest = hashlib.new(kind)
    with open_regular(path) as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    if not digest.hexdigest().startswith(expected):
        raise BortError(f"{path}: its {kind.upper()} is {digest.hexdigest()}, not {expected}...: the file is "
                        "damaged or another; remove it")


def find_or_fetch(name: str, root: Optional[PathLike] = None, mirrors: Sequence[str] = ()) -> Path:
    """The model ``name`` on disk, downloaded first if it has to be.

    A download is checked by the SHA-256 that ``$BORT_HOME/checksums.json`` has for its file name (an object
    of name: hexadecimal), by the SHA-1 that GluonNLP published, or, where there is neither, reported for the
    user to check.

    Raises:
        BortError: it is neither on disk nor downloadable.
    """
    found = find(name, root)
    if found is not None:
        return found
    entry, folder = MODELS[name], folders(root)[0]
    short = f"-{entry.sha1[:8]}" if entry.sha1 else ""
    target = folder / f"{entry.aliases[0] if entry.aliases else name + '_' + DATASET + short}.params"
    # A mirror may have the file itself, or the archive that it was published in.
    addresses = mirror_addresses(target.name, mirrors) + (mirrored(entry.url, mirrors) if entry.url else [])
    failures = [offline()] if offline() else _fetch_first(list(dict.fromkeys(addresses)), target, entry)
    if failures is None:
        return target
    sources = [entry.url or "(it was never published by itself)"]
    if entry.elsewhere:
        sources.append(f"https://huggingface.co/{entry.elsewhere} (then: python -m bort.huggingface import "
                       f"FOLDER {folder / name})")
    raise missing(name, [target.name],
                  [path for place in folders(root) for path in (place / name, place / target.name)], sources,
                  failures)


def _checksums() -> Dict[str, str]:
    home = os.environ.get("BORT_HOME")
    path = Path(home).expanduser() / "checksums.json" if home else None
    if path is None or not path.is_file():
        return {}
    content = read_json(path, max_bytes=1 << 20)
    if not isinstance(content, dict) or not all(
            isinstance(value, str) and re.fullmatch(r"[0-9a-fA-F]{64}", value) for value in content.values()):
        raise BortError(f"{path}: expected an object of file names and their SHA-256")
    return content


def offline() -> str:
    """Why nothing may be downloaded, "" where it may."""
    switched_off = os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")
    return f"{OFFLINE_VARIABLE} is set, so nothing was downloaded" if switched_off else ""


def _fetch_first(addresses: Sequence[str], target: Path, entry: Entry) -> Optional[List[str]]:
    """Download ``target`` from the first address that has it; None, or what went wrong at each."""
    checksums = _checksums()
    failures: List[str] = []
    for address in addresses:
        packed = target.with_name(address.rsplit("/", 1)[-1]) if address.endswith(".zip") else target
        try:
            fetch([address], packed, None if packed != target else checksums.get(target.name),
                  QUICK.at_most(MAX_MODEL_BYTES))
            if packed != target:
                _unpack(packed, target)
            if entry.sha1:
                _compare(target, "sha1", entry.sha1)
            elif target.name not in checksums:
                logger.warning("%s: no checksum is known for it; python -m bort.checkpoints verify "
                               "--released tells whether it is Bort", target)
            return None
        except DownloadError as error:
            failures += error.failures
        except BortError as error:  # it arrived, but is damaged or another file
            failures.append(str(error))
            packed.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
    return failures or ["there is no address to download it from (BORT_MIRRORS names folders to try)"]


def _unpack(packed: Path, target: Path) -> None:
    folder = extract(packed, packed.with_suffix(".unpacked"))
    try:
        found = sorted(folder.rglob("*.params"))
        if len(found) != 1:
            raise BortError(f"{packed}: holds {len(found)} .params files instead of one")
        os.replace(found[0], target)
    finally:
        shutil.rmtree(folder)
        packed.unlink()


def missing(what: str, files: Sequence[str], places: Sequence[Path], sources: Sequence[str],
            failures: Sequence[str]) -> BortError:
    """The error that says which files are needed, where they were looked for, and how to get them."""
    return BortError("\n".join([
        f"{what} is not on this machine and could not be downloaded.", f"Needed: {', '.join(files)}",
        "Looked for:", *(f"  {place}" for place in places),
        "To be had from, or from a colleague's machine:", *(f"  {source}" for source in sources),
        "What happened:", *(f"  {failure}" for failure in failures)]))
