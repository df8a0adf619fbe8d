"""Folders, archives, tables and URLs, and images that fail."""

import asyncio
import errno
import io
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.bulk.sources import Files, Listing, SourceItem, open_source
from service.domain.errors import RequestError, StartupError
from service.domain.latents import FloatRows
from service.runtime.onnx_model import OnnxModel
from tests.helpers.pictures import save
from tests.unit.service.bulk.conftest import SHARD, Run, manifest, output_files, output_images, picture, write, zipped


def opened(source: Path | str) -> Files:
    return open_source(Listing(str(source), None, lambda _: None), column="image", limit=4096)


def fetch(source: Files, start: int, stop: int) -> list[SourceItem]:
    return asyncio.run(source.fetch(start, stop))


@pytest.mark.parametrize(("source", "names"), [("in", ["a.png", "d.PNG"]), ("in/d.PNG", ["d.PNG"])])
def test_an_image_or_a_folder_is_a_source_without_its_hidden_files(
    source: str, names: list[str], bulk: Run, tmp_path: Path
) -> None:
    others = dict.fromkeys((".b.png", ".git/c.png", "notes.txt"), b"")
    write(tmp_path / "in", {"a.png": picture(1), "d.PNG": picture(2), **others})
    assert bulk("score", tmp_path / source, tmp_path / "out").status == 0
    assert [line["source"] for line in manifest(tmp_path / "out")] == names


def test_other_formats_and_a_scan_of_several_pages(bulk: Run, tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(picture(1)))
    files = {f"{form}.{form}": save(image, form) for form in ("tiff", "bmp", "gif", "avif")}
    write(tmp_path / "in", files | {"scan.tif": save(image, "TIFF", save_all=True, append_images=[image])})
    assert bulk("project", tmp_path / "in", tmp_path / "out").status == 1
    lines = {line["source"]: line for line in manifest(tmp_path / "out")}
    assert [name for name, line in lines.items() if line["error"]] == ["scan.tif"]
    assert "TIFF of 2 pages" in lines["scan.tif"]["detail"]


def test_an_unreadable_subfolder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.png": picture(1), "closed/b.png": picture(2), ".hidden/c.png": picture(3)})
    scan = os.scandir

    def refused(path: str) -> Any:
        if Path(path).name in ("closed", ".hidden"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(StartupError, match="closed: cannot be read: Permission denied"):
        opened(tmp_path)


def test_a_file_name_that_is_not_utf_8(arrow: Any, bulk: Run, tmp_path: Path) -> None:
    strange = os.fsencode(tmp_path / "in") + b"/\xfc.png"
    write(tmp_path / "in", {"a.png": picture(1)})
    try:
        Path(os.fsdecode(strange)).write_bytes(b"bad")
    except OSError:
        pytest.skip("this file system takes no such names")
    ran = bulk("project", tmp_path / "in", tmp_path / "out", "--manifest", "parquet")
    assert ran.status == 1
    assert "\\udcfc.png: is not a PNG" in ran.err
    lines = arrow.parquet.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert [line["source"] for line in lines] == ["a.png", "\\udcfc.png"]
    assert lines[1]["detail"].startswith("\\udcfc.png: is not")
    assert bulk("project", tmp_path / "in", tmp_path / "out").status == 1
    assert manifest(tmp_path / "out") == lines


BAD = {
    "02-empty.png": (b"", "undecodable_image"),
    "03-text.png": (b"no picture", "undecodable_image"),
    "05-cut.png": (picture(5)[:60], "undecodable_image"),
    "06-long.jpg": (b"\xff\xd8\xff" + bytes(5000), "too_large"),
    "07-huge.png": (picture(7, (40, 40)), "image_too_large"),
}


def test_failed_images_are_listed_and_not_fatal(bulk: Run, tmp_path: Path) -> None:
    good = {f"{n:02}.png": picture(n) for n in range(9)}
    write(tmp_path / "good", good)
    write(tmp_path / "in", good | {name: content for name, (content, _) in BAD.items()})
    (tmp_path / "in" / "08-link.png").symlink_to(tmp_path / "in" / "00.png")
    ran = bulk("project", tmp_path / "in", tmp_path / "out", "--shard", SHARD)
    assert ran.status == 1
    assert f"{len(good) + len(BAD) + 1} images, {len(BAD)} failed" in ran.out
    lines = manifest(tmp_path / "out")
    assert {line["source"]: line["error"] for line in lines if line["error"]} == {
        n: code for n, (_, code) in BAD.items()
    }
    for line in lines:
        assert (line["picture"] is None) == (line["distance"] is None) == (line["source"] in BAD)
        assert line["source"] not in BAD or line["detail"] in ran.err
    assert bulk("project", tmp_path / "good", tmp_path / "alone").status == 0
    alone = dict(zip(good, output_images(tmp_path / "alone"), strict=True))
    together = {line["source"]: line["picture"] for line in lines}
    assert {name: (tmp_path / "out" / together[name]).read_bytes() for name in good} == alone
    again = bulk("project", tmp_path / "in", tmp_path / "out", "--shard", SHARD)
    assert (again.status, again.out) == (1, ran.out)


def test_a_deleted_file_is_a_failed_image(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "in", {"a.png": picture(1)}))
    (tmp_path / "in" / "a.png").unlink()
    (item,) = fetch(source, 0, 1)
    assert isinstance(item.content, RequestError)
    assert item.content.error_code == "unreadable"
    assert item.content.detail.startswith("a.png: ")


def test_a_damaged_member_is_a_failed_image(bulk: Run, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "in.zip", {"a.png": picture(1), "b.png": picture(2)})
    data = bytearray(archive.read_bytes())
    data[40:60] = bytes(20)  # of the first member
    archive.write_bytes(bytes(data))
    assert bulk("score", archive, tmp_path / "out").status == 1
    assert [line["error"] for line in manifest(tmp_path / "out")] == ["unreadable", None]


def test_names_of_members_cannot_leave_the_output(bulk: Run, tmp_path: Path) -> None:
    names = ["../../up.png", "/etc/root.png", "a/b c?.png", f"{'ü' * 200}.png"]
    archive = zipped(tmp_path / "in.zip", dict.fromkeys(names, picture(1)))
    before = set(tmp_path.rglob("*"))
    assert bulk("project", archive, tmp_path / "out").status == 0
    new = set(tmp_path.rglob("*")) - before
    assert all(file.is_relative_to(tmp_path / "out") for file in new)
    assert {line["source"] for line in manifest(tmp_path / "out")} == set(names)
    names = sorted(file.name for file in new if file.suffix == ".png")
    assert names == ["00000000-up.png", "00000001-root.png", "00000002-b_c_.png", "00000003-_.png"]


def test_a_model_failure_is_a_failed_image(bulk: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Poisoned(OnnxModel):
        """Fails on rows that are wholly light."""

        def run(self, rows: FloatRows) -> FloatRows:
            if any((row == 1).all() for row in rows):
                raise RuntimeError("poison")
            return super().run(rows)

    monkeypatch.setattr("service.app.OnnxModel", Poisoned)
    write(tmp_path / "in", {"a.png": picture(1), "b.png": save(Image.new("L", (8, 8), 255)), "c.png": picture(3)})
    ran = bulk("project", tmp_path / "in", tmp_path / "out", "--invert", "false")
    assert ran.status == 1
    assert [line["error"] for line in manifest(tmp_path / "out")] == [None, "model_failure", None]
    assert "b.png: " in ran.err


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
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    ran = bulk(*command.split())
    assert ran.status == 2
    assert package.partition(".")[0] in ran.err.lower()
    assert "install" in ran.err.lower()
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "nothing", "nothing: "),
        ({}, "", "empty"),
        ({"notes.txt": b""}, "", r"holds no \.png"),
        ({"in.zip": b"no zip"}, "in.zip", "not a zip archive"),
        ({"in.zip": b"PK\x05\x06" + bytes(18)}, "in.zip", r"holds no \.png"),
    ],
)
def test_a_source_without_images(files: dict[str, bytes], source: str, message: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    with pytest.raises(StartupError, match=message):
        opened(tmp_path / source)


@pytest.fixture
def far(pictures: dict[str, bytes], tmp_path: Path) -> str:
    """The URL of a store, with the images in `in` and in `in.zip`."""
    pytest.importorskip("obstore", reason="needs the extra store")
    members = dict(reversed(pictures.items())) | {"__MACOSX/._00.png": b"-", "x.txt": b"-"}
    zipped(tmp_path / "in.zip", members)
    return tmp_path.as_uri()


def test_an_archive_and_a_url_give_the_same_as_a_folder(bulk: Run, far: str, tmp_path: Path) -> None:
    assert bulk("project", tmp_path / "in", tmp_path / "folder").status == 0
    for n, url in enumerate((tmp_path / "in.zip", f"{far}/in", f"{far}/in.zip")):
        output = tmp_path / str(n)
        assert bulk("project", url, output).status == 0
        assert output_images(output) == output_images(tmp_path / "folder")
        assert manifest(output) == manifest(tmp_path / "folder")
        if "zip" not in str(url):
            assert output_files(output) == output_files(tmp_path / "folder")


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("function", "source", "status", "message"),
    [
        ("list", "in", 2, "/in: cannot be read: no credentials"),
        ("get", "in", 3, "stopped: "),
        ("get", "in.zip", 2, "/in.zip: cannot be read: "),
        ("", "nothing", 2, "/nothing: "),
    ],
)
def test_errors_of_stores_are_one_line(
    function: str, source: str, status: int, message: str, bulk: Run, far: str, tmp_path: Path, monkeypatch: Any
) -> None:
    import obstore

    if function:
        monkeypatch.setattr(obstore, function, raising(obstore.exceptions.GenericError("no credentials\n\nDebug")))
    ran = bulk("score", f"{far}/{source}", tmp_path / "out")
    monkeypatch.undo()
    assert ran.status == status
    assert message in ran.err
    assert "Debug" not in ran.err
    assert not function or "no credentials" in ran.err
    assert ran.err.count("\n") == 1


def test_an_archive_out_of_reach_stops_the_run(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    source = opened(f"{far}/in.zip")
    source._zip.fp.seek(0)  # type: ignore[attr-defined]  # what it has read is not read again
    monkeypatch.setattr(obstore, "get", raising(obstore.exceptions.PermissionDeniedError("expired")))
    with pytest.raises(OSError, match="expired"):
        fetch(source, 0, 1)


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_a_table(shape: str, arrow: Any, bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    contents = list(pictures.values())
    values = contents if shape == "bytes" else [{"bytes": one, "path": name} for name, one in pictures.items()]
    rows = {"picture": [*values, None], "label": list(range(len(contents) + 1))}
    arrow.parquet.write_table(arrow.table(rows), tmp_path / "in.parquet", row_group_size=3)
    ran = bulk("project", tmp_path / "in.parquet", tmp_path / "table", "--column", "picture", "--shard", SHARD)
    assert ran.status == 1
    assert bulk("project", tmp_path / "in", tmp_path / "folder").status == 0
    assert output_images(tmp_path / "table") == output_images(tmp_path / "folder")
    lines = manifest(tmp_path / "table")
    assert lines[-1]["error"] == "unreadable"
    named = list(pictures) if shape == "struct" else [f"in.parquet#{n}" for n in range(len(contents))]
    assert [line["source"] for line in lines[:-1]] == named


def test_a_damaged_row_group_is_failed_images(arrow: Any, bulk: Run, tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    table = arrow.table({"image": [picture(seed) for seed in range(9)]})
    arrow.parquet.write_table(table, file, row_group_size=3, compression="gzip")
    column = arrow.parquet.ParquetFile(file).metadata.row_group(1).column(0)
    data = bytearray(file.read_bytes())
    middle = column.dictionary_page_offset + column.total_compressed_size // 2
    data[middle : middle + 20] = bytes(20)
    file.write_bytes(bytes(data))
    ran = bulk("project", file, tmp_path / "out", "--shard", SHARD)
    assert ran.status == 1
    assert "in.parquet#3: cannot be read: its part of the file is damaged" in ran.err
    codes = [line["error"] for line in manifest(tmp_path / "out")]
    assert codes == [None] * 3 + ["unreadable"] * 3 + [None] * 3


def test_rows_that_share_one_large_value_are_read_one_after_the_other(arrow: Any, tmp_path: Path) -> None:
    """A table of less than 1 MiB says that each of its rows has the same 8 MiB."""
    value = bytes(8 << 20)
    table = arrow.table({"image": arrow.array([value] * 60).dictionary_encode()})
    arrow.parquet.write_table(table.cast(arrow.schema([("image", arrow.binary())])), tmp_path / "in.parquet")
    assert (tmp_path / "in.parquet").stat().st_size < 1 << 20
    source = open_source(Listing(str(tmp_path), None, lambda *_: None), column="image", limit=16 << 20)
    read = 0
    while read < 60:
        items = fetch(source, read, 60)
        assert 1 <= len(items) <= 5
        assert all(item.content == value for item in items)
        assert items[0].name == f"in.parquet#{read}"
        read += len(items)


def test_rows_are_the_same_from_wherever_they_are_read(arrow: Any, tmp_path: Path) -> None:
    table = arrow.table({"image": [picture(number) for number in range(50)]})
    arrow.parquet.write_table(table, tmp_path / "in.parquet", row_group_size=20)
    source = opened(tmp_path)
    for start, stop in ((0, 10), (30, 45), (10, 30), (45, 50), (5, 50)):
        assert [item.content for item in fetch(source, start, stop)] == [picture(n) for n in range(start, stop)]


def test_a_group_that_would_take_all_memory_is_not_read(
    arrow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.bulk.sources._MAX_GROUP", 100)
    arrow.parquet.write_table(arrow.table({"image": [picture(1), picture(2)]}), tmp_path / "in.parquet")
    for item in fetch(opened(tmp_path), 0, 2):
        assert isinstance(item.content, RequestError)
        assert "its part of the table has more than 100 bytes" in item.content.detail


@pytest.mark.parametrize("path", [7, ["a", "b"], {"a": 1}])
def test_a_path_that_is_no_text_is_an_error_in_its_place(path: Any, arrow: Any, bulk: Run, tmp_path: Path) -> None:
    rows = [{"bytes": picture(1), "path": path}, {"bytes": picture(2), "path": None}]
    arrow.parquet.write_table(arrow.table({"image": rows}), tmp_path / "in.parquet")
    ran = bulk("score", tmp_path / "in.parquet", tmp_path / "out")
    assert ran.status == 1
    assert "in.parquet#0: cannot be read: its path is no text" in ran.err
    assert [line["error"] for line in manifest(tmp_path / "out")] == ["unreadable", None]


def test_no_more_than_is_listed_is_read_of_an_object(far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    given: list[int] = []

    class Endless:
        def stream(self, **_: Any) -> Any:
            while True:
                given.append(1 << 16)
                yield bytes(1 << 16)

    source = opened(f"{far}/in")
    monkeypatch.setattr(obstore, "get", lambda *_, **__: Endless())
    for item in fetch(source, 0, 3):
        assert isinstance(item.content, RequestError)
        assert "more bytes than are listed" in item.content.detail
    assert len(given) == 3
    with pytest.raises(OSError, match="another number of bytes"):
        source.listing.place.open("x.zip", 100).read(10)


def test_a_file_that_grows_is_a_failed_image(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "in", {"a.png": picture(1)}))
    (tmp_path / "in" / "a.png").write_bytes(picture(1) + bytes(100))
    (item,) = fetch(source, 0, 1)
    assert isinstance(item.content, RequestError)


def test_names_do_not_control_the_terminal(bulk: Run, tmp_path: Path) -> None:
    name = "\x1b[31m\u202egnp.\n.png"
    write(tmp_path / "in", {name: b"bad"})
    assert bulk("score", tmp_path / "in", tmp_path / "out").status == 1
    (line,) = manifest(tmp_path / "out")
    assert line["source"] == name
    assert line["detail"].startswith(r"\x1b[31m\u202egnp.\n.png: is not a PNG")


def test_a_deleted_table_stops_the_run(arrow: Any, tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    arrow.parquet.write_table(arrow.table({"image": [picture(1)]}), file)
    source = opened(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        fetch(source, 0, 1)


def test_more_tables_than_may_be_open(arrow: Any, tmp_path: Path) -> None:
    for number in range(20):
        table = arrow.table({"image": [picture(2 * number), picture(2 * number + 1)]})
        arrow.parquet.write_table(table, tmp_path / f"{number:02}.parquet")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, limits[1]))
    try:
        items = fetch(opened(tmp_path), 0, 40)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [one.content for one in items] == [picture(number) for number in range(40)]


@pytest.mark.parametrize(
    ("column", "message"), [("nothing", "no column 'nothing'; the columns are image"), ("image", "no bytes")]
)
def test_a_table_without_images(column: str, message: str, arrow: Any, bulk: Run, tmp_path: Path) -> None:
    arrow.parquet.write_table(arrow.table({"image": [1, 2]}), tmp_path / "in.parquet")
    ran = bulk("score", tmp_path / "in.parquet", tmp_path / "out", "--column", column)
    assert ran.status == 2
    assert message in ran.err
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    assert bulk("score", tmp_path / "bad.parquet", tmp_path / "out").status == 2
