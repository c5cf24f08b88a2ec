import numpy as np
import pytest

from onnxcam.errors import UnsupportedError
from support.vjp import Case, gradient_at


def layout(kind: str, x: str, body: str, feeds: dict[str, list[int]] | None = None, **options: object) -> Case:
    """Integer operands as initializers, unless named in `dynamic`."""
    arrays = {k: np.array(v, np.int64) for k, v in (feeds or {}).items()}
    given = ", ".join([f"double{x} x", *(f"int64{list(a.shape) if a.ndim else ''} {k}" for k, a in arrays.items())])
    dynamic = options.pop("dynamic", ())
    fixed = tuple(k for k in arrays if k not in dynamic)
    return Case(kind, given.replace("[[", "["), f"y = {body}", feeds=arrays, fixed=fixed, polynomial=True, **options)


def sliced(
    x: str,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
    **options: object,
) -> Case:
    operands = {"s": starts, "e": ends} | ({"a": axes} if axes is not None else {}) | ({"t": steps} if steps else {})
    call = "Slice(x, s, e" + (", a" if axes is not None else ", " if steps else "") + (", t)" if steps else ")")
    return layout("Slice", x, call, operands, **options)


def pad(x: str, mode: str, pads: list[int], axes: list[int] | None = None, **options: object) -> Case:
    operands = {"p": pads} | ({"a": axes} if axes is not None else {})
    return layout("Pad", x, f'Pad<mode="{mode}">(x, p{", , a" if axes is not None else ""})', operands, **options)


PADS = [
    ("[N,3,4]", [0, 1, 2, 0, 1, 1], None),
    ("[N,3,4]", [1, 2], [1]),
    ("[N,3,4]", [2, 0, 1, 2], [-1, 1]),
    ("[4]", [3, 2], None),
    ("[N,C,W]", [0, 1, 2, 0, 1, 1], None),
]

CASES = [
    *(
        layout("Reshape", x, f"Reshape{attributes}(x, s)", {"s": shape})
        for x, attributes, shape in [
            ("[2,3,4]", "", [4, 6]),
            ("[2,3,4]", "", [-1]),
            ("[2,3,4]", "", [0, -1]),
            ("[N,3,4]", "", [0, 12]),
            ("[N,3,4]", "", [-1, 2]),
            ("[N,C,W]", "", [0, -1]),
            ("[N,C,W]", "", [-1]),
            ("[2,3]", "<allowzero=1>", [3, 2]),
        ]
    ),
    layout("Reshape", "[N,C,W]", "Reshape(x, s)", {"s": [4, -1]}, dynamic=("s",), output="double[P,Q] y"),
    *(layout("Flatten", "[N,3,4]", f"Flatten<axis={a}>(x)") for a in (0, 1, 2, 3, -1, -3)),
    layout("Flatten", "[N,C,W]", "Flatten(x)"),
    layout("Squeeze", "[N,1,4,1]", "Squeeze(x)", output="double[N,4] y"),
    layout("Squeeze", "[N,1,4,1]", "Squeeze(x, a)", {"a": [1]}),
    layout("Squeeze", "[N,1,4,1]", "Squeeze(x, a)", {"a": [-1, 1]}),
    layout("Squeeze", "[N,1,W,1]", "Squeeze(x, a)", {"a": [-1]}),
    layout("Unsqueeze", "[N,4]", "Unsqueeze(x, a)", {"a": [0, -1]}),
    layout("Unsqueeze", "[N,W]", "Unsqueeze(x, a)", {"a": [1]}),
    layout("Transpose", "[N,3,4]", "Transpose(x)"),
    layout("Transpose", "[N,3,4]", "Transpose<perm=[1,2,0]>(x)"),
    layout("Transpose", "[N,3,4,5]", "Transpose<perm=[0,3,1,2]>(x)"),
    *(
        layout("Expand", x, "Expand(x, s)", {"s": shape})
        for x, shape in [
            ("[3,1]", [3, 4]),
            ("[3,1]", [2, 1, 4]),
            ("[3,4]", [1]),
            ("[3,1]", [2, 3, 4]),
            ("[4]", [3, 4]),
            ("", [2, 3]),
            ("[3,4]", [3, 4]),
            ("[N,1]", [1, 4]),
        ]
    ),
    layout("Expand", "[3,1]", "Expand(x, s)", {"s": [2, 3, 4]}, dynamic=("s",), output="double[P,Q,R] y"),
    layout("Expand", "[N,ONE]", "Expand(x, s)", {"s": [2, 4]}),
    Case("Concat", "double[2,3] a, double[2,1] b", "y = Concat<axis=1>(a, b)", polynomial=True),
    Case("Concat", "double[2,3] a, double[4,3] b, double[1,3] c", "y = Concat<axis=-2>(a, b, c)", polynomial=True),
    Case("Concat", "double[N,3] a, double[N,3] b", "y = Concat<axis=0>(a, b)", polynomial=True),
    Case("Concat", "double[N,H] a, double[N,W] b", "y = Concat<axis=-1>(a, b)", polynomial=True),
    Case("Concat", "double[2,3] a", "y = Concat<axis=0>(a)", polynomial=True),
    Case("Concat", "double[2,3] a, double[2,2] b", "y = Concat<axis=1>(a, b)", wrt=("b",), polynomial=True),
    Case("Split", "double[2,6] x", "a, b = Split<axis=1, num_outputs=2>(x)  s = Exp(b)  y = Mul(a, s)"),
    Case("Split", "double[2,7] x", "a, b, c = Split<axis=-1, num_outputs=3>(x)  y = Sigmoid(c)"),
    Case("Split", "double[2,7] x", "a, b = Split<axis=1, num_outputs=2>(x)  y = Exp(a)"),
    Case(
        "Split",
        "double[6,2] x, int64[3] s",
        "a, b, c = Split(x, s)  p = Exp(c)  y = Concat<axis=0>(p, a)",
        output="double[P,2] y",
        feeds={"s": np.array([2, 1, 3])},
    ),
    Case("Split", "double[N,6] x", "s = Constant<value_ints=[2,4]>()  , b = Split<axis=1>(x, s)  y = Exp(b)"),
    Case("Split", "double[N,W] x", "a, b = Split<axis=1, num_outputs=2>(x)  s = Exp(b)  y = Mul(s, b)"),
    Case("Split", "double[2,6] x", "a = Split<axis=1, num_outputs=1>(x)  y = Exp(a)"),
    *(pad(x, mode, pads, axes) for mode in ("constant", "reflect", "edge") for x, pads, axes in PADS),
    *(pad(x, "wrap", pads, axes, since=19) for x, pads, axes in PADS),
    pad("[N,3,4]", "constant", [0, -1, 1, 0, 2, -2]),
    pad("[N,3,4]", "constant", [0, 0, -1, 0, 0, -1]),
    pad("[N,3,4]", "constant", [0, 1, 2, 0, 1, 1], dynamic=("p",)),
    pad("[N,3,4]", "constant", [1, 2], [2], dynamic=("p",)),
    pad("[N,3,4]", "constant", [0, 0, 0, 0, 0, 0]),
    Case(
        "Pad",
        "double[3] x, int64[2] p, double v",
        "y = Pad(x, p, v)",
        output="double[P] y",
        feeds={"p": np.array([1, 2])},
        polynomial=True,
    ),
    Case(
        "Pad",
        "double[3,2] x, int64[4] p, double[1] v",
        "y = Pad(x, p, v)",
        feeds={"p": np.array([-1, 2, 1, -1])},
        fixed=("p",),
        polynomial=True,
    ),
    sliced("[7]", [1], [5]),
    sliced("[7]", [-5], [-1]),
    sliced("[7]", [0], [9999]),
    sliced("[7]", [-99], [3]),
    sliced("[7]", [1], [6], [0], [2]),
    sliced("[7]", [5], [0], [0], [-2]),
    sliced("[7]", [-1], [-99], [0], [-1]),
    sliced("[7]", [99], [-99], [0], [-3]),
    sliced("[4,5]", [1, 1], [3, 9]),
    sliced("[4,5]", [0, 1], [4, 5], None, [2, 3]),
    sliced("[3,4,5]", [1, 0], [3, 4], [2, -2], [1, 3]),
    sliced("[3,4,5]", [1], [3], [-1]),
    sliced("[N,4,5]", [1], [2**62], [1]),
    sliced("[N,4,5]", [0], [1], [0]),
    sliced("[N,W]", [1], [3], [1]),
    sliced("[N,W]", [-1], [-99], [1], [-1]),
    sliced("[N,W]", [0], [2**62], [1]),
    sliced("[7]", [1], [5], dynamic=("s", "e"), output="double[P] y"),
    sliced("[4,5]", [0, 1], [4, -1], [1, 0], [2, 3], dynamic=("s", "e"), output="double[P,Q] y"),
    sliced("[4,5]", [-1], [0], [1], [-2], dynamic=("s", "e", "t"), output="double[4,Q] y"),
    sliced("[4,5]", [1], [3], [1], dynamic=("e",), output="double[4,Q] y"),
    *(
        layout("Gather", x, f"Gather<axis={axis}>(x, i)", {"i": indices}, dynamic=dynamic)
        for dynamic in ((), ("i",))
        for x, axis, indices in [
            ("[5]", 0, 2),
            ("[4,5]", 0, -1),
            ("[4,5]", 1, 3),
            ("[3,4,5]", -2, 1),
            ("[4,5]", 0, [2, 0, 2, -1]),
            ("[4,5]", -1, [1]),
            ("[3,4,5]", 1, [[0, 3, -2], [1, 1, 0]]),
            ("[5]", 0, [[0, 3, -2], [1, 1, 0]]),
            ("[N,4]", 0, 1),
            ("[N,W]", 1, -1),
            ("[N,W]", 1, [0, -1, 0]),
            ("[N,H,W]", 1, [[0, 4], [-1, 0]]),
        ]
    ),
]


def test_reflected_and_repeated_elements_add_up() -> None:
    x = [10.0, 20.0, 30.0]
    for mode, expected in (("reflect", [1, 3, 2]), ("edge", [3, 1, 2])):
        assert gradient_at("double[3] x", f'p = Constant<value_ints=[2,1]>()  y = Pad<mode="{mode}">(x, p)', x=x) == [
            expected
        ]


def test_an_index_taken_twice_collects_twice() -> None:
    assert gradient_at("double[3] x, int64[4] i", "y = Gather(x, i)", x=[1.0, 2.0, 3.0], i=np.array([2, 0, 2, -1])) == [
        [1, 0, 3]
    ]


@pytest.mark.parametrize(
    ("inputs", "body", "why"),
    [
        ("double[7] x, int64[1] s, int64[1] a", "y = Slice(x, s, s, a)", "axes are not constant"),
        ("double[7] x, int64[2] p", 'y = Pad<mode="edge">(x, p)', "pads are not constant"),
    ],
)
def test_operands_that_must_be_constant_are_refused_when_they_are_not(inputs: str, body: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        gradient_at(inputs, body)
