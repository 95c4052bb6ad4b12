"""The measures of context on a split without known truth, and their files.

1. Pairs: the context classes whose presence raises a target's frequency most in the training labels.
2. On the split: excess of false positives and context AUC over these pairs, as the evaluation reports them; and both,
   with the mAP, when images are weighted such that their labels are as independent as the images allow
   (`causal.decorrelation`): what co-occurrence explains then counts least.
3. On pictures without the objects of a context class (`removal`): how far the score of the removed class falls, and how
   far the scores of its targets move with it. A target that is still there, and one that was never there, should not move.
   Classes that are neither show what the filling itself does.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.causal.decorrelation import decorrelate
from cfmlc_jax.context.removal import Removal
from cfmlc_jax.data.sources.checks import class_rates
from cfmlc_jax.metrics import cooccurrence
from cfmlc_jax.metrics.agreement import Agreement, agreement
from cfmlc_jax.metrics.bootstrap import interval, mean_of_defined, ratio, weighted_mean_average_precision
from cfmlc_jax.metrics.context_auc import weighted_context_auc
from cfmlc_jax.results import multi_label
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.scores import Scores, probabilities
from cfmlc_jax.results.split import Estimate
from cfmlc_jax.results.tables import markdown, with_interval

RESAMPLES = 200


@dataclass(frozen=True)
class Use:
    """How much one prediction depends on context on a split; percent and percentage points.

    mAP, excess_fpr, context_auc: of the split as it is.
    reweighted_mAP, reweighted_excess_fpr, reweighted_context_auc: of the weighted split.
    excess_by_pair: of each pair, NaN where it is undefined.
    """

    mAP: float
    excess_fpr: Estimate
    context_auc: Estimate
    reweighted_mAP: float
    reweighted_excess_fpr: float
    reweighted_context_auc: float
    excess_by_pair: list[float]


@dataclass(frozen=True)
class Move:
    """What the removal of a class does to some logits.

    entries: the number of (picture, class) in the means.
    logit: mean fall of the logit, with its interval.
    before, after: share of entries whose probability is above 0.5, percent.
    """

    entries: int
    logit: Estimate
    before: float
    after: float


@dataclass(frozen=True)
class Moves:
    """What the removals do to one prediction.

    removed: the removed class.
    present: targets of the removed class that are in the picture, and stay.
    absent: targets of the removed class that are not in the picture: before and after are false positives.
    others: classes that are not in the picture and no targets of the removed class.
    """

    removed: Move
    present: Move
    absent: Move
    others: Move


@dataclass(frozen=True)
class Findings:
    """All measures of a checkpoint on a split.

    checkpoint, split, images: what was measured.
    pairs: target and context by name, with the probability of the target beside the context and overall, in training.
    effective_share: effective sample size of the weighted split, as a share of its images.
    correlation: root mean square correlation of labels, before and after weighting.
    uses: by prediction.
    removals: number of pictures from which a class was removed.
    moves: by prediction; empty if nothing was removed.
    true_moves: of scenes, the same when scenes are rendered without the object; else empty.
    agreement: of scenes, of the falls in `moves` with the true ones, for the removed classes and for absent targets.
    """

    checkpoint: str
    split: str
    images: int
    pairs: list[dict]
    effective_share: float
    correlation: tuple[float, float]
    uses: dict[str, Use]
    removals: int = 0
    moves: dict[str, Moves] = dataclasses.field(default_factory=dict)
    true_moves: dict[str, Moves] = dataclasses.field(default_factory=dict)
    agreement: dict[str, Agreement] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict:
        """Only JSON types; None for what is undefined."""
        return _plain(dataclasses.asdict(self))


def uses(scores: Scores, alphas: Sequence[float], pairs: np.ndarray, share: float, seed: int):
    """The use of context by prediction, and the `Decorrelation` of the split.

    Args:
        scores: of the split.
        alphas: strengths of the effects.
        pairs: [m, 2], target and context.
        share: least effective sample size of the weighted split, as a share of its images.
        seed: of the bootstrap.
    """
    weighting = decorrelate(scores.labels, share)
    weights = weighting.weights[None]
    context = multi_label.context(scores, alphas, pairs, np.random.default_rng(seed))
    result = {}
    for prediction, logits in scores.predictions(alphas).items():
        use = context.predictions[prediction]
        mean_ap = weighted_mean_average_precision(logits, scores.labels, "sklearn")
        excess = cooccurrence.weighted_excess(
            probabilities(logits), scores.labels, multi_label.THRESHOLD, pairs
        )
        auc = weighted_context_auc(logits, scores.labels, pairs)
        result[prediction] = Use(
            mAP=float(mean_ap(np.ones_like(weights))[0]),
            excess_fpr=use.excess_fpr,
            context_auc=use.context_auc,
            reweighted_mAP=float(mean_ap(weights)[0]),
            reweighted_excess_fpr=100 * float(mean_of_defined(excess(weights))[0]),
            reweighted_context_auc=100 * float(mean_of_defined(auc(weights))[0]),
            excess_by_pair=list(use.by_pair),
        )
    return result, weighting


def counted(
    removals: Sequence[Removal], labels: np.ndarray, pairs: np.ndarray, kept: np.ndarray
) -> dict[str, np.ndarray]:
    """The entries (picture, class) of each part of `Moves`: bool [r, k] by name.

    Args:
        removals: r of them.
        labels: [r, k], of the pictures as they are.
        pairs: [m, 2], target and context.
        kept: bool [r, k], whether a label's objects are not covered by the hole.
    """
    classes = labels.shape[1]
    is_target = np.zeros((classes, classes), bool)
    is_target[pairs[:, 1], pairs[:, 0]] = True
    removed = np.eye(classes, dtype=bool)[[removal.label for removal in removals]]
    targets = is_target[[removal.label for removal in removals]]
    present, absent = labels > 0, labels == 0
    return {
        "removed": removed,
        "present": targets & present & kept & ~removed,
        "absent": targets & absent,
        "others": absent & ~targets & ~removed,
    }


def moves(
    before: dict[Prediction, np.ndarray],
    after: dict[Prediction, np.ndarray],
    entries: dict[str, np.ndarray],
    seed: int,
) -> dict[Prediction, Moves]:
    """What the removals do to each prediction.

    Args:
        before: logits [r, k] of the r pictures as they are, by prediction.
        after: without the class.
        entries: from `counted`.
        seed: of the bootstrap.
    """
    return {
        prediction: Moves(
            **{
                name: _move(before[prediction], after[prediction], rows, seed)
                for name, rows in entries.items()
            }
        )
        for prediction in before
    }


def agreement_with_truth(
    falls: np.ndarray, true_falls: np.ndarray, entries: dict[str, np.ndarray], seed: int
) -> dict[str, Agreement]:
    """Agreement of the falls of logits after filling with those of scenes rendered without the object: two [r, k]."""
    return {
        name: agreement(
            falls[rows],
            true_falls[rows],
            generator=np.random.default_rng(seed),
            images=np.nonzero(rows)[0],
            resamples=RESAMPLES,
        )
        for name, rows in entries.items()
        if name in ("removed", "absent") and rows.any()
    }


def _move(before, after, entries, seed) -> Move:
    falls, counts = (np.where(entries, before - after, 0).sum(axis=1), entries.sum(axis=1))
    if not counts.sum():
        nothing = Estimate(np.nan, np.nan, np.nan)
        return Move(0, nothing, np.nan, np.nan)
    # Pictures are resampled, not entries: those of one picture move together.
    logit = interval(
        lambda weights: ratio(weights @ falls, weights @ counts),
        len(falls),
        generator=np.random.default_rng(seed),
        resamples=RESAMPLES,
    )
    return Move(
        entries=int(counts.sum()),
        logit=Estimate(*(float(end) for end in logit)),
        before=100 * float((before[entries] > 0).mean()),
        after=100 * float((after[entries] > 0).mean()),
    )


def named_pairs(labels: np.ndarray, pairs: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """Each pair with its names and its probabilities in the training labels."""
    conditional = cooccurrence.conditional_probability(labels)
    rate = class_rates(np.asarray(labels))
    both = cooccurrence.counts(labels)
    return [
        {
            "target": class_names[target],
            "context": class_names[context],
            "beside": float(conditional[target, context]),
            "overall": float(rate[target]),
            "images": int(both[target, context]),
        }
        for target, context in pairs
    ]


def tables(findings: Findings) -> str:
    """All measures as Markdown."""
    before, after = findings.correlation
    parts = [
        f"# Context: {findings.checkpoint} on {findings.split}",
        f"{findings.images} images; {len(findings.pairs)} pairs, the strongest of the training labels. "
        f"Weighted: {findings.effective_share:.0%} effective images, correlation of labels {before:.3f} -> {after:.3f}. "
        "mAP in percent (sklearn); excess of false positives in percentage points; context AUC: 50 ignores the context.",
        markdown(
            [
                "prediction",
                "mAP",
                "excess FPR",
                "context AUC",
                "mAP, weighted",
                "excess FPR, weighted",
                "context AUC, weighted",
            ],
            [
                [
                    name,
                    f"{use.mAP:.1f}",
                    with_interval(use.excess_fpr),
                    with_interval(use.context_auc),
                    f"{use.reweighted_mAP:.1f}",
                    f"{use.reweighted_excess_fpr:.1f}",
                    f"{use.reweighted_context_auc:.1f}",
                ]
                for name, use in findings.uses.items()
            ],
        ),
    ]
    if findings.moves:
        parts += [
            f"## {findings.removals} pictures without the objects of a context class",
            "Fall of the logit (95 % interval), and the share of entries that are reported at threshold 0.5 before and "
            "after. Only the removed class should move; the others show what the filling does.",
            _moves_table(findings.moves),
        ]
    if findings.true_moves:
        parts += ["Rendered without the object, which is the truth:", _moves_table(findings.true_moves)]
        parts += [
            f"Combined, {name}: r {each.pearson.value:.2f}, slope {each.slope:.2f} of the falls after filling over the true "
            f"ones ({each.effects} entries)."
            for name, each in findings.agreement.items()
        ]
    rows = [
        [pair["target"], pair["context"], f"{pair['beside']:.2f}", f"{pair['overall']:.2f}", str(pair["images"]),
         *(_points(use.excess_by_pair[i]) for use in findings.uses.values())]
        for i, pair in enumerate(findings.pairs)
    ]  # fmt: skip
    parts += [
        "## Pairs",
        markdown(
            [
                "target",
                "context",
                "P(target beside context)",
                "P(target)",
                "images with both",
                *(f"excess FPR, {name}" for name in findings.uses),
            ],
            rows,
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _moves_table(moves: dict[str, Moves]) -> str:
    header = ["prediction"]
    for entries in ("removed class", "target, present", "target, absent", "other, absent"):
        header += [entries, "reported"]
    rows = [
        [name, *(text for move in vars(each).values() for text in _move_cells(move))]
        for name, each in moves.items()
    ]
    return markdown(header, rows)


def _move_cells(move: Move) -> tuple[str, str]:
    if not move.entries:
        return "–", "–"
    value, low, high = move.logit
    ends = f" [{low:.2f}, {high:.2f}]" if np.isfinite([low, high]).all() else ""
    return f"{value:.2f}{ends}", f"{move.before:.0f} % -> {move.after:.0f} %"


def _points(value: float) -> str:
    return f"{value:.1f}" if np.isfinite(value) else "–"


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
