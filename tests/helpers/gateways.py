"""The header fields that proxies and browsers add to a request, beside those of a plain client."""

from benchmarks.load_generator.messages import HEADER_SETS

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = {"Accept-Encoding": "gzip, deflate, br, zstd", "Idempotency-Key": "1", "X-Unknown": "x"}
GATEWAYS = {name: dict(headers) for name, headers in HEADER_SETS.items()} | {
    "a client of its own": OWN
}
