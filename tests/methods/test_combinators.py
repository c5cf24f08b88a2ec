"""Several inputs and several classes at once: test-time augmentation, and all classes of one picture."""

import numpy as np
import pytest
from test_identities import CLASSES, maps, network, pictures
from toy import X, toy

from onnxcam import Explainer, rewrite
from onnxcam.errors import UnsupportedError, UsageError
from onnxcam.explanation import Explanation
from onnxcam.methods.projection import combined
from onnxcam.runtime import Session


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "saliency"])
def test_aug_smooth_is_the_mean_of_the_maps_of_six_inputs_turned_back(method: str) -> None:
    model, x = network(6), pictures(6, 2)
    smooth = maps(model, x, [1, 3], method=method, aug_smooth=True)
    plain = Explainer(model, method=method, threads=1)
    for i, (target, explanation) in enumerate(zip((1, 3), smooth, strict=True)):
        found = []
        for factor in (0.9, 1.0, 1.1):
            for step in (1, -1):
                (one,) = plain.explain_tensor(
                    np.ascontiguousarray(x[i : i + 1, :, :, ::step] * np.float32(factor)), target
                )
                found.append((one.values[:, ::step], one.raw[:, ::step]))
        values, raws = (np.mean(part, axis=0) for part in zip(*found, strict=True))
        np.testing.assert_allclose(explanation.values, values, rtol=0, atol=1e-6)
        np.testing.assert_allclose(explanation.raw, raws, rtol=0, atol=1e-6 * np.abs(raws).max())
        assert explanation.score == pytest.approx(plain.explain_tensor(x[i : i + 1], target)[0].score)


def test_aug_smooth_explains_the_class_predicted_for_the_picture_as_it_is() -> None:
    """Times 1.1 the other class wins: the class explained is still that of the picture itself."""
    model = toy(weights="float[2,2] v = {1, 0, 0, 0}, float[2] b = {0, 2.6}")  # z = (2.5, 2.6); times 1.1: (2.75, 2.6)
    (explanation,) = maps(model, X, None, aug_smooth=True)
    assert explanation.class_index == 1 and explanation.is_empty


def picture() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (17, 23, 3), dtype=np.uint8)


def same(got: list[Explanation], expected: list[Explanation]) -> None:
    for g, e in zip(got, expected, strict=True):
        assert g.class_index == e.class_index
        assert g.score == pytest.approx(e.score, rel=1e-5)
        np.testing.assert_allclose(g.raw, e.raw, rtol=0, atol=1e-5 * max(np.abs(e.raw).max(), 1e-6))
        np.testing.assert_allclose(g.values, e.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "layer"),
    [("gradcam", "a"), ("gradcam", "i"), ("gradcam++", "i"), ("hirescam", "c"), ("shapleycam", "a"),
     ("eigengradcam", "i"), ("cam", "a"), ("eigencam", "a"), ("ablationcam", "i"), ("scorecam", "a"),
     ("saliency", None)],
)  # fmt: skip
@pytest.mark.parametrize("batch", ["N", "1"])
def test_classes_explained_together_are_those_explained_one_by_one(method: str, layer: str | None, batch: str) -> None:
    explainer = Explainer(network(6, batch=batch), method=method, layer=layer, size=(12, 12), threads=1, batch_size=3)
    order = [4, 0, 2, 1, 3]
    together = explainer.explain_classes(picture(), order)
    same(together, [explainer(picture(), target) for target in order])


def test_several_layers_are_explained_for_several_classes() -> None:
    explainer = Explainer(network(6), layer=["i", "a"], size=(12, 12), threads=1)
    same(explainer.explain_classes(picture(), [1, 2]), [explainer(picture(), target) for target in (1, 2)])


def test_the_part_before_the_layer_runs_once_for_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[set[str], int]] = []
    run = Session.run

    def watched(self: Session, feeds: dict[str, np.ndarray], outputs: object = None) -> dict[str, np.ndarray]:
        fed.append(({*feeds}, max(len(v) for v in feeds.values())))
        return run(self, feeds, outputs)

    explainer = Explainer(network(6), layer="i", size=(12, 12), threads=1)
    explainer.explain_classes(picture(), 2)
    monkeypatch.setattr(Session, "run", watched)
    explainer.explain_classes(picture(), range(CLASSES))
    (whole, once), (behind, questions) = fed
    assert whole == {"x", "class_index"} and once == 1
    assert "i" in behind and "x" not in behind and questions == CLASSES


def test_a_number_of_classes_means_those_that_score_highest() -> None:
    explainer = Explainer(network(6), size=(12, 12), threads=1)
    top = explainer(picture()).top
    found = explainer.explain_classes(picture(), 3)
    assert [e.class_index for e in found] == [c.index for c in top[:3]]
    assert [e.score for e in found] == pytest.approx([c.score for c in top[:3]], rel=1e-5)
    for wrong in (0, CLASSES + 1):
        with pytest.raises(UsageError, match=f"the {wrong} highest of {CLASSES} classes"):
            explainer.explain_classes(picture(), wrong)
    assert explainer.explain_classes(picture(), []) == []
    with pytest.raises(UsageError, match="class 5 does not exist"):
        explainer.explain_classes(picture(), [0, 5])


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "integratedgradients", "random"])
def test_a_method_that_finishes_on_the_host_is_no_single_graph(method: str) -> None:
    with pytest.raises(UnsupportedError, match=f"method `{method}` finishes on the host") as error:
        rewrite(toy(), method=method)
    assert "gradcam" in error.value.hint and method not in error.value.hint.split("one of ")[1].split(", ")


def test_the_component_of_class_weighted_channels_turns_to_where_their_sum_is_high() -> None:
    """One channel, whose component is the centred channel itself: the largest value speaks against the class."""
    a, alpha = np.array([[[[-9, 1], [1, 1]]]], np.float32), np.ones((1, 1, 1, 1), np.float32)
    np.testing.assert_allclose(combined(a, alpha, "eigen", sign="sum")[0], [[-7.5, 2.5], [2.5, 2.5]], rtol=1e-6)
    np.testing.assert_allclose(combined(a, -alpha, "eigen", sign="sum")[0], [[7.5, -2.5], [-2.5, -2.5]], rtol=1e-6)
    np.testing.assert_allclose(combined(a, alpha, "eigen")[0], [[7.5, -2.5], [-2.5, -2.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sign"),
    [({"eigen_smooth": True}, "sum"), ({"method": "eigengradcam"}, "sum"), ({"method": "segeigencam"}, "fixed"),
     ({"method": "eigencam"}, "fixed"), ({"method": "eigengradcam", "sign": "raw"}, "raw")],
)  # fmt: skip
def test_only_components_of_class_weighted_channels_are_turned_by_the_sum(options: dict, sign: str) -> None:
    assert Explainer(toy(), **options)._sign == sign
