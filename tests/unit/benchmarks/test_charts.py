"""The charts of the README show the stored results."""

import re

from benchmarks.charts import charts, quality, speed

PEERS = {
    "png_at_32_connections": [
        {"entry": "mosec ×1", "requests_per_s": 10.0},
        {"entry": "mosec ×2", "requests_per_s": 30.0},
        {"entry": "ign as it comes", "requests_per_s": 20.0},
    ]
}
METRICS = {
    "restoration": {
        "blur_1.5": {"input": {"accuracy": 0.5}, "f": {"accuracy": 0.75}},
        "unmeasured": {"input": {"psnr": 3.0}, "f": {"psnr": 4.0}},
    }
}


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def test_the_best_of_each_system_is_drawn() -> None:
    found = texts(speed(PEERS))
    assert {"mosec", "ign-service", "30", "20"} <= set(found)
    assert speed(PEERS) == speed(PEERS)


def test_each_damage_with_an_accuracy_is_drawn() -> None:
    found = texts(quality(METRICS))
    assert {"blur 1.5", "50.0", "75.0"} <= set(found)
    assert "unmeasured" not in found


def test_the_stored_charts_are_those_of_the_stored_results() -> None:
    stale = [file.name for file, content in charts().items() if texts(file.read_bytes()) != texts(content)]
    assert not stale, "run `python -m benchmarks.charts`"
