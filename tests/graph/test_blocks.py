"""The pass over ONNX Runtime's optimised model: the same numbers with fewer turns, in an order that runs."""

import platform
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from onnxcam import Explainer
from onnxcam.errors import ModelError
from onnxcam.explainer import _pictures_in_a_run
from onnxcam.graph.blocks import DOMAIN, keep_in_blocks, masks_early, uses_blocks
from onnxcam.graph.index import Graph
from onnxcam.runtime import Session, block_size

pytest.importorskip("onnxruntime")

H, W = 24, 16
TURNS = ("ReorderInput", "ReorderOutput")


class Net:
    """A model in ONNX text over `x` (N, 3, H, W), with seeded weights for the convolutions that it names."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(3)

    def conv(self, y: str, x: str, m: int, c: int, k: int = 3, group: int = 1, stride: int = 1) -> str:
        self.weights[f"{y}_w"] = self.rng.normal(size=(m, c // group, k, k), scale=(c * k * k // group) ** -0.5)
        at = f"pads=[{k // 2},{k // 2},{k // 2},{k // 2}], group={group}, strides=[{stride},{stride}]"
        return self.say(f"{y} = Conv<{at}>({x}, {y}_w)")

    def say(self, line: str) -> str:
        self.lines.append(line)
        return line.split(" =")[0]

    def model(self, *outputs: str, more: str = "") -> ModelProto:
        for i, line in enumerate(self.lines):
            self.lines[i] = line.replace("0.5", "half").replace("0.0", "nil")
        declared = ", ".join(f"float[] {y}" if y[0] != "b" else f"bool[] {y}" for y in outputs)
        text = f"""<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,{H},{W}] x{more}) => ({declared})
            <float half = {{0.5}}, float nil = {{0}}, int64[8] around = {{0,0,1,-1,0,0,-1,1}},
             int64[8] channels = {{0,32,0,0,0,32,0,0}}, int64[8] some = {{0,4,0,0,0,4,0,0}},
             int64[2] from = {{1,0}}, int64[2] to = {{8,6}}, int64[2] sides = {{2,3}}, int64[2] steps = {{2,2}},
             int64[8] phases = {{0,0,0,0,0,96,0,0}}, int64[8] phases_cells = {{0,0,0,0,0,96,1,2}},
             int64[8] phase_last = {{0,96,0,0,0,0,0,0}}, int64[8] phase_less = {{0,0,0,0,0,32,0,0}},
             int64[1] nought = {{0}}, int64[3] whole = {{0,2,3}}>
            {{ {chr(10).join(self.lines)} }}"""
        model = parser.parse_model(text)
        model.graph.initializer.extend(
            numpy_helper.from_array(w.astype(np.float32), name) for name, w in self.weights.items()
        )
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model)
        return model


def refined(model: ModelProto) -> tuple[Session, ModelProto, ModelProto]:
    """A session of the refined model, what the optimiser made and what became of it."""
    seen: list[ModelProto] = []

    def refine(optimised: ModelProto) -> ModelProto:
        if not uses_blocks(optimised):
            pytest.skip("this ONNX Runtime has no layout of blocks here")
        seen.append(optimised)
        seen.append(keep_in_blocks(optimised, Graph(model), block_size()))
        return seen[-1]

    return Session(model, threads=1, refine=refine), seen[0], seen[1]


def turns(model: ModelProto) -> int:
    return sum(node.op_type in TURNS for node in model.graph.node)


def check(model: ModelProto, tolerance: float = 0.0) -> tuple[ModelProto, ModelProto]:
    """The refined session's outputs are the plain one's, for one picture and three."""
    session, before, after = refined(model)
    plain = Session(model, threads=1)
    for n in (1, 3):
        x = np.random.default_rng(n).normal(size=(n, 3, H, W)).astype(np.float32)
        for name, want in plain.run({"x": x}).items():
            have = session.run({"x": x})[name]
            assert have.dtype == want.dtype
            least = tolerance * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(have, want, rtol=tolerance, atol=least, err_msg=name)
    assert turns(after) <= turns(before)
    return before, after


def masked(channels: int = 32) -> Net:
    """A convolution, its mask, and another convolution of what is masked."""
    net = Net()
    net.conv("a", "x", channels, 3)
    net.say("r = Relu(a)")
    net.say("b = Greater(r, 0.5)")
    net.say("m = Cast<to=1>(b)")
    net.conv("c", "r", channels, channels)
    net.say("d = Mul(c, m)")
    net.conv("e", "d", channels, channels)
    return net


@pytest.mark.parametrize("channels", [32, 24, 20])
def test_masks_between_convolutions_cost_no_turn(channels: int) -> None:
    _, after = check(masked(channels).model("e"))
    assert [n.op_type for n in after.graph.node].count("ReorderInput") == 0
    assert [n.op_type for n in after.graph.node].count("ReorderOutput") == 1  # the output's


def test_a_mask_is_made_right_behind_its_activations_and_cast_right_before_it_is_read() -> None:
    _, after = check(masked().model("e"))
    assert [n.op_type for n in after.graph.node] == ["Conv", "Greater", "Conv", "Cast", "Mul", "Conv", "ReorderOutput"]


def test_what_cannot_be_turned_stays_as_it_was() -> None:
    before, after = check(masked(6).model("e"))  # six channels are no multiple of four
    assert turns(before) == turns(after)


@pytest.mark.parametrize("outputs", [("e", "b"), ("e", "m"), ("e", "d", "r")], ids=" ".join)
def test_outputs_are_turned_back_and_a_truth_value_never_is(outputs: tuple[str, ...]) -> None:
    check(masked().model(*outputs))


SPACED = {
    "zeros": ("Pad(m, phases)", True),
    "zeros, said": ("Pad(m, phases, nil)", True),
    "a row and columns more": ("Pad(m, phases_cells)", True),
    "halves": ("Pad(m, phases, half)", False),
    "zeros before": ("Pad(m, phase_last)", False),
    "fewer zeros": ("Pad(m, phase_less)", False),
    "zeros that are read too": ("Pad(m, phases)  h = Sigmoid(z)", False),
}


@pytest.mark.parametrize("line", SPACED)
def test_one_phase_of_a_picture_and_zeros_are_put_together_by_one_pad(line: str) -> None:
    pad, whole = SPACED[line]
    net = Net()
    net.conv("a", "x", 32, 3)
    net.say("b = Greater(a, 0.5)")
    net.say("k = Cast<to=1>(b)")
    net.say("m = Mul(a, k)")
    net.say(f"z = {pad}")
    net.say("p = DepthToSpace<blocksize=2>(z)")
    net.conv("f", "p", 32, 16 if "phase_less" in pad else 32)
    _, after = check(net.model("f", *["h"] * ("h =" in pad)), 2e-5)
    kinds = [n.op_type for n in after.graph.node]
    moves = (kinds.count("Pad"), kinds.count("Transpose"))
    assert moves == ((1, 0) if whole else (1, 1))


@pytest.mark.parametrize("channels", [32, 24])
def test_what_a_convolution_adds_to_is_known_to_have_its_size(channels: int) -> None:
    """A size that only the whole model tells: ONNX Runtime then writes the sum where the summand is."""
    net = Net()
    net.conv("a", "x", channels, 3)
    net.say("t = Mul(a, by)")
    net.conv("c", "t", channels, channels)
    net.say("s = Add(c, t)")
    net.conv("f", "s", channels, channels)
    model = net.model("f", more=f", float[M,{channels},{H},{W}] by")
    known = Graph(model, shapes={"by": ("N", channels, H, W)})
    seen: list[ModelProto] = []
    Session(model, threads=1, refine=lambda made: seen.append(keep_in_blocks(made, known, block_size())))  # type: ignore[func-returns-value]
    whole = -(-channels // block_size()) * block_size()
    declared = {
        v.name.removesuffix("/blocks"): [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in seen[0].graph.value_info
        if v.name.endswith("/blocks")
    }
    assert declared == {v: ["N", whole, H, W] for v in ("s", "t")}


def test_a_sum_becomes_part_of_the_convolution_that_nothing_else_reads() -> None:
    net = masked()
    net.say("s = Add(e, d)")
    net.conv("f", "s", 32, 32)
    _, after = check(net.model("f"), 1e-6)
    assert "Add" not in [n.op_type for n in after.graph.node]
    for more in ("e", "s"):
        check(net.model("f", more), 1e-6)


def test_a_sum_of_one_value_with_itself_is_no_part_of_a_convolution() -> None:
    net = Net()
    net.conv("a", "x", 32, 3)
    net.say("s = Add(a, a)")
    net.say("t = Sigmoid(s)")
    net.say("u = Sub(0.5, t)")
    net.conv("c", "u", 32, 32)
    check(net.model("c"))


@pytest.mark.parametrize("more", ["o = ReduceMax(d, nought)", "o = Sigmoid(d)"])
def test_a_sum_over_a_batch_of_another_size_is_no_part_of_a_convolution(more: str) -> None:
    net = masked()
    net.say(more)
    net.say("s = Add(e, o)")
    net.say("t = Mul(s, m)")
    net.conv("f", "t", 32, 32)
    check(net.model("f"), 1e-6)


def test_a_number_is_no_summand_of_a_convolution() -> None:
    net = masked()
    net.say("s = Add(e, 0.5)")
    net.say("t = Mul(s, m)")
    net.conv("f", "t", 32, 32)
    check(net.model("f"))


MOVES = {
    "depth to space": ("p = DepthToSpace<blocksize=2>(m)", 64, 16),
    "depth to space, depth last": ('p = DepthToSpace<blocksize=2, mode="CRD">(m)', 64, 16),
    "depth to space, half a block": ("p = DepthToSpace<blocksize=2>(m)", 32, 8),
    "pad": ("p = Pad(m, around, half)", 32, 32),
    "pad with channels": ("p = Pad(m, channels, half)", 32, 96),
    "pad with half a block": ("p = Pad(m, some, half)", 32, 40),
    "pad at the edge": ('p = Pad<mode="edge">(m, around)', 32, 32),
    "slice": ("p = Slice(m, from, to, sides, steps)", 32, 32),
    "slice without steps": ("p = Slice(m, from, to, sides)", 32, 32),
    "concatenation": ("p = Concat<axis=1>(m, n)", 32, 64),
    "concatenation of rows": ("p = Concat<axis=2>(m, n)", 32, 32),
    "a spread operand": ("p = Mul(m, g)", 32, 32),
    "an operand without a batch": ("h = ReduceMax(g, nought) p = Mul(m, h)", 32, 32),
    "a sum over cells": ("h = ReduceSum(m, sides) p = Mul(n, h)", 32, 32),
    "one for all pictures": ("h = ReduceMax(n, nought) p = Mul(m, h)", 32, 32),
    "a convolution and one for all": ("i = ReduceMax(n, nought) h = Add(c, i) p = Mul(n, h)", 32, 32),
    "a sum over everything": ("h = ReduceSum(m, whole) p = Mul(n, h)", 32, 32),
    "a sum over rows": ("h = ReduceSum(m, nought) p = Mul(n, h)", 32, 32),
    "a cell everywhere": ("s = Shape(m) h = Expand(g, s) p = Mul(n, h)", 32, 32),
    "cells alone": ("h = Sigmoid(g) i = Mul(h, g) p = Add(i, m)", 32, 32),
    "a convolution and a number": ("h = Add(c, half) p = Mul(n, h)", 32, 32),
    "a convolution and a cell": ("h = Add(c, g) p = Mul(n, h)", 32, 32),
    "a selection by what is no comparison": ("bh = IsNaN(n) p = Where(bh, m, n)", 32, 32),
    "a selection": ("p = Where(b, m, n)", 32, 32),
}


@pytest.mark.parametrize("line", MOVES)
@pytest.mark.parametrize("wide", [1, 2])
def test_cells_are_moved_in_blocks_or_not_at_all(line: str, wide: int) -> None:
    text, before, after = MOVES[line]
    net = Net()
    net.conv("a", "x", before * wide, 3)
    net.say("n = Sigmoid(a)")
    net.say("b = Less(n, 0.5)")
    net.say("k = Cast<to=1>(b)")
    net.conv("c", "n", before * wide, before * wide)
    net.say("g = GlobalAveragePool(c)")
    net.say("m = Mul(c, k)")
    net.say(text)
    net.conv("f", "p", 32, after + before * (wide - 1) if "Pad" in text else after * wide)
    check(net.model("f"), 2e-5)
    check(net.model("f", "g", *["h"] * (" h =" in f" {text}")), 2e-5)


def test_what_a_branch_reads_is_turned_back() -> None:
    net = masked()
    net.say("g = GlobalAveragePool(e)")
    net.conv("h", "g", 32, 32, 1)
    net.say("z = ReduceMax<keepdims=0>(e)")
    net.say("t = Greater(z, 0.5)")
    net.say("o = If(t) <then_branch = g1 () => (float[] p) { l = Add(d, half) p = Mul(l, h) },"
            " else_branch = g2 () => (float[] q) { q = Sub(m, half) }>")  # fmt: skip
    check(net.model("o", "e"))


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_compute_the_same(seed: int) -> None:
    """Convolutions and whatever else of one shape, in any order, every value read any number of times."""
    rng = np.random.default_rng(seed)
    net = Net()
    channels = int(rng.choice([16, 24, 32, 12]))
    values, truths = [net.conv("v0", "x", channels, 3)], []
    for i in range(1, 14):
        a, b = (str(v) for v in rng.choice(values, 2))
        kind = rng.integers(0, 12)
        if kind < 4:
            group = channels if rng.random() < 0.3 else 1
            values.append(net.conv(f"v{i}", a, channels, channels, int(rng.choice([1, 3])), group))
        elif kind == 4:
            truths.append(net.say(f"b{i} = {rng.choice(['Greater', 'Less'])}({a}, {rng.choice(['0.0', b])})"))
        elif kind == 5 and len(truths) > 1:
            truths.append(net.say(f"b{i} = {rng.choice(['And', 'Or'])}({truths[-1]}, {truths[-2]})"))
        elif kind == 6 and truths:
            values.append(net.say(f"v{i} = Cast<to=1>({rng.choice(truths)})"))
        elif kind == 7:
            values.append(net.say(f"v{i} = Pad({a}, around, half)"))
        elif kind == 8:
            values.append(net.say(f"v{i} = {rng.choice(['Relu', 'Sigmoid', 'Tanh', 'Neg'])}({a})"))
        else:
            values.append(net.say(f"v{i} = {rng.choice(['Mul', 'Add', 'Sub', 'Max'])}({a}, {b})"))
    last = net.conv("last", values[-1], 16, channels)
    more = [str(v) for v in rng.choice([*values, *truths], 2, replace=False)]
    check(net.model(last, *dict.fromkeys(more)), 2e-5)


def test_an_order_runs_and_loses_nothing() -> None:
    """Also where thousands of nodes hang on one truth value."""
    nodes = [helper.make_node("Relu", ["x"], ["r0"])]
    nodes += [helper.make_node("Relu", [f"r{i}"], [f"r{i + 1}"]) for i in range(3000)]
    nodes += [
        helper.make_node("Cast", ["r3000"], ["k"], to=TensorProto.INT32),
        helper.make_node("Less", ["k", "x"], ["b"]),
    ]
    nodes += [helper.make_node("Sigmoid", ["x"], ["y"])]
    ordered = masks_early(nodes)
    assert Counter(n.output[0] for n in ordered) == Counter(n.output[0] for n in nodes)
    made = {"x"}
    for node in ordered:
        assert made.issuperset(node.input)
        made.update(node.output)


def test_threads_that_open_models_with_the_same_options_leave_them_as_they_were() -> None:
    """While one refines its model, the options are not what the caller gave."""
    import onnxruntime as ort

    options, model, refining = ort.SessionOptions(), masked().model("e"), threading.Event()

    def slowly(optimised: ModelProto) -> None:
        refining.set()
        time.sleep(0.1)

    def second() -> None:
        refining.wait()
        Session(model, options=options, refine=lambda optimised: time.sleep(0.3))

    thread = threading.Thread(target=second)
    thread.start()
    Session(model, options=options, refine=slowly)
    thread.join()
    assert options.optimized_model_filepath == ""
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def test_the_session_runs_in_the_order_of_the_refined_file_and_leaves_options_as_they_were() -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    model = masked().model("e")
    for _ in range(2):
        session = Session(model, options=options, refine=lambda m: keep_in_blocks(m, Graph(model), block_size()))
        x = np.zeros((1, 3, H, W), np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["e"], Session(model).run({"x": x})["e"])
    assert options.optimized_model_filepath == ""
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert options.execution_order == ort.ExecutionOrder.DEFAULT


def test_without_a_place_for_the_file_the_plain_session_runs_and_that_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nothing"))
    model, x = masked().model("e"), np.ones((1, 3, H, W), np.float32)
    session = Session(model, refine=lambda m: keep_in_blocks(m, Graph(model), block_size()))
    assert "temporary folder" in caplog.text
    np.testing.assert_array_equal(session.run({"x": x})["e"], Session(model).run({"x": x})["e"])


def test_a_full_disk_is_told_with_a_way_out() -> None:
    def full(optimised: ModelProto) -> ModelProto:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left") as caught:
        Session(masked().model("e"), refine=full)
    assert "temporary folder" in str(caught.value.hint)


def test_what_is_not_refined_is_the_plain_session() -> None:
    model = masked().model("e")
    x = np.ones((1, 3, H, W), np.float32)
    have = Session(model, refine=lambda optimised: None).run({"x": x})["e"]
    np.testing.assert_array_equal(have, Session(model).run({"x": x})["e"])


def deep(batch: str | int = "N") -> ModelProto:
    """A small classifier with what each form is for: a strided stem, pooling, depthwise strides, a shortcut."""
    net = Net()
    net.conv("a", "x", 16, 3, 3, stride=2)
    net.say("r = Relu(a)")
    net.say("p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(r)")
    net.conv("c", "p", 16, 16, 3, group=16)
    net.say("s = Relu(c)")
    net.conv("d", "s", 16, 16, 1)
    net.say("t = Add(d, p)")
    net.conv("e", "t", 32, 16)
    net.say("q = GlobalAveragePool(e)")
    net.say("y = Flatten(q)")
    model = net.model("y")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, H, W]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 32]))
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("batch", ["N", 1, 2, 4])
@pytest.mark.parametrize("threads", [1, 2, 8])
def test_samples_are_run_in_pieces_and_answered_one_by_one(batch: str | int, threads: int) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, H, W)).astype(np.float32)
    targets = [1, 5, 9, None, 2]
    explainer = Explainer(deep(batch), method="saliency", threads=threads)
    together = explainer.explain_tensor(x, targets)
    for i, found in enumerate(together):
        (alone,) = Explainer(deep(), method="saliency", threads=1).explain_tensor(x[i : i + 1], targets[i])
        assert found.class_index == alone.class_index
        np.testing.assert_allclose(found.raw, alone.raw, rtol=1e-5, atol=1e-7)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has the second session")
@pytest.mark.parametrize(
    ("threads", "together", "pieces", "beside"),
    [(1, 1, 5, 0), (1, 2, 3, 0), (1, 4, 2, 0), (2, 1, 5, 4), (2, 2, 3, 2), (2, 4, 2, 2), (3, 4, 3, 3), (8, 4, 5, 0)],
)
def test_as_many_pieces_as_threads_run_side_by_side_each_on_a_thread(
    threads: int, together: int, pieces: int, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcam.explainer._pictures_in_a_run", lambda graph: together)
    explainer = Explainer(deep(), method="saliency", threads=threads)
    caller, ran, run = threading.get_ident(), [], Session.run

    def noted(self: Session, *arguments: Any, **options: Any) -> Any:
        ran.append((self.alone is None and threads > 1, threading.get_ident() != caller))
        return run(self, *arguments, **options)

    monkeypatch.setattr(Session, "run", noted)
    explainer.explain_tensor(np.zeros((5, 3, H, W), np.float32))
    assert sum(alone for alone, _ in ran) == beside
    assert all(alone == elsewhere for alone, elsewhere in ran)
    assert len(ran) == pieces


@pytest.mark.parametrize(("cells", "pictures"), [(40, 1), (15, 1), (12, 2), (10, 3), (8, 4), (2, 4)])
def test_the_more_weights_for_its_values_a_network_has_the_more_pictures_share_a_run(cells: int, pictures: int) -> None:
    """2,304 weights against two times 16 x cells^2 values: a fourth of the values for each picture."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[N,16,{cells},{cells}] x) => (float[N,16,{cells},{cells}] r)
        {{ a = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(a) }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((16, 16, 3, 3), np.float32), "w"))
    assert _pictures_in_a_run(Graph(model)) == pictures


def test_the_second_session_has_one_thread_and_the_options_stay_as_they_were() -> None:
    import onnxruntime as ort

    options, model = ort.SessionOptions(), masked().model("e")
    options.intra_op_num_threads = 3

    def refine(optimised: ModelProto) -> ModelProto | None:
        return keep_in_blocks(optimised, Graph(model), block_size())

    session = Session(model, options=options, refine=refine)
    assert options.intra_op_num_threads == 3
    assert session.alone is not None
    assert session.alone._session.get_session_options().intra_op_num_threads == 1
    assert session._session.get_session_options().intra_op_num_threads == 3
    assert Session(model, threads=1, refine=refine).alone is None
    assert Session(model, threads=3).alone is None


def test_what_fails_beside_is_the_same_error() -> None:
    explainer = Explainer(deep(), method="saliency", threads=2)
    with pytest.raises(ModelError, match="ONNX Runtime"):
        explainer._runs(np.zeros((4, 3, H, W + 1), np.float32), {"class_index": np.array([0] * 4)}, None)


def test_an_explainer_refines_deep_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    opened = Session.__init__

    def noted(self: Session, *arguments: object, refine: object = None, **options: object) -> None:
        seen.append(refine is not None)
        opened(self, *arguments, refine=refine, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "__init__", noted)
    Explainer(deep(), method="saliency")
    deep_one = any(seen)
    seen.clear()
    Explainer(deep(), method="gradcam")
    assert not any(seen)
    branching = deep()
    branches = parser.parse_model("""<ir_version: 8, opset_import: ["" : 18]> g (bool chosen) => (float[] o)
        { o = If(chosen) <then_branch = g1 () => (float[] one) { one = Constant<value_float=1.0>() },
                     else_branch = g2 () => (float[] two) { two = Constant<value_float=2.0>() }> }""")
    branching.graph.input.append(helper.make_tensor_value_info("chosen", TensorProto.BOOL, [1]))
    branching.graph.node.extend(branches.graph.node)
    Explainer(branching, method="saliency", input_name="x", feeds={"chosen": np.array([True])})
    assert not any(seen)
    assert deep_one == (platform.machine() in ("x86_64", "AMD64"))


@pytest.mark.parametrize("method", ["saliency", "guidedbackprop", "deconvnet", "inputxgradient", "layercam"])
def test_deep_gradients_are_those_of_a_session_that_is_not_refined(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(3, 3, H, W)).astype(np.float32)
    layer = {"layer": "r"} if method == "layercam" else {}
    have = Explainer(deep(), method=method, **layer).explain_tensor(x, [1, 5, 9])  # type: ignore[arg-type]
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    want = Explainer(deep(), method=method, **layer).explain_tensor(x, [1, 5, 9])  # type: ignore[arg-type]
    for a, b in zip(have, want, strict=True):
        assert np.abs(b.raw).max() > 0
        np.testing.assert_allclose(a.raw, b.raw, rtol=1e-5, atol=1e-6 * np.abs(b.raw).max())
        np.testing.assert_allclose(a.values, b.values, atol=1e-5)


def test_weights_beside_the_file_are_explained_all_the_same(tmp_path: Path) -> None:
    model, path = deep(), tmp_path / "model.onnx"
    x = np.random.default_rng(0).normal(size=(1, 3, H, W)).astype(np.float32)
    (want,) = Explainer(model, method="saliency").explain_tensor(x, 5)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (have,) = Explainer(path, method="saliency").explain_tensor(x, 5)
    np.testing.assert_allclose(have.raw, want.raw, rtol=1e-5, atol=1e-7)


def test_the_optimiser_speaks_of_blocks_by_this_name() -> None:
    _, before, _ = refined(masked().model("e"))
    assert any(node.domain == DOMAIN for node in before.graph.node)
