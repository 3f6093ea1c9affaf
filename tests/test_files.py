"""Files are whole or untouched, JSON is bounded, and commands turn bad input into exit code 2."""
from __future__ import annotations

import ctypes
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

import bort
from bort import json_files
from bort.errors import BortError, run_command
from bort.files import atomic_write, open_regular, read_npy, sha256_file
from bort.json_files import append_jsonl, parse_json, read_json, read_jsonl, shorten, write_json
from tests.tiny import ROOT


def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_write(path) as stream:
        stream.write("old\n")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            with atomic_write(path) as stream:
                stream.write("half")
                raise error
    assert path.read_text() == "old\n" and os.listdir(path.parent) == ["file.txt"]
    with atomic_write(path, "wb") as stream:
        stream.write(b"\r\n")
    assert path.read_bytes() == b"\r\n"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BortError, match="cannot be written"):
        with atomic_write(tmp_path / "file" / "below"):
            pass
    with pytest.raises(BortError, match="appended"):
        append_jsonl(tmp_path / "file" / "below", {})


def test_a_full_disk_is_a_clear_error_and_keeps_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": 1})

    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BortError, match="No space left"):
        write_json(tmp_path / "a.json", {"x": 2})
    assert read_json(tmp_path / "a.json") == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content, message", [(b"{", "line 1, column 2"), (b"[" * 200000, "not valid JSON"),
                                              (b'"\xff"', "not valid JSON"), (b"", "not valid JSON")])
def test_broken_json_is_a_clear_error(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BortError, match=message):
        read_json(tmp_path / "a.json")


def test_json_is_bounded_in_size(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps("x" * 1000))
    with pytest.raises(BortError, match="1002 bytes"):
        read_json(tmp_path / "a.json", max_bytes=1000)
    with pytest.raises(BortError, match="cannot be read"):
        read_json(tmp_path / "missing.json")
    with pytest.raises(BortError, match="cannot be read"):
        read_json(tmp_path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it in the ordinary way would wait for ever
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path / "link", "/dev/zero"):
        for reader in (open_regular, read_json, read_jsonl, read_npy, sha256_file):
            with pytest.raises(BortError, match="not a regular file"):
                reader(path)
    with pytest.raises(BortError, match="cannot be read"):
        open_regular("a\0b")


def test_pointers_of_git_lfs_are_recognised(tmp_path):
    (tmp_path / "x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    for reader in (open_regular, read_json, read_jsonl, read_npy, sha256_file):
        with pytest.raises(BortError, match="pointer of Git LFS"):
            reader(tmp_path / "x")


def npy(header):
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("content", [
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 7)}"),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}"),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}"), npy("{'descr': '<f4'"), npy("(" * 500),
    npy("{'descr': ['x'], 'fortran_order': False, 'shape': (1,)}"), npy("\0"), b"", b"\x93NUMPY", b"PK\3\4"])
def test_arrays_that_lie_are_refused(tmp_path, content):
    (tmp_path / "t.npy").write_bytes(content)
    with pytest.raises(BortError, match="t.npy: "):
        read_npy(tmp_path / "t.npy")


def test_arrays_are_read(tmp_path):
    for array in (np.arange(6, dtype="float32").reshape(2, 3), np.zeros((0,), "int64")):
        np.save(tmp_path / "t.npy", array)
        np.testing.assert_array_equal(read_npy(tmp_path / "t.npy"), array)


def test_lone_surrogates_are_written_as_they_came(tmp_path):
    row = json.loads('{"\\ud83d": "\\udc00 ü"}')
    append_jsonl(tmp_path / "rows.jsonl", row)
    write_json(tmp_path / "a.json", row)
    assert read_jsonl(tmp_path / "rows.jsonl") == [row] and read_json(tmp_path / "a.json") == row


@given(st.one_of(st.text(), st.binary()))
def test_parsing_fails_in_one_way_only(text):
    try:
        parse_json(text, "here")
    except BortError as error:
        assert str(error).startswith("here: ")


def test_half_a_line_left_by_a_kill_spoils_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"n": 1})
    append_jsonl(path, {"n": "é"})
    with open(path, "ab") as stream:
        stream.write(b'{"n": 3, "hal')
    assert read_jsonl(path) == [{"n": 1}, {"n": "é"}]
    append_jsonl(path, {"n": 4})
    assert read_jsonl(path) == [{"n": 1}, {"n": "é"}, {"n": 4}]
    path.write_text('{"n": 1}\nnonsense\n{"n": 2}\n')
    with pytest.raises(BortError, match="rows.jsonl, line 2"):
        read_jsonl(path)
    (tmp_path / "only").write_bytes(b"half")
    append_jsonl(tmp_path / "only", {"n": 1})
    assert read_jsonl(tmp_path / "only") == [{"n": 1}]


def test_numbers_that_json_has_not_are_a_clear_error(tmp_path):
    with pytest.raises(BortError, match="a.json: not written"):
        write_json(tmp_path / "a.json", {"x": [float("nan")]})
    with pytest.raises(BortError, match="a.jsonl: not written"):
        append_jsonl(tmp_path / "a.jsonl", {"x": float("inf")})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("line, message", [("[1]", "not an object"), ("{}", "has no 'n'"),
                                           ('{"n": null}', "its 'n' is"), ("{", "not valid JSON")])
def test_rows_are_checked_and_bad_ones_named_with_the_remedy(tmp_path, line, message):
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n' + line + "\n")
    with pytest.raises(BortError, match=rf"rows.jsonl, line 2: .*{message}.*; remove it"):
        read_jsonl(tmp_path / "rows.jsonl", {"n": (int, float)}, "remove it")


def test_checksum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_exit_codes(capsys):
    def fails(error):
        def main(_):
            raise error
        return main

    assert run_command(lambda _: None) == 0 and run_command(lambda _: 1) == 1
    assert run_command(fails(BortError("file.txt, line 3: mend it"))) == 2
    assert capsys.readouterr().err == "error: file.txt, line 3: mend it\n"
    assert run_command(fails(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):
        run_command(fails(ZeroDivisionError()))


def test_a_warning_of_the_project_is_one_line_and_others_are_as_ever():
    module = str(Path(bort.__file__).parent / "training" / "run_folder.py")
    shown = []

    def main(_):  # formatted here: pytest takes warnings before they are printed
        shown.append(warnings.formatwarning("step-1 is damaged\nand passed over", UserWarning, module, 1))
        shown.append(warnings.formatwarning("of a library", UserWarning, "/elsewhere/library.py", 7))

    form = warnings.formatwarning
    assert run_command(main) == 0
    assert shown == ["WARNING: step-1 is damaged and passed over\n",
                     "/elsewhere/library.py:7: UserWarning: of a library\n"]
    assert warnings.formatwarning is form


def test_what_is_logged_is_one_line_with_its_level_in_every_command(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest has its own there, a command's process none

    def main(_):
        logging.getLogger("bort.tasks").warning("%s:3: a row\nof two lines", "train.tsv")

    for _ in range(2):  # the second time is like the first
        assert run_command(main) == 0
        assert capsys.readouterr().err == "WARNING: train.tsv:3: a row of two lines\n"
    assert logging.root.handlers == []
    kept = logging.NullHandler()
    logging.root.addHandler(kept)  # somebody's own
    assert run_command(main) == 0 and capsys.readouterr().err == "" and logging.root.handlers == [kept]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_nothing_but_files_is_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("fifo", "link", "null"):
        before = os.lstat(tmp_path / name)
        with pytest.raises(BortError, match=f"{name}: is not a regular file.*name a file"):
            write_json(tmp_path / name, 1)
        assert os.lstat(tmp_path / name) == before
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link", "null"]
    (tmp_path / "target").write_text("old")
    (tmp_path / "to-file").symlink_to(tmp_path / "target")
    write_json(tmp_path / "to-file", 1)  # a link is replaced, what it leads to is somebody's own
    assert (tmp_path / "target").read_text() == "old" and read_json(tmp_path / "to-file") == 1


@pytest.mark.parametrize("given", ["log", "warning"])
def test_a_notice_stands_below_no_half_drawn_bar(monkeypatch, given):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    module = str(Path(bort.__file__).parent / "training" / "run_folder.py")

    def main(_):
        with tqdm(range(3), file=sys.stderr, mininterval=0) as bar:
            bar.update(1)
            if given == "log":
                logging.getLogger("bort").warning("mind this")
            else:  # as Python prints it; pytest would take the warning
                sys.stderr.write(warnings.formatwarning("mind this", UserWarning, module, 1))
            bar.update(1)

    assert run_command(main) == 0
    before, _, after = sys.stderr.getvalue().partition("WARNING: mind this\n")
    assert before.endswith(" \r") and "2/3" in after


def test_a_closed_pipe_is_quiet():
    code = (
        "import sys; from bort.errors import run_command\n"
        "def main(_):\n    for _ in range(10**6): print('x' * 100)\nsys.exit(run_command(main))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == b""


def test_what_needs_no_mxnet_does_not_import_it():
    code = ("import sys, bort, bort.architecture, bort.checkpoints.params_file, bort.batching, bort.tasks, "
            "bort.text, bort.downloads.http\nfrom bort.tasks.registry import get_task\nfrom "
            "bort.text.tokenizers.loading import load_tokenizer\nassert 'mxnet' not in sys.modules, 'MXNet "
            "was imported'")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_threads_are_divided_among_the_ranks_of_a_machine():
    code = ("import os; from bort.backend import mxnet as compat; s = compat.thread_settings(); "
            "print(s['OMP_NUM_THREADS'], s['OMP_WAIT_POLICY'], compat.usable_cores(), "
            "os.environ['OMP_NUM_THREADS'])")

    def run(**variables):
        environment = {name: value for name, value in os.environ.items()
                       if not name.startswith(("OMP_", "HOROVOD_"))}
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**environment, **variables},
                             check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout.split()
        return int(out[0]), out[1], int(out[2]), int(out[3])

    threads, policy, cores, used = run()
    assert (threads, policy, used) == (cores, "active", cores)
    threads, policy, cores, _ = run(HOROVOD_LOCAL_SIZE=str(2 * cores))
    assert (threads, policy) == (1, "passive")
    assert run(OMP_NUM_THREADS="7")[3] == 7


@pytest.mark.parametrize("flags, core", [
    ("sse4_2 avx2 fma avx512f avx512cd avx512bw avx512dq avx512vl amx_bf16", "SKYLAKEX"),
    ("sse4_2 avx2 fma avx512f avx512cd", "HASWELL"),  # Xeon Phi
    ("sse4_2 avx2 fma", "HASWELL"), ("sse4_2 avx", None), ("", None),
])
def test_openblas_is_told_the_kernels_of_this_processor(monkeypatch, flags, core):
    from bort.backend import mxnet as compat

    monkeypatch.setattr(compat, "cpu_flags", lambda: frozenset(flags.split()))
    assert compat.openblas_core() == compat.thread_settings().get("OPENBLAS_CORETYPE") == core


def test_openblas_obeys():
    from bort.backend.mxnet import mx

    library = Path(mx.__file__).parent / "libopenblas.so.0"
    if not library.is_file() or "OPENBLAS_CORETYPE" not in os.environ:
        pytest.skip("another BLAS, or a processor that only OpenBLAS knows")
    name = ctypes.CDLL(str(library)).openblas_get_corename  # MXNet has loaded it already
    name.restype = ctypes.c_char_p
    # MXNet's own was built without the kernels for AVX-512, whose name gives those for AVX2.
    assert name().decode().upper() in (os.environ["OPENBLAS_CORETYPE"], "HASWELL")


def test_an_idle_network_leaves_the_cores_to_others():
    code = ("import time; from bort.backend.mxnet import mx\n"
            "a = mx.nd.ones((512, 512)); mx.nd.dot(a, a).wait_to_read(); time.sleep(0.2)\n"
            "used = time.process_time(); time.sleep(0.5); print(time.process_time() - used)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP"))}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True,
                         stdout=subprocess.PIPE, universal_newlines=True).stdout
    assert float(out) < 0.05  # a thread that waits without end would have used half a second


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_only_the_engine_has_a_team_of_threads():
    code = ("import os; from bort.backend.mxnet import mx\nimport numpy as np\n"
            "def threads(): return len(os.listdir('/proc/self/task'))\n"
            "a = mx.nd.ones((600, 600)); mx.nd.dot(a, a).wait_to_read(); before = threads()\n"
            "big = mx.nd.array(np.ones((1500, 1500), 'float32')); big.asnumpy(); print(before, threads())")

    def count(**variables):
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT,
                             env={**os.environ, "OMP_NUM_THREADS": "2", **variables}, check=True,
                             stdout=subprocess.PIPE, universal_newlines=True).stdout.split()
        return int(out[1]) - int(out[0])

    environment = os.environ.pop("MXNET_CPU_PARALLEL_SIZE", None)  # which importing bort set in this process
    try:
        assert count() == 0, "copying to MXNet made the main thread's own team, and idle threads sleep"
        assert count(MXNET_CPU_PARALLEL_SIZE="200000") == 1, "what a user sets is left alone"
    finally:
        if environment is not None:
            os.environ["MXNET_CPU_PARALLEL_SIZE"] = environment


def test_onednn_is_told_of_amx_only_where_the_system_allows_it():
    code = ("import os, ctypes; ctypes.CDLL = {CDLL}; from bort.backend import mxnet as compat; "
            "print(compat.AMX, os.environ.get('DNNL_MAX_CPU_ISA'))")
    environment = {name: value for name, value in os.environ.items() if name != "DNNL_MAX_CPU_ISA"}

    def run(replaced, **variables):
        return subprocess.run([sys.executable, "-c", code.replace("{CDLL}", replaced)], cwd=ROOT,
                              env={**environment, **variables}, check=True, stdout=subprocess.PIPE,
                              universal_newlines=True).stdout.split()

    kernel = "type('K', (ctypes.CDLL,), {'syscall': lambda self, *a: %d})"
    assert run(kernel % -1) == ["False", "None"]
    # the latter where there is no Linux
    assert run(kernel % 0) in (["True", "AVX512_CORE_AMX"], ["False", "None"])
    assert run(kernel % 0, DNNL_MAX_CPU_ISA="AVX2")[1] == "AVX2"


@pytest.mark.parametrize("value, shown", [
    ("a\ntext", "a text"), ("\ud800", "\ufffd"),
    ({"garbage": 1}, '{"garbage": 1}'), (True, "true"), (None, "null"),
    ([1, "é", None], '[1, "é", null]'), (float("nan"), "NaN"), (2.5, "2.5"), ("x" * 99, "x" * 57 + "..."),
    ({"k": "v" * 99}, '{"k": "' + "v" * 50 + "...")])
def test_values_out_of_files_are_shown_as_json_has_them(value, shown):
    assert shorten(value) == shown
    assert json_files.shown(value) == (repr(shown) if isinstance(value, str) else shown)


def test_values_nested_without_end_are_shown_at_once():
    nested = []
    for _ in range(100_000):
        nested = [nested]
    assert shorten(nested) == "a deeply nested value"
    nested.append(nested)
    assert shorten(nested) == "a deeply nested value"
