"""Any linear function of any outputs, its weights chosen at run time."""

import numpy as np
import onnx
import onnxruntime
import pytest
import target_networks

from onnxcam import Explainer, rewrite
from onnxcam.errors import UsageError
from onnxcam.targets import Linear


def network(batch: str = "N") -> onnx.ModelProto:
    """c (N, 2, 4, 4) -> two outputs: z (N, 3) behind a ReLU and pooling, m (N, 2, 4, 4) = c c."""
    return target_networks.network("m = Mul(c, c)", "float[N,3] z, float[N,2,4,4] m", batch)


W = np.array([1.0, -2.0]).reshape(2, 1, 1)
B = np.array([0.5, 0.25]).reshape(2, 1, 1)
V = np.array([[1, 2], [3, -4], [5, 6.0]])


def values(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z (3,) and m (2, 4, 4) of one sample x (1, 4, 4), in float64."""
    c = W * x + B
    return V @ np.maximum(c, 0).mean(axis=(1, 2)), c * c


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("batch", ["N", "1"])
def test_one_hot_weights_are_the_class_target_bit_for_bit(x: np.ndarray, batch: str) -> None:
    by_class = Explainer(network(batch), layer="a", method="hirescam", threads=1)
    linear = Explainer(network(batch), layer="a", method="hirescam", target=Linear({}, outputs=("z",)), threads=1)
    for c in range(3):
        asked = Linear({"z": np.eye(3)[c]}, label="mine")
        for one, other in zip(by_class.explain_tensor(x, c), linear.explain_tensor(x, asked), strict=True):
            np.testing.assert_array_equal(one.raw, other.raw)
            assert one.score == other.score
            assert (other.class_index, other.label, other.top) == (-1, "mine", ())


def test_score_and_gradient_are_those_of_the_closed_form(x: np.ndarray) -> None:
    """At c: d/dc of u z + sum(q m) = u V [c > 0] / 16 + 2 q c."""
    rng = np.random.default_rng(4)
    u, q = rng.standard_normal(3), rng.standard_normal((2, 4, 4))
    explainer = Explainer(network(), layer="c", method="hirescam", target=Linear({"z": u, "m": q}), threads=1)
    for sample, found in zip(x, explainer.explain_tensor(x), strict=True):
        z, m = values(sample.astype(np.float64))
        c = W * sample + B
        gradient = (u @ V).reshape(2, 1, 1) * (c > 0) / 16 + 2 * q * c
        assert found.score == pytest.approx(u @ z + (q * m).sum(), rel=1e-5)
        np.testing.assert_allclose(found.raw, (gradient * c).sum(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["hirescam", "gradcam", "ablationcam", "occlusion"])
def test_many_weights_asked_at_once_give_what_they_give_one_by_one(x: np.ndarray, method: str) -> None:
    rng = np.random.default_rng(5)
    asked = [Linear({"z": rng.standard_normal(3), "m": rng.standard_normal((2, 4, 4))}) for _ in range(5)]
    kind = Linear({}, outputs=("z", "m"))
    layer = None if method == "occlusion" else "c"
    explainer = Explainer(network(), layer=layer, method=method, target=kind, batch_size=2, threads=1)
    together = explainer.explain_targets(x[:1], asked)
    assert len(together) == 5
    for target, found in zip(asked, together, strict=True):
        (alone,) = explainer.explain_tensor(x[:1], target)
        np.testing.assert_allclose(found.raw, alone.raw, rtol=1e-5, atol=1e-6)
        assert found.score == pytest.approx(alone.score, rel=1e-6)


def test_the_part_before_the_layer_runs_once_for_many_weights(x: np.ndarray) -> None:
    explainer = Explainer(network(), layer="c", target=Linear({}, outputs=("z", "m")), threads=1)
    assert explainer._target_head is not None
    runs: list[int] = []
    whole = explainer._session.run

    def counted(feeds, outputs=None):
        runs.append(len(feeds["x"]))
        return whole(feeds, outputs)

    explainer._session.run = counted  # type: ignore[method-assign]
    explainer.explain_targets(x[:1], [Linear({"z": row}) for row in np.eye(3)])
    assert runs == [1]


@pytest.mark.parametrize("batch", ["N", "1"])
def test_outputs_are_the_models_own_and_ask_for_no_gradient(x: np.ndarray, batch: str) -> None:
    explainer = Explainer(network(batch), layer="c", target=Linear({}, outputs=("m",)), threads=1)
    asked: list[list[str]] = []
    run = explainer._session.run
    explainer._session.run = lambda feeds, outputs=None: (asked.append(list(outputs)), run(feeds, outputs))[1]  # type: ignore
    found = explainer.outputs(x)
    assert asked[0] == ["z", "m"]
    for i, sample in enumerate(x):
        z, m = values(sample.astype(np.float64))
        np.testing.assert_allclose(found["z"][i], z, rtol=1e-5)
        np.testing.assert_allclose(found["m"][i], m, rtol=1e-5)


def test_the_automatic_layer_is_on_the_way_to_the_outputs_that_are_read() -> None:
    assert Explainer(network(), target=Linear({"z": np.ones(3)}), threads=1).layer == "a"
    assert Explainer(network(), target=Linear({"m": np.ones((2, 4, 4))}), threads=1).layer == "m"


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        (
            Linear({}, outputs=("z",)),
            Linear({"z": np.ones(4)}),
            r"weights of shape \(4,\) for output `z`, which is \(3,\)",
        ),
        (Linear({}, outputs=("z",)), Linear({"m": np.ones(4)}), r"not prepared for output `m`, but for `z`"),
        (Linear({}, outputs=("q",)), None, r"no output `q`"),
        (Linear({}), None, r"without outputs"),
        (Linear({}, outputs=("z",)), 2, r"`2` is no linear target"),
    ],
)
def test_what_does_not_fit_the_model_is_said(x: np.ndarray, made: Linear, asked: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Explainer(network(), layer="c", target=made, threads=1).explain_tensor(x, asked)  # type: ignore[arg-type]


def test_a_rewritten_model_takes_the_weights_in_ones_own_runtime(x: np.ndarray) -> None:
    model = rewrite(network(), method="hirescam", layer="c", target=Linear({}, outputs=("z", "m")))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [i.name for i in session.get_inputs()] == ["x", "target_weights", "target_weights_1"]
    rng = np.random.default_rng(4)
    u, q = rng.standard_normal((2, 3)).astype(np.float32), rng.standard_normal((2, 2, 4, 4)).astype(np.float32)
    feeds = {"x": x, "target_weights": u, "target_weights_1": q}
    alpha, score = session.run(["onnxcam_alpha", "onnxcam_score"], feeds)
    for i, sample in enumerate(x):
        z, m = values(sample.astype(np.float64))
        c = W * sample + B
        assert score[i] == pytest.approx(u[i] @ z + (q[i] * m).sum(), rel=1e-4, abs=1e-5)
        gradient = (u[i] @ V).reshape(2, 1, 1) * (c > 0) / 16 + 2 * q[i] * c
        np.testing.assert_allclose(alpha[i], gradient, rtol=1e-4, atol=1e-5)
