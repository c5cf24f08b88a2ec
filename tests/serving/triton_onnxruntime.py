"""ONNX Runtime behind Triton's Python backend, in place of the C++ backend `onnxruntime` that Triton's wheel lacks.

Like that one it loads 1/model.onnx, holds the configuration against what ONNX Runtime reports of the file, joins along
the batch what Triton hands over together, and splits the results. Reshapes, labels and queues are Triton's own.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]

TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(uint8)": "TYPE_UINT8"}


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        config = json.loads(args["model_config"])
        batch = [-1] if config["max_batch_size"] else []
        for key, values in (("input", self.session.get_inputs()), ("output", self.session.get_outputs())):
            entries = {e["name"]: (e["data_type"], batch + e.get("reshape", {"shape": e["dims"]})["shape"])
                       for e in config[key]}  # fmt: skip
            # Of a scalar the C++ backend wants the axes to be 1.
            held = {v.name: (TYPES[v.type], [d if isinstance(d, int) else -1 for d in v.shape] or [1]) for v in values}
            if entries != held:
                raise triton.TritonModelException(f"{key}: the configuration says {entries}, the file {held}")

    def execute(self, requests: list[Any]) -> list[Any]:
        time.sleep(0.1)  # what arrives meanwhile queues up, so that Triton has something to join
        # DLPack: of arrays the wheel's Python backend understands NumPy 1's only.
        given = [{i.name(): np.from_dlpack(i) for i in request.inputs()} for request in requests]
        feeds = {name: np.concatenate([g[name] for g in given]) for name in given[0]}
        ends = np.cumsum([len(g["class_index"]) for g in given])[:-1]
        names = [o.name for o in self.session.get_outputs()]
        results = [np.split(np.atleast_1d(value), ends) for value in self.session.run(names, feeds)]
        return [
            triton.InferenceResponse([triton.Tensor.from_dlpack(n, v) for n, v in zip(names, values, strict=True)])
            for values in zip(*results, strict=True)
        ]
