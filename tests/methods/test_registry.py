"""What the table of methods says of each method is what the method does."""

import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_transformers as transformers
from PIL import Image
from test_identities import maps, network, pictures
from toy import toy

from onnxcam import Explainer, rewrite
from onnxcam.check import check
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.methods import METHODS, Option
from onnxcam.runtime import Session

FEW = {"masks": 7, "samples": 3, "steps": 4, "window": 6, "components": 4}  # small numbers for options that cost passes
TRANSFORMERS = {"vitreciprocam", "legrad"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def few(name: str) -> dict[str, int]:
    return {option: FEW[option] for option in METHODS[name].options if option in FEW}


def subject(name: str) -> tuple[onnx.ModelProto | Path, np.ndarray, tuple[int, int]]:
    """A model that the method takes, one sample of it, and the grid of its automatic layer."""
    if name in TRANSFORMERS:
        return transformers.file("vit"), transformers.subject()[0][:1], transformers.GRID
    return network(6), pictures(6), (6, 6)


@pytest.mark.parametrize("name", METHODS)
def test_the_forward_passes_that_the_table_states_are_those_that_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K = 8 channels, a grid of 6 x 6, 3 x 3 windows of 6 with stride 3; passes of the head alone are counted apart."""
    whole, head = [0], [0]
    run = Session.run

    def counted(self: Session, feeds: dict[str, np.ndarray], outputs: object = None) -> dict[str, np.ndarray]:
        (whole if "x" in feeds else head)[0] += max(len(v) for v in feeds.values())
        return run(self, feeds, outputs)

    model, x, (h, w) = subject(name)
    explainer = Explainer(model, method=name, method_options=few(name), size=x.shape[2:], threads=1)
    monkeypatch.setattr(Session, "run", counted)
    explainer.explain_tensor(x, 1)
    numbers = {"K": 8, "h": h, "w": w, "windows": 9, **few(name)}
    passes = re.sub(r"(\w+) (?=\w)", r"\1 * ", METHODS[name].passes.replace(" heads", ""))
    first, *rest = passes.split(" + ")
    stated = [eval(term, {}, numbers) for term in (first, *rest)]
    if "heads" in METHODS[name].passes:
        assert (whole[0], head[0]) == (stated[0], sum(stated[1:]))
    else:
        assert (whole[0], head[0]) == (sum(stated), 0)


@pytest.mark.parametrize("name", METHODS)
def test_maps_of_two_classes_differ_exactly_where_the_table_says_so(name: str) -> None:
    model, x, _ = subject(name)
    options = {"method": name, "method_options": few(name), "size": x.shape[2:]}
    first, second = (maps(model, x, c, **options)[0] for c in (1, 3))
    scale = max(np.abs(first.raw).max(), np.abs(second.raw).max())
    assert (np.abs(first.raw - second.raw).max() > 1e-3 * scale) == METHODS[name].class_discriminative


def blocked() -> onnx.ModelProto:
    """A pooling head behind a node of a domain that has no derivative rule; it cannot run, and need not."""
    model = network(6)
    model.graph.node.insert(4, onnx.helper.make_node("Unknown", ["a"], ["u"], domain="acme"))
    model.graph.node[5].input[0] = "u"
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    shape = onnx.helper.make_tensor_value_info("u", onnx.TensorProto.FLOAT, ["N", 8, 6, 6])
    model.graph.value_info.append(shape)
    return model


def test_methods_without_gradients_are_those_offered_behind_an_operator_without_a_rule() -> None:
    report = check(blocked(), size=(12, 12))
    methods = next(r.methods for r in report.layers if r.layer.name == "a")
    assert {*methods} == {name for name, row in METHODS.items() if not row.gradients} - {"cam", *TRANSFORMERS}


def test_a_check_offers_exactly_the_methods_that_an_explainer_takes() -> None:
    for model, size, others in ((toy(), None, TRANSFORMERS), (transformers.file("vit"), (24, 36), {"cam"})):
        report = check(model, size=size)
        assert report.automatic is not None
        assert {*report.automatic.methods} == {*METHODS} - others
        for name in METHODS:
            with pytest.raises(UnsupportedError) if name in others else nullcontext():
                Explainer(model, method=name, method_options=few(name), size=size)


def test_text_becomes_the_type_of_the_option() -> None:
    assert METHODS["rise"].chosen({"masks": "20", "p": "0.25"}) == {"masks": 20, "cells": 8, "p": 0.25}
    for wrong in ("2.5", "many", "", "inf", "nan"):
        with pytest.raises(UsageError, match="option `masks` takes int"):
            METHODS["rise"].chosen({"masks": wrong})
    with pytest.raises(UsageError, match="option `masks` is 0"):
        METHODS["rise"].chosen({"masks": 0})
    with pytest.raises(UsageError, match="option `p` is nan"):
        METHODS["rise"].chosen({"p": "nan"})
    assert Option("a", "", choices=("a", "b")).value("o", "b") == "b"


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names that the document's code makes, run beside a model and a picture of the names used there."""
    monkeypatch.chdir(tmp_path)
    known = dict(METHODS)
    onnx.save(network(6), "model.onnx")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save("picture.jpg")
    names: dict[str, object] = {}
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL))
    code = code.replace('"models/demo.onnx",', '"model.onnx", size=(12, 12),')
    code = code.replace('size=(12, 12), "models/pictures/demo.jpg",', '"models/pictures/demo.jpg", size=(12, 12),')
    code = code.replace('"models/pictures/demo.jpg"', '"picture.jpg"')
    exec(compile(code, str(DOCUMENT), "exec"), names)
    yield names
    METHODS.clear()
    METHODS.update(known)


def test_the_methods_of_the_document_do_what_it_says(documented: dict[str, object]) -> None:
    explanation, quarters = documented["explanation"], documented["by_quarter"]
    x, model = pictures(6), network(6)
    (got,) = maps(model, x, 1, method="norm-gradcam", method_options={"power": 4}, layer="i")
    session = Session(rewrite(model, layer="i", method="hirescam"), threads=1)
    found = session.run({"x": x, "class_index": np.array([1])})
    g, a = found["onnxcam_alpha"][0].astype(np.float64), found["onnxcam_activations"][0]
    alpha = (np.abs(g) ** 4).sum(axis=(1, 2)) ** 0.25 * np.sign(g.mean(axis=(1, 2)))
    np.testing.assert_allclose(got.raw, np.einsum("k,khw->hw", alpha, a), rtol=0, atol=1e-5 * np.abs(got.raw).max())
    assert explanation.method == "norm-gradcam"  # type: ignore[attr-defined]
    assert explanation.provenance["method_options"] == {"power": 4.0}  # type: ignore[attr-defined]
    (tensor,) = maps(model, x, 1, method="quadrants")
    kept = np.zeros_like(x)
    kept[..., 6:, :6] = x[..., 6:, :6]
    assert tensor.raw[1, 0] == pytest.approx(Session(model, threads=1).run({"x": kept})["z"][0, 1], rel=1e-5)
    assert quarters.raw.shape == (2, 2) and "onnxcam_alpha" in [  # type: ignore[attr-defined]
        o.name for o in rewrite("model.onnx", method="norm-gradcam").graph.output
    ]
