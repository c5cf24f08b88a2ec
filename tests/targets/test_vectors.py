"""One class against another, single elements, likeness and functions of one's own, against closed forms.

x (N, 1, 4, 4) -> c = 1 x 1 convolution -> a = ReLU -> p = means (2,) -> z = V p (3,), so that for a score s(z) the
gradient at a is V^T ds/dz / 16 in every cell and HiResCAM's map is sum_k (V^T ds/dz)_k a_k / 16.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from target_networks import network

from onnxcam import Explainer, Picture, load_picture
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.targets import Against, Element, Function, Linear, Similarity, TargetSpec

W = np.array([1.0, -2.0]).reshape(2, 1, 1)
B = np.array([0.5, 0.25]).reshape(2, 1, 1)
V = np.array([[1, 2], [3, -4], [5, 6.0]])


def features(x: np.ndarray) -> np.ndarray:
    """a (2, 4, 4) of one sample, in float64."""
    return np.maximum(W * x.astype(np.float64) + B, 0)


def scores(x: np.ndarray) -> np.ndarray:
    """z (3,) of one sample."""
    return V @ features(x).mean(axis=(1, 2))


def difference(function: Callable[[np.ndarray], float], z: np.ndarray) -> np.ndarray:
    """The gradient (3,) by central differences in float64."""
    steps = np.eye(3) * 1e-6
    return np.array([(function(z + h) - function(z - h)) / 2e-6 for h in steps])


def verify(explainer: Explainer, x: np.ndarray, function: Callable[[np.ndarray], float], target: object = None) -> None:
    """Score and HiResCAM map of each sample are those of `function(z)`."""
    for sample, found in zip(x, explainer.explain_tensor(x, target), strict=True):  # type: ignore[arg-type]
        z = scores(sample)
        raw = np.tensordot(V.T @ difference(function, z), features(sample), 1) / 16
        assert found.score == pytest.approx(function(z), rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(found.raw, raw, rtol=1e-4, atol=2e-6 * np.abs(raw).max() + 1e-7)


def explainer(target: TargetSpec, **net) -> Explainer:
    return Explainer(network(**net), target=target, layer="a", method="hirescam", threads=1)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 1, 4, 4)).astype(np.float32)


# --- against ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["y = Identity(z)", "y = Softmax<axis=1>(z)"])
def test_a_class_against_another_is_the_difference_of_their_logits(x: np.ndarray, tail: str) -> None:
    made = explainer(Against(), tail=tail)
    for this, that in ((0, 2), (2, 1)):
        verify(made, x, lambda z, a=this, b=that: float(z[a] - z[b]), Against(this, that))
    z = scores(x[0])
    first, second = np.argsort(-z)[:2]
    (found,) = made.explain_tensor(x[:1])
    assert found.score == pytest.approx(z[first] - z[second], rel=1e-5)
    assert (found.class_index, found.label) == (first, f"class {first} against class {second}")


def test_against_is_the_linear_target_with_weights_one_and_minus_one(x: np.ndarray) -> None:
    (one,) = explainer(Against()).explain_tensor(x[:1], Against(1, 0))
    (other,) = explainer(Linear({"y": [-1, 1, 0]})).explain_tensor(x[:1])
    np.testing.assert_array_equal(one.raw, other.raw)


def test_the_rival_may_be_fixed_and_the_class_asked() -> None:
    made = Explainer(network(), target=Against(rival="c"), labels=["a", "b", "c"], layer="a", threads=1)
    (found,) = made.explain_tensor(np.ones((1, 1, 4, 4), np.float32), "b")
    assert found.label == "b against c"
    with pytest.raises(UsageError, match="class 2 against itself"):
        made.explain_tensor(np.ones((1, 1, 4, 4), np.float32), "c")


def test_a_single_class_has_no_rival() -> None:
    with pytest.raises(UnsupportedError, match="`y` holds one class"):
        explainer(Against(), tail="s = ReduceSum(z) y = Flatten(s)", output="float[N,1] y")


def test_counterfactual_turns_the_sign_of_the_logit(x: np.ndarray) -> None:
    made = Explainer(network(), score="counterfactual", layer="a", method="hirescam", threads=1)
    verify(made, x, lambda z: -float(z[1]), 1)


# --- element ------------------------------------------------------------------------------------------------------

# The output (N, 2, 3, 1) is [z, 2 z + z_0 z].
WIDE = {
    "tail": "two = Constant<value_float=2.0>() first = Slice(z, nought, one, one) d = Mul(z, two) q = Mul(z, first) "
    "e = Add(d, q) r = Reshape(z, form) t = Reshape(e, form) y = Concat<axis=1>(r, t)",
    "output": "float[N,2,3,1] y",
}


def wide(batch: str = "N") -> onnx.ModelProto:
    text = WIDE["tail"].replace(
        "two =",
        "nought = Constant<value_ints=[0]>() one = Constant<value_ints=[1]>() "
        "form = Constant<value_ints=[-1,1,3,1]>() two =",
        1,
    )
    return network(text, WIDE["output"], batch)


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("y[0,2]", lambda z: z[2]),
        ("y[1, 2, 0]", lambda z: 2 * z[2] + z[0] * z[2]),
        ("-y[1,-3]", lambda z: -(2 * z[0] + z[0] * z[0])),
        ("y[:,1:]", lambda z: (z + 2 * z + z[0] * z)[1:].sum()),
        ("y[-1]", lambda z: (2 * z + z[0] * z).sum()),
        ("y", lambda z: (z + 2 * z + z[0] * z).sum()),
        ("e[1]", lambda z: 2 * z[1] + z[0] * z[1]),
    ],
)
def test_an_element_or_a_part_of_an_output_is_picked_per_sample(x: np.ndarray, text: str, function, batch: str) -> None:
    made = Explainer(wide(batch), target=Element(text), layer="a", method="hirescam", threads=1)
    verify(made, x, lambda z: float(function(z)))


def test_a_regression_output_of_any_shape_is_explained(x: np.ndarray) -> None:
    flat = explainer(
        Element("y"), tail="one = Constant<value_ints=[1]>() y = ReduceSum<keepdims=0>(z, one)", output="float[N] y"
    )
    verify(flat, x, lambda z: float(z.sum()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("y[3]", r"`y` has no element 3 along axis 0: it is \[3\] per sample"),
        ("y[-4]", r"no element -4"),
        ("y[2:2]", r"no element 2:2"),
        ("y[0,0]", r"`y\[0,0\]` has 2 indices, and `y` is \[3\] per sample"),
        ("y[a]", r"index `a` of `y`"),
        ("q[0]", r"no output `q`"),
    ],
)
def test_an_element_that_does_not_exist_is_said_with_the_shape(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        explainer(Element(text))


def test_an_explainer_made_for_one_element_refuses_another(x: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"made for `y\[1\]`, not for Element\(text='y\[0\]'\)"):
        explainer(Element("y[1]")).explain_tensor(x, Element("y[0]"))


# --- likeness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unlike", [False, True])
def test_likeness_is_the_cosine_whatever_the_length_of_the_arrow(x: np.ndarray, unlike: bool) -> None:
    reference = np.array([1.0, -2, 0.5])

    def cosine(z: np.ndarray) -> float:
        value = float(z @ reference / np.linalg.norm(z) / np.linalg.norm(reference))
        return 1 - value if unlike else value

    made = explainer(Similarity(unlike=unlike))
    verify(made, x, cosine, Similarity(reference, unlike=unlike))
    verify(made, x, cosine, Similarity(7 * reference, unlike=unlike))


def test_two_references_at_once_are_what_they_are_one_by_one(x: np.ndarray) -> None:
    asked = np.random.default_rng(1).standard_normal((3, 3))
    made = Explainer(network(), target=Similarity(), layer="a", threads=1)
    for row, found in zip(asked, made.explain_targets(x[:1], list(map(Similarity, asked))), strict=True):
        (alone,) = made.explain_tensor(x[:1], Similarity(row))
        np.testing.assert_allclose(found.raw, alone.raw, rtol=1e-5, atol=1e-7)
        assert found.score == pytest.approx(alone.score, rel=1e-6)


def test_a_picture_is_as_like_itself_as_can_be_and_its_embedding_is_the_reference(tmp_path: Path) -> None:
    gray = np.random.default_rng(2).integers(0, 256, (4, 4), np.uint8)
    made = Explainer(network(), target=Similarity(), layer="a", threads=1)
    picture: Picture = load_picture(gray)
    assert made(picture, Similarity(picture)).score == pytest.approx(1, abs=1e-6)
    embedding = made.outputs(made.preprocess(picture)[0])["y"]
    np.save(tmp_path / "other.npy", -embedding)
    found = made(picture, str(tmp_path / "other.npy"))
    assert found.score == pytest.approx(-1, abs=1e-6)
    assert found.label == "like other.npy"


def test_a_value_inside_the_model_may_be_the_embedding(x: np.ndarray) -> None:
    made = Explainer(network(), target=Similarity(output="f"), layer="a", threads=1)
    pooled = made.outputs(x)["f"]
    np.testing.assert_allclose(pooled, [features(sample).mean(axis=(1, 2)) for sample in x], rtol=1e-5)
    picture = load_picture(np.full((4, 4), 90, np.uint8))
    assert made(picture, Similarity(picture)).score == pytest.approx(1, abs=1e-6)


ONE = "one = Constant<value_ints=[1]>() "
NORMALISED = {
    "as PyTorch does": ONE + "e = Constant<value_float=0.0001>() l = ReduceL2(z, one) m = Clip(l, e) s = Shape(z) "
                       "n = Expand(m, s) y = Div(z, n)",
    "by an operator": "y = LpNormalization<axis=1>(z)",
    "by a square root of squares": ONE + "q = Mul(z, z) t = ReduceSum(q, one) l = Sqrt(t) y = Div(z, l)",
    "by a square root of their sum": ONE + "t = ReduceSumSquare(z, one) l = Sqrt(t) y = Div(z, l)",
}  # fmt: skip
NOT_NORMALISED = {
    "divided by a number": "t = Constant<value_float=3.0>() y = Div(z, t)",
    "divided by another's length": ONE + "q = Exp(z) l = ReduceL2(q, one) y = Div(z, l)",
    "divided by a sum": ONE + "q = Mul(z, z) l = ReduceSum(q, one) y = Div(z, l)",
}


@pytest.mark.parametrize("name", NORMALISED)
def test_rows_of_length_one_are_an_embedding_and_no_classes(name: str) -> None:
    model = network(NORMALISED[name])
    with pytest.raises(
        UnsupportedError, match="`y` is scaled to length 1: an embedding, not scores of 3 classes"
    ) as said:
        Explainer(model)
    assert "--similar-to FILE" in said.value.hint
    assert Explainer(model, output="y", layer="a").classes == 3
    assert Explainer(model, target=Similarity(np.ones(3)), layer="a").classes == 0


@pytest.mark.parametrize("name", NOT_NORMALISED)
def test_other_divisions_at_the_end_are_of_scores(name: str) -> None:
    assert Explainer(network(NOT_NORMALISED[name]), layer="a").classes == 3


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (np.ones(4), "a reference of length 4, but the embedding `y` has length 3"),
        (np.ones((2, 3)), r"a reference of length 6 \(2, 3\), but the embedding `y` has length 3"),
        (np.zeros(3), "the reference is zero"),
        (np.array([1, np.nan, 0]), "not a number"),
        (None, "there is no reference to compare with"),
        (Similarity(np.ones(3), unlike=True), "the other of likeness and unlikeness"),
    ],
)
def test_a_reference_that_does_not_fit_is_said_with_the_length(x: np.ndarray, reference: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        explainer(Similarity()).explain_tensor(
            x, reference if isinstance(reference, Similarity) else Similarity(reference)
        )


def test_which_output_is_the_embedding_has_to_be_said_where_there_are_two() -> None:
    two = {"tail": "y = Identity(z) u = Neg(z)", "output": "float[N,3] y, float[N,3] u"}
    with pytest.raises(UnsupportedError, match=r"several outputs hold a vector per sample: `y` .*, `u`"):
        explainer(Similarity(np.ones(3)), **two)
    assert explainer(Similarity(np.ones(3), output="u"), **two).notes


# --- functions ----------------------------------------------------------------------------------------------------


def test_a_function_of_the_outputs_is_differentiated_like_any_other(x: np.ndarray) -> None:
    """log sum exp z + z_0 z_1."""

    def own(op, outputs):
        first, second = (op.Gather(outputs["y"], np.array(i), axis=1) for i in (0, 1))
        return op.Add(op.ReduceLogSumExp(outputs["y"], [1], keepdims=0), op.Mul(first, second))

    made = explainer(Function(own, label="mine"))
    verify(made, x, lambda z: float(np.log(np.exp(z).sum()) + z[0] * z[1]))
    assert made.explain_tensor(x)[0].label == "mine"


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda op, outputs: outputs["y"], r"the target has the shape \['N', 3\], not one number per sample"),
        (lambda op, outputs: 3, "returned int"),
    ],
)
def test_a_function_that_returns_no_score_per_sample_is_refused(function, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        explainer(Function(function))
