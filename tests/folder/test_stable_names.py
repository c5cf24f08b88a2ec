"""Names of outputs: readable, apart, safe on every file system, never outside."""

import hashlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam.audit.names import distinct, folded, stable_name


@pytest.mark.parametrize("path", ["x.jpg", "a/b/IMG_0001.JPG", "straße.png", "mit Leerzeichen.jpg", ".hidden/x.png"])
def test_a_plain_path_is_its_own_name(path: str) -> None:
    assert stable_name(path) == path


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("../../etc/x.jpg", "etc/x.jpg~"),
        ("/data/x.jpg", "data/x.jpg~"),
        ("C:\\scans\\x.jpg", "C_/scans/x.jpg~"),
        ("a/./b//x.jpg", "a/b/x.jpg~"),
        ("con.png", "_con.png~"),
        ("what?.png", "what_.png~"),
        ("x.png. ", "x.png~"),
        ("nul\x00.png", "nul_.png~"),
        ("\udcff.png", "_.png~"),
        ("a.cam.png/x.jpg", "a_cam_png/x.jpg~"),
        ("..", "_~"),
    ],
)
def test_what_cannot_stay_is_changed_and_marked_with_a_hash_of_the_path(path: str, start: str) -> None:
    digest = hashlib.sha256(path.encode(errors="surrogatepass")).hexdigest()[:8]
    assert stable_name(path) == start + digest


def test_long_names_are_cut_and_stay_apart() -> None:
    one, other = stable_name("ä" * 300 + "1.png"), stable_name("ä" * 300 + "2.png")
    assert one != other and one.startswith("ä" * 80) and len(one.encode()) <= 180
    deep, deeper = stable_name("folder/" * 200 + "x.png"), stable_name("folder/" * 201 + "x.png")
    assert deep.startswith("x.png~") and deeper.startswith("x.png~") and deep != deeper


def test_names_that_a_file_system_may_take_for_one_are_told_apart() -> None:
    taken: set[str] = set()
    paths = [
        "x.jpg",
        "X.JPG",
        "a/x.jpg",
        "x.png",
        "caf\u00e9.png",
        "cafe\u0301.png",
        "x.jpg",
        "stra\u00dfe.png",
        "STRASSE.png",
    ]
    names = [distinct(stable_name(p), f"{i}", taken) for i, p in enumerate(paths)]
    assert len({folded(n) for n in names}) == len(names)
    assert [n for n, p in zip(names, paths, strict=True) if n == p] == [
        "x.jpg",
        "a/x.jpg",
        "x.png",
        "caf\u00e9.png",
        "stra\u00dfe.png",
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=40), min_size=1, max_size=6), st.booleans())
def test_any_path_becomes_a_name_that_can_be_written_below_the_output_folder(parts: list[str], absolute: bool) -> None:
    name = stable_name("/" * absolute + "/".join(parts))
    inside = PurePosixPath(name).parts
    assert inside and "/".join(inside) == name and not PurePosixPath(name).is_absolute()
    assert all(p not in ("..", ".") and len(p.encode()) <= 189 and p[-1] not in ". " for p in inside)
    assert stable_name(name) == name or "~" in name  # a name is its own name


@settings(max_examples=30, deadline=None)
@given(path=st.text(st.characters(codec=None), min_size=1, max_size=80))
def test_a_file_of_that_name_can_be_made(path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    target = home / f"{stable_name(path)}.cam.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"")
    assert target.resolve().is_relative_to(home.resolve()) and [p for p in home.rglob("*") if p.is_file()] == [target]
    assert isinstance(target, Path)
