import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import capacity
from benchmarks.harness.processes import ROOT
from benchmarks.harness.tables import RESULTS
from benchmarks.pods import (
    DEMANDS,
    Assumed,
    Measured,
    cpu_pod,
    faster,
    gpu_pod,
    measured,
    sized,
    sizes,
    stepped,
    wire_bytes,
)

PAGE = ROOT / "docs" / "capacity.md"


@pytest.fixture(scope="module")
def found() -> Measured:
    return measured()


@pytest.mark.slow
def test_the_page_is_what_the_script_says(found: Measured) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(capacity._MARKED.findall(text)) != set()
    assert [name for _, name, _ in capacity._MARKED.findall(text)] == list(capacity.SECTIONS)
    filled = capacity.fill(text, found, Assumed())
    assert filled == text, "run `python -m benchmarks.capacity --fill docs/capacity.md`"


def test_what_the_page_says_in_words(found: Measured) -> None:
    single, many = found.forms
    assumed = Assumed()
    assert found.front_ms(single) > found.model_core_ms  # more on the request than on the model
    assert found.encode_core_ms < found.front_ms(single) / 4
    assert found.front_ms(many) < found.front_ms(single) / 3
    for factor in (0.25, 1.0, 4.0):
        assert gpu_pod(found, single, faster(assumed, factor)).limit == "HTTP and pictures"
    hundred = stepped(found, single, gpu_pod(found, single, assumed), 100)
    assert hundred.limit == "the model"
    for size in sizes(found, assumed):  # what one node's network carries is more than a pod can do
        assert size.pod.per_s * wire_bytes(size.form, assumed) * 8e-9 < assumed.link_gbit


def test_a_pod_without_gpu_does_what_was_measured(found: Measured) -> None:
    for form in found.forms:
        pod = cpu_pod(found, form)
        assert pod.per_s == form.per_s == pytest.approx(min(pod.front_per_s, pod.device_per_s))
        assert stepped(found, form, pod, 1).per_s == pytest.approx(form.per_s)
        assert stepped(found, form, pod, 1000).per_s < form.per_s / 100


def test_pods_are_enough_also_when_one_is_gone(found: Measured) -> None:
    assumed = Assumed()
    found_sizes = sizes(found, assumed)
    assert len(found_sizes) == len(DEMANDS) * 4
    for size in found_sizes:
        assert size.pods >= 2
        assert size.demand <= size.pods * size.pod.per_s * assumed.most_busy
        assert size.demand <= (size.pods - 1) * size.pod.per_s
        fewer = replace(size, pods=size.pods - 1)
        enough = fewer.demand <= fewer.pods * fewer.pod.per_s * assumed.most_busy
        assert not (enough and fewer.demand <= (fewer.pods - 1) * fewer.pod.per_s)


def test_sizes_by_hand(found: Measured) -> None:
    form = replace(found.forms[0], per_s=100.0)
    pod = cpu_pod(found, form)
    assert [sized(demand, form, pod, Assumed()).pods for demand in (1, 70, 100, 141, 700, 701)] == [2, 2, 2, 3, 10, 11]


def test_a_mark_that_names_nothing(found: Measured) -> None:
    with pytest.raises(ValueError, match="expected one of costs"):
        capacity.fill("<!-- capacity: nothing -->\n<!-- end -->\n", found, Assumed())


def test_a_page_is_filled_with_other_assumptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- capacity: assumptions -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr("sys.argv", ["capacity", "--gpu-row-ms", "0.125", "--fill", str(page)])
    assert capacity.main() == 0
    text = page.read_text()
    assert "| `--gpu-row-ms` | 0.125 |" in text
    assert "old" not in text
    assert text.startswith("a\n")
    assert text.endswith("<!-- end -->\nb\n")


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        measured(tmp_path)
    shutil.copy(RESULTS / "runtime.json", tmp_path)
    (tmp_path / "service.json").write_text(json.dumps({"benchmark": "service"}))
    with pytest.raises(ValueError, match="lacks 'single_pictures'"):
        measured(tmp_path)


@pytest.mark.parametrize("options", [["--fill", "no/such/page.md"], ["--most-busy", "1.5"]])
def test_what_cannot_be_done_is_told_in_a_line(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["capacity", *options])
    assert capacity.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
