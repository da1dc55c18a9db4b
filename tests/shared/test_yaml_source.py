"""YAML with line numbers: a file that can't be used is told in one sentence that says where."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, model_validator

from shared.errors import InputError, StudyError
from shared.yaml_source import read_yaml, validate


def of(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_of_keys_and_items(tmp_path: Path) -> None:
    source = read_yaml(of(tmp_path, "# comment\na: 1\nb:\n  c: [x,\n    y]\n  d:\n    - e: 1\n    - e: 2\n"))
    assert source.data == {"a": 1, "b": {"c": ["x", "y"], "d": [{"e": 1}, {"e": 2}]}}
    assert source.line_of(("a",)) == 2
    assert source.line_of(("b", "c", 1)) == 5
    assert source.line_of(("b", "d", 1, "e")) == 8
    assert source.line_of(("b", "missing", "deeper")) == 3
    assert source.line_of(("nowhere",)) == 1


def test_a_key_given_twice_is_refused_with_the_second_line(tmp_path: Path) -> None:
    path = of(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\n")
    with pytest.raises(StudyError) as problem:
        read_yaml(path, StudyError)
    assert str(problem.value) == f"{path}:4: key 'b' is given twice"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1, 2\nb: 3\n", "file.yaml:2: not valid YAML"),
        ("a: b: c\n", "file.yaml:1: not valid YAML"),
        ("a: 1\n\tb: 2\n", "file.yaml:2: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", "file.yaml:1: not valid YAML"),
        ("a: *nothing\n", "file.yaml:1: not valid YAML"),
        ("a: \x01\n", "file.yaml: not valid YAML"),
        ("a: 2024-99-99\n", "file.yaml: not valid YAML: month must be in 1..12"),
        ("", "expected keys and values at the top level, but got NoneType"),
        ("- 1\n- 2\n", "expected keys and values at the top level, but got list"),
        ("just text", "expected keys and values at the top level, but got str"),
        (b"a: \xff\xfe\n", "can't be read as UTF-8 text"),
        ("{[1, 2]: 3}\n", "file.yaml:1: expected a plain key"),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_told_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError) as problem:
        read_yaml(of(tmp_path, text))
    assert sentence in str(problem.value)
    assert str(tmp_path) in str(problem.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="can't be read"):
        read_yaml(tmp_path)


class Part(BaseModel):
    of: int
    test: int


class Whole(BaseModel):
    rounds: int
    part: Part | None = None

    @model_validator(mode="after")
    def _fits(self) -> Whole:
        if self.part is not None and self.part.test >= self.part.of:
            raise ValueError(f"part.test must be below part.of, {self.part.of}")
        return self


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rounds: 1\npart:\n  of: 2\n  test: 2\n", "file.yaml:4: part.test must be below part.of, 2"),
        ("rounds: 1\npart: 3\n", "file.yaml:2: part: expected keys and values (of, test), but got 3"),
    ],
)
def test_a_schema_mistake_is_told_where_its_key_stands(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(StudyError) as problem:
        validate(read_yaml(of(tmp_path, text)), Whole, StudyError)
    assert str(problem.value).endswith(sentence)


def test_merged_keys_are_read_as_yaml_says(tmp_path: Path) -> None:
    text = "base: &base {x: 1, y: 2}\nmade:\n  <<: *base\n  y: 3\n"
    assert read_yaml(of(tmp_path, text)).data == yaml.safe_load(text)


def test_an_alias_of_itself_ends_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file.yaml:1: .*refers to itself"):
        read_yaml(of(tmp_path, "a: &a\n  b: *a\n"))


def test_aliases_that_multiply_end_in_a_sentence(tmp_path: Path) -> None:
    """Nine levels of nine aliases would be 387 million items."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(InputError, match="more than 100000 items"):
        read_yaml(of(tmp_path, "\n".join(lines)))


@given(
    data=st.dictionaries(
        st.text("abcdefg", min_size=1, max_size=4),
        st.recursive(
            st.integers() | st.booleans() | st.text("xyz é", max_size=5), lambda inner: st.lists(inner, max_size=3)
        ),
        max_size=5,
    )
)
def test_what_pyyaml_reads_is_read(tmp_path_factory: pytest.TempPathFactory, data: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("yaml") / "file.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True) if data else "{}", encoding="utf-8")
    assert read_yaml(path).data == data
