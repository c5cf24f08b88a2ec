import numpy as np
import pytest

from support.vjp import Case, gradient_at

X = "double[N,3,4] x"
KINDS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")


def reduce(kind: str, axes: str, attributes: str = "", x: str = X, **options: object) -> Case:
    constant = f"axes = Constant<value_ints={axes}>() " if axes else ""
    body = f"{constant}y = {kind}{attributes}(x{', axes' if axes else ''})"
    return Case(kind, x, body, polynomial=kind in ("ReduceSum", "ReduceMean"), **options)


CASES = [
    *(
        case
        for kind in KINDS
        for case in (
            *(
                reduce(kind, axes, f"<keepdims={keep}>")
                for axes in ("[1]", "[-1]", "[0,2]", "[-1,-3]", "[2,0,1]")
                for keep in (0, 1)
            ),
            reduce(kind, ""),
            reduce(kind, "", "<keepdims=0>"),
            reduce(kind, "", "<noop_with_empty_axes=1>"),
            reduce(kind, "[1]", "<noop_with_empty_axes=1>"),
            reduce(kind, "[1,2]", "<keepdims=0>", "double[N,H,W] x"),
            reduce(kind, "[0]", "<keepdims=0>", "double[5] x"),
            reduce(kind, "", "<keepdims=0>", "double[5] x"),
            reduce(kind, "[0,1]", "<keepdims=0>", "double[5,1] x"),
            # axes that are known only when the model runs
            Case(
                kind,
                f"{X}, int64[2] axes",
                f"y = {kind}(x, axes)",
                output="double[P,Q,R] y",
                feeds={"axes": np.array([0, -1])},
            ),
            Case(
                kind,
                f"{X}, int64[2] axes",
                f"y = {kind}<keepdims=0>(x, axes)",
                output="double[P] y",
                feeds={"axes": np.array([-1, 1])},
            ),
        )
    ),
]


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("runtime", [False, True])
def test_ties_share_the_cotangent_equally(kind: str, runtime: bool) -> None:
    sign = 1.0 if kind == "ReduceMax" else -1.0
    x = sign * np.array([[3.0, 3.0, 1.0, 3.0], [1.0, 2.0, 2.0, 0.0], [5.0, 4.0, 3.0, 2.0]])
    body = f"axes = Constant<value_ints=[1]>()  r = {kind}<keepdims=0>(x, axes)  three = Constant<value_float=3.0>() "
    (found,) = gradient_at("double[3,4] x", f"{body} t = CastLike(three, x)  y = Mul(r, t)", runtime, x=x)
    assert found == [[1, 1, 0, 1], [0, 1.5, 1.5, 0], [3, 0, 0, 0]]
