"""The engine trains systems: it compiles, shards, saves, resumes, logs and ends runs, whatever they learn.

In reading order: `system` (the contract), `state`, `step`, `run`; beside them `mesh`, `hooks`, `writers`,
`progress`, `memory`. Nothing here knows a classifier or sees a configuration.
"""
