"""Every number here was worked out on paper from the network in `toy.py`."""

from math import exp, log

import numpy as np
import onnx
import pytest
from onnx import ModelProto, parser
from toy import A, C, V, X, toy

from onnxcam import Explainer, rewrite
from onnxcam.errors import UnsupportedError
from onnxcam.explanation import Explanation, highest
from onnxcam.runtime import Session


def explained(model: ModelProto, target: int = 0, x: np.ndarray = X, **options: object) -> Explanation:
    (explanation,) = Explainer(model, threads=1, **options).explain_tensor(x, target)
    return explanation


def alpha_of(model: ModelProto, class_index: int, **options: object) -> np.ndarray:
    session = Session(rewrite(model, **options), threads=1)
    feed = {"x": X, "class_index": np.array([class_index], np.int64)}
    return session.run(feed, ["onnxcam_alpha"])["onnxcam_alpha"][0]


def close(got: object, expected: object) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


ALPHA = [
    # G = V[class, k] / 4 in each of the 4 cells behind the ReLU, so its mean is the same.
    ("gradcam", "a", 0, [0.25, 0.5]),
    ("gradcam", "a", 1, [1, -2]),
    # Before the ReLU only one of the four cells of channel 1 is open.
    ("gradcam", "c", 0, [0.25, 0.125]),
    ("gradcam", "c", 1, [1, -0.5]),
    ("cam", "a", 0, [1, 2]),
    ("cam", "a", 1, [4, -8]),
]


@pytest.mark.parametrize(("method", "layer", "target", "expected"), ALPHA)
def test_alpha_is_the_mean_gradient_or_the_linear_weight(
    method: str, layer: str, target: int, expected: list[float]
) -> None:
    close(alpha_of(toy(), target, method=method, layer=layer), np.reshape(expected, (2, 1, 1)))


def test_hirescam_alpha_is_the_gradient_cell_by_cell() -> None:
    close(alpha_of(toy(), 0, method="hirescam", layer="c"), [[[0.25, 0.25], [0.25, 0.25]], [[0.5, 0], [0, 0]]])


RAW = [
    ("gradcam", "a", 0, [[2, 0.5], [0.75, 0.75]]),
    ("gradcam", "a", 1, [[-4, 2], [3, 3]]),
    ("gradcam", "c", 0, [[0.875, 0.375], [0.5, 0]]),
    ("gradcam", "c", 1, [[0.5, 2.5], [4, 6]]),
    ("hirescam", "a", 1, [[-4, 2], [3, 3]]),
    ("hirescam", "c", 0, [[2, 0.5], [0.75, 0.75]]),
    ("hirescam", "c", 1, [[-4, 2], [3, 3]]),
    ("cam", "a", 0, [[8, 2], [3, 3]]),
    ("cam", "a", 1, [[-16, 8], [12, 12]]),
]


@pytest.mark.parametrize(("method", "layer", "target", "expected"), RAW)
def test_raw_is_the_signed_weighted_sum_of_the_activations(
    method: str, layer: str, target: int, expected: list[list[float]]
) -> None:
    close(explained(toy(), target, method=method, layer=layer).raw, expected)


VALUES = [
    ("minmax", 0, [[1, 0], [1 / 6, 1 / 6]]),
    ("minmax", 1, [[0, 2 / 3], [1, 1]]),
    ("max", 0, [[1, 0.25], [0.375, 0.375]]),
    ("max", 1, [[0, 2 / 3], [1, 1]]),
    ("none", 0, [[2, 0.5], [0.75, 0.75]]),
    ("none", 1, [[0, 2], [3, 3]]),
]


@pytest.mark.parametrize(("normalize", "target", "expected"), VALUES)
def test_values_are_the_positive_part_of_raw_in_each_normalisation(
    normalize: str, target: int, expected: list[list[float]]
) -> None:
    close(explained(toy(), target, normalize=normalize).values, expected)


def strided() -> ModelProto:
    """Each 2x2 block of the picture is one cell: its mean, through ReLU, pooling and one weight per class."""
    return parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        strided (float[N,1,4,4] x) => (float[N,2] z)
        <float[1,1,2,2] w = {0.25, 0.25, 0.25, 0.25}, float[2,1] v = {4, -4}>
        {
            c = Conv<strides=[2,2]>(x, w)
            a = Relu(c)
            p = GlobalAveragePool(a)
            f = Flatten(p)
            z = Gemm<transB=1>(f, v)
        }""")


def test_the_map_is_enlarged_bilinearly_between_the_centres_of_its_cells() -> None:
    cells = np.array([[0, 1], [2, 4]])
    x = np.kron(cells, np.ones((2, 2))).astype(np.float32)[None, None]
    explanation = explained(strided(), x=x, normalize="none")
    close(explanation.raw, cells)
    # Pixel centres lie at -1/4, 1/4, 3/4 and 5/4 between the cells' centres 0 and 1; the ends are clamped.
    share = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    close(explanation.values, share @ cells @ share.T)
    close(explained(strided(), x=x).values, share @ cells @ share.T / 4)


def test_a_map_without_positive_cell_is_empty_and_zero_everywhere() -> None:
    x = np.ones((1, 1, 4, 4), np.float32)
    explanation = explained(strided(), target=1, x=x)
    close(explanation.raw, [[-1, -1], [-1, -1]])
    assert explanation.is_empty and not explanation.has_nan
    assert np.array_equal(explanation.values, np.zeros((4, 4)))
    assert explanation.warnings == ("the map is empty: no cell of `a` speaks for this class",)
    assert not explained(strided(), target=0, x=x).is_empty


@pytest.mark.parametrize("normalize", ["minmax", "max", "none"])
def test_nan_in_the_activations_is_reported_and_left_in_the_values(normalize: str) -> None:
    x = X.copy()
    x[0, 0, 0, 0] = np.nan
    explanation = explained(toy(), x=x, layer="c", normalize=normalize)
    assert explanation.has_nan and not explanation.is_empty
    assert np.isnan(explanation.values).all() if normalize == "minmax" else np.isnan(explanation.values[0, 0])
    assert explanation.warnings == (
        "the map holds NaN: the model's activations or gradients overflowed on this picture",
    )


def test_infinite_activations_of_both_signs_are_reported_as_nan() -> None:
    x = X.copy()
    x[0, 0, 0, 0] = np.inf
    explanation = explained(toy(), x=x, target=0, layer="c")  # c = inf, -inf there; alpha 0.25 and 0
    assert explanation.has_nan


P0 = 1 / (1 + exp(-1.0))  # softmax of (4.5, 3.5)
SIGMOID = 1 / (1 + exp(-4.5))
SCORED = [
    ("y = Identity(z)", P0 * (1 - P0) * (V[0] - V[1]) / 4, P0),
    ("y = Softmax<axis=1>(z)", P0 * (1 - P0) * (V[0] - V[1]) / 4, P0),
    ("y = LogSoftmax<axis=1>(z)", P0 * (1 - P0) * (V[0] - V[1]) / 4, P0),
    ("y = Sigmoid(z)", SIGMOID * (1 - SIGMOID) * V[0] / 4, SIGMOID),
]


@pytest.mark.parametrize(("tail", "alpha", "score"), SCORED)
def test_score_probability_differentiates_the_softmax_or_sigmoid(tail: str, alpha: np.ndarray, score: float) -> None:
    close(alpha_of(toy(tail), 0, score="probability")[:, 0, 0], alpha)
    explanation = explained(toy(tail), 0, score="probability")
    close(explanation.score, score)
    close(explanation.raw, np.tensordot(alpha, A, 1))


TAILS = {
    "Softmax": ("y = Softmax<axis=1>(z)", "float[N,2] y", P0),
    "Softmax over the last axis": ("y = Softmax<axis=-1>(z)", "float[N,2] y", P0),
    "Sigmoid": ("y = Sigmoid(z)", "float[N,2] y", SIGMOID),
    "LogSoftmax": ("y = LogSoftmax<axis=1>(z)", "float[N,2] y", P0),
    "Softmax, Cast": ("s = Softmax<axis=1>(z) y = Cast<to=11>(s)", "double[N,2] y", P0),
    "Softmax, Identity, Dropout": ("s = Softmax<axis=1>(z) i = Identity(s) y = Dropout(i)", "float[N,2] y", P0),
    "Softmax over (N, 1, 1, C), Transpose": (
        "shape = Constant<value_ints=[-1,1,1,2]>() r = Reshape(z, shape) s = Softmax<axis=3>(r) "
        "y = Transpose<perm=[0,3,1,2]>(s)",
        "float[N,2,1,1] y",
        P0,
    ),
    "Softmax, Reshape to (N, C, 1, 1)": (
        "s = Softmax<axis=1>(z) shape = Constant<value_ints=[-1,2,1,1]>() y = Reshape(s, shape)",
        "float[N,2,1,1] y",
        P0,
    ),
    "Unsqueeze, Sigmoid, Squeeze": (
        "ax = Constant<value_ints=[2,3]>() u = Unsqueeze(z, ax) s = Sigmoid(u) y = Squeeze(s, ax)",
        "float[N,2] y",
        SIGMOID,
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_a_final_activation_is_stepped_over_and_the_logit_explained(name: str) -> None:
    tail, output, probability = TAILS[name]
    explainer = Explainer(toy(tail, output), threads=1)
    (explanation,) = explainer.explain_tensor(X, 0)
    close(explanation.score, 4.5)
    close(explanation.probability, probability)
    close(explanation.raw, [[2, 0.5], [0.75, 0.75]])
    activation = next(k for k in ("LogSoftmax", "Softmax", "Sigmoid") if k in name)
    assert f"the final {activation} is stepped over: the class logit is explained" in explainer.notes
    assert explanation.provenance["logits"] != explanation.provenance["output"] == "y"


def test_raw_logits_of_rank_four_are_one_score_per_class() -> None:
    model = toy("shape = Constant<value_ints=[-1,2,1,1]>() y = Reshape(z, shape)", "float[N,2,1,1] y")
    explanation = explained(model, 1)
    close(explanation.score, 3.5)
    close(explanation.raw, [[-4, 2], [3, 3]])
    assert explanation.probability is None
    assert [(c.index, round(c.score, 5)) for c in explanation.top] == [(0, 4.5), (1, 3.5)]


def test_top_holds_probabilities_where_the_model_ends_in_an_activation() -> None:
    (first, second) = explained(toy("y = LogSoftmax<axis=1>(z)"), None).top
    close((first.score, second.score), (P0, 1 - P0))
    assert (first.index, second.index) == (0, 1)


def test_a_single_logit_is_explained_through_a_sigmoid_when_its_probability_is_asked_for() -> None:
    model = toy(output="float[N,1] y", weights="float[1,2] v = {1, 2}, float[1] b = {0.5}")
    explanation = explained(model, 0, score="probability")
    close(explanation.score, SIGMOID)
    close(explanation.raw, SIGMOID * (1 - SIGMOID) * np.array([[2, 0.5], [0.75, 0.75]]))


def test_the_hand_computed_network_is_the_one_that_runs() -> None:
    from onnx.reference import ReferenceEvaluator

    model = toy()
    model.graph.output.extend([onnx.ValueInfoProto(name=n) for n in ("c", "a", "z")])
    _, c, a, z = ReferenceEvaluator(model).run(None, {"x": X})
    close(c[0], C)
    close(a[0], A)
    close(z[0], [4.5, 3.5])
    assert log(P0 / (1 - P0)) == pytest.approx(1.0)


NOT_CAM = {
    "two linear layers": "v2 = Constant<value_floats=[1.0,0.0,0.0,1.0]>() s = Constant<value_ints=[2,2]>() "
    "m = Reshape(v2, s) y = MatMul(z, m)",
    "a nonlinearity": "t = Relu(z) y = Identity(t)",
}


@pytest.mark.parametrize("why", NOT_CAM)
def test_cam_refuses_a_head_that_is_not_pooling_then_one_linear_layer(why: str) -> None:
    with pytest.raises(UnsupportedError, match="method `cam` needs global average pooling and one linear layer") as e:
        Explainer(toy(NOT_CAM[why]), method="cam")
    assert "use `gradcam`" in e.value.hint


def test_cam_refuses_a_layer_before_a_nonlinearity_and_names_it() -> None:
    with pytest.raises(UnsupportedError, match="after `c`: Relu node"):
        Explainer(toy(), method="cam", layer="c")


def test_cam_reads_linear_weights_of_a_matmul_as_columns() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        toy (float[N,2,2,2] x) => (float[N,2] y)
        <float[2,2,1,1] w = {1, 1, -1, 3}, float[2] wb = {0, 1}, float[2,2] v = {1, 4, 2, -8}, float[2] b = {0.5, -0.5},
         int64[2] axes = {2, 3}>
        {
            c = Conv(x, w, wb)
            a = Relu(c)
            f = ReduceMean<keepdims=0>(a, axes)
            m = MatMul(f, v)
            y = Add(m, b)
        }""")
    close(explained(model, 1, method="cam").raw, [[-16, 8], [12, 12]])


def test_the_highest_are_those_of_a_stable_sort_with_ties_and_with_numbers_that_are_none() -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):
        scores = rng.integers(-3, 4, int(rng.integers(0, 12))).astype(np.float32)
        scores[rng.random(len(scores)) < 0.2 * (trial % 3)] = rng.choice([np.nan, np.inf, -np.inf])
        for count in (1, 3, 5, 20):
            wanted = sorted(range(len(scores)), key=lambda i: (np.isnan(scores[i]), -scores[i]))[:count]
            assert highest(scores, count).tolist() == wanted, scores
