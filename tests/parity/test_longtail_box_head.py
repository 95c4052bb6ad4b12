"""The box head for LVIS against the reference's numbers, weights and inputs by rule.

Three training batches without an update of weights, then evaluation. In the full-size runs every 16th
row of the logits is kept, and the first and the last.
"""

import functools

import jax
import numpy as np
import pytest
import reference

from cfmlc_jax import losses
from cfmlc_jax.causal import effects
from cfmlc_jax.models.heads import box

GOLDEN = "longtail/box_head.npz"
# The reference's number of classes counts the background in "lvis_old"; ours never does.
RUNS = [(variant, size) for variant in box.VARIANTS for size in ("small", "full")]


def roi_features(seed):
    x = np.random.RandomState(seed).standard_normal((16, 256, 7, 7)).astype(np.float32)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@functools.cache
def dense_layers():
    dense = {"shared_fcs_0": (1024, 12544), "shared_fcs_1": (1024, 1024), "fc_reg": (4, 1024)}
    return {
        name: {
            "kernel": reference.fill(f"{name.replace('fcs_', 'fcs.')}.weight", shape).T,
            "bias": reference.fill(f"{name.replace('fcs_', 'fcs.')}.bias", shape[:1]),
        }
        for name, shape in dense.items()
    }


def filled(rows):
    """Variables by the rules, with a fresh mean feature."""
    params = dense_layers() | {"fc_cls": {"kernel": reference.fill("fc_cls", (rows, 1024)).T}}
    return {"params": params, "batch_stats": {"fc_cls": {"mean_feature": np.zeros(1024, np.float32)}}}


@pytest.mark.parametrize(("variant", "size"), RUNS)
def test_box_head(golden, variant, size):
    prefix = f"{variant}_{size}/"
    expected = {
        name.removeprefix(prefix): array for name, array in golden(GOLDEN).items() if name.startswith(prefix)
    }
    rows, columns = int(expected["rows"]), expected["columns"]
    background, epsilon = box.VARIANTS[variant]
    module = box.BoxHead(rows - 1, epsilon=epsilon)
    variables = filled(rows)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)

    @jax.jit
    def train(variables, x, labels):
        def loss(kernel):
            params = variables["params"] | {"fc_cls": {"kernel": kernel}}
            outputs = module.apply(variables | {"params": params}, x)
            target = jax.nn.one_hot(labels, rows)
            # Its label > 0 is part of the numbers; with the background first it means the foreground.
            mean = box.mean_feature_after(
                variables["batch_stats"]["fc_cls"]["mean_feature"],
                outputs.features,
                labels,
                background=background,
                rows=rows,
                counted="positive_labels",
            )
            return losses.cross_entropy(outputs.factual, target).mean(), (outputs, mean)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"]["fc_cls"]["kernel"])

    for s in range(3):
        labels = expected[f"labels{s}"].astype(np.int32)
        (loss, (outputs, mean_feature)), gradient = train(variables, roi_features(50 + s), labels)
        variables = variables | {"batch_stats": {"fc_cls": {"mean_feature": mean_feature}}}
        close(mean_feature[::4], expected["causal_embed_seq"][s])
    close(outputs.factual[:4, columns], expected["train_cls_score"])
    close(outputs.deltas, expected["train_bbox_pred"])
    close(loss, expected["ce"])
    total, magnitude, *first = expected["grad_fc_cls"]
    gradient = np.asarray(gradient, np.float64).T
    np.testing.assert_allclose(
        [gradient.sum(), np.abs(gradient).sum()], [total, magnitude], atol=1e-5 * magnitude
    )
    close(gradient[0, :8], first)

    outputs = jax.jit(module.apply)(variables, roi_features(99))
    close(outputs.features[:, :64], expected["eval_feature"])
    close(outputs.deltas, expected["eval_bbox_pred"])
    close(outputs.factual[:4, columns], expected["eval_plain_logits"])
    effect = effects.total_direct_effect(outputs.factual, outputs.counterfactual, box.ALPHA)
    close(effect[:4, columns], expected["eval_tde_logits"])
    exempt = functools.partial(
        box.background_exempt,
        outputs.factual,
        outputs.counterfactual,
        background=background,
    )
    # Probabilities of 1,200 classes are about 1e-3: relative.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(exempt()[:4, columns], expected["eval_prob_bg_exempt"])
    for name in expected:
        if name.startswith("eval_prob_bg_exempt_alpha_"):
            alpha = float(name.rpartition("_")[2])
            close(exempt(alpha=alpha)[:4, columns], expected[name])
    scores = box.average_stages([exempt()], second_softmax=True)
    close(scores[:4, columns], expected["scores_after_second_softmax"])
