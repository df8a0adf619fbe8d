"""Batch processing without HTTP: `python -m service.bulk project|score|generate`.

`sources` reads the inputs, `pipeline` runs them through the model, also for `--local`, `run`
makes records of them, shard by shard, in this process or on Ray Data, and `output` keeps complete
shards. `docs/bulk.md` is the user's guide.
"""
