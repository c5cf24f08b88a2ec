"""What a model is explained for where nobody says: its shapes tell."""

from onnxcam.errors import UnsupportedError
from onnxcam.graph.head import is_normalised, output_listing
from onnxcam.graph.index import Graph
from onnxcam.graph.signature import ImageInput
from onnxcam.targets.classes import class_kind
from onnxcam.targets.kind import TargetKind
from onnxcam.targets.segmentation import Segmentation, segmentation_output


def default_kind(graph: Graph, image: ImageInput, output: str | None = None, score: str = "logit") -> TargetKind:
    """A class of a classifier, else of a segmenter. output: which one; score: of classifiers, see SCORES.

    Raises: UsageError for an unknown output or score; UnsupportedError where no output tells what it is.
    """
    try:
        kind = class_kind(graph, output, score)
    except UnsupportedError as error:
        dense = output or segmentation_output(graph, image)
        if dense is None:
            raise UnsupportedError(
                f"no output holds one score per class, or per class and pixel: {output_listing(graph)}",
                "say what to explain: one element (`--element OUTPUT[INDEX,...]`), likeness to a vector or picture "
                "(`--similar-to FILE`), a map of classes (`--class-output NAME`), the boxes of a detector (`--detector "
                "KIND`, in Python `onnxcam.Detector`), or in Python a target of `onnxcam.targets`",
            ) from error
        return Segmentation(output=dense).bind(graph, image)
    if output is None and is_normalised(graph, kind.head.logits):
        raise UnsupportedError(
            f"`{kind.head.output}` is scaled to length 1: an embedding, not scores of {kind.head.classes} classes",
            "say what it shall be like: `--similar-to FILE` (a picture, or a vector in a .npy file), in Python "
            f"`target=onnxcam.targets.Similarity(...)`; or name it, `--class-output {kind.head.output}`",
        )
    return kind
