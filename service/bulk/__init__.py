"""Batch processing without HTTP: `python -m service.bulk project|score|generate`.

`sources` reads the inputs, `pipeline` runs them through the model, also for `--local`, `shards`
makes records of them, `output` keeps complete shards, `run` distributes the missing ones in this
process or on Ray Data. `docs/bulk.md` is the user's guide.
"""
