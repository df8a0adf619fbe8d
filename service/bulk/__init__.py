"""Batch processing without HTTP: `python -m service.bulk project|score|generate`.

`readers` reads the inputs, `pipeline` runs the model, `output` writes complete shards, `local` and `ray_data`
distribute the shards. `docs/bulk.md` is the user's guide.
"""
