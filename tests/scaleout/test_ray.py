"""Ray Data on a local cluster of two workers: the records of a local run. Skipped where Ray is not installed.

The folder is not called `ray`: other tests put `tests` on the path, where it would stand for Ray itself.
"""

# ruff: noqa: E402 - Ray is looked for first

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.data", reason="Ray is not installed: `pip install onnxcam[ray]`")
pytestmark = pytest.mark.filterwarnings("default")

import pyarrow.fs
import ray

from onnxcam.audit.records import read_records, read_run
from onnxcam.audit.run import Output, audit
from onnxcam.audit.sources import Sources
from onnxcam.demo import FOLDER, PICTURES
from onnxcam.errors import UsageError
from onnxcam.explainer import Explainer
from onnxcam.ray import Store, Worker, collect, explained

MODEL = FOLDER / "demo.onnx"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Twelve pictures in two folders, one of them broken and one missing; what is expected of them, boxes of one."""
    folder = tmp_path_factory.mktemp("pictures")
    rows: list[dict[str, Any]] = []
    sources = sorted(PICTURES.glob("*.jpg"))
    for i in range(12):
        path = folder / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.asarray(Image.open(sources[i % len(sources)]).convert("RGB").resize((96, 80)))
        Image.fromarray(np.roll(pixels, 9 * i, 1)).save(path)
        boxes = [[0.0, 0.0, 30.0, 40.0]] if i == 3 else None
        rows.append({"path": str(path), "target": "key" if i == 5 else None, "expected": "ring", "boxes": boxes})
    Path(rows[7]["path"]).write_bytes(b"\x89PNG no more")
    Path(rows[8]["path"]).unlink()
    return rows


@pytest.fixture(scope="module")
def root(manifest: list[dict[str, Any]]) -> str:
    return str(Path(manifest[0]["path"]).parents[1])


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, manifest: list[dict[str, Any]], root: str) -> Path:
    """What a local run leaves of the same pictures."""
    sources = Sources()
    for row in manifest:
        asked = {k: row[k] for k in ("target", "expected")} | {
            "boxes": row["boxes"] and tuple(map(tuple, row["boxes"]))
        }
        sources.add(row["path"], str(Path(row["path"]).relative_to(root)), **asked)
    folder = tmp_path_factory.mktemp("local")
    audit(Explainer(MODEL, threads=1), sources.items, folder, target=9, output=Output(values="npy"), batch=1, workers=1)
    return folder


def by_name(folder: Path) -> dict[str, Any]:
    return {r["name"]: r for r in read_records(folder)}


def test_two_workers_make_the_records_and_files_of_a_local_run(
    tmp_path_factory: pytest.TempPathFactory, manifest: list[dict[str, Any]], root: str, local: Path
) -> None:
    folder = tmp_path_factory.mktemp("spread")
    pictures = ray.data.from_items(manifest, override_num_blocks=4)
    records = explained(
        pictures,
        MODEL,
        folder,
        root=root,
        target=9,
        output=Output(values="npy"),
        concurrency=2,
        num_cpus=0.5,
        rows=3,
        batch=1,
    )
    records.write_parquet(str(folder / "records"))
    parquet = ray.data.read_parquet(str(folder / "records"))
    assert collect(parquet, folder) == 12
    found, expected = by_name(folder), by_name(local)
    assert found == expected and len(found) == 12
    assert {r["status"] for r in found.values()} == {"ok", "error"}
    for record in found.values():
        for name in filter(None, record.get("files", {}).values()):
            assert (folder / name).read_bytes() == (local / name).read_bytes()
    assert read_run(folder)["provenance"] == read_run(local)["provenance"]
    rows = {row["name"]: row for row in parquet.take_all()}
    wrong = {name for name, row in rows.items() if row["correct"] is False}
    assert wrong == {name for name, r in expected.items() if r["status"] == "ok" and not r["correct"]} != set()
    assert [n for n, row in rows.items() if row["error"]] == [n for n in rows if expected[n]["status"] == "error"]


def test_bytes_that_ray_read_are_explained_as_files_are(
    tmp_path: Path, manifest: list[dict[str, Any]], root: str, local: Path
) -> None:
    pictures = ray.data.read_binary_files(f"{root}/a", include_paths=True, file_extensions=["png"])
    collect(explained(pictures, MODEL, tmp_path / "out", root=root, target="umbrella", batch=1), tmp_path / "out")
    found = by_name(tmp_path / "out")
    expected = {n: r for n, r in by_name(local).items() if n.startswith("a/") and r["status"] == "ok"}
    same = ("sha256", "class_index", "score", "top", "peak", "map", "size")
    assert len(expected) == 5 and found.keys() == expected.keys()
    assert {n: [r[f] for f in same] for n, r in found.items()} == {n: [r[f] for f in same] for n, r in expected.items()}


def test_another_model_or_method_may_not_go_on_in_the_same_folder(
    tmp_path: Path, manifest: list[dict[str, Any]]
) -> None:
    pictures = ray.data.from_items(manifest)
    explained(pictures, MODEL, tmp_path)
    explained(pictures, MODEL, tmp_path)  # the same is the same
    with pytest.raises(UsageError, match="other settings"):
        explained(pictures, MODEL, tmp_path, method="layercam")


def test_a_dataset_without_paths_is_refused_by_name(tmp_path: Path) -> None:
    import pyarrow

    worker = Worker(str(MODEL), Store(tmp_path), "", None, Output(overlays=False), 1, 1, 10**8, {"threads": 1})
    with pytest.raises(UsageError, match="no column `path`, but image"):
        worker(pyarrow.table({"image": [1]}))


@pytest.mark.parametrize("name", ["run.json", "overlays/a/b.cam.png"])
def test_a_store_writes_whole_files_wherever_pyarrow_writes(tmp_path: Path, name: str) -> None:
    for folder in (str(tmp_path / "plain"), (tmp_path / "uri").as_uri()):
        store = Store(folder)
        assert store.read(name) is None
        assert store.write(name, b"first") == name and store.write(name, b"second") == name
        assert store.read(name) == b"second"
    assert (tmp_path / "uri" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes() == b"second"
    assert list(tmp_path.rglob(".partial/*")) == []
    assert isinstance(Store((tmp_path / "uri").as_uri())._system[0], pyarrow.fs.LocalFileSystem)
    with pytest.raises(UsageError, match="pyarrow knows"):
        Store("nothing://x").write(name, b"")


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "pictures" / "x.png"
    outside.parent.mkdir()
    shutil.copy(PICTURES / "demo.jpg", outside)
    rows = [{"path": str(outside), "name": "../../escaped"}, {"path": str(outside), "name": "/etc/escaped"}]
    records = explained(ray.data.from_items(rows), MODEL, tmp_path / "out", output=Output()).take_all()
    assert all(json.loads(r["record"])["files"]["overlay"].startswith("overlays/") for r in records)
    written = set(tmp_path.rglob("*escaped*"))
    assert len(written) == 2 and all(p.is_relative_to(tmp_path / "out" / "overlays") for p in written)
