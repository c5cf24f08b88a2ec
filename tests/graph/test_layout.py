"""How values lie on the picture, followed through tiny graphs; every layout and every number is worked out by hand."""

import re

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnxcam import Explainer
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.graph.index import Graph, Shape
from onnxcam.graph.layers import Layers
from onnxcam.graph.layout import Layout, layouts, norm_before_mixing, stated_layout, token_grid, vanishes

# The picture is 4 x 6; the convolution `w` of stride 2 makes 5 channels on 2 x 3 cells.
INTEGERS = {
    "n5t": [0, 5, 6], "nt5": [0, 6, 5], "n235": [0, 2, 3, 5], "n325": [0, 3, 2, 5], "n523": [0, 5, 2, 3],
    "n532": [0, 5, 3, 2], "heads": [0, 6, 5, 1], "minus2": [-2], "minus1": [-1], "many": [9999],
    "0": [0], "1": [1], "2": [2], "3": [3], "4": [4], "5": [5], "6": [6], "scalar0": 0, "scalar1": 1, "back": -1,
    "axes23": [2, 3], "axes12": [1, 2], "starts10": [1, 0], "ends": [99, 99], "steps22": [2, 2],
    "reverse": [5, 4, 3, 2, 1, 0],
    "parts": [0, 2, 2, 3, 2, 3], "windows": [-1, 4, 3], "parted": [-1, 2, 3, 2, 2, 3], "picture": [0, 4, 6, 3],
    "turned": [0, 6, 4, 3], "merged": [0, 2, 3, 12], "dilated": [0, 2, 2, 18], "onepart": [0, 1, 4, 1, 6, 3],
    "one": [0, 1, 24, 3], "open": [-1, 7, 5, 1], "whole": [0, 1, 2, 1, 3, 5], "whole2": [0, 1, 1, 2, 3, 5],
    "onehead": [0, 6, 1, 5], "rows": [-1, 5], "halves": [0, 2, 2, 2, 8, 3], "eight": [0, 8, 8, 3], "axes34": [3, 4],
}  # fmt: skip
FLOATS = {
    "w": (5, 3, 2, 2), "w1": (5, 5, 1, 1), "g": (5,), "b": (5,), "v": (5, 5), "mix": (6, 6), "mix7": (7, 7),
    "g6": (6,), "b6": (6,), "cls": (1, 1, 5), "registers": (1, 2, 5), "head": (5, 4), "position": (1, 7, 5),
    "one_number": (1,), "scale": (1, 1, 5), "shift": (1, 1, 5),
    "g3": (3,), "b3": (3,), "v3": (3, 3), "v12": (12, 6), "g12": (12,), "b12": (12,),
}  # fmt: skip


def model(body: str, output: str = "y", picture: str = "3,4,6") -> ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[1,{picture}] x) => (float[N,C] {output}) {{ {body} }}'
    proto = parser.parse_model(text)
    used = {i.removeprefix("_") for n in proto.graph.node for i in n.input}
    rng = np.random.default_rng(0)
    arrays = {n: np.asarray(v, np.int64) for n, v in INTEGERS.items()}
    arrays |= {n: rng.normal(size=s).astype(np.float32) for n, s in FLOATS.items()}
    for node in proto.graph.node:  # `_2` in a body is the constant called 2, no identifier may start with a digit
        node.input[:] = [i.removeprefix("_") for i in node.input]
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used)
    return proto


def graph(body: str, output: str = "y", picture: str = "3,4,6") -> Graph:
    return Graph(model(body, output, picture))


def lies(body: str, value: str = "y", kind: str = "nchw") -> Layout | None:
    """How `value` lies; the picture is 4 x 6 with 3 channels."""
    return layouts(graph(body, value, "3,4,6" if kind == "nchw" else "4,6,3"), "x", kind).get(value)


MAP = "m = Conv<strides=[2,2]>(x, w) "
LAST = MAP + "l = Transpose<perm=[0,2,3,1]>(m) "
TOKENS = MAP + "f = Reshape(m, n5t) t = Transpose<perm=[0,2,1]>(f) "
CLASS = TOKENS + "c = Concat<axis=1>(cls, t) "
GRID = (2, 3)
MOVES = {
    "a convolution makes a map": (MAP + "y = Relu(m)", Layout("nchw", GRID)),
    "channels last": (LAST + "y = Relu(l)", Layout("nhwc", GRID)),
    "channels first again": (LAST + "y = Transpose<perm=[0,3,1,2]>(l)", Layout("nchw", GRID)),
    "height and width exchanged": (MAP + "y = Transpose<perm=[0,1,3,2]>(m)", None),
    "cells in a row": (MAP + "y = Reshape(m, n5t)", Layout("channels-tokens", GRID)),
    "flattened from axis 2": (MAP + "s = Shape<start=0, end=2>(m) k = Concat<axis=0>(s, _minus1) y = Reshape(m, k)",
                              Layout("channels-tokens", GRID)),
    "tokens": (TOKENS + "y = Relu(t)", Layout("tokens", GRID)),
    "tokens as a row of channels again": (TOKENS + "y = Transpose<perm=[0,2,1]>(t)", Layout("channels-tokens", GRID)),
    "tokens laid out": (TOKENS + "y = Reshape(t, n235)", Layout("nhwc", GRID)),
    "tokens laid out on their side": (TOKENS + "y = Reshape(t, n325)", None),
    "a row of channels laid out": (TOKENS + "y = Reshape(f, n523)", Layout("nchw", GRID)),
    "a row of channels laid out on its side": (TOKENS + "y = Reshape(f, n532)", None),
    "nhwc in a row": (LAST + "y = Reshape(l, nt5)", Layout("tokens", GRID)),
    "a map whose channels are called tokens": (MAP + "y = Reshape(m, nt5)", None),
    "heads split off": (TOKENS + "y = Reshape(t, heads)", None),
    "an axis of one added": (TOKENS + "y = Unsqueeze(t, _1)", None),
    "a class token in front": (CLASS + "y = Relu(c)", Layout("tokens", GRID, 1)),
    "class and register tokens": (CLASS + "y = Concat<axis=1>(registers, c)", Layout("tokens", GRID, 3)),
    "a class token behind": (TOKENS + "y = Concat<axis=1>(t, cls)", None),
    "two rows of tokens": (TOKENS + "y = Concat<axis=1>(t, t)", None),
    "positions added": (CLASS + "y = Add(c, position)", Layout("tokens", GRID, 1)),
    "positions first in the sum": (CLASS + "y = Add(position, c)", Layout("tokens", GRID, 1)),
    "the class token cut off": (CLASS + "y = Slice(c, _1, many, _1)", Layout("tokens", GRID)),
    "the last token cut off": (CLASS + "y = Slice(c, _0, _6, _1)", None),
    "two of three tokens cut off": (CLASS + "r = Concat<axis=1>(registers, c) y = Slice(r, _2, many, _1)", None),
    "channels cut": (CLASS + "y = Slice(c, _0, _3, _2)", Layout("tokens", GRID, 1)),
    "the class token gathered": (CLASS + "y = Gather<axis=1>(c, scalar0)", None),
    "class tokens reshaped to a map": (CLASS + "y = Reshape(c, n235)", None),
    "channels joined": (MAP + "y = Concat<axis=1>(m, m)", Layout("nchw", GRID)),
    "channels of tokens joined": (CLASS + "y = Concat<axis=-1>(c, c)", Layout("tokens", GRID, 1)),
    "channels joined to what lies otherwise": (MAP + "k = Transpose<perm=[0,1,3,2]>(m) r = Reshape(k, n523) "
                                               "y = Concat<axis=1>(r, m)", None),
    "rows joined": (MAP + "y = Concat<axis=2>(m, m)", Layout("nchw", (4, 3))),
    "every other row and column": ("y = Slice(x, starts10, ends, axes23, steps22)", Layout("nchw", (2, 3))),
    "a linear layer": (CLASS + "y = MatMul(c, v)", Layout("tokens", GRID, 1)),
    "a linear layer over channels last": (LAST + "y = MatMul(l, v)", Layout("nhwc", GRID)),
    "a linear layer over the cells": (TOKENS + "y = MatMul(f, mix)", None),
    "pooled": (TOKENS + "y = ReduceMean<keepdims=1>(t, _1)", None),
    "a broadcast gate": (TOKENS + "p = ReduceMean<keepdims=1>(t, _1) y = Mul(p, t)", Layout("tokens", GRID)),
    "back at a residual sum": (TOKENS + "a = MatMul(f, mix) u = Transpose<perm=[0,2,1]>(a) y = Add(u, t)",
                               Layout("tokens", GRID)),
    "back at a norm over features": (TOKENS + "a = MatMul(f, mix) u = Transpose<perm=[0,2,1]>(a) "
                                     "y = LayerNormalization<axis=-1>(u, g, b)", Layout("tokens", GRID)),
    "a norm over features, one axis more": (TOKENS + "a = MatMul(f, mix) u = Transpose<perm=[0,2,1]>(a) "
        "z = Unsqueeze(u, _1) y = LayerNormalization<axis=-1>(z, g, b)", None),
    "BatchNorm over tokens in the batch": (TOKENS + "r = Reshape(t, rows) i = BatchNormalization(r, g, b, b, "
        "g) y = Reshape(i, nt5)", Layout("tokens", GRID)),
    "attention of patches to class token and patches": (CLASS + "k = Transpose<perm=[0,2,1]>(c) s = MatMul(t, k) "
        "a = Softmax(s) y = MatMul(a, c)", Layout("tokens", GRID)),
    "a norm over features of what is no grid": (CLASS + "q = Transpose<perm=[0,2,1]>(c) a = MatMul(q, mix7) "
        "u = Transpose<perm=[0,2,1]>(a) y = LayerNormalization<axis=-1>(u, g, b)", None),
    "a norm over the cells": (TOKENS + "y = LayerNormalization<axis=-1>(f, g6, b6)", None),
}  # fmt: skip


# Windows of 2 x 2 of a picture of 4 x 6 with channels last: 2 x 3 of them, parts (n, 2, 2, 3, 2, 3).
PARTS = "r = Reshape(x, parts) s = Transpose<perm=[0,1,3,2,4,5]>(r) e = Reshape(s, windows) "
BACK = "q = Reshape({}, parted) u = Transpose<perm=[0,1,3,2,4,5]>(q) y = Reshape(u, {})"
WINDOWS = {
    "cells of windows are no grid": (PARTS + "y = Relu(e)", None),
    "a norm within windows neither": (PARTS + "y = LayerNormalization<axis=-1>(e, g3, b3)", None),
    "windows put back": (PARTS + BACK.format("e", "picture"), Layout("nhwc", (4, 6))),
    "windows put back on their side": (PARTS + BACK.format("e", "turned"), None),
    "windows put back after token-wise steps": (PARTS + "i = LayerNormalization<axis=-1>(e, g3, b3) j = MatMul(i, v3) "
        "k = Add(e, j) " + BACK.format("k", "picture"), Layout("nhwc", (4, 6))),
    "windows put back after attention among them": (PARTS + "i = MatMul(e, v3) j = Transpose<perm=[0,2,1]>(i) "
        "k = MatMul(i, j) l = Softmax(k) o = MatMul(l, i) " + BACK.format("o", "picture"), Layout("nhwc", (4, 6))),
    "windows not put back in order": (PARTS + "q = Reshape(e, parted) y = Reshape(q, picture)", None),
    "rows of windows put back in another order": ("r = Reshape(x, parts) s = Transpose<perm=[0,2,1,3,4,5]>(r) "
        "y = Reshape(s, picture)", None),
    "a window of the whole, its axis of one": ("r = Reshape(x, onepart) s = Transpose<perm=[0,1,3,2,4,5]>(r) "
        "y = Reshape(s, one)", None),
    "2 x 2 cells merged into channels": (PARTS + "q = Reshape(s, merged) y = Relu(q)", Layout("nhwc", (2, 3))),
    "merged cells after a linear layer": (PARTS + "q = Reshape(s, merged) i = LayerNormalization<axis=-1>(q, g12, b12) "
        "y = MatMul(i, v12)", Layout("nhwc", (2, 3))),
    "the windows' cells apart, a dilated grid merged": ("r = Reshape(x, parts) s = Transpose<perm=[0,2,4,1,3,5]>(r) "
        "y = Reshape(s, dilated)", None),
    "cells pooled by a maximum": (PARTS + "m = ReduceMax<keepdims=0>(s, axes34) y = Relu(m)", Layout("nhwc", (2, 3))),
    "windows pooled by a maximum": (PARTS + "y = ReduceMax<keepdims=0>(s, axes12)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_and_merged_cells_are_followed_by_their_factors(name: str) -> None:
    body, wanted = WINDOWS[name]
    assert lies(body, kind="nhwc") == wanted


@pytest.mark.parametrize("name", MOVES)
def test_a_layout_follows_its_value(name: str) -> None:
    body, wanted = MOVES[name]
    assert lies(body) == wanted


def test_the_shape_behind_a_class_token_repeated_for_an_open_batch_is_known() -> None:
    body = TOKENS + "s = Shape<start=0, end=1>(x) d = Concat<axis=0>(s, _1, _5) e = Expand(cls, d) "
    body += "c = Concat<axis=1>(e, t) r = Reshape(c, open) y = Squeeze(r, _3)"
    g = Graph(model(body), shapes={"x": ["N", 3, 4, 6]})
    assert g.shape("r") == ("N", 7, 5, 1)
    assert layouts(g, "x", "nchw")["c"] == Layout("tokens", GRID, 1)


def test_a_picture_with_channels_last_starts_so() -> None:
    assert lies("y = Relu(x)", kind="nhwc") == Layout("nhwc", (4, 6))
    assert lies("y = Transpose<perm=[0,3,1,2]>(x)", kind="nhwc") == Layout("nchw", (4, 6))


def test_halves_of_a_side_put_back_in_another_order_are_no_side() -> None:
    body = "r = Reshape(x, halves) s = Transpose<perm=[0,{},3,4,5]>(r) y = Reshape(s, eight)"
    graphs = [graph(body.format(order), picture="8,8,3") for order in ("1,2", "2,1")]
    assert [layouts(g, "x", "nhwc").get("y") for g in graphs] == [Layout("nhwc", (8, 8)), None]


# A pre-norm transformer block on `c` (class token and six patches): `n1` feeds the attention, `n2` the MLP.
NORM = "{1} = LayerNormalization<axis=-1>({0}, g, b) "
SPELT = (
    "mu{1} = ReduceMean({0}, _minus1) d{1} = Sub({0}, mu{1}) sq{1} = Mul(d{1}, d{1}) "
    "va{1} = ReduceMean(sq{1}, _minus1) sd{1} = Sqrt(va{1}) "
    "z{1} = Div(d{1}, sd{1}) sc{1} = Mul(z{1}, g) {1} = Add(sc{1}, b) "
)
ATTENTION = (
    "q = MatMul(n1, v) k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k) a = Softmax(s) o = MatMul(a, q) r1 = Add({}, o) "
)
MLP = "h = MatMul(n2, v) e = Relu(h) r2 = Add(r1, e) "


def block(source: str, norm: str) -> str:
    return norm.format(source, "n1") + ATTENTION.format(source) + norm.format("r1", "n2") + MLP


PICK = "p = Gather<axis=1>({}, scalar0) y = MatMul(p, head)"
MEAN = "p = ReduceMean<keepdims=0>({}, _1) y = MatMul(p, head)"
MIXER = (
    "n1 = LayerNormalization<axis=-1>(t, g, b) u = Transpose<perm=[0,2,1]>(n1) i = MatMul(u, mix) "
    "o = Transpose<perm=[0,2,1]>(i) r1 = Add(t, o) "
)
AUTOMATIC = {
    "ViT with a class token": (CLASS + block("c", NORM) + NORM.format("r2", "n3") + PICK.format("n3"), "n1", 1),
    "ViT with norms spelt out": (CLASS + block("c", SPELT) + SPELT.format("r2", "n3") + PICK.format("n3"), "n1", 1),
    "ViT with pooling": (TOKENS + block("t", NORM) + NORM.format("r2", "n3") + MEAN.format("n3"), "n1", 0),
    "MLP-Mixer": (TOKENS + MIXER + NORM.format("r1", "n2") + MLP + NORM.format("r2", "n3") + MEAN.format("n3"),
                  "n1", 0),
    "ResMLP, whose norm is a scale and a shift": (TOKENS + "z1 = Mul(scale, t) n1 = Add(shift, z1) "
        "u = Transpose<perm=[0,2,1]>(n1) i = MatMul(u, mix) o = Transpose<perm=[0,2,1]>(i) r1 = Add(t, o) "
        + MEAN.format("r1"), "n1", 0),
    "ResMLP as `addcmul` is exported": (TOKENS + "z1 = Mul(scale, t) z2 = Mul(z1, one_number) n1 = Add(shift, z2) "
        "u = Transpose<perm=[0,2,1]>(n1) i = MatMul(u, mix) o = Transpose<perm=[0,2,1]>(i) r1 = Add(t, o) "
        + MEAN.format("r1"), "n1", 0),
    "channels last, no attention behind the norm": (LAST + "n = LayerNormalization<axis=-1>(l, g, b) h = MatMul(n, v) "
        "e = Relu(h) r = Add(l, e) p = ReduceMean<keepdims=0>(r, axes12) y = MatMul(p, head)", "r", 0),
    "norms after the mixing": (TOKENS + "q = MatMul(t, v) k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k) "
        "a = Softmax(s) o = MatMul(a, q) n1 = LayerNormalization<axis=-1>(o, g, b) r1 = Add(t, n1) "
        "h = MatMul(r1, v) e = Relu(h) n2 = LayerNormalization<axis=-1>(e, g, b) r2 = Add(r1, n2) "
        + MEAN.format("r2"), "r2", 0),
    "a norm, rolled as in shifted windows": (TOKENS + "n1 = LayerNormalization<axis=-1>(t, g, b) l = Reshape(n1, n235) "
        "l1 = Slice(l, _1, many, _1) l2 = Slice(l, _0, _1, _1) l3 = Concat<axis=1>(l1, l2) f2 = Reshape(l3, nt5) "
        "q = MatMul(f2, v) k = Transpose<perm=[0,2,1]>(q) s = MatMul(q, k) a = Softmax(s) o = MatMul(a, q) "
        "r1 = Add(t, o) " + MEAN.format("r1"), "n1", 0),
    "sizes computed behind the norm": (TOKENS + block("t", NORM) + "d = Shape(n2) z1 = Reshape(r2, d) z2 = Relu(z1) "
        + MEAN.format("z2"), "n1", 0),
    "a window of the whole map": (LAST + "n1 = LayerNormalization<axis=-1>(l, g, b) win1 = Reshape(n1, whole) "
        "win2 = Transpose<perm=[0,1,3,2,4,5]>(win1) win3 = Reshape(win2, nt5) q = MatMul(win3, v) "
        "q1 = Reshape(q, onehead) q2 = Transpose<perm=[0,2,1,3]>(q1) k = Transpose<perm=[0,2,3,1]>(q1) "
        "s = MatMul(q2, k) a = Softmax(s) o = MatMul(a, q2) o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Reshape(o1, nt5) "
        "o3 = MatMul(o2, v) win4 = Reshape(o3, whole2) win5 = Transpose<perm=[0,1,3,2,4,5]>(win4) "
        "win6 = Reshape(win5, n235) r = Add(l, win6) n2 = LayerNormalization<axis=-1>(r, g, b) "
        "p = ReduceMean<keepdims=0>(n2, axes12) y = MatMul(p, head)", "n1", 0),
    "an MLP of the class token alone": (CLASS + block("c", NORM) + "m1 = Slice(r2, _0, _1, _1) m2 = MatMul(m1, v) "
        "m3 = Slice(r2, _1, many, _1) m4 = Concat<axis=1>(m2, m3) " + PICK.format("m4"), "n1", 1),
    "a map moved out of windows": (TOKENS + "u = Unsqueeze(t, _1) e = Relu(u) z = Squeeze(e, _1) "
        "i = Transpose<perm=[0,2,1]>(z) j = Reshape(i, n523) p = ReduceMean<keepdims=0>(j, axes23) y = MatMul(p, head)",
        "z", 0),
    "a map after the transformer": (TOKENS + block("t", NORM) + "u = Transpose<perm=[0,2,1]>(r2) i = Reshape(u, n523) "
        "j = Conv(i, w1) p = ReduceMean<keepdims=0>(j, axes23) y = MatMul(p, head)", "j", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOMATIC)
def test_the_automatic_layer_of_a_transformer_is_the_norm_before_the_last_mixing(name: str) -> None:
    body, wanted, prefix = AUTOMATIC[name]
    layer = Layers(graph(body), "x", "nchw", "y").automatic
    assert (layer.name, layer.layout.prefix, layer.grid) == (wanted, prefix, GRID)


def test_of_two_blocks_the_last_counts() -> None:
    first, second = (block(s, NORM) for s in ("c", "R2"))
    for name in ("n1", "n2", "q", "k", "s", "a", "o", "r1", "h", "e", "r2"):
        first = re.sub(rf"\b{name}\b", name.upper(), first)
    body = CLASS + first + second + NORM.format("r2", "n3") + PICK.format("n3")
    assert Layers(graph(body), "x", "nchw", "y").automatic.name == "n1"


def test_norms_before_mixing_are_told_from_norms_before_token_wise_layers() -> None:
    g = graph(CLASS + block("c", NORM) + NORM.format("r2", "n3") + PICK.format("n3"))
    assert norm_before_mixing(g, layouts(g, "x", "nchw")) == "n1"


HEADS = {
    "gathered": "p = Gather<axis=1>({}, scalar0)",
    "sliced": "p1 = Slice({}, _0, _1, _1) p = Squeeze(p1, _1)",
    "sliced with a negative axis": "p1 = Slice({}, _0, _1, _minus2) p = Squeeze(p1, _1)",
}
PATCHES = {
    "the first patch": "p = Gather<axis=1>({}, scalar1)",
    "the last patch": "p = Gather<axis=1>({}, back)",
    "class token and first patch": "p1 = Slice({}, _0, _2, _1) p = ReduceMean<keepdims=0>(p1, _1)",
    "the mean": "p = ReduceMean<keepdims=0>({}, _1)",
}


def vanishing(head: str, value: str) -> bool:
    g = graph(CLASS + block("c", NORM) + NORM.format("r2", "n3") + head.format("n3") + " y = MatMul(p, head)")
    return vanishes(g, value, layouts(g, "x", "nchw"))


@pytest.mark.parametrize("head", HEADS)
def test_behind_the_last_mixing_the_gradient_of_a_class_token_head_vanishes(head: str) -> None:
    values = ("c", "n1", "r1", "n2", "r2", "n3")
    assert [vanishing(HEADS[head], v) for v in values] == [False, False, True, True, True, True]


@pytest.mark.parametrize("head", PATCHES)
def test_it_does_not_where_a_patch_reaches_the_score(head: str) -> None:
    assert not any(vanishing(PATCHES[head], v) for v in ("n1", "r2", "n3"))


def test_a_vanishing_gradient_is_refused_with_the_nearest_layer_upstream() -> None:
    body = CLASS + block("c", NORM) + NORM.format("r2", "n3") + PICK.format("n3")
    with pytest.raises(UnsupportedError) as error:
        Explainer(model(body), layer="r2")
    assert error.value.message == "gradients at layer `r2` vanish identically: only its class token reaches the score"
    assert error.value.hint == "use `q`, the nearest layer upstream where they do not"
    x = np.random.default_rng(1).normal(size=(1, 3, 4, 6)).astype(np.float32)
    assert not Explainer(model(body), layer="q").explain_tensor(x, 0)[0].is_empty
    assert not Explainer(model(body)).explain_tensor(x, 0)[0].is_empty


# Tokens in reverse order behind a class token: nothing in the graph tells the grid.
LOST = TOKENS + "u = Gather<axis=1>(t, reverse) c = Concat<axis=1>(cls, u) " + MEAN.format("c")


def test_a_stated_layout_drops_the_class_token_and_lays_out_the_grid() -> None:
    proto = model(LOST)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    x = np.random.default_rng(1).normal(size=(1, 3, 4, 6)).astype(np.float32)
    patches = x.reshape(3, 2, 2, 3, 2).transpose(1, 3, 0, 2, 4).reshape(6, 12)  # cell by cell; channel, row, column
    u = (patches @ weights["w"].reshape(5, 12).T)[::-1]
    wanted = (u @ weights["head"][:, 2] / 7).reshape(GRID)  # every one of seven tokens has the gradient head[:, 2] / 7
    with pytest.raises(UnsupportedError, match=r"layer `c` has no spatial grid: its shape is \[1, 7, 5\]"):
        Explainer(proto, layer="c")
    (explanation,) = Explainer(proto, layer="c", layer_layout="tokens:1").explain_tensor(x, 2)
    np.testing.assert_allclose(explanation.raw, wanted, rtol=1e-5, atol=1e-6)


STATED: dict[str, tuple[str, Shape, tuple[int, int], Layout]] = {
    "channels first": ("nchw", ("N", 8, 3, 5), (60, 100), Layout("nchw", (3, 5))),
    "channels last": ("nhwc", ("N", 3, 5, 8), (60, 100), Layout("nhwc", (3, 5))),
    "tokens on a square picture": ("tokens", ("N", 36, 8), (99, 99), Layout("tokens", (6, 6))),
    "tokens on a wide picture": ("tokens", ("N", 24, 8), (64, 96), Layout("tokens", (4, 6))),
    "tokens on a tall picture": ("tokens", ("N", 24, 8), (96, 64), Layout("tokens", (6, 4))),
    "a class token": ("tokens:1", ("N", 197, 8), (224, 224), Layout("tokens", (14, 14), 1)),
    "a class token and registers": ("tokens:5", ("N", 29, 8), (64, 96), Layout("tokens", (4, 6), 5)),
    "a row of channels": ("channels-tokens:1", ("N", 8, 25), (64, 96), Layout("channels-tokens", (4, 6), 1)),
}


@pytest.mark.parametrize("name", STATED)
def test_a_stated_layout_takes_its_grid_from_the_shape(name: str) -> None:
    text, shape, picture, wanted = STATED[name]
    assert stated_layout(text, shape, picture) == wanted


@pytest.mark.parametrize("text", ["rows", "tokens:", "tokens:x", "tokens:-1", "nchw:1", "", "tokens:1:2"])
def test_a_layout_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        stated_layout(text, ("N", 7, 5), (4, 6))
    assert error.value.message == f"unknown layer layout `{text}`"
    assert error.value.hint == "use nchw, nhwc, tokens or tokens:PREFIX, such as tokens:1"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("nchw", ("N", 7, 5)),
        ("nhwc", ("N", None, 5, 8)),
        ("tokens", ("N", 8, 3, 5)),
        ("tokens", ("N", None, 8)),
        ("tokens:7", ("N", 7, 5)),
        ("tokens:8", ("N", 7, 5)),
        ("tokens", None),
    ],
)
def test_a_stated_layout_that_the_shape_contradicts_is_refused_with_the_shape(text: str, shape: Shape | None) -> None:
    with pytest.raises(UsageError) as error:
        stated_layout(text, shape, (4, 6))
    shown = list(shape) if shape is not None else "unknown"
    assert error.value.message == f"layout `{text}` does not fit the layer's shape {shown}"


def test_a_grid_is_the_factor_pair_nearest_in_aspect() -> None:
    assert [token_grid(n, (64, 96)) for n in (24, 6, 54, 7, 1)] == [(4, 6), (2, 3), (6, 9), (1, 7), (1, 1)]
