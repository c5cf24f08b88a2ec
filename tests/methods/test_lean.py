"""The model that an Explainer runs: what a map needs and no more."""

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto
from test_identities import maps

from onnxcam import Explainer, rewrite
from onnxcam.explained import explained_model, open_graph
from onnxcam.graph.read import read
from onnxcam.runtime import Session

# Weights scaled before, after and between reshapes; by a product of channels, which is no constant factor; and by none.
HEADS = {
    "pooled": "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, v, b)",
    "halved": "p = GlobalAveragePool(a) h = Mul(p, half) f = Flatten(h) y = Gemm(f, v, b)",
    "channels": "p = GlobalAveragePool(a) h = Mul(p, each) f = Flatten(h) y = Gemm(f, v, b)",
    "largest": "p = GlobalMaxPool(a) f = Flatten(p) y = Gemm(f, v, b)",
}


def network(head: str, K: int = 4, body: str = "a = Relu(c)", seed: int = 0) -> ModelProto:
    rng = np.random.default_rng(seed)

    def given(name: str, *shape: int) -> str:
        numbers = ", ".join(f"{n:.4f}" for n in rng.normal(size=shape).ravel())
        return f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}"

    weights = [given("w", K, 3, 3, 3), given("v", K, 5), given("b", 5), given("each", 1, K, 1, 1)]
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 3, 9, 7] x) => (float[N, 5] y)
        <{", ".join(weights)}, float half = {{-0.5}}, float low = {{-1}}, float high = {{1}}>
        {{ c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) {body} {HEADS[head]} }}""")


@pytest.mark.parametrize("head", HEADS)
def test_it_has_no_node_that_no_output_needs_and_scales_sums_not_weights(head: str) -> None:
    graph, image, _ = open_graph(read(network(head)))
    lean = explained_model(graph, image, lean=True)
    made = lean.model.graph
    needed = {o.name for o in made.output}
    for node in reversed(made.node):
        assert needed & set(node.output), node.output[0]
        needed |= set(node.input)
    assert {t.name for t in made.initializer} - graph.initializers.keys() <= needed
    assert lean.score is None and set(lean.outputs) == {lean.layers[0].raw, lean.index, lean.logits}
    added = [n.op_type for n in made.node[len(graph.nodes) :]]
    assert "Div" not in added and added.count("Mul") == {"pooled": 1, "halved": 1, "channels": 2, "largest": 0}[head]


@pytest.mark.parametrize("K", [4, 32])
@pytest.mark.parametrize("head", HEADS)
def test_its_maps_are_the_sums_of_what_the_rewritten_model_gives(head: str, K: int) -> None:
    """In float64, of A, alpha and score as `rewrite` outputs them: the long way, by other nodes."""
    model, x = network(head, K), np.random.default_rng(1).normal(size=(3, 3, 9, 7)).astype(np.float32)
    asked = [2, None, 4]
    index = np.array([-1 if c is None else c for c in asked])
    long = Session(rewrite(model)).run({"x": x, "class_index": index})
    a, alpha = (long[f"onnxcam_{name}"].astype(np.float64) for name in ("activations", "alpha"))
    for i, found in enumerate(maps(model, x, asked)):
        np.testing.assert_allclose(found.raw, (a[i] * alpha[i]).sum(axis=0), rtol=1e-5, atol=1e-6)
        assert found.class_index == long["onnxcam_index"][i]
        assert found.score == pytest.approx(long["onnxcam_score"][i], rel=1e-6)


# What ONNX Runtime holds in blocks (a constant factor is folded into the weights) and what it does not.
BODIES = {
    "a = Relu(c)": True,
    "s = Sigmoid(c) a = Mul(c, s)": True,
    "d = Clip(c, low, high) e = Relu(c) a = Add(d, e)": True,
    "a = Mul(c, each)": True,
    "a = Erf(c)": False,
    "q = GlobalAveragePool(c) a = Mul(c, q)": False,
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("head", ["pooled", "largest"])
def test_channels_are_summed_last_where_they_lie_in_blocks_and_the_head_needs_nothing_else(
    body: str, head: str
) -> None:
    model = network(head, 32, body)
    graph, image, _ = open_graph(read(model))
    lean = explained_model(graph, image, lean=True, channels_last=True)
    turned = any(n.op_type == "Transpose" and n.input[0] == "a" for n in lean.model.graph.node)
    assert turned == (BODIES[body] and head == "pooled")
    explainer = Explainer(model, threads=1)
    x = np.random.default_rng(2).normal(size=(1, 3, 9, 7)).astype(np.float32)
    together = explainer.explain_targets(x, [1, None, 3])
    for found, (alone,) in zip(together, (explainer.explain_tensor(x, c) for c in (1, None, 3)), strict=True):
        np.testing.assert_allclose(found.raw, alone.raw, rtol=1e-5, atol=1e-6)
        assert (found.class_index, found.score) == (alone.class_index, pytest.approx(alone.score, rel=1e-6))
