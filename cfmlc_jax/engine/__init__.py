"""The engine trains a system: it compiles, shards, saves, resumes, logs and stops a run.

Read in this order: `system` (what the engine expects of whatever it trains), `state`, `step`, `run`.
Their tools are `mesh`, `hooks`, `writers`, `progress` and `memory`. No file here knows about classifiers
or sees a configuration.
"""
