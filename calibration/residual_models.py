"""Residual models as plain data: fitted by scikit-learn, kept as JSON numbers, evaluated without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


class Tree(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A regression tree [nodes]: a leaf has feature -1; others go left where the feature is at most the threshold."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]


class Ridge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="ridge"):
    """A linear model of standardised features."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float


class Boosting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="boosting"):
    """A start and a sum of trees, each times the rate."""

    start: float
    rate: float
    trees: tuple[Tree, ...]


ResidualModel = Ridge | Boosting
KINDS = ("ridge", "boosting")


def fit_residuals(kind: str, features: FloatArray, residuals: FloatArray) -> ResidualModel:
    """Fit log(measured / predicted) [rows] on features [rows, features]; wild rows are held at three robust sizes."""
    spread = 1.4826 * float(np.median(np.abs(residuals - np.median(residuals))))
    middle = float(np.median(residuals))
    target = np.clip(residuals, middle - 3 * spread, middle + 3 * spread) if spread > 0 else residuals
    return _ridge(features, target) if kind == "ridge" else _boosting(features, target)


def _ridge(features: FloatArray, target: FloatArray) -> Ridge:
    from sklearn.linear_model import RidgeCV

    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    found = RidgeCV(alphas=np.geomspace(1, 1000, 7)).fit((features - mean) / scale, target)
    weights = np.asarray(found.coef_, dtype=float)
    return Ridge(
        mean=_numbers(mean), scale=_numbers(scale), weights=_numbers(weights), intercept=float(found.intercept_)
    )


def _boosting(features: FloatArray, target: FloatArray) -> Boosting:
    from sklearn.ensemble import GradientBoostingRegressor

    rate = 0.08
    found = GradientBoostingRegressor(
        n_estimators=60, max_depth=3, learning_rate=rate, subsample=0.7, min_samples_leaf=5, random_state=0
    ).fit(features, target)
    trees = tuple(_tree(item[0].tree_) for item in found.estimators_)
    return Boosting(start=float(target.mean()), rate=rate, trees=trees)


def _tree(found: Any) -> Tree:
    leaf = found.children_left < 0
    return Tree(
        feature=tuple(int(value) for value in np.where(leaf, -1, found.feature)),
        threshold=_numbers(np.where(leaf, 0.0, found.threshold)),
        left=tuple(int(value) for value in found.children_left),
        right=tuple(int(value) for value in found.children_right),
        value=_numbers(found.value[:, 0, 0]),
    )


def _numbers(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values.tolist())


def correction(model: ResidualModel, features: Sequence[float]) -> float:
    """Predicted log(measured / predicted) of one row."""
    if isinstance(model, Ridge):
        terms = zip(features, model.mean, model.scale, model.weights, strict=True)
        return model.intercept + sum((value - mean) / scale * weight for value, mean, scale, weight in terms)
    return model.start + model.rate * sum(_follow(tree, features) for tree in model.trees)


def _follow(tree: Tree, features: Sequence[float]) -> float:
    node = 0
    while tree.feature[node] >= 0:
        smaller = features[tree.feature[node]] <= tree.threshold[node]
        node = tree.left[node] if smaller else tree.right[node]
    return tree.value[node]
