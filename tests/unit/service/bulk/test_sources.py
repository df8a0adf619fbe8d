"""Folders, archives, tables and URLs, and images that fail."""

import asyncio
import errno
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from service.bulk.pipeline import Item
from service.bulk.sources import Files, Listing, open_source
from service.domain.errors import RequestError, StartupError
from service.domain.latents import FloatRows
from service.runtime.onnx_model import OnnxModel
from tests.helpers.folders import write
from tests.helpers.pictures import save
from tests.unit.service.bulk.conftest import (
    Run,
    errors,
    manifest,
    output_files,
    output_images,
    picture,
    zipped,
)


def opened(source: Path | str, limit: int = 4096) -> Files:
    return open_source(Listing(str(source), None, lambda *_: None), column="image", limit=limit)


def fetch(source: Files, start: int, stop: int) -> list[Item]:
    return asyncio.run(source.fetch(start, stop))


@pytest.mark.parametrize(("source", "names"), [("in", ["a.png", "d.PNG"]), ("in/d.PNG", ["d.PNG"])])
def test_an_image_or_a_folder_is_a_source_without_its_hidden_files(
    source: str, names: list[str], bulk: Run, tmp_path: Path
) -> None:
    write(tmp_path / "in", dict.fromkeys((".b.png", ".git/c.png", "notes.txt"), b""))
    write(tmp_path / "in", {"a.png": picture(1), "d.PNG": picture(2)})
    assert bulk(f"score {source} out").status == 0
    assert [line["source"] for line in manifest()] == names


def test_an_unreadable_subfolder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.png": picture(1), "closed/b.png": picture(2), ".hidden/c.png": picture(3)})
    scan = os.scandir

    def refused(path: str) -> Any:
        if Path(path).name in ("closed", ".hidden"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(StartupError, match="closed: cannot be read: Permission denied"):
        opened(tmp_path)


IMAGE = Image.open(io.BytesIO(picture(1)))
CONTROL = "\x1b[31m\u202egnp.\n.png"
# Their contents, and the codes of those that fail.
FILES = {
    "00.png": (picture(0), None),
    "01.png": (picture(1), None),
    "02-empty.png": (b"", "undecodable_image"),
    "03-text.png": (b"no picture", "undecodable_image"),
    "04.png": (picture(4), None),
    "05-cut.png": (picture(5)[:60], "undecodable_image"),
    "06-long.jpg": (b"\xff\xd8\xff" + bytes(5000), "too_large"),
    "07-huge.png": (picture(7, (40, 40)), "image_too_large"),
    "08-light.png": (save(Image.new("L", (8, 8), 255)), "model_failure"),
    "09-pages.tif": (
        save(IMAGE, "TIFF", save_all=True, append_images=[IMAGE]),
        "undecodable_image",
    ),
    **{f"10.{form}": (save(IMAGE, form), None) for form in ("avif", "bmp", "gif", "tiff")},
    CONTROL: (b"bad", "undecodable_image"),
}


GOOD = sorted(name for name, (_, code) in FILES.items() if code is None)


def test_failed_images_are_listed_and_not_fatal(
    bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxModel.run

    def poisoned(self: OnnxModel, rows: FloatRows) -> FloatRows:
        if any((row == 1).all() for row in rows):  # wholly light
            raise RuntimeError("poison")
        return run(self, rows)

    monkeypatch.setattr(OnnxModel, "run", poisoned)
    write(tmp_path / "in", {name: content for name, (content, _) in FILES.items()})
    write(tmp_path / "good", {name: FILES[name][0] for name in GOOD})
    Path("in/08-link.png").symlink_to(tmp_path / "in" / "00.png")
    ran = bulk("project in out --invert false --shard 4")
    assert ran.status == 1
    lines = {line["source"]: line for line in manifest()}
    codes = {name: line["error"] for name, line in lines.items()}
    assert codes == {name: code for name, (_, code) in FILES.items()} | {"08-link.png": None}
    for line in lines.values():
        assert (
            (line["picture"] is None) == (line["distance"] is None) == (line["error"] is not None)
        )
        assert line["error"] is None or line["detail"] in ran.err
    assert lines[CONTROL]["detail"].startswith(r"\x1b[31m\u202egnp.\n.png: is not a PNG")
    assert "TIFF of 2 pages" in lines["09-pages.tif"]["detail"]
    assert bulk("project good alone --invert false").status == 0
    assert [Path("out", lines[name]["picture"]).read_bytes() for name in GOOD] == output_images(
        "alone"
    )


def test_a_file_name_that_is_not_utf_8(arrow: Any, bulk: Run, tmp_path: Path) -> None:
    write(tmp_path / "in", {"a.png": picture(1)})
    try:
        Path(os.fsdecode(b"in/\xfc.png")).write_bytes(b"bad")
    except OSError:
        pytest.skip("this file system takes no such names")
    assert "\\udcfc.png: is not a PNG" in bulk("project in tables --manifest parquet").err
    assert bulk("project in out").status == 1
    assert arrow.parquet.read_table("tables/manifest.parquet").to_pylist() == manifest()
    assert [line["source"] for line in manifest()] == ["a.png", "\\udcfc.png"]


def test_files_that_are_gone_or_grow_are_failed_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.png": picture(1), "b.png": picture(2)})
    source = opened(folder)
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(picture(2) + bytes(100))
    for item in fetch(source, 0, 2):
        assert isinstance(item.source, RequestError)
        assert item.source.detail.startswith(f"{item.name}: ")


def test_a_damaged_member_is_a_failed_image(bulk: Run, tmp_path: Path) -> None:
    data = bytearray(
        zipped(tmp_path / "in.zip", {"a.png": picture(1), "b.png": picture(2)}).read_bytes()
    )
    data[40:60] = bytes(20)  # of the first member
    (tmp_path / "in.zip").write_bytes(bytes(data))
    assert bulk("score in.zip out").status == 1
    assert errors() == ["unreadable", None]


def test_names_of_members_cannot_leave_the_output(bulk: Run, tmp_path: Path) -> None:
    names = ["../../up.png", "/etc/root.png", "a/b c?.png", f"{'ü' * 200}.png"]
    zipped(tmp_path / "in.zip", dict.fromkeys(names, picture(1)))
    assert bulk("project in.zip out").status == 0
    assert {line["source"] for line in manifest()} == set(names)
    assert sorted(os.listdir(tmp_path)) == ["in.zip", "out"]
    written = sorted(Path(name).name for name in output_files() if name.endswith(".png"))
    assert written == [
        "00000000-up.png",
        "00000001-root.png",
        "00000002-b_c_.png",
        "00000003-_.png",
    ]


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("pyarrow", "score in.parquet out"),
        ("pyarrow", "generate out --manifest parquet"),
        ("obstore.store", "score s3://bucket/pictures out"),
        ("ray", "generate out --ray"),
    ],
)
def test_a_missing_package_is_named(
    package: str, command: str, bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"in.parquet": b"PAR1"})
    monkeypatch.setitem(sys.modules, package, None)
    ran = bulk(command)
    assert ran.status == 2
    assert {package.partition(".")[0], "install"} <= set(
        ran.err.lower().replace("'", " ").replace(":", " ").split()
    )
    assert ran.err.count("\n") == 1
    assert not Path("out").exists()


@pytest.fixture
def far(pictures: dict[str, bytes], tmp_path: Path) -> str:
    """The URL of a store, with the images in `in` and in `in.zip`."""
    pytest.importorskip("obstore", reason="needs the extra store")
    zipped(
        tmp_path / "in.zip",
        dict(reversed(pictures.items())) | {"__MACOSX/._00.png": b"-", "x.txt": b"-"},
    )
    return tmp_path.as_uri()


def test_an_archive_and_a_url_give_the_same_as_a_folder(bulk: Run, far: str) -> None:
    assert bulk("project in out").status == 0
    for source in ("in.zip", f"{far}/in.zip", f"{far}/in"):
        assert bulk(f"project {source} other-{source[-3:]}").status == 0
        assert manifest(f"other-{source[-3:]}") == manifest()
        assert output_images(f"other-{source[-3:]}") == output_images()
    assert output_files("other-/in") == output_files()


def test_no_more_than_is_listed_is_read_of_an_object(
    far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Mock(return_value=bytes(1 << 16))
    source = opened(f"{far}/in")
    answer = Mock(**{"stream.side_effect": lambda **_: iter(endless, b"")})
    monkeypatch.setattr("obstore.get", Mock(return_value=answer))
    for item in fetch(source, 0, 3):
        assert isinstance(item.source, RequestError)
        assert "more bytes than are listed" in item.source.detail
    assert endless.call_count == 3


def table(arrow: Any, values: list[Any], name: str = "in.parquet", **options: Any) -> None:
    arrow.parquet.write_table(arrow.table({"image": values}), name, **options)


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_a_table(shape: str, arrow: Any, bulk: Run, pictures: dict[str, bytes]) -> None:
    names = sorted(pictures)
    values: list[Any] = [pictures[name] for name in names]
    if shape == "struct":
        values = [{"bytes": pictures[name], "path": name} for name in names]
    arrow.parquet.write_table(
        arrow.table({"picture": [*values, None]}), "in.parquet", row_group_size=3
    )
    assert bulk("project in.parquet table --column picture --shard 4").status == 1
    assert bulk("project in out").status == 0
    assert output_images("table") == output_images()
    assert errors("table") == [None] * len(names) + ["unreadable"]
    named = names if shape == "struct" else [f"in.parquet#{n}" for n in range(len(names))]
    assert [line["source"] for line in manifest("table")[:-1]] == named


@pytest.mark.parametrize("limit", [2**31, 99])
def test_a_damaged_or_large_row_group_is_failed_images(
    limit: int, arrow: Any, bulk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.bulk.sources._MAX_GROUP", limit)
    table(arrow, [picture(seed) for seed in range(9)], row_group_size=3, compression="gzip")
    column = arrow.parquet.ParquetFile("in.parquet").metadata.row_group(1).column(0)
    data = bytearray(Path("in.parquet").read_bytes())
    middle = column.dictionary_page_offset + column.total_compressed_size // 2
    data[middle : middle + 20] = bytes(20)
    Path("in.parquet").write_bytes(bytes(data))
    ran = bulk("project in.parquet out --shard 4")
    assert ran.status == 1
    sound = None if limit > 99 else "unreadable"
    why = "file is damaged" if sound is None else "table has more than 99 bytes"
    assert f"in.parquet#3: cannot be read: its part of the {why}" in ran.err
    assert errors() == [sound] * 3 + ["unreadable"] * 3 + [sound] * 3


def test_rows_that_share_one_large_value_are_read_one_after_the_other(
    arrow: Any, tmp_path: Path
) -> None:
    """A table of less than 1 MiB says that each of its rows has the same 8 MiB."""
    value = bytes(8 << 20)
    rows = arrow.table({"image": arrow.array([value] * 20).dictionary_encode()})
    arrow.parquet.write_table(
        rows.cast(arrow.schema([("image", arrow.binary())])), tmp_path / "in.parquet"
    )
    source = opened(tmp_path, limit=16 << 20)
    read = 0
    while read < 20:
        items = fetch(source, read, 20)
        assert 1 <= len(items) <= 5
        assert all(item.source == value for item in items)
        read += len(items)


def test_rows_are_the_same_from_wherever_they_are_read_and_of_more_tables_than_may_be_open(
    arrow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        table(
            arrow,
            [picture(3 * number + row) for row in range(3)],
            f"{number:02}.parquet",
            row_group_size=2,
        )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, limits[1]))
    try:
        source = opened(tmp_path)
        for start, stop in ((0, 60), (30, 45), (10, 30), (45, 50), (5, 50)):
            assert [item.source for item in fetch(source, start, stop)] == [
                picture(n) for n in range(start, stop)
            ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (tmp_path / "00.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        fetch(source, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("in.parquet out --column nothing", "no column 'nothing'; the columns are image"),
        ("in.parquet out", "no bytes"),
        ("bad.parquet out", "bad.parquet"),
    ],
)
def test_a_table_without_images(options: str, message: str, arrow: Any, bulk: Run) -> None:
    table(arrow, [1, 2])
    Path("bad.parquet").write_bytes(b"PAR1 and nothing else")
    ran = bulk(f"score {options}")
    assert ran.status == 2
    assert message in ran.err
