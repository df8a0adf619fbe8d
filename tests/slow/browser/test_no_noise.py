"""The page with an imported network that makes nothing of noise."""

from pathlib import Path

from service.artifact.card import Origin
from tests.contract.harness import serving, settings
from tests.helpers.onnx_models import write_model
from tests.slow.browser.visit import Browser, visiting


def test_what_needs_noise_is_hidden_and_the_rest_works(browser: Browser, tmp_path: Path) -> None:
    origin = Origin(file="denoiser.onnx", sha256="0" * 64, folded=("y = x − network(x)",))
    write_model(tmp_path, "denoiser", imported=True, origin=origin)
    write_model(tmp_path, "toy")
    chosen = settings(tmp_path, default_model="denoiser")
    with (
        serving(chosen) as service,
        visiting(browser, service.url, reduced_motion="reduce") as visit,
    ):
        visit.draw()
        visit.settled()
        for section in ("#generate", "#walk", "[data-example=drawn]"):
            assert not visit.one(section).is_visible()
        assert visit.one("#noise").is_visible()
        visit.one("#about").scroll_into_view_if_needed()
        visit.one("#about-facts").filter(has_text="denoiser.onnx, y = x − network(x)").wait_for()
        visit.one("#lasting").scroll_into_view_if_needed()
        visit.one("#strip img").first.wait_for()
        visit.choose("Toy")
        visit.says("generate", "16 pictures of seed")
        assert visit.one("[data-example=drawn]").is_visible()
