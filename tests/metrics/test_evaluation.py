"""`onnxcam.evaluate` on a model that sees colours: what is measured of what, what is flagged, what is refused."""

import json
import math
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from PIL import Image

import onnxcam
from onnxcam.cli import main
from onnxcam.errors import OutputError, PictureError, UnsupportedError, UsageError
from onnxcam.metrics import METRICS, Settings, evaluation, metric, registry
from onnxcam.metrics.evaluation import Objects, estimate, evaluate, read_boxes

LABELS = ["red, scarlet", "green", "blue"]
# The logits are 8 times the mean red, green and blue. Sees 8x8 pixels in 0..1, stretched.
COLOURS = """
    <ir_version: 8, opset_import: ["" : 18]>
    colours (float[N,3,8,8] x) => (float[N,3] y)
    <float[3,3] w = {{8, 0, 0, 0, 8, 0, 0, 0, 8}}, float dark = {{0.1}}>
    {{
        {activation}
        p = GlobalAveragePool(a)
        f = Flatten(p)
        z = Gemm<transB=1>(f, w)
        y = Softmax(z)
    }}"""


def colours(activation="a = Relu(x)", text=COLOURS):
    model = parser.parse_model(text.format(activation=activation))
    onnx.helper.set_model_props(
        model,
        {
            "onnxcam.labels": json.dumps(LABELS),
            "onnxcam.preprocess": json.dumps({"size": [8, 8], "fit": "squash"}),
        },
    )
    return model


def picture(colour, box=(4, 4, 12, 12)):
    """16x16 pixels: a square of a colour on dark grey."""
    rgb = np.full((16, 16, 3), 40, np.uint8)
    x0, y0, x1, y1 = box
    rgb[y0:y1, x0:x1] = colour
    return Image.fromarray(rgb)


RED, GREEN, BLACK = (250, 40, 40), (40, 250, 40), (0, 0, 0)
QUICK = ("complexity", "pointing_game")


@pytest.fixture
def folder(tmp_path):
    """Three squares at different places, and their boxes in boxes.json."""
    entries = {}
    for name, colour, label, box in (
        ("a.png", RED, "scarlet", [2, 2, 8, 8]),
        ("b.png", GREEN, "green", [8, 2, 14, 8]),
        ("c.png", RED, "red, scarlet", [6, 8, 14, 14]),
    ):
        picture(colour, box).save(tmp_path / name)
        entries[name] = {"width": 16, "height": 16, "objects": [{"label": label, "box_xyxy": box}]}
    (tmp_path / "boxes.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.fixture
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "colours.onnx"
    onnx.save(colours(), path)
    return path


def test_numbers_are_those_of_the_untouched_model_on_masked_tensors():
    shown = picture(RED)
    (row,) = evaluate(colours(), [shown], methods=["gradcam"], metrics=["average_drop", "deletion"]).rows
    x = np.asarray(shown.resize((8, 8), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1) / 255
    session = onnxruntime.InferenceSession(colours().SerializeToString(), providers=["CPUExecutionProvider"])

    def red(samples):
        return session.run(None, {"x": samples.astype(np.float32)})[0][:, 0]

    # Grad-CAM of red is the red channel, from 0 to 1; deletion removes one thirtieth of 64 pixels at a time.
    saliency = (x[0] - x[0].min()) / (x[0].max() - x[0].min())
    before, after = red(np.stack([x, x * saliency]))
    assert before > after
    assert row.values["average_drop"] == pytest.approx((before - after) / before, rel=1e-4)
    order = np.argsort(-saliency.ravel(), kind="stable")
    counts = np.unique(np.rint(np.linspace(0, 64, 31)).astype(int))
    samples = np.stack([x] * len(counts)).reshape(len(counts), 3, 64)
    for sample, count in zip(samples, counts, strict=True):
        sample[:, order[:count]] = 0
    scores = red(samples.reshape(-1, 3, 8, 8))
    widths = np.diff(counts / 64)
    assert row.values["deletion"] == pytest.approx((widths * (scores[1:] + scores[:-1]) / 2).sum(), rel=1e-4)


def test_channels_last_and_quantised_inputs_give_the_numbers_of_the_plain_model():
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    colours (uint8[N,8,8,3] q) => (float[N,3] y)
    <float[3,3] w = {8, 0, 0, 0, 8, 0, 0, 0, 8}, float step = {0.00392156862745098}, uint8 zero = {0}>
    {
        s = DequantizeLinear(q, step, zero)
        x = Transpose<perm=[0, 3, 1, 2]>(s)
        a = Relu(x)
        p = GlobalAveragePool(a)
        f = Flatten(p)
        z = Gemm<transB=1>(f, w)
        y = Softmax(z)
    }"""
    quantised = parser.parse_model(text)
    metadata = {p.key: p.value for p in colours().metadata_props}
    onnx.helper.set_model_props(quantised, metadata)
    metrics = ["insertion", "deletion", "road", "adcc", "average_gain", "infidelity"]
    # 8x8 pixels and no noise: nothing but masks between whole numbers is rounded by the integer input.
    shown = picture(RED).resize((8, 8))
    plain, integer = (
        evaluate(m, [shown], methods=["gradcam"], metrics=metrics, settings=Settings(noise=0.0)).rows[0].values
        for m in (colours(), quantised)
    )
    assert dict(integer) == pytest.approx(dict(plain), abs=2e-3)
    assert integer["insertion"] > integer["deletion"] + 0.1


def test_labels_that_are_classes_are_explained_each_with_its_own_boxes(folder):
    found = evaluate(colours(), folder, methods=["gradcam"], metrics=QUICK, boxes=folder / "boxes.json")
    assert [(r.picture, r.label) for r in found.rows] == [
        ("a.png", "red, scarlet"),
        ("b.png", "green"),
        ("c.png", "red, scarlet"),
    ]
    assert all(r.values["pointing_game"] == 1 for r in found.rows)


def test_the_box_of_one_class_is_no_hit_for_another(folder):
    shown = picture(RED, (0, 0, 4, 4))
    shown.paste(picture(GREEN, (0, 0, 4, 4)).crop((0, 0, 4, 4)), (10, 10))
    boxes = {"picture 0": Objects((("green", (0, 0, 4, 4)), ("scarlet", (10, 10, 14, 14))))}
    found = evaluate(colours(), [shown], methods=["gradcam"], metrics=["pointing_game"], boxes=boxes)
    assert [(r.label, r.values["pointing_game"]) for r in found.rows] == [("green", 0), ("red, scarlet", 0)]
    swapped = {"picture 0": Objects((("scarlet", (0, 0, 4, 4)), ("green", (10, 10, 14, 14))))}
    found = evaluate(colours(), [shown], methods=["gradcam"], metrics=["pointing_game"], boxes=swapped)
    assert [r.values["pointing_game"] for r in found.rows] == [1, 1]


@pytest.mark.parametrize(
    ("labels", "accepted", "counts"),
    [
        (["scarlet thing"], (), False),
        (["scarlet thing"], ("SCARLET",), True),
        (["scarlet thing"], ("carle",), False),
        (["scarlet thing", "green thing"], ("scarlet",), False),
    ],
)
def test_boxes_of_other_words_count_where_the_accepted_words_name_the_predicted_class(labels, accepted, counts):
    boxes = {"picture 0": Objects(tuple((label, (4, 4, 12, 12)) for label in labels), accepted)}
    found = evaluate(colours(), [picture(RED)], methods=["gradcam"], metrics=["pointing_game"], boxes=boxes)
    (result,) = found.methods
    assert result.estimates["pointing_game"].measured == counts
    assert ("pointing_game could not be measured on 1 maps of every method" in " ".join(found.warnings)) == (not counts)


def test_all_boxes_of_a_label_are_one_object():
    shown = picture(RED, (0, 0, 4, 16))
    shown.paste(RED, (12, 0, 16, 16))
    both = {"picture 0": Objects((("scarlet", (0, 0, 4, 16)), ("scarlet", (12, 0, 16, 16))))}
    one = {"picture 0": Objects(both["picture 0"].boxes[:1])}
    energy = [
        evaluate(colours(), [shown], methods=["gradcam"], metrics=["energy"], boxes=b).rows[0].values["energy"]
        for b in (both, one)
    ]
    assert energy[0] > 0.75
    assert energy[0] == pytest.approx(2 * energy[1])


def test_an_object_that_the_model_did_not_see_is_not_missed_by_the_map():
    model = colours()
    model.metadata_props[1].value = json.dumps({"size": [8, 8], "fit": "crop"})
    wide = Image.new("RGB", (64, 16), RED)
    wide.paste(picture(RED), (24, 0))
    boxes = {"picture 0": Objects((("scarlet", (0, 0, 16, 16)),))}
    found = evaluate(model, [wide], methods=["gradcam"], metrics=["pointing_game"], boxes=boxes)
    estimated = found.methods[0].estimates["pointing_game"]
    assert (estimated.measured, estimated.missing) == (0, 1)


def test_road_is_half_of_what_separates_its_two_orders():
    names = ["road", "road_lerf", "road_morf"]
    values = evaluate(colours(), [picture(RED)], methods=["gradcam"], metrics=names).rows[0].values
    assert values["road_morf"] < -0.1 < values["road_lerf"]
    assert values["road"] == pytest.approx((values["road_lerf"] - values["road_morf"]) / 2)


def test_a_word_of_the_class_name_is_enough():
    model = colours()
    model.metadata_props[0].value = json.dumps(["poppy red, crimson", "green", "blue"])
    shown, square = picture(RED), (4, 4, 12, 12)
    boxes = {"picture 0": Objects((("red", square), ("re", (0, 0, 16, 16))))}
    (row,) = evaluate(model, [shown], methods=["gradcam"], metrics=["energy"], boxes=boxes).rows
    x0, y0, x1, y1 = square
    values = onnxcam.explain(model, shown).values
    assert row.values["energy"] == pytest.approx(values[y0:y1, x0:x1].sum() / values.sum(), rel=1e-6)


def test_masks_stand_in_for_boxes():
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    masks = {"picture 0": mask}
    found = evaluate(colours(), [picture(RED)], methods=["gradcam"], metrics=["energy", "iou"], masks=masks)
    boxed = {"picture 0": Objects((("scarlet", (4, 4, 12, 12)),))}
    same = evaluate(colours(), [picture(RED)], methods=["gradcam"], metrics=["energy", "iou"], boxes=boxed)
    assert found.rows[0].values == same.rows[0].values
    assert found.rows[0].values["energy"] > 0.75


def test_empty_and_nan_maps_are_counted_and_in_no_mean():
    # No red at all: the map of red is empty. Below 0.1 the root is no number.
    square_root = colours("b = Sub(x, dark)  c = Sqrt(b)  a = Relu(c)")
    black = Image.new("RGB", (16, 16), BLACK)
    found = evaluate(colours(), [picture(RED), black], methods=["gradcam"], metrics=["complexity"], target="scarlet")
    (result,) = found.methods
    assert [r.state for r in found.rows] == ["ok", "empty"]
    assert (result.maps, result.empty, result.nan) == (2, 1, 0)
    assert result.estimates["complexity"].mean == found.rows[0].values["complexity"] > 0.1
    assert found.warnings == ("gradcam: 1 of 2 maps are empty and in no mean",)
    found = evaluate(
        square_root, [picture(RED), black], methods=["gradcam"], metrics=["complexity"], target="red, scarlet"
    )
    assert [r.state for r in found.rows] == ["ok", "nan"]
    assert found.warnings == ("gradcam: 1 of 2 maps are NaN and in no mean",)
    assert found.csv().splitlines()[2].endswith("gradcam,nan,")


def test_methods_come_best_first_by_the_first_metric_in_its_direction(folder):
    boxes = folder / "boxes.json"
    options = {"methods": ["sobel", "gradcam"], "boxes": boxes}
    higher = evaluate(colours(), folder, metrics=["energy", "complexity"], **options)
    assert [r.method for r in higher.methods] == ["gradcam", "sobel"]
    means = [r.estimates["energy"].mean for r in higher.methods]
    assert means[0] > means[1]
    lower = evaluate(colours(), folder, metrics=["complexity", "energy"], **options)
    means = [r.estimates["complexity"].mean for r in lower.methods]
    assert means[0] < means[1]


def test_an_interval_draws_pictures_whole():
    rng = np.random.default_rng(0)
    pairs = [("a", 0.0)] * 99 + [("b", 1.0)]
    # Both drawn are a, or b, in a quarter of the cases each.
    found = estimate(pairs, 0.95, rng)
    assert (found.mean, found.low, found.high) == (0.01, 0.0, 1.0)
    # Half of the draws have one of each, and so the mean of all pairs.
    middle = estimate(pairs, 0.4, rng)
    assert (middle.low, middle.high) == (0.01, 0.01)
    single = estimate([(str(i), v) for i, (_, v) in enumerate(pairs)], 0.95, rng)
    assert single.mean == 0.01
    assert single.high <= 0.04


def test_an_interval_is_about_two_standard_errors():
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = estimate([(str(i), float(v)) for i, v in enumerate(values)], 0.95, np.random.default_rng(0))
    error = values.std() / 20
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.2 * error)


def test_what_could_not_be_measured_is_missing_and_one_picture_has_no_interval():
    found = estimate([("a", 0.25), ("a", 0.75), ("b", math.nan)], 0.95, np.random.default_rng(0))
    assert (found.mean, found.measured, found.missing) == (0.5, 2, 1)
    assert math.isnan(found.low) and math.isnan(found.high)


def test_the_same_seed_gives_the_same_numbers_and_another_other_ones(folder):
    def run(seed):
        metrics = ["road", "infidelity", "max_sensitivity"]
        settings = Settings(seed=seed)
        return json.dumps(evaluate(colours(), folder, metrics=metrics, settings=settings).to_json()["methods"])

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_results_are_plain_json_and_csv_has_a_line_per_map(folder):
    boxes = {"a.png": Objects((("scarlet", (2, 2, 8, 8)),))}
    found = evaluate(colours(), folder, methods=["gradcam", "sobel"], metrics=QUICK, boxes=boxes)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [m["method"] for m in record["methods"]] == [r.method for r in found.methods]
    assert record["methods"][0]["metrics"]["pointing_game"]["missing"] == 2
    lines = found.csv().splitlines()
    assert lines[0] == "picture,class_index,label,method,state,complexity,pointing_game"
    assert len(lines) == 1 + 2 * 3
    assert lines[2].startswith("b.png,1,green,gradcam,ok,0.") and lines[2].endswith(",")


def test_a_map_that_ignores_the_model_survives_every_randomisation(folder):
    metrics = ["mprt", "mprt_last", "random_logit"]
    found = evaluate(colours(), [picture(RED)], methods=["sobel"], metrics=metrics)
    assert dict(found.rows[0].values) == pytest.approx({"mprt": 1, "mprt_last": 1, "random_logit": 1})


def test_randomising_the_only_layer_moves_grad_cam_to_another_colour():
    # Red and green lie on opposite sides; shuffled weights mix the channels.
    shown = picture(RED, (0, 0, 8, 16))
    shown.paste(GREEN, (8, 0, 16, 16))
    values = [
        evaluate(colours(), [shown], methods=["gradcam"], metrics=["mprt"], settings=Settings(seed=s)).rows[0].values
        for s in range(6)
    ]
    assert min(v["mprt"] for v in values if not math.isnan(v["mprt"])) < 0


def test_unreadable_pictures_are_listed_and_the_rest_is_measured(folder):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    found = evaluate(colours(), folder, methods=["gradcam"], metrics=["complexity"])
    assert len(found.rows) == 3
    assert len(found.unreadable) == 1 and "broken.png" in found.unreadable[0]
    assert any("broken.png" in w for w in found.warnings)


def test_nothing_but_unreadable_pictures_is_an_error(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(PictureError, match="none of the 1 pictures"):
        evaluate(colours(), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["pointing_game"]}, "where the objects are is not known"),
        ({"metrics": ["insertoin"]}, "no metric `insertoin`"),
        ({"methods": ["gradcan"]}, "no method `gradcan`"),
        ({"methods": []}, "nothing to measure"),
        ({"boxes": {"z.png": Objects(())}}, "of none of the pictures"),
        ({"boxes": {"a.png": Objects((), size=(16, 99))}}, "99x16"),
        ({"masks": {"a.png": np.zeros((3, 4), bool)}}, "4x3"),
        ({"normalize": "none"}, "`normalize` cannot be chosen"),
        ({"confidence": 95}, "outside"),
    ],
)
def test_contradictory_arguments_are_refused(folder, arguments, message):
    with pytest.raises(UsageError, match=message):
        evaluate(colours(), folder, **arguments)


def test_a_folder_without_pictures_and_a_file_for_a_folder_are_refused(tmp_path, model):
    with pytest.raises(UsageError, match="holds no pictures"):
        evaluate(colours(), tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        evaluate(colours(), model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "by file name"),
        ('{"a.png": {}}', "entry `a.png`: KeyError 'objects'"),
        ('{"a.png": {"objects": [{"label": "x", "box_xyxy": [5, 0, 5, 9]}]}}', "not x0 < x1"),
        ('{"a.png": {"objects": [{"label": "x", "box_xyxy": [1, 2, 3]}]}}', "ValueError"),
    ],
)
def test_a_bad_box_file_is_refused_with_the_entry(tmp_path, text, message):
    path = tmp_path / "boxes.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_boxes(path)


def test_the_public_name_is_the_function():
    assert onnxcam.evaluate is evaluate


def test_the_curves_are_drawn_where_they_are(folder):
    found = evaluate(colours(), folder, methods=["sobel", "gradcam"], metrics=["insertion", "deletion"])
    image = np.asarray(found.plot()).astype(int)
    blue = (image[..., 2] > 120) & (image[..., 0] < 60)  # the first, best method's colour
    for left, curve in ((0, found.methods[0].insertion), (544, found.methods[0].deletion)):
        for fraction, score in zip(curve.fraction, curve.score, strict=True):
            x, y = left + 64 + fraction * 460, 40 + (1 - score) * 300
            around = blue[round(y) - 3 : round(y) + 4, max(round(x) - 3, 0) : round(x) + 4]
            assert around.any(), (fraction, score)


def test_without_curves_there_is_nothing_to_draw(folder):
    with pytest.raises(UsageError, match="no curve to draw"):
        evaluate(colours(), folder, metrics=["complexity"]).plot()


def test_a_method_that_the_model_cannot_carry_is_refused_before_anything_is_measured(folder, monkeypatch):
    monkeypatch.setattr(evaluation._Runner, "measure", lambda *_: pytest.fail("measured"))
    max_pooled = colours("b = Relu(x)  a = MaxPool<kernel_shape=[2, 2]>(b)")
    max_pooled.graph.node[2].op_type = "GlobalMaxPool"
    with pytest.raises(UnsupportedError, match="`cam`"):
        evaluate(max_pooled, folder, methods=["sobel", "cam"])


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_both_files(folder, model, tmp_path_factory, capsys):
    out = tmp_path_factory.mktemp("out")
    code = main(
        [
            *("evaluate", str(model), str(folder), "--boxes", str(folder / "boxes.json")),
            *("--metrics", "insertion,pointing_game", "--methods", "gradcam,sobel"),
            *("--csv", str(out / "maps.csv"), "--plot", str(out / "curves.png")),
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert printed.splitlines()[0].split() == ["method", "maps", "insertion", "↑", "pointing_game", "↑"]
    assert printed.splitlines()[1].startswith("gradcam     3  0.")
    assert "best first by insertion" in printed
    assert len((out / "maps.csv").read_text().splitlines()) == 7
    with Image.open(out / "curves.png") as curves:
        assert curves.format == "PNG"


def test_the_command_prints_json_alone(folder, model, capsys):
    assert main(["evaluate", str(model), str(folder), "--metrics", "complexity", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [len(record["maps"]), record["settings"]["seed"]] == [9, 0]


def test_bad_pictures_give_exit_code_7_after_the_rest_is_done(folder, model, capsys):
    (folder / "broken.png").write_bytes(b"nothing")
    assert main(["evaluate", str(model), str(folder), "--metrics", "complexity"]) == 7
    captured = capsys.readouterr()
    assert "gradcam" in captured.out
    assert "broken.png" in captured.err


def test_an_interrupted_command_writes_nothing(folder, model, tmp_path_factory, monkeypatch, capsys):
    out = tmp_path_factory.mktemp("out")
    measure, calls = evaluation._Runner.measure, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(evaluation._Runner, "measure", interrupted)
    files = ["--csv", str(out / "maps.csv"), "--plot", str(out / "curves.png")]
    assert main(["evaluate", str(model), str(folder), *files]) == 130
    assert list(out.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_any_work(folder, model, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: pytest.fail("work was done"))
    assert (
        main(["evaluate", str(model), str(folder), "--csv", str(folder / "none" / "maps.csv")]) == OutputError.exit_code
    )
    assert main(["evaluate", str(model), str(folder), "--plot", str(folder / "curves.gif")]) == OutputError.exit_code


# --- the table of metrics ---------------------------------------------------------------------------------------------


def test_the_documentation_lists_every_metric_as_it_is():
    text = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert rows == {m.name: m.better for m in METRICS.values()}


def test_a_metric_of_ones_own_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr(registry, "METRICS", dict(METRICS))

    @metric("peak_x", better="lower", bounds=(0, math.inf), cost="none", paper="an example")
    def peak_x(sample):
        return float(sample.saliency.argmax() % sample.saliency.shape[1])

    (row,) = evaluate(colours(), [picture(RED, (6, 0, 8, 2))], methods=["gradcam"], metrics=["peak_x"]).rows
    assert row.values == {"peak_x": 3}
