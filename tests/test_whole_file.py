"""Files and folders that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlm_lens.whole_file import whole_file, whole_folder


def test_a_file_takes_its_place_when_it_is_written(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("old")
    with whole_file(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "found.json"
    path.write_text("old")

    def torn() -> None:
        with whole_file(path) as new:
            new.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_another_when_it_is_full(tmp_path):
    path = tmp_path / "deep" / "model"
    for text in ("first", "second"):
        with whole_folder(path) as new:
            (new / text).write_text(text)
            assert not (path / text).exists()
        assert [file.name for file in path.iterdir()] == [text]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("when", ["while it is filled", "when it takes the place"])
def test_an_error_leaves_the_folder_that_was_there(tmp_path, monkeypatch, when):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename

    def refuse(self, target):
        if any(self.glob("half")):
            raise KeyboardInterrupt
        return rename(self, target)

    def torn() -> None:
        with whole_folder(path) as new:
            (new / "half").write_text("half")
            if when == "while it is filled":
                raise KeyboardInterrupt
            monkeypatch.setattr(Path, "rename", refuse)

    with pytest.raises(KeyboardInterrupt):
        torn()
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
