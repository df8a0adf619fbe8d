"""Apply f to rows with the client of Triton: `python examples/triton_client.py [HOST:PORT]
[MODEL]`.

It needs `pip install 'tritonclient[http]'` and prints the mean change of each application of f.
"""

import sys

import numpy as np
import tritonclient.http as triton


def main(address: str = "127.0.0.1:8000", model: str = "mnist") -> None:
    with triton.InferenceServerClient(address) as client:
        shape = client.get_model_metadata(model)["inputs"][0]["shape"][1:]
        rows = np.random.default_rng(7).standard_normal((4, *shape), np.float32)
        for step in range(1, 4):
            x = triton.InferInput("x", list(rows.shape), "FP32")
            x.set_data_from_numpy(rows)
            outputs = client.infer(model, [x], parameters={"steps": 1}).as_numpy("y")
            print(f"step {step}: mean |f(x) − x| = {np.abs(outputs - rows).mean():.4f}")
            rows = outputs


if __name__ == "__main__":
    main(*sys.argv[1:])
