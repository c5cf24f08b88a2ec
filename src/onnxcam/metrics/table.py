"""The metrics that `onnxcam evaluate` knows; each says what it is in its row, and how in the function it calls."""

import math

import numpy as np

from onnxcam.metrics import faithfulness, localisation, randomisation, robustness
from onnxcam.metrics.coherence import adcc, arcc
from onnxcam.metrics.registry import metric
from onnxcam.metrics.sample import Sample
from onnxcam.metrics.sparsity import complexity, sparseness

FAITHFUL = ("insertion", "deletion", "road", "adcc", "average_drop", "increase")
LOCALISED = ("pointing_game", "energy")

_RISE = "Petsiuk et al., RISE, BMVC 2018"
_ROAD = "Rong et al., ROAD, ICML 2022"
_WACV = "Chattopadhay et al., Grad-CAM++, WACV 2018"
_ADCC = "Poppi et al., ADCC, CVPRW 2021"
_YEH = "Yeh et al., (In)fidelity and Sensitivity, NeurIPS 2019"
_ADEBAYO = "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018"
_ARRAS = "Arras et al., CLEVR-XAI, Information Fusion 2022"


@metric("insertion", better="higher", bounds=(0, 1), cost="steps + 1", paper=_RISE)
def _(s: Sample) -> float:
    return s.insertion.auc


@metric("deletion", better="lower", bounds=(0, 1), cost="steps + 1", paper=_RISE)
def _(s: Sample) -> float:
    return s.deletion.auc


@metric("road", better="higher", bounds=(-0.5, 0.5), cost="2 (percentiles + 1)", paper=_ROAD)
def _(s: Sample) -> float:
    return s.road


@metric("road_morf", better="lower", bounds=(-1, 1), cost="percentiles + 1", paper=_ROAD)
def _(s: Sample) -> float:
    return s.morf


@metric("road_lerf", better="higher", bounds=(-1, 1), cost="percentiles + 1", paper=_ROAD)
def _(s: Sample) -> float:
    return s.lerf


@metric("average_drop", better="lower", bounds=(0, 1), cost="2", paper=_WACV)
def _(s: Sample) -> float:
    return s.drop


@metric(
    "confidence_drop", better="lower", bounds=(0, 1), cost="2", paper="pytorch-grad-cam, DropInConfidence: not relative"
)
def _(s: Sample) -> float:
    return float(faithfulness.drop_in_confidence(*s.confidence))


@metric("increase", better="higher", bounds=(0, 1), cost="2", paper=_WACV)
def _(s: Sample) -> float:
    return float(faithfulness.increase_in_confidence(*s.confidence))


@metric("average_gain", better="higher", bounds=(0, 1), cost="2", paper="Zhang et al., Opti-CAM, CVIU 2024")
def _(s: Sample) -> float:
    return float(faithfulness.average_gain(*s.confidence))


@metric("infidelity", better="lower", bounds=(0, 1), cost="65", paper=_YEH)
def _(s: Sample) -> float:
    return faithfulness.infidelity(s.score, s.x, s.saliency, baseline=s.settings.baseline, seed=s.settings.seed)


@metric("adcc", better="higher", bounds=(0, 1), cost="2 and 1 map", paper=_ADCC)
def _(s: Sample) -> float:
    return adcc(s.coherency, complexity(s.saliency), s.drop)


@metric("arcc", better="higher", bounds=(0, 1), cost="2 (percentiles + 1) and 1 map", paper="pytorch-grad-cam, ARCC")
def _(s: Sample) -> float:
    return arcc(s.coherency, complexity(s.saliency), s.road)


@metric("coherency", better="higher", bounds=(0, 1), cost="1 map", paper=_ADCC)
def _(s: Sample) -> float:
    return s.coherency


@metric("complexity", better="lower", bounds=(0, 1), cost="none", paper=_ADCC)
def _(s: Sample) -> float:
    return complexity(s.saliency)


@metric("sparseness", better="higher", bounds=(0, 1), cost="none", paper="Gini index, Chalasani et al., ICML 2020")
def _(s: Sample) -> float:
    return sparseness(s.saliency)


@metric("max_sensitivity", better="lower", bounds=(0, math.inf), cost="10 maps", paper=_YEH)
def _(s: Sample) -> float:
    return robustness.max_sensitivity(s.explain, s.x, s.saliency, seed=s.settings.seed)


@metric("mprt", better="lower", bounds=(-1, 1), cost="a map of each randomised stage", paper=f"{_ADEBAYO}: the mean")
def _(s: Sample) -> float:
    return float(np.mean(s.cascade))


@metric(
    "mprt_last", better="lower", bounds=(-1, 1), cost="a map of each randomised stage", paper=f"{_ADEBAYO}: all layers"
)
def _(s: Sample) -> float:
    return s.cascade[-1]


@metric(
    "random_logit",
    better="lower",
    bounds=(-1, 1),
    cost="1 map",
    paper="Sixt et al., When Explanations Lie, ICML 2020; rank correlation in place of SSIM",
)
def _(s: Sample) -> float:
    other = s.other_class
    return math.nan if other is None else randomisation.rank_correlation(s.raw, s.raw_of_class(other))


@metric(
    "pointing_game",
    better="higher",
    bounds=(0, 1),
    cost="none",
    boxes=True,
    paper="Zhang et al., Excitation Backprop, ECCV 2016",
)
def _(s: Sample) -> float:
    return s.located(localisation.pointing_game)


@metric(
    "energy",
    better="higher",
    bounds=(0, 1),
    cost="none",
    boxes=True,
    paper="Wang et al., Score-CAM, CVPRW 2020; relevance mass accuracy of Arras et al., 2022",
)
def _(s: Sample) -> float:
    return s.located(localisation.energy_pointing_game)


@metric("rank_accuracy", better="higher", bounds=(0, 1), cost="none", boxes=True, paper=_ARRAS)
def _(s: Sample) -> float:
    return s.located(localisation.relevance_rank_accuracy)


@metric("iou", better="higher", bounds=(0, 1), cost="none", boxes=True, paper="pixels at or above half of the maximum")
def _(s: Sample) -> float:
    return s.located(localisation.iou)
