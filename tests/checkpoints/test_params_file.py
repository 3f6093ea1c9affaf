"""The NDArray list: equal to MXNet's own reader and writer, and bounded on hostile files."""
from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bort.checkpoints.params_file import read_ndarrays, write_ndarrays
from bort.errors import BortError


def some_arrays():
    rng = np.random.default_rng(0)
    return {"a.weight": rng.normal(size=(3, 4)).astype("float32"),
            "b": rng.normal(size=(2,)).astype("float16"), "c": np.arange(6, dtype="int32").reshape(1, 2, 3),
            "d": np.arange(3, dtype="int64"), "é": np.zeros((2, 0), dtype="float64"),
            "u": np.arange(4, dtype="uint8")}


def test_mxnet_reads_what_we_write_and_we_what_it_writes(tmp_path):
    from bort.backend.mxnet import mx

    arrays = some_arrays()
    write_ndarrays(tmp_path / "ours", arrays)
    theirs = mx.nd.load(str(tmp_path / "ours"))
    assert list(theirs) and set(theirs) == set(arrays)
    for name in ("a.weight", "b", "c", "d", "u"):
        np.testing.assert_array_equal(theirs[name].asnumpy(), arrays[name])
        assert theirs[name].dtype == arrays[name].dtype
    mx.nd.save(str(tmp_path / "theirs"), {name: mx.nd.array(arrays[name], dtype=arrays[name].dtype)
                                           for name in ("a.weight", "b", "c", "d", "u")})
    for name, array in read_ndarrays(tmp_path / "theirs").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def test_round_trip_is_exact(tmp_path):
    write_ndarrays(tmp_path / "f", some_arrays())
    back = read_ndarrays(tmp_path / "f")
    assert list(back) == list(some_arrays())
    for name, array in some_arrays().items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes()


def test_every_truncation_is_a_clear_error(tmp_path):
    write_ndarrays(tmp_path / "f", some_arrays())
    data = (tmp_path / "f").read_bytes()
    for end in range(len(data)):
        (tmp_path / "t").write_bytes(data[:end])
        with pytest.raises(BortError, match="truncated or not"):
            read_ndarrays(tmp_path / "t")
    (tmp_path / "t").write_bytes(data + b"x")
    with pytest.raises(BortError, match="follow"):
        read_ndarrays(tmp_path / "t")
    with pytest.raises(BortError, match="cannot be read"):
        read_ndarrays(tmp_path / "missing")


@pytest.mark.parametrize("shape", [(1 << 62, 1 << 62), (1 << 40,), (-1,), (-1, -4),
                                   (0, 1 << 62, 1 << 62)])
def test_absurd_shapes_allocate_nothing(tmp_path, shape):
    header = struct.pack("<QQQ", 0x112, 0, 1)
    array = struct.pack(f"<Iii{len(shape)}qiii", 0xF993FAC9, 0, len(shape), *shape, 1, 0, 0)
    (tmp_path / "f").write_bytes(header + array + b"\0" * 64)
    with pytest.raises(BortError):
        read_ndarrays(tmp_path / "f")
    (tmp_path / "f").write_bytes(struct.pack("<QQQ", 0x112, 0, 1 << 63) + b"\0" * 64)
    with pytest.raises(BortError, match="claims"):
        read_ndarrays(tmp_path / "f")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_crash(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    write_ndarrays(folder / "f", some_arrays())
    content = bytearray((folder / "f").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "f").write_bytes(bytes(content))
    try:
        read_ndarrays(folder / "f")
    except BortError:
        pass


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    for array in (np.zeros((), "float32"), np.zeros(2, "complex64"), np.zeros(2, "bool")):
        with pytest.raises(BortError, match="cannot be stored"):
            write_ndarrays(tmp_path / "f", {"x": array})
    assert not (tmp_path / "f").exists()
