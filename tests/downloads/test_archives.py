"""Unpacking: ordinary archives whole, hostile ones not at all."""
from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bort.downloads.archives import Limits, extract
from bort.errors import BortError


def make_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = compression
            archive.writestr(info, content)
    return path


def make_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if content is not None:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b""))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file()}


def nothing_left(tmp_path, archive):
    return sorted(path.name for path in tmp_path.iterdir()) == [archive.name]


PLAIN = [("data/train.tsv", b"one\n"), ("data/sub/dev.tsv", b"two\n")]


@pytest.mark.parametrize("build", [make_zip, make_tar, lambda p, m: make_tar(p, m, "w"),
                                   lambda p, m: make_tar(p, m, "w:bz2"), lambda p, m: make_tar(p, m, "w:xz")])
def test_every_format_and_its_wrapping_folder(build, tmp_path):
    archive = build(tmp_path / "archive", PLAIN)
    folder = extract(archive, tmp_path / "out")
    assert tree(folder) == {"train.tsv": b"one\n", "sub/dev.tsv": b"two\n"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "out"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((folder / "train.tsv").stat().st_mode) == 0o666 & ~umask


def test_files_go_into_an_existing_folder_beside_what_is_there(tmp_path):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "train.tsv").write_text("old")
    extract(make_zip(tmp_path / "a.zip", PLAIN), tmp_path / "out")
    assert tree(tmp_path / "out") == {"notes.txt": b"mine", "train.tsv": b"one\n", "sub/dev.tsv": b"two\n"}


def test_directories_dots_and_macos_files(tmp_path):
    members = [(special("./RACE", tarfile.DIRTYPE), None), ("./RACE/a.txt", b"a"), ("./RACE/._a.txt", b"x"),
               ("__MACOSX/RACE/._a.txt", b"x")]
    assert tree(extract(make_tar(tmp_path / "a.tgz", members), tmp_path / "out")) == {"a.txt": b"a"}


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a/./b", "a//b", "C:/evil",
                                  "a\\..\\evil", "..", "x" * 300, "/".join("a" * 40), "a/.."])
@pytest.mark.parametrize("build", [make_zip, make_tar])
def test_paths_that_lead_outside_are_refused(build, name, tmp_path):
    archive = build(tmp_path / "archive", [("fine.txt", b"1"), (name, b"2")])
    with pytest.raises(BortError, match="unsafe name"):
        extract(archive, tmp_path / "out")
    assert nothing_left(tmp_path, archive) and not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("name", [b"\0" * 8, b"\0/x.tx00", b"/" * 8])
def test_a_zip_member_without_a_name_is_refused(tmp_path, name):
    archive = make_zip(tmp_path / "a.zip", [("fine.txt", b"1"), ("nameless", b"2")])
    archive.write_bytes(archive.read_bytes().replace(b"nameless", name[:8]))
    with pytest.raises(BortError, match="unsafe name"):
        extract(archive, tmp_path / "out")
    assert nothing_left(tmp_path, archive)


@pytest.mark.parametrize("member", [
    special("link", tarfile.SYMTYPE, "/etc/passwd"), special("link", tarfile.LNKTYPE, "fine.txt"),
    special("fifo", tarfile.FIFOTYPE), special("device", tarfile.CHRTYPE), special("block", tarfile.BLKTYPE)])
def test_links_and_devices_in_a_tar_are_refused(member, tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", [("fine.txt", b"1"), (member, None)])
    with pytest.raises(BortError, match="link, a device"):
        extract(archive, tmp_path / "out")
    assert nothing_left(tmp_path, archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(kind, tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    archive = make_zip(tmp_path / "a.zip", [("fine.txt", b"1"), (info, b"/etc/passwd")])
    with pytest.raises(BortError, match="is a link or a device"):
        extract(archive, tmp_path / "out")
    assert nothing_left(tmp_path, archive)


def test_a_link_cannot_be_written_through_a_directory_of_the_same_name(tmp_path):
    archive = make_tar(tmp_path / "a.tar", [(special("d", tarfile.SYMTYPE, "/tmp"), None), ("d/evil", b"1")],
                       "w")
    with pytest.raises(BortError, match="link"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("build", [make_zip, make_tar])
def test_bombs_are_refused_by_ratio_total_and_count(build, tmp_path):
    archive = build(tmp_path / "a", [("zeros", bytes(3 << 20))])
    small = {"free_bytes": 1 << 16}
    with pytest.raises(BortError, match="unpacks to more than"):
        extract(archive, tmp_path / "out", Limits(ratio=20, **small))
    with pytest.raises(BortError, match="unpacks to more than 1,000,000 bytes"):
        extract(archive, tmp_path / "out", Limits(total_bytes=1_000_000))
    assert nothing_left(tmp_path, archive)
    assert len(tree(extract(archive, tmp_path / "out", Limits(ratio=5000, **small)))) == 1
    many = build(tmp_path / "many", [(f"f{number}", b"") for number in range(30)])
    with pytest.raises(BortError, match="more than 20 files"):
        extract(many, tmp_path / "out2", Limits(files=20))


def test_a_size_that_the_archive_denies_still_counts(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("zeros", bytes(1 << 20))])
    data = bytearray(path.read_bytes())
    real = (1 << 20).to_bytes(4, "little")
    assert data.count(real) == 2
    path.write_bytes(bytes(data).replace(real, (10).to_bytes(4, "little")))
    with pytest.raises(BortError):
        extract(path, tmp_path / "out", Limits(total_bytes=1000))
    assert nothing_left(tmp_path, path)


def test_an_enormous_extended_header_is_refused_unread(tmp_path):
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    with pytest.raises(BortError, match="headers is larger"):
        extract(path, tmp_path / "out")


def test_names_that_occur_twice_are_refused_whatever_their_case(tmp_path):
    for second in ("a.txt", "A.TXT"):
        archive = make_tar(tmp_path / "a.tar", [("a.txt", b"1"), (second, b"2")], "w")
        with pytest.raises(BortError, match="twice"):
            extract(archive, tmp_path / "out")


def test_encrypted_and_empty_archives_are_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", b"1")])
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(magic) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(BortError, match="is encrypted"):
        extract(path, tmp_path / "out")
    with pytest.raises(BortError, match="holds no files"):
        extract(make_zip(path, []), tmp_path / "out")


@pytest.mark.parametrize("build", [make_zip, make_tar])
def test_truncated_archives_and_other_files_are_errors(build, tmp_path):
    path = build(tmp_path / "a", [("a.txt", os.urandom(5000)), ("b.txt", os.urandom(5000))])
    whole = path.read_bytes()
    for length in (0, 1, 50, 3000, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(BortError, match="is damaged|is not unpacked"):
            extract(path, tmp_path / "out")
        assert nothing_left(tmp_path, path)
    path.write_text("<html>not found</html>\n" * 100)
    with pytest.raises(BortError, match="damaged or not an archive"):
        extract(path, tmp_path / "out")
    with pytest.raises(BortError, match="cannot be read"):
        extract(tmp_path / "missing", tmp_path / "out")


@given(noise=st.binary(max_size=400), kind=st.integers(0, 2), data=st.data())
def test_fuzzed_archives_never_raise_anything_else(tmp_path_factory, noise, kind, data):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "a"
    if kind:
        (make_zip if kind == 1 else make_tar)(path, PLAIN)
        whole = bytearray(path.read_bytes())
        for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=6)):
            whole[place] = data.draw(st.integers(0, 255))
        path.write_bytes(whole)
    else:
        path.write_bytes(noise)
    try:
        extract(path, folder / "out", Limits(total_bytes=1 << 20))
    except BortError:
        assert not (folder / "out").exists()
