"""Signals (N, C, L) and volumes (N, C, D, H, W): each against the same network as pictures, and numbers by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxcam import Explainer, export
from onnxcam.check import check
from onnxcam.errors import OnnxCamError, UnsupportedError, UsageError
from onnxcam.explained import open_graph
from onnxcam.graph.layers import Layers
from onnxcam.graph.layout import Layout
from onnxcam.graph.read import read
from onnxcam.methods import METHODS
from onnxcam.saliency import volume_maps

pytest.importorskip("onnxruntime")

BODY = """
    a = Conv<strides={strides}, pads={pads}>(x, w1, b1) b = Relu(a) c = MaxPool<kernel_shape={pool}, strides={pool}>(b)
    d = Conv<pads={pads}>(c, w2) e = BatchNormalization(d, g, s, m, v) f = LeakyRelu(e)
    p = GlobalAveragePool(f) q = Flatten(p) y = Gemm<transB=1>(q, h)
"""


def model(shape: str, body: str, arrays: dict[str, Any], output: str = "float[N,4] y") -> ModelProto:
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[{shape}] x) => ({output}) {{ {body} }}'
    )
    floats = {k: np.asarray(v) for k, v in arrays.items()}
    proto.graph.initializer.extend(
        numpy_helper.from_array(v.astype(np.float32) if v.dtype.kind == "f" else v, k) for k, v in floats.items()
    )
    return proto


def network(shape: str, kernel: tuple[int, ...], stride: tuple[int, ...], pool: tuple[int, ...]) -> ModelProto:
    """Convolutions of a kernel's shape; the weights of two kernels with as many numbers are the same."""
    rng = np.random.default_rng(0)
    arrays = {
        "w1": rng.normal(size=(5, 2, 9))[..., : np.prod(kernel)].reshape(5, 2, *kernel),
        "w2": rng.normal(size=(6, 5, 9))[..., : np.prod(kernel)].reshape(6, 5, *kernel),
        "b1": rng.normal(size=5), "g": rng.uniform(0.5, 1, 6), "s": rng.normal(size=6), "m": rng.normal(size=6),
        "v": rng.uniform(1, 2, 6), "h": rng.normal(size=(4, 6)),
    }  # fmt: skip
    pads = [k // 2 for k in kernel]
    text = BODY.format(strides=list(stride), pads=[*pads, *pads], pool=list(pool))
    return model(shape, text, arrays)


SIGNAL = network("N,2,40", (3,), (2,), (2,))
ROW = network("N,2,1,40", (1, 3), (1, 2), (1, 2))
x = np.random.default_rng(1).normal(size=(3, 2, 40)).astype(np.float32)


@pytest.mark.parametrize("name", METHODS)
def test_a_signal_is_explained_as_the_picture_of_one_row(name: str) -> None:
    options = {"masks": 64} if name == "rise" else {}
    kwargs: dict[str, Any] = {"method": name, "method_options": options, "threads": 1, "batch_size": 64}
    try:
        wanted = Explainer(ROW, **kwargs).explain_tensor(x[:, :, np.newaxis], [0, 1, 3])
    except OnnxCamError as refused:
        with pytest.raises(type(refused)):
            Explainer(SIGNAL, **kwargs)
        return
    found = Explainer(SIGNAL, **kwargs).explain_tensor(x, [0, 1, 3])
    for one, other in zip(found, wanted, strict=True):
        assert one.values.shape == (40,) and one.score == pytest.approx(other.score, abs=1e-5)
        np.testing.assert_allclose(one.values, other.values[0], rtol=0, atol=2e-5)
        np.testing.assert_allclose(one.raw, other.raw[0], rtol=1e-4, atol=1e-5 * np.abs(other.raw).max())


def square(*, depth: bool) -> tuple[ModelProto, ModelProto, np.ndarray, Any]:
    """A volume of one slice (depth), or one column wide, the same network as a picture, its x, and how to compare."""
    picture = network("N,2,12,16", (3, 3), (2, 1), (2, 2))
    pixels = np.random.default_rng(2).normal(size=(2, 2, 12, 16)).astype(np.float32)
    if depth:
        return network("N,2,1,12,16", (1, 3, 3), (1, 2, 1), (1, 2, 2)), picture, pixels, lambda a: a[np.newaxis]
    return network("N,2,12,16,1", (3, 3, 1), (2, 1, 1), (2, 2, 1)), picture, pixels, lambda a: a[..., np.newaxis]


FLAT = [name for name, row in METHODS.items() if not row.planar]


@pytest.mark.parametrize("depth", [True, False], ids=["one slice", "one column"])
@pytest.mark.parametrize("name", [n for n in FLAT if n not in ("random", "smoothgrad", "vargrad")])
def test_a_flat_volume_is_explained_as_the_picture_that_it_is(name: str, depth: bool) -> None:
    volume, picture, pixels, lay = square(depth=depth)
    kwargs: dict[str, Any] = {"method": name, "threads": 1, "batch_size": 64}
    try:
        wanted = Explainer(picture, **kwargs).explain_tensor(pixels, [1, 3])
    except OnnxCamError as refused:
        with pytest.raises(type(refused)):
            Explainer(volume, input_layout="ncdhw", **kwargs)
        return
    samples = np.stack([[lay(plane) for plane in sample] for sample in pixels])
    found = Explainer(volume, input_layout="ncdhw", **kwargs).explain_tensor(samples, [1, 3])
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one.values, lay(other.values), rtol=0, atol=2e-5)
        np.testing.assert_allclose(one.raw, lay(other.raw), rtol=1e-4, atol=1e-5 * np.abs(other.raw).max())


# --- numbers that are worked out ----------------------------------------------------------------------------------


def test_grad_cam_of_a_signal_by_hand() -> None:
    """Two channels, x and -x pooled by two; class 0 weighs them 1 and 2, so that a = x's pairs - 2 x's pairs."""
    arrays = {"w": [[[1.0]], [[-1.0]]], "h": [[1.0, 2.0], [3.0, 0.0]], "zero": [0.0, 0.0]}
    body = """a = Conv(x, w) b = MaxPool<kernel_shape=[2], strides=[2]>(a) p = GlobalAveragePool(b) q = Flatten(p)
        y = Gemm<transB=1>(q, h, zero)"""
    signal = np.array([[[1, 2, 5, 4, 0, 0, 3, -1]]], np.float32)
    (found,) = Explainer(model("N,1,8", body, arrays, "float[N,2] y"), layer="b").explain_tensor(signal, 0)
    # b = [2, 5, 0, 3], [-1, -4, 0, 1]; the weights are the head's over 4 cells.
    raw = (np.array([2, 5, 0, 3]) + 2 * np.array([-1, -4, 0, 1])) / 4
    np.testing.assert_allclose(found.raw, raw, atol=1e-6)  # 0, -0.75, 0, 1.25
    # Only the last cell is positive; samples 5, 6 and 7 lie at cells 2.25, 2.75 and 3.25.
    np.testing.assert_allclose(found.values, [0, 0, 0, 0, 0, 0.25, 0.75, 1], atol=1e-6)
    assert found.peak == (7,) and found.record()["size"] == [8] and found.record()["grids"] == [[4]]


def test_grad_cam_of_a_volume_is_the_head_times_the_activations() -> None:
    proto = network("N,2,6,8,10", (3, 1, 3), (1, 2, 1), (2, 1, 2))
    volume = np.random.default_rng(3).normal(size=(2, 2, 6, 8, 10)).astype(np.float32)
    head = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "h"))
    exposed = ModelProto()
    exposed.CopyFrom(proto)
    exposed.graph.output[0].name = "f"
    del exposed.graph.output[0].type.tensor_type.shape.dim[:]
    A = np.asarray(ReferenceEvaluator(exposed).run(None, {"x": volume})[0])
    assert A.shape == (2, 6, 3, 4, 5)
    found = Explainer(proto, threads=1).explain_tensor(volume, [2, 0])
    for one, c, a in zip(found, [2, 0], A, strict=True):
        raw = np.tensordot(head[c], a, 1) / 60
        np.testing.assert_allclose(one.raw, raw, rtol=1e-4, atol=1e-5)
        positive = np.maximum(raw, 0)
        low = (positive - positive.min()) / (1e-7 + np.ptp(positive))
        whole = interpolated(low, (6, 8, 10))
        np.testing.assert_allclose(one.values, (whole - whole.min()) / np.ptp(whole), atol=1e-4)
        z, y, x0 = np.unravel_index(one.values.argmax(), one.values.shape)
        assert one.peak == (x0, y, z) and one.values.shape == (6, 8, 10)


def interpolated(a: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Linear along every axis by itself, at half-pixel centres, with numpy's own interpolation."""
    for axis, n in enumerate(size):
        at = (np.arange(n) + 0.5) * a.shape[axis] / n - 0.5
        a = np.apply_along_axis(lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, a)
    return a


def test_volumes_are_enlarged_linearly_along_every_axis() -> None:
    raw = np.random.default_rng(4).uniform(0, 1, (2, 3, 4, 5)).astype(np.float32)
    found = volume_maps([raw], (7, 6, 12), normalize="none", threads=1)
    for one, a in zip(found, raw, strict=True):
        np.testing.assert_allclose(one, interpolated(a, (7, 6, 12)), atol=1e-6)


def test_layers_of_a_volume_are_averaged_before_they_are_scaled() -> None:
    raws = [np.random.default_rng(i).normal(size=(1, 2, 2, 2)).astype(np.float32) for i in (5, 6)]
    positive = [np.maximum(r[0], 0) for r in raws]
    mean = sum(interpolated(p / p.max(), (4, 4, 4)) for p in positive) / 2
    wanted = (mean - mean.min()) / np.ptp(mean)
    np.testing.assert_allclose(volume_maps(raws, (4, 4, 4))[0], wanted, atol=1e-5)


def test_a_smoothed_signal_is_flipped_along_its_length() -> None:
    one = Explainer(SIGNAL, aug_smooth=True, threads=1).explain_tensor(x, 0)[0]
    other = Explainer(ROW, aug_smooth=True, threads=1).explain_tensor(x[:, :, np.newaxis], 0)[0]
    np.testing.assert_allclose(one.values, other.values[0], atol=2e-5)


# --- how they lie -------------------------------------------------------------------------------------------------

WEIGHTS = {
    "w": np.ones((5, 3, 2)), "w2d": np.ones((5, 3, 1, 2)), "g": np.ones(5), "b": np.zeros(5), "v": np.ones((5, 5)),
    "cls": np.ones((1, 1, 5)), "h": np.ones((5, 4)), "one": np.array([1]), "two": np.array([2]), "zero": np.array(0),
    "w3": np.ones((5, 3, 2, 2, 2)), "axes": np.array([1, 2, 3]),
}  # fmt: skip
NORMS = """n1 = LayerNormalization<axis=-1>({0}, g, b) q = MatMul(n1, v) k = Transpose<perm=[0,2,1]>(q)
    s = MatMul(q, k) a = Softmax(s) o = MatMul(a, q) r = Add({0}, o) """
ENDS = {
    "channels first": ("N,3,12", "c = Conv<strides=[2]>(x, w) d = Relu(c) p = GlobalAveragePool(d) f = Flatten(p) ",
        "d", Layout("ncl", (1, 6), 0, (6,))),
    "channels last": ("N,12,3", "t = Transpose<perm=[0,2,1]>(x) c = Conv<strides=[2]>(t, w) "
        "d = Transpose<perm=[0,2,1]>(c) e = Relu(d) f = ReduceMean<keepdims=0>(e, one) ", "e",
        Layout("nlc", (1, 6), 0, (6,))),
    "as TensorFlow convolves": ("N,12,3", "u = Unsqueeze(x, one) t = Transpose<perm=[0,3,1,2]>(u) "
        "c = Conv<strides=[1,2]>(t, w2d) d = Transpose<perm=[0,2,3,1]>(c) e = Squeeze(d, one) r = Relu(e) "
        "f = ReduceMean<keepdims=0>(r, one) ", "r", Layout("nlc", (1, 6), 0, (6,))),
    "a transformer": ("N,3,12", "c = Conv<strides=[2]>(x, w) t = Transpose<perm=[0,2,1]>(c) " + NORMS.format("t")
        + "f = ReduceMean<keepdims=0>(r, one) ", "n1", Layout("nlc", (1, 6), 0, (6,))),
    "a transformer with a class token": ("N,3,12", "c = Conv<strides=[2]>(x, w) t = Transpose<perm=[0,2,1]>(c) "
        "j = Concat<axis=1>(cls, t) " + NORMS.format("j") + "f = Gather<axis=1>(r, zero) ", "n1",
        Layout("nlc", (1, 6), 1, (6,))),
    "a volume with channels last": ("N,4,6,8,3", "t = Transpose<perm=[0,4,1,2,3]>(x) c = Conv<strides=[2,2,2]>(t, w3) "
        "d = Transpose<perm=[0,2,3,4,1]>(c) e = Relu(d) f = ReduceMean<keepdims=0>(e, axes) ", "e",
        Layout("ndhwc", (6, 4), 0, (2, 3, 4))),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_the_automatic_layer_lies_along_the_signal_or_in_the_volume(name: str) -> None:
    shape, body, layer, layout = ENDS[name]
    used = {i for node in model(shape, body, {}).graph.node for i in node.input} | {"h"}
    weights = {k: v for k, v in WEIGHTS.items() if k in used}
    proto = model(shape.replace("N", "1", 1), body + "y = MatMul(f, h)", weights, "float[1,4] y")
    graph, image, _ = open_graph(read(proto))
    found = Layers(graph, image.name, image.layout, "y").automatic
    assert (found.name, found.layout) == (layer, layout)
    samples = np.random.default_rng(0).normal(size=[1, *map(int, shape.split(",")[1:])]).astype(np.float32)
    (explanation,) = Explainer(proto, threads=1).explain_tensor(samples)
    sides = samples.shape[2:] if image.layout == "nchw" else samples.shape[1:-1]
    assert explanation.values.shape == sides and explanation.raw.shape == layout.sides
    assert explanation.provenance["grids"] == [list(layout.sides)] and explanation.provenance["preprocess"] is None


def test_candidates_are_listed_with_their_own_sides() -> None:
    (first, *_) = check(SIGNAL).layers
    assert (first.layer.layout.shape, first.layer.channels) == ((10,), 6) and "rise" in first.methods
    volume = check(network("N,2,6,8,10", (3, 1, 3), (1, 2, 1), (2, 1, 2))).layers[0]
    assert volume.layer.layout.shape == (3, 4, 5) and not {"rise", "scorecam", "fullgrad"} & {*volume.methods}
    assert "gradcam" in volume.methods


# --- what is refused ----------------------------------------------------------------------------------------------


def test_pictures_are_refused_where_signals_are_taken() -> None:
    with pytest.raises(UsageError, match="`x` takes signals, not pictures"):
        Explainer(SIGNAL)(np.zeros((8, 8, 3), np.uint8))


def test_a_tensor_of_another_length_is_refused_with_the_shape_that_is_taken() -> None:
    with pytest.raises(UsageError, match=r"`x` takes float32 \(N, 2, 40\), not float32 \(3, 2, 39\)"):
        Explainer(SIGNAL).explain_tensor(x[..., 1:])


def test_open_lengths_are_asked_for() -> None:
    proto = network("N,2,L", (3,), (2,), (2,))
    with pytest.raises(UsageError, match="takes signals of any size"):
        Explainer(proto)
    assert Explainer(proto, size=(40,)).explain_tensor(x, 1)[0].values.shape == (40,)
    with pytest.raises(UsageError, match=r"`x` takes sizes \(L,\), not \(8, 8\)"):
        Explainer(proto, size=(8, 8))
    with pytest.raises(UsageError, match="takes signals of 40, not 30"):
        Explainer(SIGNAL, size=(30,))
    volume = network("N,2,D,H,W", (3, 1, 3), (1, 1, 1), (1, 2, 2))
    sample = np.zeros((1, 2, 3, 4, 6), np.float32)
    assert Explainer(volume, size=(3, 4, 6)).explain_tensor(sample, 1)[0].values.shape == (3, 4, 6)


@pytest.mark.parametrize("name", ["scorecam", "rise", "fullgrad"])
def test_methods_of_the_plane_are_refused_for_volumes(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"`{name}` works in the plane of a picture"):
        Explainer(network("N,2,6,8,10", (3, 1, 3), (1, 2, 1), (2, 1, 2)), method=name)


def test_no_file_that_explains_itself_is_made_of_a_model_of_signals(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="`x` takes signals: files that explain themselves are made of"):
        export(SIGNAL, tmp_path / "signal.cam.onnx")


def test_frames_before_channels_are_not_taken_for_a_volume() -> None:
    body = "a = Relu(x) p = GlobalAveragePool(a) q = Flatten(p) y = Gemm<transB=1>(q, h)"
    proto = model("N,16,3,8,8", body, {"h": np.ones((4, 16))})
    with pytest.raises(UnsupportedError, match=r"`x` \['N', 16, 3, 8, 8\] seems to take frames before channels"):
        Explainer(proto)
    assert Explainer(proto, input_layout="ncdhw").explain_tensor(np.ones((1, 16, 3, 8, 8), np.float32), 0)
