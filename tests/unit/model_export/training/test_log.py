from pathlib import Path

from model_export.training.log import Log


def test_what_lies_past_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    kept = '{"step": 4, "stage": "imle", "rec": 0.5}\n'
    path.write_text(kept + '{"step": 5, "stage": "imle"}\n[1]\n{"step": null}\n{"ste')
    with Log(path, 4):
        pass
    assert path.read_text() == kept
