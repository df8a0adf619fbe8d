"""The options of every response with pictures: their format, their size, and how a sheet arranges them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.images import Resample

Format = Literal["png", "jpeg", "webp", "npy"]


class PictureOptions(BaseModel):
    """How the pictures of a response look."""

    format: Annotated[Format, Field(description="Format of the base64 pictures in a JSON response.")] = "png"
    scale: Annotated[int, Field(ge=1, le=32, description="Factor that enlarges every picture.")] = 1
    resample: Annotated[
        Resample, Field(description="`nearest` repeats the pixels of enlarged pictures; `smooth` interpolates them.")
    ] = "nearest"
    columns: Annotated[
        int | None,
        Field(ge=1, le=65_535, description="Columns of a sheet; default: a near-square sheet, or the strip of a path."),
    ] = None
    gap: Annotated[
        int, Field(ge=0, le=64, description="Pixels between the pictures of a sheet, in the background colour.")
    ] = 0

    @property
    def has_layout(self) -> bool:
        """Whether an option changes the size of the response's pictures or sheet."""
        return self.scale > 1 or self.gap > 0 or self.columns is not None
