"""A classifier of views: one backbone for all views of all images, and a head."""

from typing import Any

import flax.linen as nn
import flax.struct

from cfmlc_jax.models.layers import IMAGES


@flax.struct.dataclass
class Outputs:
    """What the classifier says of every view.

    whole: [b, v, k] logits meant for the whole image.
    attention: [b, v, k] how much a patch resembles each class, or None with `attention="none"`.
    score: [b, v, k] a patch's evidence for each class, or None.
    features: the backbone's intermediate maps and "pooled", each [b, v, …].
    """

    whole: Any
    attention: Any
    score: Any
    features: dict[str, Any]


class Classifier(nn.Module):
    """Outputs for views [b, v, h, w, 3] in [0, 1].

    The backbone is mapped over images, with the views of one image as its batch: mapped over
    views, a mesh would gather every image on every device. Batch statistics are joint over both.

    Attributes:
        backbone: images [b, h, w, 3] -> features: maps of its stages, "map", the last, [b, h, w, d],
            and "pooled" [b, d].
        head: features, each [b, v, …] -> (whole, attention, score).
        frozen: regular expressions of parameters, as "backbone/conv1/kernel", that are not trained.
    """

    backbone: nn.Module
    head: nn.Module
    frozen: tuple[str, ...] = ()

    def __call__(self, views, *, train: bool) -> Outputs:
        """Run backbone and head on all views."""
        mapped = nn.vmap(
            lambda backbone, one_image: backbone(one_image, train=train),
            in_axes=0,
            out_axes=0,
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False, "dropout": True},
            axis_name=IMAGES,
        )
        features = mapped(self.backbone, views)
        whole, attention, score = self.head(features, train=train)
        return Outputs(whole=whole, attention=attention, score=score, features=features)
