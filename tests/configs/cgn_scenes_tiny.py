"""A counterfactual network of a few features on the objects of few scenes, and a few composites: seconds."""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default("cgn")
    config.data.source = "scene_objects"
    config.data.scenes.num_train = 200
    config.generator.latent = config.generator.ngf = 4
    config.critic.ndf = 8
    config.train.batch_size = 32
    config.train.epochs = 1
    config.train.log_every = 1
    config.counterfactuals.num_records = 40
    config.counterfactuals.shard_size = 20
    config.classifiers.names = ()
    config.evaluate.batch_size = 200
    return config
