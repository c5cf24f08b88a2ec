"""Models with inputs beside the picture and several outputs, against closed forms.

x (N, 1, 4, 4) -> a = ReLU(2 x) -> p (N, 1) = mean; z = p times the second input's row (N, 3), plus a third input.
"""

from pathlib import Path

import numpy as np
import pytest
from onnx import parser
from target_networks import ROW, SHIFT, image_and_text, two_inputs

from onnxcam import Explainer
from onnxcam.errors import ModelError, UsageError
from onnxcam.targets import Element, Similarity


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((3, 1, 4, 4)).astype(np.float32)


def raw(sample: np.ndarray, factor: float) -> np.ndarray:
    """HiResCAM at a of factor times mean(a)."""
    return np.maximum(2 * sample[0].astype(np.float64), 0) * factor / 16


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("method", ["hirescam", "layercam"])
def test_the_map_is_that_of_the_values_fed(x: np.ndarray, batch: str, method: str) -> None:
    feeds = {"row": ROW, "shift": SHIFT}
    made = Explainer(two_inputs(batch=batch), feeds=feeds, layer="a", method=method, threads=1)
    for sample, found in zip(x, made.explain_tensor(x, 2), strict=True):
        mean = np.maximum(2 * sample.astype(np.float64), 0).mean()
        assert found.score == pytest.approx(3 * mean - 1, rel=1e-5)
        np.testing.assert_allclose(found.raw, raw(sample, 3), rtol=1e-5)
        assert found.provenance["feeds"] == {"row": [[1.0, -2.0, 3.0]], "shift": [0.5, 0.0, -1.0]}


def test_every_sample_may_have_values_of_its_own(x: np.ndarray) -> None:
    made = Explainer(two_inputs(), feeds={"row": ROW, "shift": SHIFT}, layer="a", method="hirescam", threads=1)
    rows = np.arange(9).reshape(3, 3)
    for i, found in enumerate(made.explain_tensor(x, 1, feeds={"row": rows})):
        np.testing.assert_allclose(found.raw, raw(x[i], rows[i, 1]), rtol=1e-5, atol=1e-7)
    with pytest.raises(UsageError, match="2 values of `row` for 3 samples"):
        made.explain_tensor(x, 1, feeds={"row": rows[:2]})
    with pytest.raises(UsageError, match="`shift` has no value of its own for each picture"):
        made.explain_tensor(x, 1, feeds={"shift": SHIFT})


@pytest.mark.parametrize("method", ["ablationcam", "occlusion", "gradcam"])
def test_many_runs_feed_them_each_time(x: np.ndarray, method: str) -> None:
    """The same map as the twin's with the values built in as constants."""
    twin = two_inputs("float[N,1,4,4] x", built_in=", float[1,3] row = {1, -2, 3}, float[3] shift = {0.5, 0, -1}")
    layer = None if method == "occlusion" else "a"
    fed = Explainer(two_inputs(), feeds={"row": ROW, "shift": SHIFT}, layer=layer, method=method, threads=1)
    built_in = Explainer(twin, layer=layer, method=method, threads=1)
    for one, other in zip(fed.explain_tensor(x, [0, 1, 2]), built_in.explain_tensor(x, [0, 1, 2]), strict=True):
        np.testing.assert_allclose(one.raw, other.raw, rtol=1e-5, atol=1e-7)
    together = fed.explain_targets(x[:1], [0, 2])
    for one, other in zip(together, built_in.explain_targets(x[:1], [0, 2]), strict=True):
        np.testing.assert_allclose(one.raw, other.raw, rtol=1e-5, atol=1e-7)


def test_any_output_of_several_is_explained(x: np.ndarray) -> None:
    feeds = {"row": ROW, "shift": SHIFT}
    made = Explainer(two_inputs(), feeds=feeds, target=Element("extra[0]"), layer="a", method="hirescam", threads=1)
    np.testing.assert_allclose(made.explain_tensor(x)[0].raw, raw(x[0], 1), rtol=1e-5)
    assert Explainer(two_inputs(), feeds=feeds, output="extra", threads=1).classes == 1


def test_values_come_from_numbers_text_and_files(x: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "row.npy", ROW)
    expected = Explainer(two_inputs(), feeds={"row": ROW, "shift": SHIFT}, threads=1).outputs(x)["y"]
    for row in ("1,-2,3", str(tmp_path / "row.npy"), tmp_path / "row.npy", [[1, -2, 3]]):
        made = Explainer(two_inputs(), feeds={"row": row, "shift": "0.5 0 -1"}, threads=1)
        np.testing.assert_array_equal(made.outputs(x)["y"], expected)
    scalar = Explainer(two_inputs(), feeds={"row": 2, "shift": 0}, threads=1).outputs(x)
    np.testing.assert_allclose(scalar["y"], 2 * scalar["extra"].repeat(3, 1))


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, r"needs 2 inputs beside the picture `x`: `row` float \(N, 3\), `shift` float \(3\)"),
        ({"row": ROW}, r"needs an input beside the picture `x`: `shift` float \(3\)"),
        ({"row": np.ones(4), "shift": SHIFT}, r"`row` takes float \(N, 3\), not float32 \(1, 4\)"),
        ({"row": "a", "shift": SHIFT}, "`row` takes float32, not `a`"),
        ({"row": "no.npy", "shift": SHIFT}, "no.npy is no .npy file"),
        ({"row": ROW, "shift": SHIFT, "q": 1}, "input `q` does not exist"),
        ({"row": ROW, "shift": SHIFT, "x": 1}, "input `x` is the picture"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said_with_type_and_shape(feeds: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        Explainer(two_inputs(), feeds=feeds, threads=1)
    assert raised.value.hint


def test_the_hint_says_what_to_pass() -> None:
    with pytest.raises(UsageError) as raised:
        Explainer(two_inputs(), feeds={"row": ROW}, threads=1)
    assert "--feed shift=FILE.npy" in raised.value.hint and "feeds={'shift': value}" in raised.value.hint


def test_integers_are_not_rounded() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,3,4,4] x, int64[N] row) => (float[N,3] y)
        { p = GlobalAveragePool(x) f = Flatten(p) r = Cast<to=1>(row) one = Constant<value_ints=[1]>()
          u = Unsqueeze(r, one) y = Mul(f, u) }""")
    with pytest.raises(UsageError, match=r"`row` takes int64, and 1.5 is none"):
        Explainer(model, feeds={"row": 1.5}, layer="x", threads=1)


def test_the_picture_is_named_where_two_inputs_look_like_one() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        net (float[N,1,4,4] left, float[N,1,4,4] right) => (float[N,1] y)
        { l = Relu(left) r = Relu(right) d = Sub(l, r) p = GlobalAveragePool(d) y = Flatten(p) }""")
    with pytest.raises(ModelError, match="several inputs that could be the picture") as raised:
        Explainer(model, threads=1)
    assert "--input NAME" in raised.value.hint
    x = np.ones((1, 1, 4, 4), np.float32)
    for name, other, score in (("left", "right", 1 - 0.5), ("right", "left", 0.5 - 1)):
        made = Explainer(model, input_name=name, feeds={other: x / 2}, threads=1)
        assert made.explain_tensor(x)[0].score == pytest.approx(score)
    with pytest.raises(UsageError, match="no input `middle`"):
        Explainer(model, input_name="middle", threads=1)


TEXTS = np.array([[1.0, 2], [-1, 0.5], [0.25, -3]])


def test_a_picture_is_explained_against_texts_by_the_logits_of_a_model_with_both_towers(x: np.ndarray) -> None:
    """Class t of (N, T) is text t: 10 times what likeness to the text's embedding is, wherever that comes from."""
    model = image_and_text()
    both = Explainer(model, feeds={"t": TEXTS}, layer="a", method="hirescam", threads=1)
    assert both.classes == 3
    like = Explainer(model, feeds={"t": TEXTS}, target=Similarity(output="e"), layer="a", method="hirescam", threads=1)
    embeddings = TEXTS @ np.array([[1, 0, 2], [-1, 1, 3.0]])
    for t in range(3):
        for one, other in zip(
            both.explain_tensor(x, t), like.explain_tensor(x, Similarity(embeddings[t])), strict=True
        ):
            assert one.score == pytest.approx(10 * other.score, rel=1e-5)
            np.testing.assert_allclose(one.raw, 10 * other.raw, rtol=1e-4, atol=1e-5)


def test_the_text_with_the_highest_logit_is_explained_by_default_and_texts_are_labels(x: np.ndarray) -> None:
    names = ["a dog", "a cat", "a car"]
    made = Explainer(image_and_text(), feeds={"t": TEXTS}, labels=names, layer="a", threads=1)
    logits = made.outputs(x[:1])["per_image"][0]
    assert made.explain_tensor(x[:1])[0].label == names[int(logits.argmax())]
    assert made.explain_tensor(x[:1], "a car")[0].score == pytest.approx(logits[2])
