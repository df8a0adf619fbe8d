"""Many pictures without HTTP: `python -m service.bulk project|score|generate`.

`sources` reads, `workshop` sends pictures through the service's own parts, `output` keeps what is made in shards that
are there wholly or not at all, `run` and `on_ray` decide who does which shard. `docs/bulk.md` says how it is used.
"""
