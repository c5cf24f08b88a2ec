"""The bundled model and picture: what a newcomer sees first."""

import json
from pathlib import Path

from PIL import Image

from onnxcam import _core
from onnxcam.errors import OnnxCamError
from onnxcam.explainer import Explainer
from onnxcam.explanation import Explanation
from onnxcam.output import write_atomically
from onnxcam.render import encoded

# Installed beside the compiled module, which is where it is even when the Python files are not (editable installs).
FOLDER = Path(_core.__file__).parent / "demo"
PICTURES = FOLDER / "pictures"


def demo_boxes() -> dict[str, list[tuple[str, tuple[int, int, int, int]]]]:
    """Labels and boxes (x0, y0, x1, y1) of the objects in each bundled picture."""
    recorded = json.loads((PICTURES / "boxes.json").read_text("utf-8"))
    return {name: [(o["label"], tuple(o["box_xyxy"])) for o in entry["objects"]] for name, entry in recorded.items()}


def explain_demo(output: Path, colormap: str = "jet", opacity: float = 0.5) -> tuple[Explainer, list[Explanation]]:
    """Explain each object of the demo picture; write the picture and one overlay per object, side by side.

    Raises: OnnxCamError where the installation lacks the demo files; OutputError.
    """
    picture = next(iter(sorted(PICTURES.glob("demo.*"))), None)
    if picture is None:
        raise OnnxCamError(f"the demo files are missing from {FOLDER}", "install onnxcam again")
    explainer = Explainer(FOLDER / "demo.onnx")
    labels = [label for label, _ in demo_boxes()[picture.name]]
    explanations = [explainer(picture, label) for label in labels]
    panels = [Image.open(picture).convert("RGB"), *(e.overlay(colormap, opacity) for e in explanations)]
    sheet = Image.new("RGB", (sum(p.width for p in panels) + 8 * (len(panels) - 1), panels[0].height), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i * (panels[0].width + 8), 0))
    write_atomically(output, encoded(sheet, output.suffix))
    return explainer, explanations
