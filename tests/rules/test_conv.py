from dataclasses import replace

import pytest

from onnxcam.errors import UnsupportedError
from support.vjp import Case, gradient_at, gradients, run


def conv(x: str, w: str, attributes: str = "", bias: str = "", **options: object) -> Case:
    """The kernel as an input (the dW and the ConvTranspose form) unless `fixed`, which allows the flipped form."""
    given = f"double{x} x, double{w} w" + (f", double{bias} b" if bias else "")
    body = f"y = Conv<{attributes}>(x, w{', b' if bias else ''})".replace("<>", "")
    return Case("Conv", given, body, polynomial=True, **options)


def both(*args: str) -> list[Case]:
    return [conv(*args), conv(*args, fixed=("w", "b") if len(args) == 4 else ("w",))]


def transpose(x: str, w: str, attributes: str = "", bias: str = "", **options: object) -> Case:
    given = f"double{x} x, double{w} w" + (f", double{bias} b" if bias else "")
    body = f"y = ConvTranspose<{attributes}>(x, w{', b' if bias else ''})".replace("<>", "")
    return Case("ConvTranspose", given, body, polynomial=True, **options)


# Strided kernels by phases, in the forms for blocks of channels.
PHASES = [
    ("[N,16,8,6]", "[4,16,3,3]", "strides=[2,2], pads=[1,1,1,1]", "[4]"),
    ("[N,32,8,6]", "[6,16,3,3]", "group=2, strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,14,10]", "[5,16,7,7]", "strides=[2,2], pads=[3,3,3,3]"),
    ("[N,16,8,4]", "[4,16,2,2]", "strides=[2,2]"),
    ("[N,16,7,6]", "[4,16,3,3]", "strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,10,9]", "[4,16,3,3]", "strides=[2,2]"),
    ("[N,16,8,10]", "[4,16,3,4]", "strides=[3,3], pads=[0,1,1,0]"),
    ("[N,16,9,6]", "[4,16,4,3]", "strides=[3,3], pads=[1,0,1,0]"),
    ("[N,16,9,6]", "[4,16,5,4]", "strides=[3,3], pads=[2,0,0,1]"),
    ("[N,16,8,6]", "[4,16,3,2]", 'strides=[2,2], auto_pad="SAME_UPPER"'),
    ("[N,16,8,6]", "[4,16,3,2]", 'strides=[2,2], auto_pad="SAME_LOWER"'),
]
# One cell, or one channel, per output: with zeros between the cells.
BETWEEN_ZEROS = [
    ("[N,16,8,6]", "[16,1,5,5]", "group=16, strides=[2,2], pads=[2,2,2,2]"),
    ("[N,16,8,6]", "[16,1,3,3]", "group=16, strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,7,9]", "[16,1,3,3]", "group=16, strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,7,8]", "[16,1,3,3]", "group=16, strides=[2,2]", "[16]"),
    ("[N,16,8,7]", "[16,1,3,3]", 'group=16, strides=[2,2], auto_pad="SAME_UPPER"'),
    ("[N,16,11,10]", "[16,1,3,4]", "group=16, strides=[3,3], pads=[0,1,1,0]"),
    ("[N,16,9,9]", "[16,1,2,2]", "group=16, strides=[3,3]"),
    ("[N,16,7,9]", "[4,16,1,1]", "strides=[2,2]"),
    ("[N,32,9,6]", "[6,16,1,1]", "group=2, strides=[3,3]"),
    ("[N,16,8,6]", "[4,16,1,1]", "strides=[2,2]"),
]
# More cells than phases of the picture have; padding wider than the kernel reaches; two outputs per channel.
NO_ZEROS = [
    ("[N,16,4,4]", "[16,1,3,3]", "group=16, strides=[2,2], pads=[1,1,2,2]"),
    ("[N,16,7,7]", "[16,1,3,3]", "group=16, strides=[2,2], pads=[3,3,0,0]"),
    ("[N,16,8,6]", "[32,1,3,3]", "group=16, strides=[2,2], pads=[1,1,1,1]"),
]
# What has no such form keeps the other one: half a block of channels, phases of unlike sizes, without a tap, or with
# windows that begin late.
NO_PHASES = [
    ("[N,3,8,6]", "[4,3,3,3]", "strides=[2,2], pads=[1,1,1,1]"),
    ("[N,16,8,6]", "[4,16,3,3]", "strides=[2,1], pads=[1,1,1,1]"),
    ("[N,16,9,9]", "[4,16,2,2]", "strides=[3,3]"),
    ("[N,16,8,6]", "[4,16,1,1]", "strides=[2,2], pads=[1,1,0,0]"),
    ("[N,16,9,6]", "[4,16,4,3]", "strides=[3,3], pads=[1,1,1,0]"),
    ("[N,16,8,8]", "[4,16,3,3]", "strides=[2,2], pads=[2,2,0,0]"),
    ("[N,16,8,8]", "[4,16,3,3]", "strides=[2,2], dilations=[2,2], pads=[2,2,2,2]"),
    ("[N,16,8]", "[4,16,3]", "strides=[2], pads=[1,1]"),
]


def by_phases(x: str, w: str, attributes: str, *bias: str) -> Case:
    return replace(conv(x, w, attributes, *bias, fixed=("w", "b")[: 1 + len(bias)]), blocks=True)


CASES = [
    *(by_phases(*arguments) for arguments in (*PHASES, *NO_PHASES, *BETWEEN_ZEROS, *NO_ZEROS)),
    # stride 1: flipped where the kernel is constant
    *both("[N,2,7]", "[4,2,3]", "", "[4]"),
    *both("[N,2,7]", "[4,2,3]", "pads=[1,1]"),
    *both("[N,2,7]", "[4,2,3]", "pads=[2,0]"),
    *both("[N,2,7]", "[4,2,3]", "pads=[4,3]"),
    *both("[N,2,5,6]", "[4,2,3,2]", "", "[4]"),
    *both("[N,2,5,6]", "[4,2,3,2]", "pads=[1,0,1,1]"),
    *both("[N,2,5,6]", "[4,2,3,2]", "kernel_shape=[3,2], pads=[0,1,2,0]"),
    *both("[N,2,5,6]", "[4,2,1,1]"),
    *both("[N,2,5,6]", "[4,2,1,1]", "pads=[1,1,1,1]"),
    *both("[N,2,5,6]", "[4,2,1,3]", "dilations=[1,2]"),
    *both("[N,2,7,8]", "[4,2,3,2]", "dilations=[2,3], pads=[2,1,0,3]"),
    *both("[1,2,4,3,5]", "[3,2,2,1,2]", "pads=[0,0,1,1,0,0]", "[3]"),
    conv("[1,32,3,4]", "[32,32,3,3]", "pads=[1,1,1,1]", fixed=("w",)),  # a weight too large for shape inference
    # groups and depthwise
    *both("[N,4,5,6]", "[6,2,3,3]", "group=2, pads=[1,1,1,1]", "[6]"),
    *both("[N,3,5,6]", "[3,1,3,3]", "group=3, pads=[1,1,1,1]"),
    *both("[N,3,5,6]", "[6,1,3,3]", "group=3"),
    *both("[N,4,9]", "[6,2,3]", "group=2, strides=[2], dilations=[2], pads=[1,2]"),
    # strides that divide, and that leave one or two elements unread
    *both("[N,2,7]", "[4,2,3]", "strides=[2]"),
    *both("[N,2,8]", "[4,2,3]", "strides=[2]"),
    *both("[N,2,9]", "[4,2,3]", "strides=[3], pads=[1,0]"),
    *both("[N,2,7]", "[4,2,2]", "strides=[3]"),
    *both("[N,2,8]", "[4,2,1]", "strides=[2]"),
    *both("[N,2,7,8]", "[4,2,3,2]", "strides=[2,3], pads=[1,0,1,1]", "[4]"),
    *both("[N,2,8,7]", "[4,2,3,3]", "strides=[2,2], dilations=[2,1], pads=[1,1,0,2]"),
    *both("[N,3,8,7]", "[3,1,3,3]", "strides=[2,2], pads=[1,1,1,1], group=3"),
    *both("[1,2,5,4,6]", "[3,2,2,1,2]", "strides=[2,1,3], pads=[0,0,1,1,0,0]"),
    # automatic padding
    *(
        c
        for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for c in (
            *both("[N,2,5,6]", "[4,2,2,4]", f'auto_pad="{auto}"'),
            *both("[N,2,6,8]", "[4,2,3,3]", f'auto_pad="{auto}", strides=[2,3]'),
        )
    ),
    # ONNX Runtime refuses these
    conv("[N,2,6,8]", "[4,2,2,3]", 'auto_pad="SAME_UPPER", dilations=[2,2]', runtime=False),
    conv("[N,2,6,8]", "[4,2,2,3]", 'auto_pad="SAME_LOWER", dilations=[3,1]', runtime=False),
    conv("[N,2,6,8]", "[4,2,2,3]", 'auto_pad="SAME_LOWER", dilations=[3,1]', runtime=False, fixed=("w",)),
    # transposed
    transpose("[N,2,5]", "[2,3,3]"),
    transpose("[N,2,5]", "[2,3,3]", "strides=[2], pads=[1,0]", "[3]"),
    transpose("[N,2,4,5]", "[2,3,3,2]", "", "[3]"),
    transpose("[N,2,4,5]", "[2,3,3,2]", "", fixed=("w",)),
    transpose("[N,2,4,5]", "[2,3,3,2]", "pads=[1,0,2,1]"),
    transpose("[N,2,4,5]", "[2,3,3,2]", "strides=[2,3]"),
    transpose("[N,2,4,5]", "[2,3,3,3]", "strides=[2,3], output_padding=[1,2], pads=[1,1,1,1]"),
    transpose("[N,2,4,5]", "[2,3,2,1]", "strides=[3,3], output_padding=[2,2]"),
    transpose("[N,2,4,5]", "[2,3,3,2]", "dilations=[2,3], pads=[1,2,0,1]"),
    transpose("[N,4,4,5]", "[4,3,3,2]", "group=2, strides=[2,1], pads=[0,1,1,0]", "[6]"),
    transpose("[N,3,4,5]", "[3,1,2,2]", "group=3, strides=[2,2]"),
    transpose("[1,2,3,2,4]", "[2,3,2,1,2]", "strides=[2,1,3], pads=[0,0,1,1,0,0]"),
    *(
        transpose("[N,2,4,5]", "[2,3,3,4]", f"strides=[2,3], {sizes}")
        for sizes in (
            "output_shape=[8,15]",
            "output_shape=[9,14]",
            "output_shape=[7,16]",
            'output_shape=[8,15], auto_pad="SAME_UPPER"',
            'auto_pad="SAME_UPPER"',
            'auto_pad="SAME_LOWER"',
            'auto_pad="VALID"',
        )
    ),
    transpose("[N,2,4,5]", "[2,3,3,3]", "strides=[2,2], output_padding=[1,1], output_shape=[9,10]"),
]


def emitted(case: Case) -> list[str]:
    """Operators of the cotangent of x alone."""
    model = case.model(18)
    rewritten, _ = gradients(model, ["x"], run(model, case.values(model), ["y"])[0].shape)
    return [n.op_type for n in rewritten.graph.node[len(model.graph.node) :]]


@pytest.mark.parametrize(
    ("case", "form"),
    [
        (conv("[N,2,5,6]", "[4,2,3,3]", "pads=[1,1,1,1]", fixed=("w",)), "Conv"),
        (conv("[N,2,5,6]", "[4,2,3,3]", "pads=[1,1,1,1]"), "ConvTranspose"),
        (conv("[N,2,5,6]", "[4,2,1,1]", fixed=("w",)), "Conv"),
        (conv("[N,2,5,6]", "[4,2,3,3]", "strides=[2,2]", fixed=("w",)), "ConvTranspose"),
        (conv("[N,2,5,6]", "[4,2,3,3]", "pads=[3,1,1,1]", fixed=("w",)), "ConvTranspose"),
    ],
)
def test_the_kernel_is_flipped_where_that_is_exact_and_faster(case: Case, form: str) -> None:
    assert [kind for kind in emitted(case) if kind.startswith("Conv")] == [form]


@pytest.mark.parametrize("kind", ["Conv<strides=[2,2]>(x, w)", "ConvTranspose(x, w)"])
def test_unknown_sizes_are_a_designed_error_that_says_how_to_fix_them(kind: str) -> None:
    with pytest.raises(UnsupportedError, match="needs fixed sizes") as caught:
        gradient_at("double[N,3,H,W] x, double[3,3,2,2] w", f"y = {kind}")
    assert "--size" in caught.value.hint


@pytest.mark.parametrize(
    "case", [by_phases(*given) for given in (*PHASES, *BETWEEN_ZEROS, *NO_PHASES)], ids=lambda c: c.inputs
)
def test_what_can_be_split_into_phases_is(case: Case) -> None:
    model = case.model(18)
    rewritten, _ = gradients(model, ["x"], run(model, case.values(model), ["y"])[0].shape, blocks=True)
    emitted = [n.op_type for n in rewritten.graph.node]
    put_together = [conv(*given) for given in (*PHASES, *BETWEEN_ZEROS)]
    split = any(known.inputs == case.inputs and known.body == case.body for known in put_together)
    assert ("DepthToSpace" in emitted, "ConvTranspose" in emitted) == (split, not split)


@pytest.mark.parametrize("arguments", [*BETWEEN_ZEROS, *NO_ZEROS], ids=str)
def test_one_convolution_goes_over_zeros_between_the_cells(arguments: tuple[str, ...]) -> None:
    model = by_phases(*arguments).model(18)
    shape = run(model, by_phases(*arguments).values(model), ["y"])[0].shape
    rewritten, _ = gradients(model, ["x"], shape, blocks=True)
    kinds = [n.op_type for n in rewritten.graph.node[len(model.graph.node) :]]
    assert (kinds.count("Conv") == kinds.count("DepthToSpace") == kinds.count("Pad") == 1) == (
        arguments in BETWEEN_ZEROS
    )
