"""The words of the OpenAPI document: its introduction, its tags, and a summary for every operation."""

from collections.abc import Mapping
from typing import Any, Final

# docs/images/drawn.png as `/project` prepares it, and the answer of the model `mnist`, side by side.
_BEFORE_AND_AFTER: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAADwAAAAcCAAAAAAYO4OYAAADNklEQVR42pVUbWhVdRx+fv+Xc+52t9vcFTZfyLW5YE1btplecLe5"
    "fRAKFEpEUbKMxKAPG4agFt1Jfcle0L4UBEm0IPBLSrCKQEUXzokvmJoVFRXbIgc33O45557/+fnh3rvdc7bF+n85nP85z+/leX6/"
    "hzTmP4cBZP7juwi/kiQs/KhypIADJYMFg8V0Sik8x3lwq3TV/85sPKAhlU43nu27ZTNHfyMGQPHXuuyTR70ImEy8o6W7bUmlN5ka"
    "fOOE0EGUitpUe09LtWC09u390oQz84fPBjFn7MZgTW/iWPrAP1Yk9+KPezRM9tqlFT01A+d2j3OYsODHkbNDvwAX3m3e1r7nqgrn"
    "dv/I0p0j512WSzNbOj/fdreA1lprbclEOgnAilWg9qM//bdQobXWmUymKLNa9HCdJgAg3TuZTVFZZhaT5ygGDgyqJk7vHP2CIk2b"
    "bLbIIvvXyfzOIalkTBvDUiqXXqk8dd2Ois1BiQXZL++Mh6ViA1CeAWx94u4nEa6nn8QQL6zJ7zezJoz8ZFt9x2ONlaev2CY6SwFA"
    "srqhIZnq/vfN72ePJ+uBTle73mi/seYaUVp84GULQe7yyWDOxZAil8Nfu9Y6ItoyAHhxgIS9cndpE6WciWy+Gh6zkjX1G1d9Void"
    "BnAGVGrbGxr8SSmq6W46VWCPyvfZBFAr25/qFpuu2kFxn/tZgCE4KASQsRXvd/mtv84uW8VidHugbyrRVX7PAJgJAJj9ez9s/k3u"
    "oNlgNgZ25cQ1nYaZgXLAXAhQKNY9YbpkCCxIFkyEyf/OX92UD0UlIsxYzDJaYoXAbt5xPKGk9Ceffi67vI7DdqQeSIjSTf0z+Dso"
    "Awv/xTP7N9S7OcdZdPzTR3Fo2AqPSdXhb95prVKCSG+6WDve65YvBu3rWD81emtkuPr1Fj5/cERzROZ1bWv2TFy5MLaxczn9vP1G"
    "uVQin37poYakhawfn/jgPa/Cj1ivaMo8mZBklOLcwKtTJSqKOucRb3x8XUtTcujgiJZmDt8m65Hn19fd+/btsemqSmBBeQPo5uav"
    "nQrD85k+FQc1shgBpCKYmzeV7c/vtTyf6TMDsClYuOfTfboFLyOoqANhAAAAAElFTkSuQmCC"
)

INTRODUCTION: Final = f"""
An **Idempotent Generative Network** is one function *f* from pictures to pictures, trained so that *f(f(z)) = f(z)*: it
turns noise into a picture, repairs a damaged or drawn picture, and leaves a real one as it is.

<img alt="A drawn 3, and the same 3 after f" height="112" src="data:image/png;base64,{_BEFORE_AND_AFTER}">

A first picture, and a drawing made real:

```sh
curl http://127.0.0.1:8000/generate -H 'Accept: image/png' -H 'Content-Type: application/json' -d '{{"seed": 7}}' \\
  -o digit.png
curl http://127.0.0.1:8000/project -H 'Accept: image/png' -F image=@drawing.png -o real.png
```

- **`Accept` selects the answer**: JSON with base64 pictures and numbers, one PNG, WebP, JPEG or `.npy` file, an
  animation (`/latent-interpolate`), or events while the model runs (`text/event-stream`).
- **The same seed gives the same picture**, alone, in any batch and under any load.
- **Pictures go in** as a form, as base64 in JSON, or as the raw body with the options in the query.
- **Every error is a problem document** (RFC 9457) with a stable `code`, and a `request_id` that is also in the log.
- **Keys**, where they are configured, go into `Authorization: Bearer KEY`: use *Authorize*.
- **Limits**: `GET /models` lists those in force. After 429 and 503, wait for `Retry-After` seconds.

[The page](../) draws, generates and interpolates. The Python client is `ign-client`. Clients for other languages can be
generated from this document, `/openapi.json`.
"""

TAGS: Final = (
    {
        "name": "Pictures",
        "description": "Make, repair, mix and measure pictures. All of them share one queue and its batches.",
    },
    {"name": "Service", "description": "Which models serve, within which limits, and how the service is."},
    {
        "name": "Open Inference Protocol",
        "description": "Version 2 of the protocol of KServe and Triton, with Triton's extensions for binary tensors, "
        "statistics and the model repository. Its clients work unchanged; rows are float32 in the model's range.",
    },
)

_OF_VERSION: Final = " (of one version)"
_SUMMARIES: Final[Mapping[str, str]] = {
    "generate": "Generate pictures from noise",
    "project": "Make pictures real",
    "latent_interpolate": "Walk between pictures",
    "latent_arithmetic": "Add and subtract pictures",
    "score": "Measure how real pictures look to the model",
    "models": "List the models and the limits",
    "model": "Show the card of a model",
    "healthz": "Is the process alive?",
    "readyz": "Can it serve?",
    "metrics": "Metrics for Prometheus",
    "server": "Name, version and extensions of the server",
    "live": "Is the process alive?",
    "ready": "Do all models serve?",
    "metadata": "Inputs and outputs of a model",
    "model_ready": "Does a model serve?",
    "config": "Triton's configuration of a model",
    "statistics": "Statistics of a model",
    "all_statistics": "Statistics of all models",
    "infer": "Apply f to rows",
    "index": "List the model repository",
    "load": "Load a model, or its new versions",
    "unload": "Unload a model",
}
_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "generate": "f^k(z): apply f `steps` times to latents `offset` … `offset + n − 1` of a seed. Picture i of a seed "
    "depends on nothing else. `record` returns steps on the way, `tolerance` stops a row that no longer changes, "
    "`noise_scale` takes more or less noise.\n\nSeveral pictures in one file are a contact sheet, with "
    "`columns` and a `gap`. `scale` enlarges pictures in every format.",
    "project": "f^k(x): apply f to pictures x, which makes drawings, noisy, damaged or half-hidden pictures look like "
    "those that the model learned.\n\nPictures are prepared for the model: turned by their EXIF orientation, resized "
    "(`resize`), light and dark exchanged if needed (`invert`). A `mask` limits the change to its white part; "
    "`strength` below 1 blends with the input.\n\nThe body is a form, JSON or one picture; the options in the query "
    "belong to the latter.",
    "latent_interpolate": "f^k along a path through 2 to 16 points, or over a grid between four. A point is a seed, a "
    "picture or a latent. A path as GIF, APNG or WebP is an animation, as PNG or JPEG a strip.",
    "latent_arithmetic": "f^k of a weighted sum of up to 16 seeds, pictures or latents: one picture.",
    "score": "How far f moves each picture (`distance`), and how that compares with held-out real pictures "
    "(`percentile`, `in_distribution`). A large distance marks outliers, changed data or a wrong polarity. No picture "
    "is returned.",
    "infer": "Apply f to the rows of the input `x`, `steps` times. Tensors are JSON numbers or little-endian bytes "
    "after the JSON.",
}


def describe(operation: dict[str, Any]) -> None:
    """Put the summary of an operation into its description, and a longer text where there is one.

    Raises:
        KeyError: the operation has no summary.
    """
    name = operation["operationId"].removesuffix("_version")
    suffix = _OF_VERSION if name != operation["operationId"] else ""
    operation["summary"] = _SUMMARIES[name] + suffix
    operation["description"] = _DESCRIPTIONS.get(name, operation["description"])
