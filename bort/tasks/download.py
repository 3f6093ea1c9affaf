"""Where the official data is published, and how it gets into a task's folder."""
from __future__ import annotations

import logging
import shutil
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from bort.downloads.archives import extract
from bort.downloads.http import Terms, fetch, mirrored
from bort.downloads.locks import lock
from bort.errors import BortError
from bort.files import PathLike, sha256_file
from bort.json_files import read_json, write_json
from bort.tasks.base import Task

logger = logging.getLogger("bort.tasks")

TERMS = Terms(max_bytes=1 << 30)
"""No official archive has more than 312 MB (MNLI)."""
RECORD = "downloads.json"
ARRIVING = ".downloads"
"""Folder for unfinished downloads, beside the tasks' folders."""
_GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
_SUPERGLUE = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/"
_SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"


@dataclass(frozen=True)
class Source:
    """One published file. ``sha256`` is what public dataset catalogues list for it, None where none does."""

    url: str
    sha256: Optional[str] = None

    @property
    def name(self) -> str:
        return urllib.parse.urlsplit(self.url).path.rsplit("/", 1)[-1]

    @property
    def is_archive(self) -> bool:
        return self.name.endswith((".zip", ".tar.gz", ".tgz", ".tar"))


_MNLI = (Source(_GLUE + "MNLI.zip", "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"),)
_RACE = (Source("http://www.cs.cmu.edu/~glai1/data/race/RACE.tar.gz",
                "b2769cc9fdc5c546a693300eb9a966cec6870bd349fbc44ed5225f8ad33006e5"),)


def _one(url: str, sha256: Optional[str]) -> Tuple[Source, ...]:
    return (Source(url, sha256),)


SOURCES: Dict[str, Tuple[Source, ...]] = {"CoLA": _one(_GLUE + "CoLA.zip",
                                                       "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
                                          "SST-2": _one(_GLUE + "SST-2.zip",
                                                        "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa"),
                                          "MRPC": (Source(_SENTEVAL + "msr_paraphrase_train.txt",
                                                          "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89"),
                                                   Source(_SENTEVAL + "msr_paraphrase_test.txt",
                                                          "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784"),
                                                   Source(_GLUE + "mrpc_dev_ids.tsv",
                                                          "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7")),
                                          "STS-B": _one(_GLUE + "STS-B.zip",
                                                        "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
                                          "QQP": _one(_GLUE + "QQP-clean.zip",
                                                      "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0"),
                                          "MNLI-m": _MNLI, "MNLI-mm": _MNLI,
                                          "QNLI": _one(_GLUE + "QNLIv2.zip",
                                                       "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5"),
                                          "RTE": _one(_GLUE + "RTE.zip",
                                                      "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
                                          "WNLI": _one(_GLUE + "WNLI.zip",
                                                       "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"),
                                          "AX": _one(_GLUE + "AX.tsv",
                                                     "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd"),
                                          "BoolQ": _one(_SUPERGLUE + "BoolQ.zip",
                                                        "853fbe7922f70c59629f06a39e8d9ca440c3d740e760fd3b87a5ddf3dcba2436"),
                                          "CB": _one(_SUPERGLUE + "CB.zip",
                                                     "8d641383298d54554066ba1c93f56ae7410af75df621b90c63028806bbbbb535"),
                                          "COPA": _one(_SUPERGLUE + "COPA.zip",
                                                       "405906cddac74bc1e1ce8220f1107d1025b66a25ef10149d91b10bb30651125f"),
                                          "MultiRC": _one(_SUPERGLUE + "MultiRC.zip",
                                                          "b3cd440856e72eb166b2edcd37b798455f1ebd51f2c3de64c0c2a4e1971d2737"),
                                          "ReCoRD": _one(_SUPERGLUE + "ReCoRD.zip",
                                                         "30c7b651ab21b8bf8fab986495cd1084333010e040548f861b839eec0044ac18"),
                                          "SuperGLUE-RTE": _one(_SUPERGLUE + "RTE.zip",
                                                                "6310aab3f000424c9d0318a1ff20692e07c7f4aa15e8f17a5972ea0a35c398b9"),
                                          "WiC": _one(_SUPERGLUE + "WiC.zip",
                                                      "ee7e67f4ae9eafbf533780faa198e62167f3cda54256cdf261877be3c0e90900"),
                                          "WSC": _one(_SUPERGLUE + "WSC.zip",
                                                      "2ed6dfa94556b4a128ff0441efe365b2e883124e7e6aa00fb8d3a6cb1fd520a9"),
                                          "AX-b": _one(_SUPERGLUE + "AX-b.zip",
                                                       "43b45c55a273575c58a33cd68f10a971f83daa3aa223bfbc4077b92fbdf960b3"),
                                          "AX-g": _one(_SUPERGLUE + "AX-g.zip",
                                                       "2d4e00d3a7d23d2c3787ee4c1382cc81a72cb05a76fc9d78d142949247ed61b9"),
                                          "RACE-M": _RACE, "RACE-H": _RACE, "RACE": _RACE,}
"""Sources by task. The checksums are those of TensorFlow Datasets' and Hugging Face's public catalogues."""
_SHARED_FOLDERS = {"MNLI-m": "MNLI", "MNLI-mm": "MNLI", "RACE-M": "RACE", "RACE-H": "RACE"}


def task_folder(task: Task, data_dir: PathLike) -> Path:
    """Where a task's files go: ``data_dir`` itself if it is named after the task, else a folder of that name
    in it."""
    data_dir = Path(data_dir)
    name = _SHARED_FOLDERS.get(task.name, task.name)
    return data_dir if data_dir.resolve().name.lower() in (name.lower(),
                                                           task.name.lower()) else data_dir / name


def download(task: Task, data_dir: PathLike, *, mirrors: Sequence[str] = (),
             from_files: Sequence[PathLike] = (), sha256: Optional[str] = None, force: bool = False,
             terms: Terms = TERMS) -> Path:
    """Bring a task's official files into its folder (:func:`task_folder`), and return the folder.

    What is there already is left alone unless ``force``. ``from_files`` are the published files, fetched by
    other means. ``sha256`` replaces the known checksum of a task with one source, for a file that was
    published anew. A file without a known checksum has it recorded in ``downloads.json`` the first time, and
    must have it from then on.

    Raises:
        BortError: the task has no published files, none of the addresses works, a checksum is wrong, or the
            archive is damaged or hostile. What was there before is untouched.
    """
    sources = SOURCES.get(task.name)
    if sources is None:
        raise BortError(f"{task.name} has no published files; the embedded task is made by "
                        "bort.tasks.synthetic.write_embedded_task")
    folder = task_folder(task, data_dir)
    if not force and not from_files and all(task.available(folder, split) for split in task.splits):
        return folder
    if sha256 is not None and len(sources) > 1:
        raise BortError(f"{task.name} has {len(sources)} files, so one checksum cannot be given for it")
    local = _matched(sources, [Path(path) for path in from_files])
    arriving = folder.parent / ARRIVING
    try:
        arriving.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BortError(f"{arriving}: cannot be made ({error.strerror})") from error
    with lock(arriving / f"{folder.name}.lock"):
        record = _Record(folder.parent / RECORD)
        for source in sources:
            path = local.get(source.name)
            fetched = path is None
            expected = (sha256 or source.sha256 or record.sha256(source)) if fetched else sha256
            if path is None:
                path = fetch(mirrored(source.url, mirrors), arriving / f"{folder.name}-{source.name}",
                             expected, terms,
                             remedy="Fetch it by other means and give it "
                             "with --from-file, or name a mirror with --mirror or BORT_MIRRORS")
            _check_local(source, path, expected, fetched)
            try:
                if source.is_archive:
                    extract(path, folder)
                else:
                    _copy(path, folder / source.name)
            finally:
                found = sha256_file(path)
                if fetched:  # a damaged archive must not be found again by the next attempt
                    path.unlink()
            record.add(source, found, path if not fetched else None)
    missing = [split for split in task.splits if not task.available(folder, split)]
    if missing:
        raise BortError(f"{folder}: what was downloaded lacks the files of {task.name}'s "
                        f"{', '.join(missing)} split")
    return folder


def _matched(sources: Sequence[Source], paths: List[Path]) -> Dict[str, Path]:
    """Local files by the name of the source they stand for: by their names,
    or the only one for the only source."""
    for path in paths:
        if not path.is_file():
            raise BortError(f"{path}: not found, or not a file")
    if len(sources) == len(paths) == 1:
        return {sources[0].name: paths[0]}
    found = {path.name: path for path in paths}
    names = [source.name for source in sources]
    unknown = [name for name in found if name not in names]
    if unknown:
        raise BortError(f"{', '.join(unknown)}: expected {', '.join(names)}")
    missing = [name for name in names if name not in found]
    if paths and missing:
        raise BortError(f"{', '.join(missing)} must be given as well")
    return found


def _check_local(source: Source, path: Path, expected: Optional[str], fetched: bool) -> None:
    """A local file may differ from the published one (packed again, say), which is worth a warning only."""
    if fetched:
        return
    found = sha256_file(path)
    if expected is not None and found != expected.lower():
        raise BortError(f"{path}: the SHA-256 is {found}, not {expected}")
    if expected is None and source.sha256 not in (None, found):
        logger.warning("%s: not the file that was published as %s (its SHA-256 differs)", path, source.name)


def _copy(path: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.copyfile(path, temporary)
        temporary.replace(target)
    except OSError as error:
        raise BortError(f"{target}: cannot be written ({error.strerror or error})") from error


class _Record:
    """``downloads.json``: address -> checksum of what came from there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content: Any = read_json(path) if path.is_file() else {}
        if not isinstance(content, dict):
            raise BortError(f"{path}: expected a JSON object; remove it to start anew")
        self.content = content

    def sha256(self, source: Source) -> Optional[str]:
        entry = self.content.get(source.url)
        value = entry.get("sha256") if isinstance(entry, dict) else None
        return value if isinstance(value, str) else None

    def add(self, source: Source, sha256: str, path: Optional[Path]) -> None:
        entry = {"sha256": sha256, **({"from_file": str(path)} if path is not None else {})}
        if self.content.get(source.url) != entry:
            self.content[source.url] = entry
            write_json(self.path, self.content)
