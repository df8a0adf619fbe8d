"""The header fields that proxies and browsers add to a request, beside those of a plain client."""

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

GATEWAYS: dict[str, dict[str, str]] = {
    "AWS ALB": {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Port": "443",
        "X-Amzn-Trace-Id": "Root=1-67891233-abcdef012345678912345678",
    },
    "ingress-nginx": {
        "X-Request-ID": "0af7651916cd43dd8448eb211c80319c",
        "X-Real-IP": "203.0.113.9",
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Host": "ign.example",
        "X-Forwarded-Port": "443",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Scheme": "https",
        "X-Scheme": "https",
    },
    "Envoy": {
        "X-Envoy-Expected-Rq-Timeout-Ms": "15000",
        "X-Envoy-Attempt-Count": "1",
        "X-B3-TraceId": "80f198ee56343ba864fe8b2a57d3eff7",
        "X-B3-Sampled": "1",
        "traceparent": TRACEPARENT,
    },
    "Cloudflare": {
        "CF-Ray": "230b030023ae2822-SJC",
        "CF-Connecting-IP": "203.0.113.9",
        "CF-Visitor": '{"scheme":"https"}',
        "CDN-Loop": "cloudflare; loops=1",
        "X-Forwarded-For": "203.0.113.9",
    },
    "Google Cloud": {"X-Cloud-Trace-Context": "105445aa7843bc8bf206b12000100000/1;o=1", "Via": "1.1 google"},
    "Traefik": {"X-Forwarded-Server": "a1b2", "X-Forwarded-Port": "443", "X-Forwarded-For": "203.0.113.9"},
    "fetch of Chrome": {
        "Origin": "http://127.0.0.1:8000",
        "Referer": "http://127.0.0.1:8000/",
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "Accept-Language": "en-GB,en;q=0.9",
        "sec-ch-ua": '"Chromium";v="128", "Not;A=Brand";v="24"',
        "sec-ch-ua-mobile": "?0",
        "sec-ch-ua-platform": '"Linux"',
        "Sec-Fetch-Dest": "empty",
        "Sec-Fetch-Mode": "cors",
        "Sec-Fetch-Site": "same-origin",
    },
    "a client of its own": {"Idempotency-Key": "1", "X-Unknown": "x"},
}
