"""Parquet files as source and as manifest."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from service.bulk.sources import open_source
from tests.unit.service.bulk.conftest import SHARD, Run, manifest, output_images, picture, write


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


def test_a_folder_of_tables(arrow: Any, bulk: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, seeds in (("a", range(3)), ("b", range(3, 5))):
        table = arrow.table({"image": [picture(seed) for seed in seeds]})
        arrow.parquet.write_table(table, tmp_path / "in" / f"{name}.parquet")
    assert bulk("score", tmp_path / "in", tmp_path / "out").status == 0
    named = [line["source"] for line in manifest(tmp_path / "out")]
    assert named == ["a.parquet#0", "a.parquet#1", "a.parquet#2", "b.parquet#0", "b.parquet#1"]


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


def test_a_deleted_table_stops_the_run(arrow: Any, tmp_path: Path) -> None:
    file = tmp_path / "in.parquet"
    arrow.parquet.write_table(arrow.table({"image": [picture(1)]}), file)
    source = open_source(str(file), column="image", limit=4096)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        source.read(0, 1)


def test_more_tables_than_may_be_open(arrow: Any, tmp_path: Path) -> None:
    for number in range(20):
        arrow.parquet.write_table(arrow.table({"image": [picture(number)]}), tmp_path / f"{number:02}.parquet")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 10, limits[1]))
    try:
        items = open_source(str(tmp_path), column="image", limit=4096).read(0, 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [one.content for one in items] == [picture(number) for number in range(20)]


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


def test_a_manifest_as_a_table(arrow: Any, bulk: Run, pictures: dict[str, bytes], tmp_path: Path) -> None:
    write(tmp_path / "in", {"zz.png": b"bad"})
    assert bulk("project", tmp_path / "in", tmp_path / "out", "--manifest", "parquet", "--shard", SHARD).status == 1
    table = arrow.parquet.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert bulk("project", tmp_path / "in", tmp_path / "out", "--shard", SHARD).status == 1
    assert table == manifest(tmp_path / "out")
