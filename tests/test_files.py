"""Small files: what is refused, and that writing is whole or not at all."""

import os

import pytest

from mamba_np.errors import CheckpointError, ConfigError, FileMissingError
from mamba_np.files import (
    make_folder,
    read_json_object,
    replacing,
    require_regular_file,
    write_json,
)


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "dangling", "loop", "nul\0byte"])
def test_only_regular_files_are_opened(tmp_path, kind):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("dangling", "loop"):
        path.symlink_to("nowhere" if kind == "dangling" else path)
    with pytest.raises(FileMissingError, match=kind):
        require_regular_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "syntax error"),
        (b"[1]", "expected a JSON object, found list"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"a":' * 100_000, "nesting"),
        (b"", "syntax error"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "syntax error"),
    ],
)
def test_what_is_not_a_json_object_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"some\.json") as caught:
        read_json_object(path)
    assert words in str(caught.value)


def test_a_huge_file_is_refused_unread(tmp_path):
    path = tmp_path / "some.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: a terabyte of nothing
    with pytest.raises(ConfigError, match=r"some\.json: expected a JSON file of at most"):
        read_json_object(path)


def test_json_round_trip_and_byte_order_mark(tmp_path):
    path = tmp_path / "some.json"
    write_json(path, {"b": 1, "a": "é"})
    assert read_json_object(path) == {"a": "é", "b": 1}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_json_object(path) == {"a": "é", "b": 1}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "ours") as temporary:
        temporary.touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(CheckpointError, match="taken"):
        make_folder(tmp_path / "taken")
