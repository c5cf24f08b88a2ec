from dataclasses import replace

import numpy as np
import pytest

from support.vjp import Case, gradient_at, gradients, run


def pool(kind: str, x: str, attributes: str, **options: object) -> Case:
    return Case(kind, f"double{x} x", f"y = {kind}<{attributes}>(x)", **options)


WINDOWS = [
    ("[N,2,7]", "kernel_shape=[3]"),
    ("[N,2,7]", "kernel_shape=[2], strides=[2]"),
    ("[N,2,5,6]", "kernel_shape=[2,3]"),
    ("[N,2,5,6]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"),
    ("[N,2,5,6]", "kernel_shape=[3,2], strides=[1,2], pads=[0,1,2,0]"),
    ("[N,2,7,8]", "kernel_shape=[2,2], strides=[3,3]"),
    ("[1,2,4,3,5]", "kernel_shape=[2,2,3], strides=[2,1,1], pads=[0,0,1,1,0,0]"),
    ("[N,2,5,6]", "kernel_shape=[5,6]"),
    ("[N,2,5,6]", "kernel_shape=[5,6], pads=[1,0,0,0]"),
    ("[N,2,6,8]", 'kernel_shape=[2,3], auto_pad="SAME_UPPER"'),
    ("[N,2,6,8]", 'kernel_shape=[2,3], auto_pad="SAME_LOWER"'),
    ("[N,2,6,8]", 'kernel_shape=[3,3], strides=[2,3], auto_pad="SAME_UPPER"'),
    ("[N,2,6,8]", 'kernel_shape=[3,3], strides=[2,3], auto_pad="SAME_LOWER"'),
    ("[N,2,6,8]", 'kernel_shape=[3,3], strides=[2,2], auto_pad="VALID"'),
    ("[N,2,6,7]", "kernel_shape=[3,3], strides=[2,2], ceil_mode=1"),
    ("[N,2,6,7]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], ceil_mode=1"),
    ("[N,2,7]", "kernel_shape=[1], strides=[4], ceil_mode=1"),
]
DILATED = [
    ("[N,2,9]", "kernel_shape=[3], dilations=[2]"),
    ("[N,2,7,8]", "kernel_shape=[2,3], dilations=[3,2], strides=[1,2], pads=[1,2,0,1]"),
    ("[N,2,7,8]", "kernel_shape=[2,2], dilations=[2,3], strides=[2,2], ceil_mode=1"),
]
PADDED = [w for w in WINDOWS if "pads" in w[1] or "SAME" in w[1] or "ceil" in w[1]]

# Small windows tap by tap, in the form for blocks of channels, and what has no such form.
TAPS = [
    ("[N,16,7,8]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,7,9]", "kernel_shape=[3,3], strides=[2,2]"),
    ("[N,16,7,8]", "kernel_shape=[2,2], strides=[2,2], ceil_mode=1"),
    ("[N,16,8,10]", "kernel_shape=[3,3], strides=[3,3]"),
    ("[N,16,6,8]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,6,8]", "kernel_shape=[2,2], strides=[2,2]"),
    ("[N,16,5,6]", "kernel_shape=[3,3], pads=[1,1,1,1]"),
    ("[N,16,6,8]", "kernel_shape=[3,2], strides=[2,2], pads=[1,0,0,0]"),
    ("[N,16,6,8]", 'kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"'),
    ("[N,16,6,8]", "kernel_shape=[3,3], strides=[2,2], ceil_mode=1"),
    ("[N,16,6,9]", "kernel_shape=[3,3], strides=[3,3]"),
]
NO_TAPS = [
    ("[N,16,7,8]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,7,9]", "kernel_shape=[3,3], strides=[2,2]"),
    ("[N,16,7,8]", "kernel_shape=[2,2], strides=[2,2], ceil_mode=1"),
    ("[N,16,8,10]", "kernel_shape=[3,3], strides=[3,3]"),
    ("[N,2,6,8]", "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,6,8]", "kernel_shape=[5,5], strides=[2,2], pads=[2,2,2,2]"),
    ("[N,16,6,9]", "kernel_shape=[2,2], strides=[3,3]"),
    ("[N,16,8]", "kernel_shape=[2], strides=[2]"),
    ("[N,16,H,W]", "kernel_shape=[3,3], pads=[1,1,1,1]"),
]

# Behind a ReLU zeros may stand around the picture, and cells are moved by convolutions.
BEHIND_RELU = [
    *TAPS,
    ("[N,16,8,8]", "kernel_shape=[3,3], strides=[2,2]"),
    ("[N,16,7,8]", "kernel_shape=[2,2], strides=[2,2]"),
    ("[N,16,8,11]", "kernel_shape=[3,3], strides=[2,2], pads=[2,0,1,1]"),
    ("[N,16,11,10]", "kernel_shape=[3,3], strides=[3,3], pads=[1,1,1,1]"),
    ("[N,16,6,7]", "kernel_shape=[2,3], strides=[1,1], pads=[0,2,1,0]"),
    ("[N,16,7,10]", "kernel_shape=[1,1], strides=[1,1]"),
]


def behind_relu(x: str, attributes: str) -> Case:
    return Case("MaxPool", f"double{x} x", f"r = Relu(x)  y = MaxPool<{attributes}>(r)")


CASES = [
    *(replace(behind_relu(x, attributes), blocks=True) for x, attributes in BEHIND_RELU),
    *(pool("MaxPool", x, attributes) for x, attributes in (*WINDOWS, *DILATED)),
    *(replace(pool("MaxPool", x, attributes), blocks=True) for x, attributes in (*TAPS, *NO_TAPS)),
    pool("MaxPool", "[N,2,5,6]", "kernel_shape=[2,3], storage_order=1"),
    Case("MaxPool", "double[N,2,5,6] x", "y, i = MaxPool<kernel_shape=[2,3]>(x)"),
    *(pool("AveragePool", x, attributes, polynomial=True) for x, attributes in WINDOWS),
    *(pool("AveragePool", x, f"{attributes}, count_include_pad=1", polynomial=True) for x, attributes in PADDED),
    *(pool("AveragePool", x, attributes, polynomial=True, since=19) for x, attributes in DILATED),
    pool("AveragePool", *DILATED[1], polynomial=True, since=19),
    *(pool("LpPool", x, f"{attributes}, p={p}") for p in (1, 2, 3) for x, attributes in WINDOWS[:5]),
    *(pool("LpPool", x, attributes) for x, attributes in (*WINDOWS[9:-1], *DILATED)),
    pool("LpPool", *WINDOWS[-1], since=22),
    Case("GlobalAveragePool", "double[N,3,4,5] x", "y = GlobalAveragePool(x)", polynomial=True),
    Case("GlobalAveragePool", "double[N,3,H,W] x", "y = GlobalAveragePool(x)", polynomial=True),
    Case("GlobalAveragePool", "double[N,3,7] x", "y = GlobalAveragePool(x)", polynomial=True),
    Case("GlobalMaxPool", "double[N,3,4,5] x", "y = GlobalMaxPool(x)"),
    Case("GlobalMaxPool", "double[N,3,H,W] x", "y = GlobalMaxPool(x)"),
    Case("GlobalMaxPool", "double[N,3,7] x", "y = GlobalMaxPool(x)"),
    *(Case("GlobalLpPool", "double[N,3,4,5] x", f"y = GlobalLpPool<p={p}>(x)") for p in (1, 2, 3)),
    Case(
        "MaxUnpool",
        "double[1,2,2,2] x, int64[1,2,2,2] i",
        "y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(x, i)",
        feeds={"i": np.array([[[[0, 3], [9, 10]], [[20, 23], [28, 31]]]])},
        polynomial=True,
    ),
]


@pytest.mark.parametrize("runtime", [False, True])
def test_maxpool_gradient_goes_to_the_first_maximum(runtime: bool) -> None:
    (found,) = gradient_at(
        "double[1,1,2,4] x",
        "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)",
        runtime,
        x=[[[[5.0, 5.0, 1.0, 2.0], [5.0, 5.0, 2.0, 2.0]]]],
    )
    assert found == [[[[1, 0, 0, 1], [0, 0, 0, 0]]]]


@pytest.mark.parametrize("runtime", [False, True])
def test_overlapping_maxpool_windows_add_up(runtime: bool) -> None:
    (found,) = gradient_at("double[1,1,4] x", "y = MaxPool<kernel_shape=[2]>(x)", runtime, x=[[[1.0, 3.0, 2.0, 2.0]]])
    assert found == [[[0, 2, 1, 0]]]


@pytest.mark.parametrize("runtime", [False, True])
def test_global_maxpool_gradient_goes_to_the_first_maximum(runtime: bool) -> None:
    (found,) = gradient_at(
        "double[1,2,1,3] x", "y = GlobalMaxPool(x)", runtime, x=[[[[1.0, 4.0, 4.0]], [[7.0, 7.0, 7.0]]]]
    )
    assert found == [[[[0, 1, 0]], [[1, 0, 0]]]]


@pytest.mark.parametrize(
    "kind", ["LpPool<kernel_shape=[2], strides=[2], p=2>", "LpPool<kernel_shape=[2], strides=[2], p=3>"]
)
def test_p_norm_has_zero_slope_where_it_is_zero(kind: str) -> None:
    (found,) = gradient_at("double[1,1,4] x", f"y = {kind}(x)", x=[[[0.0, 0.0, 0.0, -1.0]]])
    assert found == [[[0, 0, 0, -1]]]


@pytest.mark.parametrize(
    "case", [*(pool("MaxPool", *given) for given in TAPS), *(behind_relu(*given) for given in BEHIND_RELU)], ids=str
)
def test_tap_by_tap_the_first_of_equal_maxima_takes_it_as_by_indices(case: Case) -> None:
    model = case.model(18)
    ties = np.random.default_rng(0).integers(-2, 3, case.values(model)["x"].shape).astype(np.float64)
    u = np.random.default_rng(1).integers(1, 9, run(model, {"x": ties}, ["y"])[0].shape).astype(np.float64)
    found = []
    for blocks in (False, True):
        rewritten, names = gradients(model, ["x"], u.shape, blocks=blocks)
        assert ("ScatterElements" in [n.op_type for n in rewritten.graph.node]) != blocks
        found += run(rewritten, {"x": ties, "u": u}, [names["x"]])
    np.testing.assert_array_equal(*found)
