import numpy as np
import pytest

from support.vjp import Case, gradient_at

X = "double[N,3,4] x"
ELEMENTS = np.array([[[0, 2, 1, 1]], [[2, 2, 0, 1]]])


def scatter(kind: str, reduction: str, **options: object) -> Case:
    if kind == "ScatterElements":
        given, indices = "double[2,1,4] v, int64[2,1,4] i", ELEMENTS
    else:
        given, indices = "double[3,4] v, int64[3,2] i", np.array([[0, 2], [1, 0], [1, 1]])
    axis = ", axis=1" if kind == "ScatterElements" else ""
    body = f'y = {kind}<reduction="{reduction}"{axis}>(x, i, v)'
    polynomial = reduction in ("none", "add", "mul")
    return Case(kind, f"{X}, {given}", body, feeds={"i": indices}, polynomial=polynomial, **options)


CASES = [
    *(
        Case("TopK", X, f"k = Constant<value_ints=[2]>() y, i = TopK<axis={axis}, largest={largest}>(x, k)")
        for axis in (-1, 1)
        for largest in (0, 1)
    ),
    Case("TopK", "double[7] x", "k = Constant<value_ints=[3]>() y, i = TopK<sorted=0>(x, k)", runtime=False),
    Case("TopK", X, "k = Constant<value_ints=[2]>() y, omitted = TopK(x, k)"),
    Case("GatherElements", f"{X}, int64[2,1,4] i", "y = GatherElements<axis=1>(x, i)", feeds={"i": ELEMENTS},
         polynomial=True),
    Case("GatherElements", f"{X}, int64[2,1,4] i", "y = GatherElements<axis=-2>(x, i)", feeds={"i": ELEMENTS - 3},
         polynomial=True),
    *(
        Case("GatherND", f"{X}, int64{list(i.shape)} i", f"y = GatherND<batch_dims={b}>(x, i)", feeds={"i": i},
             polynomial=True, output="double y" if i.ndim == 1 else "double[] y")
        for b, i in [
            (0, np.array([[0, 2], [1, 0], [1, 0]])),
            (0, np.array([[[1]], [[-1]]])),
            (0, np.array([1, 2, 3])),
            (1, np.array([[2], [1]])),
            (1, np.array([[2, 3], [0, -1]])),
            (1, np.array([[[2], [2]], [[1], [0]]])),
            (2, np.array([[[1], [3], [3]], [[0], [0], [2]]])),
        ]
    ),
    scatter("ScatterElements", "add"),
    scatter("ScatterElements", "mul", wrt=("x",)),
    scatter("ScatterElements", "max"),
    scatter("ScatterElements", "min"),
    Case("ScatterElements", f"{X}, double[2,1,4] v, int64[2,1,4] i", "y = ScatterElements<axis=1>(x, i, v)",
         feeds={"i": ELEMENTS}, polynomial=True),
    *(scatter("ScatterND", reduction) for reduction in ("none", "add", "max", "min")),
    scatter("ScatterND", "mul", wrt=("x",)),
    *(
        Case("Tile", x, f"r = Constant<value_ints={r}>() y = Tile(x, r)", polynomial=True)
        for x, r in [(X, "[1,2,3]"), (X, "[2,1,1]"), ("double[5] x", "[3]"), ("double[H,W] x", "[2,2]")]
    ),
    Case("Trilu", X, "y = Trilu(x)", polynomial=True),
    *(
        Case("Trilu", X, f"k = Constant<value_int={k}>() y = Trilu<upper={upper}>(x, k)", polynomial=True)
        for k in (-1, 2)
        for upper in (0, 1)
    ),
    *(
        Case(kind, x, f"a = Constant<value_int={a}>() y = {kind}<exclusive={e}, reverse={r}>(x, a)",
             polynomial=True, runtime=kind == "CumSum", since={"CumSum": 18, "CumProd": 26}[kind])
        for kind in ("CumSum", "CumProd")
        for x, a in ((X, 1), (X, -1), ("double[4] x", 0))
        for e in (0, 1)
        for r in (0, 1)
    ),
    Case("ReverseSequence", "double[4,3,2] x, int64[3] n", "y = ReverseSequence(x, n)",
         feeds={"n": np.array([4, 1, 3])}, polynomial=True),
    Case("ReverseSequence", "double[3,4,2] x, int64[3] n", "y = ReverseSequence<batch_axis=0, time_axis=1>(x, n)",
         feeds={"n": np.array([2, 4, 3])}, polynomial=True),
    Case("Compress", f"{X}, bool[3] c", "y = Compress<axis=1>(x, c)", feeds={"c": np.array([True, False, True])},
         polynomial=True),
    Case("Compress", f"{X}, bool[3] c", "y = Compress<axis=-2>(x, c)", feeds={"c": np.array([False, False, True])},
         polynomial=True),
    Case("Compress", f"{X}, bool[5] c", "y = Compress(x, c)", feeds={"c": np.array([True, False, True, True, False])},
         polynomial=True),
]  # fmt: skip


@pytest.mark.parametrize("runtime", [False, True])
def test_scattered_maximum_is_shared_by_ties(runtime: bool) -> None:
    x, u = gradient_at("double[3] x, double[2] u, int64[2] i",
                       'y = ScatterElements<reduction="max">(x, i, u)', runtime,
                       x=[1.0, 5.0, 2.0], u=[3.0, 2.0], i=np.array([0, 2]))  # fmt: skip
    assert x == [0, 1, 0.5]
    assert u == [1, 0.5]


def test_cumulative_product_has_the_right_slope_where_a_factor_is_zero() -> None:
    (x,) = gradient_at("double[3] x", "a = Constant<value_int=0>() y = CumProd(x, a)", opset=26, x=[2.0, 0.0, 5.0])
    assert x == [1, 12, 0]  # y = (a, ab, abc): dy/da = 1 + b + bc, dy/db = a + ac, dy/dc = ab
