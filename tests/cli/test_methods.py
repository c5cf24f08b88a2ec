"""The table of methods, and their options on the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from colours import Result

from onnxcam import Explainer
from onnxcam.methods import METHODS


def test_the_table_says_of_every_method_what_it_needs_and_what_it_costs(onnxcam: Callable[..., Result]) -> None:
    rows = {row["name"]: row for row in json.loads(onnxcam("methods", "--json").out)}
    assert list(rows) == list(METHODS) and next(iter(rows)) == "gradcam"
    assert (rows["gradcam"]["needs"], rows["gradcam"]["forward_passes"]) == (["gradients"], "1")
    assert (rows["eigengradcam"]["needs"], rows["eigengradcam"]["forward_passes"]) == (
        ["gradients", "linear algebra"],
        "1",
    )
    assert (rows["scorecam"]["needs"], rows["scorecam"]["forward_passes"]) == (["loop"], "1 + K")
    assert rows["rise"]["explains"] == "input" and rows["fem"]["class_discriminative"] is False
    assert rows["rise"]["options"]["p"] == {"default": 0.5, "about": "probability that a cell is seen"}
    lines = onnxcam("methods").out.splitlines()
    assert next(line for line in lines if line.lstrip().startswith("rise")).split()[1:5] == ["loop", "1", "+", "masks"]


def test_options_seed_and_batch_size_reach_the_method(folder: Path, onnxcam: Callable[..., Result]) -> None:
    options = ("--method", "rise", "--option", "masks=9", "--option", "cells=3", "--seed", "4", "--batch-size", "2")
    assert onnxcam("explain", "colours.onnx", "dog.png", *options, "-o", "map.npy").code == 0
    chosen = {"masks": 9, "cells": 3}
    expected = Explainer("colours.onnx", method="rise", method_options=chosen, seed=4)("dog.png").values
    np.testing.assert_allclose(np.load("map.npy"), expected, rtol=0, atol=1e-5)
    record = json.loads(onnxcam("explain", "colours.onnx", "dog.png", *options, "--json").out)
    assert record["provenance"]["method_options"] == {"masks": 9, "cells": 3, "p": 0.5}
    assert (record["provenance"]["seed"], record["provenance"]["batch_size"]) == (4, 2)


def test_wrong_options_are_refused(refused: Callable[..., Result]) -> None:
    explain = ("explain", "colours.onnx", "dog.png")
    refused([*explain, "--option", "masks"], 2, "`--option masks` is not NAME=VALUE", "masks=500")
    refused([*explain, "--method", "rise", "--option", "mask=5"], 2, "no option `mask`", "`masks` (1000)")
    refused([*explain, "--option", "masks=5"], 2, "method `gradcam` has no option `masks`", "its options: none")
    refused([*explain, "--method", "rise", "--option", "masks=few"], 2, "option `masks` takes int, not `few`", "random")
    refused([*explain, "--method", "rise", "--batch-size", "0"], 2, "batch size 0", "1 or more")
    refused([*explain, "--method", "saliency", "--layer", "a"], 2, "explains the input", "leave the layer out")
