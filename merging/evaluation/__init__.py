"""The one evaluator: what a model scores on tasks.

``requests`` reads a suite's datasets once, for a context and a vocabulary; ``evaluate``
answers them with any number of models, of which it knows a function that scores and one
that generates; ``rows`` makes result rows of the scores. A sweep's steps, `merging
evaluate` and the choice of λ all go this way.
"""

from merging.evaluation.batches import prepare
from merging.evaluation.predictions import Prediction, Predictor, predict
from merging.evaluation.requests import Requests, requests
from merging.evaluation.rows import ModelLabels, rows
from merging.evaluation.scores import DatasetScore, Record, TemplateScore, evaluate

__all__ = [
    "DatasetScore",
    "ModelLabels",
    "Prediction",
    "Predictor",
    "Record",
    "Requests",
    "TemplateScore",
    "evaluate",
    "predict",
    "prepare",
    "requests",
    "rows",
]
