"""The luma and the chroma of colour images."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from service.artifact.pixels import Levels, to_levels, to_rows
from service.domain.tasks import split_luma, with_chroma

images = st.tuples(st.just(3), st.integers(1, 6), st.integers(1, 6)).flatmap(lambda shape: arrays(np.uint8, shape))


@given(images)
def test_luma_and_chroma_make_the_image_again(levels: Levels) -> None:
    luma, chroma = split_luma(to_rows(levels))
    made = to_levels(with_chroma(luma, chroma))
    np.testing.assert_array_equal(np.broadcast_to(made, levels.shape), levels)
    y = np.asarray(Image.fromarray(np.moveaxis(levels, 0, -1)).convert("YCbCr"))[..., 0]
    assert np.abs(to_levels(luma)[0].astype(int) - y).max() <= 1


@given(arrays(np.uint8, (4, 5)))
def test_a_grey_image_has_no_chroma(levels: Levels) -> None:
    row = to_rows(levels[None])
    luma, chroma = split_luma(np.repeat(row, 3, axis=0))
    assert chroma is None
    np.testing.assert_array_equal(luma, row)
