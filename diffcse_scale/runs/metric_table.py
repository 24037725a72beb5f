"""All numbers of metrics.jsonl, including those of the objective's terms, in the order in which they are shown."""

from __future__ import annotations

from diffcse_scale.objective import gradients_in_parameters
from diffcse_scale.objective.metric import Metric
from diffcse_scale.objective.objective import TERMS
from diffcse_scale.recipe import ObjectiveRecipe

# seconds of a log line's window by their use; the seconds of an evaluation are in its own row
TRAINING, WAITING, CHECKPOINTS, EVALUATION = (
    "training_seconds",  # steps, including the wait for their batches
    "waiting_seconds",
    "checkpoint_seconds",  # only while training waited for them
    "evaluation_seconds",
)
DEVELOPMENT = "dev_spearman"
OF_EVALUATIONS = "dev_"  # prefix of the names of an evaluation's results

_SPEED = "all devices; without evaluations"
_ALL = (
    Metric(DEVELOPMENT, "Development Spearman x 100", "evaluations", panel="development Spearman x 100"),
    Metric("dev_spearman_cls"),
    Metric("dev_spearman_mean"),
    *(metric for term in TERMS for metric in term.evaluated),
    Metric("loss", "Loss", "InfoNCE + lambda x RTD", "loss", "{:.4f}", is_logarithmic=True),
    *(term.metrics[0] for term in TERMS),
    *(metric for term in TERMS for metric in term.metrics[1:]),
    *gradients_in_parameters.METRICS,  # only in rows of steps that measured them
    Metric("rtd_weight", "Lambda", "where it follows objective.rtd_share", pattern="{:.2e}", is_logarithmic=True),
    Metric("gradient_norm", "Gradient norm", "before clipping", "|g|", "{:.3f}", is_logarithmic=True),
    Metric("learning_rate", "Learning rate", "", "lr", "{:.1e}"),
    Metric("sentences_per_second", "Sentences per second", _SPEED, "sent/s", "{:,.0f}"),
    Metric("real_tokens_per_second", "Real tokens per second", _SPEED, pattern="{:,.0f}"),
    Metric("padding_share", "Padding", "share of positions", pattern="{:.1%}"),
    Metric("peak_memory_gb", "Peak memory, GB", "largest of all ranks, since the start", "GB", "{:.2f}"),
    # accelerators only
    Metric("peak_reserved_gb", "Reserved memory, GB", "peak of what the allocator held", pattern="{:.2f}"),
    Metric("slowest_rank"),
    Metric(
        "slowest_ratio", "Slowest rank", "its time before it meets the others, by the median rank's", pattern="{:.2f}"
    ),
    # drawn together as the timing breakdown
    *(Metric(name) for name in (TRAINING, WAITING, CHECKPOINTS, EVALUATION)),
)
METRICS = {metric.name: metric for metric in _ALL}


def of_steps(statistics: set[str]) -> list[Metric]:
    """The metrics that can be computed from a step with these statistics."""
    terms = {metric for term in TERMS if term.name in statistics for metric in term.metrics}
    if statistics.issuperset(gradients_in_parameters.NAMES):
        terms |= set(gradients_in_parameters.METRICS)
    return [metric for metric in METRICS.values() if metric.name == "loss" or metric in terms]


def is_measured(name: str, recipe: ObjectiveRecipe) -> bool:
    """Whether a metric is meaningful in a run with this recipe; the metrics of a term with weight 0 are not."""
    owners = [term for term in TERMS if name in {metric.name for metric in (*term.metrics, *term.evaluated)}]
    return all(term.is_computed(recipe) for term in owners)
