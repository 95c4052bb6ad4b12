"""A classifier of views: one backbone for all views of all images, and a head."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.images import IMAGES
from cfmlc_jax.models.layers.normalise import Normalisation, standardise


@flax.struct.dataclass
class Outputs:
    """Outputs of the classifier for every view.

    whole: [b, v, k] logits for use on whole images.
    attention: [b, v, k] how much a patch resembles each class; None with `attention="none"`.
    score: [b, v, k] a patch's evidence for each class; None with `attention="none"`.
    cells: attention and score of the p cells of each view's map, two [b, v, p, k]; None without such cells.
    features: the backbone's intermediate maps and "pooled", each [b, v, …]; if views have several sizes,
        of the first array of views only.
    counterfactual: [b, v, k] the part of `whole` that lies along the mean feature of training, of the first
        array likewise; None for heads without a mean feature.
    cosine: [b, v] cosine between features and mean feature; None likewise.
    mechanisms: [b, v, k] logits of each mechanism by name, of the first array likewise, of which `whole` is the
        mean; None for other heads.
    """

    whole: Any
    attention: Any
    score: Any
    cells: tuple[Any, Any] | None
    features: dict[str, Any]
    counterfactual: Any = None
    cosine: Any = None
    mechanisms: Any = None


# Names for `jax.default_matmul_precision`; "default" is the platform's own.
DEFAULT_PRECISION = "default"
PRECISIONS = (DEFAULT_PRECISION, "high", "highest")


class Classifier(nn.Module):
    """Views [b, v, h, w, 3] in [0, 1], or several such arrays of views of different sizes -> `Outputs`.

    The backbone is mapped over images, with the views of one image as its batch. If it were mapped over
    views, a mesh would gather every image on every device. Batch statistics are computed over images and
    views together; each array of another size has its own, and updates the running statistics once more.

    Attributes:
        backbone: images [b, h, w, 3] -> features: maps of its stages, the last map as "map" [b, h, w, d],
            and "pooled" [b, d].
        head: features, each [b, v, …] -> `output.HeadOutput`.
        cells: features -> (attention, score) of a map's cells, or None.
        frozen: regular expressions of the parameters that are not trained, such as "backbone/conv1/kernel".
        normalisation: mean and deviation by which pixels are standardised before the backbone; None: they are not.
        precision: of products and convolutions of float32, one of `PRECISIONS`. "default": GPUs compute them in
            TF32 and TPUs in one pass of bfloat16. "highest": in float32.
    """

    backbone: nn.Module
    head: nn.Module
    cells: nn.Module | None = None
    frozen: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    precision: str = DEFAULT_PRECISION

    def __call__(self, views: Any, *, train: bool) -> Outputs:
        """Run backbone and head on all views; v counts the views of all arrays, in their order.

        Args:
            views: the first view of each image is the whole image.
            train: whether running statistics are updated.
        """
        if not isinstance(views, Sequence):
            views = [views]
        parts = [self._of_one_size(each, train) for each in views]
        if len(parts) == 1:
            return parts[0]
        whole, attention, score = (
            None if rows[0] is None else jnp.concatenate(rows, axis=1)
            for rows in zip(*((part.whole, part.attention, part.score) for part in parts))
        )
        first = parts[0]
        return first.replace(whole=whole, attention=attention, score=score)

    def _of_one_size(self, views, train):
        if self.precision == DEFAULT_PRECISION:
            return self._outputs(views, train)
        with jax.default_matmul_precision(self.precision):
            return self._outputs(views, train)

    def _outputs(self, views, train):
        if self.normalisation is not None:
            views = standardise(views, self.normalisation)
        mapped = nn.vmap(
            lambda backbone, one_image: backbone(one_image, train=train),
            in_axes=0,
            out_axes=0,
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False, "dropout": True},
            axis_name=IMAGES,
        )
        features = mapped(self.backbone, views)
        output = self.head(features, train=train)
        cells = None if self.cells is None else self.cells(features, train=train)
        return Outputs(
            output.whole,
            output.attention,
            output.score,
            cells,
            features,
            output.counterfactual,
            output.cosine,
            output.mechanisms,
        )
