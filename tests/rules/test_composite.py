import numpy as np
import pytest

from support.vjp import Case, gradient_at

X = "double[N,3,4] x"


def reduce(kind: str, axes: str, attributes: str = "", x: str = X, **options: object) -> Case:
    constant = f"axes = Constant<value_ints={axes}>() " if axes else ""
    body = f"{constant}y = {kind}{attributes}(x{', axes' if axes else ''})"
    domain = (0.3, 2.1) if kind == "ReduceLogSum" else (-1.9, 2.1)
    return Case(kind, x, body, domain=domain, **options)


def einsum(equation: str, *operands: str, **options: object) -> Case:
    given = ", ".join(f"double[{shape}] x{i}" for i, shape in enumerate(operands))
    names = ", ".join(f"x{i}" for i in range(len(operands)))
    return Case("Einsum", given, f'y = Einsum<equation="{equation}">({names})', polynomial=True, **options)


# ONNX's function body mixes float32 constants into it, so it cannot be evaluated in float64.
PROVEN = ("MeanVarianceNormalization",)


CASES = [
    *(
        case
        for kind in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd")
        for case in (
            *(reduce(kind, axes, f"<keepdims={keep}>") for axes in ("[1]", "[-1,-3]", "[2,0,1]") for keep in (0, 1)),
            reduce(kind, ""),
            reduce(kind, "", "<keepdims=0>"),
            reduce(kind, "[1]", "<noop_with_empty_axes=1>"),
            reduce(kind, "[1,2]", "<keepdims=0>", "double[N,H,W] x"),
        )
    ),
    *(
        Case("RMSNormalization", f"{x}, double[{s}] s",
             f"y = RMSNormalization<axis={axis}, epsilon=0.25>(x, s)", since=23, runtime=False)
        for x, s, axis in [(X, "4", -1), (X, "3,4", 1), (X, "1", 2), ("double[N,H,4] x", "4", -1)]
    ),
    *(
        Case("GroupNormalization", f"double[{x}] x, double[6] s, double[6] b",
             "y = GroupNormalization<num_groups=2, epsilon=0.25>(x, s, b)", since=21,
             output=f"double[{x}] y", runtime=False)
                for x in ("2,6,3,2", "N,6,5", "1,6,2,1,2")
    ),
    *(
        Case("LpNormalization", X, f"y = LpNormalization<axis={axis}, p={p}>(x)", runtime=False)
        for axis in (-1, 1)
        for p in (1, 2)
    ),
    einsum("ij,jk->ik", "3,4", "4,2"),
    einsum("bij,bjk->bik", "2,3,4", "2,4,2"),
    einsum("bhqd,bhkd->bhqk", "2,2,3,4", "2,2,2,4"),
    einsum("bhwc,hkc->bhwk", "N,3,4,2", "3,5,2"),
    einsum("ij->ji", "3,4"),
    einsum("ij->i", "3,4"),
    einsum("ij->", "3,4"),
    einsum("i,j->ij", "3", "4"),
    einsum("ij,kj", "3,4", "2,4"),
    einsum("ij,jk,kl->il", "2,3", "3,4", "4,2"),
    einsum("...ij,jk->...ik", "N,3,4", "4,2"),
    einsum("...ij,...jk->...ik", "2,3,4", "2,4,2"),
    einsum("...ij,...jk", "1,3,4", "2,4,2"),
    einsum("b i j, b j -> b i", "2,3,4", "2,4"),
    einsum("ii->i", "3,3", runtime=False),
    einsum("ii", "3,3", runtime=False),
    einsum("bii,bi->b", "2,3,3", "2,3", runtime=False),
    einsum("iij,j->i", "3,3,2", "2", runtime=False),
]  # fmt: skip


@pytest.mark.parametrize("runtime", [False, True])
@pytest.mark.parametrize(
    ("kind", "x", "expected"),
    [
        ("ReduceL1", [-2.0, 0.0, 3.0], [-1, 0, 1]),
        ("ReduceL2", [0.0, 0.0], [0, 0]),
        ("ReduceProd", [2.0, 0.0, 5.0], [0, 10, 0]),
        ("ReduceProd", [0.0, 0.0, 5.0], [0, 0, 0]),
        ("ReduceProd", [2.0, 3.0, 5.0], [15, 10, 6]),
    ],
)
def test_reductions_at_zeros(kind: str, x: list[float], expected: list[float], runtime: bool) -> None:
    assert gradient_at(f"double[{len(x)}] x", f"y = {kind}(x)", runtime, x=x) == [expected]


def test_normalising_a_zero_vector_gives_no_nan() -> None:
    (x,) = gradient_at("double[2,2] x", "y = LpNormalization<axis=1, p=2>(x)", True, x=[[0.0, 0.0], [3.0, 4.0]])
    assert x[0] == [1, 1]
    np.testing.assert_allclose(x[1], [0.032, -0.024], rtol=1e-5)  # (1/5) (1 - x_i (x_1 + x_2) / 25)


@pytest.mark.parametrize(("x", "axes"), [("double[2,3,4,2] x", "0,2,3"), ("double[2,3,4] x", "1,2")])
def test_mean_variance_normalisation_has_the_gradient_of_its_formula(x: str, axes: str) -> None:
    given = np.random.default_rng(3).normal(size=[int(d) for d in x[7:-3].split(",")]).astype(np.float32)
    attribute = "" if axes == "0,2,3" else f"<axes=[{axes}]>"
    weight = "w = Sin(x) "  # else the sum of the output is always 0
    (fused,) = gradient_at(x, f"{weight} n = MeanVarianceNormalization{attribute}(x) y = Mul(n, w)", True, x=given)
    formula = f"""{weight} axes = Constant<value_ints=[{axes}]>() tiny = Constant<value_float=1e-9>()
        m = ReduceMean(x, axes) c = Sub(x, m) q = Mul(c, c) v = ReduceMean(q, axes) s = Sqrt(v) t = Add(s, tiny)
        n = Div(c, t) y = Mul(n, w)"""
    (written,) = gradient_at(x, formula, True, x=given)
    np.testing.assert_allclose(fused, written, rtol=1e-4, atol=1e-6)


def test_group_normalisation_of_opset_18_scales_whole_groups() -> None:
    x = np.random.default_rng(5).normal(size=(2, 6, 3))
    given, body = "double[2,6,3] x, double[{0}] s, double[{0}] b", "y = GroupNormalization<num_groups=2>(x, s, b)"
    scale, bias = np.array([0.5, -2.0]), np.array([1.0, 3.0])
    body = f"w = Sin(x) n = {body[4:]} y = Mul(n, w)"
    old = gradient_at(given.format(2), body, opset=18, x=x, s=scale, b=bias)
    new = gradient_at(given.format(6), body, opset=21, x=x, s=np.repeat(scale, 3), b=np.repeat(bias, 3))
    np.testing.assert_allclose(old[0], new[0], rtol=1e-6)  # onnx.reference's GroupNormalization is float32
    for a, b in zip(old[1:], new[1:], strict=True):
        np.testing.assert_allclose(a, np.reshape(b, (2, 3)).sum(1), rtol=1e-6)
