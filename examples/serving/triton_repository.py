"""A Triton model repository from an exported file: NAME/config.pbtxt, NAME/labels.txt, NAME/1/model.onnx.

    onnxcam export model.onnx --class-input required -o model.cam.onnx
    python triton_repository.py model.cam.onnx repository --name beagles
    docker run --rm -p 8000:8000 -v $PWD/repository:/models nvcr.io/nvidia/tritonserver:YY.MM-py3 \
        tritonserver --model-repository=/models

The configuration is read off the file's own signature. An open batch becomes `max_batch_size` with dynamic batching, a
batch that is built in stays an axis (`max_batch_size: 0`).
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import onnx
from onnx import TensorProto, ValueInfoProto

DATA_TYPES = {
    TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.UINT8: "TYPE_UINT8", TensorProto.INT8: "TYPE_INT8", TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64", TensorProto.BOOL: "TYPE_BOOL",
}  # fmt: skip


def dims(value: ValueInfoProto) -> list[int]:
    """Sizes, -1 where open."""
    return [d.dim_value or -1 for d in value.type.tensor_type.shape.dim]


def tensor(value: ValueInfoProto, batched: bool, labels: bool = False) -> str:
    """One entry of `input` or `output`; Triton itself puts the batch in front."""
    shape = dims(value)[1:] if batched else dims(value)
    lines = [
        f"name: {json.dumps(value.name, ensure_ascii=False)}",
        f"data_type: {DATA_TYPES[value.type.tensor_type.elem_type]}",
        f"dims: [ {', '.join(map(str, shape or [1]))} ]",
    ]
    if batched and not shape:  # one number per sample: Triton wants an axis behind the batch, and takes it away again
        lines.append("reshape: { shape: [ ] }")
    if labels:
        lines.append('label_filename: "labels.txt"')
    return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def configuration(model: onnx.ModelProto, name: str, max_batch: int, labelled: str | None = None) -> str:
    """The text of config.pbtxt; `labelled`: the output whose classes labels.txt names.

    Raises: ValueError where Triton could not feed the file.
    """
    given = {t.name for t in model.graph.initializer}
    optional = [i.name for i in model.graph.input if i.name in given]
    if optional:
        raise ValueError(
            f"input `{optional[0]}` has a default, which Triton cannot batch: export with --class-input required"
        )
    values = [*model.graph.input, *model.graph.output]
    batched = all(not dims(v) or dims(v)[0] == -1 for v in values)
    if batched and not all(dims(v) for v in values):
        raise ValueError("a tensor without any axis cannot be batched: give it one, or fix the batch")
    inputs = ",\n".join(tensor(v, batched) for v in model.graph.input)
    outputs = ",\n".join(tensor(v, batched, v.name == labelled) for v in model.graph.output)
    return (
        f"name: {json.dumps(name)}\n"
        'platform: "onnxruntime_onnx"\n'
        f"max_batch_size: {max_batch if batched else 0}\n"
        f"input [\n{inputs}\n]\n"
        f"output [\n{outputs}\n]\n" + ("dynamic_batching { }\n" if batched else "")
    )


def write_repository(file: Path, repository: Path, name: str, max_batch: int = 8) -> Path:
    """Write the model's folder into the repository; the folder. Raises: ValueError, FileExistsError."""
    model = onnx.load(file, load_external_data=False)
    told = {p.key: p.value for p in model.metadata_props}
    labels = json.loads(told.get("onnxcam.labels", "null"))
    scores = json.loads(told["onnxcam.export"])["output"] if "onnxcam.export" in told else model.graph.output[0].name
    text = configuration(model, name, max_batch, scores if labels else None)
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(file, folder / "1" / "model.onnx")
    external = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    for location in sorted(external):
        (folder / "1" / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.parent / location, folder / "1" / location)
    if labels:
        (folder / "labels.txt").write_text("\n".join(" ".join(str(label).split()) for label in labels) + "\n", "utf-8")
    (folder / "config.pbtxt").write_text(text, "utf-8")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--name", help="of the model in Triton (default: the file's, without .onnx)")
    parser.add_argument("--max-batch", type=int, default=8, metavar="N", help="where the batch is open (default 8)")
    arguments = parser.parse_args()
    name = arguments.name or arguments.model.name.removesuffix(".onnx").removesuffix(".cam")
    try:
        folder = write_repository(arguments.model, arguments.repository, name, arguments.max_batch)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder / "config.pbtxt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
