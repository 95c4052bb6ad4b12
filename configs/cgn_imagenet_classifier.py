"""An invariant classifier of ImageNet: ResNet-50 with a head for each mechanism (Sauer & Geiger, ICLR 2021, section 4.2).

    python -m cfmlc_jax.torch_weights resnet50-0676ba61.pth pretrained/resnet50_in1k --model=resnet50 --normalise=imagenet
    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_imagenet --out=records --records=1200000
    python -m cfmlc_jax.main --config=configs/cgn_imagenet_classifier.py --config.data.counterfactuals.path=records
    python -m cfmlc_jax.main --mode=plan --config=configs/cgn_imagenet_classifier.py --classes=1000 --images=1281167

Data: data/imagenet, or --config.data.root=DIR, with train.csv and val.csv, each line `file,label`, and the images that they
name (docs/data.md). Labels, and the names in the records (config.generator.class_names of the generator), are those of
ImageNet's folders, "n01440764" say: records must have the same classes as the data.

Batches are as many real images as generated ones, 32 of each as in the reference's command for one GPU. The backbone's norms
are frozen. No score is published for this command alone, and it was never run here: ImageNet is not at hand.
"""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.task, config.method, config.loss.name = "single_label", "invariant", "cross_entropy"
    config.init_from = "pretrained/resnet50_in1k"
    config.data.source, config.data.root = "table", "data/imagenet"
    config.data.normalise = "imagenet"
    config.data.counterfactuals.path = "runs/cgn_imagenet/counterfactuals"
    config.data.counterfactuals.share = 0.5
    config.views.image_size, config.views.transform = 224, "area_crop"
    config.views.area_crop.jitter = 0.0
    config.model.name = "resnet50"
    config.model.frozen_norms = True
    config.optim.name = "sgd"
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = 1e-4
    # A tenth after every 15 epochs.
    config.optim.sgd.warmup_epochs = 0
    config.optim.sgd.milestones = (16, 31)
    config.optim.sgd.drop = 0.1
    config.optim.ema_decay = 0.0
    config.train.batch_size = 64
    config.train.epochs = 45
    config.train.early_stop = False
    config.effect.kinds = ()
    return config
