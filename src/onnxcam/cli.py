"""The command line: argparse, one function per command, heavy imports inside."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from onnxcam.errors import OnnxCamError, OutputError, PictureError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from onnxcam.check import CheckReport, LayerReport
    from onnxcam.detection import Detector
    from onnxcam.explainer import Explainer
    from onnxcam.explanation import Explanation
    from onnxcam.graph.read import ModelFile
    from onnxcam.picture import Picture

EPILOG = """exit codes: 0 ok, 1 verification failed or internal error, 2 usage or unknown name, 3 model, 4 unsupported
operator or shape, 5 picture, 6 output, 7 finished with bad pictures, 130 interrupted"""
BAD_PICTURES = 7


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = argparse.Namespace(parser=None)
    try:
        try:
            arguments = _parsed(argv)
            command: Callable[[argparse.Namespace], int] = arguments.run
            return command(arguments)
        finally:
            sys.stdout.flush()  # here, so that a reader that left early is noticed below
    except OnnxCamError as error:
        from onnxcam._console import print_error

        if arguments.parser is not None:
            error.hint = _reachable(error.hint, arguments.parser, arguments.commands)
        print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; pictures may stand before and after options, which argparse alone does not take."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    unknown = [r for r in rest if r.startswith("-") and r != "-"]
    if rest and (unknown or not hasattr(arguments, "images")):
        commands: _Parser = arguments.parser
        commands.refuse((unknown or rest)[0], bool(unknown))
    if rest:
        arguments.images += rest
    return arguments


def _reachable(hint: str, mine: _Parser, commands: Mapping[str, _Parser]) -> str:
    """The hint, where an option that this command lacks is said with a command that has it.

    Libraries do not know which command runs: "`--input NAME`" becomes "`onnxcam explain --input NAME`", and "`--layer`"
    becomes "`--layers`" where that is what this command calls it.
    """

    def named(found: re.Match[str]) -> str:
        option = found[1]
        if own := next((o for o in (option, f"{option}s") if o in mine.options), None):
            return f"`{own}"
        other = next((command for command in commands.values() if option in command.options), None)
        return found[0] if other is None else f"`{other.prog} {option}"

    return re.sub(r"`(--[a-z][a-z-]*)", named, hint)


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors read like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"`{self.prog} --help` says what there is")

    @property
    def options(self) -> list[str]:
        """All that this command offers, in the order of its help."""
        return [o for a in self._actions for o in a.option_strings if a.help != argparse.SUPPRESS]

    def refuse(self, argument: str, is_option: bool) -> NoReturn:
        """Refuses an argument that this command does not take."""
        if not is_option:
            self.error(f"`{self.prog}` has no use for `{argument}`")
        near = get_close_matches(argument.partition("=")[0], self.options, 3, 0.75)
        meant = f"did you mean {' or '.join(f'`{n}`' for n in near)}? " if near else ""
        raise UsageError(f"`{self.prog}` has no option `{argument}`", f"{meant}`{self.prog} --help` lists them")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="onnxcam", description="Shows which part of a picture made an ONNX model decide.", epilog=EPILOG
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    explain = commands.add_parser("explain", help="lay the heat map of a class over a picture")
    explain.add_argument("model", metavar="MODEL", help="an .onnx file")
    pictures = "pictures, folders, patterns, - for a list on stdin; or a signal or volume as .npy"
    explain.add_argument("images", metavar="IMAGE", nargs="*", help=pictures)
    kinds = ".png, .jpg, .webp: overlay; .npy: values; .json: record (default ./IMAGE.cam.png); of several: a folder"
    explain.add_argument("-o", "--output", metavar="PATH", help=kinds)
    explain.add_argument("--target", metavar="CLASS", help="label or index (default: the predicted class)")
    _method_options(explain)
    _target_options(explain)
    _box_options(explain)
    _picture_options(explain)
    _input_options(explain)
    _drawing_options(explain, clip=True)
    _folder_options(explain)
    _runtime_options(explain, choice=True)
    explain.add_argument("--profile", action="store_true", help="say on standard error where the time went")
    explain.set_defaults(run=_explain_timed, method=None)

    export = commands.add_parser("export", help="write one file that predicts and explains")
    export.add_argument("model", metavar="MODEL", help="an .onnx file")
    export.add_argument("-o", "--output", metavar="PATH", type=Path, help="default ./MODEL.cam.onnx")
    _method_options(export, in_file=True)
    _target_options(export)
    _export_options(export)
    _picture_options(export)
    _input_options(export)
    _drawing_options(export)
    _runtime_options(export, in_file=True)
    export.set_defaults(run=_export, method=None)

    web = commands.add_parser("web", help="write a page that explains in the browser")
    web.add_argument("model", metavar="MODEL", help="an .onnx file")
    web.add_argument("-o", "--output", metavar="FOLDER", type=Path, help="default ./MODEL.web")
    web.add_argument(
        "--ort-web", metavar="DIR", help="where onnxruntime-web lies (default: npm fetches the pinned version)"
    )
    served = "show it on http://127.0.0.1:PORT until interrupted (default %(const)s; 0: a free one)"
    web.add_argument("--serve", metavar="PORT", nargs="?", const=8000, type=int, help=served)
    web.add_argument("--no-verify", action="store_true", help="write without comparing the file with the model")
    _method_options(web, in_file=True)
    _picture_options(web)
    _drawing_options(web)
    _runtime_options(web, in_file=True)
    web.set_defaults(run=_web)

    layers = commands.add_parser("layers", help="list the layers that can be explained, best first")
    check = commands.add_parser("check", help="say whether a model can be explained, and where")
    for command, run in ((layers, _layers), (check, _check)):
        command.add_argument("model", metavar="MODEL", help="an .onnx file")
        command.add_argument("--size", metavar="HxW", type=_size, help="where the model leaves it open")
        _input_options(command)
        command.add_argument("--input-layout", choices=_INPUT_LAYOUTS, help="where the shape does not tell")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=run)

    layers.add_argument("--preview", metavar="IMAGE", help="draw Grad-CAM of this picture at each layer, on one sheet")
    layers.add_argument("-o", "--output", metavar="PATH", type=Path, help="of the sheet (default ./MODEL.layers.png)")
    layers.add_argument("--count", metavar="N", type=int, default=12, help="layers shown at most (default %(default)s)")
    layers.add_argument("--target", metavar="CLASS", help="of the sheet (default: the predicted class)")
    _preprocess_options(layers, "preprocessing of the sheet, as for `explain`")

    check.add_argument("--verify", action="store_true", help="compare the gradient with central differences")
    check.add_argument("--layer", metavar="NAME", help="where to verify (default: the automatic layer)")

    methods = commands.add_parser("methods", help="list the methods")
    methods.add_argument("--json", action="store_true", help="print JSON")
    methods.set_defaults(run=_methods)

    evaluate = commands.add_parser("evaluate", help="measure which method to believe, on a folder of pictures")
    evaluate.add_argument("model", metavar="MODEL", help="an .onnx file")
    evaluate.add_argument("folder", metavar="FOLDER", help="of pictures")
    _measure_options(evaluate)
    _picture_options(evaluate)
    _runtime_options(evaluate, choice=True)
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", help="make one HTML file of what `explain` wrote of many pictures")
    report.add_argument("folders", metavar="FOLDER", nargs="+", help="of records; several: other methods, other layers")
    report.add_argument("-o", "--output", metavar="PATH", type=Path, help="default ./FOLDER.html")
    report.add_argument("--evaluation", metavar="FILE", help="what `onnxcam evaluate --json` printed")
    report.add_argument("--title", metavar="TEXT", help="default the model's name")
    report.add_argument("--side", metavar="PX", type=int, help="of the embedded pictures (default: by their number)")
    report.add_argument("--embed", metavar="N", type=int, help="most pictures to embed (default 5000)")
    report.add_argument("--json", action="store_true", help="print JSON")
    report.set_defaults(run=_html_report)

    compare = commands.add_parser("compare", help="lay methods, layers and classes side by side, or two models")
    compare.add_argument("model", metavar="MODEL", help="an .onnx file")
    compare.add_argument(
        "inputs", metavar="[MODEL_B] PICTURE", nargs="+", help="a picture; of two models, pictures or one folder"
    )
    compare.add_argument(
        "-o", "--output", metavar="PATH", type=Path, help="the sheet (default ./PICTURE.compare.cam.png)"
    )
    _compare_options(compare)
    _picture_options(compare)
    _drawing_options(compare)
    compare.add_argument("--font", metavar="FILE", help="for labels that are not in Latin letters: a .ttf or .otf file")
    _runtime_options(compare, choice=True)
    compare.set_defaults(run=_compare)

    ops = commands.add_parser("ops", help="say of every operator what becomes of its derivative")
    form = ops.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print docs/operators.md")
    ops.set_defaults(run=_ops)

    demo = commands.add_parser("demo", help="explain the bundled picture with the bundled model, for two classes")
    demo.add_argument("-o", "--output", metavar="PATH", type=Path, help="default ./demo.cam.png")
    demo.add_argument("--json", action="store_true", help="print JSON")
    _drawing_options(demo)
    demo.set_defaults(run=_demo)
    for command in commands.choices.values():
        command.set_defaults(parser=command, commands=commands.choices)
    return parser


_INPUT_LAYOUTS = ("nchw", "nhwc", "ncl", "nlc", "ncdhw", "ndhwc")
_SCORES = ("logit", "counterfactual", "probability", "log-probability", "rest", "finer")


def _of_python(text: str, in_file: bool) -> str:
    """The help of an option that only Python can follow: commands that write a file refuse it, and do not offer it."""
    return argparse.SUPPRESS if in_file else text


def _method_options(parser: argparse.ArgumentParser, in_file: bool = False) -> None:
    group = parser.add_argument_group("what is explained")
    group.add_argument("--method", default="gradcam", metavar="NAME", help="`onnxcam methods` lists them")
    group.add_argument(
        "--layer", metavar="NAME", action="append", help="value or node; give several to fuse (default: the last map)"
    )
    group.add_argument(
        "--layer-layout", metavar="LAYOUT", help="nchw, nhwc or tokens[:PREFIX], where the graph does not tell"
    )
    group.add_argument("--fuse", default="mean", choices=("mean", "product", "max"), help="of several layers")
    smooth = _of_python("first principal component in place of the sum", in_file)
    group.add_argument("--eigen-smooth", action="store_true", help=smooth)
    augmented = _of_python("mean over flipped and scaled inputs (six runs)", in_file)
    group.add_argument("--aug-smooth", action="store_true", help=augmented)
    group.add_argument(
        "--option", metavar="NAME=VALUE", action="append", default=[], help="of the method (`onnxcam methods --json`)"
    )
    often = _of_python("of methods that run the model often (default 32)", in_file)
    group.add_argument("--batch-size", metavar="N", type=int, help=often)
    drawn = _of_python("of methods that draw (default 0)", in_file)
    group.add_argument("--seed", metavar="N", type=int, help=drawn)
    group.add_argument("--score", default="logit", choices=_SCORES)
    group.add_argument("--class-output", metavar="NAME", help="the output that holds the class scores")
    group.add_argument("--normalize", default="minmax", choices=("minmax", "max", "none"))


def _target_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is explained in place of a class (docs/targets.md)")
    group.add_argument("--against", metavar="CLASS", help="the class minus this one")
    group.add_argument("--element", metavar="OUTPUT[I,...]", help="one number of an output, or the sum of a part of it")
    group.add_argument("--similar-to", metavar="FILE", help="likeness of embeddings to a picture's or a .npy file's")
    group.add_argument("--unlike", metavar="FILE", help="unlikeness to it")
    group.add_argument("--mask", metavar="FILE", help="of a segmenter: the class where this picture or .npy is not 0")
    group.add_argument("--region", metavar="X0,Y0,X1,Y1", type=_numbers, help="of a segmenter: the class in this box")
    group.add_argument("--background", metavar="INDEX", help="of a segmenter: the class that is none, or `none`")
    group.add_argument("--multi-label", action="store_true", help="of a segmenter: a pixel may be of several classes")


def _input_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models with several inputs (docs/several-inputs.md)")
    group.add_argument("--input", metavar="NAME", help="the one that takes the picture")
    group.add_argument(
        "--feed", metavar="NAME=VALUE", action="append", default=[], help="of another one: numbers, or a .npy file"
    )


def _box_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("detectors (--target keeps the boxes of a class; docs/explain-a-detector.md)")
    group.add_argument("--detector", metavar="KIND", help="yolov5, yolov8, ssd, ...: where the outputs do not tell")
    group.add_argument("--box", metavar="N", type=int, action="append", help="explain this box of the list alone")
    group.add_argument("--per-box", action="store_true", help="write a file for each box")
    group.add_argument("--inside", action="store_true", help="scale each map inside its box; 0 outside")
    edges = ("class", "coordinates", "both", "left", "top", "right", "bottom")
    group.add_argument("--box-score", choices=edges, help="what of a box is explained (default class)")
    group.add_argument(
        "--threshold", metavar="P", type=float, help="boxes that score less are left out (default 0.25, of faces 0.7)"
    )
    group.add_argument("--iou", metavar="P", type=float, help="overlap at which the better box stays (default 0.45)")
    group.add_argument("--max-boxes", metavar="N", type=int, help="the best so many (default 100)")
    group.add_argument("--anchors", metavar="FILE.npy", help="(A, 4) centre, width, height in pixels of the input")
    group.add_argument(
        "--best-anchors", metavar="RATIO", type=float, help="one map of this share of all anchors, in place of boxes"
    )


def _measure_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument("--methods", metavar="A,B", type=_names, help="default gradcam,random,sobel")
    group.add_argument(
        "--metrics", metavar="A,B", type=_names, help="best first by the first; docs/evaluate.md lists them"
    )
    group.add_argument("--boxes", metavar="JSON", help="labels and boxes of the objects, by file name")
    group.add_argument("--target", metavar="CLASS", help="label or index (default: labels of --boxes, else predicted)")
    group.add_argument("--layer", metavar="NAME", action="append", help="value or node (default: the last map)")
    group.add_argument("--layer-layout", metavar="LAYOUT", help="nchw, nhwc or tokens[:PREFIX]")
    group.add_argument("--class-output", metavar="NAME", help="the output that holds the class scores")
    group.add_argument(
        "--steps", metavar="N", type=int, default=30, help="of insertion, deletion (default %(default)s)"
    )
    group.add_argument("--baseline", default="zeros", metavar="NAME", help="zeros, mean or blur (default %(default)s)")
    group.add_argument("--seed", metavar="N", type=int, default=0, help="of everything random (default %(default)s)")
    group.add_argument("--csv", metavar="FILE", type=Path, help="write a line per map")
    group.add_argument("--plot", metavar="FILE", type=Path, help="draw the insertion and deletion curves (.png)")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is laid side by side")
    group.add_argument("--methods", metavar="A,B", type=_names, default=["gradcam"], help="default gradcam")
    group.add_argument("--layers", metavar="A,B", type=_listed, help="values or nodes (default: the last map)")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--targets", metavar="A,B", type=_listed, help="labels or indices (default: the predicted class)"
    )
    which.add_argument("--target", metavar="CLASS", action="append", help="one that may hold commas; give several")
    which.add_argument("--top", metavar="K", type=int, help="the K highest classes")
    group.add_argument("--score", default="logit", choices=_SCORES)
    group.add_argument("--layer-layout", metavar="LAYOUT", help="nchw, nhwc or tokens[:PREFIX]")
    group.add_argument("--class-output", metavar="NAME", help="the output that holds the class scores")
    group = parser.add_argument_group("two models")
    group.add_argument("--layer-b", metavar="NAME", help="in the second model, where it is called otherwise")
    group.add_argument("--preprocess-b", metavar="FILE|NAME", help="of the second model, where it differs")
    group.add_argument("--labels-b", metavar="FILE", help="of the second model, where they differ")
    group.add_argument("--worst", metavar="N", type=int, default=5, help="pictures shown (default %(default)s)")
    below = (
        "leave with code 1 where the rank correlation's mean is below R; WHAT: mean, least, q25, median, q75, or "
        "pearson.mean, ... (several may be given)"
    )
    group.add_argument("--fail-below", metavar="[WHAT=]R", action="append", default=[], type=_limit, help=below)


def _export_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the file takes and returns")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--target", metavar="CLASS", action="append", help="fixed class, label or index; give several for (N, C, H, W)"
    )
    which.add_argument("--top", metavar="K", type=int, help="the K highest classes, (N, K, H, W)")
    which.add_argument("--all-classes", action="store_true", help="every class, (N, C, H, W)")
    group.add_argument(
        "--class-input",
        choices=("optional", "required", "none"),
        help="class_index has a default (only ONNX Runtime's native APIs know them), has none, or is no input",
    )
    group.add_argument("--map-size", metavar="HxW", type=_size, help="of the heat map (default: the input's)")
    group.add_argument("--with-class", action="store_true", help="output heatmap_class: the class explained")
    group.add_argument(
        "--with-scores", action="store_true", help="output class_scores: probabilities where the model ends in one"
    )
    group.add_argument("--with-raw", action="store_true", help="output heatmap_raw: the signed map of the layer")
    group.add_argument(
        "--picture-input", action="store_true", help="take uint8 pictures (N, H, W, 3) of the input's size"
    )
    group.add_argument("--overlay", action="store_true", help="the same, and return them with the map laid over")
    group.add_argument(
        "--float32", action=argparse.BooleanOptionalAction,
        help="a float16 model computes in float32, for CPUs (default: below opset 18)",
    )  # fmt: skip
    group.add_argument("--no-verify", action="store_true", help="write without comparing it with the model")
    group.add_argument("--picture", metavar="IMAGE", help="what to compare on (default: seeded noise)")


def _picture_options(parser: argparse.ArgumentParser) -> None:
    group = _preprocess_options(parser, "preprocessing (default: the model's metadata, files beside it, ImageNet's)")
    group.add_argument("--size", metavar="HxW", type=_size, help="where the model leaves it open")
    group.add_argument("--input-layout", choices=_INPUT_LAYOUTS, help="where the shape does not tell")


def _preprocess_options(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(title)
    group.add_argument(
        "--preprocess", metavar="FILE|NAME", help="preprocessor_config.json, timm JSON, your own, torchvision:MODEL"
    )
    group.add_argument("--fit", choices=("crop", "squash", "letterbox"))
    group.add_argument("--crop-pct", metavar="P", type=float, help="share of the short edge that a crop keeps")
    group.add_argument("--mean", metavar="M[,M,M]", type=_numbers, help="after --scale")
    group.add_argument("--std", metavar="S[,S,S]", type=_numbers, help="after --scale")
    group.add_argument("--scale", metavar="F", type=float, help="factor on pixel values 0..255")
    group.add_argument("--channels", choices=("rgb", "bgr", "gray"))
    group.add_argument("--labels", metavar="FILE", help="class names, one per line, or JSON")
    return group


def _drawing_options(parser: argparse.ArgumentParser, clip: bool = False) -> None:
    group = parser.add_argument_group("drawing")
    group.add_argument("--colormap", default="jet", help="jet, viridis, hot or gray (default %(default)s)")
    group.add_argument("--opacity", default=0.5, type=float, metavar="0..1", help="of the map (default %(default)s)")
    if clip:
        shown = "percentile of the map that gets the top colour (default: 99 for maps of single pixels, else 100)"
        group.add_argument("--clip", type=float, metavar="P", help=shown)


def _folder_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several pictures, into a folder (a second run does what is missing)")
    group.add_argument("-r", "--recursive", action="store_true", help="look into folders of folders")
    group.add_argument("--manifest", metavar="FILE", help=".csv or .jsonl: pictures, targets, labels, boxes")
    group.add_argument(
        "--overlays", action=argparse.BooleanOptionalAction, default=True, help="draw the map over each picture"
    )
    group.add_argument("--overlay-format", choices=("png", "jpg"), default="png", help="default %(default)s")
    group.add_argument("--values", choices=("none", "npy", "png16"), default="none", help="keep the map's numbers")
    group.add_argument("--batch", type=int, metavar="N", default=4, help="pictures in one run (default %(default)s)")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads that decode and write (default: as many as leave no core idle)",
    )
    group.add_argument("--retry", action=argparse.BooleanOptionalAction, default=True, help="of bad pictures")
    group.add_argument("--restart", action="store_true", help="delete what an earlier run recorded, begin anew")
    group.add_argument("--max-pixels", type=int, metavar="N", help="of a picture (default 178956970)")
    group.add_argument("--max-model-bytes", type=int, metavar="N", help="with external files (default 16 GiB)")


def _runtime_options(parser: argparse.ArgumentParser, choice: bool = False, in_file: bool = False) -> None:
    group = parser.add_argument_group("runtime")
    if choice:
        what = "what runs the model (default %(default)s)"
        group.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime", help=what)
    group.add_argument("--threads", type=int, metavar="N", help="default: ONNX Runtime's own choice")
    provider = _of_python("cpu, cuda, tensorrt, openvino, ... (default cpu)", in_file)
    group.add_argument("--provider", metavar="NAME", help=provider)
    group.add_argument("--custom-ops", metavar="FILE", help="shared library with custom operators")
    group.add_argument("--json", action="store_true", help="print the record as JSON")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"onnxcam {version('onnxcam')}\n")
        parser.exit()


def _size(text: str) -> tuple[int, ...]:
    """HxW, H alone of squares, 1xL of signals, DxHxW of volumes."""
    sides = text.lower().split("x")
    if len(sides) > 3 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"`{text}` is not HxW, such as 224x224")
    return tuple(map(int, sides * 2 if len(sides) == 1 else sides))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"`{text}` is not a list of numbers, such as 0.485,0.456,0.406") from None


def _names(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _listed(text: str) -> list[str]:
    """Names that may hold blanks."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _limit(text: str) -> tuple[str, float]:
    what, _, number = text.rpartition("=")
    names = ("mean", "least", "q25", "median", "q75")
    known = (*names, *(f"pearson.{name}" for name in names))
    try:
        limit = float(number)
    except ValueError:
        limit = 2.0
    if not -1 <= limit <= 1 or (what or "mean") not in known:
        raise argparse.ArgumentTypeError(f"`{text}` is not R or WHAT=R, WHAT of {', '.join(known)}, R in [-1, 1]")
    return what or "mean", limit


def _model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every command that runs a model on pictures asks for."""
    return {
        "layer": arguments.layer,
        "layer_layout": arguments.layer_layout,
        "output": arguments.class_output,
        "preprocess": _preprocess(arguments),
        "labels": arguments.labels,
        "size": arguments.size,
        "input_layout": arguments.input_layout,
        **_inputs(arguments),
        **({"runtime": arguments.runtime} if hasattr(arguments, "runtime") else {}),
        "providers": [arguments.provider] if arguments.provider else None,
        "custom_ops_library": arguments.custom_ops,
        "threads": arguments.threads,
    }


def _preprocess(arguments: argparse.Namespace) -> dict[str, Any]:
    fields = ("fit", "crop_pct", "mean", "std", "scale", "channels")
    preset = {"preset": arguments.preprocess} if arguments.preprocess is not None else {}
    return preset | {f: v for f in fields if (v := getattr(arguments, f)) is not None}


def _options(pairs: Sequence[str]) -> dict[str, str]:
    return _pairs(pairs, "--option", "masks=500")


def _pairs(pairs: Sequence[str], option: str, example: str) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"`{option} {pair}` is not NAME=VALUE", f"such as `{option} {example}`")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Which input is the picture, and what the others are fed."""
    if not hasattr(arguments, "feed"):
        return {}
    return {"input_name": arguments.input, "feeds": _pairs(arguments.feed, "--feed", "age=42")}


_TARGETS = ("against", "element", "mask", "region", "multi_label", "background", "similar_to", "unlike")


def _target(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is explained in place of a class."""
    from onnxcam.targets.options import chosen_target

    given = {name: getattr(arguments, name) for name in _TARGETS if hasattr(arguments, name)}
    return {"target": chosen_target(target=arguments.target, output=arguments.class_output, **given)} if given else {}


def _map_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How a method makes its map, on the host or in a file."""
    return {
        "method_options": _options(arguments.option),
        "normalize": arguments.normalize,
        "fuse": arguments.fuse,
    }


def _host_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What only the host can do."""
    names = ("eigen_smooth", "aug_smooth", "batch_size", "seed")
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _explainer(arguments: argparse.Namespace, progress: Callable[[int, int], None]) -> Explainer:
    from onnxcam.explainer import Explainer

    return Explainer(
        _model(arguments, last=True),
        method=arguments.method,
        score=arguments.score,
        progress=progress,
        **_map_options(arguments),
        **_host_options(arguments),
        **_target(arguments),
        **_model_options(arguments),
    )


def _explain_timed(arguments: argparse.Namespace) -> int:
    if not arguments.profile:
        return _explain(arguments)
    from onnxcam import _console as console
    from onnxcam.profiling import profile

    with profile() as found:
        code = _explain(arguments)
    rest = found.total - sum(found.seconds.values())
    threads = " (stages of several threads overlap)" if rest < 0 else ""
    rows = [
        (name, str(found.calls[name]), f"{seconds * 1e3:.1f}", f"{seconds / found.total:.0%}")
        for name, seconds in found.seconds.items()
    ]
    rows += [("rest: imports, records", "", f"{rest * 1e3:.1f}", f"{rest / found.total:.0%}")] if rest >= 0 else []
    console.print_table(("stage", "calls", "ms", "share"), rows, right=("calls", "ms", "share"), to_stderr=True)
    console.print_note(f"{found.total * 1e3:.1f} ms in all{threads}")
    return code


def _explain(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.methods import find_method
    from onnxcam.picture import MAX_PIXELS, load_picture

    if arguments.max_pixels is not None and arguments.max_pixels < 1:
        raise UsageError(f"{arguments.max_pixels} pixels", "give 1 or more")
    asked, arguments.method = arguments.method, arguments.method or "gradcam"
    if _is_folder_run(arguments):
        alone = arguments.images[0] if len(arguments.images) == 1 else "-"
        if alone != "-" and not any(c in alone for c in "*?[") and not Path(alone).exists():
            raise PictureError(f"{alone}: no such file", "check the path")
        return _explain_many(arguments, asked)
    (image,) = arguments.images
    if image.lower().endswith(".cam.png"):
        raise UsageError(f"{image} is an overlay that onnxcam made", "explain the picture that it was made from")
    target = Path(arguments.output or f"{Path(image).stem}.cam.png")
    _check_writable(target)
    drawing = _drawing(arguments, target)
    if image.lower().endswith(".npy"):
        return _explain_array(arguments, Path(image), target)
    picture = load_picture(image, max_pixels=arguments.max_pixels or MAX_PIXELS)
    if _is_detection(arguments):
        return _explain_boxes(arguments, picture, target, drawing, asked)
    loops = find_method(arguments.method).passes != "1"
    with console.progress(arguments.method) if loops else nullcontext(lambda done, total: None) as progress:
        explainer = _explainer(arguments, progress)
        explanation = explainer(picture, arguments.target)
    explanation.save(target, **drawing)
    _report(explainer, [(explanation, target)], arguments.json)
    return 0


def _explain_array(arguments: argparse.Namespace, path: Path, target: Path) -> int:
    """A signal or a volume, as the model takes it."""
    from onnxcam.output import write_atomically
    from onnxcam.render import encoded
    from onnxcam.strip import drawn, load_array

    x = load_array(path)
    explainer = _explainer(arguments, lambda done, total: None)
    image = explainer.image
    if image.sides == 2:
        raise UsageError(f"{path} is an array, and the model takes pictures", "arrays are for signals and volumes")
    x = x[None] if x.ndim == image.sides + 1 else x
    if x.ndim == image.sides + 2 and len(x) != 1:
        raise UsageError(f"{path} holds {len(x)} samples", "give one; `explain_tensor` takes several in Python")
    (explanation,) = explainer.explain_tensor(x.astype(image.dtype), arguments.target)
    if target.suffix in (".npy", ".json"):
        explanation.save(target)
    else:
        first = x[0] if image.layout == "nchw" else x[0].transpose(-1, *range(image.sides))
        page = drawn(first, explanation.values, arguments.colormap, arguments.opacity)
        write_atomically(target, encoded(page, target.suffix))
    _report(explainer, [(explanation, target)], arguments.json)
    return 0


_OF_BOXES = ("detector", "box", "box_score", "threshold", "iou", "max_boxes", "anchors", "best_anchors")


def _is_detection(arguments: argparse.Namespace) -> bool:
    from onnxcam.detection import looks_like_detector

    asked = arguments.per_box or arguments.inside or any(getattr(arguments, name) is not None for name in _OF_BOXES)
    other = next((name for name in (*_TARGETS, "class_output") if getattr(arguments, name)), None)
    if asked and other is not None:
        raise UsageError(f"boxes and --{other.replace('_', '-')}", "explain the one or the other")
    if asked or other is not None:
        return asked
    return looks_like_detector(_model(arguments), arguments.size, arguments.input_layout, **_inputs(arguments))


def _model(arguments: argparse.Namespace, last: bool = False) -> ModelFile:
    """The model file, read once for all who ask; last: nobody asks again, so that it is not held on to."""
    from onnxcam.graph.read import MAX_MODEL_BYTES, read

    file = vars(arguments).pop("file", None)
    file = file or read(arguments.model, max_bytes=arguments.max_model_bytes or MAX_MODEL_BYTES)
    if not last:
        arguments.file = file
    return file


def _detector(arguments: argparse.Namespace, method: str | None) -> Detector:
    from onnxcam.detection import Detector
    from onnxcam.detection.read import anchors_from

    if arguments.score != "logit":
        raise UsageError(f"--score {arguments.score} is of classes", "`--box-score` says what of a box is explained")
    named = {name: v for name in _OF_BOXES[2:6] if (v := getattr(arguments, name)) is not None}
    options = {k: v for k, v in _model_options(arguments).items() if k != "output"}
    return Detector(
        _model(arguments, last=True),
        kind=arguments.detector,
        anchors=anchors_from(arguments.anchors) if arguments.anchors else None,
        method=method or "layercam",
        **_map_options(arguments),
        **_host_options(arguments),
        **named,
        **options,
    )


def _of_every_picture(arguments: argparse.Namespace) -> dict[str, Any]:
    """What of a detector's boxes is asked of each picture."""
    inside = {"inside": True} if arguments.inside else {}
    return inside | ({} if arguments.best_anchors is None else {"best_anchors": arguments.best_anchors})


def _explain_boxes(
    arguments: argparse.Namespace, picture: Picture, target: Path, drawing: dict[str, Any], method: str | None
) -> int:
    from onnxcam import _console as console
    from onnxcam.detection.read import chosen_boxes

    if arguments.best_anchors is not None and (arguments.per_box or arguments.box):
        raise UsageError("the best anchors are explained in place of boxes", "leave `--box` and `--per-box` out")
    detector = _detector(arguments, method)
    detector.check(arguments.target, **_of_every_picture(arguments))
    if not arguments.json:
        for note in detector.notes:
            console.print_note(note)
    wanted = chosen_boxes(detector, picture, arguments.box, arguments.target)
    if arguments.best_anchors is not None:
        results = [detector.explain_anchors(picture, arguments.best_anchors)]
    elif arguments.per_box:
        results = detector.explain_boxes(picture, wanted, inside=arguments.inside)
    else:
        results = [detector(picture, wanted, inside=arguments.inside)]
    stem, end = target.name.removesuffix(target.suffix).removesuffix(".cam"), target.suffix
    end = f".cam{end}" if target.name.endswith(f".cam{end}") else end
    paths = (
        [target] if not arguments.per_box else [target.with_name(f"{stem}.box{e.boxes[0].index}{end}") for e in results]
    )
    for explanation, path in zip(results, paths, strict=True):
        explanation.save(path, **drawing)
        for warning in explanation.warnings:
            console.print_warning(warning)
    if arguments.json:
        records = [{**e.record(), "output": str(path)} for e, path in zip(results, paths, strict=True)]
        console.print_json(records if arguments.per_box else records[0])
        return 0
    console.print_table(
        ("box", "class", "label", "score", "x0", "y0", "x1", "y1"),
        [
            (str(b.index), str(b.class_index), b.label or "", f"{b.score:.4f}", *(f"{edge:.0f}" for edge in b.xyxy))
            for b in results[0].detected
        ],
        right=("box", "class", "score", "x0", "y0", "x1", "y1"),
    )
    for explanation, path in zip(results, paths, strict=True):
        console.print_line(f"{explanation.name}: {explanation.method} at {explanation.layer} -> {path}")
    return 0


def _is_folder_run(arguments: argparse.Namespace) -> bool:
    """Whether the output is a folder of records; a single picture may go there too, where `-o` ends in `/`."""
    images, output = arguments.images, arguments.output or ""
    if arguments.manifest is not None or len(images) != 1 or images[0] == "-" or Path(images[0]).is_dir():
        return True
    pattern = any(c in images[0] for c in "*?[") and not Path(images[0]).exists()
    return pattern or output.endswith(("/", os.sep)) or (Path(output) / "run.json").is_file()


def _explain_many(arguments: argparse.Namespace, method: str | None) -> int:
    from dataclasses import asdict

    from onnxcam import _console as console
    from onnxcam.audit.run import Output, audit, fitting_threads
    from onnxcam.audit.sources import Sources
    from onnxcam.picture import MAX_PIXELS

    if not arguments.images and arguments.manifest is None:
        raise UsageError("there is no picture to explain", "name one behind the model, a folder, or `--manifest FILE`")
    if arguments.output is None:
        raise UsageError("several pictures need a folder to go to", "name one: `-o out`")
    if arguments.box is not None:
        raise UsageError(
            "--box is the place in one picture's list of boxes",
            "`--target CLASS` keeps the boxes of a class in every picture, `--max-boxes 1` the best box",
        )
    if arguments.per_box:
        raise UsageError(
            "--per-box writes a file for each box of one picture",
            "leave it out: a folder has one overlay for each picture, and a record of all its boxes",
        )
    sources, folder = Sources(), Path(arguments.output)
    if arguments.manifest is not None:
        sources.add_manifest(arguments.manifest)
    if arguments.images == ["-"]:
        sources.add_list(sys.stdin.buffer.read())
    else:
        sources.add_inputs(arguments.images, recursive=arguments.recursive, without=folder)
    for note in sources.notes:
        console.print_note(note)
    if not sources.items:
        raise UsageError("there are no pictures", "`--recursive` looks into folders of folders")
    drawing = _drawing(arguments, Path("overlay.png"))
    output = Output(arguments.overlays, arguments.overlay_format, values=arguments.values, **drawing)
    detects = _is_detection(arguments)
    arguments.threads = arguments.threads or fitting_threads(arguments.provider)
    explainer = _detector(arguments, method) if detects else _explainer(arguments, lambda done, total: None)
    for note in explainer.notes:
        console.print_note(note)
    with console.picture_progress("explaining") as progress:
        summary = audit(
            explainer,
            sources.items,
            folder,
            target=arguments.target,
            asked=_of_every_picture(arguments) if detects else None,
            output=output,
            batch=arguments.batch,
            workers=arguments.workers,
            max_pixels=arguments.max_pixels or MAX_PIXELS,
            restart=arguments.restart,
            retry=arguments.retry,
            progress=progress,
        )
    for name, message in summary.first_errors:
        console.print_warning(f"{name}: {message}")
    if arguments.json:
        console.print_json(asdict(summary) | {"folder": str(folder)})
    else:
        console.print_line(summary.text(folder))
    return BAD_PICTURES if summary.errors else 0


def _is_detector(arguments: argparse.Namespace) -> bool:
    from onnxcam.detection import looks_like_detector

    return looks_like_detector(arguments.model, arguments.size, arguments.input_layout, **_inputs(arguments))


def _refuse_detector(arguments: argparse.Namespace) -> None:
    if _is_detector(arguments):
        raise UnsupportedError(
            f"{Path(arguments.model).name} is a detector, and has no class scores of whole pictures",
            "`onnxcam explain` and `onnxcam export` explain its boxes",
        )


def _export(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.exported import export

    _refuse_useless(arguments, "a file")
    for name, default in (("colormap", "jet"), ("opacity", 0.5)):
        if getattr(arguments, name) != default and not arguments.overlay:
            raise UsageError(f"--{name} is of the overlay, and the file has none", "add `--overlay`")
    target = arguments.output or Path(f"{Path(arguments.model).stem}.cam.onnx")
    single = arguments.target is not None and len(arguments.target) == 1
    options = _model_options(arguments)
    del options["providers"]
    asked = _target(arguments)["target"]
    detects = asked is None and arguments.class_output is None and _is_detector(arguments)
    if detects:
        from onnxcam.detection import BestBox

        if (arguments.target and not single) or arguments.top or arguments.all_classes:
            raise UsageError("one file explains the best box of one class", "`--target CLASS`, or the class input")
        asked = BestBox(arguments.target[0] if single else None)
    done = export(
        arguments.model,
        target,
        method=arguments.method or ("layercam" if detects else "gradcam"),
        score=arguments.score,
        **_map_options(arguments),
        target=asked or (arguments.target[0] if single else arguments.target),
        top=arguments.top,
        all_classes=arguments.all_classes,
        class_input=arguments.class_input,
        map_size=arguments.map_size,
        with_class=arguments.with_class,
        with_raw=arguments.with_raw,
        with_scores=arguments.with_scores,
        picture_input=arguments.picture_input,
        overlay=arguments.overlay,
        colormap=arguments.colormap,
        opacity=arguments.opacity,
        verify=not arguments.no_verify,
        picture=arguments.picture,
        float32=arguments.float32,
        **options,
    )
    if arguments.json:
        console.print_json(done.to_json())
        return 0
    for note in done.notes:
        console.print_note(note)
    share = done.added_bytes / (done.bytes - done.added_bytes)
    console.print_line(f"{done.path}: {done.method} at {' + '.join(done.layers)}")
    console.print_line(f"in       {', '.join(done.inputs)}")
    console.print_line(f"out      {', '.join(done.outputs)}")
    console.print_line(f"size     {done.added_nodes:+} nodes, {done.added_bytes:+,} bytes ({share:+.1%})")
    work = done.added_multiply_adds / (done.multiply_adds - done.added_multiply_adds)
    console.print_line(f"work     {done.added_multiply_adds:+,} multiply-adds ({work:+.1%})")
    console.print_line(f"runs on  ONNX Runtime {done.onnxruntime} and newer (opset {done.opset})")
    if done.check is None:
        console.print_warning("not compared with the model (--no-verify)")
        return 0
    same = "identical to the model's" if done.check.identical else f"the model's within {done.check.predictions:.1e}"
    console.print_line(f"checked  predictions {same}; heat map Python's within {done.check.heatmap:.1e}")
    console.print_line(f"cost     {done.ratio:.2f} x the plain model's time")
    return 0


def _web(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.web.local_server import HOST, local_server
    from onnxcam.web.site import write_site

    _refuse_useless(arguments, "a page", "--custom-ops")
    if arguments.class_output is None:
        _refuse_detector(arguments)
    target = arguments.output or Path(f"{Path(arguments.model).stem}.web")
    server = local_server(target, arguments.serve) if arguments.serve is not None else None
    options = _model_options(arguments)
    for absent in ("providers", "custom_ops_library"):
        del options[absent]
    done = write_site(
        arguments.model,
        target,
        ort_web=arguments.ort_web,
        say=console.print_note,
        method=arguments.method,
        score=arguments.score,
        **_map_options(arguments),
        colormap=arguments.colormap,
        opacity=arguments.opacity,
        verify=not arguments.no_verify,
        **options,
    )
    if arguments.json:
        console.print_json(done.to_json())
    else:
        for note in done.notes:
            console.print_note(note)
        console.print_line(f"{done.folder}: {done.exported.method} at {' + '.join(done.exported.layers)}")
        console.print_line(f"size     {done.bytes:,} bytes, {len(done.files)} files")
        console.print_line(f"runs on  onnxruntime-web {done.ort_web}, in the browser; no request leaves its origin")
    if server is None:
        if not arguments.json:
            console.print_note(f"a page needs a server: `--serve`, or `python -m http.server -d {target}`")
        return 0
    sys.stdout.flush()
    with server:
        console.print_note(f"http://{HOST}:{server.server_port}/ shows it; ctrl-C ends")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _refuse_useless(arguments: argparse.Namespace, what: str, *more: str) -> None:
    """Raises: UsageError for options that only Python can follow."""
    for name in ("--eigen-smooth", "--aug-smooth", "--batch-size", "--seed", "--provider", *more):
        given = getattr(arguments, name.removeprefix("--").replace("-", "_"))
        if given is not None and given is not False:
            raise UsageError(f"{name} is nothing that {what} can do", "leave it out")


def _drawing(arguments: argparse.Namespace, target: Path) -> dict[str, Any]:
    """Options of the overlay, checked before any work is done."""
    from onnxcam.render import colormap

    colormap(arguments.colormap)
    if not 0 <= arguments.opacity <= 1:
        raise UsageError(f"opacity {arguments.opacity} is outside [0, 1]", "0 is the picture alone, 1 the map alone")
    if target.suffix in (".npy", ".json"):
        return {}
    clip = getattr(arguments, "clip", None)
    if clip is not None and not 0 < clip <= 100:
        raise UsageError(f"clip {clip} is outside (0, 100]", "99 draws the highest hundredth in the top colour")
    chosen = {"colormap": arguments.colormap, "opacity": arguments.opacity}
    return chosen if clip is None else chosen | {"clip": clip}


_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def _check_writable(target: Path, known: Sequence[str] = (*_PICTURES, ".npy", ".json")) -> None:
    """Refuses, before any work is done, a place where nothing can be written."""
    if target.is_dir():
        raise OutputError(f"{target} is a folder", f"name a file in it: `{target / 'out.png'}`")
    if target.suffix.lower() not in known:
        problem = f"cannot write a `{target.suffix}` file" if target.suffix else "does not say what kind of file"
        raise OutputError(f"{target}: {problem}", f"end it in one of {', '.join(known)}")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}", f"make it first: `mkdir -p {target.parent}`")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target}: the folder {target.parent} is not writable", "choose another folder")


def _report(explainer: Explainer, results: Sequence[tuple[Explanation, Path]], as_json: bool) -> None:
    from onnxcam import _console as console

    for explanation, _ in results:
        for warning in explanation.warnings:
            console.print_warning(warning)
    if as_json:
        records = [{**explanation.record(), "output": str(path)} for explanation, path in results]
        console.print_json(records[0] if len(records) == 1 else records)
        return
    for note in explainer.notes:
        console.print_note(note)
    first = results[0][0]
    shares = first.provenance.get("target_kind", {}).get("kind") == "segmentation"
    kind = "probability" if first.probability is not None else "share of picture" if shares else "logit"
    if first.top:
        console.print_table(
            ("class", "label", kind),
            [(str(c.index), c.label or "", f"{c.score:.4f}") for c in first.top],
            right=("class", kind),
        )
    for explanation, path in results:
        name = explanation.label or f"class {explanation.class_index}"
        if not explanation.top:
            name += f" = {explanation.score:.4f}"
        console.print_line(f"{name}: {explanation.method} at {explanation.layer} -> {path}")


def _layers(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.check import layer_json
    from onnxcam.detection.read import checked

    detector, report = checked(
        arguments.model, size=arguments.size, input_layout=arguments.input_layout, **_inputs(arguments)
    )
    if detector is not None and arguments.preview is not None:
        raise UnsupportedError(
            "the sheet is of a class, and this model is a detector", "`onnxcam explain --layer NAME` shows one layer"
        )
    if report.head is None and report.problem is not None:
        raise report.problem
    shown = report.layers if arguments.preview is None else _preview(arguments, report)
    if arguments.json:
        console.print_json([layer_json(layer) for layer in shown])
        return 0
    _print_layers(report, shown)
    return 0


def _preview(arguments: argparse.Namespace, report: CheckReport) -> tuple[LayerReport, ...]:
    """Writes the contact sheet; the layers on it."""
    from onnxcam import _console as console
    from onnxcam.output import write_atomically
    from onnxcam.preview import preview
    from onnxcam.render import encoded

    path = arguments.output or Path(f"{Path(arguments.model).stem}.layers.png")
    _check_writable(path, _PICTURES)
    page, explanation, shown = preview(
        arguments.model, report, arguments.preview, arguments.target, arguments.count,
        preprocess=_preprocess(arguments), labels=arguments.labels, size=arguments.size,
        input_layout=arguments.input_layout, **_inputs(arguments),
    )  # fmt: skip
    write_atomically(path, encoded(page, path.suffix))
    console.print_note(f"preprocessing: {explanation.provenance['preprocess_source']}")
    console.print_note(
        f"{explanation.name}, {explanation.strength}: {len(shown)} of {len(report.layers)} layers -> {path}"
    )
    return shown


def _print_layers(report: CheckReport, shown: Sequence[LayerReport]) -> None:
    from onnxcam import _console as console

    rows = [
        (
            r.layer.name + ("  (automatic)" if r is report.automatic else ""),
            r.layer.op_type,
            str(r.layer.channels or "?"),
            "x".join(map(str, r.layer.layout.shape)),
            f"{r.layer.depth + 1}/{report.depth}",
            _possible(r.methods)
            + (f" (no rule for {', '.join(r.blockers)})" if r.blockers else "")
            + (" (only its class token reaches the score)" if r.vanishes else ""),
        )
        for r in shown
    ]
    console.print_table(("layer", "operator", "K", "grid", "depth", "methods"), rows, right=("K", "depth"))


def _possible(methods: Sequence[str]) -> str:
    """The methods possible at a layer, in few words."""
    from onnxcam.methods import METHODS

    missing = [m for m in METHODS if m not in methods]
    if not missing:
        return "all"
    return f"all but {', '.join(missing)}" if len(missing) < len(methods) else ", ".join(methods) or "none"


def _check(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.detection.read import checked

    detector, report = checked(
        arguments.model, size=arguments.size, input_layout=arguments.input_layout, **_inputs(arguments)
    )
    verification = None
    if arguments.verify:
        from onnxcam.verify import verify

        shown = report.automatic.layer.name if report.automatic is not None else None
        verification = verify(
            report.file, layer=arguments.layer or shown, scores=report.scores, size=report.size,
            input_layout=arguments.input_layout, **_inputs(arguments),
        )  # fmt: skip
    failed = verification is not None and not verification.verified
    if arguments.json:
        extra = {"verification": verification.to_json()} if verification else {}
        console.print_json({**report.to_json(), **extra})
        return 1 if failed else report.problem.exit_code if report.problem and not verification else 0
    facts = report.to_json()
    image = facts["input"]
    batch = image["batch"] if image["batch"] is not None else "any number of"
    console.print_line(f"model    {facts['model']}: opset {facts['opset']}, IR {facts['ir_version']}, "
                       f"{facts['nodes']} nodes, {facts['number_format']}")  # fmt: skip
    for note in facts["notes"]:
        console.print_line(f"         {note}")
    what = {"pictures": "picture(s)", "signals": "signal(s)", "volumes": "volume(s)"}[report.image.plane]
    console.print_line(f"input    {image['name']}: {batch} {what}, {image['channels']} channels, "
                       f"{'x'.join(map(str, image['size']))}, {image['layout']}, {image['dtype']}")  # fmt: skip
    for output in facts["outputs"]:
        console.print_line(f"output   {output['name']}: {output['shape']}")
    if verification is not None:
        console.print_line(
            f"gradient {'verified' if verification.verified else 'NOT verified'} at {verification.layer}: relative "
            f"error {verification.error:.1e} over {verification.directions} directions, "
            f"{verification.oracle} differences"
        )
        if detector is not None:
            console.print_line(f"         of {_few(verification.outputs)}")
        if failed:
            if verification.derivative == 0:
                console.print_note("nothing was compared: on a picture of noise this layer moves nothing behind it")
            if verification.oracle == "float32":
                console.print_note(
                    "so much behind this layer leaves rounding and kinks in the differences: try a later `--layer`"
                )
            return 1
    if report.problem is not None:
        if verification is not None:
            console.print_warning(report.problem.message)
            return 0
        raise report.problem
    assert report.head is not None and report.automatic is not None
    end = f", behind a {report.head.activation}" if report.head.activation else ""
    if detector is not None:
        console.print_line(f"detector {detector}")
    else:
        console.print_line(f"score    {report.head.classes} classes, logits `{report.head.logits}`{end}")
    chosen = report.automatic
    sides = "x".join(map(str, chosen.layer.layout.shape))
    kind = f"{chosen.layer.op_type}, {chosen.layer.channels} channels, {sides}"
    console.print_line(f"layer    {chosen.layer.name} ({kind}); {len(report.layers)} candidates")
    console.print_line(f"methods  {_possible(chosen.methods)}")
    blocked = [r for r in report.layers if r.blockers]
    if blocked:
        kinds = ", ".join(sorted({kind for r in blocked for kind in r.blockers}))
        console.print_line(f"blocking {kinds}: no derivative rule, no gradients at {len(blocked)} candidates")
    console.print_line("")
    _print_layers(report, sorted(report.layers, key=lambda r: (r is not chosen, not r.methods))[:5])
    console.print_line("")
    console.print_line("explainable: yes")
    return 0


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _methods(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.methods import METHODS

    if arguments.json:
        console.print_json(
            [
                {
                    "name": m.name,
                    "formula": m.formula,
                    "needs": list(m.needs),
                    "gradients": m.gradients,
                    "forward_passes": m.passes,
                    "class_discriminative": m.class_discriminative,
                    "explains": "input" if m.at_input else "layer",
                    "options": {n: {"default": o.default, "about": o.about} for n, o in m.options.items()},
                    "paper": m.paper,
                }
                for m in METHODS.values()
            ]
        )
        return 0
    rows = [
        (m.name, ", ".join(m.needs) or "-", m.passes, "yes" if m.class_discriminative else "no",
         ", ".join(f"{n}={o.default}" for n, o in m.options.items()), m.paper)
        for m in METHODS.values()
    ]  # fmt: skip
    console.print_table(("method", "needs", "forward passes", "per class", "options", "paper"), rows)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from onnxcam import _console as console
    from onnxcam.metrics.evaluation import METHODS, evaluate
    from onnxcam.metrics.sample import Settings
    from onnxcam.output import write_atomically
    from onnxcam.render import encoded

    if arguments.class_output is None:
        _refuse_detector(arguments)
    for path, suffix in ((arguments.csv, ".csv"), (arguments.plot, ".png")):
        if path is not None:
            _check_writable(path, (suffix,))
    with console.progress("measuring") as progress:
        evaluation = evaluate(
            arguments.model,
            arguments.folder,
            methods=arguments.methods or METHODS,
            metrics=arguments.metrics,
            boxes=arguments.boxes,
            target=arguments.target,
            settings=Settings(steps=arguments.steps, baseline=arguments.baseline, seed=arguments.seed),
            progress=progress,
            **_model_options(arguments),
        )
    # Drawn first: what cannot be drawn leaves no file behind.
    plot = evaluation.plot() if arguments.plot is not None else None
    if arguments.csv is not None:
        write_atomically(arguments.csv, evaluation.csv().encode())
    if plot is not None:
        write_atomically(arguments.plot, encoded(plot, ".png"))
    for warning in evaluation.warnings:
        console.print_warning(warning)
    if arguments.json:
        console.print_json(evaluation.to_json())
    else:
        for note in evaluation.notes:
            console.print_note(note)
        columns, rows = evaluation.table()
        console.print_table(columns, rows, right=("maps",))
        first, pictures = evaluation.metrics[0].name, evaluation.settings["pictures"]
        console.print_line(f"{pictures} pictures; mean [95 % interval, bootstrap over pictures]; best first by {first}")
    return BAD_PICTURES if evaluation.unreadable else 0


def _html_report(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from onnxcam import _console as console
    from onnxcam.report.gather import EMBEDDED
    from onnxcam.report.page import write_report

    target = arguments.output or Path(f"{Path(arguments.folders[0]).resolve().name}.html")
    _check_writable(target, (".html", ".htm"))
    with console.progress("reading") as progress:
        written = write_report(
            arguments.folders,
            target,
            evaluation=arguments.evaluation,
            title=arguments.title,
            side=arguments.side,
            embed=EMBEDDED if arguments.embed is None else arguments.embed,
            progress=progress,
        )
    for notice in written.notices:
        console.print_note(notice)
    if arguments.json:
        console.print_json(asdict(written) | {"path": str(written.path)})
    else:
        console.print_line(f"{written.path}: {written.pictures:,} pictures, {written.bytes / 1e6:.1f} MB")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    if len(arguments.inputs) > 1 and arguments.inputs[0].lower().endswith(".onnx"):
        return _compare_models(arguments, arguments.inputs[0], arguments.inputs[1:])
    if arguments.inputs[0].lower().endswith(".onnx"):
        raise UsageError("two models and no picture", "name a picture, or a folder of pictures, after them")
    if len(arguments.inputs) > 1 or Path(arguments.inputs[0]).is_dir():
        raise UsageError("one model is compared on one picture", "name one, or give a second .onnx file first")
    given = {"--fail-below": arguments.fail_below, "--layer-b": arguments.layer_b, "--labels-b": arguments.labels_b,
             "--preprocess-b": arguments.preprocess_b}  # fmt: skip
    if useless := next((name for name, value in given.items() if value), None):
        raise UsageError(f"{useless} is for two models", "give a second .onnx file before the picture")
    return _compare_grid(arguments, arguments.inputs[0])


def _compare_grid(arguments: argparse.Namespace, picture: str) -> int:
    from onnxcam import _console as console
    from onnxcam.comparison import grid
    from onnxcam.output import write_atomically
    from onnxcam.render import encoded

    target = arguments.output or Path(f"{Path(picture).stem}.compare.cam.png")
    _check_writable(target, _PICTURES)
    drawing = _drawing(arguments, target)
    options = _compared_options(arguments)
    layers = options.pop("layer")
    classes = arguments.top or arguments.targets or arguments.target or [None]
    with console.progress("explaining") as progress:
        found = grid(
            arguments.model,
            picture,
            methods=arguments.methods,
            layers=layers or (),
            targets=classes,
            progress=progress,
            **options,
        )
    sheet = found.sheet(drawing["colormap"], drawing["opacity"], arguments.font)
    write_atomically(target, encoded(sheet, target.suffix))
    for warning in dict.fromkeys(f"{e.name}, {e.method}: {w}" for row in found.rows for e in row for w in e.warnings):
        console.print_warning(warning)
    if arguments.json:
        console.print_json({"output": str(target), "explanations": found.to_json()})
        return 0
    for note in found.notes:
        console.print_note(note)
    rows = [(row[0].name, row[0].strength.removeprefix("score "), row[0].layer) for row in found.rows]
    console.print_table(("class", "score", "layer"), rows)
    console.print_line(f"{', '.join(found.methods)} -> {target}")
    return 0


def _compare_models(arguments: argparse.Namespace, model_b: str, pictures: Sequence[str]) -> int:
    from onnxcam import _console as console
    from onnxcam.comparison import compare
    from onnxcam.errors import VerificationError
    from onnxcam.output import write_atomically
    from onnxcam.render import encoded

    targets = arguments.targets or arguments.target or [None]
    for name, count in (("--methods", len(arguments.methods)), ("--targets", arguments.top or len(targets))):
        if count > 1:
            raise UsageError(f"two models are compared in one method and for one class, not {count} {name}", "name one")
    folder = len(pictures) == 1 and Path(pictures[0]).is_dir()
    one = len(pictures) == 1 and not folder
    target = arguments.output or (Path(f"{Path(pictures[0]).stem}.compare.cam.png") if one else None)
    if target is not None:
        _check_writable(target, _PICTURES)
    drawing = _drawing(arguments, Path("sheet.png"))
    options_b: dict[str, Any] = {"layer": arguments.layer_b, "labels": arguments.labels_b}
    if arguments.preprocess_b is not None:
        options_b["preprocess"] = {"preset": arguments.preprocess_b}
    with console.progress("comparing") as progress:
        found = compare(
            arguments.model,
            model_b,
            pictures[0] if folder else list(pictures),
            targets[0],
            options_b={name: value for name, value in options_b.items() if value is not None},
            progress=progress,
            method=arguments.methods[0],
            **_compared_options(arguments),
        )
    if target is not None:
        sheet = found.sheet(arguments.worst, drawing["colormap"], drawing["opacity"], arguments.font)
        write_atomically(target, encoded(sheet, target.suffix))
    limits = dict(arguments.fail_below)
    failures = found.failures(limits)
    for bad in found.unreadable:
        console.print_warning(f"left out: {bad.error.message}")
    if arguments.json:
        gate = {"limits": limits, "failures": failures, "passed": not failures}
        console.print_json({**found.to_json(), "gate": gate, "output": str(target) if target else None})
    else:
        for note in found.notes:
            console.print_note(note)
        columns, rows = found.table(arguments.worst)
        console.print_table(columns, rows, right=columns[1:4])
        console.print_line(found.text + (f" -> {target}" if target else ""))
    if failures:
        raise VerificationError(
            f"the explanations moved: {'; '.join(failures)}", "look at the worst pictures: `-o worst.png` draws them"
        )
    return BAD_PICTURES if found.unreadable else 0


def _compared_options(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.layer = arguments.layers
    return {**_model_options(arguments), "score": arguments.score}


def _ops(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from onnxcam import _console as console
    from onnxcam.autodiff.decisions import decisions, markdown

    table = decisions()
    if arguments.json:
        console.print_json([asdict(decision) for decision in table])
    elif arguments.markdown:
        console.print_text(markdown(table))
    else:
        rows = [(f"{d.domain}::{d.op}" if d.domain else d.op, d.decision, d.reason) for d in table]
        console.print_table(("operator", "decision", "why, or the rule"), rows)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from onnxcam.demo import explain_demo

    target = arguments.output or Path("demo.cam.png")
    _check_writable(target, _PICTURES)
    explainer, explanations = explain_demo(target, **_drawing(arguments, target))
    _report(explainer, [(e, target) for e in explanations], arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
