import json

import pytest

from autoquant.errors import DataError
from autoquant.tasks.data import numbers, read_columns, texts

ROLES = {"text": ("text", "sentence"), "label": ("label", "class")}


def write(path, content):
    path.write_text(content, encoding="utf8")
    return path


def test_usual_names_are_found_in_any_order_and_case(tmp_path):
    file = write(tmp_path / "a.csv", 'id,Class,Sentence\n1,no,"a, ""b"""\n2,yes,c\n')
    assert read_columns(file, ROLES) == {"text": ['a, "b"', "c"], "label": ["no", "yes"]}


def test_a_named_column_wins_over_a_usual_one(tmp_path):
    file = write(tmp_path / "a.csv", "text,body,label\nx,y,0\n")
    assert read_columns(file, ROLES, columns={"text": "body"})["text"] == ["y"]


def test_a_file_without_header_goes_by_position(tmp_path):
    file = write(tmp_path / "a.tsv", 'one "quoted\t0\ntwo\t1\n')
    assert read_columns(file, ROLES) == {"text": ['one "quoted', "two"], "label": ["0", "1"]}
    assert read_columns(file, ROLES, columns={"label": "0", "text": 1})["text"] == ["0", "1"]


def test_positions_keep_the_first_row_where_there_is_no_header(tmp_path):
    file = write(tmp_path / "a.csv", "good film,yes\nbad film,no\n")
    assert read_columns(file, ROLES, columns={"text": 0, "label": 1})["label"] == ["yes", "no"]


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_records_of_every_kind_read_alike(tmp_path, ending):
    rows = [{"text": "ä", "label": 1}, {"text": "b", "label": 0}]
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        write(file, json.dumps(rows) if ending == "json" else "\n\n".join(map(json.dumps, rows)))
    assert read_columns(file, ROLES) == {"text": ["ä", "b"], "label": [1, 0]}


def test_a_saved_data_set_prefers_its_test_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_dict({"text": [name], "label": [0]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert read_columns(tmp_path / "saved", ROLES)["text"] == ["test"]


def test_an_optional_role_may_be_missing(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "x"}\n')
    assert read_columns(file, ROLES, optional=["label"]) == {"text": ["x"]}


@pytest.mark.parametrize(
    ("content", "columns", "says"),
    [
        ("body,label\nx,0\n", {}, r"no column for 'text'.*body, label.*--columns text=NAME"),
        ("text,label\nx,0\n", {"text": "txt"}, r"no column 'txt'.*Did you mean 'text'"),
        ("text,label\nx,0\n", {"txet": "text"}, r"unknown key 'txet'.*Did you mean 'text'"),
        ("text,label\nx,0\ny\n", {}, r"line 3 has 1 cells"),
        ("text,label\n", {}, "no rows"),
        ("", {}, "empty"),
        ("x,0\ny,1\n", {"text": 5, "label": 1}, "no header and 2 columns"),
    ],
)
def test_errors_teach(tmp_path, content, columns, says):
    with pytest.raises(DataError, match=says):
        read_columns(write(tmp_path / "a.csv", content), ROLES, columns=columns)


def test_what_is_not_there_or_not_readable_is_said(tmp_path):
    with pytest.raises(DataError, match="no file"):
        read_columns(tmp_path / "none.csv", ROLES)
    with pytest.raises(DataError, match=r"ends in '\.xml'"):
        read_columns(write(tmp_path / "a.xml", ""), ROLES)
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_columns(write(tmp_path / "a.jsonl", '{"text": "x"}\n{'), ROLES)
    (tmp_path / "b.csv").write_bytes(b"text,label\n\xff\xfe,0\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_columns(tmp_path / "b.csv", ROLES)
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="parquet"):
        read_columns(tmp_path / "a.parquet", ROLES)


def test_blank_texts_and_bad_numbers_name_their_row():
    with pytest.raises(DataError, match="row 1 has an empty text"):
        texts(["a", " "], "text", "x.csv")
    with pytest.raises(DataError, match="row 0 has None"):
        texts([None], "text", "x.csv")
    assert numbers(["1.5", 2], "score", "x.csv") == [1.5, 2.0]
    with pytest.raises(DataError, match="row 1 has 'nan'"):
        numbers([1, "nan"], "score", "x.csv")
