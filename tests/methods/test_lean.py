"""The model that an Explainer runs: what a map needs and no more."""

import numpy as np
import onnx.parser
import pytest
from onnx import ModelProto
from test_identities import maps

from onnxcam import rewrite
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


def network(head: str, seed: int = 0) -> ModelProto:
    rng = np.random.default_rng(seed)

    def given(name: str, *shape: int) -> str:
        numbers = ", ".join(f"{n:.4f}" for n in rng.normal(size=shape).ravel())
        return f"float[{','.join(map(str, shape))}] {name} = {{{numbers}}}"

    weights = [given("w", 4, 3, 3, 3), given("v", 4, 5), given("b", 5), given("each", 1, 4, 1, 1)]
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 3, 9, 7] x) => (float[N, 5] y) <{", ".join(weights)}, float half = {{-0.5}}>
        {{ c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) a = Relu(c) {HEADS[head]} }}""")


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


@pytest.mark.parametrize("head", HEADS)
def test_its_maps_are_the_sums_of_what_the_rewritten_model_gives(head: str) -> None:
    """In float64, of A, alpha and score as `rewrite` outputs them: the long way, by other nodes."""
    model, x = network(head), np.random.default_rng(1).normal(size=(3, 3, 9, 7)).astype(np.float32)
    asked = [2, None, 4]
    index = np.array([-1 if c is None else c for c in asked])
    long = Session(rewrite(model)).run({"x": x, "class_index": index})
    a, alpha = (long[f"onnxcam_{name}"].astype(np.float64) for name in ("activations", "alpha"))
    for i, found in enumerate(maps(model, x, asked)):
        np.testing.assert_allclose(found.raw, (a[i] * alpha[i]).sum(axis=0), rtol=1e-5, atol=1e-6)
        assert found.class_index == long["onnxcam_index"][i]
        assert found.score == pytest.approx(long["onnxcam_score"][i], rel=1e-6)
