"""Five classes of one picture against one class of it: what lies before the layer runs once."""

from functools import partial

from benchmarks.graphs import NETWORKS, pictures
from benchmarks.measure import Row, Rows, Settings, ratio_row, session_options
from benchmarks.overhead import CNNS
from onnxcam import Explainer, OnnxCamError

COUNT = 5


def classes(settings: Settings) -> Rows:
    picture = (pictures(1)[0].transpose(1, 2, 0).clip(0, 1) * 255).astype("uint8")
    for name in CNNS[:2] if settings.quick else tuple(NETWORKS):
        try:
            explainer = Explainer(NETWORKS[name](), session_options=session_options(settings), threads=settings.threads)
        except OnnxCamError as error:
            yield Row("classes", name, note=f"not explained: {error.message}")
            continue
        many, one = partial(explainer.explain_classes, picture, COUNT), partial(explainer, picture)
        target = 1.25 if name.startswith("ViT") else 1.1
        yield ratio_row("classes", f"{COUNT} classes, {name}", many, "1 class", one, settings, target=target)
