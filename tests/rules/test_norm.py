import pytest

from onnxcam.errors import UnsupportedError
from support.vjp import Case, gradient_at

BATCH = "double[3] s, double[3] b, double[3] m, double[3] v"
POSITIVE = {"v": (0.5, 2.0)}

CASES = [
    *(
        Case(
            "BatchNormalization", f"double{x} x, {BATCH}", f"y = BatchNormalization{e}(x, s, b, m, v)", domain=POSITIVE
        )
        for x, e in [("[N,3]", ""), ("[N,3,5]", "<epsilon=0.01>"), ("[N,3,4,5]", ""), ("[2,3,2,2,3]", "<momentum=0.5>")]
    ),
    Case(
        "BatchNormalization",
        f"double[N,3,H,W] x, {BATCH}",
        "y = BatchNormalization<epsilon=0.1>(x, s, b, m, v)",
        domain=POSITIVE,
        fixed=("s", "b", "m", "v"),
        polynomial=True,
    ),
    *(
        Case(
            "InstanceNormalization", f"double{x} x, double[3] s, double[3] b", f"y = InstanceNormalization{e}(x, s, b)"
        )
        for x, e in [("[N,3,7]", ""), ("[N,3,4,5]", "<epsilon=0.1>"), ("[N,3,H,W]", ""), ("[1,3,2,2,3]", "")]
    ),
    *(
        Case(
            "LayerNormalization",
            f"double[N,3,4,5] x, double{s} s, double{s} b",
            f"y = LayerNormalization<axis={axis}{e}>(x, s, b)",
        )
        for axis, s, e in [
            (-1, "[5]", ""),
            (3, "[5]", ", epsilon=0.1"),
            (2, "[4,5]", ""),
            (-3, "[3,4,5]", ""),
            (1, "[3,1,5]", ""),
            (-1, "[1]", ""),
            (-1, "", ""),
            (2, "[4,1]", ""),
        ]
    ),
    Case("LayerNormalization", "double[2,3,4] x, double[2,3,4] s", "y = LayerNormalization<axis=0>(x, s)"),
    Case("LayerNormalization", "double[2,3,4] x, double[4] s", "y = LayerNormalization(x, s)"),
    Case("LayerNormalization", "double[N,H,W] x, double[W] s, double[W] b", "y = LayerNormalization(x, s, b)"),
    Case("LayerNormalization", "double[2,3] x, double[3] s, double[3] b", "y, m, i = LayerNormalization(x, s, b)"),
    *(
        Case("LRN", f"double{x} x", f"y = LRN<{attributes}>(x)")
        for x, attributes in [
            ("[N,5,2,3]", "size=3"),
            ("[N,5,2,3]", "size=3, alpha=0.7, beta=0.6, bias=1.5"),
            ("[N,3,H,W]", "size=7, alpha=0.7"),
            ("[N,3,2,1]", "size=1, alpha=0.7"),
        ]
    ),
    # ONNX Runtime wants odd sizes and four axes
    Case("LRN", "double[N,5,3] x", "y = LRN<size=4, alpha=0.7, beta=0.6>(x)", runtime=False),
]


def test_batch_normalization_in_training_mode_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="training mode") as caught:
        gradient_at(f"double[2,3] x, {BATCH}", "y, p, q = BatchNormalization<training_mode=1>(x, s, b, m, v)")
    assert "eval()" in caught.value.hint


def test_statistics_of_layer_normalization_are_refused_where_they_are_read() -> None:
    with pytest.raises(UnsupportedError, match="mean or deviation is read"):
        gradient_at("double[2,3] x, double[3] s", "z, m, i = LayerNormalization(x, s)  y = Add(z, m)")


def test_a_constant_input_has_a_finite_zero_gradient() -> None:
    x = [[2.0, 2.0, 2.0]]
    assert gradient_at("double[1,3] x, double[3] s", "y = LayerNormalization(x, s)", x=x, s=[1.0, 1.0, 1.0])[0] == [
        [0, 0, 0]
    ]
