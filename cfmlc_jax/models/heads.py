"""The linear head: features to the logits that patches and wholes are judged by."""

import flax.linen as nn

from cfmlc_jax.models.layers import Linear

ATTENTIONS = ("none", "self", "cross")


class LinearHead(nn.Module):
    """Logits (whole, attention, score), each [b, v, k] or None, of pooled features [b, v, d].

    Attributes:
        num_classes: k.
        attention: "none": one layer, the whole's (plain training; patches only at inference);
            "self": a second layer serves as both attention and score of the patches;
            "cross": one layer each for attention and score.
    """

    num_classes: int
    attention: str

    @nn.compact
    def __call__(self, features):
        whole = Linear(self.num_classes, name="whole")(features)
        if self.attention == "none":
            return whole, None, None
        if self.attention == "self":
            patch = Linear(self.num_classes, name="patch")(features)
            return whole, patch, patch
        attention = Linear(self.num_classes, name="attention")(features)
        return whole, attention, Linear(self.num_classes, name="score")(features)
