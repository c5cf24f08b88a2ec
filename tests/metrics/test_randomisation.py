"""Randomisation: which tensors are shuffled in which order, and the rank correlation."""

import math

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxcam.errors import UnsupportedError
from onnxcam.metrics import randomised_models, rank_correlation

# Two convolutions, the second with weights behind a DequantizeLinear, a product of two activations, a linear layer.
TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
net (float[N, 2, 4, 4] x) => (float[N, 3] y)
<float step = {0.1}, int64[2] rows = {-1, 6}>
{
    a = Conv (x, first, bias)
    weights = DequantizeLinear (quantised, step)
    b = Conv (a, weights)
    c = ReduceMean <keepdims = 0> (b, axes)
    d = Reshape (c, rows)
    e = Transpose <perm = [1, 0]> (d)
    f = MatMul (d, e)
    g = MatMul (f, d)
    y = MatMul (g, last)
}
"""


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    model = parser.parse_model(TEXT)
    model.graph.initializer.extend(
        numpy_helper.from_array(values, name)
        for name, values in {
            "first": rng.normal(size=(6, 2, 3, 3)).astype(np.float32),
            "bias": rng.normal(size=6).astype(np.float32),
            "quantised": rng.integers(-128, 128, (6, 6, 1, 1), np.int8),
            "axes": np.array([2, 3]),
            "last": rng.normal(size=(6, 3)).astype(np.float32),
        }.items()
    )
    return model


def tensors(model):
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_weights_are_shuffled_from_the_output_down_and_stay_shuffled(model):
    stages = list(randomised_models(model, stages=3, seed=1))
    assert [names for names, _ in stages] == [("last",), ("last", "quantised"), ("last", "quantised", "first")]
    before = tensors(model)
    for names, shuffled in stages:
        onnx.checker.check_model(shuffled)
        after = tensors(shuffled)
        assert {n for n in before if (after[n] != before[n]).any()} == set(names)
    first, final = tensors(stages[0][1]), tensors(stages[2][1])
    assert (first["last"] == final["last"]).all()


def test_shuffling_keeps_every_value_shape_and_type(model):
    before = tensors(model)
    *_, (names, shuffled) = randomised_models(model)
    for name in names:
        after = tensors(shuffled)[name]
        assert (after.shape, after.dtype) == (before[name].shape, before[name].dtype)
        assert (np.sort(after.ravel()) == np.sort(before[name].ravel())).all()


def test_the_seed_decides(model):
    one, same, other = (next(randomised_models(model, seed=s))[1] for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_layers_are_dealt_to_the_stages_asked_for(model):
    assert [len(names) for names, _ in randomised_models(model, stages=2)] == [2, 3]
    assert [len(names) for names, _ in randomised_models(model, stages=50)] == [1, 2, 3]


def test_the_model_given_is_left_alone(model):
    before = model.SerializeToString(deterministic=True)
    list(randomised_models(model))
    assert model.SerializeToString(deterministic=True) == before


def test_constant_nodes_are_weights_too():
    text = "<ir_version: 8, opset_import: ['' : 18]> net (float[1, 2] x) => (float[1, 2] y) {y = MatMul (x, w)}"
    model = parser.parse_model(text.replace("'", '"'))
    values = numpy_helper.from_array(np.arange(4, dtype=np.float32).reshape(2, 2))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=values))
    ((names, shuffled),) = randomised_models(model, seed=3)
    assert names == ("w",)
    assert sorted(numpy_helper.to_array(shuffled.graph.node[0].attribute[0].t).ravel()) == [0, 1, 2, 3]


def test_a_model_without_weights_is_refused():
    model = parser.parse_model('<ir_version: 8, opset_import: ["" : 18]> n (float[1] x) => (float[1] y) {y = Relu (x)}')
    with pytest.raises(UnsupportedError, match="no layer with constant weights"):
        next(randomised_models(model))


def test_rank_correlation_is_spearmans():
    # 1 - 6 sum d^2 / (n (n^2 - 1)) with ranks 1 2 3 4 5 against 2 1 4 3 5.
    assert rank_correlation(np.array([1.0, 2, 3, 4, 5]), np.array([20.0, 10, 40, 30, 50])) == pytest.approx(
        1 - 24 / 120
    )
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([9.0, 4, 1])) == pytest.approx(-1)


def test_equal_values_share_their_mean_rank():
    # Ranks 1.5 1.5 3 4 against 1 2 3 4: covariance 4.5, squares 4.5 and 5.
    assert rank_correlation(np.array([5.0, 5, 7, 9]), np.array([0.0, 1, 2, 3])) == pytest.approx(math.sqrt(0.9))


def test_a_constant_map_has_no_rank_correlation():
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
