"""The fields of counterfactual generative networks (`cgn.system`). The defaults are the reference's recipe for double-coloured digits."""

from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax.config import fields
from cfmlc_jax.config.part import Bounds, Part, Use
from cfmlc_jax.data.build import SOURCES
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators.critics import CRITICS
from cfmlc_jax.models.generators.mnist import INITIALISERS
from cfmlc_jax.models.generators.vgg16 import FEATURES

# Where the generator's style loss has a weight for each map of the features.
NUM_MAPS = 4
# The source whose records are objects of scenes: what is generated are scenes.
SCENE_OBJECTS = "scene_objects"
STAGES = ("plain", "invariant", "real_and_counterfactual", "heads", "decorrelated")


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "double_colored_digits"  # a name of `data.build.SOURCES` whose records have mechanisms
    data.root = ""  # folder of the data set; empty: $CFMLC_DATA/<source>, else data/<source>
    data.mechanisms = ConfigDict({"decorrelated": False})  # as in config/fields.py
    data.scenes = fields.scenes()  # scene_objects: of the scenes whose objects are cropped
    data.threads = 2  # threads in each worker that read images
    data.workers = (
        0  # worker processes; 0: use the main process. Batches do not depend on the number. -1: automatic
    )
    return data


def _generator() -> ConfigDict:
    generator = ConfigDict()
    generator.latent = 32  # size of the noise
    generator.ngf = 32  # features of the last layers
    generator.init = "orthogonal"  # a name of `models.generators.mnist.INITIALISERS`
    generator.gain = 0.2  # factor or deviation of the initial weights, and deviation of the norms' scales
    return generator


def _critic() -> ConfigDict:
    critic = ConfigDict()
    critic.name = "linear"  # a name of `models.generators.critics.CRITICS`
    critic.ndf = 512  # features: of the hidden layers (linear, projection), of the first layer (conv)
    critic.dropout = 0.4  # linear, projection: probability of dropout
    return critic


def _loss() -> ConfigDict:
    """Weights of the generator's losses; that of the critic's cost is 1."""
    loss = ConfigDict()
    loss.entropy = 0.3  # of the mask's entropy
    loss.sides = (
        0.0  # of the mask's mean along its sides, for objects that do not reach them; the reference has none
    )
    # Of the style distances of the features' maps, the shallowest first; they are squared.
    loss.style = (0.0, 0.05, 0.0, 0.05)
    # The features, a name of `models.generators.vgg16.FEATURES`. vgg16: as in the reference, with the weights
    # of `features_from`. random: a small network of random weights, where VGG-16's are not at hand.
    loss.features = "random"
    loss.features_from = ""  # vgg16: a PyTorch or safetensors file of torchvision's weights
    return loss


def _optim() -> ConfigDict:
    """Adam, for the generator and for the critic."""
    optim = ConfigDict()
    optim.learning_rate = 2e-4
    optim.b1 = 0.5
    optim.b2 = 0.999
    # Largest norm of a step's gradient, of the generator and of the critic each; 0: any, as in the reference.
    optim.clip = 0.0
    # Of the averaged weights of the generator, which draw counterfactuals. 0: the raw weights, as in the reference.
    optim.ema_decay = 0.0
    return optim


def _train() -> ConfigDict:
    train = ConfigDict()
    train.batch_size = 16  # real images, over all devices; as many are generated
    train.epochs = 15
    train.log_every = 100  # steps between two logs
    train.checkpoint_every = 0  # steps between further checkpoints; 0: save only after each epoch
    # What to do if after an epoch the masks are empty or full, or all alike. warn: say so. stop: end with an error.
    train.on_collapse = "warn"
    return train


def _counterfactuals() -> ConfigDict:
    """The records that are generated after training."""
    counterfactuals = ConfigDict()
    counterfactuals.num_records = 100_000
    # Images that share a shape, with other textures and backgrounds. scene_objects: composites have shapes of their own.
    counterfactuals.per_shape = 10
    counterfactuals.shard_size = 10_000  # records in a file
    # scene_objects: share of the composites that start from a generated background, and not from a real scene.
    counterfactuals.generated_backgrounds = 0.0
    return counterfactuals


def _classifiers() -> ConfigDict:
    """The classifiers that are trained after that, one after the other."""
    classifiers = ConfigDict()
    # plain: on real images, in which the mechanisms agree. invariant: on counterfactuals alone, as in the
    # reference. real_and_counterfactual: on both. heads: on both, with a head for each mechanism (method
    # "invariant" of a classifier). decorrelated: on real images whose mechanisms are independent, as in the
    # test split, for as many steps as on the records: what right counterfactuals of the same digits would do.
    classifiers.names = ("plain", "invariant")
    classifiers.epochs = 10
    classifiers.batch_size = 64
    return classifiers


SECTIONS: dict[str, Any] = {
    "system": lambda: "cgn",  # configurations without this field are of classifiers
    "seed": fields.SECTIONS["seed"],
    "data": _data,
    "generator": _generator,
    "critic": _critic,
    "loss": _loss,
    "optim": _optim,
    "train": _train,
    "counterfactuals": _counterfactuals,
    "classifiers": _classifiers,
    "evaluate": lambda: ConfigDict({"batch_size": 500}),  # images, over all devices
    "mesh": fields.SECTIONS["mesh"],
    "report": fields.SECTIONS["report"],
}

_WIDTH = Bounds(1, 8192)
_BATCH = fields.BOUNDS["train.batch_size"]
BOUNDS = {
    "seed": fields.BOUNDS["seed"],
    "data.threads": fields.BOUNDS["data.threads"],
    "data.workers": fields.BOUNDS["data.workers"],
    "data.scenes.bias": fields.BOUNDS["data.scenes.bias"],
    "data.scenes.num_train": fields.BOUNDS["data.scenes.num_train"],
    "data.scenes.num_test": fields.BOUNDS["data.scenes.num_test"],
    "generator.latent": _WIDTH,
    "generator.ngf": _WIDTH,
    "generator.gain": Bounds(open=True),
    "critic.ndf": _WIDTH,
    "critic.dropout": Bounds(0, 0.99),
    "optim.learning_rate": Bounds(open=True),
    "optim.b1": Bounds(0, 0.9999),
    "optim.b2": Bounds(0, 0.999999),
    "optim.ema_decay": Bounds(0, 0.999999),
    "train.batch_size": _BATCH,
    "train.epochs": fields.BOUNDS["train.epochs"],
    "train.log_every": Bounds(1),
    "counterfactuals.num_records": Bounds(1, 100_000_000),
    "counterfactuals.per_shape": Bounds(1, 10_000),
    "counterfactuals.shard_size": Bounds(1, 10_000_000),
    "counterfactuals.generated_backgrounds": Bounds(0, 1),
    "classifiers.epochs": Bounds(1, 1_000_000),
    "classifiers.batch_size": _BATCH,
    "evaluate.batch_size": _BATCH,
    "mesh.fsdp": Bounds(1),
}


def _choices():
    return {
        "data.source": [name for name, opening in SOURCES.items() if opening.has_mechanisms],
        "generator.init": INITIALISERS,
        "critic.name": CRITICS,
        "loss.features": FEATURES,
        "train.on_collapse": ("warn", "stop"),
        "classifiers.names": STAGES,
    }


def _check(config: ConfigDict) -> None:
    fields.check_report(config)
    if len(config.loss.style) != NUM_MAPS:
        raise InputError(
            f"config.loss.style has {len(config.loss.style)} weights; give {NUM_MAPS}, one for each map of the features"
        )
    if (config.loss.features == "vgg16") != bool(config.loss.features_from):
        raise InputError(
            f"config.loss.features is {config.loss.features!r} and config.loss.features_from "
            f"{config.loss.features_from!r}: 'vgg16' needs the file of "
            "torchvision's weights; 'random' has none"
        )
    if config.data.source == SCENE_OBJECTS:
        if config.classifiers.names:
            raise InputError(
                f"config.classifiers.names has {config.classifiers.names[0]!r}, but data.source 'scene_objects' gives "
                "multi-label scenes, which classifiers of single objects cannot use: set it to (), and train on them by "
                "--config=configs/scenes.py --config.data.counterfactuals.path=FOLDER"
            )
        return
    records, per_shape = config.counterfactuals.num_records, config.counterfactuals.per_shape
    if records % per_shape or config.counterfactuals.shard_size % per_shape:
        raise InputError(
            f"config.counterfactuals.per_shape {per_shape} must divide num_records {records} and shard_size "
            f"{config.counterfactuals.shard_size}: images that share a shape are in one file"
        )


def _uses(config: ConfigDict) -> list[Use]:
    of_scenes = config.data.source == SCENE_OBJECTS
    return [
        Use(("critic.dropout",), config.critic.name in ("linear", "projection")),
        Use(("data.scenes.", "counterfactuals.generated_backgrounds"), of_scenes),
        Use(("data.mechanisms.", "counterfactuals.per_shape"), not of_scenes),
        *fields.report_uses(config),
    ]


PART = Part(
    sections=SECTIONS,
    bounds=BOUNDS,
    choices=_choices,
    paths=("data.root", "loss.features_from"),
    neutral=("data.root", "data.threads", "data.workers", "loss.features_from", "counterfactuals.", "classifiers.",
             "evaluate.", "mesh.", "report.", "train.on_collapse"),
    unique=("classifiers.names", "report.writers"),
    expand=lambda config: None,
    check=_check,
    check_training=lambda config: None,
    uses=_uses,
)  # fmt: skip
