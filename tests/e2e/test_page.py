"""The page in a real browser: what every run of the tests tries. More in tests/slow/browser."""

import numpy as np

from tests.contract.data import pixels
from tests.contract.harness import Service
from tests.slow.browser.conftest import browser as browser
from tests.slow.browser.conftest import service as service
from tests.slow.browser.visit import Browser, visiting


def test_a_drawing_is_made_real_while_it_is_drawn(browser: Browser, service: Service) -> None:
    """With motion: an example is shown at load, tiles and walk come by themselves, a stroke
    replaces the example.
    """
    with visiting(browser, service.url) as visit:
        visit.settled()
        assert visit.one("#tiles img").count() == 16
        visit.draw()
        visit.settled()
        made = visit.picture("#made")
        seen = visit.picture("#seen")
        assert made.shape == seen.shape == (28, 28)
        assert seen.max() == 255  # there is ink, light on dark
        assert (seen[:, :4] == 0).all()  # and no noise of the example
        assert (made != seen).any()
        visit.verdict()
        saved = visit.saved("Save picture")
        assert saved.name == "real.png"
        large = pixels(saved.read_bytes(), "L")
        assert large.shape == (512, 512)
        assert (large[4:-4, 4:-4] == np.kron(made, np.ones((18, 18), np.uint8))).all()
