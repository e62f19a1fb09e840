"""Networks of stages in a row, without Spark, and their natural units: what trainings of candidates are tested on."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Graph, Vertex
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats, LabelStats, StageModule
from sparkdiff.stages.bayes import NaiveBayes
from sparkdiff.stages.clustering import Clusters
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression
from sparkdiff.stages.one_vs_rest import OneVsRest
from sparkdiff.stages.support_vector import LinearSVC
from sparkdiff.stages.survival import AFTSurvivalRegression
from sparkdiff.stages.trees import GBTClassification, GBTRegression, VotingTrees
from sparkdiff.training.parameters import NaturalUnits
from tests.support.random_trees import grown

F64 = torch.float64


def network(*stages: tuple[StageModule, Sequence[str], str]) -> Network:
    """A network of (module, columns it reads, column it writes); the last one is the predictor."""
    vertices, made = [], dict[str, int]()
    for i, (module, reads, writes) in enumerate(stages):
        versions = tuple((c, made.get(c, -1)) for c in reads)
        loss = ((module.censor, -1),) if isinstance(module, AFTSurvivalRegression) else ()
        vertices.append(
            Vertex(
                i,
                (i,),
                f"stage{i}",
                type(module).__name__,
                None,
                tuple(reads),
                (writes,),
                module=module,
                reads=versions,
                parametric=any(p.requires_grad for p in module.parameters()),
                lossReads=loss,
                parents=frozenset(made[c] for c in reads if c in made),
            )
        )
        made[writes] = i
    return Network(Graph(str.lower, tuple(vertices), head_position=len(stages) - 1), range(len(stages)))


def natural_units(net: Network, widths: dict[str, int], options: Options) -> NaturalUnits:
    """Units for inputs of mean 0 and standard deviation 1, and labels of 2."""
    x = {}
    for i in net.positions:
        n = widths[net.graph.vertices[i].reads[0][0]]
        leaves = torch.full((len(net.trees()[i].leaves) if i in net.trees() else 0,), 99)
        sums = {"rows": torch.full((net.module(i).classes,), 99)} if isinstance(net.module(i), Clusters) else {}  # type: ignore[arg-type]
        x[i] = FeatureStats(
            torch.zeros(n, dtype=F64), torch.ones(n, dtype=F64), torch.full((n,), 99), leaves, sums=sums
        )
    classes = torch.full((net.head.classes,), 99) if net.head.classes else torch.empty(0, dtype=torch.int64)
    return NaturalUnits.of(net, x, LabelStats(1.0, 2.0, 0.0, 9.0, classes), options)[0]


def trees(kind: type[Trees], seed: int, shown: str = "predictionCol", number: int = 3) -> Trees:
    """Trees of chance on random_trees.WIDTH features, of which two are categories."""
    random = np.random.default_rng(seed)
    voting = issubclass(kind, VotingTrees)
    nodes = grown(random, 1 if kind.single else number, 3 if voting else 0)
    weights = torch.from_numpy(random.normal(size=number)) if kind in (GBTRegression, GBTClassification) else None
    made = kind(nodes, weights, (shown,), f"trees{seed}")
    made.classes = 3 if voting else 2 if kind is GBTClassification else 0
    return made


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def glr(width: int, family: str = "poisson", link: str = "log", seed: int = 1) -> GeneralizedLinearRegression:
    return GeneralizedLinearRegression(
        0.3 * normal(width, seed=seed),
        torch.tensor(0.4, dtype=F64),
        True,
        family=family,
        link=link,
        link_power=math.nan,
        variance_power=math.nan,
        shows_link=False,
    )


def least_squares(width: int, seed: int = 1) -> LinearRegression:
    return LinearRegression(0.3 * normal(width, seed=seed), torch.tensor(0.4, dtype=F64), 1.0, True, None)


def support_vector(width: int) -> LinearSVC:
    intercept = torch.tensor(0.1, dtype=F64)
    return LinearSVC(0.3 * normal(width, seed=1), intercept, True, threshold=0.0, shown=LinearSVC.SHOWN)


def survival(width: int) -> AFTSurvivalRegression:
    return AFTSurvivalRegression(
        0.3 * normal(width, seed=1),
        torch.tensor(0.4, dtype=F64),
        torch.tensor(0.7, dtype=F64),
        True,
        quantiles=torch.tensor([0.5], dtype=F64),
        shown=("predictionCol",),
        uid="survival",
        censor="censor",
    )


def one_vs_rest(width: int, classes: int = 3) -> OneVsRest:
    models = [logistic(width) for _ in range(classes)]
    for k, model in enumerate(models):
        model.coefficientMatrix.data += 0.2 * normal(1, width, seed=20 + k)
    return OneVsRest(models, shown=OneVsRest.SHOWN, by_array=False)


def bayes(kind: type[NaiveBayes], width: int, classes: int = 3) -> NaiveBayes:
    """With shares of features in a class that add up to less than 1, which both kinds can have."""
    theta = torch.log_softmax(normal(classes, width, seed=1), 1) - 0.3
    none = torch.empty(0, 0, dtype=F64)
    return kind(
        torch.log_softmax(normal(classes), 0), theta, none, shown=kind.SHOWN, thresholds=None, uid="bayes", column="x"
    )


def logistic(width: int, classes: int = 2, bounds: dict[str, Tensor] | None = None) -> LogisticRegression:
    rows = 1 if classes == 2 else classes
    return LogisticRegression(
        0.3 * normal(rows, width, seed=1),
        0.1 * normal(rows, seed=2),
        True,
        num_classes=classes,
        thresholds=None,
        threshold=0.5,
        bounds=bounds or {},
        shown=("rawPredictionCol", "probabilityCol", "predictionCol"),
        uid="logistic",
    )
