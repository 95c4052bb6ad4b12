"""A counterfactual network of a few features on embedded digits, and three classifiers: seconds."""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default("cgn")
    config.generator.latent = config.generator.ngf = 4
    config.critic.ndf = 8
    config.train.batch_size = 160
    config.train.epochs = 1
    config.train.log_every = 3
    config.counterfactuals.num_records = 600
    config.counterfactuals.shard_size = 200
    config.classifiers.names = ("plain", "invariant", "heads")
    config.classifiers.epochs = 1
    config.classifiers.batch_size = 200
    config.evaluate.batch_size = 200
    return config
