"""Folders that no Scorer saved: each is refused by an InputError, and none takes more memory than it may."""

import contextlib
import io
import json
import os
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import sparkdiff
from sparkdiff import InputError, Scorer
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.serving.scorer.requests import InputColumn
from sparkdiff.serving.scorer.schedule import NOWHERE, InputPlaces, OutputColumn, Schedule, TextStep, TorchStep
from sparkdiff.serving.scorer.text.indices import StringIndexer
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.trees import GBTClassification
from tests.support.small_networks import trees

ROW = {"word": "a", "x": 1.0, "y": 2.0}
MEMORY = 16 << 20
"""More than any of these scorers takes, and less than what each would that is too large."""


def schedule() -> Schedule:
    """An indexer, an encoder, an assembler and boosted trees."""
    forest = trees(GBTClassification, 1, number=2)
    forest.cuts = None
    entries = (
        InputPlaces(InputColumn("word", ("word",), "string"), objects=0),
        InputPlaces(InputColumn("x", ("x",), "double"), numbers=1, null=2),
        InputPlaces(InputColumn("y", ("y",), "double"), numbers=3, null=4),
    )
    hot, names = OneHotEncoder("hot", ("i",), (2,), False, True), ("x", "y", "i", "h")
    steps = (
        TextStep("indexer", ("word",), (0,), (5,), StringIndexer(("a", "b"), False, 17)),
        TorchStep("hot", ("i",), (5,), (6,), hot, (NOWHERE,)),
        TorchStep("assembler", names, (1, 3, 5, 6), (7,), VectorAssembler("assembler", names, True)),
        TorchStep("trees", ("v",), (7,), (8,), forest.requires_grad_(False).eval(), wanted=4),
    )
    return Schedule(entries, steps, (OutputColumn("prediction", 8, NOWHERE, "double"),), 9, False, ())


class Saved:
    """A folder of a scorer, whose description and archive can be spoiled."""

    def __init__(self, folder: Path):
        self.folder = folder
        scorer = Scorer.__new__(Scorer)
        scorer._take(schedule())
        scorer._origin = {}
        scorer.save(folder)
        self.text = (folder / "scorer.json").read_text()
        with np.load(folder / "arrays.npz") as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}

    def describe(self, value: Any) -> None:
        (self.folder / "scorer.json").write_text(json.dumps(value))

    def archive(self, members: dict[str, bytes], **how: Any) -> None:
        with zipfile.ZipFile(self.folder / "arrays.npz", "w", **how) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    def members(self) -> dict[str, bytes]:
        return {f"{name}.npy": written(array) for name, array in self.arrays.items()}

    def holding(self, **arrays: Any) -> None:
        """Write arrays in place of those of these names, and describe them."""
        held = {**self.arrays, **arrays}
        described = json.loads(self.text)
        told = [{"dtype": a.dtype.str, "fortran": bool(a.flags.fnc), "shape": [*a.shape]} for a in held.values()]
        self.archive({f"{name}.npy": written(array) for name, array in held.items()})
        self.describe({**described, "arrays": told})


def written(array: Any, header: dict[str, Any] | None = None) -> bytes:
    """A file of numpy's, with another header if one is given."""
    file = io.BytesIO()
    if header is None:
        np.lib.format.write_array(file, array)
    else:
        own = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, {**own, **header})
        file.write(array.tobytes())
    return file.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "scorer")


def refused(saved: Saved, why: str, most: int = MEMORY, **how: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=why) as found:
            Scorer.load(saved.folder, **how)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert str(saved.folder) in str(found.value)
    assert len(str(found.value)) < 2000


def test_what_was_saved_is_loaded(saved: Saved) -> None:
    scorer = Scorer.load(saved.folder, maxBytes=1 << 20)
    assert scorer.predict(ROW) == Scorer.load(str(saved.folder)).predict(ROW)
    assert scorer.outputCols == ("prediction",)
    url = Scorer.load(f"file://{saved.folder}")
    assert url.predict([ROW]) == [scorer.predict(ROW)]


def test_nothing_is_invented_about_where_it_was_made(saved: Saved) -> None:
    described = json.loads(saved.text)
    assert not {"sparkVersion", "javaVersion", "timeZone"} & set(described)
    saved.describe({**described, "sparkVersion": "4.0.5", "javaVersion": 17, "timeZone": "Europe/Berlin"})
    Scorer.load(saved.folder).save(saved.folder.with_name("again"))
    told = json.loads((saved.folder.with_name("again") / "scorer.json").read_text())
    assert told["sparkVersion"] == "4.0.5" and told["timeZone"] == "Europe/Berlin" and "javaVersion" not in told


# The folder -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scorer.json", "arrays.npz"])
def test_a_file_that_is_none_is_refused(saved: Saved, name: str) -> None:
    path = saved.folder / name
    path.unlink()
    refused(saved, f"there is no scorer in .*, which lacks {name}")
    path.mkdir()
    refused(saved, f"which lacks {name}")
    path.rmdir()
    os.mkfifo(path)
    refused(saved, f"which lacks {name}")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(saved, f"which lacks {name}")
    path.unlink()
    path.write_bytes(b"")
    refused(saved, "cannot be read: it is damaged" if name == "arrays.npz" else "JSONDecodeError")


@pytest.mark.parametrize("path", ["s3://bucket/scorer", "nowhere", "no\0where", "", __file__])
def test_a_path_that_is_no_folder_of_a_scorer_is_refused(path: str) -> None:
    with pytest.raises(InputError):
        Scorer.load(path)


def test_the_limit_is_a_number(saved: Saved) -> None:
    for wrong in ("1", 1.5, None):
        with pytest.raises(InputError, match="maxBytes must be a number of bytes"):
            Scorer.load(saved.folder, maxBytes=wrong)  # type: ignore[arg-type]
    for few in (0, -1, 1000, len(saved.text) + 1):
        refused(saved, f"take .* bytes, more than maxBytes={few:,}", maxBytes=few)


# The archive ------------------------------------------------------------------------------------------------------------


def header(**changed: Any) -> Callable[[Saved], bytes]:
    return lambda saved: written(saved.arrays["a1"], changed)


MEMBERS: dict[str, Callable[[Saved], bytes]] = {
    "a huge shape": header(shape=(1 << 40,)),
    "a shape beyond an int64": header(shape=(1 << 62, 1 << 62)),
    "a negative shape": header(shape=(-137,)),
    "a product of negative numbers": header(shape=(-1, -137)),
    "objects": header(descr="|O"),
    "another type": header(descr="<i8"),
    "a structure": header(descr=[("x", "<f8")]),
    "texts of no size": header(descr="<U0", shape=(1 << 40,)),
    "Fortran's order": header(fortran_order=True),
    "no header": lambda saved: b"x" * 2000,
    "nothing": lambda saved: b"",
    "a header that is no Python": lambda saved: b"\x93NUMPY\x01\x00\x10\x00" + b"((((((((((((((((",
    "a header of many brackets": lambda saved: b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000,
    "a header of version 2": lambda saved: written(saved.arrays["a1"]).replace(b"\x01\x00", b"\x02\x00", 1),
    "too few numbers": lambda saved: written(saved.arrays["a1"])[:-8],
    "too many numbers": lambda saved: written(saved.arrays["a1"]) + b"12345678",
    "a pickle": lambda saved: b"\x80\x04\x95" + b"cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_that_is_no_described_array_is_refused(saved: Saved, name: str) -> None:
    saved.archive({**saved.members(), "a1.npy": MEMBERS[name](saved)})
    refused(saved, r"cannot be read at arrays\.1 of scorer\.json, \{'dtype': '<f8', .*\}, *: it is damaged")


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_is_not_unpacked(saved: Saved, how: int) -> None:
    zeros = np.zeros(1 << 22)
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w", how) as archive:
        for name, content in {**saved.members(), "a1.npy": written(zeros)}.items():
            archive.writestr(name, content)
    (saved.folder / "arrays.npz").write_bytes(large.getvalue())
    described = json.loads(saved.text)
    refused(saved, "it is damaged")
    described["arrays"][1]["shape"] = [len(zeros)]
    saved.describe(described)
    refused(saved, "it is damaged")


def test_a_size_that_is_none_is_refused(saved: Saved) -> None:
    """Of a member whose entries claim more than the archive has."""
    real = written(saved.arrays["a1"])
    claimed = written(saved.arrays["a1"], {"shape": (1 << 24,)})[: len(real)]
    saved.archive({**saved.members(), "a1.npy": claimed})
    path = saved.folder / "arrays.npz"
    content, size = path.read_bytes(), len(claimed).to_bytes(4, "little")
    assert content.count(2 * size)
    more = (len(claimed) - saved.arrays["a1"].nbytes + (8 << 24)).to_bytes(4, "little")
    path.write_bytes(content.replace(2 * size, 2 * more))
    described = json.loads(saved.text)
    described["arrays"][1]["shape"] = [1 << 24]
    saved.describe(described)
    refused(saved, r"cannot be read at arrays\.1 .*it is damaged")


def test_members_that_are_not_described_are_not_read(saved: Saved) -> None:
    path = saved.folder / "arrays.npz"
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../bomb.npy", written(np.zeros(1 << 22)))
        archive.writestr("a999.npy", b"no array")
    tracemalloc.start()
    try:
        scorer = Scorer.load(saved.folder)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert scorer.predict(ROW)
    assert not (saved.folder.parent.parent / "bomb.npy").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_of_members(saved: Saved) -> None:
    with zipfile.ZipFile(saved.folder / "arrays.npz", "a") as archive:
        archive.writestr("a1.npy", saved.members()["a1.npy"])
    refused(saved, "is there twice")
    saved.archive({name: content for name, content in saved.members().items() if name != "a1.npy"})
    refused(saved, r"arrays\.1 of scorer\.json.*no item named 'a1\.npy'")
    saved.archive({name.replace("a1.", "../a1."): content for name, content in saved.members().items()})
    refused(saved, r"arrays\.1 of scorer\.json.*no item named 'a1\.npy'")


def test_an_archive_that_is_cut_or_none_is_refused(saved: Saved) -> None:
    path = saved.folder / "arrays.npz"
    content = path.read_bytes()
    for end in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:end])
        refused(saved, "it is damaged")
    for other in (b"PK", b"no archive" * 100, saved.text.encode()):
        path.write_bytes(other)
        refused(saved, "it is damaged")


def test_an_archive_with_other_bytes_is_a_scorer_or_refused(saved: Saved) -> None:
    path, chance = saved.folder / "arrays.npz", random.Random(0)
    content = path.read_bytes()
    tracemalloc.start()
    for _ in range(100):
        other = bytearray(content)
        for _ in range(chance.choice((1, 1, 8))):
            other[chance.randrange(len(other))] = chance.randrange(256)
        path.write_bytes(other)
        loads_or_is_refused(saved)
    tracemalloc.stop()


# The description --------------------------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))
    yield path


def changed(text: str, path: tuple[Any, ...], value: Any) -> Any:
    whole: Any = [json.loads(text)]
    at = whole
    for key in (0, *path)[:-1]:
        at = at[key]
    at[(0, *path)[-1]] = value
    return whole[0]


WRONG: list[Any] = [
    None,
    True,
    -1,
    3,
    10**12,
    2**70,
    1.5,
    float("nan"),
    "",
    "a0",
    "sparkdiff.serving.scorer.schedule.Schedule",
    [],
    [[]],
    {},
    {"float": "nan"},
    {"float": "x"},
    {"tuple": [0, 10**9]},
    {"tuple": 5},
    {"dict": [[1]]},
    {"dict": [[[], 1]]},
    {"set": [[]]},
    {"tensor": "a1", "parameter": False},
    {"tensor": "a1"},
    {"array": "a0"},
    {"array": []},
    {"none": 0},
    {"object": "sparkdiff.jvm.nodes.Nodes", "state": {}},
    {"object": "os.system", "state": {}},
    {"object": 5},
    {"object": "sparkdiff.jvm.encoders.Statistics", "fields": [1]},
]


def loads_or_is_refused(saved: Saved) -> None:
    tracemalloc.reset_peak()
    with contextlib.suppress(InputError):
        Scorer.load(saved.folder)
    assert tracemalloc.get_traced_memory()[1] < MEMORY


def test_each_place_with_a_wrong_value_is_a_scorer_or_refused(saved: Saved) -> None:
    chance = random.Random(0)
    tracemalloc.start()
    try:
        for path in places(json.loads(saved.text)):
            for value in chance.sample(WRONG, 1):
                saved.describe(changed(saved.text, path, value))
                loads_or_is_refused(saved)
    finally:
        tracemalloc.stop()


INDICES = [
    ("places",),
    ("entries", 1, "numbers"),
    ("entries", 0, "objects"),
    ("steps", 0, "reads", 0),
    ("steps", 1, "writes", 0),
    ("steps", 1, "nulls", 0),
    ("steps", 3, "passed"),
    ("outputs", 0, "place"),
    ("outputs", 0, "null"),
]


@pytest.mark.parametrize("path", INDICES, ids=str)
def test_what_is_no_place_is_refused(saved: Saved, path: tuple[Any, ...]) -> None:
    full: list[Any] = ["scorer"]
    for key in path:
        full += [key] if full[-1] == "tuple" else ["state", key]
        full += ["tuple"] if key in ("entries", "steps", "outputs", "reads", "writes", "nulls") else []
    name = ".".join(map(str, path[:3]))
    least = -2 if path[-1] in ("numbers", "objects", "null", "passed") or "nulls" in path else -1
    for wrong in (least, 100, 10**12, 2**70, True, 1.0, {"float": "nan"}, "1", None, {"tuple": [0.5]}):
        saved.describe(changed(saved.text, tuple(full), wrong))
        found = "which is no index of the"
        why = f"{name} is .*, {found} 9 values in use|its {path[2] if len(path) > 2 else path[0]} is "
        refused(saved, f"{found}|it is damaged" if path == ("places",) else why)


@pytest.mark.parametrize("depth", [101, 900, 10_000, 200_000])
def test_deep_nesting_is_refused(saved: Saved, depth: int) -> None:
    described = json.loads(saved.text)
    for begin, end in (("[", "]"), ('{"tuple": [', "]}"), ('{"dict": [[1, ', "]]}")):
        whole = json.dumps({**described, "scorer": "HERE"}).replace('"HERE"', f"{begin * depth}0{end * depth}")
        (saved.folder / "scorer.json").write_text(whole)
        refused(saved, "nested more than 100 deep|RecursionError", most=64 << 20 if depth < 100_000 else 512 << 20)
    (saved.folder / "scorer.json").write_text("[" * depth)
    refused(saved, "cannot be read", most=64 << 20)


@pytest.mark.parametrize(
    "part",
    ["[],", "{},", '"ab",', "1.5,", "12345,", "[0],", '{"tuple":[]},', '{"dict":[["k",0]]},', '{"dict":[[1.5,0]]},'],
)
def test_a_description_takes_what_it_counts_for(saved: Saved, part: str) -> None:
    """Many small values take many times their text."""
    described = json.dumps({**json.loads(saved.text), "scorer": "HERE"})
    content = described.replace('"HERE"', f"[{part * 20_000} 0]")
    (saved.folder / "scorer.json").write_text(content)
    with pytest.raises(InputError, match=r"take .* bytes, more than maxBytes") as found:
        Scorer.load(saved.folder, maxBytes=os.path.getsize(saved.folder / "arrays.npz") + len(content))
    counted = int(str(found.value).split(" take ")[1].split(" bytes")[0].replace(",", ""))
    refused(saved, "is damaged", most=counted, maxBytes=counted)


@pytest.mark.parametrize("format", [0, 2, 3, -1, True, 1.0, "1", None, [[[]]], 10**30])
def test_another_format_is_refused_by_name(saved: Saved, format: Any) -> None:
    saved.describe({**json.loads(saved.text), "format": format})
    refused(saved, r"it has format .*, and this version reads format 1")


# Trees ------------------------------------------------------------------------------------------------------------------


def nodes_of(saved: Saved) -> tuple[dict[str, str], Nodes]:
    """The names of the arrays of the nodes, and the nodes."""
    step = json.loads(saved.text)["scorer"]["state"]["steps"]["tuple"][3]
    state = step["state"]["module"]["state"]["nodes"]["state"]
    names = {key: value["array"] for key, value in state.items()}
    return names, Nodes(**{key: saved.arrays[name] for key, name in names.items()})


def test_arrays_that_are_no_trees_are_refused(saved: Saved) -> None:
    names, nodes = nodes_of(saved)
    n = len(nodes)
    number = np.arange(n)
    late = number >= n - 1
    spoiled: dict[str, dict[str, Any]] = {
        "a cycle": {"leftChild": np.zeros(n, np.int32), "rightChild": np.zeros(n, np.int32)},
        "a node with two parents": {
            "offsets": np.array([0, n]),
            "leftChild": np.where(number > n - 3, -1, number + 1).astype(np.int32),
            "rightChild": np.where(number > n - 3, -1, number + 2).astype(np.int32),
        },
        "trees of no size": {"offsets": np.array([0, 1 << 40, n])},
        "sizes that add up in 64 bits": {"offsets": np.array([0, (1 << 63) - 1, -(1 << 63), n])},
        "offsets of numbers with a point": {"offsets": np.array([0.0, np.nan, n])},
        "a feature beyond the rows": {"featureIndex": np.full(n, 1 << 30, np.int32)},
        "columns in place of rows": {"numCategories": np.full((n, 1), -1, np.int32)},
        "a child beyond the tree": {"rightChild": np.where(late | nodes.leaf, -1, 1 << 30).astype(np.int32)},
        "fewer nodes": {"prediction": nodes.prediction[:-1]},
        "no nodes": {key: getattr(nodes, key)[:0] for key in names},
    }
    for arrays in spoiled.values():
        saved.holding(**{names[key]: array for key, array in arrays.items()})
        refused(saved, "trees1: |it is damaged")


def test_arrays_of_other_trees_are_refused(saved: Saved) -> None:
    """Whose product would be larger than both."""
    module = json.loads(saved.text)["scorer"]["state"]["steps"]["tuple"][3]["state"]["module"]
    held = {**module["module"]["_parameters"], **module["module"]["_buffers"]}
    for key, shape in (("leaves", (5000, 1)), ("treeWeights", (1, 5000)), ("tree", (5000,))):
        name = held[key]["tensor"]
        saved.holding(**{name: np.zeros(shape, saved.arrays[name].dtype)})
        refused(saved, "and arrays of others")


def test_a_width_that_is_none_allocates_nothing(saved: Saved) -> None:
    path = ("scorer", "state", "steps", "tuple", 3, "state", "module", "state", "router", "state")
    saved.describe(changed(saved.text, (*path, "trees"), 1 << 40))
    refused(saved, "and arrays of others")
    saved.describe(changed(saved.text, (*path, "width"), 1))
    refused(saved, "its feature does not exist")
    saved.describe(changed(saved.text, (*path, "width"), 1 << 40))
    tracemalloc.start()
    try:
        loads_or_is_refused(saved)
    finally:
        tracemalloc.stop()


def test_this_version_is_named(saved: Saved) -> None:
    saved.describe({**json.loads(saved.text), "sparkdiff": ["0.1"]})
    refused(saved, rf"wrote the scorer, and this is {sparkdiff.__version__}")


# What predict would meet ------------------------------------------------------------------------------------------------


def test_a_directory_of_many_entries_is_not_read(saved: Saved) -> None:
    """Entries without content, whose objects take many times their bytes, and names that take many times theirs."""
    path = saved.folder / "arrays.npz"
    for name, number in (("", 20_000), ("\U0001f600" + 60_000 * "x", 20)):
        saved.archive(saved.members())
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"first{name}", b"")
            entry = archive.filelist[-1]
            archive.filelist += [entry] * number
        refused(saved, "scorer.json and arrays.npz take .* bytes, more than maxBytes", most=6 << 20, maxBytes=5 << 20)


def step(number: int, *keys: Any) -> tuple[Any, ...]:
    return ("scorer", "state", "steps", "tuple", number, *keys)


SOURCE = ("scorer", "state", "entries", "tuple", 1, "state", "source")
COLUMN = {"object": "sparkdiff.serving.scorer.requests.InputColumn"}
TYPES: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a step that is a column": (step(0), COLUMN | {"state": {"name": "x", "path": {"tuple": ["x"]}}}, "its steps is"),
    "a step without a state": (step(0, "state"), {}, "missing 5 required positional arguments"),
    "a step with another attribute": (step(0, "state", "more"), 1, "unexpected keyword argument 'more'"),
    "a stage that is none": (step(0, "state", "stage"), 5, "its stage is 5"),
    "a column without a path": ((*SOURCE, "state", "path", "tuple"), [], "'x' is no step or column"),
    "a path of numbers": ((*SOURCE, "state", "path", "tuple"), [1], r"its path is \(1,\)"),
    "a type that is a number": ((*SOURCE, "state", "kind"), 5, "its kind is 5"),
    "a column of nothing": (SOURCE, COLUMN | {"state": {}}, "missing 2 required positional arguments"),
    "a label that is a list": (step(0, "state", "stage", "state", "labels", "tuple", 0), [], "its labels is"),
    "an output without a name": (("scorer", "state", "outputs", "tuple", 0, "state", "name"), None, "its name is None"),
    "a step with its own short way": (step(3, "object"), "sparkdiff.serving.scorer.few_rows.TreesStep", "'few'"),
}


@pytest.mark.parametrize("name", TYPES)
def test_a_part_of_another_type_is_refused(saved: Saved, name: str) -> None:
    path, value, why = TYPES[name]
    saved.describe(changed(saved.text, path, value))
    refused(saved, why)


def text_step(stage: str, **state: Any) -> Any:
    return {"object": f"sparkdiff.serving.scorer.text.{stage}", "state": state}


def test_a_pattern_that_python_cannot_say_is_refused(saved: Saved) -> None:
    state = {"gaps": True, "lowers_text": False, "shortest": 0, "others": {"dict": []}}
    tokenizer = text_step("words.RegexTokenizer", pattern="(?i)a", **state)
    saved.describe(changed(saved.text, step(0, "state", "stage"), tokenizer))
    refused(saved, r"Python's regular expressions have no equal of '\(\?i\)'")


ATTRIBUTES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "a width of 0": (
        step(0, "state", "stage"),
        text_step("counts.HashingTF", width=0, binary=False, spark2=False),
    ),
    "a null module": (step(2, "state", "module", "state"), {}),
    "names of another kind": (step(1, "state", "module", "state", "names"), 5),
    "a value that nothing makes": (step(3, "state", "reads", "tuple", 0), 0),
    "an output of text": (("scorer", "state", "outputs", "tuple", 0, "state", "place"), 0),
    "null flags that are text": (("scorer", "state", "outputs", "tuple", 0, "state", "null"), 0),
    "an output that nothing makes": (step(3, "state", "writes", "tuple", 0), 7),
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_no_scorer_ends_in_a_bare_error(saved: Saved, name: str) -> None:
    """One that its types don't show to be spoiled is refused by predict, or answers."""
    saved.describe(changed(saved.text, *ATTRIBUTES[name]))
    rows = pa.table({key: [value] * 3 for key, value in ROW.items()})
    for request in (ROW, [{**ROW, "word": ["a"]}], [ROW] * 3, rows, rows.to_pandas(), rows[:0]):
        with contextlib.suppress(InputError):
            Scorer.load(saved.folder).predict(request)


def test_trees_of_many_levels_are_refused(saved: Saved) -> None:
    """A chain, whose depth is found level by level."""
    _, nodes = nodes_of(saved)
    n = 2 * 50_000 + 1
    inner = np.arange(n) % 2 == 0
    inner[-1] = False
    left, right = (np.where(inner, np.arange(n) + more, -1).astype(np.int32) for more in (1, 2))
    held = {"offsets": np.array([0, n]), "leftChild": left, "rightChild": right}
    held |= {"featureIndex": np.where(inner, 0, -1).astype(np.int32), "numCategories": np.full(n, -1, np.int32)}
    held |= {"ends": np.cumsum(inner), "values": np.zeros(inner.sum()), "impurityStats": np.zeros((n, 3))}
    held |= {key: np.zeros(n, getattr(nodes, key).dtype) for key in ("prediction", "impurity", "gain", "rawCount")}
    chain = Nodes(**held)
    chain.check(1, "trees")
    with pytest.raises(InputError, match="more than 1,000 levels"):
        chain.depth()
