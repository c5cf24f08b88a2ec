"""Which pictures a run takes: folders, patterns, lists, manifests."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcam.audit.sources import Sources
from onnxcam.errors import UsageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.png", "p/a.JPG", "p/a.cam.png", "p/notes.txt", "p/sub/c.png", "p/sub/deep/d.tif", "q/b.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    return tmp_path


def names(sources: Sources) -> list[tuple[str, str]]:
    return [(i.name, i.path) for i in sources.items]


def taken(inputs: list[str], **options: object) -> Sources:
    sources = Sources()
    sources.add_inputs(inputs, **options)  # type: ignore[arg-type]
    return sources


def test_a_folder_gives_its_pictures_by_name_and_says_what_it_leaves_out(tree: Path) -> None:
    sources = taken(["p"])
    assert names(sources) == [("a.JPG", "p/a.JPG"), ("b.png", "p/b.png")]
    assert sources.left_out == ["p/notes.txt"]  # and not what onnxcam wrote itself
    assert sources.notes == ["1 file does not end as a picture does and is left out: p/notes.txt"]


def test_recursion_goes_into_folders_after_the_files_and_not_into_the_output(tree: Path) -> None:
    found = ["a.JPG", "b.png", "sub/c.png", "sub/deep/d.tif"]
    assert [i.name for i in taken(["p"], recursive=True).items] == found
    assert [i.name for i in taken(["p"], recursive=True, without=Path("p/sub")).items] == found[:2]


def test_links_are_followed_once_however_they_loop(tree: Path) -> None:
    Path("p/sub/up").symlink_to("..")
    Path("p/again").symlink_to("sub")
    Path("p/itself").symlink_to("itself")
    Path("p/gone.png").symlink_to("nowhere.png")
    found = [i.name for i in taken(["p"], recursive=True).items]
    assert found == ["a.JPG", "b.png", "gone.png", "again/c.png", "again/deep/d.tif"]


def test_several_folders_give_names_that_begin_with_theirs(tree: Path) -> None:
    assert names(taken(["p", "q"])) == [("p/a.JPG", "p/a.JPG"), ("p/b.png", "p/b.png"), ("q/b.png", "q/b.png")]


def test_patterns_are_expanded_and_one_that_fits_nothing_is_an_error(tree: Path) -> None:
    assert [i.path for i in taken(["p/**/*.png"]).items] == ["p/b.png", "p/sub/c.png"]
    with pytest.raises(UsageError, match=r"no picture fits `p/\*\.gif`"):
        taken(["p/*.gif"])
    Path("p/x[1].png").write_bytes(b"")
    assert [i.path for i in taken(["p/x[1].png"]).items] == ["p/x[1].png"]


def test_a_list_is_of_lines_or_of_what_find_prints(tree: Path) -> None:
    for data in (b"p/b.png\nmissing file.png\n\n", b"p/b.png\0missing file.png\0"):
        sources = Sources()
        sources.add_list(data)
        assert [i.path for i in sources.items] == ["p/b.png", "missing file.png"]


def test_a_csv_and_json_lines_say_the_same(tree: Path) -> None:
    Path("m.csv").write_text(
        "picture,target,expected,boxes,patient\n"
        'p/b.png,key,,"[[1, 2, 3, 4], [5, 6, 7, 8]]",x\n'
        "p/b.png,3,umbrella,,x\n"
        '"../away, far.png",,,,\n',
        "utf-8-sig",
    )
    rows = [
        {"picture": "p/b.png", "target": "key", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "patient": "x"},
        {"picture": "p/b.png", "target": "3", "expected": "umbrella"},
        {"picture": "../away, far.png"},
    ]
    Path("m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = []
    for name in ("m.csv", "m.jsonl"):
        sources = Sources()
        sources.add_manifest(tree / name)
        found.append(sources.items)
        assert sources.notes == ["fields of the manifest that mean nothing here: patient"]
    assert found[0] == found[1]
    first, second, third = found[0]
    assert (first.name, first.target, first.expected) == ("p/b.png", "key", None)
    assert first.boxes == ((1, 2, 3, 4), (5, 6, 7, 8)) and second.boxes is None
    assert first.path == str(tree / "p/b.png") == second.path and second.name.startswith("p/b.png~")
    assert third.path == str(tree / "../away, far.png") and third.name.startswith("away, far.png~")


def test_corners_in_columns_are_one_box(tree: Path) -> None:
    Path("m.csv").write_text("picture,x0,y0,x1,y1\np/b.png,1,2,3.5,4\np/a.JPG,,,,\n")
    sources = Sources()
    sources.add_manifest("m.csv")
    assert [i.boxes for i in sources.items] == [((1, 2, 3.5, 4),), None]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.csv", "image,target\nx.png,\n", "no column `picture`"),
        ("m.csv", "", "no column `picture`"),
        ("m.csv", 'picture\n"x.png\n', "near line 1: unexpected end of data"),
        ("m.csv", "picture\nx.png,y\n", "line 2: more values than columns"),
        ("m.csv", "picture,boxes\nx.png,[[1\n", "line 2: `boxes` is not JSON"),
        ("m.csv", 'picture,boxes\nx.png,"[[4, 2, 3, 4]]"\n', "line 2: the box [4, 2, 3, 4] is not x0 < x1"),
        ("m.csv", "picture,x0,y0\nx.png,1,2\n", "line 2: one box in x0, y0, x1, y1"),
        ("m.jsonl", '{"picture": 3}\n', "line 1: `picture` is no path"),
        ("m.jsonl", '{"picture": "x.png"}\nnonsense\n', "line 2: not JSON"),
        ("m.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("m.jsonl", '{"picture": "x", "boxes": [[NaN, 0, 1, 1]]}\n', "line 1: not JSON: NaN is no JSON"),
        ("m.jsonl", '{"picture": "x", "target": [1]}\n', "line 1: `target` is neither a label nor an index"),
        ("m.txt", "x.png\n", "a manifest ends in .csv or .jsonl"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_line(tree: Path, name: str, text: str, said: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(UsageError) as caught:
        Sources().add_manifest(name)
    assert said in caught.value.message and caught.value.hint


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([".csv", ".jsonl"]),
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda t: ("picture,target,boxes\n" + t).encode(errors="replace")),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["picture", "target", "expected", "boxes", "x0", "x"]), inner, max_size=4
                )
            ),
            max_leaves=12,
        ).map(lambda v: json.dumps(v).encode()),
    ),
)
def test_any_manifest_is_read_or_refused_by_design(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed{suffix}"
    path.write_bytes(data)
    sources = Sources()
    try:
        sources.add_manifest(path)
    except UsageError as error:
        assert error.hint
    else:
        assert all(isinstance(i.path, str) and os.sep + ".." not in os.sep + i.name for i in sources.items)
