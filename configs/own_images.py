"""Your own images: a folder with train.csv and val.csv, each line `file,label;label`.

    python -m cfmlc_jax.main --config=configs/own_images.py --config.data.root=DIR

From public weights instead of random ones: --config.init_from=torchvision:resnet50.IMAGENET1K_V2; python -m
cfmlc_jax.weights list names all.

Files are named relative to the folder. Classes are those of classes.txt (one a line) if it is
there, else all labels of train.csv in alphabetical order. `-label` is a class known to be absent, `?label` an unknown
one; with --config.data.unmentioned=unknown so is every class that a line does not mention.
`python -m cfmlc_jax.check DIR` looks for mistakes in tables and files. The recipe is that of COCO with fewer
epochs and a smaller model; change what you like, here or by flags.
"""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "table"
    config.data.exif = True
    config.data.normalise = "auto"  # as the weights of init_from expect, if there are any
    config.model.name = "resnet50"
    config.views.image_size = 224
    config.train.batch_size = 64
    config.train.epochs = 30
    config.evaluate.batch_size = 64
    # 90 steps, of 200 images, are enough for the averaged weights to leave their beginning.
    config.optim.ema_decay = 0.97
    return config
