import numpy as np
import pytest

from onnxcam.errors import UnsupportedError
from support.vjp import Case, gradient_at

X = "double[N,3,4] x"


def unary(kind: str, attributes: str = "", domain: tuple[float, float] = (-1.9, 2.1), **options: object) -> Case:
    return Case(kind, X, f"y = {kind}{attributes}(x)", domain=domain, **options)


def binary(kind: str, a: str, b: str, **options: object) -> Case:
    return Case(kind, f"double{a} a, double{b} b", f"y = {kind}(a, b)", **options)


# Equal shapes; a scalar; missing leading axes; size one inside; both sides broadcast; symbols, alike and unlike;
# a symbol against one, and against a number: whether it was broadcast is known only when the model runs.
BROADCASTS = [
    ("[2,3,4]", "[2,3,4]"),
    ("[2,3,4]", ""),
    ("", "[3]"),
    ("[2,3,4]", "[1]"),
    ("[2,3,4]", "[4]"),
    ("[3,4]", "[2,3,4]"),
    ("[2,3,4]", "[2,1,4]"),
    ("[2,3,4]", "[3,1]"),
    ("[2,1,4]", "[3,1]"),
    ("[N,3]", "[N,3]"),
    ("[N,3]", "[3]"),
    ("[N,H]", "[1,H]"),
    ("[N,C]", "[3]"),
    ("[N,3]", "[C]"),
    ("[H,C]", "[W,1,C]"),
    ("[N,ONE]", "[N,4]"),
    ("[3,ONE]", "[N,1,4]"),
]

CASES = [
    # linear
    unary("Identity", polynomial=True),
    unary("Neg", polynomial=True),
    Case("Cast", X, "y = Cast<to=11>(x)", polynomial=True, runtime=False),
    Case("CastLike", f"{X}, double[1] t", "y = CastLike(x, t)", polynomial=True, wrt=("x",)),
    Case("Dropout", X, "y = Dropout(x)", polynomial=True),
    Case(
        "Dropout",
        f"{X}, float ratio, bool train",
        "y, mask = Dropout(x, ratio, train)",
        polynomial=True,
        wrt=("x",),
        fixed=("ratio", "train"),
        feeds={"ratio": np.array(0.3, np.float32), "train": np.array(False)},
    ),
    # broadcasting
    *(binary("Add", a, b, polynomial=True) for a, b in BROADCASTS),
    *(binary("Sub", a, b, polynomial=True) for a, b in BROADCASTS[:9]),
    *(binary("Mul", a, b, polynomial=True) for a, b in BROADCASTS),
    *(binary("Div", a, b, domain={"b": (0.5, 2.5)}) for a, b in BROADCASTS[:9]),
    *(binary(kind, a, b) for kind in ("Max", "Min") for a, b in BROADCASTS[5:9]),
    *(binary("Pow", a, b, domain={"a": (0.5, 2.0)}) for a, b in BROADCASTS[:9]),
    *(binary("PRelu", a, b) for a, b in BROADCASTS if len(a) >= len(b) and a != "[2,1,4]" and "ONE" not in a),
    Case("Mod", "double[2,3,4] a, double[3,1] b", "y = Mod<fmod=1>(a, b)", domain={"b": (0.6, 0.9)}),
    Case("Mul", "double[3] x", "y = Mul(x, x)", polynomial=True),
    Case("Sub", "double[3] x", "t = Sub(x, x)  y = Add(t, x)", polynomial=True),
    # more than two inputs, or one
    Case("Sum", "double[2,3] a, double[3] b, double c", "y = Sum(a, b, c)", polynomial=True),
    Case("Sum", X, "y = Sum(x)", polynomial=True),
    Case("Mean", "double[2,3] a, double[3] b, double c", "y = Mean(a, b, c)", polynomial=True),
    Case("Max", "double[2,3] a, double[3] b, double c", "y = Max(a, b, c)", domain={"b": (-1.1, 1), "c": (0.05, 0.1)}),
    Case("Min", "double[2,3] a, double[3] b, double c", "y = Min(a, b, c)", domain={"b": (-1.1, 1), "c": (0.05, 0.1)}),
    Case("Max", X, "y = Max(x)", polynomial=True),
    *(
        Case("Where", f"bool{c} c, double{a} a, double{b} b", "y = Where(c, a, b)", polynomial=True, feeds={"c": on})
        for c, a, b, on in [
            ("[2,3]", "[2,3]", "[2,3]", np.array([[True, False, True], [False, False, True]])),
            ("[2,1]", "[1,3]", "", np.array([[True], [False]])),
            ("[3]", "[2,1]", "[2,3]", np.array([True, False, True])),
        ]
    ),
    # Pow with an exponent known at rewrite time, of every sign and type
    Case("Pow", X, "e = Constant<value_float=2.0>()  p = CastLike(e, x)  y = Pow(x, p)", polynomial=True),
    Case("Pow", X, "e = Constant<value_int=3>()  y = Pow(x, e)", polynomial=True),
    Case("Pow", X, "e = Constant<value_int=1>()  y = Pow(x, e)", polynomial=True),
    Case("Pow", X, "e = Constant<value_int=0>()  p = Pow(x, e)  y = Add(p, x)", polynomial=True),
    Case("Pow", X, "e = Constant<value_ints=[2]>()  y = Pow(x, e)", polynomial=True),
    Case("Pow", X, "e = Constant<value_float=-1.5>()  y = Pow(x, e)", domain=(0.5, 2.0)),
    Case("Pow", X, "e = Constant<value_ints=[1,2,3,4]>()  y = Pow(x, e)", polynomial=True),
    Case("Pow", f"{X}, int64[4] e", "y = Pow(x, e)", polynomial=True, feeds={"e": np.array([1, 2, 3, 0])}),
    Case("Pow", "int64[3] x, double[3] e", "c = CastLike(x, e)  y = Pow(c, e)", feeds={"x": np.array([1, 2, 5])}),
    # piecewise
    unary("Relu"),
    unary("LeakyRelu"),
    unary("LeakyRelu", "<alpha=0.25>"),
    unary("LeakyRelu", "<alpha=-0.5>"),
    unary("LeakyRelu", "<alpha=0.0>"),
    unary("ThresholdedRelu", "<alpha=0.7>"),
    Case(
        "Clip",
        X,
        "a = Constant<value_float=-0.51>()  b = Constant<value_float=1.01>()  l = CastLike(a, x)"
        "h = CastLike(b, x)  y = Clip(x, l, h)",
    ),
    Case("Clip", X, "y = Clip(x)", polynomial=True),
    Case("Clip", f"{X}, double l", "y = Clip(x, l)", domain={"l": (-0.6, -0.59)}),
    Case("Clip", f"{X}, double h", "y = Clip(x, , h)", domain={"h": (0.4, 0.41)}),
    Case(
        "Clip", "double[2,3] x, double l, double h", "y = Clip(x, l, h)", domain={"l": (-0.6, -0.59), "h": (0.4, 0.41)}
    ),
    unary("HardSigmoid"),
    unary("HardSigmoid", "<alpha=0.7, beta=0.3>"),
    unary("HardSwish", domain=(-4.0, 4.0)),
    unary("Elu"),
    unary("Elu", "<alpha=0.5>"),
    unary("Selu"),
    unary("Selu", "<alpha=1.2, gamma=0.7>"),
    unary("Celu", since=28, runtime=False),
    unary("Celu", "<alpha=0.6>", since=28, runtime=False),
    unary("Shrink"),
    unary("Shrink", "<lambd=0.8, bias=0.3>"),
    unary("Abs"),
    # smooth
    unary("Sigmoid"),
    unary("Tanh"),
    unary("Swish"),
    unary("Swish", "<alpha=1.7>"),
    unary("Gelu"),
    unary("Gelu", '<approximate="tanh">'),
    unary("Erf"),
    unary("Softplus"),
    unary("Softsign"),
    unary("Mish"),
    unary("Sqrt", domain=(0.5, 2.0)),
    unary("Reciprocal", domain=(0.5, 2.0)),
    unary("Exp"),
    unary("Log", domain=(0.5, 2.0)),
    unary("Sin"),
    unary("Cos"),
    unary("Tan", domain=(-1.0, 1.0)),
    unary("Asin", domain=(-0.8, 0.8)),
    unary("Acos", domain=(-0.8, 0.8)),
    unary("Atan"),
    unary("Sinh"),
    unary("Cosh"),
    unary("Asinh"),
    unary("Acosh", domain=(1.5, 4.0)),
    unary("Atanh", domain=(-0.8, 0.8)),
    *(unary(kind, axis) for kind in ("Softmax", "LogSoftmax") for axis in ("", "<axis=0>", "<axis=1>", "<axis=-2>")),
]


@pytest.mark.parametrize(
    ("body", "x", "slopes"),
    [
        ("y = Relu(x)", [-1, 0, 1], [0, 0, 1]),
        ("y = LeakyRelu<alpha=0.25>(x)", [-1, 0, 1], [0.25, 0.25, 1]),
        ("y = LeakyRelu<alpha=-0.25>(x)", [-1, 0, 1], [-0.25, -0.25, 1]),
        ("y = ThresholdedRelu<alpha=0.5>(x)", [0, 0.5, 1], [0, 0, 1]),
        ("y = HardSigmoid<alpha=0.25, beta=0.5>(x)", [-3, -2, 0, 2, 3], [0, 0, 0.25, 0, 0]),
        ("y = HardSwish(x)", [-4, -3, 0, 3, 4], [0, 0, 0.5, 1, 1]),
        ("y = Elu<alpha=0.5>(x)", [0, 1], [0.5, 1]),
        ("y = Selu<alpha=0.5, gamma=2.0>(x)", [0, 1], [1, 2]),
        ("y = Shrink<lambd=0.5, bias=0.25>(x)", [-1, -0.5, 0, 0.5, 1], [1, 0, 0, 0, 1]),
        ("y = Abs(x)", [-2, 0, 2], [-1, 0, 1]),
        ("y = Sqrt(x)", [0, 4], [np.inf, 0.25]),
        ("y = Softsign(x)", [-1, 0, 1], [0.25, 1, 0.25]),
        ("y = Max(x)", [0, 1], [1, 1]),
        ("y = Max(x, x)", [0, 1], [1, 1]),
        ("z = Constant<value_float=2.0>()  t = CastLike(z, x)  y = Pow(x, t)", [-1, 0, 3], [-2, 0, 6]),
        ("z = Constant<value_float=1.0>()  t = CastLike(z, x)  y = Pow(x, t)", [-1, 0, 3], [1, 1, 1]),
    ],
)
def test_at_a_kink_the_documented_one_sided_slope_is_taken(body: str, x: list[float], slopes: list[float]) -> None:
    with np.errstate(divide="ignore"):
        assert gradient_at(f"double[{len(x)}] x", body, x=np.array(x, np.float64)) == [slopes]


def test_clip_passes_nothing_at_its_bounds_and_the_bounds_take_it() -> None:
    x = [-2.0, -1.0, 0.0, 1.0, 2.0]
    found = gradient_at("double[5] x, double l, double h", "y = Clip(x, l, h)", x=x, l=-1.0, h=1.0)
    assert found == [[0, 0, 1, 0, 0], 2, 2]


def test_prelu_takes_the_slope_at_zero() -> None:
    found = gradient_at("double[3] x, double[3] s", "y = PRelu(x, s)", x=[-2.0, 0.0, 2.0], s=[0.25, 0.5, 0.75])
    assert found == [[0.25, 0.5, 1], [-2, 0, 0]]


@pytest.mark.parametrize(("kind", "third"), [("Max", -1.0), ("Min", 4.0)])
def test_ties_share_the_cotangent_equally(kind: str, third: float) -> None:
    found = gradient_at(
        "double[2] a, double[2] b, double c", f"y = {kind}(a, b, c)", a=[3.0, 1.0], b=[3.0, 1.0], c=third
    )
    assert found == [[0.5, 0.5], [0.5, 0.5], 0]


def test_power_has_no_slope_in_its_exponent_where_the_base_is_not_positive() -> None:
    found = gradient_at("double[3] x, double[3] e", "y = Pow(x, e)", x=[-2.0, 0.0, 1.0], e=[2.0, 2.0, 2.0])
    assert found == [[-4, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize("x", [-800.0, 800.0])
@pytest.mark.parametrize(
    ("kind", "left", "right"),
    [
        ("Softplus", 0, 1),
        ("Mish", 0, 1),
        ("Gelu", 0, 1),
        ("Elu", 0, 1),
        ("Sigmoid", 0, 0),
        ("Tanh", 0, 0),
        ("Selu", 0, None),
    ],
)
def test_slopes_far_out_are_finite_and_saturated(kind: str, left: float, right: float | None, x: float) -> None:
    expected = left if x < 0 else right if right is not None else float(np.float32(1.05070102214813232421875))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        assert gradient_at("double[1] x", f"y = {kind}(x)", x=[x]) == [[expected]]


def test_celu_before_opset_28_is_float32_only() -> None:
    x = np.array([-1.5, -0.25, 0.5])
    (found,) = gradient_at("double[3] x", "y = Celu<alpha=0.5>(x)", runtime=True, x=x)
    np.testing.assert_allclose(found, np.where(x > 0, 1.0, np.exp(x / 0.5)), rtol=1e-6)


@pytest.mark.parametrize("training", ["t = Constant<value_int=1>()  train = Cast<to=9>(t)", "train = Cast<to=9>(x)"])
def test_dropout_that_may_be_training_is_refused(training: str) -> None:
    with pytest.raises(UnsupportedError, match="training mode"):
        gradient_at("double x", f"{training}  y = Dropout(x, , train)")


def test_a_cast_to_the_type_of_integers_stops_the_gradient() -> None:
    body = "i = CastLike(x, t)  f = CastLike(i, x)  p = Mul(f, x)  y = Add(p, x)"
    assert gradient_at("double[2] x, int64[1] t", body, x=[1.5, 2.5], t=np.array([0])) == [[2, 3]]
